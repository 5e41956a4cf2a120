"""What a question asks for on a frame, for tests that look at readers or play a perfect model."""

from __future__ import annotations

import numpy as np

from datasets.sample import Question, VideoRecord


def read_target(record: VideoRecord, question: Question, frame: int) -> np.ndarray:
    """bool [H, W]: the object's mask inside the question's window, all False outside it."""
    mask = record.read_object_mask(question, frame)
    return mask if question.in_window([frame])[0] else np.zeros_like(mask)
