"""From scores per question to the tables: means, standard errors, reference rows, counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from datasets.sample import QUESTION_TYPES
from evaluation.protocol import Protocol

SUMMARY_FORMAT = "mora-summary-1"
OVERALL = "Overall"

MEASURES = {
    "JF": "mean of J and F",
    "J": "region similarity, mean over the listed frames",
    "F": "contour accuracy, mean over the listed frames",
    "window_J": "J on the frames inside the action window on which the target is visible",
    "window_F": "F on the same frames",
    "temporal_iou": "overlap of the frames predicted as active with the action window",
    "false_positive_rate": "share of the frames outside the window whose predicted mask is not empty",
    "object_accuracy": "share of questions whose in-window masks overlap best with an answer object",
    "object_chance": "the same for a random visible object",
}
"""What is averaged over questions, and what it means; a question without a value is left out of that mean."""

ROWS = {
    "model": ("result", "the predictions, as scored"),
    "all_empty": ("baseline", "no mask on any frame"),
    "whole_frame": ("baseline", "every pixel of every frame"),
    "no_refinement": ("ablation", "own masks without refinement by [LOC]"),
    "perfect_timing": ("oracle", "own masks, emptied exactly outside the action window"),
    "untimed_truth": ("oracle", "ground-truth masks on every frame, ignoring the window"),
}
"""Rows of the result: kind and meaning. Only baselines use neither the model nor the truth."""


def summarise(scores: Sequence[dict], protocol: Protocol, run: dict) -> dict:
    """Aggregate scored questions.

    Args:
        scores: from ``evaluation.score``, one per question, failures included.
        protocol: as scored.
        run: the run's settings, stored as they are.

    Returns:
        JSON-able summary; the schema is in docs/evaluation.md.
    """
    failures = [score for score in scores if score["status"] != "ok"]
    return {
        "format": SUMMARY_FORMAT,
        "protocol": protocol.as_dict(),
        "run": run,
        "counts": _counts(scores),
        "measures": MEASURES,
        "rows": {
            name: {
                "kind": kind,
                "meaning": meaning,
                "table": {split: _measures(group, name) for split, group in _splits(scores)},
            }
            for name, (kind, meaning) in ROWS.items()
        },
        "failures": [
            {"video_id": score["video_id"], "query_id": score["query_id"], "reason": score["reason"]}
            for score in failures
        ],
    }


def mean_and_error(values: Sequence[float], clusters: Sequence[str]) -> tuple[float, float | None]:
    """Mean and its standard error when values of one cluster are not independent.

    Questions about one video share its frames and often its window, so the error is the cluster-robust one:
    sqrt(G / (G - 1) * sum over clusters of (sum of residuals)^2) / N. With one value per cluster it is the usual
    standard error of the mean.

    Args:
        values: at least one.
        clusters: the cluster (video) of every value.

    Returns:
        (mean, standard error); the error is None with fewer than two clusters.
    """
    mean = math.fsum(values) / len(values)
    residuals: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters):
        residuals.setdefault(cluster, []).append(value - mean)
    groups = len(residuals)
    if groups < 2:
        return mean, None
    total = math.fsum(math.fsum(group) ** 2 for group in residuals.values())
    return mean, math.sqrt(groups / (groups - 1) * total) / len(values)


def best_baseline(summary: dict, measure: str = "JF") -> tuple[str, float]:
    """Name and value of the row of kind "baseline" that scores best overall."""
    values = {
        name: row["table"][OVERALL][measure]["mean"]
        for name, row in summary["rows"].items()
        if row["kind"] == "baseline" and row["table"][OVERALL][measure] is not None
    }
    name = max(values, key=values.__getitem__)
    return name, values[name]


def _splits(scores: Sequence[dict]) -> Iterable[tuple[str, list[dict]]]:
    yield OVERALL, list(scores)
    for q_type in QUESTION_TYPES:
        yield q_type, [score for score in scores if score["q_type"] == q_type]


def _measures(scores: Sequence[dict], row: str) -> dict:
    """{"N": questions, measure: {"mean", "stderr", "N"} or None where no question has a value}."""
    table: dict = {"N": len(scores)}
    for measure in MEASURES:
        pairs = [(score["rows"][row].get(measure), score["video_id"]) for score in scores]
        pairs = [(float(value), video) for value, video in pairs if value is not None]
        if not pairs:
            table[measure] = None
            continue
        mean, error = mean_and_error(*zip(*pairs))
        table[measure] = {"mean": mean, "stderr": error, "N": len(pairs)}
    return table


def _counts(scores: Sequence[dict]) -> dict:
    ok = [score for score in scores if score["status"] == "ok"]
    frames = sum(score["listed_frames"] for score in scores)
    return {
        "videos": len({score["video_id"] for score in scores}),
        "questions": len(scores),
        "questions_ok": len(ok),
        "questions_failed": len(scores) - len(ok),
        "questions_of_no_known_type": sum(score["q_type"] not in QUESTION_TYPES for score in scores),
        "questions_without_frame_in_window": sum(score["window_frames"] == 0 for score in scores),
        "questions_without_seg": sum(score["seg_frames"] == 0 for score in ok),
        "questions_without_loc": sum(not score["has_loc"] for score in ok),
        "questions_with_forced_seg": sum(score["forced_seg"] for score in ok),
        "questions_with_forced_loc": sum(score["forced_loc"] for score in ok),
        "listed_frames": frames,
        "listed_frames_in_window": sum(score["window_frames"] for score in scores),
        "listed_frames_with_empty_truth": sum(score["empty_truth_frames"] for score in scores),
        "window_frames_without_mask_file": sum(score["window_frames_without_mask_file"] for score in scores),
    }
