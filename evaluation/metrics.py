"""Region similarity J and contour accuracy F of DAVIS, and the temporal overlap of two sets of frames.

J and F follow the definition of the DAVIS 2017 evaluation (Perazzi et al. 2016, sections 4.1 and 4.2) bit for bit, in
float64:

* J is intersection over union of two masks; 1 when both are empty.
* F compares one-pixel boundary maps. A pixel is boundary if it differs from its right, lower or lower-right neighbour;
  the last column looks only down, the last row only right, the corner is never boundary. A boundary pixel is matched if
  the other map has a boundary pixel within the Euclidean disk of radius ceil(0.008 * image diagonal). F is the
  harmonic mean of the matched shares. If neither mask has a boundary F is 1, if exactly one has none F is 0. A mask
  that fills the image has no boundary, so against an empty one it scores J = 0 and F = 1.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 0.008
"""Radius of the matching disk as a share of the image diagonal."""


def region_similarity(gt: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """J of every frame.

    Args:
        gt: bool [T, H, W] or [H, W]; ground truth.
        pred: bool, same shape; prediction.

    Returns:
        float64 [T] in [0, 1] ([1] for a single mask).

    Raises:
        ValueError: shapes differ, have another rank, or a frame without pixels.
        TypeError: a mask is not boolean.
    """
    gt, pred = _as_clips(gt, pred)
    return np.array([_frame_j(*pair) for pair in zip(gt, pred)], dtype=np.float64)


def contour_accuracy(gt: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """F of every frame.

    Args:
        gt: bool [T, H, W] or [H, W]; ground truth.
        pred: bool, same shape; prediction.

    Returns:
        float64 [T] in [0, 1] ([1] for a single mask).

    Raises:
        ValueError: shapes differ, have another rank, or a frame without pixels.
        TypeError: a mask is not boolean.
    """
    gt, pred = _as_clips(gt, pred)
    radius = boundary_radius(*gt.shape[1:])
    return np.array([_frame_f(*pair, radius) for pair in zip(gt, pred)], dtype=np.float64)


def score_clip(gt: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every frame, see :func:`region_similarity` and :func:`contour_accuracy`.

    Returns:
        (J, F): float64 [T] each.
    """
    return region_similarity(gt, pred), contour_accuracy(gt, pred)


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


def boundary_radius(height: int, width: int) -> int:
    """Radius in pixels of the disk within which boundary pixels match: ceil(0.008 * sqrt(H^2 + W^2))."""
    return math.ceil(BOUNDARY_TOLERANCE * math.sqrt(height * height + width * width))


def _as_clips(gt: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as bool [T, H, W], checked."""
    gt, pred = np.asarray(gt), np.asarray(pred)
    if gt.dtype != bool or pred.dtype != bool:
        raise TypeError(f"masks must be boolean, got {gt.dtype} and {pred.dtype}; threshold or compare them first")
    if gt.shape != pred.shape or gt.ndim not in (2, 3):
        raise ValueError(f"two masks of one shape [T, H, W] or [H, W] are needed, got {gt.shape} and {pred.shape}")
    if 0 in gt.shape[-2:]:
        raise ValueError(f"a frame needs at least one pixel, got {gt.shape}")
    return (gt[None], pred[None]) if gt.ndim == 2 else (gt, pred)


def _frame_j(gt: np.ndarray, pred: np.ndarray) -> float:
    union = np.count_nonzero(gt | pred)
    return np.count_nonzero(gt & pred) / union if union else 1.0


def _frame_f(gt: np.ndarray, pred: np.ndarray, radius: int) -> float:
    box = _box_with_margin(gt | pred)
    if box is None:
        return 1.0
    gt_boundary, pred_boundary = _boundary(gt[box]), _boundary(pred[box])
    n_gt, n_pred = np.count_nonzero(gt_boundary), np.count_nonzero(pred_boundary)
    if n_gt == 0 and n_pred == 0:
        return 1.0
    if n_gt == 0 or n_pred == 0:
        return 0.0
    disk = _disk(radius)
    precision = np.count_nonzero(pred_boundary & cv2.dilate(gt_boundary, disk)) / n_pred
    recall = np.count_nonzero(gt_boundary & cv2.dilate(pred_boundary, disk)) / n_gt
    # The official order of operations: another one rounds differently in the last bit.
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _box_with_margin(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The mask's bounding box grown by one pixel; None for an empty mask.

    Boundary pixels lie inside the grown box, and its last row and column are either the image's own or empty, so the
    boundary rule gives inside the crop what it gives in the image.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return (
        slice(max(rows[0] - 1, 0), min(rows[-1] + 2, mask.shape[0])),
        slice(max(columns[0] - 1, 0), min(columns[-1] + 2, mask.shape[1])),
    )


def _boundary(mask: np.ndarray) -> np.ndarray:
    """uint8 {0, 1} boundary map of a bool [H, W] mask."""
    boundary = np.zeros(mask.shape, dtype=bool)
    centre = mask[:-1, :-1]
    boundary[:-1, :-1] = (centre ^ mask[:-1, 1:]) | (centre ^ mask[1:, :-1]) | (centre ^ mask[1:, 1:])
    boundary[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    boundary[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    return boundary.view(np.uint8)


@functools.lru_cache(maxsize=16)
def _disk(radius: int) -> np.ndarray:
    """uint8 [2r+1, 2r+1]: 1 where dx^2 + dy^2 <= r^2. OpenCV's own ellipse is another shape."""
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius * radius).astype(np.uint8)
