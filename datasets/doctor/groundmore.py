"""Examining GroundMoRe: annotation files beside a folder of clips, each with ``images`` and ``masks``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets.corpora.base import get_field, videos_of
from datasets.corpora.groundmore import (
    FRAMES_PER_SECOND,
    TYPES,
    GroundMoRe,
    action_window,
    clip_window,
    note_window,
    parse_clip_times,
    parse_time,
    read_object_ids,
)
from datasets.corpora.mask_files import match_masks
from datasets.corpora.names import shown as quoted
from datasets.doctor.annotations import Examination, note_numbering, note_texts_said_twice, read_annotation, shown
from datasets.doctor.clip import ClipTask
from datasets.doctor.files import convention, folders_in, images_in
from datasets.sample import QUESTION_TYPES, Question
from utils.errors import ConfigError, DataError, Problems
from utils.files import read_json
from utils.video import frame_number, frame_order

ANNOTATIONS = ("trainval_v2", "trainval", "test_v2", "groundmore_test")
"""Stems of the annotation files as published, or renamed by evaluation scripts."""

VIDEO_FOLDERS = ("groundmore_videos", "annotations")
"""Names of the folder of clips: as scripts of this line call it, and as the published archive does."""

_PUBLISHED = ("frame_%06d", "%07d")


class GroundMoReExamination(Examination):
    """``DIR/*.json`` and ``DIR/groundmore_videos/VIDEO/{images,masks}``; DIR may also be the folder above."""

    name, unit = "groundmore", "questions"

    def __init__(self, folder, options, findings):
        self._asked: dict[str, set[str]] = {}
        self._unclaimed: list[str] = []
        super().__init__(folder, options, findings)

    def find_splits(self) -> list[str]:
        places = [self.folder, self.folder / "GroundMoRe"]
        self.root = next((p for p in places if any((p / name).is_dir() for name in VIDEO_FOLDERS)), None)
        if self.root is None:
            self.root = next((p for p in places if any((p / f"{n}.json").is_file() for n in ANNOTATIONS)), None)
        if self.root is None:
            raise ConfigError(
                f"{self.folder}: neither a folder {' or '.join(VIDEO_FOLDERS)} nor an annotation file "
                f"({', '.join(f'{name}.json' for name in ANNOTATIONS)}) here or in GroundMoRe/; give the folder that "
                "holds them"
            )
        self.video_root = next((self.root / n for n in VIDEO_FOLDERS if (self.root / n).is_dir()), None)
        if self.video_root is None:
            message = f"{self.root / VIDEO_FOLDERS[0]}: no such folder; it should hold a folder for each video"
            self.findings.add("layout-missing", message, [self.root / VIDEO_FOLDERS[0]])
        self._videos: dict[str, dict[str, Any]] = {}
        broken = []
        for path in sorted(path for path in self.root.glob("*.json") if not path.name.startswith(".")):
            if path.stem not in ANNOTATIONS and not _looks_like_annotation(path):
                self.findings.add("other-json", f"{path}: not a file of videos with questions; passed over", [path])
                continue
            videos = read_annotation(path, self.findings, path.stem)
            if videos is None:
                broken.append(path.stem)
            else:
                self._videos[path.stem] = videos
        if not self._videos and not broken:
            message = f"{self.root}: no annotation file; expected one of {', '.join(f'{n}.json' for n in ANNOTATIONS)}"
            self.findings.add("layout-missing", message, [self.root])
        annotated = {video for videos in self._videos.values() for video in videos}
        if self.video_root is not None and not broken:
            self._unclaimed = [name for name in folders_in(self.video_root) if name not in annotated]
        return [*self._videos, *broken]

    def clips(self, split: str) -> Iterator[ClipTask]:
        counts = self.counts.setdefault(split, Counter())
        videos = self._videos.get(split, {})
        for video_id in self.chosen(videos):
            counts["videos"] += 1
            yield from self.attempt(self._clip, split, video_id, videos[video_id], counts)

    def _clip(self, split: str, video_id: str, video: Any, counts: Counter[str]) -> ClipTask | None:
        place = dict(split=split, video=video_id)
        start = None
        try:
            start, end = parse_clip_times(video_id)
        except DataError as error:
            self.findings.add("bad-video-id", str(error), **place)
        frames, masks = self._files(video_id, counts, place)
        if start is not None and frames and abs(len(frames) - (end - start) * FRAMES_PER_SECOND) > FRAMES_PER_SECOND:
            message = (
                f"{len(frames)} frames, but by its id the clip lasts {end - start} s, which is "
                f"{(end - start) * FRAMES_PER_SECOND} frames at {FRAMES_PER_SECOND} per second; extracted at another "
                "rate, windows point to the wrong frames"
            )
            self.findings.add("clip-length", message, **place)
        questions = self._questions(video, start, frames, masks, counts, place)
        note_texts_said_twice(questions, self.findings, split, video_id)
        counts["frames"] += len(frames)
        counts["objects asked about"] += len({number for query in questions for number in query.object_ids})
        if not frames:
            return None
        return ClipTask(split, video_id, frames, masks, None, tuple(questions), fast=self.options.fast)

    def _files(self, video_id: str, counts: Counter[str], place: dict[str, str]) -> tuple[tuple, tuple]:
        """A clip's frames in time order and a mask or None for each; whatever is odd about names is noted."""
        if self.video_root is None:
            return (), ()
        folder = self.video_root / video_id
        images, mask_folder = folder / "images", folder / "masks"
        frames = tuple(sorted(images_in(images), key=frame_order))
        if not frames:
            message = f"{images}: no image in this folder, or no such folder; extract the clip there"
            self.findings.add("video-without-folder", message, [images], **place)
            return (), ()
        note_numbering(frames, self.findings, counts, _PUBLISHED, **place)
        self._note_steps(frames, place)
        masks = self._masks(frames, mask_folder, place)
        crossed = [mask for frame, mask in zip(frames, masks) if mask is not None and mask.stem != frame.stem]
        if crossed:
            message = f"frames are named {convention(frames[0])}, {len(crossed)} masks {convention(crossed[0])}"
            self.findings.add("naming-differs", message, crossed[:5], count=len(crossed), **place)
        counts["frames without a mask file"] += sum(mask is None for mask in masks)
        for inner in (images, mask_folder):
            self.note_strays(inner, **place)
        return frames, masks

    def _masks(self, frames: tuple[Path, ...], folder: Path, place: dict[str, str]) -> tuple[Path | None, ...]:
        """A mask or None per frame; masks that are missing, or numbered otherwise, or left over are noted."""
        images = set(images_in(folder))
        masks: tuple[Path | None, ...] = (None,) * len(frames)
        try:
            match = match_masks(frames, sorted(images))
        except DataError as error:
            self.findings.add("mask-missing", f"{folder}: {error}", [folder], **place)
        else:
            masks = match.paths
            if match.fault:
                self.findings.add(
                    "mask-numbering", f"{folder}: {match.fault}", match.orphans[:5], count=len(match.orphans), **place
                )
        orphans = sorted(images - set(masks))
        if orphans:
            message = f"{folder} holds files that belong to no frame: {shown(p.name for p in orphans)}"
            self.findings.add("mask-orphan", message, orphans[:5], count=len(orphans), **place)
        return masks

    def _note_steps(self, frames: tuple[Path, ...], place: dict[str, str]) -> None:
        numbers = [(frame_number(path), path) for path in frames if frame_number(path) is not None]
        steps = list(zip(numbers, numbers[1:]))
        repeated = [(a, b) for (x, a), (y, b) in steps if x == y]
        if repeated:
            message = f"{repeated[0][0].name} and {repeated[0][1].name} are the same frame number; keep one of them"
            files = [b for _, b in repeated[:5]]
            self.findings.add("frame-number-repeated", message, files, count=len(repeated), **place)
        holes = [(x, y, b) for (x, _), (y, b) in steps if y > x + 1]
        if holes:
            gaps = shown(f"{x + 1} to {y - 1}" if y > x + 2 else f"{x + 1}" for x, y, _ in holes)
            message = f"no frame {gaps}: every later action window would shift; extract the clip again"
            missing = sum(y - x - 1 for x, y, _ in holes)
            self.findings.add("frame-number-hole", message, [b for *_, b in holes[:5]], count=missing, **place)

    def _questions(
        self, video: Any, start: int | None, frames: tuple, masks: tuple, counts: Counter[str], place: dict[str, str]
    ) -> list[Question]:
        """The questions whose text and ids can be used; their windows as far as they can be."""
        where, problems = f"video {place['video']}", Problems()
        if not isinstance(video, dict):
            problems.add(where, f"must be an object with 'questions', not {type(video).__name__}")
            video = None
        entries = {} if video is None else get_field(video, "questions", dict, where, problems) or {}
        self.noted("video-malformed", problems, where, **place)
        questions = []
        for query_id, entry in entries.items():
            counts["questions"] += 1
            query = self._question(query_id, entry, start, len(frames), counts, {**place, "query": query_id})
            if query is not None:
                questions.append(query)
                self._note_window_masks(query, masks, {**place, "query": query_id})
        self._asked.setdefault(place["split"], set()).update(
            f"{place['video']}\n{' '.join(query.text.lower().split())}" for query in questions
        )
        return questions

    def _question(
        self, query_id: str, entry: Any, start: int | None, num_frames: int, counts: Counter[str], place: dict[str, str]
    ) -> Question | None:
        where = f"video {place['video']}, question {query_id}"
        if not isinstance(entry, dict):
            message = f"must be an object with 'question', 'answer', …, not {type(entry).__name__}"
            self.findings.add("entry-malformed", message, **place)
            return None

        def read(kind: str, reading: Callable[..., Any], *arguments: Any) -> Any:
            problems = Problems()
            value = reading(*arguments, where, problems)
            self.noted(kind, problems, where, **place)
            return value

        text = read("entry-malformed", get_field, entry, "question", str)
        answer = read("answer-missing", get_field, entry, "answer", str)
        ids = read("bad-object-id", read_object_ids, entry)
        q_type = read("entry-malformed" if "q_type" not in entry else "unknown-type", get_field, entry, "q_type", str)
        known = TYPES.get(q_type.strip().lower()) if q_type is not None else None
        if q_type is not None and known is None:
            message = f"unknown q_type {quoted(q_type, 40)}; it must be one of {', '.join(QUESTION_TYPES)}"
            self.findings.add("unknown-type", message, **place)
        counts[f"questions of type {known or 'unknown'}"] += 1
        raw = self._window(entry, start, read)
        window = None if raw is None or not num_frames else clip_window(raw, num_frames)
        if raw is not None and num_frames:
            self._note_window(raw, window, num_frames, where, place)
        if text is None or not ids:
            return None
        return Question(query_id, text, True, answer, ids, known, window, raw)

    def _window(self, entry: dict[str, Any], start: int | None, read: Callable[..., Any]) -> tuple[int, int] | None:
        """The unclipped window in frames; None, and noted, if a time cannot be used."""

        def time(entry: dict[str, Any], key: str, where: str, problems: Problems) -> str | None:
            text = get_field(entry, key, str, where, problems)
            try:
                return text if text is None or parse_time(text) >= 0 else None
            except DataError as error:
                problems.add(where, f"'{key}': {error}")
                return None

        times = [read("bad-time", time, entry, key) for key in ("action_start", "action_end")]
        return None if start is None or None in times else action_window(*times, start)

    def _note_window(
        self, raw: tuple[int, int], window: tuple[int, int] | None, num_frames: int, where: str, place: dict[str, str]
    ) -> None:
        if window is None:
            problems = Problems()
            note_window(raw, num_frames, where, problems)
            self.noted("window-empty" if raw[1] < raw[0] else "window-outside", problems, where, **place)
        elif max(window[0] - raw[0], raw[1] - window[1]) >= FRAMES_PER_SECOND:  # clip ends are rounded to seconds
            message = (
                f"the action's window, frames {raw[0]} to {raw[1]}, reaches beyond the clip, frames 0 to "
                f"{num_frames - 1}; it is cut to frames {window[0]} to {window[1]}"
            )
            self.findings.add("window-clipped", message, **place)

    def _note_window_masks(self, query: Question, masks: tuple, place: dict[str, str]) -> None:
        if query.window is None or not any(masks):
            return
        inside = masks[query.window[0] : query.window[1] + 1]
        missing = [query.window[0] + offset for offset, mask in enumerate(inside) if mask is None]
        if len(missing) == len(inside):
            message = f"no mask file on any frame of the action ({missing[0]} to {missing[-1]}): the target is empty"
            self.findings.add("window-without-mask", message, count=len(missing), **place)
        elif missing:
            message = f"no mask file on {len(missing)} of the action's {len(inside)} frames: {shown(missing)}"
            self.findings.add("window-mask-gaps", message, count=len(missing), **place)

    def finish(self) -> None:
        for video_id in self.unclaimed(self._unclaimed):
            path = self.video_root / video_id
            message = f"{path}: no annotation file here names this video; is an annotation file missing?"
            self.findings.add("folder-without-annotation", message, [path], video=video_id)
        names = [split for split in self.splits if split in self._videos]
        for position, first in enumerate(names):
            for second in names[position + 1 :]:
                common = sorted(set(self._videos[first]) & set(self._videos[second]))
                if common:
                    same = len(self._asked.get(first, set()) & self._asked.get(second, set()))
                    message = (
                        f"{first}.json and {second}.json share {len(common)} videos and {same} questions: "
                        f"{shown(common)}; never train on one and test on the other"
                    )
                    self.findings.add("video-in-several-files", message, split=first, count=len(common))

    def open_reader(self, split: str) -> None:
        GroundMoRe(self.root / f"{split}.json", self.video_root or self.root / VIDEO_FOLDERS[0])


def _looks_like_annotation(path: Path) -> bool:
    """Whether a JSON file of another name holds videos with questions."""
    try:
        videos = videos_of(read_json(path), path, Problems())
    except DataError:
        return False
    return any(isinstance(video, dict) and "questions" in video for video in videos.values())
