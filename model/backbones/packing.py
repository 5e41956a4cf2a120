"""Laying conversations out as rows of a decoder.

A row is ``[prefix text | visual tokens | suffix 1 | ... | suffix K]``: the questions of a video that begin alike share
one row. Every suffix sees the prefix and itself, its positions continue the prefix, so each reads exactly as it would
in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from utils.batch import IMAGE_TOKEN_INDEX
from utils.errors import DataError, TokenizerError

FILLER_ID = 0
"""Stands where an id is needed but never read: under visual tokens and in padding."""


@dataclass
class Row:
    """One row of the decoder.

    Attributes:
        prefix: ids before the visual tokens; empty without an image.
        visual: which entry of the visual rows is placed here; -1 for none.
        n_visual: number of visual tokens; 0 for none.
        suffixes: ids after the visual tokens, one list per conversation sharing this row.
    """

    prefix: list[int]
    visual: int
    n_visual: int
    suffixes: list[list[int]]

    @property
    def prefix_length(self) -> int:
        """P: positions before any suffix."""
        return len(self.prefix) + self.n_visual


@dataclass
class Layout:
    """Rows as tensors.

    Attributes:
        ids: int64 [B, L]; ``FILLER_ID`` under visual tokens and in padding.
        position_ids: int64 [B, L], or None when counting from 0 is right.
        segments: int64 [B, L], 0 prefix, k for the k-th suffix, -1 padding; None when causality alone is enough.
        visual_places: int64 [n], flat positions (row * L + column) of visual tokens.
        visual_rows: which visual row each group of visual tokens comes from, in the order of the places.
        prefix_lengths: P of each row.
        starts: column where each suffix of each row begins.
    """

    ids: Tensor
    position_ids: Tensor | None
    segments: Tensor | None
    visual_places: Tensor
    visual_rows: list[int]
    prefix_lengths: list[int]
    starts: list[list[int]]

    @property
    def length(self) -> int:
        """L, columns."""
        return self.ids.shape[1]

    def place(self, row: int, suffix: int, index: int) -> int:
        """Flat position of token ``index`` of a suffix."""
        return row * self.length + self.starts[row][suffix] + index

    def place_before(self, row: int, suffix: int, index: int) -> int | None:
        """Flat position of the state that predicts token ``index`` of a suffix; None if nothing comes before it."""
        if index > 0:
            return self.place(row, suffix, index - 1)
        prefix = self.prefix_lengths[row]
        return row * self.length + prefix - 1 if prefix else None


def require_rows(ids: Sequence[int], rows: int) -> None:
    """Refuse ids that the word embeddings have no row for: a GPU would end the process over them, or read elsewhere.

    Args:
        ids: on the CPU.
        rows: of the embeddings.

    Raises:
        TokenizerError: naming the ids.
    """
    if ids and not (min(ids) >= 0 and max(ids) < rows):
        strange = sorted({number for number in ids if not 0 <= number < rows})
        raise TokenizerError(
            f"token ids {', '.join(map(str, strange[:5]))}{' …' if len(strange) > 5 else ''} have no row in the word "
            f"embeddings ({rows} rows); use the tokenizer that was saved with the weights"
        )


def split_at_image(ids: Sequence[int], where: str) -> tuple[list[int], list[int], bool]:
    """Cut a conversation at its image.

    Args:
        ids: token ids with at most one ``IMAGE_TOKEN_INDEX``.
        where: named in the error.

    Returns:
        (prefix, suffix, has_image); without an image everything is suffix.

    Raises:
        DataError: more than one image.
    """
    ids = list(ids)
    count = ids.count(IMAGE_TOKEN_INDEX)
    if count > 1:
        raise DataError(f"{where}: {count} image tokens in one conversation; a video takes exactly one")
    if not count:
        return [], ids, False
    cut = ids.index(IMAGE_TOKEN_INDEX)
    return ids[:cut], ids[cut + 1 :], True


def pack(rows: Sequence[Row], device: torch.device | None = None) -> Layout:
    """Lay rows out, padded on the right to the longest.

    Args:
        rows: at least one.
        device: of the tensors.

    Returns:
        The layout; ``position_ids`` and ``segments`` only when a row holds more than one suffix.
    """
    packed = any(len(row.suffixes) > 1 for row in rows)
    lengths = [row.prefix_length + sum(map(len, row.suffixes)) for row in rows]
    width = max(max(lengths), 1)
    ids, positions, segments, starts, places, visual_rows = [], [], [], [], [], []
    for index, row in enumerate(rows):
        row_ids = row.prefix + [FILLER_ID] * row.n_visual
        row_positions = list(range(row.prefix_length))
        row_segments = [0] * row.prefix_length
        row_starts = []
        if row.n_visual:
            first = index * width + len(row.prefix)
            places.extend(range(first, first + row.n_visual))
            visual_rows.append(row.visual)
        for number, suffix in enumerate(row.suffixes, start=1):
            row_starts.append(len(row_ids))
            row_ids += suffix
            row_positions += range(row.prefix_length, row.prefix_length + len(suffix))
            row_segments += [number] * len(suffix)
        padding = width - len(row_ids)
        ids.append(row_ids + [FILLER_ID] * padding)
        positions.append(row_positions + [0] * padding)
        segments.append(row_segments + [-1] * padding)
        starts.append(row_starts)
    tensor = partial(torch.tensor, dtype=torch.long, device=device)
    return Layout(
        ids=tensor(ids),
        position_ids=tensor(positions) if packed else None,
        segments=tensor(segments) if packed else None,
        visual_places=tensor(places),
        visual_rows=visual_rows,
        prefix_lengths=[row.prefix_length for row in rows],
        starts=starts,
    )


def segment_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """Which position may look at which, when rows hold several suffixes.

    Args:
        queries: int64 [B, q], segments of the last q of the k positions.
        keys: int64 [B, k], segments (0 prefix, k suffix, -1 padding).

    Returns:
        bool [B, 1, q, k]: earlier or equal, and in the prefix or in the same segment.
    """
    total, new = keys.shape[1], queries.shape[1]
    order = torch.arange(total, device=keys.device)
    causal = order[None, :] <= order[total - new :, None]
    shared = (keys[:, None, :] == 0) | (keys[:, None, :] == queries[:, :, None])
    return (shared & causal)[:, None]


def attention_mask(allowed: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """A 4-D mask in the form an attention implementation takes.

    Args:
        allowed: bool [B, 1, q, k].
        implementation: the decoder's; "eager" adds its mask to the scores (a bool there would be silently wrong).
        dtype: of the decoder's activations.

    Returns:
        ``allowed`` itself, or 0 / most negative number in ``dtype``.
    """
    if implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
