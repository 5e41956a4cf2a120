"""Every measure of one question from its record and its ground truth.

Everything a row of the result needs is a mix of four comparisons with the ground truth per frame: of the predicted
mask, of the empty mask, of the full frame and of the object's mask regardless of the window. Refinement and perfect
timing only choose, frame by frame, between the first two.
"""

from __future__ import annotations

import functools

import numpy as np

from datasets.sample import Question
from evaluation.metrics import region_similarity, score_clip, temporal_iou
from evaluation.protocol import Protocol
from evaluation.records import Record
from evaluation.scoring.summary import MEASURES, ROWS
from evaluation.scoring.truth import Truth
from utils.masks import decode_rle


def score_question(
    truth: Truth | None,
    record: Record | None,
    query: Question,
    listed: np.ndarray,
    id_maps: list[np.ndarray | None] | None,
    protocol: Protocol,
) -> dict:
    """Every measure of one question, for the prediction and for the reference rows.

    Args:
        truth: ground truth on the distinct listed frames; None if it cannot be read (then every row scores 0).
        record: the prediction; None for a failure (then the rows made from it score 0).
        query: the question.
        listed: int [n], the protocol's frames, repeats included.
        id_maps: objects of the clip on the distinct listed frames.
        protocol: refinement and threshold.

    Returns:
        {"rows": {row: measures}, counts, "frames", "objects"}; measures are those of ``evaluation.summary.MEASURES``,
        None where a question has none (no frame inside, or none outside the window). "frames" and "objects" are those
        of :func:`frame_details` and :func:`object_details`, None without a prediction or without a ground truth.
    """
    if truth is None:
        failed = {**dict.fromkeys(MEASURES), **dict.fromkeys(("JF", "J", "F"), 0.0)}
        return {
            "rows": {name: dict(failed) for name in ROWS},
            **_counts(None, None, listed),
            "frames": None,
            "objects": None,
        }
    where = np.searchsorted(np.unique(listed), listed)
    target = truth.target
    shape, empty = target.shape, np.zeros_like(target)
    against_empty = score_clip(target, empty)
    measure = functools.partial(_measures, truth=truth, target=target, where=where)
    rows = {
        "all_empty": measure(against_empty, np.zeros(shape[0], dtype=bool)),
        "whole_frame": measure(score_clip(target, ~empty), np.ones(shape[0], dtype=bool)),
        "untimed_truth": measure(score_clip(target, truth.objects), truth.objects.any(axis=(1, 2))),
    }
    frames, objects = None, None
    if record is None:
        zero, never = (np.zeros(shape[0]), np.zeros(shape[0])), np.zeros(shape[0], dtype=bool)
        failed = {**measure(zero, never), "temporal_iou": 0.0, "false_positive_rate": None}
        own = {name: dict(failed) for name in ("model", "no_refinement", "perfect_timing")}
        own["model"] |= _object_choice(object_details(empty, truth, query, id_maps))
    else:
        pred = _predicted_masks(record, shape)
        not_empty = pred.any(axis=(1, 2))
        raw = score_clip(target, pred)
        kept, active = _refine(record, protocol, not_empty)
        refined = _choose(kept, raw, against_empty)
        own = {
            "model": measure(refined, active, kept & not_empty),
            "no_refinement": measure(raw, not_empty),
            "perfect_timing": measure(
                _choose(truth.in_window, raw, against_empty), truth.in_window, truth.in_window & not_empty
            ),
        }
        frames = frame_details(truth, record, pred, listed, raw, refined, kept)
        objects = object_details(pred, truth, query, id_maps)
        own["model"] |= _object_choice(objects)
    return {"rows": {**own, **rows}, **_counts(truth, record, listed), "frames": frames, "objects": objects}


def frame_details(
    truth: Truth,
    record: Record,
    pred: np.ndarray,
    listed: np.ndarray,
    raw: tuple[np.ndarray, np.ndarray],
    refined: tuple[np.ndarray, np.ndarray],
    kept: np.ndarray,
) -> dict[str, list]:
    """What happened on each of the U distinct listed frames, as equally long lists.

    Args:
        truth: ground truth.
        record: the prediction.
        pred: bool [U, H, W], its masks before refinement.
        listed: int [n], the protocol's frames, repeats included.
        raw, refined: (J, F) before and after refinement, float64 [U] each.
        kept: bool [U]; False where refinement emptied the mask.

    Returns:
        ``index``: clip frame index; ``times``: how often it is listed; ``in_window``; ``visible``: an answer object is
        visible, in the window or not; ``J``, ``F``: after refinement; ``raw_J``, ``raw_F``: before; ``shown``: the mask
        before refinement is not empty; ``kept``; ``object_J``: J of the mask before refinement against the answer
        objects, whatever the window (1 if both are empty); ``loc``: [LOC] probability, or None in place of the list.
    """
    index, times = np.unique(listed, return_counts=True)
    return {
        "index": index.tolist(),
        "times": times.tolist(),
        "in_window": truth.in_window.tolist(),
        "visible": truth.objects.any(axis=(1, 2)).tolist(),
        "J": refined[0].tolist(),
        "F": refined[1].tolist(),
        "raw_J": raw[0].tolist(),
        "raw_F": raw[1].tolist(),
        "shown": pred.any(axis=(1, 2)).tolist(),
        "kept": kept.tolist(),
        "object_J": region_similarity(truth.objects, pred).tolist(),
        "loc": None if record.loc_probs is None else list(record.loc_probs),
    }


def object_details(pred: np.ndarray, truth: Truth, query: Question, id_maps: list[np.ndarray | None]) -> dict:
    """Which object of the clip the masks overlap, as IoUs of tubes over the in-window frames.

    Args:
        pred: bool [U, H, W], masks before refinement.
        truth: ground truth; only its window is used.
        query: names the answer objects.
        id_maps: per frame uint8 [H, W], or None without a mask file.

    Returns:
        ``answer``: ids of the answer objects; ``visible``: ids visible on the in-window frames; ``best``: the visible
        id with the highest IoU, the smallest of equals, None if none is overlapped; ``best_iou``: its IoU or None;
        ``answer_iou``: IoU with the union of the answer objects, None if none of them is visible there.
    """
    overlap, area, predicted = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64), 0
    for mask, ids, inside in zip(pred, id_maps, truth.in_window):
        if inside and ids is not None:
            overlap += np.bincount(ids[mask], minlength=256)
            area += np.bincount(ids.ravel(), minlength=256)
            predicted += int(mask.sum())
    visible = np.flatnonzero(area[1:]) + 1
    answers = np.intersect1d(visible, np.asarray(query.object_ids, dtype=np.int64))
    details = {
        "answer": sorted(query.object_ids),
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


def _measures(
    per_frame: tuple[np.ndarray, np.ndarray],
    active: np.ndarray,
    shown: np.ndarray | None = None,
    *,
    truth: Truth,
    target: np.ndarray,
    where: np.ndarray,
) -> dict:
    """Measures of one row from its J and F per distinct frame.

    Args:
        per_frame: (J, F), float64 [U] each.
        active: bool [U]; frames on which the row says that the action happens.
        shown: bool [U]; frames whose mask is not empty; default ``active``.
        truth, target: ground truth.
        where: int [n], distinct frame of every listed one.
    """
    j, f = (values[where] for values in per_frame)
    shown = active if shown is None else shown
    visible = target.any(axis=(1, 2))[where]
    outside = ~truth.in_window[where]
    mean_j, mean_f = float(j.mean()), float(f.mean())
    return {
        **dict.fromkeys(MEASURES),
        "JF": (mean_j + mean_f) / 2,
        "J": mean_j,
        "F": mean_f,
        "window_J": float(j[visible].mean()) if visible.any() else None,
        "window_F": float(f[visible].mean()) if visible.any() else None,
        "temporal_iou": temporal_iou(active[where], ~outside),
        "false_positive_rate": float(shown[where][outside].mean()) if outside.any() else None,
    }


def _choose(keep: np.ndarray, first: tuple, second: tuple) -> tuple[np.ndarray, np.ndarray]:
    """(J, F) of the first comparison where ``keep``, else of the second."""
    return np.where(keep, first[0], second[0]), np.where(keep, first[1], second[1])


def _refine(record: Record, protocol: Protocol, not_empty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [U] twice: frames whose masks are kept, and frames predicted as active.

    An answer without [LOC] has no probabilities: nothing is refined, and its active frames are those with a mask.
    """
    if not protocol.loc_refine or record.loc_probs is None:
        return np.ones_like(not_empty), not_empty
    kept = np.asarray(record.loc_probs) >= protocol.loc_threshold
    return kept, kept


def _predicted_masks(record: Record, shape: tuple[int, ...]) -> np.ndarray:
    """bool [U, H, W] before refinement; empty where there was no [SEG]."""
    masks = np.zeros(shape, dtype=bool)
    for index, rle in enumerate(record.masks):
        if rle is not None:
            masks[index] = decode_rle(rle)
    return masks


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


def _counts(truth: Truth | None, record: Record | None, listed: np.ndarray) -> dict:
    """Numbers of listed frames and token facts of one question."""
    counts = {
        "listed_frames": len(listed),
        "window_frames": 0,
        "empty_truth_frames": 0,
        "window_frames_without_mask_file": 0,
        "seg_frames": 0 if record is None else sum(mask is not None for mask in record.masks),
        "has_loc": record is not None and record.loc_probs is not None,
        "forced_seg": record is not None and record.forced_seg,
        "forced_loc": record is not None and record.forced_loc,
    }
    if truth is not None:
        where = np.searchsorted(np.unique(listed), listed)
        counts["window_frames"] = int(truth.in_window[where].sum())
        counts["empty_truth_frames"] = int((~truth.target.any(axis=(1, 2)))[where].sum())
        counts["window_frames_without_mask_file"] = int((truth.in_window & ~truth.has_file)[where].sum())
    return counts
