"""Every scored question under one name that says what went wrong, by rules that a reader can check.

What a question lost is 1 - J&F: the ground truth itself scores 1. With a prediction it splits in two:

* timing loss: what the same masks would win if they were emptied exactly outside the action window
  (the row ``perfect_timing`` minus the row ``model``);
* mask loss: what is still lost then (1 minus the row ``perfect_timing``).

The rules are tried in the order of :data:`NAMES`; the first that holds gives the name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.benchmark import Benchmark

GOOD_LOSS = 0.2
"""A question that loses no more than this may be called good."""

GOOD_WINDOW = 0.5
"""... if it also wins this share of the in-window J&F: silence about a short action loses little and is not good."""

FIRM_IOU = 0.5
"""Mean IoU with the answer object over the first third of the window from which the object was right at first."""

DRIFT_FALL = 0.3
"""Fall of that mean to the last third from which a mask has drifted."""

DRIFT_FRAMES = 3
"""Frames with a visible answer object in the window that it takes to see a drift."""

NAMES = {
    "failed": "the question raised an error or has no usable record; it counts as 0",
    "no token": "the answer has no [SEG], so there is no mask",
    "no mask": "[SEG] was said, but no mask on any frame of the window on which the answer is visible",
    "wrong object": "the in-window masks overlap best, as a tube, with an object that is not an answer, or with none",
    "good": f"loses at most {GOOD_LOSS} of J&F and wins at least {GOOD_WINDOW} of it inside the window",
    "wrong time": "the right object, and the timing loss is larger than the mask loss",
    "drift": f"IoU with the answer at least {FIRM_IOU} over the first third of the window, "
    f"and at least {DRIFT_FALL} less over the last third",
    "partial mask": "the right object at the right time, but the masks fit it poorly",
}
"""Names in the order in which they are tried, and the rule of each. A drifting mask may end on another object: it is
not called a wrong object, because it began on the right one."""


@dataclass(frozen=True)
class Verdict:
    """What went wrong with one question.

    Attributes:
        name: a key of :data:`NAMES`.
        why: one sentence with the numbers that decided.
        loss: 1 - J&F.
        timing_loss, mask_loss: their sum is ``loss``; both are 0 for a failed question, which has neither masks nor
            timing. The timing loss is negative where an emptied frame of the window hides the answer.
    """

    name: str
    why: str
    loss: float
    timing_loss: float
    mask_loss: float


def names(rows: Collection[str]) -> dict[str, str]:
    """Name -> rule: :data:`NAMES`, or a short list where the benchmark's rows do not tell timing from masks."""
    plain = {"good": f"loses at most {GOOD_LOSS}", "poor": f"loses more than {GOOD_LOSS}"}
    return NAMES if "perfect_timing" in rows else {"failed": NAMES["failed"], **plain}


def judge(score: dict, headline: str = "JF") -> Verdict:
    """Name what went wrong with a question.

    Args:
        score: of one question, from ``evaluation.score``; with the row ``perfect_timing`` also with the keys "frames"
            and "objects".
        headline: measure whose distance to 1 is the loss.

    Returns:
        The verdict of the first rule that holds.
    """
    rows = score["rows"]
    loss = 1 - (rows["model"][headline] or 0.0)
    if score["status"] != "ok" or ("perfect_timing" in rows and score["frames"] is None):
        return Verdict("failed", score["reason"] or "failed without a reason", loss, 0.0, 0.0)
    if "perfect_timing" not in rows:
        return Verdict("good" if loss <= GOOD_LOSS else "poor", f"loses {loss:.2f}", loss, 0.0, loss)
    timing = rows["perfect_timing"]["JF"] - rows["model"]["JF"]

    def verdict(name: str, why: str) -> Verdict:
        return Verdict(name, why, loss, timing, loss - timing)

    if score["seg_frames"] == 0:
        return verdict("no token", "no [SEG] in the answer")
    wanted, masked = _window_frames(score["frames"])
    if wanted.any() and not (wanted & masked).any():
        return verdict("no mask", f"empty on all {wanted.sum()} in-window frames that show the answer")
    fall = _drift(score["frames"], wanted)
    if wanted.any() and fall is None and (wrong := _wrong_object(score["objects"])):
        return verdict("wrong object", wrong)
    window_jf = _window_jf(rows["model"])
    won = "nothing to win inside the window" if window_jf is None else f"in-window J&F {window_jf:.2f}"
    if loss <= GOOD_LOSS and (window_jf is None or window_jf >= GOOD_WINDOW):
        return verdict("good", f"loses {loss:.2f}; {won}")
    shares = f"timing costs {timing:.2f}, masks {loss - timing:.2f}"
    if timing > loss - timing or not wanted.any():
        return verdict("wrong time", shares)
    if fall is not None:
        return verdict("drift", f"IoU with the answer falls from {fall[0]:.2f} to {fall[1]:.2f} along the window")
    mean = float(np.asarray(score["frames"]["object_J"], dtype=float)[wanted].mean())
    return verdict("partial mask", f"mean IoU with the answer {mean:.2f} inside the window; {shares}")


def breakdown(scores: Sequence[dict], benchmark: Benchmark) -> list[dict]:
    """How often each name occurs, and what it costs.

    Args:
        scores: of every question.
        benchmark: theirs.

    Returns:
        Per name of :func:`names`, in its order: "name", "meaning", "questions", and "lost", "timing", "masks": its
        share of the mean loss, so that "lost" summed over all names is 1 minus the mean J&F.
    """
    verdicts = [judge(score, benchmark.measures[0].key) for score in scores]
    table = []
    for name, meaning in names(benchmark.rows).items():
        group = [verdict for verdict in verdicts if verdict.name == name]
        table.append(
            {
                "name": name,
                "meaning": meaning,
                "questions": len(group),
                "lost": math.fsum(verdict.loss for verdict in group) / max(1, len(verdicts)),
                "timing": math.fsum(verdict.timing_loss for verdict in group) / max(1, len(verdicts)),
                "masks": math.fsum(verdict.mask_loss for verdict in group) / max(1, len(verdicts)),
            }
        )
    return table


def _window_frames(frames: dict) -> tuple[np.ndarray, np.ndarray]:
    """bool [U] twice: in-window frames that show an answer object; frames with a mask before refinement."""
    wanted = np.asarray(frames["in_window"], dtype=bool) & np.asarray(frames["visible"], dtype=bool)
    return wanted, np.asarray(frames["shown"], dtype=bool)


def _window_jf(row: dict) -> float | None:
    """In-window J&F, or None where no answer object is visible inside the window."""
    return None if row["window_J"] is None else (row["window_J"] + row["window_F"]) / 2


def _drift(frames: dict, wanted: np.ndarray) -> tuple[float, float] | None:
    """IoU with the answer over the first and the last third of the wanted frames, if that is a drift."""
    if wanted.sum() < DRIFT_FRAMES:
        return None
    iou = np.asarray(frames["object_J"], dtype=float)[wanted]
    third = math.ceil(len(iou) / 3)
    first, last = float(iou[:third].mean()), float(iou[-third:].mean())
    return (first, last) if first >= FIRM_IOU and first - last >= DRIFT_FALL else None


def _wrong_object(objects: dict) -> str:
    """Why the object is wrong, or nothing if it is right."""
    if objects["best"] in objects["answer"]:
        return ""
    answers = ", ".join(map(str, objects["answer"]))
    rest = f"with the answer, object {answers}, {objects['answer_iou'] or 0:.2f}"
    if objects["best"] is None:
        return "the in-window masks touch no object of the clip"
    return f"tube IoU with object {objects['best']} is {objects['best_iou']:.2f}, {rest}"
