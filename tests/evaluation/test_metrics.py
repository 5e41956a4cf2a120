"""J and F against the official algorithm written down from its definition; every comparison is exact."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from evaluation.metrics import boundary_radius, contour_accuracy, region_similarity, score_clip, temporal_iou


def official_j(gt, pred):
    intersection, union = np.sum(gt & pred), np.sum(gt | pred)
    return 1.0 if union == 0 else float(intersection / union)


def official_boundary(mask):
    """Three shifted copies with zeros coming in, the borders then rewritten."""
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1, :] = mask[1:, :]
    south_east[:-1, :-1] = mask[1:, 1:]
    boundary = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    boundary[-1, :] = mask[-1, :] ^ east[-1, :]
    boundary[:, -1] = mask[:, -1] ^ south[:, -1]
    boundary[-1, -1] = False
    return boundary


def official_f(gt, pred):
    radius = int(np.ceil(0.008 * np.linalg.norm(gt.shape)))
    grid = np.arange(-radius, radius + 1)
    rows, columns = np.meshgrid(grid, grid, indexing="ij")
    disk = (rows**2 + columns**2 <= radius**2).astype(np.uint8)
    gt_boundary, pred_boundary = official_boundary(gt), official_boundary(pred)
    gt_match = gt_boundary & (cv2.dilate(pred_boundary.astype(np.uint8), disk) > 0)
    pred_match = pred_boundary & (cv2.dilate(gt_boundary.astype(np.uint8), disk) > 0)
    n_gt, n_pred = np.sum(gt_boundary), np.sum(pred_boundary)
    if n_pred == 0 and n_gt > 0:
        precision, recall = 1.0, 0.0
    elif n_pred > 0 and n_gt == 0:
        precision, recall = 0.0, 1.0
    elif n_pred == 0 and n_gt == 0:
        precision, recall = 1.0, 1.0
    else:
        precision, recall = np.sum(pred_match) / float(n_pred), np.sum(gt_match) / float(n_gt)
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def assert_official(gt, pred):
    j, f = score_clip(gt, pred)
    assert j.dtype == f.dtype == np.float64
    for index in range(len(gt)):
        assert j[index] == official_j(gt[index], pred[index])
        assert f[index] == official_f(gt[index], pred[index])


def blobs(rng, count, height, width):
    noise = rng.standard_normal((count, height, width)).astype(np.float32)
    sigma = max(height, width) / 20
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in noise]) > 0.05 / sigma


def families(rng, count, height, width):
    """Masks of many kinds, each [count, H, W]."""
    empty = np.zeros((count, height, width), dtype=bool)
    border = empty.copy()
    border[:, 0] = border[:, -1] = True
    border[:, :, 0] = border[:, :, -1] = True
    pixel, box = empty.copy(), empty.copy()
    for index in range(count):
        pixel[index, rng.integers(height), rng.integers(width)] = True
        y, x = rng.integers(height), rng.integers(width)
        box[index, y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
    corner = empty.copy()
    corner[:, -1, -1] = True
    return {
        "empty": empty,
        "full": ~empty,
        "border": border,
        "pixel": pixel,
        "corner": corner,
        "box": box,
        "noise": rng.random((count, height, width)) < 0.5,
        "sparse": rng.random((count, height, width)) < 0.02,
        "blob": blobs(rng, count, height, width),
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (23, 1), (2, 2), (7, 5), (48, 64), (65, 33), (130, 140)])
def test_equal_to_the_official_code_on_every_kind_of_mask(size):
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    kinds = families(rng, 3, *size)
    for first, second in itertools.product(kinds.values(), repeat=2):
        assert_official(first, second)
        assert_official(first, np.roll(second, (1, 2), axis=(1, 2)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)])
def test_all_pairs_of_tiny_masks(size):
    count = size[0] * size[1]
    masks = np.array(list(itertools.product([False, True], repeat=count))).reshape(-1, *size)
    first, second = np.repeat(masks, len(masks), axis=0), np.tile(masks, (len(masks), 1, 1))
    assert_official(first, second)


def test_pairs_of_three_by_three_masks():
    masks = np.array(list(itertools.product([False, True], repeat=9))).reshape(-1, 3, 3)
    rng = np.random.default_rng(0)
    pairs = rng.integers(len(masks), size=(6000, 2))
    assert_official(masks[pairs[:, 0]], masks[pairs[:, 1]])


def test_full_video_sizes():
    rng = np.random.default_rng(1)
    kinds = families(rng, 1, 480, 854)
    shifted = {name: np.roll(mask, (9, -14), axis=(1, 2)) for name, mask in kinds.items()}
    for name in kinds:
        assert_official(kinds[name], shifted[name])
        assert_official(kinds["blob"], shifted[name])
    big = families(rng, 1, 720, 1280)
    assert_official(big["blob"], np.roll(big["blob"], 11, axis=2))


def test_the_radius_matches_exactly_up_to_its_edge():
    """Two one-row stripes 12 pixels apart match at 720p (radius 12), 13 apart do not."""
    assert boundary_radius(720, 1280) == 12
    gt, near, far = (np.zeros((720, 1280), dtype=bool) for _ in range(3))
    gt[300], near[312], far[313] = True, True, True
    assert contour_accuracy(gt, near)[0] > 0.9
    assert contour_accuracy(gt, far)[0] < contour_accuracy(gt, near)[0]


def test_the_four_empty_cases_and_full_against_empty():
    empty, full = np.zeros((2, 20, 30), dtype=bool), np.ones((2, 20, 30), dtype=bool)
    half = empty.copy()
    half[:, :10] = True
    for gt, pred, j, f in [
        (empty, empty, 1, 1),
        (half, empty, 0, 0),
        (empty, half, 0, 0),
        (half, half, 1, 1),
        (full, empty, 0, 1),
        (full, half, 0.5, 0),
    ]:
        assert region_similarity(gt, pred).tolist() == [j, j]
        assert contour_accuracy(gt, pred).tolist() == [f, f]


def test_one_frame_and_no_frame():
    mask = np.eye(5, dtype=bool)
    assert score_clip(mask, mask)[0].shape == (1,)
    none = np.zeros((0, 5, 5), dtype=bool)
    assert score_clip(none, none)[1].shape == (0,)


def test_masks_that_are_not_masks_are_refused():
    mask = np.zeros((2, 4, 4), dtype=bool)
    with pytest.raises(TypeError, match="boolean"):
        score_clip(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        region_similarity(mask, mask[:, :3])
    with pytest.raises(ValueError, match="one pixel"):
        contour_accuracy(mask[:, :0], mask[:, :0])


def test_temporal_iou():
    a = np.array([1, 1, 0, 0], dtype=bool)
    b = np.array([0, 1, 1, 0], dtype=bool)
    assert temporal_iou(a, b) == 1 / 3
    assert temporal_iou(a, a) == 1.0
    assert temporal_iou(~a, a) == 0.0
    assert temporal_iou(np.zeros(4, dtype=bool), np.zeros(4, dtype=bool)) == 1.0
    with pytest.raises(ValueError, match="one length"):
        temporal_iou(a, b[:3])
