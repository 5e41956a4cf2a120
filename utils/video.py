"""Frames in folders and video files: list, read, write."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import uuid
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import DataError

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


def list_frames(folder: str | Path) -> tuple[Path, ...]:
    """Every frame of a clip in time order, whatever its naming convention. Hidden and other files are passed over.

    Args:
        folder: holds .jpg, .jpeg or .png files.

    Returns:
        Paths sorted by :func:`frame_order`; at least one.

    Raises:
        DataError: the folder is missing or has no frame, or two files claim the same frame number.
    """
    folder = Path(folder)
    frames = sorted(image_files(folder), key=frame_order)
    if not frames:
        raise DataError(f"{folder}: no frame (.jpg, .jpeg, .png) in this folder; extract the video's frames there")
    for first, second in zip(frames, frames[1:]):
        if frame_number(first) is not None and frame_number(first) == frame_number(second):
            raise DataError(
                f"{folder}: {first.name} and {second.name} are both frame {frame_number(first)}; keep one of them"
            )
    return tuple(frames)


def image_files(folder: str | Path) -> list[Path]:
    """Image files of a folder in no particular order; hidden ones ("._x.png" of archives made on a Mac) left out.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    folder = Path(folder)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise DataError(f"{folder}: cannot list this folder ({error.strerror}); check the path") from None
    return [folder / name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")]


@contextlib.contextmanager
def _naming(path: Path):
    """Turn whatever Pillow raises on a bad file into an error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such frame; check the path, or extract the video again") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        empty = path.is_file() and path.stat().st_size == 0
        reason = "the file is empty" if empty else str(error)
        raise DataError(f"{path}: cannot read this frame ({reason}); get the file again") from None


def read_frame(path: str | Path) -> np.ndarray:
    """Read one frame.

    Returns:
        uint8 RGB [H, W, 3], as stored (no EXIF rotation, so that it fits its mask).

    Raises:
        DataError: missing, empty, truncated or not an image.
    """
    path = Path(path)
    with _naming(path), Image.open(path) as image:
        return np.array(image.convert("RGB"))


def frame_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of a frame, from its header only.

    Raises:
        DataError: missing, empty or not an image.
    """
    path = Path(path)
    with _naming(path), Image.open(path) as image:
        width, height = image.size
    return height, width


def read_video(path: str | Path, fps: float | None = None) -> tuple[np.ndarray, float]:
    """Decode a video file (mp4 and what else FFmpeg reads) with decord.

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
        return reader.get_batch(indices).asnumpy(), wanted
    except (RuntimeError, decord.DECORDError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot decode this video ({reason}); is it complete?") from None


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an mp4 (MPEG-4 part 2), atomically. Odd sides lose their last row or column, as the codec needs even ones.

    Args:
        path: file to write; its folder is made if missing.
        frames: uint8 RGB [H, W, 3] each, all of one size of at least 2 x 2; at least one. Consumed one by one.
        fps: frames per second.

    Raises:
        ValueError: no frame, or frames of different sizes.
        OSError: the video cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp.mp4")
    writer, shape = None, None
    try:
        for frame in frames:
            if writer is None:
                shape = frame.shape
                size = (shape[1] // 2 * 2, shape[0] // 2 * 2)
                writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), float(fps), size)
                if not writer.isOpened():
                    raise OSError(f"{path}: OpenCV cannot write an mp4 of {size[0]} x {size[1]}; is the disk full?")
            if frame.shape != shape:
                raise ValueError(f"{path}: frames must have one size; got {shape} and then {frame.shape}")
            writer.write(cv2.cvtColor(np.ascontiguousarray(frame[: size[1], : size[0]]), cv2.COLOR_RGB2BGR))
        if writer is None:
            raise ValueError(f"{path}: no frame to write")
        writer.release()
        _require_playable(temporary, path)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        if writer is not None:
            writer.release()
        temporary.unlink(missing_ok=True)
        raise


def _require_playable(temporary: Path, path: Path) -> None:
    """OpenCV does not report a failed write; a file cut short by a full disk cannot be opened again."""
    capture = cv2.VideoCapture(str(temporary))
    playable = capture.isOpened() and capture.read()[0]
    capture.release()
    if not playable:
        raise OSError(f"{path}: the video was not written completely; is the disk full?")
