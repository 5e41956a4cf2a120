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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.corpora.base import (
    Reader,
    caption,
    files_by_stem,
    find_named,
    get_field,
    headers_fit,
    ordered_frame_names,
    read_annotation,
    videos_of,
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
        videos = videos_of(read_annotation(source, problems), source, problems)
        tubes = read_annotation(folder / "mask_dict.json", problems)
        if not isinstance(tubes, dict):
            raise DataError(f"{folder / 'mask_dict.json'}: expected {{annotation id: [mask per frame]}}; wrong file?")
        for video_id, video in videos.items():
            record = _read_video(folder, video_id, video, tubes, problems)
            if record is not None:
                records.append(record)
        super().__init__(source, records, problems, on_problem)


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

    def __call__(self, query: Question, frame_index: int) -> np.ndarray:
        frame_path = self.frame_paths[frame_index]
        size = frame_size(frame_path)
        return union((self._decode(number, frame_index, size) for number in query.object_ids), size)

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
    if not isinstance(video, dict):
        problems.add(where, f"must be an object with 'frames' and 'expressions', not {type(video).__name__}")
        return None
    names = ordered_frame_names(video, where, problems)
    expressions = get_field(video, "expressions", dict, where, problems) or {}
    if names is None:
        return None
    questions, used = [], {}
    for query_id, entry in expressions.items():
        query = read_expression(query_id, entry, f"{where}, expression {query_id}", problems)
        if query is not None and take_tubes(query, tubes, len(names), used, where, problems):
            questions.append(query)
    images = folder / "JPEGImages" / video_id
    files = files_by_stem(images, ".jpg", where, problems)
    frame_paths = find_named(names, files, images, "frame", where, problems)
    if frame_paths is None or not questions or not headers_fit(frame_paths, (), where, problems):
        return None
    return VideoRecord(MeViS.name, video_id, frame_paths, tuple(questions), RleMasks(video_id, frame_paths, used))


def read_expression(query_id: str, entry: Any, where: str, problems: Problems) -> Question | None:
    """One expression, its object ids being annotation ids; None with the mistake noted."""
    if not isinstance(entry, dict):
        problems.add(where, f"must be an object with 'exp' and 'anno_id', not {type(entry).__name__}")
        return None
    text = get_field(entry, "exp", str, where, problems)
    numbers = entry.get("anno_id")
    if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        problems.add(where, f"'anno_id' must be a list of integers, not {str(numbers)[:40]}")
        return None
    if text is None:
        return None
    return Question(query_id, caption(text), is_question=False, object_ids=tuple(dict.fromkeys(numbers)))


def take_tubes(
    query: Question, tubes: dict[str, Any], num_frames: int, used: dict[int, list[Any]], where: str, problems: Problems
) -> bool:
    """Look up the mask lists of a query's annotations and add them to ``used``; False with the mistake noted."""
    good = True
    for number in query.object_ids:
        tube = tubes.get(str(number))
        if tube is None:
            message = f"annotation {number} is not in mask_dict.json"
        elif not isinstance(tube, list) or len(tube) != num_frames:
            length = len(tube) if isinstance(tube, list) else type(tube).__name__
            message = f"annotation {number} has {length} masks in mask_dict.json, the video {num_frames} frames"
        elif all(mask is None for mask in tube):
            message = f"annotation {number} has no mask on any frame"
        else:
            used[number] = tube
            continue
        problems.add(f"{where}, expression {query.query_id}", message)
        good = False
    return good
