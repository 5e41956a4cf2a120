"""The contact sheet: the worst suspects as pictures, each under its kind, video and reason."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.doctor.files import look_at_frame, look_at_mask
from datasets.doctor.findings import KINDS, Finding, Findings, Picture
from utils.drawing import COLOURS, contact_sheet, draw_overlay, fit_mask, write_png
from utils.errors import DataError
from utils.pictures import open_picture

_COLUMNS, _WIDTH = 6, 240
_GREY = 225
_SOFTWARE = "MoRA data doctor"
"""Written into every sheet, so that a later run knows it for its own."""

_FOLDERS = re.compile(r"\S*/(?=[^/\s])")


def worst(findings: Findings, cells: int) -> list[Finding]:
    """Findings that can be drawn: every kind in turn, severest kinds first, until that many pictures are chosen.

    Args:
        findings: all.
        cells: at most about this many pictures.
    """
    severe = sorted(findings.kinds(), key=lambda kind: (KINDS[kind].severity != "error", kind != "drift-suspect"))
    queues = {kind: [finding for finding in findings.of(kind) if finding.pictures] for kind in severe}
    chosen: list[Finding] = []
    used = 0
    while used < cells and any(queues.values()):
        for queue in queues.values():
            if queue and used < cells:
                chosen.append(queue.pop(0))
                used += sum(2 if picture.fitting is not None else 1 for picture in chosen[-1].pictures)
    return sorted(chosen, key=lambda finding: severe.index(finding.kind))


def draw_sheet(chosen: Sequence[Finding], title: str) -> np.ndarray:
    """Draw the chosen findings.

    Args:
        chosen: from :func:`worst`; at least one.
        title: at the top.

    Returns:
        uint8 RGB [H, W, 3]. A drift suspect takes a row of its own, cut to the object that moves most: each moment
        with the mask filed under it, then with the one that fits better. The others follow side by side.
    """
    rows: list[list[np.ndarray]] = []
    captions: list[str] = []
    notes: list[list[str]] = []
    drifting = [finding for finding in chosen if any(picture.fitting is not None for picture in finding.pictures)]
    for finding in drifting:
        cells, words = _pairs(finding)
        rows.append(cells)
        notes.append(words)
        captions.append(f"{_head(finding)}: {finding.place}\n{_short(finding.message, 400)}")
    others = [(finding, picture) for finding in chosen if finding not in drifting for picture in finding.pictures]
    for first in range(0, len(others), _COLUMNS):
        part = others[first : first + _COLUMNS]
        rows.append([draw(picture) for _, picture in part])
        notes.append([_caption(finding, picture) for finding, picture in part])
        captions.append("" if first or not drifting else "Other findings")
    while len(rows[0]) < 3:  # room for the words when there is little to show
        rows[0].append(np.full((1, 1, 3), 255, dtype=np.uint8))
    return contact_sheet(rows, captions, notes, title=title, frame_width=_WIDTH)


def write_sheet(findings: Findings, title: str, path: Path, cells: int) -> bool:
    """Draw the worst of what was found; False, and no file, if nothing can be drawn.

    Raises:
        OSError: the file cannot be written.
    """
    chosen = worst(findings, cells)
    if not chosen:
        return False
    write_png(path, draw_sheet(chosen, title), _SOFTWARE)
    return True


def is_sheet(path: Path) -> bool:
    """Whether a file is a picture that :func:`write_sheet` wrote."""
    try:
        with open_picture(path, "picture") as image:
            return image.info.get("Software") == _SOFTWARE
    except DataError:
        return False


def _pairs(finding: Finding) -> tuple[list[np.ndarray], list[str]]:
    cells, words = [], []
    for picture in finding.pictures:
        for mask, what in ((picture.mask, "mask as filed"), (picture.fitting, "mask that fits")):
            cells.append(draw(dataclasses.replace(picture, mask=mask), around=moving_region(picture), alpha=0.0))
            words.append(f"{picture.note}: {what}")
    return cells, words


def _head(finding: Finding) -> str:
    return f"{finding.severity.upper()} {finding.kind}"


def _short(message: str, most: int) -> str:
    """Paths cut to their last name, and the rest to a number of letters."""
    message = _FOLDERS.sub("", message)
    return message if len(message) <= most else f"{message[: most - 3]}..."


def _caption(finding: Finding, picture: Picture) -> str:
    return f"{_head(finding)}\n{finding.place}, {picture.note}\n{_short(finding.message, 140)}"


def moving_region(picture: Picture) -> tuple[slice, slice] | None:
    """Rows and columns around the object whose two masks differ most, in the frame's proportions."""
    filed, fitting = _ids(picture.mask), _ids(picture.fitting)
    if filed is None or fitting is None or filed.shape != fitting.shape:
        return None
    values = np.unique(np.concatenate([filed[filed != fitting], fitting[filed != fitting]]))
    areas = {value: int(((filed == value) != (fitting == value)).sum()) for value in values.tolist() if value}
    if not areas:
        return None
    moving = max(areas, key=areas.get)
    where = np.argwhere((filed == moving) | (fitting == moving))
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
    height, width = filed.shape
    share = min(1.0, max(0.2, 1.6 * (bottom - top) / height, 1.6 * (right - left) / width))
    tall, wide = max(1, round(share * height)), max(1, round(share * width))
    top = int(np.clip((top + bottom - tall) // 2, 0, height - tall))
    left = int(np.clip((left + right - wide) // 2, 0, width - wide))
    return slice(top, top + tall), slice(left, left + wide)


def draw(picture: Picture, around: tuple[slice, slice] | None = None, alpha: float = 0.4) -> np.ndarray:
    """A frame with the objects of its mask, filled and outlined.

    Args:
        picture: what to draw. A mask without ids (colours) is blended over the frame as it is.
        around: rows and columns to show; None: all.
        alpha: of the filling; 0: outlines alone.

    Returns:
        uint8 RGB [H, W, 3]; a grey field stands for a frame that cannot be read.
    """
    frame = look_at_frame(picture.frame, decode=True)
    pixels, ids = frame.pixels, _ids(picture.mask, frame.size)
    if pixels is None:
        pixels = np.full((*(ids.shape if ids is not None else (90, 160)), 3), _GREY, dtype=np.uint8)
    if ids is None:
        colours = look_at_frame(picture.mask, decode=True).pixels if isinstance(picture.mask, Path) else None
        if colours is None:
            return pixels
        return cv2.addWeighted(pixels, 0.5, fit_mask(colours, pixels.shape[:2]), 0.5, 0)
    if ids.shape != pixels.shape[:2]:
        ids = fit_mask(ids, pixels.shape[:2])
    if around is not None:
        pixels, ids = pixels[around], ids[around]
    values = [value for value in np.unique(ids).tolist() if value and (not picture.ids or value in picture.ids)]
    values = values[: 4 * len(COLOURS)]
    colours = [COLOURS[(value - 1) % len(COLOURS)] for value in values]
    masks = [ids == value for value in values]
    return draw_overlay(pixels, masks, colours or COLOURS, alpha, truth=masks, min_side=_WIDTH)


def _ids(mask: Any, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """The ids of a picture's mask (of run-length masks those of the frame's size); None if there are none."""
    return None if mask is None else look_at_mask(mask, True, size).pixels
