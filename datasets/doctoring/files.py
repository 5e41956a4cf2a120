"""Looking at single files of frames and masks: what a header says, what decoding says, what a folder holds."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import DataError
from utils.masks import _ID_MODES, decode_rle, read_id_mask, rle_size
from utils.video import frame_size, image_files, read_frame

CONVENTIONS = {"frame_%06d": re.compile(r"frame_\d{6}"), "%07d": re.compile(r"\d{7}"), "%05d": re.compile(r"\d{5}")}
"""Published ways of naming frames, without suffix. The last one is that of Refer-YouTube-VOS and MeViS."""

_UNREADABLE = (DataError, Image.DecompressionBombError, zlib.error, EOFError)
"""What opening or decoding a bad image may raise; utils turns most of it into a DataError."""


@dataclass(frozen=True)
class Look:
    """What is known of one frame or mask after looking at it.

    Attributes:
        size: (H, W), or None if not even that can be read; of run-length masks None (see ``mistakes``).
        pixels: uint8 RGB [H, W, 3] or integer ids [H, W]; None if unreadable or not asked for.
        mode: of a PNG mask ("P", "L", …), else "".
        mistakes: (key of KINDS, message) each.
    """

    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    mode: str = ""
    mistakes: tuple[tuple[str, str], ...] = ()


def look_at_frame(path: Path, decode: bool) -> Look:
    """Read a frame's header and, if ``decode``, all of it."""
    try:
        if not decode:
            return Look(frame_size(path))
        pixels = read_frame(path)
        return Look(pixels.shape[:2], pixels)
    except _UNREADABLE as error:
        return Look(mistakes=(("frame-unreadable", _told(error, path)),))


def look_at_png(path: Path, decode: bool) -> Look:
    """Read an id mask's header and, if ``decode``, all of it."""
    try:
        with Image.open(path) as image:
            size, mode, png = (image.height, image.width), image.mode, image.format == "PNG"
        if png and mode not in _ID_MODES:
            message = f"{path}: mode {mode}; ids cannot be recovered from colours: write it again as a palette PNG"
            return Look(size, None, mode, (("mask-mode", message),))
        return Look(size, read_id_mask(path) if decode or not png else None, mode)
    except _UNREADABLE as error:
        return Look(mistakes=(("mask-unreadable", _told(error, path)),))
    except (OSError, SyntaxError, ValueError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        reason = "the file is empty" if empty else f"{type(error).__name__}: {error}"
        message = f"{path}: cannot read this mask ({reason}); get the file again"
        return Look(mistakes=(("mask-unreadable", message),))


def look_at_rles(
    rles: Sequence[Any], decode: bool, size: tuple[int, int] | None = None, names: Sequence[int] = ()
) -> Look:
    """Check the run-length masks of one frame and, if ``decode``, join them; object k gets id k + 1.

    Args:
        rles: one per object, or None where it has none.
        decode: else their sizes alone are checked.
        size: (H, W) of the frame, if it is known; else the first mask's.
        names: annotation ids, for messages.
    """
    joined, mistakes = None, []
    for number, rle in enumerate(rles):
        if rle is None:
            continue
        name = f"annotation {names[number]}: " if names else ""
        try:
            own = rle_size(rle)
            mask = decode_rle(rle) if decode else None
        except _UNREADABLE as error:
            mistakes.append(("rle-damaged", f"{name}{error}"))
            continue
        size = size or own
        if own != size:
            mistakes.append(("mask-size", f"{name}the mask is {by(own)}, the frame {by(size)} (height x width)"))
        elif mask is not None:
            joined = np.zeros(size, dtype=np.uint16) if joined is None else joined
            joined[mask] = number + 1
    if joined is None and decode and size is not None:
        joined = np.zeros(size, dtype=np.uint16)
    return Look(None, joined, "", tuple(mistakes))


def by(size: tuple[int, int]) -> str:
    """ "360 x 640" of (360, 640)."""
    return f"{size[0]} x {size[1]}"


def _told(error: Exception, path: Path) -> str:
    """The error as a sentence that begins with the file."""
    text = str(error)
    return text if text.startswith(str(path)) else f"{path}: cannot read this file ({type(error).__name__}: {text})"


def images_in(folder: Path) -> list[Path]:
    """Images of a folder, sorted by name; empty if there is no such folder."""
    try:
        return sorted(image_files(folder))
    except DataError:
        return []


def folders_in(folder: Path) -> list[str]:
    """Names of a folder's folders, sorted, without hidden ones; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def strays_in(folder: Path) -> list[Path]:
    """Whatever lies in a folder of images and is none; hidden files are left out."""
    try:
        found = list(folder.iterdir())
    except OSError:
        return []
    images = set(images_in(folder))
    return sorted(path for path in found if path not in images and not path.name.startswith("."))


def convention(path: Path) -> str:
    """Name of the convention a frame's name follows, or "other"."""
    return next((name for name, pattern in CONVENTIONS.items() if pattern.fullmatch(path.stem)), "other")
