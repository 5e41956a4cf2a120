"""GroundMoRe: one record per clip, with all its questions; each has an answer object and an action window.

Layout (as published)::

    META.json       {"videos": {VIDEO: {"questions": {ID: {"question": str, "answer": str, "obj_id": "1" or "1, 2",
                     "q_type": str, "action_start": "MM:SS", "action_end": "MM:SS"}}}}}
    VIDEO_ROOT/VIDEO/images/frame_000012.jpg  or  0000012.jpg
    VIDEO_ROOT/VIDEO/masks/frame_000012.png   or  0000012.png      palette PNG, pixel = object id

VIDEO ends with ``MMSS_MMSS``: where the clip starts and ends in its source video. Frames come at 6 per second. Times
are those of the source video, so the window is ``(t(action_start) - t(clip_start)) * 6`` up to and including
``(t(action_end) - t(clip_start)) * 6 - 1``. A frame without a mask file has an empty mask.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.corpora.base import IdMasks, Reader, get_field, headers_fit, object_number, read_annotation, videos_of
from datasets.corpora.mask_files import match_masks
from datasets.corpora.names import shown
from datasets.sample import QUESTION_TYPES, Question, VideoRecord
from utils.errors import DataError, Problems
from utils.masks import IdMaskCache
from utils.video import frame_number, image_files, list_frames

logger = logging.getLogger(__name__)

FRAMES_PER_SECOND = 6
"""Rate at which the published frames were extracted."""

_CLIP_SUFFIX = re.compile(r"(\d{2})(\d{2})_(\d{2})(\d{2})$")
_LONG_CLIP_SUFFIX = re.compile(r"_(\d{2,3})(\d{2})_(\d{3})(\d{2})$")
_TIME = re.compile(r"[0-9]{1,9}(:[0-9]{1,2}){0,2}")
TYPES = {name.lower(): name for name in QUESTION_TYPES}
"""In lower case -> as published."""


def parse_time(text: str) -> int:
    """Seconds of "SS", "MM:SS" or "HH:MM:SS".

    Raises:
        DataError: anything else.
    """
    if not _TIME.fullmatch(text.strip()):
        raise DataError(f"{shown(text, 40)} is not a time; write MM:SS, HH:MM:SS or SS")
    seconds = 0
    for part in text.strip().split(":"):
        seconds = seconds * 60 + int(part)
    return seconds


def parse_clip_times(video_id: str) -> tuple[int, int]:
    """(start, end) of the clip in its source video, in seconds, from the id's last part ``MMSS_MMSS``.

    Minutes from 100 on take three digits.

    Raises:
        DataError: the id does not end so, or the clip would end before it starts.
    """
    match = _LONG_CLIP_SUFFIX.search(video_id) or _CLIP_SUFFIX.search(video_id)
    if match is None:
        raise DataError("the id must end with the clip's start and end as MMSS_MMSS, for example cups_0000_0010")
    start_minute, start_second, end_minute, end_second = map(int, match.groups())
    start, end = start_minute * 60 + start_second, end_minute * 60 + end_second
    if end <= start:
        raise DataError("by its id, MMSS_MMSS, the clip ends no later than it starts; correct the id")
    return start, end


def action_window(action_start: str, action_end: str, clip_start: int) -> tuple[int, int]:
    """Inclusive (first, last) frame of an action, not clipped to the clip; empty if last < first.

    Args:
        action_start: time in the source video, as in the annotation file.
        action_end: likewise.
        clip_start: seconds, from :func:`parse_clip_times`.

    Raises:
        DataError: a time that is none.
    """
    first = (parse_time(action_start) - clip_start) * FRAMES_PER_SECOND
    last = (parse_time(action_end) - clip_start) * FRAMES_PER_SECOND - 1
    return first, last


class GroundMoRe(Reader):
    """GroundMoRe, training or test part.

    Args:
        meta_file: ``trainval_v2.json`` or ``groundmore_test.json``.
        video_root: the folder of clips, ``groundmore_videos``.
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.
        strict_missing: count an in-window frame without a mask file as a mistake (else its mask is empty).
        empty_windows: "error": a window that is empty or outside the clip is a mistake. "keep": such a question stays,
            with the window (0, -1), in which no frame lies; for protocols that count it.

    Attributes:
        missing_masks: per video, the indices of the frames without a mask file.

    Raises:
        DataError: the annotation file is missing or malformed, or (with "raise") there is any mistake; all are listed.
    """

    name = "groundmore"

    def __init__(
        self,
        meta_file: str | Path,
        video_root: str | Path,
        on_problem: str = "raise",
        strict_missing: bool = False,
        empty_windows: str = "error",
    ):
        if empty_windows not in ("error", "keep"):
            raise ValueError(f"empty_windows must be 'error' or 'keep', not {empty_windows!r}")
        meta_file, video_root = Path(meta_file), Path(video_root)
        problems, records, cache = Problems(), [], IdMaskCache()
        videos = videos_of(read_annotation(meta_file, problems), meta_file, problems)
        if not os.path.isdir(video_root):
            raise DataError(f"{video_root}: no such folder; it should hold a folder for each video of {meta_file}")
        rules = _Rules(strict_missing, keep_empty_windows=empty_windows == "keep")
        self.missing_masks: dict[str, tuple[int, ...]] = {}
        for video_id, video in videos.items():
            clip = _open_clip(video_root / video_id, video_id, problems)
            questions = _read_questions(video_id, video, clip, rules, problems)
            if not clip.usable or not questions:
                continue
            self.missing_masks[video_id] = tuple(i for i, path in enumerate(clip.mask_paths) if path is None)
            read = IdMasks(video_id, clip.frame_paths, clip.mask_paths, cache)
            records.append(VideoRecord(self.name, video_id, clip.frame_paths, questions, read))
        super().__init__(meta_file, records, problems, on_problem)

    @classmethod
    def open(cls, folder: Path, split: str, on_problem: str) -> GroundMoRe:
        """A split is an annotation file, without ``.json``."""
        return cls(folder / f"{split}.json", folder / "groundmore_videos", on_problem)


@dataclass(frozen=True)
class _Rules:
    """What counts as a mistake; see :class:`GroundMoRe`."""

    strict_missing: bool
    keep_empty_windows: bool


@dataclass(frozen=True)
class _Clip:
    """A clip's files, as far as they were found: ``start`` in seconds or None, frames, and a mask or None for each."""

    start: int | None
    frame_paths: tuple[Path, ...]
    mask_paths: tuple[Path | None, ...]

    @property
    def usable(self) -> bool:
        return self.start is not None and bool(self.frame_paths) and bool(self.mask_paths)


def _open_clip(folder: Path, video_id: str, problems: Problems) -> _Clip:
    """Parse the id, list the frames and find their masks; mistakes are noted."""
    where, start, frames = f"video {video_id}", None, ()
    try:
        start, _ = parse_clip_times(video_id)
    except DataError as error:
        problems.add(where, str(error))
    try:
        frames = list_frames(folder / "images")
    except DataError as error:
        problems.add(where, str(error))
    for before, after in zip(frames, frames[1:]):
        first, second = frame_number(before), frame_number(after)
        if first is not None and second is not None and second > first + 1:
            problems.add(
                where,
                f"{before.name} is followed by {after.name} in {before.parent}: frames are missing, and every later "
                "action window would shift; extract the clip again",
            )
    return _Clip(start, frames, _find_masks(frames, folder / "masks", where, problems))


def _find_masks(frames: tuple[Path, ...], folder: Path, where: str, problems: Problems) -> tuple[Path | None, ...]:
    """A mask or None per frame; empty with the mistake noted."""
    try:
        files = image_files(folder)
    except DataError as error:
        problems.add(where, str(error))
        return ()
    try:
        match = match_masks(frames, files)
    except DataError as error:
        problems.add(where, f"{folder}: {error}")
        return ()
    if match.fault:
        problems.add(where, f"{folder}: {match.fault}")
    elif match.beyond:
        logger.warning("%s: %s: %s", where, folder, match.beyond)
    fits = headers_fit(frames, match.paths, where, problems)
    return match.paths if fits and not match.fault else ()


def _read_questions(video_id: str, video: Any, clip: _Clip, rules: _Rules, problems: Problems) -> tuple[Question, ...]:
    """The questions of one video that have no mistake."""
    where = f"video {video_id}"
    if not isinstance(video, dict):
        problems.add(where, f"must be an object with 'questions', not {type(video).__name__}")
        return ()
    questions = []
    for query_id, entry in (get_field(video, "questions", dict, where, problems) or {}).items():
        place = f"{where}, question {query_id}"
        if not isinstance(entry, dict):
            problems.add(place, f"must be an object with 'question', 'answer', …, not {type(entry).__name__}")
            continue
        query = _read_question(query_id, entry, clip, rules, place, problems)
        if query is not None:
            questions.append(query)
    return tuple(questions)


def _read_question(
    query_id: str, entry: dict[str, Any], clip: _Clip, rules: _Rules, where: str, problems: Problems
) -> Question | None:
    """One question, or None; every mistake in it is noted."""
    before = len(problems)
    text = get_field(entry, "question", str, where, problems)
    answer = get_field(entry, "answer", str, where, problems)
    object_ids = read_object_ids(entry, where, problems)
    q_type = get_field(entry, "q_type", str, where, problems)
    if q_type is not None and q_type.strip().lower() not in TYPES:
        problems.add(where, f"unknown q_type {shown(q_type, 40)}; it must be one of {', '.join(QUESTION_TYPES)}")
    raw_window = _read_window(entry, clip, where, problems)
    window = None
    if raw_window is not None and clip.frame_paths:
        window = clip_window(raw_window, len(clip.frame_paths))
        if window is None and rules.keep_empty_windows:
            window = (0, -1)
        elif window is None:
            note_window(raw_window, len(clip.frame_paths), where, problems)
        elif rules.strict_missing and clip.mask_paths:
            _note_missing(window, clip, where, problems)
    if len(problems) > before or window is None:
        return None
    return Question(
        query_id=query_id,
        text=text,
        is_question=True,
        answer=answer,
        object_ids=object_ids,
        q_type=TYPES[q_type.strip().lower()],
        window=window,
        raw_window=raw_window,
    )


def read_object_ids(entry: dict[str, Any], where: str, problems: Problems) -> tuple[int, ...]:
    """The ids in "1" or "1, 2" (or a bare number); empty with the mistake noted."""
    value = entry.get("obj_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    elif "obj_id" not in entry or not isinstance(value, str):
        get_field(entry, "obj_id", str, where, problems)
        return ()
    numbers = [object_number(part) for part in value.split(",")]
    if None in numbers:
        problems.add(where, f'\'obj_id\' must be numbers from 1 to 255, as "1" or "1, 2"; got {shown(value, 40)}')
        return ()
    return tuple(dict.fromkeys(numbers))


def _read_window(entry: dict[str, Any], clip: _Clip, where: str, problems: Problems) -> tuple[int, int] | None:
    """The unclipped window, or None: a time is missing or malformed (noted), or the clip's start is unknown."""
    times = []
    for key in ("action_start", "action_end"):
        text = get_field(entry, key, str, where, problems)
        if text is None:
            continue
        try:
            parse_time(text)
        except DataError as error:
            problems.add(where, f"'{key}': {error}")
            continue
        times.append(text)
    if len(times) < 2 or clip.start is None:
        return None
    return action_window(times[0], times[1], clip.start)


def clip_window(window: tuple[int, int], num_frames: int) -> tuple[int, int] | None:
    """The part of a window inside the clip, or None if there is none."""
    first, last = max(0, window[0]), min(num_frames - 1, window[1])
    return (first, last) if first <= last else None


def note_window(window: tuple[int, int], num_frames: int, where: str, problems: Problems) -> None:
    """Say whether an unusable window is empty or outside the clip."""
    if window[1] < window[0]:
        problems.add(where, "the action's window is empty: 'action_end' is no later than 'action_start'")
    else:
        problems.add(
            where,
            f"the action's window, frames {window[0]} to {window[1]}, lies outside the clip, which has frames 0 to "
            f"{num_frames - 1}; times count from the start of the source video",
        )


def _note_missing(window: tuple[int, int], clip: _Clip, where: str, problems: Problems) -> None:
    """Note the in-window frames without a mask file."""
    missing = [index for index in range(window[0], window[1] + 1) if clip.mask_paths[index] is None]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        problems.add(where, f"no mask file for these frames of the action's window: {shown}")
