"""The one sample type of every corpus: a reader gives a :class:`VideoRecord`; sampling draws a :class:`VideoSample`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

QUESTION_TYPES = ("Causal", "Sequential", "Counterfactual", "Descriptive")
"""GroundMoRe's four types, in the order of its tables."""


@dataclass(frozen=True)
class Question:
    """One thing asked about a video whose answer is a mask tube.

    Attributes:
        query_id: id inside the video (expression or question id), as in the annotation file.
        text: the expression ("the red car turning left") or the question ("What …?"), original case.
        is_question: True for a question (GroundMoRe), False for a referring expression.
        answer: name of the answer object if the corpus gives one ("the red car"), else None.
        object_ids: instance ids (GroundMoRe, Refer-YouTube-VOS) or annotation ids (MeViS); the target is their union.
        q_type: one of QUESTION_TYPES, or None.
        window: inclusive (first, last) frame index of the action over the whole clip, clipped to it; None if the corpus
            has no windows (then the target exists on every frame).
        raw_window: the window before clipping (may lie outside the clip or be empty); for protocols that need it.
        is_sentence: of an expression, where the corpus says so: a whole sentence ("What can be eaten?") or the name of
            a thing; None: a sentence is what ends with a question mark.
    """

    query_id: str
    text: str
    is_question: bool
    answer: str | None = None
    object_ids: tuple[int, ...] = ()
    q_type: str | None = None
    window: tuple[int, int] | None = None
    raw_window: tuple[int, int] | None = None
    is_sentence: bool | None = None

    def in_window(self, frame_indices: np.ndarray) -> np.ndarray:
        """bool [n]: which of the clip's frame indices lie in the window (all of them without one)."""
        frame_indices = np.asarray(frame_indices)
        if self.window is None:
            return np.ones(len(frame_indices), dtype=bool)
        return (frame_indices >= self.window[0]) & (frame_indices <= self.window[1])


@dataclass(frozen=True)
class VideoRecord:
    """One entry of a corpus: a clip and what is asked about it. Nothing is read from disk until asked for.

    Attributes:
        corpus: name of its row in :data:`datasets.corpora.CORPORA`.
        video_id: as in the annotation file.
        frame_paths: every frame of the clip, in time order.
        questions: at least one.
        frame_rate: of ``frame_paths``, per second. GroundMoRe's frames are taken at 6; Refer-YouTube-VOS lists every
            fifth of 30; MeViS does not say, and is taken to be alike.
        read_object_mask: (question, frame index) -> bool [H, W]; the union of the question's objects on that frame,
            regardless of the window; all False where the corpus has no mask for the frame. Raises DataError on an
            unreadable or differently sized mask. Its ``state()``, JSON-able, says all that the masks depend on.
    """

    corpus: str
    video_id: str
    frame_paths: tuple[Path, ...]
    questions: tuple[Question, ...]
    read_object_mask: Callable[[Question, int], np.ndarray] = field(repr=False)
    frame_rate: float = 6.0

    def times(self, frame_indices: np.ndarray) -> list[float]:
        """Seconds from the clip's beginning."""
        return (np.asarray(frame_indices) / self.frame_rate).tolist()


@dataclass(frozen=True)
class VideoSample:
    """What one training step sees of a record: some frames, some questions.

    Attributes:
        record: where it was drawn from.
        frame_indices: int64 [T], increasing; indices into ``record.frame_paths`` (repeats only if the clip is shorter
            than T).
        questions: the questions drawn, at least one.
    """

    record: VideoRecord
    frame_indices: np.ndarray
    questions: tuple[Question, ...]
