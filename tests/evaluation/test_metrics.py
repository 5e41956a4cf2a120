"""J and F against the official algorithm written down from its definition; every comparison is exact."""

from __future__ import annotations

import functools
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.official_davis import official_boundary, official_clip, official_radius
from evaluation.metrics import boundary_radius, contour_accuracy, region_similarity, score_clip, temporal_iou

SEAMS = [1, 2, 3, 8, 63, 64, 65, 66, 127, 128, 129, 192]


@pytest.fixture(params=["numba", "numpy"], autouse=True)
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORA_METRICS", request.param)
        yield request.param


def assert_official(gt, pred, void=None):
    j, f = score_clip(gt, pred, void)
    assert j.dtype == f.dtype == np.float64
    official_j, official_f = official_clip(gt, pred, void)
    assert np.array_equal(j, official_j)
    assert np.array_equal(f, official_f)
    return j, f


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
    corner, stripes = empty.copy(), empty.copy()
    corner[:, -1, -1] = True
    stripes[:, :: official_radius(height, width) + 2] = True
    return {
        "empty": empty,
        "full": ~empty,
        "border": border,
        "pixel": pixel,
        "corner": corner,
        "box": box,
        "stripes": stripes,
        "noise": rng.random((count, height, width)) < 0.5,
        "sparse": rng.random((count, height, width)) < 0.02,
        "blob": blobs(rng, count, height, width),
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (23, 1), (2, 2), (7, 5), (48, 64), (65, 33), (130, 140)])
def test_equal_to_the_official_code_on_every_kind_of_mask(size):
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    kinds = families(rng, 2, *size)
    pairs = list(itertools.product(kinds.values(), repeat=2))
    gt = np.concatenate([first for first, _ in pairs] * 2)
    moved = [np.roll(second, (1, 2), axis=(1, 2)) for _, second in pairs]
    assert_official(gt, np.concatenate([second for _, second in pairs] + moved))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.one_of(st.integers(1, 40), st.sampled_from(SEAMS)),
    width=st.one_of(st.integers(1, 40), st.sampled_from(SEAMS)),
    seed=st.integers(0, 2**32 - 1),
    kinds=st.tuples(*[st.sampled_from(sorted(families(np.random.default_rng(0), 1, 2, 2)))] * 3),
    shift=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    void=st.sampled_from(["none", "clip", "frame"]),
)
def test_equal_to_the_official_code_on_drawn_masks(height, width, seed, kinds, shift, void):
    masks = families(np.random.default_rng(seed), 3, height, width)
    gt, pred, hidden = (masks[kind] for kind in kinds)
    pred = np.roll(pred, shift, axis=(1, 2))
    if void == "none":
        assert_official(gt, pred)
    elif void == "clip":
        assert_official(gt, pred, hidden)
    else:
        scores = score_clip(gt, pred, hidden[0])
        expected = official_clip(gt, pred, np.broadcast_to(hidden[0], gt.shape))
        assert np.array_equal(scores, expected)
        assert np.array_equal(scores[0], region_similarity(gt, pred, hidden[0]))
        assert np.array_equal(scores[1], contour_accuracy(gt, pred, hidden[0]))


def scores_of_all_pairs(masks):
    """(J, F), float64 [n, n] each, of every ordered pair of n masks, counted pixel by pixel from the definition.

    Shares nothing with the code under test: plain loops over a mask's pixels, then matrix products over all pairs.
    """
    n, height, width = masks.shape
    edge, near = np.zeros((2, n, height, width), dtype=bool)
    for y, x in itertools.product(range(height), range(width)):
        neighbours = {(y, x + 1), (y + 1, x), (y + 1, x + 1)}
        inside = [spot for spot in neighbours if spot[0] < height and spot[1] < width]
        edge[:, y, x] = np.any([masks[:, y, x] != masks[:, v, u] for v, u in inside], axis=0) if inside else False
    radius = boundary_radius(height, width)
    for y, x, v, u in itertools.product(range(height), range(width), range(height), range(width)):
        if (y - v) ** 2 + (x - u) ** 2 <= radius**2:
            near[:, y, x] |= edge[:, v, u]
    flat, edge, near = (maps.reshape(n, -1).astype(np.int64) for maps in (masks, edge, near))
    area, length = flat.sum(axis=1), edge.sum(axis=1)
    both = flat @ flat.T
    union = area[:, None] + area[None, :] - both
    j = np.where(union == 0, 1.0, both / np.maximum(union, 1))
    recall = (edge @ near.T) / np.maximum(length, 1)[:, None]
    precision = (near @ edge.T) / np.maximum(length, 1)[None, :]
    f = 2 * precision * recall / np.where(precision + recall == 0, 1, precision + recall)
    one_empty = (length[:, None] == 0) != (length[None, :] == 0)
    neither = (length[:, None] == 0) & (length[None, :] == 0)
    return j, np.where(neither, 1.0, np.where(one_empty, 0.0, f))


@pytest.mark.parametrize("size", list(itertools.product([1, 2, 3], repeat=2)))
def test_all_pairs_of_masks_up_to_three_by_three(size):
    masks = np.array(list(itertools.product([False, True], repeat=size[0] * size[1]))).reshape(-1, *size)
    n = len(masks)
    j, f = score_clip(np.repeat(masks, n, axis=0), np.tile(masks, (n, 1, 1)))
    expected_j, expected_f = scores_of_all_pairs(masks)
    assert np.array_equal(j.reshape(n, n), expected_j)
    assert np.array_equal(f.reshape(n, n), expected_f)


def test_the_two_references_agree():
    masks = np.random.default_rng(3).random((12, 5, 6)) < 0.4
    j, f = scores_of_all_pairs(masks)
    official = official_clip(np.repeat(masks, 12, axis=0), np.tile(masks, (12, 1, 1)))
    assert np.array_equal((j.ravel(), f.ravel()), official)


@pytest.mark.parametrize("column", [0, 61, 62, 63, 64, 126, 127])
def test_small_patterns_across_the_seams_of_words(column):
    rng = np.random.default_rng(column)
    gt, pred = np.zeros((2, 200, 6, 130), dtype=bool)
    gt[:, 1:4, column : column + 3] = rng.random((200, 3, 3)) < 0.5
    near = max(column + rng.integers(-3, 4), 0)
    pred[:, 2:5, near : near + 3] = (rng.random((200, 3, 3)) < 0.5)[..., : 130 - near]
    assert_official(gt, pred)
    assert_official(gt.transpose(0, 2, 1), pred.transpose(0, 2, 1))


def test_full_video_sizes():
    rng = np.random.default_rng(1)
    kinds = families(rng, 1, 480, 854)
    gt = np.concatenate([*kinds.values(), *[kinds["blob"]] * len(kinds)])
    pred = np.concatenate([np.roll(mask, (9, -14), axis=(1, 2)) for mask in kinds.values()] * 2)
    assert_official(gt, pred, np.roll(kinds["blob"], 40, axis=2).repeat(len(gt), axis=0))
    big = families(rng, 1, 720, 1280)["blob"]
    assert_official(big, np.roll(big, 11, axis=2))


@functools.lru_cache(maxsize=1)
def clip_4k():
    """(gt, pred, official scores); the official code takes a second on it."""
    rng = np.random.default_rng(2)
    blob = np.kron(blobs(rng, 1, 540, 960), np.ones((4, 4), dtype=bool))
    specks = rng.random((1, 2160, 3840)) < 0.0003
    gt, pred = np.concatenate([blob, specks]), np.concatenate([np.roll(blob, 25, axis=2), blob])
    return gt, pred, official_clip(gt, pred)


def test_a_4k_frame():
    gt, pred, expected = clip_4k()
    assert np.array_equal(score_clip(gt, pred), expected)


@functools.lru_cache(maxsize=3)
def clip_with_a_wide_disk(height, width):
    rng = np.random.default_rng(height)
    gt, pred = (rng.random((2, height, width)) < np.array([0.0005, 0.02])[:, None, None] for _ in range(2))
    return gt, pred, official_clip(gt, pred)


@pytest.mark.parametrize("size", [(2, 8100), (8100, 2), (3, 16200)])
def test_a_disk_wider_than_a_word(size):
    assert boundary_radius(*size) > 64
    gt, pred, expected = clip_with_a_wide_disk(*size)
    assert 0 < expected[1].min() < 1
    assert np.array_equal(score_clip(gt, pred), expected)


@pytest.mark.parametrize("size", [(4, 16256), (4, 4096), (20, 128), (20, 100)])
def test_the_end_of_a_row_is_not_near_the_start_of_the_next(size):
    gt, pred = np.zeros((2, *size), dtype=bool)
    gt[1, -3], pred[2, 3] = True, True
    for first, second in ((gt, pred), (pred, gt), (gt.T, pred.T)):
        assert contour_accuracy(first, second) == 0


def test_many_components():
    rng = np.random.default_rng(4)
    gt = np.kron(rng.random((2, 60, 80)) < 0.3, np.ones((1, 4, 4), dtype=bool))
    pred = np.roll(gt, (2, 3), axis=(1, 2)) & (rng.random(gt.shape) < 0.98)
    assert_official(gt, pred)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05])
def test_contours_that_are_near_nothing(density):
    """Specks far from each other: every row of the disk has to be looked at."""
    rng = np.random.default_rng(5)
    gt, pred = rng.random((2, 2, 300, 400)) < density
    pred[:, :150] = False
    assert_official(gt, pred)
    upright, level = np.zeros((2, 1, 300, 400), dtype=bool)
    upright[:, :, ::13], level[:, 6::13] = True, True
    assert_official(upright, np.roll(upright, 6, axis=2))
    assert_official(level, np.roll(level, 6, axis=1))
    assert_official(upright, level)


def test_the_radius_matches_exactly_up_to_its_edge():
    """Two one-row stripes 12 pixels apart match at 720p (radius 12), 13 apart do not."""
    assert boundary_radius(720, 1280) == 12
    gt, near, far = (np.zeros((720, 1280), dtype=bool) for _ in range(3))
    gt[300], near[312], far[313] = True, True, True
    assert contour_accuracy(gt, near)[0] > 0.9
    assert contour_accuracy(gt, far)[0] < contour_accuracy(gt, near)[0]


def test_the_disk_is_round():
    """At 720p, (dy, dx) = (5, 10) is inside the disk of radius 12 (125 <= 144), (6, 11) is not (157)."""
    gt, inside, outside = np.zeros((3, 720, 1280), dtype=bool)
    gt[300, 600], inside[305, 610], outside[306 + 3, 611 + 3] = True, True, True
    assert contour_accuracy(gt, inside)[0] > 0
    assert contour_accuracy(gt, outside)[0] == 0
    assert_official(np.stack([gt, gt]), np.stack([inside, outside]))


def test_the_radius_is_the_official_one_for_every_size():
    for height, width in itertools.product([1, 2, 99, 100, 240, 360, 480, 720, 1080, 2160, 4320], repeat=2):
        assert boundary_radius(height, width) == official_radius(height, width)


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


def test_void_pixels_leave_a_hole_with_a_boundary():
    """A void strip through two equal boxes changes neither score; over a difference it hides it."""
    gt = np.zeros((40, 50), dtype=bool)
    gt[10:30, 10:40] = True
    pred, void = gt.copy(), np.zeros_like(gt)
    pred[20, 45] = True
    void[:, 44:47] = True
    assert score_clip(gt, pred)[0][0] < 1
    assert score_clip(gt, pred, void) == (1, 1)
    void[:, 20:23] = True
    holed = gt & ~void
    assert official_boundary(holed).sum() > official_boundary(gt).sum()
    assert score_clip(gt, pred, void) == score_clip(holed, pred & ~void) == (1, 1)
    assert score_clip(gt, pred, np.ones_like(gt)) == (1, 1)


def test_one_frame_and_no_frame():
    mask = np.eye(5, dtype=bool)
    assert score_clip(mask, mask)[0].shape == (1,)
    none = np.zeros((0, 5, 5), dtype=bool)
    assert score_clip(none, none)[1].shape == (0,)
    assert score_clip(none, none, none)[0].shape == (0,)


def test_arrays_in_any_memory_order_and_read_only():
    rng = np.random.default_rng(6)
    gt, pred = rng.random((2, 3, 70, 90)) < 0.1
    expected = official_clip(gt, pred)
    wide = np.zeros((3, 140, 180), dtype=bool)
    wide[:, ::2, ::2] = gt
    for other in (np.asfortranarray(gt), wide[:, ::2, ::2], gt[:, :, ::-1][:, :, ::-1]):
        assert np.array_equal(score_clip(other, pred), expected)
    gt.setflags(write=False)
    assert np.array_equal(score_clip(gt, pred), expected)
    same = np.broadcast_to(gt[0], gt.shape)
    assert np.array_equal(score_clip(same, pred), official_clip(same, pred))


def test_masks_that_are_not_masks_are_refused():
    mask = np.zeros((2, 4, 4), dtype=bool)
    with pytest.raises(TypeError, match="boolean"):
        score_clip(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        region_similarity(mask, mask[:, :3])
    with pytest.raises(ValueError, match="one pixel"):
        contour_accuracy(mask[:, :0], mask[:, :0])
    with pytest.raises(TypeError, match="void must be boolean"):
        score_clip(mask, mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="void must have the shape"):
        score_clip(mask, mask, mask[:, :3])


def test_temporal_iou():
    a = np.array([1, 1, 0, 0], dtype=bool)
    b = np.array([0, 1, 1, 0], dtype=bool)
    assert temporal_iou(a, b) == 1 / 3
    assert temporal_iou(a, a) == 1.0
    assert temporal_iou(~a, a) == 0.0
    assert temporal_iou(np.zeros(4, dtype=bool), np.zeros(4, dtype=bool)) == 1.0
    with pytest.raises(ValueError, match="one length"):
        temporal_iou(a, b[:3])
