"""Looking at single files of frames and masks: what a header says, what decoding says, what a folder holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import DataError
from utils.masks import decode_rle, read_id_mask, require_id_mode, rle_size
from utils.pictures import MisfitError, open_picture
from utils.video import frame_size, read_frame

CONVENTIONS = {"frame_%06d": re.compile(r"frame_\d{6}"), "%07d": re.compile(r"\d{7}"), "%05d": re.compile(r"\d{5}")}
"""Published ways of naming frames, without suffix. The last one is that of Refer-YouTube-VOS and MeViS."""


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
    except MisfitError as error:
        return Look(mistakes=(("frame-mode", str(error)),))
    except DataError as error:
        return Look(mistakes=(("frame-unreadable", str(error)),))


def look_at_mask(
    mask: Path | tuple[Any, ...], decode: bool, size: tuple[int, int] | None = None, names: Sequence[int] = ()
) -> Look:
    """Read a mask's header and, if ``decode``, all of it.

    Args:
        mask: a PNG of ids; or run-length masks of one frame, one per object or None where it has none: object k gets
            id k + 1.
        decode: else sizes and modes alone are checked.
        size: (H, W) of the frame, if it is known, for run-length masks; else that of the first.
        names: annotation ids of run-length masks, for messages.
    """
    return _look_at_png(mask, decode) if isinstance(mask, Path) else _look_at_rles(mask, decode, size, names)


def _look_at_png(path: Path, decode: bool) -> Look:
    size, mode, kind = None, "", "mask-unreadable"
    try:
        with open_picture(path, "mask") as image:
            if image.format == "PNG":
                size, mode, kind = (image.height, image.width), image.mode, "mask-mode"
            require_id_mode(path, image)
        return Look(size, read_id_mask(path) if decode else None, mode)
    except MisfitError as error:
        return Look(size, None, mode, ((kind, str(error)),))
    except DataError as error:
        return Look(mistakes=(("mask-unreadable", str(error)),))


def _look_at_rles(rles: Sequence[Any], decode: bool, size: tuple[int, int] | None, names: Sequence[int]) -> Look:
    joined, mistakes = None, []
    for number, rle in enumerate(rles):
        if rle is None:
            continue
        name = f"annotation {names[number]}: " if names else ""
        try:
            own = rle_size(rle)
            mask = decode_rle(rle) if decode else None
        except DataError as error:
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


def convention(path: Path) -> str:
    """Name of the convention a frame's name follows, or "other"."""
    return next((name for name, pattern in CONVENTIONS.items() if pattern.fullmatch(path.stem)), "other")
