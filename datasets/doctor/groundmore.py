"""Examining GroundMoRe: annotation files beside a folder of clips, each with ``images`` and ``masks``."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from datasets.corpora import read_videos
from datasets.corpora.groundmore import FRAMES_PER_SECOND, Clip, GroundMoRe, open_clip, read_questions
from datasets.doctor.clip import ClipTask
from datasets.doctor.examination import (
    Examination,
    Notes,
    folders_in,
    note_naming,
    note_others,
    note_texts_said_twice,
    plain,
    shown,
)
from datasets.doctor.files import convention
from datasets.sample import Question
from utils.errors import DataError, Problems

ANNOTATIONS = ("trainval_v2", "trainval", "test_v2", "groundmore_test")
"""Stems of the annotation files as published, or renamed by evaluation scripts."""

VIDEO_FOLDERS = ("groundmore_videos", "annotations")
"""Names of the folder of clips: as scripts of this line call it, and as the published archive does."""


class GroundMoReExamination(Examination):
    """``DIR/*.json`` and ``DIR/groundmore_videos/VIDEO/{images,masks}``; DIR may also be the folder above."""

    marks = (*VIDEO_FOLDERS, *(f"{name}.json" for name in ANNOTATIONS))

    def find_splits(self) -> list[str]:
        folders = [self.root / name for name in VIDEO_FOLDERS]
        self.video_root = next((folder for folder in folders if folder.is_dir()), folders[0])
        self._has_videos = self.video_root.is_dir()
        notes = Notes(self.findings)
        if not self._has_videos:
            message = f"{self.video_root}: no such folder; it should hold a folder for each video"
            notes.find("layout-missing", message, [self.video_root])
        self._videos: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, set[tuple[str, str]]] = defaultdict(set)
        broken = []
        for path in sorted(path for path in self.root.glob("*.json") if not path.name.startswith(".")):
            if path.stem not in ANNOTATIONS and not _looks_like_annotation(path):
                notes.find("other-json", f"{path}: not a file of videos with questions; passed over", [path])
                continue
            videos = self.load(read_videos, path, path.stem)
            if videos is None:
                broken.append(path.stem)
            else:
                self._videos[path.stem] = videos
        if not self._videos and not broken:
            message = f"{self.root}: no annotation file; expected one of {', '.join(f'{n}.json' for n in ANNOTATIONS)}"
            notes.find("layout-missing", message, [self.root])
        annotated = {video for videos in self._videos.values() for video in videos}
        found = folders_in(self.video_root) if self._has_videos and not broken else []
        self._unclaimed = [name for name in found if name not in annotated]
        return [*self._videos, *broken]

    def open_split(self, split: str) -> dict[str, Any]:
        return self._videos.get(split, {})

    def look_at(self, entry: Any, notes: Notes, counts: Counter[str]) -> ClipTask | None:
        folder = self.video_root / notes.video
        notes.passed_over = () if self._has_videos else ("video-without-folder",)
        clip = open_clip(folder, notes.video, notes)
        if clip.frame_paths:
            _note_names(clip, folder, notes, counts)
        questions = list(read_questions(notes.video, entry, clip, notes))
        for question in questions:
            _note_window(question, clip, notes)
        note_texts_said_twice(questions, notes)
        self._asked[notes.split].update((notes.video, plain(question.text)) for question in questions)
        raw = entry.get("questions") if isinstance(entry, dict) else None
        counts["questions"] += len(raw) if isinstance(raw, dict) else 0
        counts.update(f"questions of type {question.q_type or 'unknown'}" for question in questions)
        counts["frames"] += len(clip.frame_paths)
        counts["objects asked about"] += len({number for question in questions for number in question.object_ids})
        return self.task(notes, clip.frame_paths, questions, masks=clip.mask_paths)

    def finish(self) -> None:
        for video_id in self.chosen(self._unclaimed):
            path = self.video_root / video_id
            message = f"{path}: no annotation file here names this video; is an annotation file missing?"
            Notes(self.findings, video=video_id).find("folder-without-annotation", message, [path])
        names = [split for split in self.splits if split in self._videos]
        for position, first in enumerate(names):
            for second in names[position + 1 :]:
                common = sorted(set(self._videos[first]) & set(self._videos[second]))
                if common:
                    message = (
                        f"{first}.json and {second}.json share {len(common)} videos and "
                        f"{len(self._asked[first] & self._asked[second])} questions: {shown(common)}; never train on "
                        "one and test on the other"
                    )
                    Notes(self.findings, first).find("video-in-several-files", message, count=len(common))

    def open_reader(self, split: str) -> None:
        GroundMoRe(self.root / f"{split}.json", self.video_root)


def _looks_like_annotation(path: Path) -> bool:
    """Whether a JSON file of another name holds videos with questions."""
    try:
        videos = read_videos(path, Problems())
    except DataError:
        return False
    return any(isinstance(video, dict) and "questions" in video for video in videos.values())


def _note_names(clip: Clip, folder: Path, notes: Notes, counts: Counter[str]) -> None:
    """Note what is odd about the number and the names of a clip's files."""
    frames, seconds = clip.frame_paths, (clip.times[1] - clip.times[0]) if clip.times else None
    if seconds is not None and abs(len(frames) - seconds * FRAMES_PER_SECOND) > FRAMES_PER_SECOND:
        message = (
            f"{len(frames)} frames, but by its id the clip lasts {seconds} s, which is {seconds * FRAMES_PER_SECOND} "
            f"frames at {FRAMES_PER_SECOND} per second; extracted at another rate, windows point to the wrong frames"
        )
        notes.find("clip-length", message)
    note_naming(frames, notes, counts, ("frame_%06d", "%07d"))
    crossed = [mask for frame, mask in zip(frames, clip.mask_paths) if mask is not None and mask.stem != frame.stem]
    if crossed:
        message = f"frames are named {convention(frames[0])}, {len(crossed)} masks {convention(crossed[0])}"
        notes.find("naming-differs", message, crossed, count=len(crossed))
    note_others("stray-file", f"{folder / 'images'} holds other images", folder / "images", frames, notes)
    masks = folder / "masks"
    note_others("mask-orphan", f"{masks} holds files that belong to no frame", masks, clip.mask_paths, notes)
    counts["frames without a mask file"] += len(frames) - sum(mask is not None for mask in clip.mask_paths)


def _note_window(question: Question, clip: Clip, notes: Notes) -> None:
    """Note a window that was cut to its clip by more than the rounding to seconds, or that has frames without masks."""
    raw, window = question.raw_window, question.window
    if window is None:
        return
    if max(window[0] - raw[0], raw[1] - window[1]) >= FRAMES_PER_SECOND:
        message = (
            f"the action's window, frames {raw[0]} to {raw[1]}, reaches beyond the clip, frames 0 to "
            f"{len(clip.frame_paths) - 1}; it is cut to frames {window[0]} to {window[1]}"
        )
        notes.find("window-clipped", message, query=question.query_id)
    inside = range(window[0], window[1] + 1)
    missing = [frame for frame in inside if clip.mask_paths[frame] is None] if any(clip.mask_paths) else []
    length = len(inside)
    if len(missing) == length:
        message = f"no mask file on any frame of the action ({missing[0]} to {missing[-1]}): the target is empty"
        notes.find("window-without-mask", message, query=question.query_id, count=length)
    elif missing:
        message = f"no mask file on {len(missing)} of the action's {length} frames: {shown(missing)}"
        notes.find("window-mask-gaps", message, query=question.query_id, count=len(missing))
