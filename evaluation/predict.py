"""The first step of an evaluation: every video encoded once, read once per question, one record per question.

A record is written as soon as its question is answered, so a run that was killed continues where it stopped. What is
asked together never depends on what is already recorded, so an interrupted run ends with the records of an
uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from tqdm import tqdm

from datasets.sample import Query, VideoRecord
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record, record_path, write_record
from utils.errors import ConfigError, DataError, MoraError
from utils.masks import encode_rle
from utils.video import read_frame

logger = logging.getLogger(__name__)

QUESTION_ERRORS = (MoraError, OSError, RuntimeError, ValueError)
"""What may go wrong with one video or question without the run being broken; includes out of memory."""


@dataclass
class Prediction:
    """What a model says about one question on T frames.

    Attributes:
        masks: bool [T, H, W]; empty where ``has_seg`` is False.
        has_seg: bool [T]; whether the answer for the frame had a [SEG].
        loc_probs: float [T] in [0, 1], or None without a [LOC] head.
        answers: generated text of every language model row.
        forced_seg, forced_loc: whether the token had to be appended to an answer.
    """

    masks: np.ndarray
    has_seg: np.ndarray
    loc_probs: np.ndarray | None = None
    answers: list[str] = field(default_factory=list)
    forced_seg: bool = False
    forced_loc: bool = False


class VideoPredictor(Interface):
    """What :func:`predict_corpus` needs from a model."""

    def encode(self, video_id: str, frames: Sequence[np.ndarray]) -> Any:
        """Read the frames (uint8 RGB [H, W, 3], in time order) once; returns what :meth:`answer` needs."""

    def answer(self, context: Any, questions: Sequence[Query]) -> list[Prediction]:
        """Answer questions about an encoded video, one prediction each."""


@dataclass
class PredictionSummary:
    """What a run of :func:`predict_corpus` did.

    Attributes:
        written: questions answered and recorded now.
        reused: questions whose record was already there.
        failures: (video id, query id, reason) of questions recorded as failed now.
    """

    written: int = 0
    reused: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)


def select_videos(corpus: Sequence[VideoRecord], names: Iterable[str] | None, limit: int | None) -> list[int]:
    """Positions in the corpus of the videos to evaluate.

    Args:
        corpus: of GroundMoRe records.
        names: video ids to keep; None or nothing keeps all.
        limit: keep at most this many, the first ones; None keeps all.

    Raises:
        ConfigError: a name that the corpus does not have, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: must be at least 1 video")
    positions = {corpus[index].video_id: index for index in range(len(corpus))}
    wanted = list(names) if names else list(positions)
    unknown = [name for name in wanted if name not in positions]
    if unknown:
        raise ConfigError(f"--video {', '.join(unknown)}: not among the {len(positions)} videos of the annotation file")
    return [positions[name] for name in wanted][:limit]


def predict_corpus(
    videos: Sequence[VideoRecord],
    predictor: VideoPredictor,
    output_dir: str | Path,
    protocol: Protocol,
    fingerprint: str,
    questions_per_batch: int = 0,
    progress: Callable[..., tqdm] = tqdm,
) -> PredictionSummary:
    """Predict every question of every video and record it.

    Args:
        videos: what to evaluate.
        predictor: the model.
        output_dir: run folder; records made under the same ``fingerprint`` are kept, except failures.
        protocol: says which frames.
        fingerprint: of the run's settings, from ``open_run``.
        questions_per_batch: at most this many questions are answered together; 0: all of a video.
        progress: makes the progress bar (tqdm's signature).
    """
    summary = PredictionSummary()
    with progress(total=sum(len(video.queries) for video in videos), unit="question", desc="predict") as bar:
        for video in videos:
            job = _VideoJob(video, protocol, Path(output_dir), fingerprint)
            missing = [query for query in video.queries if not job.recorded(query)]
            summary.reused += len(video.queries) - len(missing)
            bar.update(len(video.queries) - len(missing))
            if not missing:
                continue
            for query, prediction in _predict_video(job, predictor, missing, questions_per_batch):
                if isinstance(prediction, Prediction):
                    write_record(output_dir, job.success(query, prediction))
                    summary.written += 1
                else:
                    reason = f"{type(prediction).__name__}: {prediction}"
                    write_record(output_dir, job.failure(query, reason))
                    summary.failures.append((video.video_id, query.query_id, reason))
                    logger.error("%s, question %s failed: %s", video.video_id, query.query_id, reason)
                bar.update(1)
    return summary


@dataclass
class _VideoJob:
    """One video of a run: which frames, and how its records are made."""

    video: VideoRecord
    protocol: Protocol
    output_dir: Path
    fingerprint: str

    def __post_init__(self) -> None:
        self.listed = self.protocol.sample(len(self.video.frame_paths))
        self.frame_indices = np.unique(self.listed)

    def read_frames(self) -> list[np.ndarray]:
        """The distinct listed frames, all of one size."""
        paths = [self.video.frame_paths[index] for index in self.frame_indices]
        frames = [read_frame(path) for path in paths]
        for path, frame in zip(paths, frames):
            if frame.shape != frames[0].shape:
                raise DataError(
                    f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels, but {paths[0].name} of the same clip has "
                    f"{frames[0].shape[1]}x{frames[0].shape[0]}; write all frames of a clip in one size"
                )
        return frames

    def recorded(self, query: Query) -> bool:
        """Whether a usable prediction of this run is already on disk."""
        if not record_path(self.output_dir, self.video.video_id, query.query_id).exists():
            return False
        try:
            record = read_record(self.output_dir, self.video.video_id, query.query_id)
        except DataError as error:
            logger.warning("%s: predicting again", error)
            return False
        same = record.question == query.text and record.listed_frames == self.listed.tolist()
        return record.ok and record.fingerprint == self.fingerprint and same

    def success(self, query: Query, prediction: Prediction) -> Record:
        masks = [encode_rle(m) if seg else None for m, seg in zip(prediction.masks, prediction.has_seg)]
        probs = prediction.loc_probs
        return Record(
            **self._common(query),
            status="ok",
            frame_indices=self.frame_indices.tolist(),
            size=list(prediction.masks.shape[1:]),
            masks=masks,
            loc_probs=None if probs is None else [float(p) for p in probs],
            answers=list(prediction.answers),
            forced_seg=bool(prediction.forced_seg),
            forced_loc=bool(prediction.forced_loc),
        )

    def failure(self, query: Query, reason: str) -> Record:
        return Record(**self._common(query), status="failed", reason=reason)

    def _common(self, query: Query) -> dict:
        return {
            "video_id": self.video.video_id,
            "query_id": query.query_id,
            "question": query.text,
            "fingerprint": self.fingerprint,
            "num_clip_frames": len(self.video.frame_paths),
            "listed_frames": self.listed.tolist(),
        }


def _predict_video(
    job: _VideoJob, predictor: VideoPredictor, missing: Sequence[Query], questions_per_batch: int
) -> Iterable[tuple[Query, Prediction | Exception]]:
    """Yield each missing question with its prediction or with the error that it raised."""
    queries = job.video.queries
    try:
        context = predictor.encode(job.video.video_id, job.read_frames())
    except QUESTION_ERRORS as error:
        yield from ((query, error) for query in missing)
        return
    size = questions_per_batch or len(queries)
    for start in range(0, len(queries), size):
        batch = queries[start : start + size]
        if any(query in missing for query in batch):
            for query, outcome in zip(batch, _answer_batch(predictor, context, batch)):
                if query in missing:
                    yield query, outcome


def _answer_batch(predictor: VideoPredictor, context: Any, batch: Sequence[Query]) -> list[Prediction | Exception]:
    """Answers to a batch; if it raises, its questions are asked one by one so that one cannot fail the others."""
    try:
        return list(predictor.answer(context, batch))
    except QUESTION_ERRORS as error:
        if len(batch) == 1:
            return [error]
        logger.warning("asking %d questions one by one after %s: %s", len(batch), type(error).__name__, error)
    return [_answer_batch(predictor, context, [query])[0] for query in batch]
