"""J and F written down from the definition of the DAVIS evaluation, step by step: the reference for speed and bits.

One frame at a time, as the original does: boundary maps from shifted copies, a disk, ``cv2.dilate``, float64.
"""

from __future__ import annotations

import cv2
import numpy as np


def official_j(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None = None) -> float:
    """Intersection over union of two masks outside the void pixels; 1 if the union is empty.

    Args:
        gt, pred: bool [H, W].
        void: bool [H, W] or None.
    """
    counted = np.ones_like(gt) if void is None else np.logical_not(void)
    intersection = np.sum((pred & gt) & counted, axis=(-2, -1))
    union = np.sum((pred | gt) & counted, axis=(-2, -1))
    return 1.0 if np.isclose(union, 0) else float(intersection / union)


def official_boundary(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that differ from the right, lower or lower-right neighbour, with the rules of the borders."""
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1, :] = mask[1:, :]
    south_east[:-1, :-1] = mask[1:, 1:]
    boundary = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    boundary[-1, :] = mask[-1, :] ^ east[-1, :]
    boundary[:, -1] = mask[:, -1] ^ south[:, -1]
    boundary[-1, -1] = False
    return boundary


def official_radius(height: int, width: int) -> int:
    """Tolerance in pixels."""
    return int(np.ceil(0.008 * np.linalg.norm((height, width))))


def official_disk(radius: int) -> np.ndarray:
    """uint8 [2r + 1, 2r + 1]: 1 where dx^2 + dy^2 <= r^2."""
    grid = np.arange(-radius, radius + 1)
    rows, columns = np.meshgrid(grid, grid, indexing="ij")
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


def official_f(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None = None) -> float:
    """Harmonic mean of boundary precision and recall; arguments as in :func:`official_j`."""
    if void is not None:
        gt, pred = gt & np.logical_not(void), pred & np.logical_not(void)
    disk = official_disk(official_radius(*gt.shape))
    gt_boundary, pred_boundary = official_boundary(gt), official_boundary(pred)
    gt_dilated = cv2.dilate(gt_boundary.astype(np.uint8), disk)
    pred_dilated = cv2.dilate(pred_boundary.astype(np.uint8), disk)
    n_gt, n_pred = np.sum(gt_boundary), np.sum(pred_boundary)
    if n_pred == 0 and n_gt > 0:
        precision, recall = 1, 0
    elif n_pred > 0 and n_gt == 0:
        precision, recall = 0, 1
    elif n_pred == 0 and n_gt == 0:
        precision, recall = 1, 1
    else:
        precision = np.sum(pred_boundary * gt_dilated) / float(n_pred)
        recall = np.sum(gt_boundary * pred_dilated) / float(n_gt)
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def official_clip(gt: np.ndarray, pred: np.ndarray, void: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(J, F), float64 [T] each, of bool [T, H, W]; void bool [T, H, W] or None."""
    voids = [None] * len(gt) if void is None else void
    scores = [(official_j(*frame), official_f(*frame)) for frame in zip(gt, pred, voids)]
    j, f = np.array(scores, dtype=np.float64).reshape(-1, 2).T
    return j, f
