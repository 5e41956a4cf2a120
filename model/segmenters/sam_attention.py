"""Attention with decomposed relative positions, computed without a score-sized bias where that is cheaper.

SAM adds to the score of query q and key k the products ``q . h[qy - ky]`` and ``q . w[qx - kx]`` (Li et al. 2022,
"MViTv2", section 4.1). Three exact ways to do so are here; they differ in rounding alone:

* "fold": the products divided by the scale become further channels of the query, and one-hot rows and columns the same
  channels of the key. No bias exists, and any fused kernel applies. Right for windows, whose sides are short.
* "bias": the sum of the products as a dense contiguous mask, for few images at a time.
* "flex": the products are looked up inside a compiled kernel; CUDA only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

BIAS_BYTES = 1 << 30
"""The "bias" route takes as many images at once as keep their masks below this."""

_ALIGNMENT = 8
"""Fused kernels want head widths in multiples of this."""

_broken_flex: list[Exception] = []
"""Why flex_attention could not be compiled in this process; empty while it could."""


@functools.lru_cache(maxsize=64)
def relative_index(side: int, device: torch.device) -> Tensor:
    """int64 [side, side]: the row of a relative-position table that belongs to query i and key j."""
    with torch.inference_mode(False):
        steps = torch.arange(side, device=device)
        return steps[:, None] - steps[None, :] + (side - 1)


@functools.lru_cache(maxsize=64)
def _one_hots(height: int, width: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[height * width, 1, channels]: one-hot row, one-hot column, zeros."""
    with torch.inference_mode(False):
        hots = torch.zeros(height, width, 1, channels, dtype=dtype, device=device)
        hots[:, :, 0, :height] = torch.eye(height, dtype=dtype, device=device)[:, None]
        hots[:, :, 0, height : height + width] = torch.eye(width, dtype=dtype, device=device)[None]
        return hots.view(height * width, 1, channels)


def relative_products(
    query: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int], factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Products of queries with the relative positions of rows and of columns.

    Args:
        query: [B, h*w, heads, d].
        rel_pos_h, rel_pos_w: tables [2h - 1, d] and [2w - 1, d].
        size: (h, w).
        factor: multiplies the tables, in float32, before they are rounded to the query's type.

    Returns:
        [B, h, w, heads, h] and [B, h, w, heads, w], strided as the products came.
    """
    height, width = size
    if factor != 1.0:
        rel_pos_h, rel_pos_w = rel_pos_h.float() * factor, rel_pos_w.float() * factor
    rows = rel_pos_h.to(query.dtype)[relative_index(height, query.device)]
    columns = rel_pos_w.to(query.dtype)[relative_index(width, query.device)]
    grid = query.unflatten(1, size)
    return (
        torch.einsum("byxnd,ykd->byxnk", grid, rows),
        torch.einsum("byxnd,xkd->byxnk", grid, columns),
    )


def attend_plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without positions: [B, S, heads, d] three times to [B, S, heads, d]."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attend_folded(
    query: Tensor, key: Tensor, value: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """The "fold" route.

    Args:
        query, key, value: [B, h*w, heads, d].
        rel_pos_h, rel_pos_w, size: see :func:`relative_products`.

    Returns:
        [B, h*w, heads, d].
    """
    height, width = size
    batch, length, heads, dim = query.shape
    scale = dim**-0.5
    channels = dim + height + width
    channels += -channels % _ALIGNMENT
    rel_h, rel_w = relative_products(query, rel_pos_h, rel_pos_w, size, 1 / scale)
    wide_query = query.new_empty(batch, length, heads, channels)
    wide_query[..., :dim] = query
    tail = wide_query.unflatten(1, size)[..., dim:]
    tail[..., :height] = rel_h
    tail[..., height : height + width] = rel_w
    tail[..., height + width :] = 0
    wide_key = query.new_empty(batch, length, heads, channels)
    wide_key[..., :dim] = key
    wide_key[..., dim:] = _one_hots(height, width, channels - dim, query.dtype, query.device)
    # Flash kernels take one width for query, key and value.
    wide_value = F.pad(value, (0, channels - dim))
    wide_query, wide_key, wide_value = (part.transpose(1, 2) for part in (wide_query, wide_key, wide_value))
    attended = F.scaled_dot_product_attention(wide_query, wide_key, wide_value, scale=scale)
    return attended.transpose(1, 2)[..., :dim]


def attend_biased(
    query: Tensor, key: Tensor, value: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """The "bias" route; arguments and result as in :func:`attend_folded`."""
    batch, length, heads, _ = query.shape
    images = max(1, BIAS_BYTES // (heads * length * length * query.element_size()))
    parts = []
    for some_query, some_key, some_value in zip(query.split(images), key.split(images), value.split(images)):
        rel_h, rel_w = relative_products(some_query, rel_pos_h, rel_pos_w, size)
        # Written into place, since a sum would inherit the products' strides and be copied by the view below.
        bias = query.new_empty(some_query.shape[0], heads, *size, *size)
        rel_h, rel_w = rel_h.permute(0, 3, 1, 2, 4), rel_w.permute(0, 3, 1, 2, 4)
        torch.add(rel_h[..., :, None], rel_w[..., None, :], out=bias)
        some_query, some_key, some_value = (part.transpose(1, 2) for part in (some_query, some_key, some_value))
        mask = bias.view(-1, heads, length, length)
        attended = F.scaled_dot_product_attention(some_query, some_key, some_value, attn_mask=mask)
        parts.append(attended.transpose(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@functools.cache
def _flex_kernel() -> Callable[..., Tensor]:
    """``flex_attention`` compiled for fixed shapes."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _position_adder(rel_h: Tensor, rel_w: Tensor, width: int) -> Callable[..., Tensor]:
    """A score modifier that looks the products [1, heads, h*w, h] and [1, heads, h*w, w] up."""

    def add_positions(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rel_h[batch, head, query, key // width] + rel_w[batch, head, query, key % width]

    return add_positions


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """The "flex" route; arguments and result as in :func:`attend_folded`.

    One image after the other: 4096 tokens in 16 heads fill a GPU, and the kernel is compiled once for any batch.
    """
    rel_h, rel_w = relative_products(query, rel_pos_h, rel_pos_w, size)
    rel_h, rel_w = (part.flatten(1, 2).transpose(1, 2) for part in (rel_h, rel_w))
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    attended = []
    for index in range(query.shape[0]):
        image = slice(index, index + 1)
        add_positions = _position_adder(rel_h[image], rel_w[image], size[1])
        attended.append(_flex_kernel()(query[image], key[image], value[image], score_mod=add_positions))
    return torch.cat(attended).transpose(1, 2)


def attend_flex_or_biased(
    query: Tensor, key: Tensor, value: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """The "flex" route where it compiles, else the "bias" route, said once in the log."""
    if not _broken_flex:
        try:
            return attend_flex(query, key, value, rel_pos_h, rel_pos_w, size)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler, a driver or a toolkit may be missing in as many ways as there are
            _broken_flex.append(error)
            logger.warning(
                "flex_attention cannot be compiled here (%s: %s); SAM's global attention takes a dense bias instead, "
                "which is as exact and slower",
                type(error).__name__,
                str(error).strip().partition("\n")[0],
            )
    return attend_biased(query, key, value, rel_pos_h, rel_pos_w, size)
