"""Examining MeViS: frames and expressions below SPLIT/, masks of all videos in one ``mask_dict.json``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.corpora.base import caption, get_field
from datasets.corpora.mevis import MeViS, read_expression, take_tubes
from datasets.doctor.annotations import note_repeated_keys, note_texts_said_twice, read_annotation, shown
from datasets.doctor.clip import ClipTask
from datasets.doctor.listed import ListedExamination, ListedVideo
from datasets.sample import Question
from utils.errors import DataError, Problems
from utils.files import read_json


class MeViSExamination(ListedExamination):
    """``DIR/{train,valid_u}/{JPEGImages,meta_expressions.json,mask_dict.json}``; DIR may also be the folder above.

    Splits published without masks (valid, test) are examined for their frames and texts alone. ``mask_dict.json`` is
    held in memory while its split is examined, as the reader holds it.
    """

    name = "mevis"
    folders = ("MeViSv2", "mevis")
    with_masks = ("train", "valid_u")
    """Splits whose masks are published; they must be there."""

    def find_splits(self) -> list[str]:
        self.root = self.find_root(["*/meta_expressions.json", "*/mask_dict.json", "*/JPEGImages"])
        marks = ("*/meta_expressions.json", "*/mask_dict.json", "*/JPEGImages")
        return sorted({path.parent.name for mark in marks for path in self.root.glob(mark)})

    def clips(self, split: str) -> Iterator[ClipTask]:
        counts = self.counts.setdefault(split, Counter())
        folder = self.root / split
        source, images = folder / "meta_expressions.json", folder / "JPEGImages"
        complete = self.require(split, source, "the expressions of this split")
        complete &= self.require(split, images, "a folder of frames for each video")
        videos = read_annotation(source, self.findings, split) if source.exists() else None
        tubes = self._read_tubes(split, folder / "mask_dict.json")
        if not complete or videos is None:
            return
        users: dict[int, list[str]] = defaultdict(list)
        for video_id in self.chosen(videos):
            counts["videos"] += 1
            yield from self.attempt(self._clip, split, video_id, videos[video_id], images, tubes, users, counts)
        self.note_unclaimed(split, images, videos)
        self._note_users(users, tubes or {}, split)

    def _clip(
        self,
        split: str,
        video_id: str,
        video: Any,
        images: Path,
        tubes: dict[str, Any] | None,
        users: dict[int, list[str]],
        counts: Counter[str],
    ) -> ClipTask | None:
        entry = self.open_video(split, video_id, video, images / video_id, counts)
        if entry is None:
            return None
        questions = self._questions(entry, split, video_id, tubes is not None, counts)
        used = self._tubes(questions, entry, tubes or {}, split, video_id)
        for number in used:
            users[number].append(video_id)
        counts["annotations in use"] += len(used)
        if not entry.frames:
            return None
        kept = None if tubes is None else {n: [tube[k] for k in entry.kept] for n, tube in used.items()}
        usable = tuple(query for query in questions if set(query.object_ids) <= set(used))
        return ClipTask(split, video_id, entry.frames, (), kept, usable, fast=self.options.fast)

    def _read_tubes(self, split: str, path: Path) -> dict[str, Any] | None:
        """The masks; None if there are none, noted where there should be some."""
        if not path.exists():
            if split in self.with_masks:
                self.require(split, path, "the masks of every annotation")
            return None
        try:
            tubes = read_json(path, twice := [])
        except DataError as error:
            self.findings.add("annotation-unreadable", str(error), [path], split=split)
            return None
        note_repeated_keys(path, twice, self.findings, split)
        if not isinstance(tubes, dict):
            message = f"{path}: expected {{annotation id: [mask per frame]}}; wrong file?"
            self.findings.add("annotation-unreadable", message, [path], split=split)
            return None
        return tubes

    def _questions(
        self, entry: ListedVideo, split: str, video_id: str, masked: bool, counts: Counter[str]
    ) -> list[Question]:
        """The expressions that can be used; those of a split without masks need no annotation."""
        questions = []
        for query_id, raw in entry.expressions.items():
            counts["expressions"] += 1
            where = f"video {video_id}, expression {query_id}"
            place, problems = dict(split=split, video=video_id, query=query_id), Problems()
            if masked or not isinstance(raw, dict):
                query = read_expression(query_id, raw, where, problems)
            else:
                text = get_field(raw, "exp", str, where, problems)
                query = Question(query_id, caption(text), is_question=False) if text is not None else None
            text_is_good = isinstance(raw, dict) and isinstance(raw.get("exp"), str) and bool(raw["exp"].strip())
            self.noted("bad-object-id" if text_is_good else "entry-malformed", problems, where, **place)
            if query is None:
                continue
            questions.append(query)
            objects, numbers = raw.get("obj_id"), raw.get("anno_id")
            if masked and isinstance(objects, list) and len(objects) != len(numbers):
                message = f"'obj_id' has {len(objects)} entries, 'anno_id' {len(numbers)}; they belong together"
                self.findings.add("ids-not-parallel", message, **place)
            counts["expressions without a target"] += masked and not query.object_ids
        if masked:
            note_texts_said_twice(questions, self.findings, split, video_id)
        return questions

    def _tubes(
        self, questions: list[Question], entry: ListedVideo, tubes: dict[str, Any], split: str, video_id: str
    ) -> dict[int, list[Any]]:
        """The usable mask lists of a video's annotations; each annotation that cannot be used is noted once."""
        used: dict[int, list[Any]] = {}
        blamed: set[int] = set()
        for query in questions if tubes and entry.names else ():
            where = f"video {video_id}, expression {query.query_id}"
            for number in query.object_ids:
                if number in used or number in blamed:
                    continue
                problems, single = Problems(), Question(query.query_id, query.text, False, object_ids=(number,))
                if take_tubes(single, tubes, len(entry.names), used, f"video {video_id}", problems):
                    continue
                blamed.add(number)
                tube = tubes.get(str(number))
                empty = isinstance(tube, list) and len(tube) == len(entry.names)
                kind = "tube-missing" if tube is None else "object-absent" if empty else "tube-length"
                self.noted(kind, problems, where, split=split, video=video_id, query=query.query_id)
        return used

    def _note_users(self, users: dict[int, list[str]], tubes: dict[str, Any], split: str) -> None:
        for number, videos in users.items():
            if len(videos) > 1:
                message = f"annotation {number} is used by {shown(videos)}; masks of one video cannot fit another"
                self.findings.add("tube-shared", message, split=split, video=videos[-1], count=len(videos))
        unused = [number for number in tubes if not number.isdecimal() or int(number) not in users]
        if unused and not self.options.partial:
            message = f"{len(unused)} of {len(tubes)} annotations are named by no expression that can be used"
            self.findings.add("tube-unused", f"{message}: {shown(unused)}", split=split, count=len(unused))

    def open_reader(self, split: str) -> None:
        if split in self.with_masks:
            MeViS(self.root, split)
