"""COCO run lengths of two clips, gathered and checked for counting; nothing is decoded to pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Masks = Sequence[Mapping[str, Any] | None]
Parser = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]


def read_runs(
    gt: Masks, pred: Masks, parse_strings: Parser
) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]:
    """Run lengths of two clips.

    Args:
        gt, pred: see :func:`evaluation.metrics.score_clip_rle`.
        parse_strings: reads the compressed ones, see :func:`evaluation.metrics.with_numba.parse_strings`.

    Returns:
        (H, W), runs int64 [N], where each mask's runs start int64 [2, T], and how many there are int64 [2, T].
        With no mask that says otherwise, the size is (1, 1).

    Raises:
        ValueError: see :func:`evaluation.metrics.score_clip_rle`.
    """
    if len(gt) != len(pred):
        raise ValueError(f"two clips of one length are needed, got {len(gt)} and {len(pred)} masks")
    masks = [*gt, *pred]
    size = _common_size(masks, len(gt))
    strings: list[bytes] = []
    lists: dict[int, np.ndarray] = {}
    room = np.zeros(len(masks), np.int64)
    for index, mask in enumerate(masks):
        counts = b"" if mask is None else mask.get("counts")
        if isinstance(counts, str):
            counts = counts.encode("utf-8", "surrogatepass")  # no code of another character is valid
        if isinstance(counts, bytes):
            strings.append(counts)
            room[index] = len(counts)  # at least one character each
            continue
        lists[index] = _as_runs(counts, _name(index, len(gt)))
        strings.append(b"")
        room[index] = len(lists[index])
    text = np.frombuffer(b"".join(strings), dtype=np.uint8)
    ends = np.cumsum([len(string) for string in strings], dtype=np.int64)
    starts = np.cumsum(room) - room
    used = np.zeros(len(masks), np.int64)
    runs = np.zeros(int(room.sum()), np.int64)
    malformed = parse_strings(text, ends, starts, used, runs)
    if malformed >= 0:
        raise ValueError(f"{_name(malformed, len(gt))}: 'counts' is not a compressed run-length string")
    for index, listed in lists.items():
        runs[starts[index] : starts[index] + len(listed)] = listed
        used[index] = len(listed)
    _check_fill(masks, size, runs, starts, used)
    return size, runs, starts.reshape(2, -1), used.reshape(2, -1)


def _name(index: int, frames: int) -> str:
    return f"{'ground truth' if index < frames else 'prediction'}, frame {index % frames}"


def _common_size(masks: Masks, frames: int) -> tuple[int, int]:
    """(H, W) of all masks."""
    first, size = 0, None
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        own = mask.get("size") if isinstance(mask, Mapping) else None
        if size is not None and own == size:
            continue
        try:
            height, width = (int(side) for side in own)
        except (TypeError, ValueError):
            height = width = 0
        if height < 1 or width < 1:
            raise ValueError(
                f"{_name(index, frames)}: a run-length mask needs 'size': [height, width] and 'counts'; "
                f"got {str(mask)[:80]}"
            )
        if size is None:
            first, size = index, [height, width]
        elif size != [height, width]:
            raise ValueError(
                f"masks of one size are needed, got {size[0]} x {size[1]} ({_name(first, frames)}) and "
                f"{height} x {width} ({_name(index, frames)})"
            )
    return (1, 1) if size is None else (size[0], size[1])


def _as_runs(counts: Any, name: str) -> np.ndarray:
    """Run lengths given as a list, int64."""
    if not isinstance(counts, (list, tuple, np.ndarray)):
        raise ValueError(f"{name}: 'counts' must be a string, bytes or a list, not {type(counts).__name__}")
    runs = np.asarray(counts)
    if runs.ndim != 1 or not (runs.size == 0 or np.issubdtype(runs.dtype, np.integer)):
        raise ValueError(f"{name}: a list of 'counts' must hold integers only")
    return runs.astype(np.int64)


def _check_fill(masks: Masks, size: tuple[int, int], runs: np.ndarray, starts: np.ndarray, used: np.ndarray) -> None:
    """Every mask's runs must be non-negative and fill the image exactly. Between masks ``runs`` is 0."""
    frames, pixels = len(masks) // 2, size[0] * size[1]
    some = np.flatnonzero(used)
    if len(some) < len(masks) - sum(mask is None for mask in masks):
        index = next(index for index, mask in enumerate(masks) if mask is not None and not used[index])
        raise ValueError(f"{_name(index, frames)}: 'counts' are empty and do not fill {size[0]} x {size[1]} pixels")
    if len(some) == 0:
        return
    filled, least, most = (how.reduceat(runs, starts[some]) for how in (np.add, np.minimum, np.maximum))
    wrong = np.flatnonzero((filled != pixels) | (least < 0) | (most > pixels))
    if len(wrong):
        index = some[wrong[0]]
        signs = "; some are negative" if least[wrong[0]] < 0 else ""
        raise ValueError(
            f"{_name(index, frames)}: 'counts' fill {filled[wrong[0]]} pixels, not {size[0]} x {size[1]} = {pixels}"
            f"{signs}; the entry is damaged: get it again"
        )
