"""Boundaries of two bit planes and how much of them lies near each other, compiled by numba.

Steps 2 to 4 of :mod:`evaluation.metrics.with_numba`, which says what they are.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64
from numba.extending import intrinsic

from evaluation.metrics import disk as layout

GT_BOUNDARY, PRED_BOUNDARY = layout.GT_BOUNDARY, layout.PRED_BOUNDARY
GT_MATCHED, PRED_MATCHED = layout.GT_MATCHED, layout.PRED_MATCHED

ZERO, ONE, ALL = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
WIDEST_SCAN = 63
"""Largest radius the scan can do: a bar must not reach beyond the neighbouring words."""
SCAN_SHARE = 1
"""Looks with work to do, per word of the box, after which the scan gives way to the spread: about what that costs."""
SPREAD_WORDS = 512
"""Words the spread works on at a time, so that they stay in the fastest cache."""

helper = njit(nogil=True, error_model="numpy")


@intrinsic
def popcount(_typing, word):
    """Set bits of a word, as one instruction."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return int64(uint64), generate


@helper
def _gap(bars):
    """Empty words between the rows of a boundary map: as many as the longest bar reaches into."""
    return (bars.size - 1) // 64 + 1


@helper
def _boundary(bits, width, box, gap, out):
    """Boundary map of the box into ``out`` and its number of pixels.

    Word w of row y is at gap + y * stride + w, where stride = words of the box + gap; what lies between is empty.
    """
    height, words = bits.shape
    top, bottom, first, last = box[0], box[1], box[2], box[3]
    n = last - first + 1
    repeat = ONE << np.uint64((width - 1) & 63) if last == words - 1 else ZERO
    total = 0
    out[:gap] = ZERO
    for y in range(top, bottom + 1):
        row, below = bits[y, first : last + 1], bits[min(y + 1, height - 1), first : last + 1]
        start = gap + (y - top) * (n + gap)
        target = out[start : start + n]
        out[start + n : start + n + gap] = ZERO
        for w in range(n - 1):
            here, south = row[w], below[w]
            east = (here >> np.uint64(1)) | (row[w + 1] << np.uint64(63))
            south_east = (south >> np.uint64(1)) | (below[w + 1] << np.uint64(63))
            found = (here ^ east) | (here ^ south) | (here ^ south_east)
            target[w] = found
            total += popcount(found)
        here, south = row[n - 1], below[n - 1]
        east = (here >> np.uint64(1)) | (here & repeat)
        south_east = (south >> np.uint64(1)) | (south & repeat)
        found = (here ^ east) | (here ^ south) | (here ^ south_east)
        target[n - 1] = found
        total += popcount(found)
    return total


@helper
def _near(left, here, right, reach):
    """Bits of a word that have a set bit within ``reach`` places, in it or in its neighbours; reach < 64."""
    up, up_carry, down, down_carry = here, left, here, right
    done = 0
    while done < reach:
        step = min(done + 1, reach - done)
        shift, rest = np.uint64(step), np.uint64(64 - step)
        up |= (up << shift) | (up_carry >> rest)
        up_carry |= up_carry << shift
        down |= (down >> shift) | (down_carry << rest)
        down_carry |= down_carry >> shift
        done += step
    return up | down


@helper
def _scan(own, other, rows, stride, bars):
    """Pixels of ``own`` within the disk of a pixel of ``other``; -1 when that is better left to the spread.

    Both are maps with a gap of one word, see :func:`_boundary`.
    """
    budget = SCAN_SHARE * own.size
    unmatched, total = 0, 0
    for y in range(rows):
        nearest_first = min(bars.size, max(y, rows - 1 - y) + 1)
        for w in range(1, stride):
            at = np.uint64(y * stride + w)
            left_over = own[at]
            if left_over == ZERO:
                continue
            total += popcount(left_over)
            for d in range(nearest_first):
                for side in range(2):
                    near_y = y - d if side == 0 else y + d
                    if near_y < 0 or near_y >= rows or (side and d == 0):
                        continue
                    spot = np.uint64(near_y * stride + w)
                    west, here, east = other[spot - ONE], other[spot], other[spot + ONE]
                    if (west | here | east) == ZERO:
                        continue
                    budget -= 1
                    left_over &= ~_near(west, here, east, bars[d])
                if left_over == ZERO:
                    break
            if budget < 0:
                return -1
            unmatched += popcount(left_over)
    return total - unmatched


@helper
def _widen(plane, step, out):
    """Grow every bar of a bit plane by ``step`` < 64 pixels to either side; the outermost words become empty."""
    west, here, east, target = plane[:-2], plane[1:-1], plane[2:], out[1:-1]
    shift, rest = np.uint64(step), np.uint64(64 - step)
    for i in range(here.size):
        word = here[i]
        target[i] = word | (word << shift) | (west[i] >> rest) | (word >> shift) | (east[i] << rest)
    out[0] = ZERO
    out[-1] = ZERO


@helper
def _join(band, at, cover):
    """cover[at + i] |= band[i] wherever that exists."""
    source, target = band[max(-at, 0) :], cover[max(at, 0) :]
    for i in range(min(source.size, target.size)):
        target[i] |= source[i]


@helper
def _spread(own, other, stride, bars, scratch):
    """What :func:`_scan` counts, for any radius, by dilating all of ``other``, a few rows at a time.

    The gaps between rows are as wide as the longest bar, so no row reaches the next.
    """
    cover = scratch[: own.size]
    cover[:] = ZERO
    gap = _gap(bars)
    rows = max(SPREAD_WORDS // stride, 1)
    bar, grown = np.empty(rows * stride + gap, np.uint64), np.empty(rows * stride + gap, np.uint64)
    for start in range(0, own.size - gap, rows * stride):
        source = other[start : start + rows * stride + gap]
        band, wider = bar[: source.size], grown[: source.size]
        some = ZERO
        for i in range(source.size):
            band[i] = source[i]
            some |= source[i]
        if some == ZERO:
            continue
        reach = 0
        for d in range(bars.size - 1, -1, -1):
            while reach < bars[d]:
                # A longer step would leave gaps inside the bar.
                step = min(bars[d] - reach, 2 * reach + 1, 63)
                _widen(band, step, wider)
                band, wider = wider, band
                reach += step
            _join(band, start - d * stride, cover)
            if d:
                _join(band, start + d * stride, cover)
    matched = 0
    for i in range(own.size):
        matched += popcount(own[i] & cover[i])
    return matched


@helper
def _matched(own, other, rows, stride, bars, scratch):
    if bars.size - 1 <= WIDEST_SCAN:
        count = _scan(own, other, rows, stride, bars)
        if count >= 0:
            return count
    return _spread(own, other, stride, bars, scratch)


@helper
def count_contours(gt_bits, pred_bits, width, box, bars, planes, counts):
    """Steps 2 to 4 for one frame; writes the four boundary counts."""
    gap = _gap(bars)
    rows, stride = box[1] - box[0] + 1, box[3] - box[2] + 1 + gap
    gt_edge, pred_edge = planes[0, : gap + rows * stride], planes[1, : gap + rows * stride]
    n_gt = _boundary(gt_bits, width, box, gap, gt_edge)
    n_pred = _boundary(pred_bits, width, box, gap, pred_edge)
    counts[GT_BOUNDARY], counts[PRED_BOUNDARY] = n_gt, n_pred
    if n_gt and n_pred:
        counts[GT_MATCHED] = _matched(gt_edge, pred_edge, rows, stride, bars, planes[2])
        counts[PRED_MATCHED] = _matched(pred_edge, gt_edge, rows, stride, bars, planes[2])


@helper
def scratch_planes(rows, words, bars, contours):
    """Scratch memory of :func:`count_contours`: two maps and what the spread covers."""
    gap = _gap(bars)
    return np.empty((3, gap + rows * (words + gap) if contours else 0), np.uint64)
