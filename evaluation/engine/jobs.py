"""One video of a run: which frames, what is asked, and how its records are made."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.sample import Question, VideoRecord
from evaluation.protocol import Protocol
from evaluation.records import Record, frames_digest, read_record, record_path, what_changed
from utils.errors import DataError, NumericalError
from utils.masks import encode_rle
from utils.video import read_frame

NO_TOKEN = "the answer has no [SEG]; its masks are empty"
"""Reason in the record of a question that was answered without a mask."""


@dataclass
class Prediction:
    """What a model says about one question on T frames: masks, points, or text alone.

    Attributes:
        masks: bool [T, H, W]; empty where ``has_seg`` is False.
        has_seg: bool [T]; whether the answer for the frame had a [SEG].
        points: per frame float [n, 2], (x, y) in pixels, or None.
        loc_probs: float [T] in [0, 1], or None without a [LOC] head.
        answers: generated text of every language model row.
        forced_seg, forced_loc: whether the token had to be appended to an answer.
    """

    masks: np.ndarray | None = None
    has_seg: np.ndarray | None = None
    loc_probs: np.ndarray | None = None
    answers: list[str] = field(default_factory=list)
    forced_seg: bool = False
    forced_loc: bool = False
    points: Sequence[np.ndarray | None] | None = None


@dataclass(frozen=True)
class Failure:
    """Why a question has no prediction; holds no error, which would keep the memory of whoever raised it."""

    reason: str


Outcome = Prediction | Failure


class VideoJob:
    """A video, some of whose questions are to be recorded.

    Args:
        video: with all its questions in the annotation file: what is asked together depends on nothing else.
        protocol: says which frames.
        output_dir: run folder.
        fingerprint: of the run's settings.
        chosen: ids of the questions to record; None: all.

    Attributes:
        listed: int64 [n], the protocol's frames, repeats included.
        frame_indices: int64 [U], the distinct ones.
        frames: digest of their files.
        questions: the questions to record.
    """

    def __init__(
        self,
        video: VideoRecord,
        protocol: Protocol,
        output_dir: str | Path,
        fingerprint: str,
        chosen: Sequence[str] | None = None,
    ):
        self.video, self.output_dir, self.fingerprint = video, Path(output_dir), fingerprint
        self.listed = protocol.sample(len(video.frame_paths))
        self.frame_indices = np.unique(self.listed)
        self.frames = frames_digest(video, self.frame_indices)
        self.questions = [query for query in video.questions if chosen is None or query.query_id in chosen]

    def state(self, query: Question) -> str:
        """What is on disk about a question: "ok", "failed" or "missing", or why its record cannot be used."""
        if not record_path(self.output_dir, self.video.video_id, query.query_id).exists():
            return "missing"
        try:
            record = read_record(self.output_dir, self.video.video_id, query.query_id)
        except DataError:
            return "a damaged file, or one of an older version"
        changed = what_changed(record, query, self.fingerprint, self.listed.tolist(), self.frames)
        return changed or record.status

    def read_frames(self, stop: threading.Event | None = None) -> list[np.ndarray]:
        """The distinct listed frames, uint8 RGB [H, W, 3], all of one size.

        Args:
            stop: when set, reading ends with the frames read so far.

        Raises:
            DataError: a frame cannot be read, or has another size than the first.
        """
        paths = [self.video.frame_paths[index] for index in self.frame_indices]
        frames: list[np.ndarray] = []
        for path in paths:
            if stop is not None and stop.is_set():
                break
            frame = read_frame(path)
            if frames and frame.shape != frames[0].shape:
                raise DataError(
                    f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels, but {paths[0].name} of the same clip has "
                    f"{frames[0].shape[1]}x{frames[0].shape[0]}; write all frames of a clip in one size"
                )
            frames.append(frame)
        return frames

    def record(self, query: Question, outcome: Outcome) -> Record:
        """The record of a question; encodes its masks.

        Raises:
            NumericalError: a [LOC] probability is none, or a point is not finite.
        """
        common = {
            "video_id": self.video.video_id,
            "query_id": query.query_id,
            "question": query.text,
            "fingerprint": self.fingerprint,
            "num_clip_frames": len(self.video.frame_paths),
            "listed_frames": self.listed.tolist(),
            "frames": self.frames,
        }
        if isinstance(outcome, Failure):
            return Record(**common, status="failed", reason=outcome.reason)
        probs = outcome.loc_probs
        if probs is not None and not np.all((np.asarray(probs) >= 0) & (np.asarray(probs) <= 1)):
            raise NumericalError("not finite, or no probability from 0 to 1: [LOC] probabilities")
        if outcome.masks is not None:
            common["size"] = list(outcome.masks.shape[1:])
            common["masks"] = [encode_rle(m) if seg else None for m, seg in zip(outcome.masks, outcome.has_seg)]
            common["reason"] = None if np.any(outcome.has_seg) else NO_TOKEN
        elif outcome.points is not None:
            common["kind"] = "points"
            points = [None if each is None else np.asarray(each, dtype=float) for each in outcome.points]
            if not all(each is None or np.isfinite(each).all() for each in points):
                raise NumericalError("not finite: points")
            common["points"] = [None if each is None else each.tolist() for each in points]
        else:
            common["kind"] = "text"
        return Record(
            **common,
            status="ok",
            frame_indices=self.frame_indices.tolist(),
            loc_probs=None if probs is None else [float(p) for p in probs],
            answers=list(outcome.answers),
            forced_seg=bool(outcome.forced_seg),
            forced_loc=bool(outcome.forced_loc),
        )
