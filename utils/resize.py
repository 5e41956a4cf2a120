"""Pillow's antialiased resize of 8-bit pictures, bit for bit, on any device.

Pillow resizes in two passes, one along rows and one along columns. Each is a weighted sum with weights of 22 fractional
bits in 32-bit integers, rounded and clamped to 0..255 before the next. Integer sums do not depend on their order, so
the same weights give the same bytes on a GPU. Which pass comes first does matter: rows up to Pillow 12, while later
versions decide by the sizes; the installed Pillow is asked once per pair of sizes. Source: Pillow's
``src/libImaging/Resample.c``.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_PRECISION_BITS = 22
"""Fractional bits of a weight: 32, less 8 of the pixel, less 2 of headroom for negative lobes."""


def _triangle(x: np.ndarray) -> np.ndarray:
    """Bilinear filter."""
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _keys(x: np.ndarray) -> np.ndarray:
    """Bicubic filter with a = -0.5, in Pillow's order of operations."""
    x = np.abs(x)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_keys, 2.0)}
"""Name -> (kernel, its half width in pixels when enlarging)."""

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_PROBE_PIXELS = 1 << 14
"""Least number of result pixels that are compared to learn the order of the passes; noise shows it in a few hundred."""

Window = tuple[int, int, int, int]


@functools.lru_cache(maxsize=256)
def _weights(size_in: int, size_out: int, filter_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels make an output pixel, and how much of each.

    Returns:
        Source indices int64 [K, size_out] and weights int32 [K, size_out] in units of 2**-22; unused taps weigh 0.
    """
    kernel, half_width = _FILTERS[filter_name]
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = half_width * stretch
    centre = (np.arange(size_out) + 0.5) * scale
    # Casting to an integer in C truncates; below zero it is clamped anyway.
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centre + support + 0.5), size_in).astype(np.int64)
    taps = np.arange(int((last - first).max()))[:, None]
    used = taps < (last - first)
    weights = np.where(used, kernel((taps + first - centre + 0.5) * (1.0 / stretch)), 0.0)
    total = np.zeros(size_out)
    for row in weights:  # one after the other, as Pillow adds them; NumPy's own sum goes in pairs
        total += row
    weights = np.divide(weights, total, out=weights, where=total != 0) * (1 << _PRECISION_BITS)
    rounded = np.trunc(weights + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    return np.minimum(first + taps, size_in - 1), rounded


def _pass(frames: Tensor, dim: int, size_out: int, start: int, length: int, filter_name: str) -> Tensor:
    """Resize one axis of uint8 [T, C, H, W] to ``size_out``, keeping only ``length`` results from ``start``."""
    size_in = frames.shape[dim]
    if size_in == size_out:
        return frames.narrow(dim, start, length)
    indices, weights = _weights(size_in, size_out, filter_name)
    kept = slice(start, start + length)
    places = torch.from_numpy(indices[:, kept]).to(frames.device)
    factors = torch.from_numpy(weights[:, kept]).to(frames.device)
    shape = [1] * frames.ndim
    shape[dim] = length
    total: Tensor | None = None
    for place, factor in zip(places, factors):
        term = frames.index_select(dim, place) * factor.view(shape)  # uint8 times int32 is int32
        total = term.add_(1 << (_PRECISION_BITS - 1)) if total is None else total.add_(term)
    return total.bitwise_right_shift_(_PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


def _two_passes(frames: Tensor, size: tuple[int, int], filter_name: str, window: Window, rows_first: bool) -> Tensor:
    """The window of uint8 [T, C, H, W] resized to ``size``; ``rows_first`` is the order of the passes."""
    (height, width), (top, left, rows, columns) = size, window
    if rows_first:
        frames = _pass(frames, 3, width, left, columns, filter_name)
        return _pass(frames, 2, height, top, rows, filter_name)
    frames = _pass(frames, 2, height, top, rows, filter_name)
    return _pass(frames, 3, width, left, columns, filter_name)


def _with_pillow(frames: Tensor, size: tuple[int, int], filter_name: str) -> Tensor:
    """uint8 [T, C, H, W] resized by Pillow, one channel after the other, on the CPU."""
    planes = [
        np.array(Image.fromarray(plane).resize(size[::-1], _PILLOW[filter_name]))
        for plane in frames.cpu().flatten(0, 1).contiguous().numpy()
    ]
    return torch.from_numpy(np.stack(planes)).unflatten(0, frames.shape[:2])


@functools.lru_cache(maxsize=256)
def _rows_first(size_in: tuple[int, int], size_out: tuple[int, int], filter_name: str) -> bool | None:
    """Whether the installed Pillow resizes rows before columns for these sizes; None if it does neither.

    Pictures of noise are resized both ways and compared with Pillow's result.
    """
    count = -(-_PROBE_PIXELS // (size_out[0] * size_out[1]))
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (count, 1, *size_in), dtype=np.uint8))
    expected = _with_pillow(frames, size_out, filter_name)
    for rows_first in (True, False):
        if _two_passes(frames, size_out, filter_name, (0, 0, *size_out), rows_first).equal(expected):
            return rows_first
    return None


def resize_pictures(frames: Tensor, height: int, width: int, filter_name: str, window: Window | None = None) -> Tensor:
    """Resize pictures as ``PIL.Image.resize`` does, with equal bytes, on the device where they are.

    Should the installed Pillow compute otherwise than its source says (Pillow-SIMD, for one), it is called itself, on
    the CPU: the bytes are equal in any case.

    Args:
        frames: uint8 [T, C, H, W], contiguous or not.
        height, width: size of the whole result, pixels.
        filter_name: "bilinear" or "bicubic".
        window: (top, left, height, width) of the part of the result that is wanted; only that is computed.

    Returns:
        uint8 [T, C, height, width], or the window of it.

    Raises:
        ValueError: not uint8 [T, C, H, W], an unknown filter, a size below 1, or a window outside the result.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or 0 in frames.shape:
        raise ValueError(f"pictures must be uint8 [T, C, H, W], not {frames.dtype} {list(frames.shape)}")
    if filter_name not in _FILTERS:
        raise ValueError(f"the filter {filter_name!r} is unknown; choose one of {', '.join(_FILTERS)}")
    if min(height, width) < 1:
        raise ValueError(f"a picture cannot be resized to {height} x {width}")
    top, left, rows, columns = window = window or (0, 0, height, width)
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
        raise ValueError(f"the window {window} is not inside {height} x {width}")
    rows_first = True
    if frames.shape[2:] != (height, width):
        rows_first = _rows_first(tuple(frames.shape[2:]), (height, width), filter_name)
    if rows_first is None:
        whole = _with_pillow(frames, (height, width), filter_name).to(frames.device)
        return whole[:, :, top : top + rows, left : left + columns].contiguous()
    return _two_passes(frames.contiguous(), (height, width), filter_name, window, rows_first).contiguous()
