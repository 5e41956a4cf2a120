"""The second step of an evaluation: scores per question from records and ground truth, in a pool of processes.

Everything a row of the result needs is a mix of four comparisons with the ground truth per frame: of the predicted
mask, of the empty mask, of the full frame and of the object's mask regardless of the window. Refinement and perfect
timing only choose, frame by frame, between the first two.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.sample import Query, VideoRecord
from evaluation.metrics import score_clip, temporal_iou
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record
from evaluation.summary import MEASURES, ROWS
from utils.errors import DataError
from utils.masks import decode_rle, read_id_mask
from utils.video import frame_size

POOL_PIXELS = 3e8
"""Pixels to compare from which several processes are worth starting (about five seconds of work for one)."""


@dataclass(frozen=True)
class Truth:
    """Ground truth of one question on U distinct frames.

    Attributes:
        objects: bool [U, H, W]; the answer objects wherever they are visible, inside the window or not.
        in_window: bool [U].
        has_file: bool [U]; whether the corpus has a mask file for the frame (without one, nothing is visible).
    """

    objects: np.ndarray
    in_window: np.ndarray
    has_file: np.ndarray

    @property
    def target(self) -> np.ndarray:
        """bool [U, H, W]: what a perfect answer is; empty outside the window."""
        return self.objects & self.in_window[:, None, None]


def question_window(query: Query, frame_indices: np.ndarray, protocol: Protocol) -> np.ndarray:
    """bool [U]: which frames lie in the question's action window, read as the protocol says."""
    if protocol.window == "clipped" or query.raw_window is None:
        return query.in_window(frame_indices)
    first, last = query.raw_window
    return (frame_indices >= first) & (frame_indices <= last)


def read_truth(video: VideoRecord, query: Query, frame_indices: np.ndarray, protocol: Protocol) -> Truth:
    """Read a question's ground truth on some frames.

    Args:
        video: a GroundMoRe record.
        query: one of its questions.
        frame_indices: int [U], distinct.
        protocol: says how the window is read.

    Raises:
        DataError: a mask cannot be read, or frames of the clip differ in size.
    """
    paths = video.read_object_mask.mask_paths
    objects = [video.read_object_mask(query, int(index)) for index in frame_indices]
    for index, mask in zip(frame_indices, objects):
        if mask.shape != objects[0].shape:
            raise DataError(
                f"{video.frame_paths[index]}: {mask.shape[0]} x {mask.shape[1]} (height x width), but "
                f"{video.frame_paths[frame_indices[0]].name} of the same clip is {objects[0].shape[0]} x "
                f"{objects[0].shape[1]}; write all frames of a clip in one size"
            )
    return Truth(
        objects=np.stack(objects),
        in_window=question_window(query, frame_indices, protocol),
        has_file=np.array([paths[index] is not None for index in frame_indices]),
    )


def read_id_maps(video: VideoRecord, frame_indices: np.ndarray) -> list[np.ndarray | None]:
    """Per frame the object ids uint8 [H, W], or None where the corpus has no mask file."""
    paths = video.read_object_mask.mask_paths
    return [None if paths[index] is None else read_id_mask(paths[index]) for index in frame_indices]


def score_corpus(
    videos: Sequence[VideoRecord],
    output_dir: str | Path,
    protocol: Protocol,
    fingerprint: str | None = None,
    workers: int = 0,
    progress: Callable[..., tqdm] = tqdm,
) -> list[dict]:
    """Score every question of every video.

    Args:
        videos: the ground truth.
        output_dir: run folder with the records.
        protocol: see :class:`evaluation.protocol.Protocol`; its prediction fields must be those of the run.
        fingerprint: of the run; a record made under another one counts as a failure. None accepts any.
        workers: processes for a large job; a small one, or any with 0, is done in this process. The result does not
            depend on it.
        progress: makes the progress bar.

    Returns:
        One JSON-able dict per question, in the corpus's order; see :func:`score_question`.
    """
    job = functools.partial(score_video, output_dir=output_dir, protocol=protocol, fingerprint=fingerprint)
    scores: list[dict] = []
    with progress(total=len(videos), unit="video", desc="score") as bar:
        if workers < 1 or _pixels(videos, protocol) < POOL_PIXELS:
            for video in videos:
                scores += job(video)
                bar.update(1)
            return scores
        # A fresh interpreter per worker: forking a process whose libraries have threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            for result in pool.map(job, videos):
                scores += result
                bar.update(1)
    return scores


def _pixels(videos: Sequence[VideoRecord], protocol: Protocol) -> int:
    """How many pixels are compared, if all frames are as large as the first."""
    if not videos:
        return 0
    try:
        height, width = frame_size(videos[0].frame_paths[0])
    except DataError:
        return 0
    return height * width * protocol.num_frames * sum(len(video.queries) for video in videos)


def score_video(video: VideoRecord, output_dir: str | Path, protocol: Protocol, fingerprint: str | None) -> list[dict]:
    """Scores of every question of one video, see :func:`score_question`."""
    listed = protocol.sample(len(video.frame_paths))
    frame_indices = np.unique(listed)
    id_maps, map_error = None, ""
    try:
        id_maps = read_id_maps(video, frame_indices)
    except DataError as error:
        map_error = str(error)
    scores = []
    for query in video.queries:
        record, reason = _find_record(video, query, output_dir, listed, fingerprint)
        try:
            truth = None if id_maps is None else read_truth(video, query, frame_indices, protocol)
        except DataError as error:
            truth, map_error = None, str(error)
        if truth is None:
            reason = f"the ground truth cannot be read: {map_error}"
        elif record is not None and tuple(record.size) != truth.objects.shape[1:]:
            record, reason = None, f"predicted masks are {record.size}, ground truth {list(truth.objects.shape[1:])}"
        scores.append(
            {
                "video_id": video.video_id,
                "query_id": query.query_id,
                "q_type": query.q_type,
                "question": query.text,
                "answer": query.answer,
                "status": "failed" if reason else "ok",
                "reason": reason,
                **score_question(truth, None if reason else record, query, listed, id_maps, protocol),
            }
        )
    return scores


def score_question(
    truth: Truth | None,
    record: Record | None,
    query: Query,
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
        {"rows": {row: measures}, counts}; measures are those of ``evaluation.summary.MEASURES``, None where a question
        has none (no frame inside, or none outside the window).
    """
    if truth is None:
        failed = {**dict.fromkeys(MEASURES), **dict.fromkeys(("JF", "J", "F"), 0.0)}
        return {"rows": {name: dict(failed) for name in ROWS}, **_counts(None, None, listed)}
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
    if record is None:
        zero, never = (np.zeros(shape[0]), np.zeros(shape[0])), np.zeros(shape[0], dtype=bool)
        failed = {**measure(zero, never), "temporal_iou": 0.0, "false_positive_rate": None}
        own = {name: dict(failed) for name in ("model", "no_refinement", "perfect_timing")}
        own["model"] |= _object_choice(empty, truth, query, id_maps)
    else:
        pred = _predicted_masks(record, shape)
        not_empty = pred.any(axis=(1, 2))
        raw = score_clip(target, pred)
        kept, active = _refine(record, protocol, not_empty)
        own = {
            "model": measure(_choose(kept, raw, against_empty), active, kept & not_empty),
            "no_refinement": measure(raw, not_empty),
            "perfect_timing": measure(
                _choose(truth.in_window, raw, against_empty), truth.in_window, truth.in_window & not_empty
            ),
        }
        own["model"] |= _object_choice(pred, truth, query, id_maps)
    return {"rows": {**own, **rows}, **_counts(truth, record, listed)}


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


def _object_choice(pred: np.ndarray, truth: Truth, query: Query, id_maps: list[np.ndarray | None]) -> dict:
    """Which object of the clip the unrefined in-window masks overlap best, as a tube IoU, and the odds of a guess.

    Only objects visible on the in-window frames compete. A question without a visible answer object has no value.
    """
    overlap, area, predicted = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64), 0
    for mask, ids, inside in zip(pred, id_maps, truth.in_window):
        if inside and ids is not None:
            overlap += np.bincount(ids[mask], minlength=256)
            area += np.bincount(ids.ravel(), minlength=256)
            predicted += int(mask.sum())
    visible = np.flatnonzero(area[1:]) + 1
    answers = np.intersect1d(visible, np.asarray(query.object_ids, dtype=np.int64))
    if len(answers) == 0:
        return {}
    iou = overlap[visible] / (area[visible] + predicted - overlap[visible])
    correct = iou.max() > 0 and visible[iou.argmax()] in answers
    return {"object_accuracy": float(correct), "object_chance": len(answers) / len(visible)}


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


def _find_record(
    video: VideoRecord, query: Query, output_dir: str | Path, listed: np.ndarray, fingerprint: str | None
) -> tuple[Record | None, str | None]:
    """The question's record, or None and the reason why there is no usable one."""
    try:
        record = read_record(output_dir, video.video_id, query.query_id)
    except DataError as error:
        return None, f"no prediction: {error}"
    if not record.ok:
        return None, record.reason or "failed without a reason"
    if fingerprint is not None and record.fingerprint != fingerprint:
        return None, "the record was made under other settings; predict again"
    if record.listed_frames != listed.tolist():
        return None, "the record was made on other frames; predict again"
    return record, None
