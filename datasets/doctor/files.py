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
from utils.video import frame_size, read_frame, scan_images

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


def look_at_png(path: Path, decode: bool) -> Look:
    """Read an id mask's header and, if ``decode``, all of it."""
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


def images_in(folder: Path) -> list[Path]:
    """Images of a folder, sorted by name; empty if there is no such folder."""
    try:
        return sorted(scan_images(folder)[0])
    except DataError:
        return []


def impostors_in(folder: Path) -> list[Path]:
    """What has an image's name in a folder and is no file: pipes, folders, links to nothing."""
    try:
        return scan_images(folder)[1]
    except DataError:
        return []


def folders_in(folder: Path) -> list[str]:
    """Names of a folder's folders, sorted, without hidden ones; empty if it cannot be listed."""
    try:
        found = list(folder.iterdir())
    except OSError:
        return []
    return sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))


def strays_in(folder: Path) -> list[Path]:
    """Whatever lies in a folder of images and has no image's name; hidden files are left out."""
    try:
        found = list(folder.iterdir())
    except OSError:
        return []
    images = {*images_in(folder), *impostors_in(folder)}
    return sorted(path for path in found if path not in images and not path.name.startswith("."))


def convention(path: Path) -> str:
    """Name of the convention a frame's name follows, or "other"."""
    return next((name for name, pattern in CONVENTIONS.items() if pattern.fullmatch(path.stem)), "other")
