"""The integer counts behind J and F on packed bit rows, compiled by numba; see :mod:`evaluation.metrics` for the rules.

Imported only by :mod:`evaluation.metrics.compiled`, which chooses where numba may keep the machine code. Every frame
goes through four steps, all on words of 64 pixels, lowest bit leftmost:

1. *Pack* both masks (or fill their bit rows from run lengths), counting intersection and union and noting the box that
   holds both.
2. *Boundaries* inside the box by shifting words. Behind the last row and column the image is taken to repeat itself:
   this is the same as the special rules of the last row, last column and corner.
3. *Scan*: a disk of radius r is a stack of horizontal bars, isqrt(r^2 - d^2) wide to either side at row distance d. For
   every boundary word of one map look at the other map's rows in the order of distance, drop what is matched, stop when
   nothing is left. Contours that lie near each other are done after one or two rows.
4. *Spread*: where the scan finds much work (noise, stripes), dilate the other map by the whole disk instead, row by row
   with bars that grow, and count what is covered. Its time does not depend on the content.

Both run inside ``nogil``: threads may score at once. Each call allocates its own scratch memory (five bit planes).
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import boolean, int64, njit, types, uint8, uint64
from numba.extending import intrinsic

from evaluation.metrics import disk as layout
from evaluation.metrics.contours import ALL, ONE, ZERO, count_contours, helper, popcount, scratch_planes

INTERSECTION, UNION, N_COUNTS = layout.INTERSECTION, layout.UNION, layout.N_COUNTS

# Arrays that are only read are declared so: masks and tables may come read-only.
BYTES = types.Array(uint8, 1, "C", readonly=True)
BYTE_ROWS = types.Array(uint8, 2, "C", readonly=True)
INTEGERS = types.Array(int64, 1, "C", readonly=True)
INTEGER_ROWS = types.Array(int64, 2, "C", readonly=True)


@intrinsic
def _pack_64(_typing, pixels, start):
    """64 bytes from ``start`` as 64 bits (byte != 0): one vector comparison, on x86 two or four instructions."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = ir.VectorType(ir.IntType(8), 64)
        loaded = builder.load(builder.bitcast(builder.gep(data, [arguments[1]]), vector.as_pointer()), align=1)
        return builder.bitcast(builder.icmp_unsigned("!=", loaded, ir.Constant(vector, None)), ir.IntType(64))

    return uint64(pixels, start), generate


@helper
def _tail_word(pixels, start, width):
    """The last, partly filled word of the row of ``width`` pixels that begins at ``start``."""
    tail = width & 63
    if width >= 64:
        return _pack_64(pixels, start + width - 64) >> np.uint64(64 - tail)
    word = ZERO
    for column in range(tail):
        if pixels[start + column]:
            word |= ONE << np.uint64(column)
    return word


@helper
def _pack(gt, pred, width, gt_bits, pred_bits, columns, box):
    """Fill two bit planes from bytes; write (top, bottom, first word, last word) to ``box``; return (I, U).

    An empty union leaves bottom = -1.
    """
    height, words = gt_bits.shape
    full = width >> 6
    intersection, union = 0, 0
    columns[:] = ZERO
    box[0], box[1] = height, -1
    for y in range(height):
        start = y * width
        gt_row, pred_row = gt_bits[y], pred_bits[y]
        row_union = ZERO
        for w in range(words):
            if w < full:
                a, b = _pack_64(gt, start + 64 * w), _pack_64(pred, start + 64 * w)
            else:
                a, b = _tail_word(gt, start, width), _tail_word(pred, start, width)
            gt_row[w], pred_row[w] = a, b
            both = a | b
            columns[w] |= both
            row_union |= both
            intersection += popcount(a & b)
            union += popcount(both)
        if row_union:
            box[0], box[1] = min(box[0], y), y
    if union:
        first, last = 0, words - 1
        while columns[first] == ZERO:
            first += 1
        while columns[last] == ZERO:
            last -= 1
        # A boundary pixel may lie one row above and one column left of the masks, never below or right of them.
        box[0] = max(box[0] - 1, 0)
        box[2] = first - 1 if first > 0 and columns[first] & ONE else first
        box[3] = last
    return intersection, union


@njit(
    int64[:, ::1](BYTE_ROWS, BYTE_ROWS, int64, INTEGERS, boolean),
    nogil=True, cache=True, error_model="numpy",
)  # fmt: skip
def count_dense(gt, pred, width, bars, contours):
    """Counts of every frame from bytes.

    Args:
        gt, pred: uint8 [T, H * W]; a pixel is set if its byte is not 0.
        width: W.
        bars: int64 [r + 1], see :func:`evaluation.metrics.disk.bars`.
        contours: whether to count boundaries; else those columns are 0.

    Returns:
        int64 [T, 6], columns as in :mod:`evaluation.metrics.disk`.
    """
    frames, pixels = gt.shape
    height, words = pixels // width, (width + 63) >> 6
    counts = np.zeros((frames, N_COUNTS), np.int64)
    gt_bits, pred_bits = np.empty((height, words), np.uint64), np.empty((height, words), np.uint64)
    columns, box = np.empty(words, np.uint64), np.zeros(4, np.int64)
    planes = scratch_planes(height, words, bars, contours)
    for t in range(frames):
        inter, union = _pack(gt[t], pred[t], width, gt_bits, pred_bits, columns, box)
        counts[t, INTERSECTION], counts[t, UNION] = inter, union
        if union and contours:
            count_contours(gt_bits, pred_bits, width, box, bars, planes, counts[t])
    return counts


@njit(int64(BYTES, INTEGERS, INTEGERS, int64[::1], int64[::1]), nogil=True, cache=True)
def parse_strings(text, ends, starts, used, runs):
    """Read the compressed ``counts`` of many masks.

    Five bits per character, lowest group first, bit 5 says that more follow, the highest bit of the last group is the
    sign; from the fourth run on the numbers are differences to the run before last.

    Args:
        text: uint8 [N]; all strings, one after the other.
        ends: int64 [n]; where each string ends. Nothing is read for a mask that is not in this form (an empty string).
        starts: int64 [n]; where its runs go in ``runs``.
        used: int64 [n], written: number of runs; left alone for an empty string.
        runs: int64, written.

    Returns:
        Index of the first malformed string, or -1.
    """
    at = 0
    for index in range(ends.size):
        begin, first, written = at, starts[index], 0
        before_last, last = np.int64(0), np.int64(0)
        while at < ends[index]:
            value, shift, code = np.int64(0), np.int64(0), np.int64(32)
            while code & 32:
                if at >= ends[index] or shift > 55 or text[at] < 48 or text[at] > 111:
                    return index
                code = np.int64(text[at]) - 48
                value |= (code & 31) << shift
                shift += 5
                at += 1
            if code & 16:
                value |= np.int64(-1) << shift
            if written > 2:
                value += before_last
            before_last, last = last, value
            runs[first + written] = value
            written += 1
        if at > begin:
            used[index] = written
    return -1


@helper
def _runs_box(runs, height, box):
    """Grow ``box`` (first column, last column, first row, last row of pixels) to hold the set runs."""
    column, row = 0, 0
    for index in range(runs.size):
        end = row + runs[index]
        if index & 1 and end > row:
            box[0] = min(box[0], column)
            if end <= height:
                box[1], box[2], box[3] = column, min(box[2], row), max(box[3], end - 1)
            else:
                box[1], box[2], box[3] = column + (end - 1) // height, 0, height - 1
        if end >= height:
            crossed = end // height
            column += crossed
            end -= crossed * height
        row = end


@helper
def _fill(runs, height, bits):
    """Set the runs' pixels; bit row x of ``bits`` is column x of the image."""
    column, row = 0, 0
    for index in range(runs.size):
        end = row + runs[index]
        if index & 1:
            while end > row:
                stop = min(end, height)
                target = bits[column]
                first, last = row >> 6, (stop - 1) >> 6
                head = ALL << np.uint64(row & 63)
                tail = ALL >> np.uint64(63 - ((stop - 1) & 63))
                if first == last:
                    target[first] |= head & tail
                else:
                    target[first] |= head
                    for w in range(first + 1, last):
                        target[w] = ALL
                    target[last] |= tail
                if end < height:
                    break
                end -= height
                column += 1
                row = 0
        elif end >= height:
            column += end // height
            end %= height
        row = end


@helper
def _overlap(gt_bits, pred_bits, box):
    """(intersection, union) inside the box."""
    intersection, union = 0, 0
    for y in range(box[0], box[1] + 1):
        gt_row, pred_row = gt_bits[y, box[2] : box[3] + 1], pred_bits[y, box[2] : box[3] + 1]
        for w in range(gt_row.size):
            intersection += popcount(gt_row[w] & pred_row[w])
            union += popcount(gt_row[w] | pred_row[w])
    return intersection, union


@njit(
    int64[:, ::1](INTEGERS, INTEGER_ROWS, INTEGER_ROWS, int64, int64, INTEGERS, boolean),
    nogil=True, cache=True, error_model="numpy",
)  # fmt: skip
def count_runs(runs, starts, used, height, width, bars, contours):
    """Counts of every frame from run lengths (columns first, starting with the background).

    The runs fill bit rows of the transposed image: neither J nor F changes under transposition.

    Args:
        runs: int64; the runs of all masks. Those of one mask are not negative and sum to H * W.
        starts, used: int64 [2, T]; where the runs of ground truth (0) and prediction (1) begin, and how many there are.
        height, width: H, W.
        bars, contours: as in :func:`count_dense`.

    Returns:
        int64 [T, 6], columns as in :mod:`evaluation.metrics.disk`.
    """
    frames, words = starts.shape[1], (height + 63) >> 6
    counts = np.zeros((frames, N_COUNTS), np.int64)
    gt_bits, pred_bits = np.empty((width, words), np.uint64), np.empty((width, words), np.uint64)
    box, planes = np.empty(4, np.int64), scratch_planes(width, words, bars, contours)
    for t in range(frames):
        gt_runs = runs[starts[0, t] : starts[0, t] + used[0, t]]
        pred_runs = runs[starts[1, t] : starts[1, t] + used[1, t]]
        box[0], box[1], box[2], box[3] = width, -1, height, -1
        _runs_box(gt_runs, height, box)
        right = box[1]
        _runs_box(pred_runs, height, box)
        box[1] = max(box[1], right)
        if box[1] < 0:
            continue
        # From pixels to words, with the row above and the column left of the masks (see _pack).
        box[0], box[2], box[3] = max(box[0] - 1, 0), max(box[2] - 1, 0) >> 6, box[3] >> 6
        below = min(box[1] + 2, width)
        gt_bits[box[0] : below, box[2] : box[3] + 1] = ZERO
        pred_bits[box[0] : below, box[2] : box[3] + 1] = ZERO
        _fill(gt_runs, height, gt_bits)
        _fill(pred_runs, height, pred_bits)
        counts[t, INTERSECTION], counts[t, UNION] = _overlap(gt_bits, pred_bits, box)
        if contours:
            count_contours(gt_bits, pred_bits, height, box, bars, planes, counts[t])
    return counts
