"""What a question asks for on a frame, for tests that look at readers or play a perfect model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datasets.doctor.images import mask_faults
from datasets.sample import Question, VideoRecord
from utils.errors import DataError
from utils.video import frame_size


def read_target(record: VideoRecord, question: Question, frame: int) -> np.ndarray:
    """bool [H, W]: the object's mask inside the question's window, all False outside it."""
    mask = record.read_object_mask(question, frame)
    return mask if question.in_window([frame])[0] else np.zeros_like(mask)


def read_everything(records: Iterable[VideoRecord]) -> None:
    """Read every frame's header and every mask, as a run over all of a corpus would.

    Raises:
        DataError: something cannot be read; all of it is listed.
    """
    faults = []
    for record in records:
        for path in record.frame_paths:
            try:
                frame_size(path)
            except DataError as error:
                faults.append(str(error))
        faults += [message for _, message in mask_faults(record)]
    if faults:
        raise DataError("\n".join(dict.fromkeys(faults)))
