"""What the report page shows of frames and masks, small: thumbnails as WebP, masks as outlines in SVG path syntax."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import DataError

THUMBNAIL_WIDTH = 480
SMALL_SIDE = 200
"""A frame whose longer side is no larger is stored without loss: at that size compression eats what there is to see."""

MAX_FRAME_BYTES = 20_000
TOTAL_FRAME_BYTES = 9_000_000
"""Of all thumbnails together; base64 makes 12 MB of it."""

_ATTEMPTS = ((480, 75), (480, 60), (480, 42), (480, 25), (320, 25), (240, 15), (160, 10))
"""(width, WebP quality), tried in turn until a thumbnail fits its share."""

GRID = 512
"""Outlines are drawn on a grid whose longer side is about this long."""

MAX_PATH = 2400
"""Characters of one outline; a more ragged one is simplified further. Scores never use outlines."""

_TOLERANCES = (0.6, 1.2, 2.5, 5.0, 10.0)


def frame_share(count: int) -> int:
    """Bytes that one of ``count`` thumbnails may take."""
    return min(MAX_FRAME_BYTES, TOTAL_FRAME_BYTES // max(1, count))


def thumbnail(path: str | Path, share: int) -> str | None:
    """A frame as base64 WebP.

    Args:
        path: of the frame.
        share: bytes it should take; the last attempt is taken even if it is larger.

    Returns:
        base64 text, or None for a frame that cannot be read (the page says so in its place).
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
            frame = image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    small = [(frame.width, {"lossless": True, "quality": 60, "method": 4})] if max(frame.size) <= SMALL_SIDE else []
    for width, options in [*small, *((width, {"quality": quality, "method": 3}) for width, quality in _ATTEMPTS)]:
        height = max(1, round(frame.height * width / frame.width))
        fitting = frame if frame.width <= width else frame.resize((width, height), Image.Resampling.BOX)
        stream = io.BytesIO()
        fitting.save(stream, "WEBP", **options)
        if stream.tell() <= share:
            break
    return base64.b64encode(stream.getvalue()).decode("ascii")


def outline_grid(height: int, width: int) -> tuple[int, int]:
    """(width, height) of the grid for masks of that size: a whole multiple of a small one, else about GRID long."""
    longer = max(height, width)
    if longer <= GRID:
        factor = GRID // longer
        return width * factor, height * factor
    return max(1, round(width * GRID / longer)), max(1, round(height * GRID / longer))


def outline(mask: np.ndarray) -> str:
    """The border of a mask as an SVG path, to be filled by the even-odd rule.

    Args:
        mask: bool [H, W].

    Returns:
        Path in the coordinates of :func:`outline_grid`; empty for an empty mask only.

    Raises:
        DataError: the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise DataError(f"a mask has two dimensions [H, W]; this one is {mask.shape}")
    if not mask.any():
        return ""
    width, height = outline_grid(*mask.shape)
    small = _to_grid(mask, width, height)
    contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    for tolerance in _TOLERANCES:
        parts = [_path(cv2.approxPolyDP(contour, tolerance, True)[:, 0]) for contour in contours]
        if sum(map(len, parts)) <= MAX_PATH:
            return "".join(parts)
    room = np.searchsorted(np.cumsum([len(part) for part in parts]), MAX_PATH, side="right")
    return "".join(parts[: max(1, room)])


def _to_grid(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 0/1 [height, width]; a cell is set if most of it is, and a mask that is not empty stays so."""
    if width >= mask.shape[1]:
        return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    cover = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return (cover >= min(0.5, float(cover.max()))).astype(np.uint8)


def _path(points: np.ndarray) -> str:
    """A closed SVG path with relative moves from int points [n, 2]; one or two points become a small square each."""
    if len(points) < 3:
        return "".join(f"M{x} {y}h1v1h-1z" for x, y in points.tolist())
    steps = np.diff(points, axis=0).tolist()
    return f"M{points[0][0]} {points[0][1]}l" + " ".join(f"{x} {y}" for x, y in steps) + "z"
