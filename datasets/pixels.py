"""From frames to pixels: what the segmenter's and the backbone's encoders are given.

All resize with Pillow, as segment_anything's ResizeLongestSide, CLIP's and Qwen2-VL's image processors do; results
equal theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.batch import PixelRule
from utils.errors import ConfigError, DataError

RESIZES = ("crop", "pad", "squash", "corner", "area")

MAX_ASPECT = 200
"""Longest side by shortest, of "area"; as in Qwen2-VL's image processor."""


def area_size(height: int, width: int, rule: PixelRule) -> tuple[int, int]:
    """(h, w) that "area" resizes a frame to: Qwen2-VL's ``smart_resize``.

    Both are multiples of ``rule.size``. Rounded sides come first; where their product is out of bounds, the sides are
    scaled by the root of what is too much (rounded down) or too little (rounded up). A very long frame may end below
    ``rule.min_pixels``.

    Args:
        height, width: of the frame.
        rule: of kind "area", with ``min_pixels`` of at least 1.

    Raises:
        DataError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError(
            f"a frame of {height} x {width} (height x width): one side is more than {MAX_ASPECT} times the other, "
            "which this model cannot see; crop the frames"
        )
    unit = rule.size
    h, w = round(height / unit) * unit, round(width / unit) * unit
    if h * w > rule.max_pixels:
        factor = math.sqrt(height * width / rule.max_pixels)
        h, w = (max(unit, math.floor(side / factor / unit) * unit) for side in (height, width))
    elif h * w < rule.min_pixels:
        factor = math.sqrt(rule.min_pixels / (height * width))
        h, w = (math.ceil(side * factor / unit) * unit for side in (height, width))
    return h, w


def _check_frames(frames: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """The frames as a list.

    Raises:
        ValueError: none, not uint8 RGB, or of different sizes.
    """
    frames = list(frames)
    if not frames:
        raise ValueError("no frame to preprocess")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame must be uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")
        if frame.shape != frames[0].shape:
            raise ValueError(f"frames of one video must have one size, not {frames[0].shape[:2]} and {frame.shape[:2]}")
    return frames


class Preprocessor:
    """To a normalised picture, as a backbone or a segmenter wants it: bicubic, but bilinear for "corner".

    ``__call__`` is :meth:`normalise` of :meth:`resize`. Apart, the two let a worker resize and a GPU normalise, with
    bytes instead of floats in between.

    Args:
        rule: the side c of the square, how a frame becomes one, mean and deviation.

    Raises:
        ConfigError: unknown ``resize``.
    """

    def __init__(self, rule: PixelRule):
        self.rule = rule
        if rule.resize not in RESIZES:
            raise ConfigError(f"clip_resize {rule.resize!r} is unknown; choose one of {', '.join(RESIZES)}")
        self.image_size, self.mode = rule.size, rule.resize
        self._mean = torch.tensor(rule.mean).view(3, 1, 1)
        self._std = torch.tensor(rule.std).view(3, 1, 1)
        # A tensor, since CUDA divides by a number by multiplying with its inverse, which rounds differently.
        self._white = torch.tensor(255.0)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) that a frame is resized to before it is cropped or padded, each at least 1."""
        size = self.image_size
        if self.mode == "squash":
            return size, size
        if self.mode == "area":
            return area_size(height, width, self.rule)
        if self.mode == "corner":  # rounded half up, as segment_anything does
            scale = size / max(height, width)
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        side = min(height, width) if self.mode == "crop" else max(height, width)
        return max(1, size * height // side), max(1, size * width // side)  # cut down, as CLIP's image processor does

    def resize(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Resize the frames of one video on the CPU, by Pillow, and cut out the centre for "crop"; any thread may.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            uint8 [T, 3, h, w], see :meth:`resized_size`; [T, 3, c, c] for "crop".

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        frames = _check_frames(frames)
        height, width = self.resized_size(*frames[0].shape[:2])
        filter_ = Image.Resampling.BILINEAR if self.mode == "corner" else Image.Resampling.BICUBIC
        if frames[0].shape[:2] != (height, width):
            frames = [np.asarray(Image.fromarray(frame).resize((width, height), filter_)) for frame in frames]
        resized = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        if self.mode == "crop":
            top, left = (height - self.image_size) // 2, (width - self.image_size) // 2
            resized = resized[:, :, top : top + self.image_size, left : left + self.image_size]
        return resized.contiguous()

    def normalise(self, resized: Tensor) -> Tensor:
        """Normalise, then pad to the square with zeros, on the device where the frames are.

        Args:
            resized: uint8 [T, 3, h, w], from :meth:`resize`.

        Returns:
            float32 [T, 3, c, c], or [T, 3, h, w] for "area"; a zero is the mean colour.
        """
        count, _, height, width = resized.shape
        corner = self.mode == "corner"
        size, full = self.image_size, (height, width) if self.mode == "area" else (self.image_size, self.image_size)
        pixels = torch.zeros(count, 3, *full, device=resized.device)
        top, left = (0, 0) if corner or self.mode == "area" else ((size - height) // 2, (size - width) // 2)
        inner = pixels[:, :, top : top + height, left : left + width].copy_(resized)
        parts = (self._white, self._mean, self._std)
        white, mean, std = (part.to(resized.device, non_blocking=True) for part in parts)
        if not corner:  # whose mean and deviation are of bytes
            inner.div_(white)
        inner.sub_(mean).div_(std)
        return pixels

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Preprocess the frames of one video: float32 [T, 3, c, c], or [T, 3, h, w] for "area".

        Raises:
            ValueError: as :meth:`resize`.
        """
        return self.normalise(self.resize(frames))
