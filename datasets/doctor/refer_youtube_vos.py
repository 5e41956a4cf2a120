"""Examining Refer-YouTube-VOS: frames and id masks below SPLIT/, expressions below meta_expressions/SPLIT/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.corpora.base import caption, find_named, get_field
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos, expressions_by_object, read_categories
from datasets.doctor.annotations import note_texts_said_twice, read_annotation, shown
from datasets.doctor.clip import ClipTask
from datasets.doctor.files import folders_in, images_in
from datasets.doctor.listed import ListedExamination, ListedVideo
from datasets.sample import Question
from utils.errors import DataError, Problems


class ReferYoutubeVosExamination(ListedExamination):
    """``DIR/train/{JPEGImages,Annotations}`` and ``DIR/meta_expressions/train``; DIR may also be the folder above.

    Splits published without masks (valid, test) are examined for their frames and texts alone.
    """

    name = "refer_youtube_vos"
    folders = ("refytvos",)
    with_masks = ("train",)
    """Splits whose masks are published; they must be there."""

    def find_splits(self) -> list[str]:
        self.root = self.find_root(["meta_expressions/*", "*/JPEGImages", "*/Annotations"])
        names = {path.name for path in (self.root / "meta_expressions").glob("*") if path.is_dir()}
        names |= {path.parent.name for path in self.root.glob("*/JPEGImages")}
        return sorted(names)

    def clips(self, split: str) -> Iterator[ClipTask]:
        counts = self.counts.setdefault(split, Counter())
        folder, source = self.root / split, self.root / "meta_expressions" / split / "meta_expressions.json"
        images, masks = folder / "JPEGImages", folder / "Annotations"
        complete = self.require(split, source, "the expressions of this split")
        complete &= self.require(split, images, "a folder of frames for each video")
        if split in self.with_masks:
            self.require(split, masks, "a folder of masks for each video")
        videos = read_annotation(source, self.findings, split) if source.exists() else None
        if not complete or videos is None:
            return
        masked = masks.is_dir() and (split in self.with_masks or _names_objects(videos))
        self._note_categories(split, folder / "meta.json")
        for video_id in self.chosen(videos):
            counts["videos"] += 1
            yield from self.attempt(self._clip, split, video_id, videos[video_id], folder, masked, counts)
        self.note_unclaimed(split, images, videos)
        ghosts = [name for name in folders_in(masks) if not (images / name).exists()]
        for name in self.unclaimed(ghosts if masked else ()):
            message = f"{masks / name}: masks of a video that has no frames"
            self.findings.add("mask-orphan", message, [masks / name], split=split, video=name)

    def _clip(
        self, split: str, video_id: str, video: Any, folder: Path, masked: bool, counts: Counter[str]
    ) -> ClipTask | None:
        entry = self.open_video(split, video_id, video, folder / "JPEGImages" / video_id, counts)
        if entry is None:
            return None
        questions = self._questions(entry, split, video_id, masked, counts)
        masks = self._masks(entry, folder / "Annotations" / video_id, split, video_id) if masked else ()
        if not entry.frames:
            return None
        return ClipTask(split, video_id, entry.frames, masks, None, tuple(questions), fast=self.options.fast)

    def _note_categories(self, split: str, path: Path) -> None:
        problems = Problems()
        try:
            read_categories(path, problems)
        except DataError as error:
            problems.add(str(path), str(error).removeprefix(f"{path}: "))
        self.noted("annotation-unreadable", problems, "", split=split, files=[path])

    def _questions(
        self, entry: ListedVideo, split: str, video_id: str, masked: bool, counts: Counter[str]
    ) -> list[Question]:
        """The expressions that can be used; those of a split without masks need no object."""
        questions = []
        for query_id, raw in entry.expressions.items():
            counts["expressions"] += 1
            query = self._query(query_id, raw, masked, dict(split=split, video=video_id, query=query_id))
            questions += [query] if query is not None else []
        if masked:
            note_texts_said_twice(questions, self.findings, split, video_id)
            counts["objects asked about"] += len({query.object_ids for query in questions})
        return questions

    def _query(self, query_id: str, raw: Any, masked: bool, place: dict[str, str]) -> Question | None:
        where, problems = f"video {place['video']}", Problems()
        if masked or not isinstance(raw, dict):
            found = expressions_by_object({"expressions": {query_id: raw}}, {}, where, problems)
            query = next((query for same in found.values() for query in same), None)
        else:
            text = get_field(raw, "exp", str, f"{where}, expression {query_id}", problems)
            query = Question(query_id, caption(text), is_question=False) if text is not None else None
        text_is_good = isinstance(raw, dict) and isinstance(raw.get("exp"), str) and bool(raw["exp"].strip())
        kind = "bad-object-id" if text_is_good else "entry-malformed"
        self.noted(kind, problems, f"{where}, expression {query_id}", **place)
        return query

    def _masks(self, entry: ListedVideo, folder: Path, split: str, video_id: str) -> tuple[Path | None, ...]:
        """A mask or None per frame that is there; missing ones and those of no listed frame are noted."""
        place, where, problems = dict(split=split, video=video_id), f"video {video_id}", Problems()
        files = self.files(folder, ".png", where, **place)
        if entry.names:
            find_named(list(entry.names), files, folder, "mask", where, problems)
        missing = [folder / f"{name}.png" for name in entry.names if name not in files]
        self.noted("mask-missing", problems, where, files=missing[:5], count=max(1, len(missing)), **place)
        orphans = [path for path in images_in(folder) if path.suffix.lower() != ".png" or path.stem not in entry.names]
        if orphans:
            message = f"{folder} holds files that belong to no listed frame: {shown(p.name for p in orphans)}"
            self.findings.add("mask-orphan", message, orphans[:5], count=len(orphans), **place)
        self.note_strays(folder, **place)
        return tuple(files.get(entry.names[index]) for index in entry.kept)

    def open_reader(self, split: str) -> None:
        if split in self.with_masks:
            ReferYoutubeVos(self.root, split)


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
