"""From frames to pixels: what the SAM encoder and the CLIP vision tower are given.

Both resize with Pillow, as segment_anything's ResizeLongestSide and CLIP's image processor do; results equal theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import ConfigError

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)
"""Of 0..255 values (ImageNet's, times 255)."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of 0..1 values."""

CLIP_RESIZES = ("crop", "pad", "squash")


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


def _resize(frame: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3], by Pillow (antialiased when shrinking)."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), resample))


def _to_tensor(frame: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W], 0..255."""
    return torch.from_numpy(np.array(frame, copy=True)).permute(2, 0, 1).to(torch.float32)


class SamPreprocessor:
    """Long side to ``image_size`` (bilinear), normalise, then zeros to the right and below.

    Args:
        image_size: side S of SAM's square input (1024 for ViT-H).
    """

    def __init__(self, image_size: int):
        self.image_size = image_size
        self._mean = torch.tensor(SAM_MEAN).view(3, 1, 1)
        self._std = torch.tensor(SAM_STD).view(3, 1, 1)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the picture inside the square: the long side is S, the other rounded half up, at least 1."""
        scale = self.image_size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [h, w, 3], before normalisation."""
        return _resize(frame, *self.resized_size(*frame.shape[:2]), Image.Resampling.BILINEAR)

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Preprocess the frames of one video.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            float32 [T, 3, S, S].

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        frames = _check_frames(frames)
        pixels = torch.zeros(len(frames), 3, self.image_size, self.image_size)
        for index, frame in enumerate(frames):
            resized = (_to_tensor(self.resize(frame)) - self._mean) / self._std
            pixels[index, :, : resized.shape[1], : resized.shape[2]] = resized
        return pixels


class ClipPreprocessor:
    """To a normalised square for the vision tower (bicubic).

    Args:
        image_size: side c of the square (224 for ViT-L/14).
        resize: "crop": short side to c, then the centre; what published LISA weights saw, though a 16:9 frame loses
            44 % of its width. "pad": long side to c, mean colour around it. "squash": both sides to c.

    Raises:
        ConfigError: unknown ``resize``.
    """

    def __init__(self, image_size: int, resize: str = "crop"):
        if resize not in CLIP_RESIZES:
            raise ConfigError(f"clip_resize {resize!r} is unknown; choose one of {', '.join(CLIP_RESIZES)}")
        self.image_size = image_size
        self.mode = resize
        self._mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
        self._std = torch.tensor(CLIP_STD).view(3, 1, 1)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) that a frame is resized to before it is cropped or padded."""
        size = self.image_size
        if self.mode == "squash":
            return size, size
        side = min(height, width) if self.mode == "crop" else max(height, width)
        # The other side is cut down, not rounded, as CLIP's image processor does.
        return max(1, size * height // side), max(1, size * width // side)

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """Preprocess the frames of one video.

        Args:
            frames: uint8 RGB [T, H, W, 3], or T of [H, W, 3].

        Returns:
            float32 [T, 3, c, c].

        Raises:
            ValueError: no frame, another type, or different sizes.
        """
        frames = _check_frames(frames)
        size = self.image_size
        pixels = torch.zeros(len(frames), 3, size, size)
        height, width = self.resized_size(*frames[0].shape[:2])
        for index, frame in enumerate(frames):
            resized = _to_tensor(_resize(frame, height, width, Image.Resampling.BICUBIC)) / 255
            resized = (resized - self._mean) / self._std
            if self.mode == "crop":
                top, left = (height - size) // 2, (width - size) // 2
                pixels[index] = resized[:, top : top + size, left : left + size]
            else:
                top, left = (size - height) // 2, (size - width) // 2
                pixels[index, :, top : top + height, left : left + width] = resized
        return pixels
