"""Opening pictures as they are found: whatever is wrong with a file, the error is a DataError that names it."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image

from utils.errors import DataError
from utils.files import POINTER, is_pointer, not_a_file

MOST_PIXELS = 1 << 26
"""Twice an 8K frame. A header that claims more is damaged, or made to fill the memory."""

_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises on bad files."""


class MisfitError(DataError):
    """A sound picture that cannot be a frame or a mask: its mode, depth or number of pictures does not fit."""


@contextlib.contextmanager
def open_picture(path: Path, what: str) -> Iterator[Image.Image]:
    """Open a picture; its pixels are decoded when the block asks for them.

    Args:
        path: the file.
        what: "frame" or "mask", for messages.

    Raises:
        DataError: the file is missing, no regular file, empty, truncated or no picture; raised by the block, too.
        MisfitError: it holds several pictures, or claims more than MOST_PIXELS pixels.
    """
    reason = not_a_file(path)
    if reason:
        reason = f"no such {what}" if reason == "no such file" else reason
        raise DataError(f"{path}: {reason}; check the path, or get the {what} again")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise MisfitError(_too_large(path, what, f"{image.height} x {image.width} (height x width)"))
            # Cameras add a preview to a JPEG (MPO); the first picture is the one that every reader takes.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise MisfitError(f"{path}: holds {image.n_frames} pictures, a {what} is a single one; write it again")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MisfitError(_too_large(path, what, "hundreds of millions of pixels")) from None
    except _BROKEN as error:
        if is_pointer(path):
            raise MisfitError(f"{path}: {POINTER}") from None
        reason = "the file is empty" if path.stat().st_size == 0 else str(error) or type(error).__name__
        remedy = "get the file again" if what == "frame" else "the file is damaged: get it again"
        raise DataError(f"{path}: cannot read this {what} ({reason}); {remedy}") from None


def is_turned(path: Path) -> bool:
    """Whether a picture's EXIF data ask for it to be shown turned or mirrored; frames are read as stored.

    Raises:
        DataError: as :func:`open_picture`.
    """
    with open_picture(path, "frame") as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _too_large(path: Path, what: str, claimed: str) -> str:
    return (
        f"{path}: this {what} claims {claimed}, more than the {MOST_PIXELS:,} pixels that are read; its header is "
        "damaged: get the file again, or write it smaller"
    )
