"""Examining Refer-YouTube-VOS and MeViS, whose annotation files list each video's frames by name.

Splits published without masks (valid, test) are examined for their frames and texts alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.corpora import listed_files, read_listed_video, read_videos
from datasets.corpora.mevis import read_expressions, read_tubes
from datasets.corpora.refer_youtube_vos import expressions_by_object, read_categories
from datasets.doctor.clip import ClipTask
from datasets.doctor.examination import (
    Examination,
    Notes,
    folders_in,
    note_naming,
    note_others,
    note_texts_said_twice,
    shown,
)
from datasets.sample import Question
from utils.video import frame_number


class ListedExamination(Examination):
    """Base of the two.

    Attributes:
        masked: whether masks are looked for in the split that is open.
    """

    masked = False

    @abstractmethod
    def annotation_of(self, split: str) -> Path:
        """The file that lists a split's videos."""

    @abstractmethod
    def open_masks(self, split: str, videos: dict[str, Any]) -> bool:
        """Note what is missing of a split's masks; whether they are to be looked for."""

    @abstractmethod
    def read_questions(
        self, expressions: dict[str, Any], names: list[str], kept: list[int], notes: Notes, counts: Counter[str]
    ) -> tuple[list[Question], dict[str, Any]]:
        """The expressions of a video that can be used, and its masks (fields of :class:`ClipTask`).

        Args:
            expressions: entries by id.
            names: of the frames that are listed.
            kept: which of them are there.
            notes: where mistakes go.
            counts: of the split.
        """

    def open_split(self, split: str) -> dict[str, Any]:
        source, self.images = self.annotation_of(split), self.root / split / "JPEGImages"
        complete = self.require(split, source, "the expressions of this split")
        complete &= self.require(split, self.images, "a folder of frames for each video")
        videos = (self.load(read_videos, source, split) if source.exists() else None) or {}
        self.masked = self.open_masks(split, videos)
        return videos if complete else {}

    def require(self, split: str, path: Path, what: str) -> bool:
        """Whether a file or folder exists; noted if not."""
        if not path.exists():
            message = f"{path}: missing; it should hold {what}"
            Notes(self.findings, split).find("layout-missing", message, [path])
        return path.exists()

    def look_at(self, entry: Any, notes: Notes, counts: Counter[str]) -> ClipTask | None:
        where, images = f"video {notes.video}", self.images / notes.video
        names, expressions = read_listed_video(entry, where, notes)
        found = listed_files(names, images, ".jpg", where, notes) if names else ()
        kept = [index for index, path in enumerate(found) if path is not None]
        frames = [found[index] for index in kept]
        if names:
            note_naming(frames, notes, counts, ("%05d",))
            note_others("frame-unlisted", "frame files that the annotation does not list", images, found, notes)
            _note_steps(names, notes)
        notes.passed_over = () if self.masked else ("bad-object-id", "tube-missing")
        questions, masks = self.read_questions(expressions, names, kept, notes, counts)
        if self.masked:
            note_texts_said_twice(questions, notes)
        counts["expressions"] += len(expressions)
        counts["frames"] += len(frames)
        return self.task(notes, frames, questions, **masks)

    def close_split(self, split: str, videos: dict[str, Any]) -> None:
        for name in self.chosen(name for name in folders_in(self.images) if name not in videos):
            path = self.images / name
            message = f"{path}: the annotation of {split} does not name this video"
            Notes(self.findings, split, name).find("folder-without-annotation", message, [path])


def _note_steps(names: Sequence[str], notes: Notes) -> None:
    numbers = [frame_number(name) for name in names]
    if len(numbers) < 3 or None in numbers:
        return
    steps = [after - before for before, after in zip(numbers, numbers[1:])]
    usual = Counter(steps).most_common(1)[0][0]
    odd = [f"{names[k]} and {names[k + 1]}" for k, step in enumerate(steps) if step != usual]
    if odd:
        notes.find("frame-step-irregular", f"frames are {usual} apart, but not {shown(odd)}", count=len(odd))


class ReferYoutubeVosExamination(ListedExamination):
    """``DIR/train/{JPEGImages,Annotations}`` and ``DIR/meta_expressions/train``; DIR may also be the folder above."""

    name = "refer_youtube_vos"
    marks = ("meta_expressions/*", "*/JPEGImages", "*/Annotations")

    def find_splits(self) -> list[str]:
        names = {path.name for path in (self.root / "meta_expressions").glob("*") if path.is_dir()}
        return sorted(names | {path.parent.name for path in self.root.glob("*/JPEGImages")})

    def annotation_of(self, split: str) -> Path:
        return self.root / "meta_expressions" / split / "meta_expressions.json"

    def open_masks(self, split: str, videos: dict[str, Any]) -> bool:
        self.masks = self.root / split / "Annotations"
        self.load(read_categories, self.root / split / "meta.json", split)
        if split in self.row.splits:
            return self.require(split, self.masks, "a folder of masks for each video")
        return self.masks.is_dir() and _names_objects(videos)

    def read_questions(self, expressions, names, kept, notes, counts):
        where, folder = f"video {notes.video}", self.masks / notes.video
        by_object = expressions_by_object(expressions, {}, where, notes)
        by_id = {question.query_id: question for same in by_object.values() for question in same}
        questions = [by_id[query_id] for query_id in expressions if query_id in by_id]
        if not self.masked or not (names or expressions):
            return questions, {}
        counts["objects asked about"] += len(by_object)
        masks = listed_files(names, folder, ".png", where, notes) if names else ()
        message = f"{folder} holds files that belong to no listed frame"
        note_others("mask-orphan", message, folder, masks, notes)
        return questions, {"masks": tuple(masks[index] for index in kept)}

    def close_split(self, split: str, videos: dict[str, Any]) -> None:
        super().close_split(split, videos)
        ghosts = [name for name in folders_in(self.masks) if not (self.images / name).exists()]
        for name in self.chosen(ghosts if self.masked else ()):
            message = f"{self.masks / name}: masks of a video that has no frames"
            Notes(self.findings, split, name).find("mask-orphan", message, [self.masks / name])


def _names_objects(videos: dict[str, Any]) -> bool:
    """Whether any expression names its object; those of a split whose masks are not published do not, and masks that
    lie there are those of another task's first frames."""
    entries = (video.get("expressions") for video in videos.values() if isinstance(video, dict))
    return any(
        isinstance(expression, dict) and "obj_id" in expression
        for expressions in entries
        if isinstance(expressions, dict)
        for expression in expressions.values()
    )


class MeViSExamination(ListedExamination):
    """``DIR/{train,valid_u}/{JPEGImages,meta_expressions.json,mask_dict.json}``; DIR may also be the folder above.

    ``mask_dict.json`` is held in memory while its split is examined, as the reader holds it.
    """

    marks = ("*/meta_expressions.json", "*/mask_dict.json", "*/JPEGImages")

    def find_splits(self) -> list[str]:
        return sorted({path.parent.name for mark in self.marks for path in self.root.glob(mark)})

    def annotation_of(self, split: str) -> Path:
        return self.root / split / "meta_expressions.json"

    def open_masks(self, split: str, videos: dict[str, Any]) -> bool:
        path = self.root / split / "mask_dict.json"
        tubes = None
        if path.exists():
            tubes = self.load(read_tubes, path, split)
        elif split in self.row.splits:
            self.require(split, path, "the masks of every annotation")
        self.tubes, self.users = tubes or {}, defaultdict(list)
        return tubes is not None

    def read_questions(self, expressions, names, kept, notes, counts):
        where = f"video {notes.video}"
        questions, used = read_expressions(expressions, self.tubes, len(names), where, notes)
        for question in questions:
            objects, numbers = (expressions[question.query_id].get(key) for key in ("obj_id", "anno_id"))
            if isinstance(objects, list) and len(objects) != len(numbers):
                message = f"'obj_id' has {len(objects)} entries, 'anno_id' {len(numbers)}; they belong together"
                notes.find("ids-not-parallel", message, query=question.query_id)
        for number in used:
            self.users[number].append(notes.video)
        counts["annotations in use"] += len(used)
        counts["expressions without a target"] += sum(not question.object_ids for question in questions)
        tubes = {number: [tube[index] for index in kept] for number, tube in used.items()}
        return questions, {"tubes": tubes if self.masked else None}

    def close_split(self, split: str, videos: dict[str, Any]) -> None:
        super().close_split(split, videos)
        for number, names in self.users.items():
            if len(names) > 1:
                message = f"annotation {number} is used by {shown(names)}; masks of one video cannot fit another"
                Notes(self.findings, split, names[-1]).find("tube-shared", message, count=len(names))
        unused = [number for number in self.tubes if not number.isdecimal() or int(number) not in self.users]
        if unused and not self.options.partial:
            message = f"{len(unused)} of {len(self.tubes)} annotations are named by no expression that can be used"
            Notes(self.findings, split).find("tube-unused", f"{message}: {shown(unused)}", count=len(unused))
