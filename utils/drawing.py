"""Pictures for people: masks over frames, outlines of the truth, captions, curves over time, sheets of many frames."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from utils.files import atomic_write

COLOURS = ((230, 60, 60), (60, 120, 240), (250, 190, 40), (60, 190, 90), (190, 80, 220), (40, 200, 210))
"""Fill colours of masks, RGB; used in turn."""

TRUTH_COLOUR = (255, 255, 255)
"""Outline of the ground truth, drawn on a dark line so that it shows on any background."""

_PLAIN = str.maketrans({"—": "-", "–": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "…": "..."})
_PAPER, _INK, _GAP = (255, 255, 255), (20, 20, 20), 4


def draw_overlay(
    frame: np.ndarray,
    masks: Sequence[np.ndarray],
    colours: Sequence[tuple[int, int, int]] = COLOURS,
    alpha: float = 0.5,
    truth: Sequence[np.ndarray] = (),
    truth_colours: Sequence[tuple[int, int, int]] = (TRUTH_COLOUR,),
    min_side: int = 160,
) -> np.ndarray:
    """Fill predicted masks and outline true ones.

    Args:
        frame: uint8 RGB [H, W, 3]; not changed.
        masks: bool or 0/1 [H, W] each; filled, in the order given.
        colours: RGB of each mask, used in turn.
        alpha: 0 (invisible) to 1 (opaque).
        truth: bool or 0/1 [H, W] each; outlined, in the order given.
        truth_colours: RGB of each outline, used in turn.
        min_side: a frame whose shorter side is smaller is first enlarged by a whole number, pixel by pixel, so that
            outlines do not cover what they surround. 1: never.

    Returns:
        uint8 RGB [H, W, 3], or a whole multiple of that size.

    Raises:
        ValueError: a mask does not have the frame's size.
    """
    picture = np.array(frame, dtype=np.uint8)
    for mask in (*masks, *truth):
        if mask.shape != picture.shape[:2]:
            raise ValueError(f"a mask of shape {mask.shape} does not fit a frame of shape {picture.shape}")
    factor = max(1, -(-min_side // min(picture.shape[:2])))
    picture = _enlarge(picture, factor)
    for number, mask in enumerate(masks):
        inside = _enlarge(mask != 0, factor)
        colour = np.array(colours[number % len(colours)], dtype=np.float32)
        picture[inside] = np.rint(picture[inside] * (1 - alpha) + colour * alpha).astype(np.uint8)
    width = max(1, round(min(picture.shape[:2]) / 240))
    for number, mask in enumerate(truth):
        inside = _enlarge(mask != 0, factor).astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, (0, 0, 0), 3 * width)
        cv2.drawContours(picture, contours, -1, truth_colours[number % len(truth_colours)], width)
    return picture


def _enlarge(array: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel of [H, W, ...] along both sides."""
    return array.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else array


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    row_captions: Sequence[str] = (),
    frame_captions: Sequence[Sequence[str]] = (),
    title: str = "",
    frame_width: int = 160,
    marks: Sequence[Sequence[bool]] = (),
) -> np.ndarray:
    """Frames in rows, each row under its caption: one row per question, one column per moment.

    Args:
        rows: uint8 RGB [H, W, 3] pictures; rows may differ in length. At least one picture in all.
        row_captions: text above each row, wrapped; may be empty.
        frame_captions: text under each picture (frame number, score); may be empty.
        title: text at the top, wrapped.
        frame_width: width of each picture on the sheet, in pixels; small frames are enlarged without smoothing.
        marks: per picture, whether it gets a coloured bar at its foot (for example: inside the action's window).

    Returns:
        uint8 RGB [sheet height, sheet width, 3].

    Raises:
        ValueError: there is no picture.
    """
    longest = max((len(row) for row in rows), default=0)
    if longest == 0:
        raise ValueError("a contact sheet needs at least one picture")
    width = longest * (frame_width + _GAP) + _GAP
    parts = [text_strip(title, width, size=18)] if title else []
    for row, caption, notes, flags in zip_longest(rows, row_captions, frame_captions, marks, fillvalue=()):
        if caption:
            parts.append(text_strip(caption, width))
        cells = [_cell(frame, frame_width, *beside) for frame, *beside in zip_longest(row, notes, flags)]
        if cells:
            parts.append(_join(cells, width))
    return np.concatenate(parts, axis=0)


def text_strip(text: str, width: int, size: int = 13) -> np.ndarray:
    """Dark text on white, wrapped to the width.

    Args:
        text: Latin letters; dashes, quotes and dots that Pillow's font lacks are replaced by plain ones.
        width: pixels.
        size: of the letters, pixels.

    Returns:
        uint8 RGB [height, width, 3].
    """
    font, line_height = _font(size), round(size * 1.4)
    lines = _wrap(text.translate(_PLAIN), font, width - 2 * _GAP)
    strip = Image.new("RGB", (width, line_height * len(lines) + 2 * _GAP), _PAPER)
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + number * line_height), line, fill=_INK, font=font)
    return np.array(strip)


def time_curve(
    values: np.ndarray, shaded: np.ndarray, threshold: float, width: int, cursor: int | None = None
) -> np.ndarray:
    """A probability per frame as a curve over a shaded window.

    Args:
        values: float [T] in [0, 1], or NaN for a frame without one.
        shaded: bool [T]; frames of the window.
        threshold: drawn as a dashed line.
        width: of the picture in pixels.
        cursor: frame at which a vertical line stands; None: no line.

    Returns:
        uint8 RGB [70, width, 3].
    """
    height, edges = 70, np.linspace(4, width - 4, len(values) + 1).round().astype(int)
    picture = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    top, bottom, middles = 6, height - 6, (edges[:-1] + edges[1:]) // 2

    def y_of(value: float) -> int:
        return round(bottom - (bottom - top) * float(value))

    for index in np.flatnonzero(shaded):
        picture[top : bottom + 1, edges[index] : edges[index + 1]] = (214, 238, 220)
    picture[[top, bottom], 4:-4] = (200, 200, 200)
    for x in range(4, width - 4, 12):
        picture[y_of(threshold), x : x + 6] = (120, 120, 120)
    points = np.array([(x, y_of(value)) for x, value in zip(middles, values) if not np.isnan(value)], dtype=np.int32)
    cv2.polylines(picture, [points] if len(points) else [], False, COLOURS[0], 2, cv2.LINE_AA)
    for point in points.tolist():
        cv2.circle(picture, point, 3, COLOURS[0], -1, cv2.LINE_AA)
    if cursor is not None:
        picture[:, middles[cursor] - 1 : middles[cursor] + 1] = _INK
    return picture


def grey(frame: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] without its colours."""
    return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask or id map [H, W] at another (height, width), by picking the nearest pixel."""
    rows, columns = (np.arange(wanted) * given // wanted for wanted, given in zip(size, mask.shape))
    return mask[rows[:, None], columns]


def write_png(path: Path, picture: np.ndarray, mark: str) -> None:
    """Write a picture, uint8 RGB [h, w, 3], atomically; ``mark`` in it says which program drew it.

    Raises:
        OSError: it cannot be written.
    """
    notes = PngInfo()
    notes.add_text("Software", mark)
    with atomic_write(path) as stream:
        Image.fromarray(picture).save(stream, "PNG", pnginfo=notes)


def _cell(frame: np.ndarray, width: int, note: str | None, mark: bool | None) -> np.ndarray:
    """One picture scaled to the width, with a bar (coloured if ``mark``, pale if not, none for None) and its note."""
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    method = cv2.INTER_AREA if frame.shape[1] >= width else cv2.INTER_NEAREST
    parts = [cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=method)]
    if mark is not None:
        parts.append(np.full((_GAP, width, 3), (40, 160, 80) if mark else (215, 215, 215), dtype=np.uint8))
    if note:
        parts.append(text_strip(note, width, size=11))
    return np.concatenate(parts, axis=0)


def _join(cells: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Pictures side by side on paper of the sheet's width."""
    height = max(cell.shape[0] for cell in cells) + _GAP
    row = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    left = _GAP
    for cell in cells:
        row[: cell.shape[0], left : left + cell.shape[1]] = cell
        left += cell.shape[1] + _GAP
    return row


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines no wider than the width; a single longer word keeps its own line."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)
