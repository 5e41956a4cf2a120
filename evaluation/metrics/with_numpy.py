"""The integer counts behind J and F with NumPy alone, on packed bit rows of many frames at once.

The same four steps as :mod:`evaluation.metrics.with_numba`, each over all rows of a few frames: pack to 64-bit words
(lowest bit leftmost), boundaries by shifting words, a scan of the boundary words by growing row distance,
and a spread by the whole disk where the scan would have more to do.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics import disk as layout
from utils.masks import parse_counts

WORD = np.dtype("<u8")
CHUNK_WORDS = 1 << 17
"""Words per mask worked on at a time (one megabyte): more would leave the cache, fewer would repeat the calls."""
SCAN_SHARE = 0.5
"""Looks with work to do, per word, after which the scan gives way to the spread."""


def count_dense(gt: np.ndarray, pred: np.ndarray, width: int, bars: np.ndarray, contours: bool) -> np.ndarray:
    """As :func:`evaluation.metrics.with_numba.count_dense`."""
    frames, pixels = gt.shape
    height = pixels // width
    counts = np.zeros((frames, layout.N_COUNTS), np.int64)
    step = _chunk(height, width)
    for start in range(0, frames, step):
        part = slice(start, start + step)
        planes = [_pack(side[part].reshape(-1, height, width)) for side in (gt, pred)]
        _count(*planes, width, bars, contours, counts[part])
    return counts


def count_runs(
    runs: np.ndarray, starts: np.ndarray, used: np.ndarray, height: int, width: int, bars: np.ndarray, contours: bool
) -> np.ndarray:
    """As :func:`evaluation.metrics.with_numba.count_runs`."""
    frames = starts.shape[1]
    counts = np.zeros((frames, layout.N_COUNTS), np.int64)
    step = _chunk(width, height)
    for start in range(0, frames, step):
        part = slice(start, start + step)
        planes = [
            np.stack([_fill(runs[at : at + n], height, width) for at, n in zip(starts[side, part], used[side, part])])
            for side in range(2)
        ]
        _count(*planes, height, bars, contours, counts[part])
    return counts


def parse_strings(text: np.ndarray, ends: np.ndarray, starts: np.ndarray, used: np.ndarray, runs: np.ndarray) -> int:
    """As :func:`evaluation.metrics.with_numba.parse_strings`."""
    begin = 0
    for index, end in enumerate(ends):
        if end > begin:
            parsed = parse_counts(text[begin:end])
            if parsed is None:
                return index
            used[index] = len(parsed)
            runs[starts[index] : starts[index] + len(parsed)] = parsed
        begin = end
    return -1


def _chunk(rows: int, width: int) -> int:
    """Frames to work on at a time."""
    return max(1, CHUNK_WORDS // (rows * _words(width)))


def _words(width: int) -> int:
    return (width + 63) // 64


def _pack(pixels: np.ndarray) -> np.ndarray:
    """uint8 [t, rows, width], set where not 0 -> words [t, rows, ceil(width / 64)]."""
    packed = np.packbits(pixels, axis=-1, bitorder="little")
    missing = 8 * _words(pixels.shape[-1]) - packed.shape[-1]
    if missing:
        wide = np.zeros((*packed.shape[:-1], packed.shape[-1] + missing), np.uint8)
        wide[..., :-missing] = packed
        packed = wide
    return packed.view(WORD)


def _fill(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Words [width, ceil(height / 64)] of the transposed image whose runs these are.

    A bit is set wherever the colour changes; the running exclusive-or of the bits is then the image. A run that goes on
    in the next column also fills the unused bits at the end of this one, which are cleared.
    """
    words = _words(height)
    changes = np.cumsum(runs[:-1])
    changes = changes[changes < height * width]
    column, row = np.divmod(changes, height)
    bits = np.zeros(width * words, WORD)
    place, flips = column * words + (row >> 6), np.uint64(1) << (row & 63).astype(np.uint64)
    if len(place):
        starts = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))  # the places are sorted
        bits[place[starts]] = np.bitwise_xor.reduceat(flips, starts)
    for shift in (1, 2, 4, 8, 16, 32):
        bits ^= bits << np.uint64(shift)
    odd = np.bitwise_xor.accumulate(bits >> np.uint64(63))
    bits[1:] ^= np.negative(odd[:-1])
    bits = bits.reshape(width, words)
    bits[:, -1] &= _low_bits((height - 1) % 64 + 1)
    return bits


def _low_bits(count: int) -> np.uint64:
    """A word whose lowest 1 to 64 bits are set."""
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - count)


def _sums(words: np.ndarray) -> np.ndarray:
    """int64 [t]: set bits per frame."""
    return np.bitwise_count(words).reshape(len(words), -1).sum(axis=1, dtype=np.int64)


def _count(gt: np.ndarray, pred: np.ndarray, width: int, bars: np.ndarray, contours: bool, counts: np.ndarray) -> None:
    """Write the counts of words [t, rows, words] to int64 [t, 6]."""
    union = gt | pred
    ever = np.bitwise_or.reduce(union, axis=0)
    columns = np.bitwise_or.reduce(ever, axis=0)
    rows, words = np.flatnonzero(ever.any(axis=1)), np.flatnonzero(columns)
    if len(rows) == 0:
        return
    # A boundary pixel may lie one row above and one column left of the masks, never below or right of them.
    top, below, first, last = max(rows[0] - 1, 0), rows[-1] + 1, words[0], words[-1]
    if first and columns[first] & np.uint64(1):
        first -= 1
    box = (slice(None), slice(top, below), slice(first, last + 1))
    counts[:, layout.INTERSECTION] = _sums(gt[box] & pred[box])
    counts[:, layout.UNION] = _sums(union[box])
    if not contours:
        return
    repeat_row = below == gt.shape[1]
    repeat_column = (width - 1) % 64 if last == gt.shape[2] - 1 else None
    edges = np.stack([_boundary(side[box], repeat_row, repeat_column, len(bars) - 1) for side in (gt, pred)])
    counts[:, [layout.GT_BOUNDARY, layout.PRED_BOUNDARY]] = lengths = (
        _sums(edges.reshape(-1, *edges.shape[2:])).reshape(2, -1).T
    )
    compared = lengths.all(axis=1)
    if compared.any():
        edges = edges if compared.all() else edges[:, compared]
        matched = _matched(edges.reshape(-1, *edges.shape[2:]), edges[::-1].reshape(-1, *edges.shape[2:]), bars)
        counts[np.flatnonzero(compared)[:, None], [layout.GT_MATCHED, layout.PRED_MATCHED]] = matched.reshape(2, -1).T


def _boundary(bits: np.ndarray, repeat_row: bool, repeat_column: int | None, radius: int) -> np.ndarray:
    """Boundary maps of words [t, rows, words], with a margin of empty rows and words: [t, rows + r, words + gap].

    Args:
        bits: the masks inside the box.
        repeat_row: whether the box ends with the image's last row, which then counts as repeated below.
        repeat_column: bit of the last word that is the image's last column, repeated likewise; None if it is outside.
        radius: r; rows of margin.
    """
    frames, rows, words = bits.shape
    east = bits >> np.uint64(1)
    east[..., :-1] |= bits[..., 1:] << np.uint64(63)
    if repeat_column is not None:
        east[..., -1] |= bits[..., -1] & (np.uint64(1) << np.uint64(repeat_column))
    # Boundary: of the pixel and its three neighbours some, but not all, are set.
    some, every = bits | east, bits & east
    out = np.zeros((frames, rows + radius, words + radius // 64 + 1), WORD)
    edge = out[:, :rows, :words]
    np.bitwise_xor(some[:, :-1] | some[:, 1:], every[:, :-1] & every[:, 1:], out=edge[:, :-1])
    edge[:, -1] = some[:, -1] ^ every[:, -1] if repeat_row else some[:, -1]  # else empty below
    return out


def _matched(own: np.ndarray, other: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """int64 [t]: pixels of ``own`` within the disk of a pixel of ``other``, both as :func:`_boundary` makes them."""
    stride = own.shape[2]
    lead = (len(bars) - 1) * stride + stride
    padded = np.zeros(other.size + 2 * lead, WORD)
    padded[lead : lead + other.size] = other.ravel()
    where = np.flatnonzero(own)
    total = _sums(own)
    left_over = _scan(own.ravel()[where], padded, where + lead, stride, bars) if len(bars) <= 64 else None
    if left_over is None:
        cover = _spread(padded, stride, bars)[lead : lead + own.size].reshape(own.shape)
        return _sums(own & cover)
    at, words = left_over
    missed = np.bincount((at - lead) // own[0].size, weights=np.bitwise_count(words), minlength=len(own))
    return total - missed.astype(np.int64)


def _scan(words: np.ndarray, other: np.ndarray, at: np.ndarray, stride: int, bars: np.ndarray):
    """What of some words has no match.

    Args:
        words: the boundary words, not 0.
        other: the other map, flat, with a margin on both sides.
        at: int [n], the words' places in it.
        stride: words per row.
        bars: the disk.

    Returns:
        (places, words), both [m]; None if it is better left to :func:`_spread`.
    """
    budget = SCAN_SHARE * len(other)
    anything = other != 0
    anything[1:-1] |= anything[2:] | anything[:-2]
    for d, reach in enumerate(bars):
        looks = [np.flatnonzero(anything[at + offset]) for offset in _either_side(d * stride)]
        some = sum(len(look) for look in looks)
        if some == 0:
            continue
        budget -= some
        if budget < 0:
            return None
        spot = np.concatenate([at[look] + offset for look, offset in zip(looks, _either_side(d * stride))])
        free = ~_near(other[spot - 1], other[spot], other[spot + 1], int(reach))
        words[looks[0]] &= free[: len(looks[0])]
        if d:
            words[looks[1]] &= free[len(looks[0]) :]
        rest = np.flatnonzero(words)
        if len(rest) < len(words):
            words, at = words[rest], at[rest]
        if len(rest) == 0:
            break
    return at, words


def _either_side(offset: int) -> tuple[int, ...]:
    return (-offset, offset) if offset else (0,)


def _near(left: np.ndarray, here: np.ndarray, right: np.ndarray, reach: int) -> np.ndarray:
    """Bits of words that have a set bit within ``reach`` < 64 places, in them or in their neighbours."""
    up, up_carry, down, down_carry = here, left, here, right
    done = 0
    while done < reach:
        step = min(done + 1, reach - done)
        shift, rest = np.uint64(step), np.uint64(64 - step)
        up = up | (up << shift)
        up |= up_carry >> rest
        down = down | (down >> shift)
        down |= down_carry << rest
        done += step
        if done < reach:
            up_carry = up_carry | (up_carry << shift)
            down_carry = down_carry | (down_carry >> shift)
    return up | down


def _spread(plane: np.ndarray, stride: int, bars: np.ndarray) -> np.ndarray:
    """A flat map dilated by the disk. Its gaps are as wide as the longest bar, so no row reaches the next."""
    cover, bar, reach = np.zeros_like(plane), plane.copy(), 0
    for d in range(len(bars) - 1, -1, -1):
        while reach < bars[d]:
            # A longer step would leave gaps inside the bar.
            step = int(min(bars[d] - reach, 2 * reach + 1, 63))
            shift, rest = np.uint64(step), np.uint64(64 - step)
            wider = bar | (bar << shift)
            wider |= bar >> shift
            wider[1:] |= bar[:-1] >> rest
            wider[:-1] |= bar[1:] << rest
            bar = wider
            reach += step
        offset = d * stride
        cover[offset:] |= bar[: len(bar) - offset]
        cover[: len(cover) - offset] |= bar[offset:]
    return cover
