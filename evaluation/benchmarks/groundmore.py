"""GroundMoRe's test set: motion questions of four types, answered by masks inside the action's window."""

from __future__ import annotations

from datasets.sample import QUESTION_TYPES
from evaluation.benchmark import Benchmark, Measure

MEASURES = (
    Measure("JF", "J&F", "mean of J and F", ("main", "reference", "detail", "tile", "demo")),
    Measure("J", "J", "region similarity, mean over the listed frames", ("main", "reference", "detail", "demo")),
    Measure("F", "F", "contour accuracy, mean over the listed frames", ("main", "reference", "detail", "demo")),
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

ROWS = {
    "model": ("result", "the predictions, as scored"),
    "all_empty": ("baseline", "no mask on any frame"),
    "whole_frame": ("baseline", "every pixel of every frame"),
    "no_refinement": ("ablation", "own masks without refinement by [LOC]"),
    "perfect_timing": ("oracle", "own masks, emptied exactly outside the action window"),
    "untimed_truth": ("oracle", "ground-truth masks on every frame, ignoring the window"),
}

TOKENS = (
    Measure("seg", "[SEG]", "share of answers with [SEG], written or appended", format="%"),
    Measure("forced_seg", "[SEG] appended", "share of answers to which [SEG] was appended", format="%"),
    Measure("loc", "[LOC]", "share of answers with [LOC], written or appended", format="%"),
    Measure("forced_loc", "[LOC] appended", "share of answers to which [LOC] was appended", format="%"),
    Measure(
        "mask_frames",
        "masked frames",
        "share of the listed frames with a mask that is not empty, before refinement",
        format="%",
    ),
    Measure("kept_frames", "after refinement", "the same after refinement", format="%"),
    Measure("truth_frames", "ground truth", "share of the listed frames whose ground truth is not empty", format="%"),
)

BENCHMARK = Benchmark(
    name="groundmore",
    groups=QUESTION_TYPES,
    measures=MEASURES,
    rows=ROWS,
    tables={"main": "Result", "window": "In the window", "object": "Time and object"},
    tokens=TOKENS,
)
