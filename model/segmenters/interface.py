"""What the rest of the program asks of a segmenter: encode frames, decode a mask per prompt, bring it to the frames.

A segmenter that also tracks will have one verb more, ``propagate(frames, anchors, direction) -> masks``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from utils.batch import PixelRule
from utils.errors import Problems


@dataclass(frozen=True)
class Embeddings:
    """What a segmenter made of F frames; which part is what, only the segmenter knows.

    Attributes:
        parts: tensors whose first side counts the frames: [F, ...] each.
    """

    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, frames: Tensor | slice | Sequence[int]) -> Embeddings:
        """Those of some frames, in the order given; a frame may come more than once."""
        return Embeddings(tuple(part[frames] for part in self.parts))

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @staticmethod
    def cat(pieces: Sequence[Embeddings]) -> Embeddings:
        """Those of several passes, one after the other."""
        return Embeddings(tuple(torch.cat(parts) for parts in zip(*(piece.parts for piece in pieces))))

    def split(self, frames: int) -> list[Embeddings]:
        """Pieces of at most so many frames."""
        return [Embeddings(parts) for parts in zip(*(part.split(frames) for part in self.parts))]


class Segmenter(nn.Module, ABC):
    """A network that draws masks, built from its configuration.

    Attributes:
        config_class: of the configuration that the constructor takes.
        encoder_part: name of the sub-module that embeds frames; frozen unless asked for.
        decoder_part: name of the sub-module that draws; trained by default.
        constants: names of parameters that never learn.
        pixel_rule: how frames become the square of side S that it encodes.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    encoder_part: ClassVar[str]
    decoder_part: ClassVar[str]
    constants: ClassVar[tuple[str, ...]] = ()
    pixel_rule: PixelRule

    @classmethod
    def default_config(cls) -> PretrainedConfig:
        """The size that is meant where a configuration names none."""
        return cls.config_class()

    @classmethod
    def note_wrong_values(cls, values: Any, problems: Problems, where: str) -> None:
        """Note every stored field, named from ``where`` on, that holds what it may not, before it is built from."""

    @classmethod
    def note_contradictions(cls, config: Any, problems: Problems) -> None:
        """Note where the fields of a configuration do not fit each other."""

    @classmethod
    @abstractmethod
    def prompt_width(cls, config: Any) -> int:
        """C, channels of a prompt."""

    @property
    def encoder(self) -> nn.Module:
        """The part that embeds frames."""
        return self.get_submodule(self.encoder_part)

    @property
    def decoder(self) -> nn.Module:
        """The part that draws."""
        return self.get_submodule(self.decoder_part)

    @abstractmethod
    def encode(
        self, pixels: Tensor, resized_size: tuple[int, int] | None = None, at_once: int | None = None
    ) -> Embeddings:
        """Embed frames. No graph is kept if the encoder is frozen.

        Args:
            pixels: float [F, 3, S, S], made by :attr:`pixel_rule`.
            resized_size: (h, w) of the frames inside the square, if all pixels beyond are zero: what follows from that
                may then be left out. The result is the same.
            at_once: at most so many frames per pass; default: as many as fit.
        """

    @abstractmethod
    def decode(self, embeddings: Embeddings, prompts: Tensor, at_once: int | None = None) -> Tensor:
        """One mask for each pair of frame and prompt. Gradients reach prompts, embeddings and decoder.

        Args:
            embeddings: of N frames, repeated by the caller where prompts share one.
            prompts: [N, C].
            at_once: at most so many pairs per pass; default: as many as fit.

        Returns:
            Logits [N, a, b], of a size of the segmenter's own; :meth:`to_frames` takes them.

        Raises:
            ValueError: embeddings and prompts differ in number.
        """

    @abstractmethod
    def to_frames(self, logits: Tensor, resized_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Bring logits to the size of the frames.

        Args:
            logits: [N, a, b], from :meth:`decode`.
            resized_size: (h, w) of the frame inside the S x S input.
            original_size: (H, W) of the frame on disk.

        Returns:
            float32 logits [N, H, W]; a pixel is in the mask when its logit is above 0.
        """

    def compile_encoder(self) -> None:
        """Compile what repeats in :meth:`encode`, which costs up to a minute, once; without effect by default."""


SEGMENTERS = {"sam": "model.segmenters.sam:SamSegmenter"}
"""``MoraConfig.segmenter`` to module and class. The module is imported when a configuration first names it."""


def segmenter_class(name: str) -> type[Segmenter]:
    """The class of a segmenter, one of :data:`SEGMENTERS`."""
    module, _, kind = SEGMENTERS[name].partition(":")
    return getattr(importlib.import_module(module), kind)
