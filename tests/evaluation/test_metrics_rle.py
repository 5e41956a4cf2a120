"""J and F from run lengths against the same masks as pixels, encoded by pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from benchmarks.official_davis import official_clip
from evaluation.metrics import score_clip_rle


@pytest.fixture(params=["numba", "numpy"], autouse=True)
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORA_METRICS", request.param)
        yield request.param


def compressed(mask):
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def as_text(mask):
    rle = compressed(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def listed(mask):
    """Plain run lengths, counted here: column by column, background first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


FORMS = {"bytes": compressed, "text": as_text, "list": listed}


def draw(kind, rng, height, width):
    if kind == "boxes":
        mask = np.zeros((height, width), dtype=bool)
        for _ in range(3):
            y, x = rng.integers(height), rng.integers(width)
            mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
        return mask
    share = {"empty": 0.0, "full": 1.0, "noise": 0.5, "specks": 0.01}[kind]
    return rng.random((height, width)) < share


KINDS = st.sampled_from(["boxes", "empty", "full", "noise", "specks"])
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    height=SIDES,
    width=SIDES,
    seed=st.integers(0, 2**32 - 1),
    frames=st.lists(st.tuples(*[st.tuples(KINDS, st.sampled_from([*FORMS]))] * 2), min_size=1, max_size=4),
)
def test_equal_to_the_pixels(height, width, seed, frames):
    rng = np.random.default_rng(seed)
    masks = [[draw(kind, rng, height, width) for kind, _ in pair] for pair in frames]
    rle = [[FORMS[form](mask) for mask, (_, form) in zip(*both)] for both in zip(masks, frames)]
    gt, pred = (np.stack(side) for side in zip(*masks))
    assert np.array_equal(score_clip_rle(*zip(*rle)), official_clip(gt, pred))


def test_video_sizes():
    rng = np.random.default_rng(0)
    for height, width in ((480, 854), (720, 1280)):
        coarse = rng.random((2, 3, height // 10, width // 10)) < 0.2
        gt, pred = np.zeros((2, 3, height, width), dtype=bool)
        gt[:, :, : width // 10 * 10] = np.kron(coarse[0], np.ones((10, 10), dtype=bool))
        pred[:, 3:, 2 : 2 + width // 10 * 10] = np.kron(coarse[1], np.ones((10, 10), dtype=bool))[:, :-3, : width - 2]
        scores = score_clip_rle([compressed(mask) for mask in gt], [compressed(mask) for mask in pred])
        assert np.array_equal(scores, official_clip(gt, pred))


def test_runs_that_cross_columns_and_runs_of_no_length():
    """One run over several whole columns; a zero inside joins its neighbours, one at the head lets the mask begin."""
    flat = np.zeros(35, dtype=bool)
    flat[3:24] = True
    gt = flat.reshape((5, 7), order="F")
    pred = np.ones((5, 7), dtype=bool)
    expected = official_clip(gt[None], pred[None])
    for counts in ([3, 21, 11], [3, 10, 0, 11, 11], [3, 21, 5, 0, 6], [0, 0, 3, 21, 11, 0]):
        for ones in ([0, 35], [0, 20, 0, 15, 0]):
            rle = ([{"size": [5, 7], "counts": counts}], [{"size": [5, 7], "counts": ones}])
            assert np.array_equal(score_clip_rle(*rle), expected)


def test_no_mask_is_an_empty_mask():
    mask = np.zeros((6, 9), dtype=bool)
    mask[2:4, 3:8] = True
    empty = np.zeros_like(mask)
    j, f = score_clip_rle([None, compressed(mask), None, compressed(empty)], [None, None, compressed(mask), None])
    expected = official_clip(np.stack([empty, mask, empty, empty]), np.stack([empty, empty, mask, empty]))
    assert np.array_equal((j, f), expected)
    assert np.array_equal(score_clip_rle([None, None], [None, None]), np.ones((2, 2)))
    assert score_clip_rle([], [])[0].shape == (0,)


def test_sizes_must_agree():
    a, b = compressed(np.ones((4, 6))), compressed(np.ones((6, 4)))
    with pytest.raises(ValueError, match=r"4 x 6 \(ground truth, frame 0\) and 6 x 4 \(prediction, frame 1\)"):
        score_clip_rle([a, a], [None, b])
    with pytest.raises(ValueError, match="2 and 1 masks"):
        score_clip_rle([a, a], [a])


GOOD = compressed(np.eye(30))["counts"]


@pytest.mark.parametrize(
    "counts, message",
    [
        (GOOD[:-1], "prediction, frame 1: 'counts'"),
        ([30, 870, 1], "fill 901 pixels, not 30 x 30 = 900"),
        (b"", "are empty"),
        ([], "are empty"),
        (GOOD[:1] + b"\n" + GOOD[2:], "not a compressed run-length string"),
        (GOOD[:1] + b"\xff" + GOOD[2:], "not a compressed run-length string"),
        ("ä", "not a compressed run-length string"),
        (b"P", "not a compressed run-length string"),
        (b"o" * 40 + b"0", "not a compressed run-length string"),
        ([10, 20], "fill 30 pixels"),
        ([905, -10, 5], "some are negative"),
        ([2**62, 2**62, 2**62, 2**62, 900], "the entry is damaged"),
        ([1.5, 898.5], "integers only"),
        (None, "must be a string, bytes or a list, not NoneType"),
        (900, "must be a string, bytes or a list, not int"),
    ],
)
def test_malformed_counts_are_refused(counts, message):
    fine = {"size": [30, 30], "counts": GOOD}
    with pytest.raises(ValueError, match=message):
        score_clip_rle([fine, fine], [fine, {"size": [30, 30], "counts": counts}])


@pytest.mark.parametrize("mask", [{}, {"size": [30]}, {"size": [0, 4], "counts": b""}, {"size": "ab"}, "rle"])
def test_a_mask_without_a_size_is_refused(mask):
    with pytest.raises(ValueError, match="ground truth, frame 0: a run-length mask needs 'size'"):
        score_clip_rle([mask], [None])
