"""What the ways of counting for J and F share: columns of their result, and the matching disk as bars."""

from __future__ import annotations

import functools
import math

import numpy as np

INTERSECTION, UNION, GT_BOUNDARY, PRED_BOUNDARY, GT_MATCHED, PRED_MATCHED = range(6)
"""Columns of a table of counts, in pixels: of the masks' intersection and union, of the two boundary maps, and of those
boundary pixels that lie within the disk of a boundary pixel of the other map. The last two are 0 where either map is
empty."""
N_COUNTS = 6

BOUNDARY_TOLERANCE = 0.008
"""Radius of the matching disk as a share of the image diagonal."""


def boundary_radius(height: int, width: int) -> int:
    """Radius in pixels of the disk within which boundary pixels match: ceil(0.008 * sqrt(H^2 + W^2))."""
    return math.ceil(BOUNDARY_TOLERANCE * math.sqrt(height * height + width * width))


@functools.lru_cache(maxsize=64)
def bars(radius: int) -> np.ndarray:
    """int64 [r + 1], read-only: the disk dx^2 + dy^2 <= r^2 reaches ``bars[d]`` pixels to either side at |dy| = d."""
    reach = np.array([math.isqrt(radius * radius - d * d) for d in range(radius + 1)], dtype=np.int64)
    reach.setflags(write=False)
    return reach
