"""SAM's image encoder run at the speed of the hardware, on the weights of ``transformers``' ``SamVisionEncoder``.

The arithmetic is that of the module itself, rearranged where the result stays equal: attention without score-sized
biases (:mod:`model.segmenters.sam_attention`), no linear layer on the padding of windows, and no window that holds only
padding of the picture. Rounding differs, by about 1e-6 of the embeddings' scale in float32. No gradient is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from model.segmenters.sam_attention import attend_biased, attend_flex_or_biased, attend_folded, attend_plain

ROUTES = {"cuda": (attend_folded, attend_flex_or_biased)}
"""Device type -> attention of windows and of global layers; elsewhere a bias for both, which is cheapest on a CPU."""


class _Windows(NamedTuple):
    """Where the tokens of a grid are in its windows."""

    tokens: Tensor
    """int64 [W * n * n]: the token in each slot; any token in a slot of padding."""
    padding: Tensor
    """int64 [P]: the slots of padding."""
    slots: Tensor
    """int64 [h * w]: the slot of each token."""
    count: int
    """W."""


@functools.lru_cache(maxsize=32)
def _windows(height: int, width: int, side: int, device: torch.device) -> _Windows:
    """Windows of ``side`` x ``side`` over a grid that is padded right and below."""
    rows, columns = -(-height // side), -(-width // side)
    with torch.inference_mode(False):
        places = torch.full((rows * side, columns * side), -1)
        places[:height, :width] = torch.arange(height * width).view(height, width)
        places = places.view(rows, side, columns, side).transpose(1, 2).flatten()
        slots = torch.empty(height * width, dtype=torch.int64)
        filled = (places >= 0).nonzero()[:, 0]
        slots[places[filled]] = filled
        padding = (places < 0).nonzero()[:, 0]
        parts = (part.to(device) for part in (places.clamp(min=0), padding, slots))
        return _Windows(*parts, rows * columns)


def _embed(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Patches with their positions: [B, 3, S, S] to [B, h, w, D], contiguous, as the layers read them best."""
    hidden = encoder.patch_embed(pixels)
    return (hidden if encoder.pos_embed is None else hidden + encoder.pos_embed).contiguous()


def _window_parts(layer: nn.Module, hidden: Tensor, windows: _Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise, project and divide into windows: [B, h, w, D] to query, key and value [B * W, n * n, heads, d].

    Padding is zero after the normalisation, so what the projection makes of it is its bias.
    """
    attention, side = layer.attn, layer.window_size
    projected = attention.qkv(layer.layer_norm1(hidden)).flatten(1, 2).index_select(1, windows.tokens)
    if len(windows.padding):
        bias = attention.qkv.bias
        projected[:, windows.padding] = projected.new_zeros(()) if bias is None else bias.to(projected.dtype)
    projected = projected.view(len(hidden) * windows.count, side * side, 3, attention.num_attention_heads, -1)
    return projected.unbind(2)


def _global_parts(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise and project: [B, h, w, D] to query, key and value [B, h * w, heads, d]."""
    projected = layer.attn.qkv(layer.layer_norm1(hidden)).flatten(1, 2)
    return projected.unflatten(-1, (3, layer.attn.num_attention_heads, -1)).unbind(2)


def _finish(layer: nn.Module, hidden: Tensor, attended: Tensor, slots: Tensor | None) -> Tensor:
    """Undo the windows, project, and run the second half of a layer.

    Args:
        layer: a ``SamVisionLayer``.
        hidden: [B, h, w, D], the layer's input.
        attended: [B * W, n * n, heads, d], or [B, h * w, heads, d] in a global layer.
        slots: where the tokens are in the windows; None in a global layer.

    Returns:
        [B, h, w, D].
    """
    attended = attended.flatten(2)
    if slots is not None:
        attended = attended.reshape(len(hidden), -1, attended.shape[-1]).index_select(1, slots)
    hidden = hidden + layer.attn.proj(attended).view_as(hidden)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled; layers of one shape share the result."""
    return torch.compile(function)


def _fingerprint(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Changes when a tensor is replaced, moved, cast or written to in place.

    The reference to the storage keeps its identity from being given to another one, yet not its memory. Writing
    through ``.data`` goes unnoticed by PyTorch, hence here.
    """
    return tuple(
        (StorageWeakRef(t.untyped_storage()), t.storage_offset(), t.dtype, 0 if t.is_inference() else t._version)
        for t in tensors
    )


class FastEncoder:
    """Embeds frames with the weights of a ``SamVisionEncoder``, without gradients.

    What it remembers of the weights is dropped when they change, and never copied or stored. Changes made through
    ``parameter.data`` cannot be seen: call :meth:`forget` after them.

    Attributes:
        routes: as :data:`ROUTES`.
        compile: ``torch.compile`` the parts of a layer around its attention. Costs up to a minute, once.
    """

    def __init__(self) -> None:
        self.routes = ROUTES
        self.compile = False
        self._padding: tuple[tuple[Any, ...], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files get the settings alone."""
        return {**self.__dict__, "_padding": None}

    def forget(self) -> None:
        """Drop what is remembered of the weights."""
        self._padding = None

    @torch.no_grad()
    def __call__(self, encoder: nn.Module, pixels: Tensor, resized_size: tuple[int, int] | None = None) -> Tensor:
        """Embed frames.

        Args:
            encoder: a ``SamVisionEncoder``.
            pixels: [F, 3, S, S] in the dtype of the weights.
            resized_size: (h, w) of the picture in the square, if beyond it all pixels are zero. Until the first global
                layer, windows of nothing else do not depend on the picture; they are computed once per weights.

        Returns:
            [F, C, S / patch, S / patch].
        """
        hidden, layers = _embed(encoder, pixels), encoder.layers
        early, kept = self._picture_part(encoder, hidden, resized_size)
        if early:
            picture = hidden[:, : kept[0], : kept[1]]
            for layer in layers[:early]:
                picture = self._layer(layer, picture)
            hidden = self._padding_states(encoder, early).repeat(len(pixels), 1, 1, 1)
            hidden[:, : kept[0], : kept[1]] = picture
        for layer in layers[early:]:
            hidden = self._layer(layer, hidden)
        return encoder.neck(hidden)

    def _picture_part(
        self, encoder: nn.Module, hidden: Tensor, resized_size: tuple[int, int] | None
    ) -> tuple[int, tuple[int, int]]:
        """How many layers may leave out padding, and the (h, w) of the grid that they compute; 0 for none."""
        size = (hidden.shape[1], hidden.shape[2])
        sides = [layer.window_size for layer in encoder.layers]
        early = sides.index(0) if 0 in sides else len(sides)
        if resized_size is None or early == 0 or len(set(sides[:early])) > 1:
            return 0, size
        patch, side = encoder.config.patch_size, sides[0]
        kept = tuple(min(whole, -(-int(pixels) // (patch * side)) * side) for whole, pixels in zip(size, resized_size))
        return (0 if kept == size else early), kept

    def _padding_states(self, encoder: nn.Module, early: int) -> Tensor:
        """States of a picture of zeros after ``early`` layers, [1, h, w, D], kept until the weights change."""
        parts = [encoder.patch_embed, *encoder.layers[:early]]
        weights = [parameter for part in parts for parameter in part.parameters()]
        weights += [] if encoder.pos_embed is None else [encoder.pos_embed]
        key = (early, self.compile, _fingerprint(weights))
        if self._padding is None or self._padding[0] != key:
            side = encoder.config.image_size
            hidden = _embed(encoder, weights[0].new_zeros(1, encoder.config.num_channels, side, side))
            for layer in encoder.layers[:early]:
                hidden = self._layer(layer, hidden)
            self._padding = (key, hidden)
        return self._padding[1]

    def _layer(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """One ``SamVisionLayer``: [B, h, w, D] to [B, h, w, D]."""
        height, width, side = hidden.shape[1], hidden.shape[2], layer.window_size
        wrap = _compiled if self.compile else (lambda function: function)
        if side > 0:
            windows = _windows(height, width, side, hidden.device)
            parts, slots, size = wrap(_window_parts)(layer, hidden, windows), windows.slots, (side, side)
        else:
            parts, slots, size = wrap(_global_parts)(layer, hidden), None, (height, width)
        attention = layer.attn
        if attention.use_rel_pos:
            in_windows, everywhere = self.routes.get(hidden.device.type, (attend_biased, attend_biased))
            attend = in_windows if side > 0 else everywhere
            attended = attend(*parts, attention.rel_pos_h, attention.rel_pos_w, size)
        else:
            attended = attend_plain(*parts)
        return wrap(_finish)(layer, hidden, attended, slots)
