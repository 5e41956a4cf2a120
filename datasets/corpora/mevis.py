"""MeViS (v1 and v2): one record per video, with all its motion expressions; a target may be several objects, or none.

Layout (as published)::

    ROOT/train/JPEGImages/VIDEO/FRAME.jpg
    ROOT/train/meta_expressions.json
        {"videos": {VIDEO: {"frames": [FRAME, ...],
                            "expressions": {ID: {"exp": str, "obj_id": [int, ...], "anno_id": [int, ...]}}}}}
    ROOT/train/mask_dict.json
        {ANNO_ID: [null or {"size": [H, W], "counts": str}, one per frame in sorted order]}

Version 2 has expressions without any target (empty lists): their masks are empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.corpora.base import (
    Reader,
    caption,
    check_headers,
    get_field,
    is_object,
    listed_files,
    read_annotation,
    read_listed_video,
    read_videos,
)
from datasets.sample import Question, VideoRecord
from utils.errors import DataError, Problems
from utils.masks import decode_rle, rle_size, union
from utils.video import frame_size


class MeViS(Reader):
    """MeViS.

    Args:
        root: the folder that holds ``train/`` (and ``valid_u/``).
        split: "train" or "valid_u" (the others are published without masks).
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.

    ``mask_dict.json`` is read once and shared by all records; a mask is decoded when it is asked for.

    Raises:
        DataError: a file is missing or malformed, or (with "raise") there is any mistake; all are listed.
    """

    name = "mevis"

    def __init__(self, root: str | Path, split: str = "train", on_problem: str = "raise"):
        folder = Path(root) / split
        source = folder / "meta_expressions.json"
        problems, records = Problems(), []
        videos = read_videos(source, problems)
        tubes = read_tubes(folder / "mask_dict.json", problems)
        for video_id, video in videos.items():
            record = _read_video(folder, video_id, video, tubes, problems)
            if record is not None:
                records.append(record)
        super().__init__(source, records, problems, on_problem)


def read_tubes(path: Path, problems: Problems) -> dict[str, Any]:
    """``mask_dict.json``: the masks of each annotation.

    Raises:
        DataError: it is missing or has another structure.
    """
    tubes = read_annotation(path, problems)
    if not isinstance(tubes, dict):
        raise DataError(f"{path}: expected {{annotation id: [mask per frame]}}; wrong file?")
    return tubes


class RleMasks:
    """``read_object_mask`` of a MeViS video.

    Args:
        video_id: for messages.
        frame_paths: the video's frames.
        tubes: by annotation id, one run-length mask or None per frame.

    Calling it gives bool [H, W] and raises DataError when a mask is damaged or of another size than its frame.
    """

    def __init__(self, video_id: str, frame_paths: Sequence[Path], tubes: dict[int, list[Any]]):
        self.video_id = video_id
        self.frame_paths = frame_paths
        self.tubes = tubes

    def __call__(self, question: Question, frame_index: int) -> np.ndarray:
        frame_path = self.frame_paths[frame_index]
        size = frame_size(frame_path)
        return union((self._decode(number, frame_index, size) for number in question.object_ids), size)

    def state(self) -> str:
        """Digest of the masks: what is read depends on nothing else."""
        return hashlib.sha256(json.dumps(self.tubes, sort_keys=True, default=str).encode()).hexdigest()

    def _decode(self, number: int, frame_index: int, size: tuple[int, int]) -> np.ndarray:
        rle = self.tubes[number][frame_index]
        if rle is None:
            return np.zeros(size, dtype=bool)
        where = f"mask_dict.json, annotation {number}, frame {frame_index} of video {self.video_id}"
        try:
            own = rle_size(rle)
            mask = decode_rle(rle) if own == size else None
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if mask is None:
            raise DataError(
                f"{where}: this mask is {own[0]} x {own[1]} (height x width), its frame "
                f"{self.frame_paths[frame_index]} is {size[0]} x {size[1]}; they must agree"
            )
        return mask


def _read_video(
    folder: Path, video_id: str, video: Any, tubes: dict[str, Any], problems: Problems
) -> VideoRecord | None:
    """One video's record, or None if it cannot be used at all."""
    where = f"video {video_id}"
    names, expressions = read_listed_video(video, where, problems)
    questions, used = read_expressions(expressions, tubes, len(names), where, problems)
    if not names:
        return None
    before = len(problems)
    frames = listed_files(names, folder / "JPEGImages" / video_id, ".jpg", where, problems)
    if len(problems) == before:
        check_headers(frames, (), where, problems)
    if len(problems) > before or not questions:
        return None
    return VideoRecord(MeViS.name, video_id, frames, tuple(questions), RleMasks(video_id, frames, used))


def read_expressions(
    expressions: dict[str, Any], tubes: dict[str, Any], num_frames: int, where: str, problems: Problems
) -> tuple[list[Question], dict[int, list[Any]]]:
    """The expressions of a video whose masks are all there, and the mask lists that were found, by annotation id.

    Args:
        expressions: entries by id.
        tubes: ``mask_dict.json``.
        num_frames: of the video; 0, if its list of frames cannot be used: then no list of masks is looked for.
        where: names the video in messages.
        problems: where mistakes go.
    """
    questions: list[Question] = []
    used: dict[int, list[Any]] = {}
    for query_id, entry in expressions.items():
        place = f"{where}, expression {query_id}"
        question = _read_expression(query_id, entry, place, problems)
        if question is None or not num_frames:
            continue
        found = {number: _find_tube(number, tubes, num_frames, place, problems) for number in question.object_ids}
        used |= {number: tube for number, tube in found.items() if tube is not None}
        if None not in found.values():
            questions.append(question)
    return questions, used


def _read_expression(query_id: str, entry: Any, where: str, problems: Problems) -> Question | None:
    """One expression, its object ids being annotation ids; None with the mistake noted."""
    if not is_object(entry, "'exp' and 'anno_id'", where, problems):
        return None
    text = get_field(entry, "exp", str, where, problems)
    numbers = entry.get("anno_id")
    if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        message = f"'anno_id' must be a list of integers, not {str(numbers)[:40]}"
        problems.add(where, message, kind="bad-object-id")
        return None
    if text is None:
        return None
    return Question(query_id, caption(text), is_question=False, object_ids=tuple(dict.fromkeys(numbers)))


def _find_tube(number: int, tubes: dict[str, Any], num_frames: int, where: str, problems: Problems) -> list[Any] | None:
    """The masks of an annotation, one per frame; None with the mistake noted."""
    tube = tubes.get(str(number))
    if tube is None:
        problems.add(where, f"annotation {number} is not in mask_dict.json", kind="tube-missing")
    elif not isinstance(tube, list) or len(tube) != num_frames:
        length = len(tube) if isinstance(tube, list) else type(tube).__name__
        message = f"annotation {number} has {length} masks in mask_dict.json, the video {num_frames} frames"
        problems.add(where, message, kind="tube-length")
    elif all(mask is None for mask in tube):
        problems.add(where, f"annotation {number} has no mask on any frame", kind="object-absent")
    else:
        return tube
    return None
