"""Region similarity J and contour accuracy F of DAVIS, and the temporal overlap of two sets of frames.

J and F follow the definition of the DAVIS 2017 evaluation (Perazzi et al. 2016, sections 4.1 and 4.2) bit for bit, in
float64:

* J is intersection over union of two masks; 1 when both are empty.
* F compares one-pixel boundary maps. A pixel is boundary if it differs from its right, lower or lower-right neighbour;
  the last column looks only down, the last row only right, the corner is never boundary. A boundary pixel is matched if
  the other map has a boundary pixel within the Euclidean disk of radius ceil(0.008 * image diagonal). F is the
  harmonic mean of the matched shares. If neither mask has a boundary F is 1, if exactly one has none F is 0. A mask
  that fills the image has no boundary, so against an empty one it scores J = 0 and F = 1.
* Void pixels count as background of both masks, also where boundaries are drawn.

Pixels are counted in integers on packed bits, by code that numba compiles or, without it, by NumPy; the formulas above
the counts are the same lines. The environment variable ``MORA_METRICS`` chooses: ``auto`` (default: numba if it can be
imported), ``numba`` or ``numpy``. One call uses one thread and, with numba, lets others run beside it.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from evaluation.metrics import disk as layout
from evaluation.metrics.disk import boundary_radius
from evaluation.metrics.rle import read_runs

__all__ = [
    "boundary_radius",
    "contour_accuracy",
    "region_similarity",
    "run_lengths",
    "score_clip",
    "score_clip_rle",
    "temporal_iou",
]

BACKEND_VARIABLE = "MORA_METRICS"


def region_similarity(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """J of every frame.

    Args:
        gt: bool [T, H, W] or [H, W]; ground truth.
        pred: bool, same shape; prediction.
        void: bool, same shape, or [H, W] for all frames; pixels that do not count.

    Returns:
        float64 [T] in [0, 1] ([1] for a single mask).

    Raises:
        ValueError: shapes differ, have another rank, or a frame without pixels.
        TypeError: a mask is not boolean.
    """
    return _j(_count_dense(gt, pred, void, contours=False))


def contour_accuracy(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    """F of every frame; arguments, result and errors as for :func:`region_similarity`."""
    return _f(_count_dense(gt, pred, void, contours=True))


def score_clip(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every frame in one pass; arguments and errors as for :func:`region_similarity`.

    Returns:
        (J, F): float64 [T] each.
    """
    counts = _count_dense(gt, pred, void, contours=True)
    return _j(counts), _f(counts)


def score_clip_rle(
    gt: Sequence[Mapping[str, Any] | None], pred: Sequence[Mapping[str, Any] | None]
) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every frame from COCO run lengths, without decoding them to pixels.

    Takes time by the run: fast for objects, slower than decoding for noise with a run per pixel.

    Args:
        gt: T masks ``{"size": [H, W], "counts": ...}``, all of one size; counts compressed (bytes or str) or a list of
            run lengths, column by column, background first. None is an empty mask.
        pred: T masks likewise.

    Returns:
        (J, F): float64 [T] each; what :func:`score_clip` gives for the decoded masks.

    Raises:
        ValueError: the numbers of masks or their sizes differ, or counts are malformed or do not fill the image.
    """
    kernels = _chosen_kernels()
    (height, width), runs, starts, used = read_runs(gt, pred, kernels.parse_strings)
    disk = layout.bars(boundary_radius(height, width))
    counts = kernels.count_runs(runs, starts, used, height, width, disk, True)
    return _j(counts), _f(counts)


def run_lengths(masks: Sequence[Mapping[str, Any] | None]) -> list[np.ndarray]:
    """Run lengths of predicted masks, checked; what :func:`score_clip_rle` reads of them, as a list of ``counts``.

    Args:
        masks: as for :func:`score_clip_rle`.

    Returns:
        Per mask int64 [n], column by column, background first; n is 0 for None.

    Raises:
        ValueError: as in :func:`score_clip_rle`.
    """
    _, runs, starts, used = read_runs([None] * len(masks), masks, _chosen_kernels().parse_strings)
    return [runs[start : start + number] for start, number in zip(starts[1], used[1])]


def temporal_iou(pred_frames: np.ndarray, gt_frames: np.ndarray) -> float:
    """Intersection over union of two sets of frames; 1 when both are empty.

    Args:
        pred_frames: bool [T]; frames on which the motion is predicted.
        gt_frames: bool [T]; frames on which it happens.

    Raises:
        ValueError: the lengths differ.
    """
    pred_frames = np.asarray(pred_frames, dtype=bool)
    gt_frames = np.asarray(gt_frames, dtype=bool)
    if pred_frames.shape != gt_frames.shape or pred_frames.ndim != 1:
        raise ValueError(f"two vectors of one length are needed, got {pred_frames.shape} and {gt_frames.shape}")
    union = int((pred_frames | gt_frames).sum())
    return float((pred_frames & gt_frames).sum() / union) if union else 1.0


def _chosen_kernels() -> ModuleType:
    return kernels_of(os.environ.get(BACKEND_VARIABLE) or "auto")


@functools.lru_cache(maxsize=4)
def kernels_of(backend: str) -> ModuleType:
    """The module that counts: ``count_dense``, ``count_runs`` and ``parse_strings``."""
    if backend not in ("auto", "numba", "numpy"):
        raise ValueError(f"{BACKEND_VARIABLE}={backend}: choose auto, numba or numpy")
    if backend != "numpy":
        try:
            return importlib.import_module("evaluation.metrics.compiled").load_kernels()
        except (ImportError, OSError) as error:
            if backend == "numba":
                raise ImportError(
                    f"{BACKEND_VARIABLE}=numba, but numba cannot be used ({error}); pip install numba, or unset it"
                ) from error
    return importlib.import_module("evaluation.metrics.with_numpy")


def _count_dense(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None, contours: bool) -> np.ndarray:
    """int64 [T, 6]: counts of every frame, see :mod:`evaluation.metrics.disk`."""
    gt, pred = np.asarray(gt), np.asarray(pred)
    if gt.dtype != bool or pred.dtype != bool:
        raise TypeError(f"masks must be boolean, got {gt.dtype} and {pred.dtype}; threshold or compare them first")
    if gt.shape != pred.shape or gt.ndim not in (2, 3):
        raise ValueError(f"two masks of one shape [T, H, W] or [H, W] are needed, got {gt.shape} and {pred.shape}")
    height, width = gt.shape[-2:]
    if height == 0 or width == 0:
        raise ValueError(f"a frame needs at least one pixel, got {gt.shape}")
    if void is not None:
        void = np.asarray(void)
        if void.dtype != bool:
            raise TypeError(f"void must be boolean, got {void.dtype}")
        if void.shape not in (gt.shape, gt.shape[-2:]):
            raise ValueError(f"void must have the shape of the masks or of one frame, got {void.shape} and {gt.shape}")
        gt, pred = gt & ~void, pred & ~void
    planes = [np.ascontiguousarray(side).view(np.uint8).reshape(-1, height * width) for side in (gt, pred)]
    return _chosen_kernels().count_dense(*planes, width, layout.bars(boundary_radius(height, width)), contours)


def _j(counts: np.ndarray) -> np.ndarray:
    """J of every frame, float64 [T], from its counts."""
    j = np.ones(len(counts), dtype=np.float64)
    union = counts[:, layout.UNION]
    return np.divide(counts[:, layout.INTERSECTION], union, out=j, where=union > 0)


def _f(counts: np.ndarray) -> np.ndarray:
    """F of every frame, float64 [T], from its counts, in the official order of operations: another one rounds
    differently in the last bit."""
    n_gt, n_pred = counts[:, layout.GT_BOUNDARY], counts[:, layout.PRED_BOUNDARY]
    both = (n_gt > 0) & (n_pred > 0)
    precision, recall, f = np.zeros((3, len(counts)), dtype=np.float64)
    np.divide(counts[:, layout.PRED_MATCHED], n_pred, out=precision, where=both)
    np.divide(counts[:, layout.GT_MATCHED], n_gt, out=recall, where=both)
    np.divide(2 * precision * recall, precision + recall, out=f, where=precision + recall > 0)
    f[(n_gt == 0) & (n_pred == 0)] = 1.0
    return f
