"""The second step of an evaluation: scores per question from records and ground truth, each made once.

``scores/VIDEO.json`` keeps the scores of a video's questions::

    {"format": ..., "questions": {query_id: {"key": ..., "digest": ..., "score": {...}}}}

keyed by everything that they were made from: the record's bytes, the question, the protocol, names, sizes and times of
the clip's masks and listed frames, and the source of the code that scores. What has another key is scored again, and so
is an entry whose content does not have the digest that was written with it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.sample import Question, VideoRecord
from evaluation.benchmark import Benchmark, find_benchmark
from evaluation.protocol import Protocol
from evaluation.records import Record, frames_digest, read_record, record_path, scores_path, what_changed
from evaluation.records import fingerprint as digest_of
from evaluation.scoring.pool import ScoringPool
from evaluation.sources import sources_digest
from utils.errors import DataError, NumericalError, one_line
from utils.files import read_json, size_and_time, write_json
from utils.video import frame_size

logger = logging.getLogger(__name__)

SCORES_FORMAT = "mora-scores-2"

POOL_PIXELS = 3e8
"""Pixels to compare from which several processes are worth starting (seconds of work for one)."""


def score_corpus(
    videos: Sequence[VideoRecord],
    output_dir: str | Path,
    protocol: Protocol,
    fingerprint: str | None = None,
    workers: int = 0,
    progress: Callable[..., tqdm] = tqdm,
    pool: ScoringPool | None = None,
    benchmark: Benchmark | None = None,
) -> list[dict]:
    """Score every question of every video; what was scored before is only read.

    Args:
        videos: the ground truth.
        output_dir: run folder with the records; the scores are kept there.
        protocol: see :class:`evaluation.protocol.Protocol`; its prediction fields must be those of the run.
        fingerprint: of the run; a record made under another one counts as a failure. None accepts any.
        workers: processes for a large job; a small one, or any with 0, is done in this process. The result does not
            depend on it.
        progress: makes the progress bar.
        pool: processes that run already, instead of ``workers`` new ones.
        benchmark: says how; default GroundMoRe.

    Returns:
        One JSON-able dict per question, in the corpus's order; see :func:`score_video`.
    """
    benchmark = benchmark or find_benchmark()
    jobs = {video.video_id: VideoScores(video, output_dir, protocol, fingerprint, benchmark) for video in videos}
    missing = [video for video in videos if not jobs[video.video_id].complete]
    if pool is None and workers > 0 and pixels_to_score(missing, protocol) >= POOL_PIXELS:
        with ScoringPool(workers) as own:
            return score_corpus(videos, output_dir, protocol, fingerprint, workers, progress, own, benchmark)
    job = functools.partial(
        score_video, output_dir=output_dir, protocol=protocol, fingerprint=fingerprint, benchmark=benchmark
    )
    made: dict[str, list[dict]] = {}
    with progress(total=len(videos), initial=len(videos) - len(missing), unit="video", desc="score") as bar:
        waiting = {} if pool is None else {video.video_id: pool.submit(job, video) for video in missing}
        for video in missing:
            made[video.video_id] = _result(waiting.get(video.video_id), job, video)
            bar.update(1)
    return [score for video in videos for score in made.get(video.video_id) or jobs[video.video_id].scores()]


def _result(future, job: Callable, video: VideoRecord) -> list[dict]:
    """Scores of a video from the pool; made here without one, or if its processes died."""
    if future is not None:
        try:
            return future.result()
        except BrokenExecutor:
            logger.warning("%s: a process that scores died; scoring this video here", video.video_id)
    return job(video)


def pixels_to_score(videos: Sequence[VideoRecord], protocol: Protocol) -> int:
    """How many pixels are compared, if all frames are as large as the first."""
    if not videos:
        return 0
    try:
        height, width = frame_size(videos[0].frame_paths[0])
    except DataError:
        return 0
    return height * width * sum(len(protocol.sample(len(video.frame_paths))) * len(video.questions) for video in videos)


def score_video(
    video: VideoRecord, output_dir: str | Path, protocol: Protocol, fingerprint: str | None, benchmark: Benchmark
) -> list[dict]:
    """Scores of every question of one video.

    Args:
        video: the ground truth; may hold only some of its questions.
        output_dir, protocol, fingerprint, benchmark: as for :func:`score_corpus`.

    Returns:
        Per question video_id, query_id, q_type, question, answer, status ("ok" or "failed"), reason, and what
        ``benchmark.score`` gives, every measure of every row filled in. What was missing is written to
        ``scores/VIDEO.json``.
    """
    return VideoScores(video, output_dir, protocol, fingerprint, benchmark).make()


class VideoScores:
    """The scores of one video's questions: those kept from before, and the making of the others.

    Args:
        video, output_dir, protocol, fingerprint, benchmark: as for :func:`score_video`.

    Attributes:
        keys: query id -> what its score depends on, as a digest.
        kept: query id -> score, where one with that key was found.
        unexpected: ids of questions whose scoring raised something that no data should raise; tried again next time.
    """

    def __init__(
        self,
        video: VideoRecord,
        output_dir: str | Path,
        protocol: Protocol,
        fingerprint: str | None,
        benchmark: Benchmark,
    ):
        self.video, self.protocol, self.fingerprint, self.benchmark = video, protocol, fingerprint, benchmark
        self.output_dir = Path(output_dir)
        self.listed = protocol.sample(len(video.frame_paths))
        self.indices = np.unique(self.listed)
        self.frames = frames_digest(video, self.indices)
        # Scorer and readers come with benchmark and video; this module does not import them.
        brought = (benchmark.score, benchmark.kind.truths, type(video.read_object_mask))
        code = [code_digest(), *(_sources_of(each.__module__) for each in brought)]
        shown = [[path.name, *size_and_time(path)] for path in (video.frame_paths[index] for index in self.indices)]
        shared = [code, protocol.as_dict(), fingerprint, self.frames, benchmark.kind.state(video), shown]
        common = digest_of({"shared": shared})
        self.keys = {query.query_id: self._key(query, common) for query in video.questions}
        self.path = scores_path(output_dir, video.video_id)
        found, _ = _read_scores(self.path)
        self.unexpected: set[str] = set()
        self.kept = {
            query_id: found[query_id]["score"]
            for query_id, key in self.keys.items()
            if query_id in found and found[query_id]["key"] == key
        }

    @property
    def complete(self) -> bool:
        """Whether every question has its score."""
        return len(self.kept) == len(self.keys)

    def scores(self) -> list[dict]:
        """The scores in the order of the questions; all must be there."""
        return [self.kept[query.query_id] for query in self.video.questions]

    def make(self) -> list[dict]:
        """Score what is missing, keep it, and return all."""
        if not self.complete:
            truths = self.benchmark.kind.truths(self.video, self.indices, self.protocol)
            for query in self.video.questions:
                if query.query_id not in self.kept:
                    # As it will be read back: a restart must not tell 0 from 0.0.
                    self.kept[query.query_id] = json.loads(json.dumps(self._score(query, truths)))
            entries = {
                name: _entry(self.keys[name], score) for name, score in self.kept.items() if name not in self.unexpected
            }
            found, damaged = _read_scores(self.path)
            if damaged:
                logger.warning("%s: damaged (%s); scored again", self.path, damaged)
            others = {name: entry for name, entry in found.items() if name not in entries}
            write_json(self.path, {"format": SCORES_FORMAT, "questions": {**others, **entries}}, indent=None)
        return self.scores()

    def _key(self, query: Question, common: str) -> str:
        path = record_path(self.output_dir, self.video.video_id, query.query_id)
        try:
            record = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            record = None
        return digest_of({"common": common, "query": dataclasses.asdict(query), "record": record})

    def _score(self, query: Question, truths: Callable[[Question], Any]) -> dict:
        try:
            return self._measure(query, truths)
        except Exception as error:  # whatever happens to one question is that question's
            self.unexpected.add(query.query_id)
            return self._about(query, f"it cannot be scored: {type(error).__name__}: {error}", None, None)

    def _measure(self, query: Question, truths: Callable[[Question], Any]) -> dict:
        record, reason = self._find_record(query)
        try:
            truth = truths(query)
        except DataError as error:
            return self._about(query, f"the ground truth cannot be read: {error}", None, None)
        try:
            scored = self._about(query, reason, truth, record)
        except DataError as error:
            scored = self._about(query, str(error), truth, None)
        try:
            json.dumps(scored, allow_nan=False)
        except ValueError:
            raise NumericalError("a measure is not finite (NaN or infinity), which must not enter a mean") from None
        return scored

    def _about(self, query: Question, reason: str | None, truth: Any, record: Record | None) -> dict:
        """What is kept of a question; every row has every measure.

        Raises:
            DataError: the record cannot be scored.
        """
        measured = self.benchmark.score(truth, record, query, self.listed, self.protocol)
        rows, nothing = measured["rows"], {measure.key: None for measure in self.benchmark.measures}
        if truth is None:
            zero = dict.fromkeys(self.benchmark.zero, 0.0)
            rows = {name: {**zero, **rows.get(name, {})} for name in self.benchmark.rows}
        return {
            "video_id": self.video.video_id,
            "query_id": query.query_id,
            "q_type": query.q_type,
            "question": query.text,
            "answer": query.answer,
            "status": "failed" if reason else "ok",
            "reason": reason,
            **measured,
            "rows": {name: {**nothing, **row} for name, row in rows.items()},
        }

    def _find_record(self, query: Question) -> tuple[Record | None, str | None]:
        """The question's record, or None and the reason why there is no usable one."""
        try:
            record = read_record(self.output_dir, self.video.video_id, query.query_id)
        except DataError as error:
            # Without the folder: the same records elsewhere have the same scores.
            return None, f"no prediction: {str(error).removeprefix(f'{self.output_dir}/')}"
        changed = what_changed(record, query, self.fingerprint, self.listed.tolist(), self.frames)
        if changed is not None:
            return None, f"the record was made for {changed}; predict again"
        if not record.ok:
            return None, record.reason or "failed without a reason"
        if record.kind != self.benchmark.kind.name:
            return None, f"the record holds {record.kind}, {self.benchmark.name} asks for {self.benchmark.kind.name}"
        return record, None


def _entry(key: str, score: dict) -> dict:
    """A score as ``scores/VIDEO.json`` holds it."""
    return {"key": key, "digest": digest_of({"key": key, "score": score}), "score": score}


def _read_scores(path: Path) -> tuple[dict[str, dict], str | None]:
    """The whole entries of a file of scores by question, and what is damaged of it, if anything is.

    No file, or one of another format (an earlier version's), has no entries and is not damaged.
    """
    if not path.exists():
        return {}, None
    try:
        value = read_json(path)
    except DataError as error:
        return {}, str(error).removeprefix(f"{path}: ")
    if not isinstance(value, dict) or not isinstance(value.get("questions"), dict):
        return {}, "it is not a file of scores"
    if value.get("format") != SCORES_FORMAT:
        return {}, None
    entries = {name: entry for name, entry in value["questions"].items() if _is_whole(entry)}
    damaged = sorted(set(value["questions"]) - set(entries))
    return entries, f"entries {', '.join(map(one_line, damaged))}" if damaged else None


def _is_whole(entry: object) -> bool:
    """Whether an entry is what was written."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"key", "digest", "score"}
        and isinstance(entry["score"], dict)
        and entry == _entry(entry["key"], entry["score"])
    )


_sources_of = functools.lru_cache(sources_digest)


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """Digest of the source files that every score depends on: this module, and everything that it imports."""
    return sources_digest(__name__)
