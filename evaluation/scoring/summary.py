"""From scores per question to the tables: means with intervals, reference rows, differences, tokens, counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from datasets.sample import QUESTION_TYPES
from evaluation.protocol import Protocol
from evaluation.scoring.statistics import METHOD, VideoBootstrap

SUMMARY_FORMAT = "mora-summary-2"
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

TOKENS = {
    "seg": "share of answers with [SEG], written or appended",
    "forced_seg": "share of answers to which [SEG] was appended",
    "loc": "share of answers with [LOC], written or appended",
    "forced_loc": "share of answers to which [LOC] was appended",
    "mask_frames": "share of the listed frames with a mask that is not empty, before refinement",
    "kept_frames": "the same after refinement",
    "truth_frames": "share of the listed frames whose ground truth is not empty",
}
"""What is averaged over the questions that were answered (failed ones have no tokens), and what it means."""


def summarise(scores: Sequence[dict], protocol: Protocol, run: dict) -> dict:
    """Aggregate scored questions.

    Args:
        scores: from ``evaluation.score``, one per question, failures included.
        protocol: as scored.
        run: the run's settings, stored as they are.

    Returns:
        JSON-able summary; the schema is in docs/evaluation.md.
    """
    bootstrap = VideoBootstrap([score["video_id"] for score in scores], per_video=protocol.aggregation == "videos")
    kinds = [score["q_type"] for score in scores]
    values = {name: {key: row_values(scores, name, key) for key in MEASURES} for name in ROWS}
    rows = {
        name: {"kind": kind, "meaning": meaning, "table": _table(values[name], kinds, bootstrap)}
        for name, (kind, meaning) in ROWS.items()
    }
    tokens = {key: _values(scores, lambda score, key=key: _token_facts(score)[key]) for key in TOKENS}
    answered = np.array([score["status"] == "ok" for score in scores], dtype=bool)
    return {
        "format": SUMMARY_FORMAT,
        "protocol": protocol.as_dict(),
        "run": run,
        "counts": _counts(scores),
        "interval": {
            "method": METHOD,
            "level": bootstrap.level,
            "draws": len(bootstrap.counts),
            "seed": bootstrap.seed,
        },
        "measures": MEASURES,
        "rows": rows,
        "differences": {
            name: {
                "meaning": f"model - {name}, question by question",
                "table": _table({key: values["model"][key] - values[name][key] for key in MEASURES}, kinds, bootstrap),
            }
            for name in ROWS
            if name != "model"
        },
        "tokens": {"measures": TOKENS, "table": _table(tokens, kinds, bootstrap, answered)},
        "failures": [
            {"video_id": score["video_id"], "query_id": score["query_id"], "reason": score["reason"]}
            for score in scores
            if score["status"] != "ok"
        ],
    }


def row_values(scores: Sequence[dict], row: str, measure: str) -> np.ndarray:
    """float64 [N]: one measure of one row per question; NaN where it does not apply."""
    return _values(scores, lambda score: score["rows"][row].get(measure))


def best_baseline(summary: dict, measure: str = "JF") -> tuple[str, float]:
    """Name and value of the row of kind "baseline" that scores best overall."""
    values = {
        name: row["table"][OVERALL][measure]["mean"]
        for name, row in summary["rows"].items()
        if row["kind"] == "baseline" and row["table"][OVERALL][measure] is not None
    }
    name = max(values, key=values.__getitem__)
    return name, values[name]


def split_table(values: np.ndarray, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """One measure per question, overall and for each type alone.

    Args:
        values: float [N].
        kinds: type of every question.

    Returns:
        {"Overall" or a type: float [N], NaN for the questions of other types}.
    """
    types = np.asarray(kinds, dtype=np.str_)
    return {OVERALL: values} | {name: np.where(types == name, values, np.nan) for name in QUESTION_TYPES}


def _values(scores: Sequence[dict], value_of: Callable[[dict], float | None]) -> np.ndarray:
    """float64 [N], NaN for None."""
    values = (value_of(score) for score in scores)
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _table(
    columns: dict[str, np.ndarray], kinds: Sequence[str], bootstrap: VideoBootstrap, counted: np.ndarray | None = None
) -> dict[str, dict]:
    """{split: {"N": questions, key: cell or None}} from one value per question and key.

    Args:
        columns: float [N] each.
        kinds: type of every question.
        bootstrap: of the same questions.
        counted: bool [N], the questions that "N" counts; default all.
    """
    counted = np.ones(len(kinds), dtype=bool) if counted is None else counted
    numbers = split_table(np.where(counted, 1.0, np.nan), kinds)
    split = {(key, name): part for key, column in columns.items() for name, part in split_table(column, kinds).items()}
    cells = dict(zip(split, bootstrap.cells(np.stack(list(split.values()), axis=1))))
    return {
        name: {"N": int(np.nansum(number)), **{key: cells[key, name] for key in columns}}
        for name, number in numbers.items()
    }


def _token_facts(score: dict) -> dict[str, float | None]:
    """The values of TOKENS for one question; all None for a failed one."""
    if score["status"] != "ok":
        return dict.fromkeys(TOKENS)
    facts = {
        **dict.fromkeys(TOKENS),
        "seg": score["seg_frames"] > 0,
        "forced_seg": score["forced_seg"],
        "loc": score["has_loc"],
        "forced_loc": score["forced_loc"],
        "truth_frames": 1 - score["empty_truth_frames"] / score["listed_frames"],
    }
    frames = score.get("frames")
    if frames is not None:
        times, shown = np.asarray(frames["times"]), np.asarray(frames["shown"], dtype=bool)
        kept = np.asarray(frames["kept"], dtype=bool)
        facts["mask_frames"] = float(times[shown].sum() / times.sum())
        facts["kept_frames"] = float(times[shown & kept].sum() / times.sum())
    return facts


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
