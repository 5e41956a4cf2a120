"""The meeting point of ``datasets`` and ``model``: what one training step is given.

A batch is a plain list of videos. Nothing is padded or repeated here: videos may differ in frames, questions and sizes,
and the model lays out its own rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

IMAGE_TOKEN_INDEX = -200
"""Stands in ``input_ids`` where the visual tokens go (LLaVA's convention)."""

IGNORE_INDEX = -100
"""Label of a position that carries no language loss."""


@dataclass(frozen=True)
class PixelRule:
    """How a frame becomes the picture that an encoder sees: plain data, which ``datasets.pixels`` follows.

    Attributes:
        size: side c of the square, pixels; for "area" both sides are multiples of it, and a block of ``size`` x
            ``size`` pixels becomes one visual token.
        resize: "crop": short side to c, then the centre; what published LISA weights saw, though a 16:9 frame loses
            44 % of its width. "pad": long side to c, mean colour around it. "squash": both sides to c. "corner", for
            segmenters: long side to c, in the upper left corner, zeros beside it. "area": its shape is kept as well as
            multiples of ``size`` allow, with ``min_pixels`` to ``max_pixels`` pixels.
        mean: per channel, of values 0..1 (of bytes for "corner"); taken off.
        std: per channel; divided by.
        min_pixels, max_pixels: of "area".
    """

    size: int
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    min_pixels: int = 0
    max_pixels: int = 0


@dataclass(frozen=True)
class FrameMarks:
    """Where a prompt shows the frames: plain data, which ``datasets.conversation`` follows.

    Attributes:
        frames: how many frames, in time order, stand behind one image mark; 0: all of them behind a single one.
        stamps: the time of a mark's frames stands before it, as text.
    """

    frames: int = 0
    stamps: bool = False


@dataclass
class QuestionTensors:
    """One question about a video, tokenised, with what supervises its answer.

    Attributes:
        input_ids: int64 [L]; whole conversation; an IMAGE_TOKEN_INDEX for each image mark, or none.
        labels: int64 [L]; IGNORE_INDEX except on answer tokens.
        masks: uint8 {0, 1} [n_seg, m, H, W]; one tube per [SEG] in the answer, on the frames ``mask_frames``,
            at the video's original size. n_seg may be 0.
        mask_frames: int64 [m]; positions in the sampled frames (0..T-1) whose masks are supervised.
        in_window: float32 [T] of 0/1, whether each sampled frame lies in the action's window; None without [LOC].
    """

    input_ids: Tensor
    labels: Tensor
    masks: Tensor
    mask_frames: Tensor
    in_window: Tensor | None = None


@dataclass
class VideoTensors:
    """One video's sampled frames, preprocessed for both encoders, and its questions.

    Attributes:
        video_id: for messages.
        clip_pixels: float [T, 3, h, w], by the backbone's pixel rule.
        sam_pixels: float [T, 3, S, S], long side resized to S, normalised, zero-padded right and bottom.
        resized_size: (h, w) of the image inside the S x S square.
        original_size: (H, W) of the frames on disk.
        questions: at least one.
    """

    video_id: str
    clip_pixels: Tensor
    sam_pixels: Tensor
    resized_size: tuple[int, int]
    original_size: tuple[int, int]
    questions: list[QuestionTensors] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        return self.clip_pixels.shape[0]

    def mask_targets(self) -> Tensor:
        """Supervised masks, question after question, [N, H, W]; there must be one."""
        parts = [question.masks.flatten(0, 1) for question in self.questions]
        return torch.cat([part for part in parts if part.shape[0]])


@dataclass
class MoraBatch:
    """A micro-batch: any number of videos."""

    videos: list[VideoTensors]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MoraBatch:
        """Move pixels and targets to a device; ``dtype`` is applied to pixels only.

        Token ids, labels and frame numbers stay on the host, where rows are laid out: to fetch them would be to wait
        for everything that the device was given before.
        """

        def move(tensor: Tensor | None, to_dtype: torch.dtype | None = None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, to_dtype, non_blocking=True)

        return MoraBatch(
            [
                dataclasses.replace(
                    video,
                    clip_pixels=move(video.clip_pixels, dtype),
                    sam_pixels=move(video.sam_pixels, dtype),
                    questions=[
                        dataclasses.replace(q, masks=move(q.masks), in_window=move(q.in_window))
                        for q in video.questions
                    ],
                )
                for video in self.videos
            ]
        )
