"""Frames in folders and video files: list and read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import DataError
from utils.pictures import MisfitError, open_picture

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What counts as a frame, in any case of letters."""

_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def frame_number(name: str | Path) -> int | None:
    """The frame's number: the last run of digits in the stem ("frame_000012.jpg" and "0000012.png" -> 12), or None."""
    match = _LAST_NUMBER.search(Path(name).stem)
    return int(match.group(1)) if match else None


def frame_order(path: str | Path) -> tuple[bool, int, str]:
    """Sort key of frames: by number; those without one last, by name."""
    number = frame_number(path)
    return number is None, number or 0, Path(path).name


def scan_images(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Image files of a folder in no particular order; and what has an image's name and is no file: pipes, folders,
    links to nothing. Hidden ones ("._x.png" of archives made on a Mac) are left out.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    files, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(FRAME_SUFFIXES) and not entry.name.startswith("."):
                    (files if _is_file(entry) else others).append(folder / entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{folder}: cannot list this folder ({reason}); check the path") from None
    return files, sorted(others)


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


_AS_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes that Pillow turns into RGB of 8 bits as they are meant; an alpha channel is dropped."""

_OF_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def _depth(path: Path, image: Image.Image) -> int:
    """Bits per channel of an opened frame: 8 or 16.

    Raises:
        MisfitError: a mode whose range of levels is unknown, or that is no picture for the eye.
    """
    if image.mode in _AS_8_BIT:
        return 8
    if image.mode in _OF_16_BIT or (image.mode == "I" and image.format == "PNG"):  # as Pillow up to 11 reads them
        return 16
    raise MisfitError(
        f"{path}: a frame has 8 or 16 bits per channel, grey or colours; this is a {image.format} in mode "
        f"{image.mode}, whose levels cannot be told: write it again as JPEG or as PNG of 8 bits"
    )


def read_frame(path: str | Path) -> np.ndarray:
    """Read one frame.

    Returns:
        uint8 RGB [H, W, 3], as stored (no EXIF rotation, so that it fits its mask; no colour profile). Of 16 bits the
        upper 8 count; an alpha channel is dropped; grey is three equal channels.

    Raises:
        DataError: missing, no regular file, empty, truncated or not an image.
        MisfitError: several pictures in one file, or a mode that is no frame's (see docs/data.md).
    """
    path = Path(path)
    with open_picture(path, "frame") as image:
        if _depth(path, image) == 8:
            return np.array(image.convert("RGB"))
        grey = (np.array(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)


def frame_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of a frame, from its header only.

    Raises:
        DataError: as :func:`read_frame`, as far as the header tells.
    """
    path = Path(path)
    with open_picture(path, "frame") as image:
        _depth(path, image)
        width, height = image.size
    return height, width


def read_video(path: str | Path, fps: float | None = None) -> tuple[np.ndarray, float]:
    """Decode a video file (mp4 and what else FFmpeg reads) with decord; frames are upright, as players show them.

    Args:
        path: the file.
        fps: frames per second wanted; the nearest earlier frames are taken (repeated where the file has fewer).
            None: every frame at the file's own rate.

    Returns:
        (uint8 RGB [T, H, W, 3], frames per second of the result).

    Raises:
        DataError: decord is not installed, or the file is missing, unreadable or holds no frame.
        ValueError: fps is not positive.
    """
    path = Path(path)
    if fps is not None and fps <= 0:
        raise ValueError(f"fps must be positive, not {fps}")
    if not path.is_file():
        raise DataError(f"{path}: no such video file; check the path")
    try:
        import decord
    except ImportError:
        raise DataError(
            f"{path}: reading video files needs decord (pip install decord); or extract the frames as "
            "JPEG into a folder and give that"
        ) from None
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        total, native = len(reader), float(reader.get_avg_fps())
        if total == 0 or not native > 0:
            raise DataError(f"{path}: no frame in this video file")
        wanted = native if fps is None else fps
        count = total if fps is None else max(1, int(total / native * fps + 0.5))
        indices = np.minimum((np.arange(count) * (native / wanted) + 1e-6).astype(np.int64), total - 1)
        frames = _read_turned(path, indices)
        return reader.get_batch(indices).asnumpy() if frames is None else frames, wanted
    except (RuntimeError, decord.DECORDError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot decode this video ({reason}); is it complete?") from None


def _read_turned(path: Path, indices: np.ndarray) -> np.ndarray | None:
    """Frames uint8 RGB [T, H, W, 3] of a video that players turn (phones film so), by OpenCV; None for any other.

    decord 0.6 fails on turned videos of some widths, whose rows it takes to be padded as before the turn.

    Raises:
        DataError: the file ends early.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        if not int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360:
            return None
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        frames, wanted = [], set(indices.tolist())
        for index in range(int(indices.max()) + 1):
            there, frame = capture.read() if index in wanted else (capture.grab(), None)
            if not there:
                raise DataError(f"{path}: only {index} frames can be decoded; is it complete?")
            if frame is not None:
                frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()
    return np.stack(frames)[np.unique(indices, return_inverse=True)[1]]
