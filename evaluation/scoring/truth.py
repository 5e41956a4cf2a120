"""Ground truth of a question as run lengths: its objects, its window, and the objects of the clip beside them.

Runs go column by column, as in COCO's encoding. A clip's id maps are read once and cut into runs of one id; the masks
of every question are joined from them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.sample import Question, VideoRecord
from evaluation.protocol import Protocol
from utils.errors import DataError


@dataclass(frozen=True)
class Pieces:
    """A frame's id map as runs of one id.

    Attributes:
        size: (H, W).
        bounds: int64 [m + 1]; where each run begins, and H * W.
        ids: uint8 [m].
    """

    size: tuple[int, int]
    bounds: np.ndarray
    ids: np.ndarray

    @staticmethod
    def of(image: np.ndarray) -> Pieces:
        """Cut up an id map or a mask, [H, W] of bytes."""
        flat = np.ascontiguousarray(image.T).reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        bounds = np.concatenate(([0], changes, [flat.size])).astype(np.int64)
        return Pieces(image.shape, bounds, flat[bounds[:-1]].view(np.uint8))

    def mask(self, ids: tuple[int, ...]) -> dict[str, Any] | None:
        """The union of some ids as a run-length mask (see :func:`evaluation.metrics.score_clip_rle`); None: empty."""
        inside = np.isin(self.ids, ids)
        if not inside.any():
            return None
        edges = self.bounds[1:-1][inside[1:] != inside[:-1]]
        start = [0, 0] if inside[0] else [0]
        return {"size": list(self.size), "counts": np.diff(np.concatenate((start, edges, self.bounds[-1:])))}


@dataclass(frozen=True)
class Truth:
    """Ground truth of one question on U distinct frames.

    Attributes:
        size: (H, W).
        objects: per frame the answer objects as a run-length mask, in the window or not; None: none is visible.
        in_window: bool [U].
        has_file: bool [U]; whether the corpus has a mask file for the frame (without one, nothing is visible).
        pieces: per frame all objects of the clip; None in a corpus whose objects may overlap.
    """

    size: tuple[int, int]
    objects: list[dict[str, Any] | None]
    in_window: np.ndarray
    has_file: np.ndarray
    pieces: list[Pieces] | None = None

    @property
    def target(self) -> list[dict[str, Any] | None]:
        """Per frame what a perfect answer is; empty outside the window."""
        return [mask if inside else None for mask, inside in zip(self.objects, self.in_window)]

    @property
    def visible(self) -> np.ndarray:
        """bool [U]: an answer object is visible, in the window or not."""
        return np.array([mask is not None for mask in self.objects])

    def masks(self) -> np.ndarray:
        """bool [U, H, W]: ``objects`` as pixels."""
        height, width = self.size
        empty = [height * width]
        runs = [empty if mask is None else mask["counts"] for mask in self.objects]
        pixels = [np.repeat(np.arange(len(each)) % 2 == 1, each).reshape(width, height).T for each in runs]
        return np.stack(pixels)


class ClipTruth:
    """Reads the ground truth of a clip's questions; what they share is read once.

    Args:
        video: whose masks are id maps (``ids``) or given by question.
        frame_indices: int [U], distinct.
        protocol: says how the window is read.

    Calling it with a question gives its :class:`Truth`, and raises DataError when a mask cannot be read, or frames of
    the clip differ in size.
    """

    def __init__(self, video: VideoRecord, frame_indices: np.ndarray, protocol: Protocol):
        self.video, self.frame_indices, self.protocol = video, frame_indices, protocol
        # By object ids where each question's masks are given, else under None.
        self._pieces: dict[tuple[int, ...] | None, list[Pieces]] = {}

    def __call__(self, question: Question) -> Truth:
        reader = self.video.read_object_mask
        files = getattr(reader, "mask_paths", None)
        shared, ids = (question.object_ids, (1,)) if files is None else (None, question.object_ids)
        if shared not in self._pieces:
            read = functools.partial(reader, question) if files is None else reader.ids
            self._pieces[shared] = [Pieces.of(read(int(index))) for index in self.frame_indices]
        if files is not None:
            reader.require_present(question)
        pieces = self._pieces[shared]
        self._check_sizes(pieces)
        return Truth(
            size=pieces[0].size,
            objects=[frame.mask(ids) for frame in pieces],
            in_window=question_window(question, self.frame_indices, self.protocol),
            has_file=np.array([files is None or files[index] is not None for index in self.frame_indices]),
            pieces=None if files is None else pieces,
        )

    def _check_sizes(self, pieces: list[Pieces]) -> None:
        paths, (height, width) = self.video.frame_paths, pieces[0].size
        for index, frame in zip(self.frame_indices, pieces):
            if frame.size != (height, width):
                raise DataError(
                    f"{paths[index]}: {frame.size[0]} x {frame.size[1]} (height x width), but "
                    f"{paths[self.frame_indices[0]].name} of the same clip is {height} x {width}; write all frames of "
                    "a clip in one size"
                )


def question_window(question: Question, frame_indices: np.ndarray, protocol: Protocol) -> np.ndarray:
    """bool [U]: which frames lie in the question's action window, read as the protocol says."""
    if protocol.window == "clipped" or question.raw_window is None:
        return question.in_window(frame_indices)
    first, last = question.raw_window
    return (frame_indices >= first) & (frame_indices <= last)
