"""From frames to pixels: what the SAM encoder and the CLIP vision tower are given.

Both resize with Pillow, as segment_anything's ResizeLongestSide and CLIP's image processor do; results equal theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.batch import PixelRule
from utils.errors import ConfigError

RESIZES = ("crop", "pad", "squash")


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


def _resize(frames: list[np.ndarray], height: int, width: int, resample: Image.Resampling) -> Tensor:
    """Frames uint8 [H, W, 3] -> uint8 [T, 3, height, width], by Pillow (antialiased when shrinking)."""
    if frames[0].shape[:2] != (height, width):
        frames = [np.asarray(Image.fromarray(frame).resize((width, height), resample)) for frame in frames]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


class SamPreprocessor:
    """For a segmenter: long side to the rule's size (bilinear), normalise, then zeros to the right and below.

    ``__call__`` is :meth:`normalise` of :meth:`resize`. Apart, the two let a worker resize and a GPU normalise, with
    bytes instead of floats in between.

    Args:
        rule: the side S of the square (1024 for ViT-H), mean and deviation.

    Raises:
        ConfigError: its ``resize`` is not "corner".
    """

    def __init__(self, rule: PixelRule):
        if rule.resize != "corner":
            raise ConfigError(f"a segmenter's frames cannot be resized by {rule.resize!r}; only 'corner' is known")
        self.image_size = rule.size
        self._mean = torch.tensor(rule.mean).view(3, 1, 1)
        self._std = torch.tensor(rule.std).view(3, 1, 1)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the picture inside the square: the long side is S, the other rounded half up, at least 1."""
        scale = self.image_size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def resize(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Resize the frames of one video on the CPU, by Pillow; any thread may.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            uint8 [T, 3, h, w], see :meth:`resized_size`.

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        frames = _check_frames(frames)
        return _resize(frames, *self.resized_size(*frames[0].shape[:2]), Image.Resampling.BILINEAR)

    def normalise(self, resized: Tensor) -> Tensor:
        """Normalise and pad to the square, on the device where the frames are.

        Args:
            resized: uint8 [T, 3, h, w], from :meth:`resize`.

        Returns:
            float32 [T, 3, S, S].
        """
        count, _, height, width = resized.shape
        pixels = torch.zeros(count, 3, self.image_size, self.image_size, device=resized.device)
        inner = pixels[:, :, :height, :width].copy_(resized)
        inner.sub_(self._mean.to(resized.device)).div_(self._std.to(resized.device))
        return pixels

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Preprocess the frames of one video.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            float32 [T, 3, S, S].

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        return self.normalise(self.resize(frames))


class ClipPreprocessor:
    """To a normalised square for the vision tower (bicubic).

    ``__call__`` is :meth:`normalise` of :meth:`resize`, as in :class:`SamPreprocessor`.

    Args:
        rule: the size of the square, how a frame becomes one, mean and deviation.

    Raises:
        ConfigError: unknown ``resize``.
    """

    def __init__(self, rule: PixelRule):
        if rule.resize not in RESIZES:
            raise ConfigError(f"clip_resize {rule.resize!r} is unknown; choose one of {', '.join(RESIZES)}")
        self.image_size = rule.size
        self.mode = rule.resize
        self._mean = torch.tensor(rule.mean).view(3, 1, 1)
        self._std = torch.tensor(rule.std).view(3, 1, 1)
        # A tensor, since CUDA divides by a number by multiplying with its inverse, which rounds differently.
        self._white = torch.tensor(255.0)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) that a frame is resized to before it is cropped or padded."""
        size = self.image_size
        if self.mode == "squash":
            return size, size
        side = min(height, width) if self.mode == "crop" else max(height, width)
        # The other side is cut down, not rounded, as CLIP's image processor does.
        return max(1, size * height // side), max(1, size * width // side)

    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what is kept of a resized frame: its centre for "crop", else all."""
        if self.mode != "crop":
            return 0, 0, height, width
        size = self.image_size
        return (height - size) // 2, (width - size) // 2, size, size

    def resize(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Resize the frames of one video on the CPU, by Pillow, and cut out the centre for "crop"; any thread may.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            uint8 [T, 3, c, c]; for "pad" [T, 3, h, w], see :meth:`resized_size`.

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        frames = _check_frames(frames)
        height, width = self.resized_size(*frames[0].shape[:2])
        top, left, rows, columns = self._window(height, width)
        resized = _resize(frames, height, width, Image.Resampling.BICUBIC)
        return resized[:, :, top : top + rows, left : left + columns].contiguous()

    def normalise(self, resized: Tensor) -> Tensor:
        """Normalise and, for "pad", surround with the mean colour, on the device where the frames are.

        Args:
            resized: uint8 [T, 3, h, w], from :meth:`resize`.

        Returns:
            float32 [T, 3, c, c].
        """
        count, _, height, width = resized.shape
        size = self.image_size
        pixels = torch.zeros(count, 3, size, size, device=resized.device)
        top, left = (size - height) // 2, (size - width) // 2
        inner = pixels[:, :, top : top + height, left : left + width].copy_(resized)
        inner.div_(self._white.to(resized.device))
        inner.sub_(self._mean.to(resized.device)).div_(self._std.to(resized.device))
        return pixels

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Preprocess the frames of one video.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            float32 [T, 3, c, c].

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        return self.normalise(self.resize(frames))
