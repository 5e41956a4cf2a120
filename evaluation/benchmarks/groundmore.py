"""GroundMoRe's test set: motion questions of four types, answered by masks inside the action's window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from datasets.corpora import corpus_named, load
from datasets.sample import QUESTION_TYPES, Question, VideoRecord
from evaluation.benchmark import Benchmark, Measure
from evaluation.metrics import temporal_iou
from evaluation.protocol import Protocol
from evaluation.records import Record
from evaluation.scoring import MASKS, MEANS, ROWS, Row, Truth, means, score_masks

MEASURES = (
    *MEANS,
    Measure(
        "window_J",
        "in-window J",
        "J on the frames inside the action window on which the target is visible",
        ("window", "reference", "detail", "tile", "demo"),
    ),
    Measure("window_F", "in-window F", "F on the same frames", ("window", "detail")),
    Measure(
        "temporal_iou",
        "temporal IoU",
        "overlap of the frames predicted as active with the action window",
        ("window", "reference", "detail", "tile", "demo"),
    ),
    Measure(
        "false_positive_rate",
        "false positives",
        "share of the frames outside the window whose predicted mask is not empty",
        ("object", "detail"),
        better="lower",
    ),
    Measure(
        "object_accuracy",
        "right object",
        "share of questions whose in-window masks overlap best with an answer object",
        ("object", "detail", "tile", "demo"),
        format="?",
    ),
    Measure("object_chance", "chance of a guess", "the same for a random visible object", ("object",), better=""),
)

FAILED = {"temporal_iou": 0.0, "false_positive_rate": None}


def open_groundmore(inputs: Mapping[str, str], protocol: Protocol) -> Sequence[VideoRecord]:
    """The annotation file and the folder of clips; an unclipped window may lie outside its clip."""
    empty_windows = "keep" if protocol.window == "unclipped" else "error"
    reader = load(corpus_named("groundmore").reader)
    return reader(inputs["meta_file"], inputs["video_root"], empty_windows=empty_windows)


def score_question(
    truth: Truth | None, record: Record | None, question: Question, listed: np.ndarray, protocol: Protocol
) -> dict:
    """Every measure of one question; see :func:`evaluation.scoring.masks.score_masks`.

    Returns:
        Its result, and "objects": that of :func:`object_details`, None without a prediction or a ground truth.
    """
    names = sorted(ROWS, key=lambda name: name in BENCHMARK.constant)
    measured, prediction = score_masks(names, _measures, FAILED, truth, record, listed, protocol)
    objects = None
    if truth is not None:
        objects = object_details([] if prediction is None else prediction.runs, truth, question)
        measured["rows"]["model"] |= _object_choice(objects)
    return {**measured, "objects": None if prediction is None else objects}


def _measures(row: Row, truth: Truth, where: np.ndarray) -> dict[str, float | None]:
    visible, inside = (truth.visible & truth.in_window)[where], truth.in_window[where]
    return {
        **means(row),
        "window_J": float(row.j[visible].mean()) if visible.any() else None,
        "window_F": float(row.f[visible].mean()) if visible.any() else None,
        "temporal_iou": temporal_iou(row.active, inside),
        "false_positive_rate": None if inside.all() else float(row.shown[~inside].mean()),
    }


def object_details(runs: Sequence[np.ndarray], truth: Truth, question: Question) -> dict:
    """Which object of the clip the masks overlap, as IoUs of tubes over the in-window frames that have a mask file.

    Args:
        runs: run lengths of the masks before refinement on the U distinct frames; nothing without a prediction.
        truth: ground truth; only its window and its objects beside each other are used.
        question: names the answer objects.

    Returns:
        ``answer``: ids of the answer objects; ``visible``: ids visible on those frames; ``best``: the visible id with
        the highest IoU, the smallest of equals, None if none is overlapped; ``best_iou``: its IoU or None;
        ``answer_iou``: IoU with the union of the answer objects, None if none of them is visible there.
    """
    overlap, area, predicted = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64), 0
    for frame, counted in enumerate(truth.in_window & truth.has_file):
        if counted:
            pieces = truth.pieces[frame]
            np.add.at(area, pieces.ids, np.diff(pieces.bounds))
            if len(runs) and len(runs[frame]):
                covered = _covered(runs[frame], pieces.bounds)
                np.add.at(overlap, pieces.ids, np.diff(covered))
                predicted += int(covered[-1])
    visible = np.flatnonzero(area[1:]) + 1
    answers = np.intersect1d(visible, np.asarray(question.object_ids, dtype=np.int64))
    details = {
        "answer": sorted(question.object_ids),
        "visible": visible.tolist(),
        "best": None,
        "best_iou": None,
        "answer_iou": None,
    }
    if len(visible):
        iou = overlap[visible] / (area[visible] + predicted - overlap[visible])
        if iou.max() > 0:
            details |= {"best": int(visible[iou.argmax()]), "best_iou": float(iou.max())}
    if len(answers):
        shared = overlap[answers].sum()
        details["answer_iou"] = float(shared / (area[answers].sum() + predicted - shared))
    return details


def _covered(runs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64, one per place: how many pixels before it (column by column) a run-length mask sets."""
    set_runs = np.where(np.arange(len(runs)) % 2, runs, 0)
    ends, totals = (np.concatenate(([0], np.cumsum(each))) for each in (runs, set_runs))
    at = np.searchsorted(ends, places, side="right") - 1
    inside = np.append(np.arange(len(runs)) % 2, 0)[at]
    return totals[at] + inside * (places - ends[at])


def _object_choice(objects: dict) -> dict:
    """Whether the best object is an answer, and the odds of a guess among the visible ones.

    A question without a visible answer object has no value.
    """
    answers = set(objects["answer"]) & set(objects["visible"])
    if not answers:
        return {}
    return {
        "object_accuracy": float(objects["best"] in answers),
        "object_chance": len(answers) / len(objects["visible"]),
    }


BENCHMARK = Benchmark(
    name="groundmore",
    corpus="groundmore",
    kind=MASKS,
    score=score_question,
    groups=QUESTION_TYPES,
    measures=MEASURES,
    rows=ROWS,
    constant=("all_empty", "whole_frame", "untimed_truth"),
    tables={"main": "Result", "window": "In the window", "object": "Time and object"},
    zero=("JF", "J", "F"),
    protocol="groundmore",
    inputs={
        "meta_file": ("groundmore_test.json", "download test_v2.json of GroundMoRe"),
        "video_root": ("groundmore_videos", "extract the frames of GroundMoRe there"),
    },
    open=open_groundmore,
)
