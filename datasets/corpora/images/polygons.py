"""Polygons of annotation files."""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.names import shown
from utils.errors import Problems

_MOST = 1 << 15
"""Coordinates from here on are damaged; painters count them in 16 bits."""


def read_polygon(points: Any, size: tuple[int, int], where: str, problems: Problems) -> np.ndarray | None:
    """float64 [n, 2] of (x, y), which may reach over the picture's edge; None, with the mistake noted, if it is none.

    Args:
        points: ``[[x, y], ...]``, or COCO's ``[x, y, x, y, ...]``.
        size: (H, W) of the picture.
        where: names the polygon in messages.
        problems: where mistakes go.
    """
    try:
        polygon = np.array(points, dtype=np.float64)
    except (TypeError, ValueError):
        polygon = np.empty(0)
    if polygon.ndim == 1 and len(polygon) % 2 == 0:
        polygon = polygon.reshape(-1, 2)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or not len(polygon) or not (np.abs(polygon) < _MOST).all():
        problems.add(where, f"must be a polygon of numbers x, y, not {shown(str(points), 40)}")
    elif not (polygon.max(axis=0) >= 0).all() or not (polygon.min(axis=0) < (size[1], size[0])).all():
        problems.add(where, f"lies outside its picture of {size[0]} x {size[1]} (height x width)")
    else:
        return polygon
    return None
