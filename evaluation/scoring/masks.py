"""What every benchmark of masks shares: a question's rows of masks compared with its ground truth, frame by frame.

Everything a row of the result needs is a mix of four comparisons with the ground truth: of the predicted mask, of the
empty mask, of the full frame and of the object's mask regardless of the window. Refinement and perfect timing only
choose, frame by frame, between the first two. Masks stay run lengths; nothing is decoded to pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.sample import VideoRecord
from evaluation.benchmark import Kind, Measure
from evaluation.metrics import run_lengths, score_clip_rle
from evaluation.protocol import Protocol
from evaluation.records import Record
from evaluation.scoring.truth import ClipTruth, Truth
from utils.errors import DataError

MEANS = (
    Measure("JF", "J&F", "mean of J and F", ("main", "reference", "detail", "tile", "demo")),
    Measure("J", "J", "region similarity, mean over the listed frames", ("main", "reference", "detail", "demo")),
    Measure("F", "F", "contour accuracy, mean over the listed frames", ("main", "reference", "detail", "demo")),
)

ROWS = {
    "model": ("result", "the predictions, as scored"),
    "all_empty": ("baseline", "no mask on any frame"),
    "whole_frame": ("baseline", "every pixel of every frame"),
    "no_refinement": ("ablation", "own masks without refinement by [LOC]"),
    "perfect_timing": ("oracle", "own masks, emptied exactly outside the action window"),
    "untimed_truth": ("oracle", "ground-truth masks on every frame, ignoring the window"),
}
"""Rows of the result: kind and meaning. Only baselines use neither the model nor the truth."""

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


@dataclass(frozen=True)
class Row:
    """One row of masks against the ground truth, per distinct or per listed frame.

    Attributes:
        j, f: float64 [n].
        active: bool [n]; frames on which the row says that the action happens.
        shown: bool [n]; frames whose mask is not empty.
    """

    j: np.ndarray
    f: np.ndarray
    active: np.ndarray
    shown: np.ndarray

    def listed(self, where: np.ndarray) -> Row:
        """The row on the listed frames; ``where``: int [n], distinct frame of every listed one."""
        return Row(self.j[where], self.f[where], self.active[where], self.shown[where])


def means(row: Row) -> dict[str, float]:
    """The measures of :data:`MEANS`."""
    j, f = float(row.j.mean()), float(row.f.mean())
    return {"JF": (j + f) / 2, "J": j, "F": f}


@dataclass(frozen=True)
class Prediction:
    """A record's masks before refinement, on the U distinct frames.

    Attributes:
        runs: per frame int64 run lengths; none for a frame without [SEG].
        shown: bool [U]; the mask is not empty.
        kept: bool [U]; False where refinement empties the mask.
        active: bool [U]; frames predicted as active. An answer without [LOC] has no probabilities: nothing is refined,
            and its active frames are those with a mask.
    """

    runs: list[np.ndarray]
    shown: np.ndarray
    kept: np.ndarray
    active: np.ndarray

    @staticmethod
    def of(record: Record, protocol: Protocol) -> Prediction:
        """Read a record.

        Raises:
            DataError: run lengths that do not fill their mask.
        """
        try:
            runs = run_lengths(record.masks)
        except ValueError as error:
            raise DataError(f"the record is damaged: {error}; delete it and predict again") from None
        shown = np.array([bool(each[1::2].any()) for each in runs])
        if not protocol.loc_refine or record.loc_probs is None:
            return Prediction(runs, shown, np.ones_like(shown), shown)
        kept = np.asarray(record.loc_probs) >= protocol.loc_threshold
        return Prediction(runs, shown, kept, kept)


def compare(truth: Truth, prediction: Prediction | None) -> tuple[dict[str, Row], np.ndarray | None]:
    """Compare every row's masks with the ground truth, on the U distinct frames.

    Returns:
        The rows by name, without those of a prediction that there is not; and J of the masks before refinement against
        the answer objects, whatever the window (1 if both are empty).
    """
    target, frames, size = truth.target, len(truth.objects), list(truth.size)
    never, always, visible = np.zeros(frames, dtype=bool), np.ones(frames, dtype=bool), truth.visible
    empty, full = [None] * frames, [{"size": size, "counts": [0, size[0] * size[1]]}] * frames
    sides = [(target, empty), (target, full), (target, truth.objects)]
    if prediction is not None:
        shown = zip(prediction.runs, prediction.shown)
        own = [{"size": size, "counts": runs} if some else None for runs, some in shown]
        sides += [(target, own), (truth.objects, own)]
    j, f = (np.split(part, len(sides)) for part in score_clip_rle(*(sum(side, []) for side in zip(*sides))))
    rows = {
        "all_empty": Row(j[0], f[0], never, never),
        "whole_frame": Row(j[1], f[1], always, always),
        "untimed_truth": Row(j[2], f[2], visible, visible),
    }
    if prediction is None:
        return rows, None

    def emptied(keep: np.ndarray, active: np.ndarray) -> Row:
        return Row(np.where(keep, j[3], j[0]), np.where(keep, f[3], f[0]), active, keep & prediction.shown)

    own_rows = {
        "model": emptied(prediction.kept, prediction.active),
        "no_refinement": Row(j[3], f[3], prediction.shown, prediction.shown),
        "perfect_timing": emptied(truth.in_window, truth.in_window),
    }
    return {**own_rows, **rows}, j[4]


def score_masks(
    names: Sequence[str],
    measure: Callable[[Row, Truth, np.ndarray], dict[str, float | None]],
    failed: Mapping[str, float | None],
    truth: Truth | None,
    record: Record | None,
    listed: np.ndarray,
    protocol: Protocol,
) -> tuple[dict, Prediction | None]:
    """Every measure of one question, for the prediction and for the reference rows.

    Args:
        names: of :data:`ROWS`, those made from the prediction first.
        measure: makes a row's measures from the row on the listed frames, the truth, and int [n], the distinct frame of
            every listed one.
        failed: by measure, what a row made from a prediction that there is not scores; not in it: what ``measure``
            gives for masks that score 0 on every frame.
        truth: ground truth on the distinct listed frames; None if it cannot be read (then every row scores 0).
        record: the prediction; None for a failure (then the rows made from it score 0).
        listed: int [n], the protocol's frames, repeats included.
        protocol: refinement and threshold.

    Returns:
        ({"rows": {row: measures}, counts, "frames"}, the prediction); "frames" is that of :func:`frame_details`, None
        without a prediction or without a ground truth.

    Raises:
        DataError: the record does not fit the truth, or is damaged; the message is the reason to give.
    """
    index, where = np.unique(listed, return_inverse=True)
    prediction = None
    if truth is not None and record is not None:
        if tuple(record.size) != truth.size:
            raise DataError(f"predicted masks are {record.size}, ground truth {list(truth.size)}")
        prediction = Prediction.of(record, protocol)
    if truth is None:
        return {"rows": {}, **_counts(None, None, where), "frames": None}, None
    rows, object_j = compare(truth, prediction)
    zero, never = np.zeros(len(index)), np.zeros(len(index), dtype=bool)
    made = {}
    for name in names:
        row = rows.get(name, Row(zero, zero, never, never))
        made[name] = measure(row.listed(where), truth, where) | ({} if name in rows else dict(failed))
    frames = None
    if prediction is not None:
        frames = frame_details(truth, record, prediction, listed, rows, object_j)
    return {"rows": made, **_counts(truth, record, where), "frames": frames}, prediction


def frame_details(
    truth: Truth,
    record: Record,
    prediction: Prediction,
    listed: np.ndarray,
    rows: Mapping[str, Row],
    object_j: np.ndarray,
) -> dict[str, list | None]:
    """What happened on each of the U distinct listed frames, as equally long lists.

    Returns:
        ``index``: clip frame index; ``times``: how often it is listed; ``in_window``; ``visible``: an answer object is
        visible, in the window or not; ``J``, ``F``: after refinement; ``raw_J``, ``raw_F``: before; ``shown``: the mask
        before refinement is not empty; ``kept``: False where refinement emptied it; ``object_J``: see :func:`compare`;
        ``loc``: [LOC] probability, or None in place of the list.
    """
    index, times = np.unique(listed, return_counts=True)
    refined, raw = rows["model"], rows["no_refinement"]
    arrays = {
        "index": index,
        "times": times,
        "in_window": truth.in_window,
        "visible": truth.visible,
        "J": refined.j,
        "F": refined.f,
        "raw_J": raw.j,
        "raw_F": raw.f,
        "shown": prediction.shown,
        "kept": prediction.kept,
        "object_J": object_j,
    }
    loc = None if record.loc_probs is None else list(record.loc_probs)
    return {**{key: array.tolist() for key, array in arrays.items()}, "loc": loc}


def _counts(truth: Truth | None, record: Record | None, where: np.ndarray) -> dict:
    """Numbers of listed frames and token facts of one question."""
    counts = {
        "listed_frames": len(where),
        "window_frames": 0,
        "empty_truth_frames": 0,
        "window_frames_without_mask_file": 0,
        "seg_frames": 0 if record is None else sum(mask is not None for mask in record.masks),
        "has_loc": record is not None and record.loc_probs is not None,
        "forced_seg": record is not None and record.forced_seg,
        "forced_loc": record is not None and record.forced_loc,
    }
    if truth is not None:
        counts["window_frames"] = int(truth.in_window[where].sum())
        counts["empty_truth_frames"] = int((~(truth.visible & truth.in_window))[where].sum())
        counts["window_frames_without_mask_file"] = int((truth.in_window & ~truth.has_file)[where].sum())
    return counts


def token_facts(score: dict) -> dict[str, float | None]:
    """The values of :data:`TOKENS` for a question that did not fail."""
    facts = {
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


def count_masks(scores: Sequence[dict]) -> dict[str, int]:
    """Numbers of questions and frames of a result."""
    ok = [score for score in scores if score["status"] == "ok"]

    def total(key: str) -> int:
        return sum(score[key] for score in scores)

    return {
        "questions_without_frame_in_window": sum(score["window_frames"] == 0 for score in scores),
        "questions_without_seg": sum(score["seg_frames"] == 0 for score in ok),
        "questions_without_loc": sum(not score["has_loc"] for score in ok),
        "questions_with_forced_seg": sum(score["forced_seg"] for score in ok),
        "questions_with_forced_loc": sum(score["forced_loc"] for score in ok),
        "listed_frames": total("listed_frames"),
        "listed_frames_in_window": total("window_frames"),
        "listed_frames_with_empty_truth": total("empty_truth_frames"),
        "window_frames_without_mask_file": total("window_frames_without_mask_file"),
    }


def mask_state(video: VideoRecord) -> list:
    """What the masks of a video are read from."""
    return video.read_object_mask.state()


MASKS = Kind("masks", truths=ClipTruth, state=mask_state, tokens=TOKENS, facts=token_facts, count=count_masks)
