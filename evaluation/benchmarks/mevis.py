"""MeViS ``valid_u``, the validation part whose masks are published: J&F, and whether silence is kept where due.

As MeViS v2 defines them: N-acc. is the share of the expressions without a target whose masks are empty on every frame,
T-acc. the share of those with a target that have a mask on some frame. An expression without a target scores J and F
like any other: 1 on a frame left empty. Version 1 has no such expressions, hence no N-acc.
"""

from __future__ import annotations

import numpy as np

from datasets.sample import Question
from evaluation.benchmark import Benchmark, Measure
from evaluation.protocol import Protocol
from evaluation.records import Record
from evaluation.scoring import MASKS, MEANS, ROWS, Row, Truth, means, score_masks

N_ACCURACY = Measure(
    "n_accuracy",
    "N-acc.",
    "share of the expressions without a target whose masks are empty on every frame",
    ("target", "reference", "detail"),
    format="?",
)
T_ACCURACY = Measure(
    "t_accuracy",
    "T-acc.",
    "share of the expressions with a target that have a mask on some frame",
    ("target", "reference", "detail"),
    format="?",
)


def score_expression(
    truth: Truth | None, record: Record | None, question: Question, listed: np.ndarray, protocol: Protocol
) -> dict:
    """Every measure of one expression; see :func:`evaluation.scoring.masks.score_masks`."""
    kind = T_ACCURACY if question.object_ids else N_ACCURACY

    def measure(row: Row, truth: Truth, where: np.ndarray) -> dict[str, float | None]:
        answered = row.shown.any()
        return {**means(row), kind.key: float(answered if kind is T_ACCURACY else not answered)}

    measured, _ = score_masks(list(BENCHMARK.rows), measure, {kind.key: 0.0}, truth, record, listed, protocol)
    if truth is None:  # whether there is a target is known all the same
        measured["rows"] = {name: {kind.key: 0.0} for name in BENCHMARK.rows}
    return measured


BENCHMARK = Benchmark(
    name="mevis_valid_u",
    corpus="mevis",
    split="valid_u",
    kind=MASKS,
    score=score_expression,
    groups=(),
    measures=(*MEANS, N_ACCURACY, T_ACCURACY),
    rows={name: ROWS[name] for name in ("model", "all_empty", "whole_frame", "no_refinement")},
    constant=("all_empty", "whole_frame"),
    tables={"main": "Result", "target": "With and without a target"},
    zero=("JF", "J", "F"),
    protocol="mevis",
    inputs={"video_root": ("MeViSv2", "download MeViS; the folder holds valid_u/")},
)
