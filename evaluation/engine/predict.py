"""The first step of an evaluation: every video encoded once, read once per question, one record per question.

Frames are prepared by threads ahead of the model and records written by a thread behind it. A record is written as soon
as its question is answered, so a run that was killed continues where it stopped. What is asked together is decided by
the annotation file alone, never by what is already recorded or by who else works on it, so an interrupted or divided
run ends with the records of an uninterrupted one.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from tqdm import tqdm

from datasets.sample import Question, VideoRecord
from evaluation.engine.jobs import Failure, Outcome, Prediction, VideoJob
from evaluation.engine.memory import (
    free_memory,
    is_device_lost,
    is_out_of_memory,
    reason_of,
    warn_once,
    with_fewer_frames,
)
from evaluation.engine.pipeline import Behind, prefetch
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record, record_path, write_record
from evaluation.shards import Selected
from utils.errors import DataError, MoraError, one_line

logger = logging.getLogger(__name__)

QUESTION_ERRORS = (Exception,)
"""What belongs to one video or question: whatever is raised while it is read, asked or answered. The data decides which
code runs, so nobody can list the types that bad data raises; each failure is recorded with its type, is counted, and
the run ends with 1, so that nothing is hidden. Not among them: Ctrl-C and the like, a device that is lost (see
:class:`DeviceLost`), a record that cannot be written, and a bug that fails every question (:data:`BUGS`)."""

BUGS = (TypeError, AttributeError, NameError, ImportError)
"""Errors that the code is usually to blame for. If one failed every question of a run, it ends the run in the end."""


class DeviceLost(MoraError):
    """The device does no more work for this process; every later question would fail for no reason of its own."""


class VideoPredictor(Interface):
    """What :func:`predict_corpus` needs from a model."""

    def prepare(self, video_id: str, frames: Sequence[np.ndarray], times: Sequence[float]) -> Any:
        """What :meth:`encode` needs, from the frames (uint8 RGB [H, W, 3], in time order) and their seconds in the
        clip. Called in several threads at once, ahead of the model; the frames are not kept."""

    def encode(self, prepared: Any, frames_per_pass: int | None = None) -> Any:
        """Read a video once, at most so many frames at a time; returns what :meth:`answer` needs."""

    def answer(
        self, context: Any, questions: Sequence[Question], frames_per_pass: int | None = None
    ) -> list[Prediction]:
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


@dataclass(frozen=True)
class Options:
    """How :func:`predict_corpus` works; what it writes does not depend on any of it.

    Attributes:
        decode_workers: threads that prepare frames; 0: none but the main one.
        title: shown before the progress bar.
        quiet: no progress bar.
    """

    decode_workers: int = 2
    title: str = "predict"
    quiet: bool = False


def predict_corpus(
    videos: Sequence[VideoRecord | Selected],
    predictor: VideoPredictor,
    output_dir: str | Path,
    protocol: Protocol,
    fingerprint: str,
    questions_per_batch: int = 0,
    options: Options = Options(),
    on_start: Callable[[int, int], None] | None = None,
    on_video: Callable[[VideoRecord], None] | None = None,
) -> PredictionSummary:
    """Predict every question of every video and record it.

    Args:
        videos: what to evaluate.
        predictor: the model.
        output_dir: run folder; records made under the same ``fingerprint`` from the same frames and the same text are
            kept, except failures.
        protocol: says which frames.
        fingerprint: of the run's settings, from ``open_run``.
        questions_per_batch: at most this many questions are answered together; 0: all of a video.
        options: how to go about it.
        on_start: called with the number of questions and how many of them are recorded.
        on_video: called, in another thread, with a video (its wanted questions) when all of them are recorded.

    Raises:
        OSError: a record cannot be written.
        DeviceLost: the device went away; what was asked then is recorded as failed, what comes later is not.
        Exception: one of :data:`BUGS` failed every question; they are recorded as failed.
    """
    todo, summary, total = _open_jobs(videos, protocol, output_dir, fingerprint, on_video)
    if on_start is not None:
        on_start(total, summary.reused)
    bar = tqdm(total=total, initial=summary.reused, unit="question", desc=options.title, disable=options.quiet)

    def prepare(task: _Task, stop: threading.Event) -> Any:
        frames = task.job.read_frames(stop)
        video = task.job.video
        times = video.times(task.job.frame_indices)
        return None if stop.is_set() else predictor.prepare(video.video_id, frames, times)

    def write(done: tuple[_Task, list[tuple[Question, Outcome]]]) -> None:
        task, outcomes = done
        for query, outcome in sorted(outcomes, key=lambda pair: pair[0].query_id in task.failed):
            record, outcome = _record(task.job, query, outcome)
            write_record(output_dir, record)
            task.left -= 1
            _count(summary, task.job.video.video_id, query, outcome)
            bar.update(1)
        if task.left == 0 and on_video is not None:
            on_video(task.selected.scored)

    bugs: list[Exception] = []
    with bar, Behind(write) as behind:
        prepared = prefetch(todo, prepare, QUESTION_ERRORS, options.decode_workers)
        try:
            for task, ready in prepared:
                for outcomes in _answers(task, predictor, ready, questions_per_batch, bugs):
                    behind.put((task, outcomes))
                del ready
        finally:
            prepared.close()
    if bugs and not summary.written + summary.reused:
        raise bugs[0]
    return summary


@dataclass
class _Task:
    """A video with questions to be recorded.

    If one failed before, all are: those asked together with it were asked again without it then, and an answer differs
    in its last digits by the company in which it was given. What failed is written last, so that a kill in between
    leaves it as a sign.
    """

    selected: Selected
    job: VideoJob
    missing: frozenset[str]
    failed: frozenset[str]
    left: int


def _open_jobs(
    videos: Sequence[VideoRecord | Selected],
    protocol: Protocol,
    output_dir: str | Path,
    fingerprint: str,
    on_video: Callable[[VideoRecord], None] | None,
) -> tuple[list[_Task], PredictionSummary, int]:
    """Tasks, the summary so far, and the number of questions; says what cannot be used of what is on disk."""
    todo, summary, states = [], PredictionSummary(), Counter()
    for video in videos:
        selected = video if isinstance(video, Selected) else Selected(video, tuple(q.query_id for q in video.questions))
        job = VideoJob(selected.video, protocol, output_dir, fingerprint, selected.questions)
        state = {query.query_id: job.state(query) for query in job.questions}
        states.update(state.values())
        failed = frozenset(query_id for query_id, found in state.items() if found == "failed")
        missing = frozenset(query_id for query_id, found in state.items() if found != "ok" or failed)
        summary.reused += len(state) - len(missing)
        if missing:
            todo.append(_Task(selected, job, missing, failed, len(missing)))
        elif on_video is not None:
            on_video(selected.scored)
    unusable = {name: count for name, count in states.items() if name not in ("ok", "failed", "missing")}
    if unusable:
        reasons = ", ".join(f"{count} of {name}" for name, count in sorted(unusable.items()))
        logger.warning("%d records here cannot be used and are made again: %s", sum(unusable.values()), reasons)
    return todo, summary, sum(states.values())


def _record(job: VideoJob, query: Question, outcome: Outcome) -> tuple[Record, Outcome]:
    """The record of a question; a failure if its prediction cannot be recorded."""
    try:
        return job.record(query, outcome), outcome
    except QUESTION_ERRORS as error:
        outcome = Failure(reason_of(error))
        return job.record(query, outcome), outcome


def _count(summary: PredictionSummary, video_id: str, query: Question, outcome: Outcome) -> None:
    if isinstance(outcome, Failure):
        summary.failures.append((video_id, query.query_id, outcome.reason))
        logger.error("%s, question %s failed: %s", *map(one_line, (video_id, query.query_id, outcome.reason)))
    else:
        summary.written += 1


def _answers(
    task: _Task, predictor: VideoPredictor, ready: Any, questions_per_batch: int, bugs: list[Exception]
) -> Iterator[list[tuple[Question, Outcome]]]:
    """Yield the missing questions of a video with what became of them, batch by batch; collects :data:`BUGS`."""
    questions, frames = task.job.video.questions, len(task.job.frame_indices)
    context, failure, lost = None, None, None
    try:
        if isinstance(ready, Exception):
            raise ready
        context = with_fewer_frames(lambda limit: predictor.encode(ready, limit), frames)
    except QUESTION_ERRORS as error:
        failure, lost = _failure(error, bugs), _device_lost(error)
    if failure is not None:
        yield [(query, failure) for query in task.job.questions if query.query_id in task.missing]
        if lost is not None:
            raise lost
        return
    size = questions_per_batch or len(questions)
    for start in range(0, len(questions), size):
        batch = questions[start : start + size]
        if any(query.query_id in task.missing for query in batch):
            try:
                outcomes = _answer(predictor, context, batch, frames, bugs)
            except DeviceLost as error:
                outcomes, lost = [Failure(reason_of(error))] * len(batch), error
            yield [(query, out) for query, out in zip(batch, outcomes) if query.query_id in task.missing]
            if lost is not None:
                raise lost


def _answer(
    predictor: VideoPredictor, context: Any, batch: Sequence[Question], frames: int, bugs: list[Exception]
) -> list[Outcome]:
    """Answers to a batch. One that is too large for the memory is halved; one that raises otherwise is asked question
    by question, so that one cannot fail the others."""
    if len(batch) == 1:
        return [_answer_one(predictor, context, batch, frames, bugs)]
    lost = None
    try:
        return list(predictor.answer(context, batch))
    except QUESTION_ERRORS as error:
        lost = _device_lost(error)
        short = is_out_of_memory(error)
        if not short:
            logger.warning("asking %d questions one by one after %s", len(batch), one_line(reason_of(error)))
    if lost is not None:
        raise lost
    size = 1
    if short:
        free_memory()
        size = (len(batch) + 1) // 2
        warn_once(f"{size} questions at a time")
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    return [outcome for part in parts for outcome in _answer(predictor, context, part, frames, bugs)]


def _answer_one(
    predictor: VideoPredictor, context: Any, batch: Sequence[Question], frames: int, bugs: list[Exception]
) -> Outcome:
    """The answer to a single question, with fewer frames at a time if memory is short."""
    try:
        return with_fewer_frames(lambda limit: predictor.answer(context, batch, limit)[0], frames)
    except QUESTION_ERRORS as error:
        failure, lost = _failure(error, bugs), _device_lost(error)
        short = is_out_of_memory(error)
    if lost is not None:
        raise lost
    if short:
        free_memory()
    return failure


def _failure(error: Exception, bugs: list[Exception]) -> Failure:
    """What the record says; an error that looks like a bug is recorded with its place, and kept."""
    if not isinstance(error, BUGS):
        return Failure(reason_of(error))
    place = traceback.extract_tb(error.__traceback__)[-1]
    bugs.append(error.with_traceback(None))  # its frames would keep the memory of the device
    return Failure(f"{reason_of(error)} ({Path(place.filename).name}, line {place.lineno})")


def _device_lost(error: Exception) -> DeviceLost | None:
    """The error that ends the run, if this one says that the device is lost."""
    if not is_device_lost(error):
        return None
    return DeviceLost(
        f"the device is lost after {reason_of(error).splitlines()[0]}; this process can compute nothing more. Start "
        "the same command again: it goes on with what is missing (CUDA_LAUNCH_BLOCKING=1 shows where it happens)"
    )


def question_states(
    selected: Sequence[Selected], output_dir: str | Path, protocol: Protocol, fingerprint: str
) -> Counter[str]:
    """How many questions are in which state on disk; see :meth:`evaluation.engine.jobs.VideoJob.state`."""
    jobs = (VideoJob(each.video, protocol, output_dir, fingerprint, each.questions) for each in selected)
    return Counter(job.state(query) for job in jobs for query in job.questions)


def forget_failures(selected: Sequence[Selected], output_dir: str | Path) -> None:
    """Delete the records of every video of which a question failed, whatever settings they were made under.

    For a shard, before its model is loaded: another shard must not take an old failure for the last word.
    """
    for each in selected:
        paths = [record_path(output_dir, each.video.video_id, query_id) for query_id in each.questions]
        for query_id, path in zip(each.questions, paths):
            with suppress(DataError):
                if path.exists() and not read_record(output_dir, each.video.video_id, query_id).ok:
                    for every in paths:
                        every.unlink(missing_ok=True)
                    break
