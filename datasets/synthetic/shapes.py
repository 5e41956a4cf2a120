"""Outlines of the objects: drawing with anti-aliasing, and when two of them touch."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
"""Unit vectors (x right, y down)."""

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

_ARM, _WIDE = 1.05, 0.4
POLYGONS: dict[str, np.ndarray] = {
    "square": np.array([[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]]),
    "triangle": np.array([[0.0, -1.1], [0.98, 0.72], [-0.98, 0.72]]),
    "diamond": np.array([[0.0, -1.15], [0.95, 0.0], [0.0, 1.15], [-0.95, 0.0]]),
    "cross": np.array(
        [
            [-_WIDE, -_ARM],
            [_WIDE, -_ARM],
            [_WIDE, -_WIDE],
            [_ARM, -_WIDE],
            [_ARM, _WIDE],
            [_WIDE, _WIDE],
            [_WIDE, _ARM],
            [-_WIDE, _ARM],
            [-_WIDE, _WIDE],
            [-_ARM, _WIDE],
            [-_ARM, -_WIDE],
            [-_WIDE, -_WIDE],
        ]
    ),
}
"""Corners at radius 1; circle and ring are drawn as circles."""

RING_HOLE = 0.5
"""Radius of a ring's hole, as a share of its own."""

_SHIFT = 4
"""OpenCV draws at sixteenths of a pixel."""

_FINER = 4
"""Shapes are drawn this much larger and averaged down: OpenCV's own soft edges make them half a pixel too large."""

_PROFILE_PIXELS = 64
_PROFILE_REACH = 1.3


def outer_radius(shape: str) -> float:
    """Radius of the smallest centred circle that holds the shape of radius 1."""
    if shape not in POLYGONS:
        return 1.0
    return float(np.linalg.norm(POLYGONS[shape], axis=1).max())


def draw_alpha(shape: str, centre: np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    """Draw one filled shape with soft edges.

    Args:
        shape: one of settings.SHAPES.
        centre: [2] x, y in pixels; pixel i covers the interval from i to i + 1.
        radius: in pixels.
        size: (height, width) of the result.

    Returns:
        uint8 [height, width], 255 inside and 0 outside.
    """
    fine = np.zeros((size[0] * _FINER, size[1] * _FINER), dtype=np.uint8)
    factor = _FINER << _SHIFT
    x, y = float(centre[0]) * factor - (1 << _SHIFT) / 2, float(centre[1]) * factor - (1 << _SHIFT) / 2
    if shape in POLYGONS:
        points = np.round(POLYGONS[shape] * (radius * factor) + (x, y)).astype(np.int32)
        cv2.fillPoly(fine, [points], 255, cv2.LINE_8, _SHIFT)
    else:
        middle = (int(round(x)), int(round(y)))
        cv2.circle(fine, middle, int(round(radius * factor)), 255, -1, cv2.LINE_8, _SHIFT)
        if shape == "ring":
            cv2.circle(fine, middle, int(round(radius * RING_HOLE * factor)), 0, -1, cv2.LINE_8, _SHIFT)
    return cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA)


@cache
def _front_profile(shape: str, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """How far the shape of radius 1 reaches in a direction, for each sideways position (very negative: not at all)."""
    half = int(_PROFILE_PIXELS * _PROFILE_REACH)
    centre = np.array([half, half], dtype=np.float64)
    inside = draw_alpha(shape, centre, _PROFILE_PIXELS, (2 * half, 2 * half)) > 127
    if direction in ("up", "down"):
        inside = inside.T
    if direction in ("left", "up"):
        inside = inside[:, ::-1]
    positions = (np.arange(2 * half) + 0.5 - half) / _PROFILE_PIXELS
    reach = np.where(inside, positions + 0.5 / _PROFILE_PIXELS, -100.0).max(axis=1)
    return positions, reach


@cache
def extent(shape: str, direction: str) -> float:
    """How far the shape of radius 1 reaches from its centre in a direction."""
    return float(_front_profile(shape, direction)[1].max())


def contact_distance(
    shape_a: str, radius_a: float, shape_b: str, radius_b: float, direction: str, sideways: float
) -> float:
    """Distance between the centres, along ``direction``, at which a, coming from behind, touches b.

    Args:
        sideways: how far b's centre lies off a's line (positive: down for horizontal motion, right for vertical).

    Returns:
        The distance in the unit of the radii. The shapes must meet: ``abs(sideways)`` well below both radii.
    """
    positions_a, front = _front_profile(shape_a, direction)
    positions_b, back = _front_profile(shape_b, OPPOSITE[direction])
    lines = positions_a * radius_a
    reach_b = np.interp(lines - sideways, positions_b * radius_b, back * radius_b)
    return float((front * radius_a + reach_b).max())
