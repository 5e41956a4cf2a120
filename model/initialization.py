"""Fresh weights: what the libraries do by default is wrong for very narrow networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import initialization as init

WEIGHTED = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def initialize_module(module: nn.Module, scheme: str) -> None:
    """Initialise one of MoRA's own modules, leaving alone what a checkpoint has filled.

    Args:
        module: any module; its children are not visited.
        scheme: "xavier" or "hf" (then only what the library cannot know is set).
    """
    if isinstance(module, WEIGHTED) and scheme == "xavier":
        init.xavier_uniform_(module.weight)
    if getattr(module, "zero_init", False):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
    if hasattr(module, "positional_embedding") and hasattr(module, "scale"):
        init.normal_(module.positional_embedding, std=module.scale)


@torch.no_grad()
def xavier_everywhere(model: nn.Module, generator: torch.Generator) -> None:
    """Xavier-uniform weights and zero biases in every linear and (transposed) convolution layer, in module order.

    The libraries' normal of deviation 0.02 suits widths of a thousand; at a hundred it leaves signals so small that
    attention and masks hardly learn (Glorot and Bengio 2010).

    Args:
        model: changed in place.
        generator: on the CPU.
    """
    for module in model.modules():
        if getattr(module, "grid_init", False):
            set_grid_positions(module)
        if not isinstance(module, WEIGHTED):
            continue
        if getattr(module, "zero_init", False):
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def grid_positions(side: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine code of a grid.

    Args:
        side: cells along each side.
        width: channels, a multiple of 4.

    Returns:
        float32 [side * side, width], row after row: half of the channels for y, half for x.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    angles = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    code = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([code.repeat_interleave(side, 0), code.repeat(side, 1)], dim=1)


@torch.no_grad()
def set_grid_positions(embedding: nn.Embedding) -> None:
    """Fill a position embedding [side**2, C] with :func:`grid_positions`; CLIP's class token before it gets zeros."""
    count, width = embedding.weight.shape
    side = math.isqrt(count)
    embedding.weight[: count - side**2] = 0
    embedding.weight[count - side**2 :] = grid_positions(side, width).to(embedding.weight)


def _new_rows(known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows for new words: the mean of those that are known plus a little seeded noise, a tenth of their spread; nothing
    depends on, or changes, global random state."""
    noise = torch.randn(count, known.shape[1], generator=generator).to(known.device)
    known = known.float()
    return known.mean(0) + 0.1 * known.std(0) * noise


@torch.no_grad()
def resize_vocabulary(embeddings: nn.Module, head: nn.Module, size: int) -> None:
    """Change the number of words, in place; matrices that are one stay one.

    Args:
        embeddings: an ``nn.Embedding``, weight [V, D].
        head: an ``nn.Linear`` without bias, weight [V, D].
        size: new number of rows.
    """
    tied = head.weight is embeddings.weight
    generator = torch.Generator().manual_seed(size)
    for module in (embeddings, head):
        old = module.weight
        new = _new_rows(old[:size], max(0, size - len(old)), generator).to(old)
        module.weight = nn.Parameter(torch.cat([old[:size], new]), requires_grad=old.requires_grad)
    if tied:
        embeddings.weight = head.weight
    embeddings.num_embeddings = head.out_features = size


@torch.no_grad()
def fill_rows(embeddings: nn.Module, head: nn.Module, first: int, end: int) -> None:
    """Give the rows of words that came into free rows, ``first`` to ``end`` - 1, values as new rows have, in place.

    Args:
        embeddings, head: as of :func:`resize_vocabulary`.
        first: all rows before it belong to older words.
        end: at most V.
    """
    generator = torch.Generator().manual_seed(end)
    for weight in {id(module.weight): module.weight for module in (embeddings, head)}.values():
        weight[first:end] = _new_rows(weight[:first], end - first, generator).to(weight)
