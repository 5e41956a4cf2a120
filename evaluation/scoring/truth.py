"""Ground truth of a question: its objects, its window, and the objects of the clip that compete with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.sample import Question, VideoRecord
from evaluation.protocol import Protocol
from utils.errors import DataError
from utils.masks import read_id_mask


@dataclass(frozen=True)
class Truth:
    """Ground truth of one question on U distinct frames.

    Attributes:
        objects: bool [U, H, W]; the answer objects wherever they are visible, inside the window or not.
        in_window: bool [U].
        has_file: bool [U]; whether the corpus has a mask file for the frame (without one, nothing is visible).
    """

    objects: np.ndarray
    in_window: np.ndarray
    has_file: np.ndarray

    @property
    def target(self) -> np.ndarray:
        """bool [U, H, W]: what a perfect answer is; empty outside the window."""
        return self.objects & self.in_window[:, None, None]


def question_window(query: Question, frame_indices: np.ndarray, protocol: Protocol) -> np.ndarray:
    """bool [U]: which frames lie in the question's action window, read as the protocol says."""
    if protocol.window == "clipped" or query.raw_window is None:
        return query.in_window(frame_indices)
    first, last = query.raw_window
    return (frame_indices >= first) & (frame_indices <= last)


def read_truth(video: VideoRecord, query: Question, frame_indices: np.ndarray, protocol: Protocol) -> Truth:
    """Read a question's ground truth on some frames.

    Args:
        video: a GroundMoRe record.
        query: one of its questions.
        frame_indices: int [U], distinct.
        protocol: says how the window is read.

    Raises:
        DataError: a mask cannot be read, or frames of the clip differ in size.
    """
    paths = video.read_object_mask.mask_paths
    objects = [video.read_object_mask(query, int(index)) for index in frame_indices]
    for index, mask in zip(frame_indices, objects):
        if mask.shape != objects[0].shape:
            raise DataError(
                f"{video.frame_paths[index]}: {mask.shape[0]} x {mask.shape[1]} (height x width), but "
                f"{video.frame_paths[frame_indices[0]].name} of the same clip is {objects[0].shape[0]} x "
                f"{objects[0].shape[1]}; write all frames of a clip in one size"
            )
    return Truth(
        objects=np.stack(objects),
        in_window=question_window(query, frame_indices, protocol),
        has_file=np.array([paths[index] is not None for index in frame_indices]),
    )


def read_id_maps(video: VideoRecord, frame_indices: np.ndarray) -> list[np.ndarray | None]:
    """Per frame the object ids uint8 [H, W], or None where the corpus has no mask file.

    Raises:
        DataError: a mask cannot be read.
    """
    paths = video.read_object_mask.mask_paths
    return [None if paths[index] is None else read_id_mask(paths[index]) for index in frame_indices]
