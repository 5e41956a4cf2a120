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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.corpora.base import (
    IdMasks,
    Reader,
    check_headers,
    get_field,
    images_in,
    is_object,
    object_number,
    read_videos,
)
from datasets.corpora.mask_files import match_masks
from datasets.names import shown
from datasets.sample import QUESTION_TYPES, Question, VideoRecord
from utils.errors import DataError, Problems
from utils.masks import IdMaskCache
from utils.video import frame_number, frame_order

logger = logging.getLogger(__name__)

FRAMES_PER_SECOND = 6
"""Rate at which the published frames were extracted."""

_CLIP_SUFFIX = re.compile(r"(\d{2})(\d{2})_(\d{2})(\d{2})$")
_LONG_CLIP_SUFFIX = re.compile(r"_(\d{2,3})(\d{2})_(\d{3})(\d{2})$")
_TIME = re.compile(r"[0-9]{1,9}(:[0-9]{1,2}){0,2}")
_TYPES = {name.lower(): name for name in QUESTION_TYPES}
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


def action_window(start: int, end: int, clip_start: int) -> tuple[int, int]:
    """Inclusive (first, last) frame of an action, not clipped to the clip; empty if last < first.

    Args:
        start, end, clip_start: seconds in the source video.
    """
    return (start - clip_start) * FRAMES_PER_SECOND, (end - clip_start) * FRAMES_PER_SECOND - 1


class GroundMoRe(Reader):
    """GroundMoRe, training or test part.

    Args:
        meta_file: ``trainval_v2.json`` or ``groundmore_test.json``.
        video_root: the folder of clips, ``groundmore_videos``.
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.
        empty_windows: "error": a window that is empty or outside the clip is a mistake. "keep": such a question stays,
            with the window (0, -1), in which no frame lies; for protocols that count it.

    Raises:
        DataError: the annotation file is missing or malformed, or (with "raise") there is any mistake; all are listed.
    """

    name = "groundmore"

    def __init__(
        self,
        meta_file: str | Path,
        video_root: str | Path,
        on_problem: str = "raise",
        empty_windows: str = "error",
    ):
        if empty_windows not in ("error", "keep"):
            raise ValueError(f"empty_windows must be 'error' or 'keep', not {empty_windows!r}")
        meta_file, video_root = Path(meta_file), Path(video_root)
        problems, records, cache = Problems(), [], IdMaskCache()
        videos = read_videos(meta_file, problems)
        if not os.path.isdir(video_root):
            raise DataError(f"{video_root}: no such folder; it should hold a folder for each video of {meta_file}")
        for video_id, video in videos.items():
            where, before = f"video {video_id}", len(problems)
            clip = open_clip(video_root / video_id, video_id, problems)
            check_headers(clip.frame_paths, clip.mask_paths, where, problems)
            if clip.beyond:
                logger.warning("%s: %s: %s", where, video_root / video_id / "masks", clip.beyond)
            sound = len(problems) == before
            read = read_questions(video_id, video, clip, problems, empty_windows == "keep")
            questions = tuple(q for q in read if None not in (q.answer, q.q_type, q.window))
            if not sound or not questions:
                continue
            masks = IdMasks(video_id, clip.frame_paths, clip.mask_paths, cache)
            records.append(VideoRecord(self.name, video_id, clip.frame_paths, questions, masks))
        super().__init__(meta_file, records, problems, on_problem)

    @classmethod
    def open(cls, folder: Path, split: str, on_problem: str) -> GroundMoRe:
        """A split is an annotation file, without ``.json``."""
        return cls(folder / f"{split}.json", folder / "groundmore_videos", on_problem)


@dataclass(frozen=True)
class Clip:
    """A clip's files, as far as they were found.

    Attributes:
        times: (start, end) in the source video in seconds; None if the id does not tell.
        frame_paths: in time order.
        mask_paths: one or None per frame; empty if it cannot be told which mask belongs to which frame.
        beyond: what to say of masks that go on behind the last frame, or None.
    """

    times: tuple[int, int] | None
    frame_paths: tuple[Path, ...]
    mask_paths: tuple[Path | None, ...]
    beyond: str | None = None


def open_clip(folder: Path, video_id: str, problems: Problems) -> Clip:
    """Parse the id, list the frames and find their masks; mistakes are noted."""
    where, times = f"video {video_id}", None
    try:
        times = parse_clip_times(video_id)
    except DataError as error:
        problems.add(where, str(error), kind="bad-video-id")
    frames, masks = _find_frames(folder / "images", where, problems), folder / "masks"
    before = len(problems)
    files = images_in(masks, where, problems, "mask-missing") if frames else []
    if len(problems) > before and not files:
        return Clip(times, frames, ())
    try:
        match = match_masks(frames, files)
    except DataError as error:
        problems.add(where, f"{masks}: {error}", kind="mask-missing", files=[masks])
        return Clip(times, frames, ())
    if match.fault:
        orphans = dict(files=match.orphans, count=len(match.orphans))
        problems.add(where, f"{masks}: {match.fault}", kind="mask-numbering", **orphans)
    return Clip(times, frames, match.paths, match.beyond)


def _find_frames(folder: Path, where: str, problems: Problems) -> tuple[Path, ...]:
    """The frames of a clip by number; noted: that there are none, two of one number, and numbers left out."""
    before = len(problems)
    frames = tuple(sorted(images_in(folder, where, problems, "video-without-folder"), key=frame_order))
    if not frames and len(problems) == before:
        message = f"{folder}: no frame (.jpg, .jpeg, .png) in this folder; extract the video's frames there"
        problems.add(where, message, kind="video-without-folder", files=[folder])
    numbered = [path for path in frames if frame_number(path) is not None]
    steps = [(a, b, frame_number(b) - frame_number(a)) for a, b in zip(numbered, numbered[1:])]
    same = [(a, b) for a, b, step in steps if step == 0]
    if same:
        a, b = same[0]
        message = f"{folder}: {a.name} and {b.name} are both frame {frame_number(a)}; keep one of them"
        files = [b for _, b in same]
        problems.add(where, message, kind="frame-number-repeated", files=files, count=len(files))
    holes = [(a, b, step - 1) for a, b, step in steps if step > 1]
    if holes:
        gaps = [f"{a.name} is followed by {b.name}" for a, b, _ in holes]
        message = (
            f"{', '.join(gaps[:5])}{' …' if len(gaps) > 5 else ''} in {folder}: frames are missing, and every later "
            "action window would shift; extract the clip again"
        )
        files = [b for _, b, _ in holes]
        problems.add(where, message, kind="frame-number-hole", files=files, count=sum(lost for *_, lost in holes))
    return frames


def read_questions(
    video_id: str,
    video: Any,
    clip: Clip,
    problems: Problems,
    keep_empty_windows: bool = False,
) -> Iterator[Question]:
    """The questions of one video that have a text and objects; mistakes are noted, and what they concern is None."""
    where = f"video {video_id}"
    if not is_object(video, "'questions'", where, problems, "video-malformed"):
        return
    entries = get_field(video, "questions", dict, where, problems, "video-malformed") or {}
    for query_id, entry in entries.items():
        place = f"{where}, question {query_id}"
        if not is_object(entry, "'question', 'answer', …", place, problems):
            continue
        question = _read_question(query_id, entry, clip, keep_empty_windows, place, problems)
        if question.text is not None and question.object_ids:
            yield question


def _read_question(
    query_id: str, entry: dict[str, Any], clip: Clip, keep_empty_windows: bool, where: str, problems: Problems
) -> Question:
    """One question; every mistake in it is noted, and what it concerns is None or empty."""
    text = get_field(entry, "question", str, where, problems)
    answer = get_field(entry, "answer", str, where, problems, "answer-missing")
    object_ids = _read_object_ids(entry, where, problems)
    fault = "unknown-type" if "q_type" in entry else "entry-malformed"
    q_type = get_field(entry, "q_type", str, where, problems, fault)
    known = None if q_type is None else _TYPES.get(q_type.strip().lower())
    if q_type is not None and known is None:
        message = f"unknown q_type {shown(q_type, 40)}; it must be one of {', '.join(QUESTION_TYPES)}"
        problems.add(where, message, kind="unknown-type")
    raw_window = _read_window(entry, clip, where, problems)
    window = None
    if raw_window is not None and clip.frame_paths:
        first, last = max(0, raw_window[0]), min(len(clip.frame_paths) - 1, raw_window[1])
        window = (first, last) if first <= last else (0, -1) if keep_empty_windows else None
        if window is None:
            _note_window(raw_window, len(clip.frame_paths), where, problems)
    return Question(query_id, text, True, answer, object_ids, known, window, raw_window)


def _read_object_ids(entry: dict[str, Any], where: str, problems: Problems) -> tuple[int, ...]:
    """The ids in "1" or "1, 2" (or a bare number); empty with the mistake noted."""
    value = entry.get("obj_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    elif "obj_id" not in entry or not isinstance(value, str):
        get_field(entry, "obj_id", str, where, problems, "bad-object-id")
        return ()
    numbers = [object_number(part) for part in value.split(",")]
    if None in numbers:
        message = f'\'obj_id\' must be numbers from 1 to 255, as "1" or "1, 2"; got {shown(value, 40)}'
        problems.add(where, message, kind="bad-object-id")
        return ()
    return tuple(dict.fromkeys(numbers))


def _read_window(entry: dict[str, Any], clip: Clip, where: str, problems: Problems) -> tuple[int, int] | None:
    """The unclipped window, or None: a time is missing or malformed (noted), or the clip's start is unknown."""
    times = []
    for key in ("action_start", "action_end"):
        text = get_field(entry, key, str, where, problems, "bad-time")
        if text is None:
            continue
        try:
            times.append(parse_time(text))
        except DataError as error:
            problems.add(where, f"'{key}': {error}", kind="bad-time")
    return None if len(times) < 2 or clip.times is None else action_window(*times, clip.times[0])


def _note_window(window: tuple[int, int], num_frames: int, where: str, problems: Problems) -> None:
    """Say whether an unusable window is empty or outside the clip."""
    if window[1] < window[0]:
        message = "the action's window is empty: 'action_end' is no later than 'action_start'"
        problems.add(where, message, kind="window-empty")
    else:
        message = (
            f"the action's window, frames {window[0]} to {window[1]}, lies outside the clip, which has frames 0 to "
            f"{num_frames - 1}; times count from the start of the source video"
        )
        problems.add(where, message, kind="window-outside")
