"""Resizing against Pillow itself: no byte may differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils import resize
from utils.resize import resize_pictures

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIDES = st.integers(1, 90)


def pictures(height: int, width: int, harsh: bool, count: int = 2) -> np.ndarray:
    """Noise [T, H, W, 3]; harsh noise is black and white, which makes a bicubic filter leave 0..255."""
    noise = np.random.default_rng([height, width]).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return np.where(noise > 127, 255, 0).astype(np.uint8) if harsh else noise


def by_pillow(frames: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), PILLOW[name])) for frame in frames])


def ours(frames: np.ndarray, *arguments) -> np.ndarray:
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    before = tensor.clone()
    resized = resize_pictures(tensor, *arguments)
    assert resized.dtype == torch.uint8 and resized.is_contiguous() and tensor.equal(before)
    return resized.permute(0, 2, 3, 1).numpy()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(sorted(PILLOW)), st.booleans())
@example(462, 127, 102, 54, "bilinear", False)  # so tall that Pillow 13 shrinks columns first
@example(1, 300, 300, 1, "bicubic", True)
@example(300, 2, 1, 200, "bilinear", True)
def test_equals_pillow(height, width, new_height, new_width, name, harsh):
    frames = pictures(height, width, harsh)
    np.testing.assert_array_equal(
        ours(frames, new_height, new_width, name), by_pillow(frames, new_height, new_width, name)
    )


@pytest.mark.parametrize("size", [(720, 1280), (480, 854), (640, 360)])
@pytest.mark.parametrize("name, side, longest", [("bilinear", 1024, True), ("bicubic", 224, False)])
def test_equals_pillow_on_the_sizes_of_videos(size, name, side, longest):
    base = max(size) if longest else min(size)
    new = (side * size[0] // base, side * size[1] // base)
    frames = pictures(*size, harsh=True, count=1)
    np.testing.assert_array_equal(ours(frames, *new, name), by_pillow(frames, *new, name))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_a_window_is_cut_from_the_whole(height, width, new_height, new_width, data):
    top, left = data.draw(st.integers(0, new_height - 1)), data.draw(st.integers(0, new_width - 1))
    rows, columns = data.draw(st.integers(1, new_height - top)), data.draw(st.integers(1, new_width - left))
    frames = pictures(height, width, harsh=True)
    whole = by_pillow(frames, new_height, new_width, "bicubic")
    np.testing.assert_array_equal(
        ours(frames, new_height, new_width, "bicubic", (top, left, rows, columns)),
        whole[:, top : top + rows, left : left + columns],
    )


@pytest.mark.parametrize("height", [48, 60])
def test_a_foreign_pillow_is_called_itself(monkeypatch, height):
    """With another kernel than ours inside Pillow, our sums are never its result."""
    monkeypatch.setitem(resize._FILTERS, "bilinear", (lambda x: resize._triangle(0.9 * x), 1.0))
    for cache in (resize._rows_first, resize._weights):
        cache.cache_clear()
    try:
        frames = pictures(60, 70, harsh=False)
        expected = by_pillow(frames, height, 33, "bilinear")
        np.testing.assert_array_equal(ours(frames, height, 33, "bilinear"), expected)
        window = ours(frames, height, 33, "bilinear", (3, 5, 20, 21))
        np.testing.assert_array_equal(window, expected[:, 3:23, 5:26])
        assert resize._rows_first((60, 70), (height, 33), "bilinear") is None
    finally:
        for cache in (resize._rows_first, resize._weights):
            cache.cache_clear()


def test_wrong_arguments_are_refused():
    frames = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for wrong in (frames.float(), frames[0], frames[:, :, :0], frames[:0]):
        with pytest.raises(ValueError, match="uint8"):
            resize_pictures(wrong, 4, 4, "bilinear")
    with pytest.raises(ValueError, match="bilinear, bicubic"):
        resize_pictures(frames, 4, 4, "nearest")
    with pytest.raises(ValueError, match="0 x 4"):
        resize_pictures(frames, 0, 4, "bilinear")
    for window in ((0, 0, 5, 4), (1, 0, 4, 4), (-1, 0, 2, 2), (0, 0, 0, 1)):
        with pytest.raises(ValueError, match="window"):
            resize_pictures(frames, 4, 4, "bilinear", window)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PILLOW)
def test_the_same_bytes_on_a_gpu(name):
    frames = pictures(180, 320, harsh=True)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for new in ((144, 256), (56, 99), (300, 500)):
        resized = resize_pictures(tensor.cuda(), *new, name)
        assert resized.is_cuda
        np.testing.assert_array_equal(resized.cpu().permute(0, 2, 3, 1).numpy(), by_pillow(frames, *new, name))
