"""The paired difference of two sets of scores: what they share, what differs between them, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.benchmark import Benchmark, Measure, benchmark_of, find_benchmark
from evaluation.outputs import read_whole, reading_results
from evaluation.protocol import Protocol
from evaluation.scoring import METHOD, VideoBootstrap, row_values, split_table
from utils.errors import ConfigError, DataError, Problems

COMPARISON_FORMAT = "mora-comparison-1"

TREATMENTS = (
    "name",
    "frame_control",
    "max_new_tokens",
    "seg_only",
    "force_loc_token",
    "mask_threshold",
    "loc_refine",
    "loc_threshold",
    "missing_loc",
    "several_seg",
)
"""Fields of the protocol that are part of the method under comparison: they may differ, and are named. Any other one
says which frames are listed, what is asked, whether [SEG] was put into the answer, what the truth is, or how J, F and
means are made: numbers that differ in it do not measure the same thing."""

TIE = 1e-9
"""Differences up to this are ties: the same masks scored by two paths of the metric must not count as a change."""


@dataclass(frozen=True)
class ScoredRun:
    """Scores of one run.

    Attributes:
        path: the ``scores.json`` they come from.
        scores: by (video id, question id).
        protocol: every field; those an older file does not state have today's default. None if there is no
            ``summary.json`` beside the scores.
        benchmark: what they are scores of.
    """

    path: Path
    scores: dict[tuple[str, str], dict]
    protocol: dict | None
    benchmark: Benchmark


def read_scored_run(path: str | Path) -> ScoredRun:
    """Read a run folder, or its ``scores.json``.

    Raises:
        DataError: neither, or files that are not what their names say; the message names the remedy.
    """
    path = Path(path)
    file = path / "scores.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(_missing(path, file))
    scores = read_whole(file)
    needed = ("video_id", "query_id", "q_type", "question", "status", "rows")
    whole = isinstance(scores, list) and all(isinstance(s, dict) and all(key in s for key in needed) for s in scores)
    if not whole or not all(isinstance(score["rows"], dict) for score in scores):
        raise DataError(f"{file}: not the scores of an evaluation; give its output folder or the scores.json in it")
    with reading_results(file):
        _check_values(scores)
    if not scores:
        raise DataError(f"{file}: no question was scored; evaluate at least one")
    by_key = {(score["video_id"], score["query_id"]): score for score in scores}
    if len(by_key) < len(scores):
        raise DataError(f"{file}: {len(scores) - len(by_key)} questions stand in it twice; score the run again")
    summary_file, protocol, benchmark = file.with_name("summary.json"), None, find_benchmark()
    if summary_file.is_file():
        summary = read_whole(summary_file)
        stated = summary.get("protocol") if isinstance(summary, dict) else None
        if not isinstance(stated, dict):
            raise DataError(f"{summary_file}: not the summary of an evaluation; score the run again")
        protocol, benchmark = {**Protocol().as_dict(), **stated}, benchmark_of(summary)
    return ScoredRun(file, by_key, protocol, benchmark)


def _check_values(scores: Sequence[dict]) -> None:
    """Refuse what cannot be compared.

    Raises:
        TypeError: an id, a text or a number is something else.
    """
    for score in scores:
        texts = {key: score[key] for key in ("video_id", "query_id", "question", "status")}
        numbers = {(name, key): value for name, row in score["rows"].items() for key, value in row.items()}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise TypeError(f"{key} is {value!r}")
        for key, value in numbers.items():
            if value is not None and (not isinstance(value, (int, float)) or not math.isfinite(value)):
                raise TypeError(f"{' '.join(key)} of {score['video_id']}, {score['query_id']} is {value!r}")
        if score["q_type"] is not None and not isinstance(score["q_type"], str):
            raise TypeError(f"q_type is {score['q_type']!r}")


def differing_settings(a: ScoredRun, b: ScoredRun) -> tuple[list[str], list[str]]:
    """What is not the same in two runs: (what forbids a comparison, what is being compared), as sentences."""
    forbidden, allowed = [], []
    if a.benchmark.name != b.benchmark.name:
        forbidden.append(f"benchmark: {a.benchmark.name} -> {b.benchmark.name}")
    if a.protocol is None or b.protocol is None:
        for run in (a, b):
            if run.protocol is None:
                forbidden.append(f"{run.path}: no summary.json beside it, so its protocol is not known")
    else:
        for field in sorted(set(a.protocol) | set(b.protocol)):
            before, after = a.protocol.get(field), b.protocol.get(field)
            if before != after:
                (allowed if field in TREATMENTS else forbidden).append(f"{field}: {before} -> {after}")
    shared = sorted(set(a.scores) & set(b.scores))
    texts = [key for key in shared if _asked(a.scores[key]) != _asked(b.scores[key])]
    truths = [key for key in shared if not _same_truth(a.scores[key], b.scores[key], a.benchmark)]
    for keys, what in ((texts, "text or type of the question"), (truths, "ground truth or frames")):
        if keys:
            video, query = keys[0]
            forbidden.append(f"{what}: not the same for {len(keys)} questions, first {video}, {query}")
    return forbidden, allowed


def compare(
    a: ScoredRun, b: ScoredRun, row_a: str = "model", row_b: str = "model", allow_different_protocols: bool = False
) -> dict:
    """Compare two runs question by question.

    Args:
        a, b: the runs; differences are B - A.
        row_a, row_b: rows of the benchmark, so that a run can be compared with its own reference rows.
        allow_different_protocols: go on although numbers do not measure the same thing.

    Returns:
        JSON-able: "a" and "b" (path, row, questions, failed), "settings" that differ, "only_in_a" and "only_in_b"
        ([video, question] each), "table" {measure: {split: cell or None}}, "changes" {measure: [{video_id, query_id,
        q_type, question, a, b, difference}]} by falling difference, "lower_is_better" (measures). A
        cell has "N", the means "a" and "b", the
        difference ("mean", "stderr", "low", "high"), "share_above_zero" of the draws, the sign-flip "p", and the
        numbers of questions where B is "better", "same" and "worse".

    Raises:
        ConfigError: the same row of the same run, or protocols that differ.
        DataError: no question in common, or rows that are not in the scores.
    """
    if a.path.resolve() == b.path.resolve() and row_a == row_b:
        raise ConfigError(f"{a.path}: the {row_a} row compared with itself; give a second run, or --row_a and --row_b")
    forbidden, allowed = differing_settings(a, b)
    if forbidden and not allow_different_protocols:
        problems = Problems()
        problems.messages += forbidden
        problems.raise_if_any(
            ConfigError,
            "the two runs do not measure the same thing; evaluate both under one protocol, or give "
            "--allow_different_protocols to compare them all the same",
        )
    keys = sorted(set(a.scores) & set(b.scores))
    if not keys:
        raise DataError(f"{a.path} and {b.path} have no question in common; are they of one test set?")
    ours, theirs = [a.scores[key] for key in keys], [b.scores[key] for key in keys]
    for run, row, scores in ((a, row_a, ours), (b, row_b, theirs)):
        if not all(row in score["rows"] for score in scores):
            raise DataError(f"{run.path}: has no row {row}; rows are {', '.join(scores[0]['rows'])}")
    pairs = {
        measure: (row_values(ours, row_a, measure.key), row_values(theirs, row_b, measure.key))
        for measure in a.benchmark.compared
    }
    # Runs of two aggregations are refused above, or the first one's is taken.
    per_video = a.protocol is not None and a.protocol["aggregation"] == "videos"
    bootstrap = VideoBootstrap([video for video, _ in keys], per_video=per_video)
    kinds = [score["q_type"] for score in ours]
    return {
        "format": COMPARISON_FORMAT,
        "a": _about(a, row_a),
        "b": _about(b, row_b),
        "settings": {"not_comparable": forbidden, "compared": allowed},
        "questions": len(keys),
        "videos": bootstrap.groups,
        "interval": {"method": METHOD, "level": bootstrap.level, "draws": len(bootstrap.counts)},
        "lower_is_better": [measure.key for measure in pairs if measure.better == "lower"],
        "only_in_a": [list(key) for key in sorted(set(a.scores) - set(b.scores))],
        "only_in_b": [list(key) for key in sorted(set(b.scores) - set(a.scores))],
        "table": {
            measure.key: _cells(*pair, kinds, a.benchmark.groups, bootstrap, measure) for measure, pair in pairs.items()
        },
        "changes": {measure.key: _changes(*pair, ours) for measure, pair in pairs.items()},
    }


def _cells(
    before: np.ndarray,
    after: np.ndarray,
    kinds: Sequence[str],
    groups: Sequence[str],
    bootstrap: VideoBootstrap,
    measure: Measure,
) -> dict[str, dict | None]:
    """{split: cell} of one measure; only questions that have a value on both sides count."""
    both = ~np.isnan(before) & ~np.isnan(after)
    splits = split_table(np.where(both, after - before, np.nan), kinds, groups)
    values = np.stack(list(splits.values()), axis=1)
    shares, p_values = bootstrap.share_above_zero(values), bootstrap.sign_flip_p(values)
    table: dict[str, dict | None] = {}
    for name, column, cell, share, p in zip(splits, values.T, bootstrap.cells(values), shares, p_values):
        if cell is None:
            table[name] = None
            continue
        present = ~np.isnan(column)
        gains = -column[present] if measure.better == "lower" else column[present]
        table[name] = {
            "N": cell.pop("N"),
            "a": _mean(np.where(present, before, np.nan), bootstrap),
            "b": _mean(np.where(present, after, np.nan), bootstrap),
            **cell,
            "share_above_zero": share,
            "p": p,
            "better": int((gains > TIE).sum()),
            "same": int((np.abs(gains) <= TIE).sum()),
            "worse": int((gains < -TIE).sum()),
        }
    return table


def _mean(column: np.ndarray, bootstrap: VideoBootstrap) -> float:
    """Mean of one column, over questions or videos; NaN entries do not count, at least one does."""
    values = bootstrap.weighted(column[:, None])[:, 0]
    values = values[~np.isnan(values)]
    return math.fsum(values) / len(values)


def _changes(before: np.ndarray, after: np.ndarray, scores: Sequence[dict]) -> list[dict]:
    """Every question whose value changed, largest rise first; equal ones in the order of their ids."""
    changes = []
    for old, new, score in zip(before.tolist(), after.tolist(), scores):
        if abs(new - old) > TIE:
            about = {key: score[key] for key in ("video_id", "query_id", "q_type", "question")}
            changes.append({**about, "a": old, "b": new, "difference": new - old})
    return sorted(changes, key=lambda change: -change["difference"])


def _about(run: ScoredRun, row: str) -> dict:
    failed = sum(score["status"] != "ok" for score in run.scores.values())
    return {
        "path": str(run.path),
        "row": row,
        "kind": run.benchmark.rows.get(row, (None,))[0],
        "questions": len(run.scores),
        "failed": failed,
    }


def _asked(score: dict) -> tuple[str, str]:
    return score["question"], score["q_type"]


def _same_truth(first: dict, second: dict, benchmark: Benchmark) -> bool:
    """Whether the rows that depend on the ground truth alone are equal: where they differ, so did it or the frames."""
    for row in benchmark.constant:
        for measure in benchmark.zero:
            values = [score["rows"].get(row, {}).get(measure) for score in (first, second)]
            if None not in values and abs(values[0] - values[1]) > TIE:
                return False
    return True


def _missing(path: Path, file: Path) -> str:
    """Why there are no scores under a path, and what to do."""
    if not path.exists():
        return f"{path}: no such folder or file; give the output folder of an evaluation"
    if (path / "records").is_dir():
        return f"{file}: missing, though there are predictions; score them with evaluate_groundmore.py --score_only"
    inner = sorted(str(found.parent) for found in path.glob("*/scores.json"))
    hint = f"; did you mean {' or '.join(inner[:3])}?" if inner else "; give the --output_dir of an evaluation"
    return f"{path}: no scores.json in it{hint}"
