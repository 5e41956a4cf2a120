"""Masks on disk: COCO run-length encoding, palette PNGs whose pixels are object ids, and unions.

Ids are never quantised: a PNG is read only in a mode whose pixel values are the ids that were written.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from utils.errors import DataError
from utils.files import atomic_write
from utils.pictures import MOST_PIXELS, MisfitError, open_picture

_ID_MODES = ("P", "L", "1")
_GREY_STEP = {2: 85, 4: 17}
"""Factor by which Pillow stretches 2- and 4-bit grey to 0..255 on reading; ids must not be stretched."""

_MAX_GROUP = 12
"""Longest 5-bit group of one run length that fits an int64."""


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode one mask as COCO run-length encoding.

    Args:
        mask: bool or 0/1 [H, W].

    Returns:
        ``{"size": [H, W], "counts": str}``; JSON can hold it.

    Raises:
        ValueError: the mask is not two-dimensional.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions [H, W]; this one is {mask.shape}")
    encoded = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Decode COCO run-length encoding, compressed (str or bytes) or as a plain list of run lengths.

    Args:
        rle: ``{"size": [H, W], "counts": ...}``.

    Returns:
        bool [H, W].

    Raises:
        DataError: keys are missing, or the runs do not fill exactly H x W pixels (a truncated or damaged entry).
    """
    height, width = rle_size(rle)
    counts = rle.get("counts")
    if isinstance(counts, list):
        runs = _as_runs(counts)
        if _fills(runs, height * width):
            counts = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    elif isinstance(counts, (str, bytes)):
        counts = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
        runs = parse_counts(counts)
    else:
        raise DataError(f"run-length 'counts' must be a string or a list, not {type(counts).__name__}")
    if not _fills(runs, height * width):
        raise DataError(
            f"run-length 'counts' do not fill {height} x {width} pixels; the entry is damaged: get the file again"
        )
    return coco.decode({"size": [height, width], "counts": counts}).view(bool)


def rle_size(rle: Any) -> tuple[int, int]:
    """(H, W) of a run-length encoded mask, without decoding it.

    Raises:
        DataError: there is no valid ``size``.
    """
    size = rle.get("size") if isinstance(rle, dict) else None
    valid = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)
    if not valid:
        raise DataError(f"a run-length mask needs 'size': [height, width] and 'counts'; got {str(rle)[:80]}")
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(f"a run-length mask of {size[0]:.3g} x {size[1]:.3g} pixels; the entry is damaged")
    return size[0], size[1]


def _as_runs(counts: list[Any]) -> np.ndarray | None:
    """Run lengths given as a list; None if they are not all integers, or longer than any mask."""
    if not all(isinstance(run, int) and run <= MOST_PIXELS for run in counts):
        return None
    return np.array(counts, dtype=np.int64)


def _fills(runs: np.ndarray | None, num_pixels: int) -> bool:
    """Whether the runs cover exactly that many pixels (pycocotools leaves the rest of a short mask uninitialised)."""
    return runs is not None and len(runs) > 0 and bool((runs >= 0).all()) and int(runs.sum()) == num_pixels


def parse_counts(counts: bytes | np.ndarray) -> np.ndarray | None:
    """Run lengths of a compressed string: 5 bits per character, little end first, from the third on as differences to
    the run before last.

    Args:
        counts: the string, or its bytes as uint8 [n].

    Returns:
        int64 [m], or None if the string is malformed.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUP:
        return None
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)  # sign of the highest group
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def read_id_mask(path: str | Path) -> np.ndarray:
    """Read a PNG whose pixel values are object ids (0: background).

    Args:
        path: PNG in mode P (palette), L (grey) or 1 (black and white: ids 0 and 1).

    Returns:
        uint8 [H, W]; the raw values, also of 2- and 4-bit grey files.

    Raises:
        DataError: the file is missing, no regular file, or unreadable.
        MisfitError: not a PNG, or in a mode that does not hold ids (RGB, RGBA, 16 bit).
    """
    path = Path(path)
    with open_picture(path, "mask") as image:
        require_id_mode(path, image)
        ids = np.array(image, dtype=np.uint8)
        mode = image.mode
    if mode == "L":
        ids //= _GREY_STEP.get(_bit_depth(path), 1)
    return ids


def require_id_mode(path: Path, image: Image.Image) -> None:
    """See that an opened picture holds ids; its header tells.

    Raises:
        MisfitError: not a PNG, or another mode.
    """
    if image.format != "PNG" or image.mode not in _ID_MODES:
        raise MisfitError(
            f"{path}: a mask must be a PNG in mode P or L, whose pixels are object ids; this is a {image.format} in "
            f"mode {image.mode}. Write it again as a palette PNG of 8 bits (ids cannot be recovered from colours)"
        )


def check_mask_header(path: str | Path) -> None:
    """See that a mask holds ids, from its header only.

    Raises:
        DataError: as :func:`read_id_mask`, as far as the header tells.
    """
    with open_picture(Path(path), "mask") as image:
        require_id_mode(Path(path), image)


def _bit_depth(path: Path) -> int:
    """Bits per sample in a PNG's header."""
    with open(path, "rb") as stream:
        return stream.read(25)[24]


def write_id_mask(path: str | Path, ids: np.ndarray) -> None:
    """Write object ids as a palette PNG, atomically; colours follow the PASCAL VOC palette.

    Args:
        path: file to write.
        ids: integers 0..255 [H, W].

    Raises:
        ValueError: wrong shape, or values outside 0..255.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or not (ids.dtype == bool or np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"an id mask is an integer array [H, W]; this one is {ids.dtype} {ids.shape}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= 255:
        raise ValueError(f"ids must lie in 0..255; these span {ids.min()}..{ids.max()}")
    image = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
    image.putpalette(palette().tobytes())  # turns the grey image into mode P; pixel values stay
    with atomic_write(path) as stream:
        image.save(stream, format="PNG")


@functools.lru_cache(maxsize=1)
def palette() -> np.ndarray:
    """The PASCAL VOC palette: uint8 [256, 3]; every id has its own colour, 0 is black. Read-only."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colours.setflags(write=False)
    return colours


def union(masks: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Logical or of any number of masks.

    Args:
        masks: bool or 0/1 [H, W] each; may be none.
        shape: (H, W) of the result.

    Returns:
        bool [H, W]; overlaps count once.

    Raises:
        ValueError: a mask has another shape.
    """
    total = np.zeros(shape, dtype=bool)
    for mask in masks:
        if mask.shape != total.shape:
            raise ValueError(f"cannot join a mask of shape {mask.shape} with one of shape {total.shape}")
        total |= mask != 0
    return total


class IdMaskCache:
    """Keeps the last few id masks in memory: one frame is asked for once per question.

    Args:
        size: masks kept. A 720p mask takes 0.9 MB.

    A copy in another process starts empty.
    """

    def __init__(self, size: int = 64):
        self._size = size
        self._read = functools.lru_cache(maxsize=size)(_read_frozen)

    def read(self, path: Path) -> np.ndarray:
        """As :func:`read_id_mask`; the array is shared, hence read-only."""
        return self._read(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return IdMaskCache, (self._size,)


def _read_frozen(path: Path) -> np.ndarray:
    """An id mask that nobody can change by accident."""
    ids = read_id_mask(path)
    ids.setflags(write=False)
    return ids
