"""What the rest of the program asks of a backbone: encode frames into visual tokens, read rows, tell words from states.

Another backbone is one file beside this one, a line in :data:`BACKBONES` and a preset.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from model.fields import Rule
from model.layout import Piece, Visual, count_tokens
from utils.batch import FrameMarks, PixelRule
from utils.errors import Problems


class Backbone(ABC):
    """A multimodal language model.

    It owns no weights: :class:`model.mora.MoraModel` holds its networks under the names that :meth:`networks` gives
    them, which are those of a checkpoint.

    Args:
        config: the :class:`model.config.MoraConfig`. Its ``text_config`` always has ``hidden_size``, ``vocab_size``,
            ``eos_token_id``, ``pad_token_id`` and ``tie_word_embeddings``.
        networks: what :meth:`networks` made.

    Attributes:
        fields: fields that a configuration with this backbone has of its own: default and rule.
        parts: its configurations within the configuration: class and rules.
        decoder_part: dotted name of the decoder, which LoRA and gradient checkpointing touch.
        vocabulary_parts: dotted names of word embeddings and language head, which grow with the vocabulary.
        sides: fields of the configuration that are a side of some tensor: its name, and which side.
        depths: fields that count layers: a pattern of those layers' names.
        attentive: those of ``parts`` whose attention is chosen when a model is opened.
    """

    fields: ClassVar[Mapping[str, tuple[Any, Rule]]] = {}
    parts: ClassVar[Mapping[str, tuple[type[PretrainedConfig], Mapping[str, Rule]]]]
    decoder_part: ClassVar[str]
    vocabulary_parts: ClassVar[tuple[str, str]]
    sides: ClassVar[Mapping[str, tuple[str, int]]] = {}
    depths: ClassVar[Mapping[str, str]] = {}
    attentive: ClassVar[tuple[str, ...]] = ("text_config",)

    def __init__(self, config: PretrainedConfig, networks: Mapping[str, nn.Module]):
        self.config, self._networks = config, dict(networks)

    @classmethod
    @abstractmethod
    def networks(cls, config: PretrainedConfig) -> dict[str, nn.Module]:
        """Fresh networks by name."""

    @classmethod
    @abstractmethod
    def pixel_rule(cls, config: PretrainedConfig) -> PixelRule:
        """How frames become the pixels that :meth:`encode` takes."""

    @classmethod
    def frame_marks(cls, config: PretrainedConfig) -> FrameMarks:
        """Where a prompt shows the frames: one image mark for each of :attr:`model.layout.Visual.grids`."""
        return FrameMarks()

    @classmethod  # noqa: B027
    def note_contradictions(cls, config: PretrainedConfig, problems: Problems) -> None:
        """Note where its fields do not fit each other."""

    def part(self, name: str) -> nn.Module:
        """The module of a dotted name."""
        first, _, rest = name.partition(".")
        return self._networks[first].get_submodule(rest)

    @property
    def decoder(self) -> nn.Module:
        """What LoRA and gradient checkpointing touch."""
        return self.part(self.decoder_part)

    @property
    def vocabulary(self) -> tuple[nn.Module, nn.Module]:
        """Word embeddings and language head."""
        embeddings, head = self.vocabulary_parts
        return self.part(embeddings), self.part(head)

    @property
    def packs_questions(self) -> bool:
        """Whether questions may share a row: flash attention takes no mask that would keep them apart."""
        return "flash" not in (self.config.text_config._attn_implementation or "")

    @abstractmethod
    def encode(self, videos: Sequence[Tensor], frames_per_pass: int | None = None) -> list[Visual]:
        """Visual tokens of videos. No graph is kept by an encoder that is frozen.

        Args:
            videos: float [T, 3, h, w] each, made by :meth:`pixel_rule`; T, h and w may differ.
            frames_per_pass: at most so many frames go through the encoder together; None: as many as fit.
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Words int64 [B, L] to the decoder's input [B, L, D]."""
        return self.vocabulary[0](ids)

    def positions(self, prefix: Sequence[Piece]) -> Tensor:
        """Positions of a row's beginning, int64 [A, P] on the CPU; text after it goes on from the largest, plus one.

        One axis counts tokens. Of several, all count up together in text.
        """
        return count_tokens(prefix)

    @abstractmethod
    def read(
        self,
        embeds: Tensor,
        positions: Tensor | None,
        allowed: Tensor | None,
        cache: DynamicCache | None = None,
        places: Tensor | None = None,
        extras: Sequence[Tensor] = (),
    ) -> Tensor:
        """Run the decoder.

        Args:
            embeds: [B, L, D], visual tokens in their places.
            positions: int64 [B or 1, L], the same on all axes; [A, B, L]; or None, to count on from the cache.
            allowed: bool [B or 1, 1, L, K], which of the K positions so far each may look at; None: all before it.
            cache: keys and values of what was read; grows by L.
            places: int64 [n], flat positions of visual tokens; None without any.
            extras: :attr:`model.layout.Visual.extras` at these places, [n, D] each.

        Returns:
            States after the final norm, [B, L, D].
        """

    def logits(self, states: Tensor) -> Tensor:
        """States [..., D] to logits of the next token [..., V]."""
        return self.vocabulary[1](states)

    @abstractmethod
    def frame_states(self, states: Tensor, frames: int) -> Tensor:
        """Regroup states by frame.

        Args:
            states: [R, n, D], at the visual tokens of a video's rows.
            frames: T.

        Returns:
            [T, k, D].
        """


@contextmanager
def grad_if_trained(module: nn.Module) -> Iterator[None]:
    """Within, a graph is kept only if some parameter of ``module`` is trained."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        yield


def additive_mask(allowed: Tensor | None, dtype: torch.dtype, implementation: str | None) -> Tensor | None:
    """A mask in the form that an attention wants: eager adds it to the scores, and a bool would be silently wrong."""
    if allowed is None or implementation != "eager":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


BACKBONES = {
    "llava": "model.backbones.llava:Llava",
    "qwen3_vl": "model.backbones.qwen3_vl:Qwen3VL",
    "qwen2_5_vl": "model.backbones.qwen2_5_vl:Qwen25VL",
}
"""``MoraConfig.backbone`` to module and class. The module is imported when a configuration first names it."""


def backbone_class(name: str) -> type[Backbone]:
    """The class of a backbone, one of :data:`BACKBONES`."""
    module, _, kind = BACKBONES[name].partition(":")
    return getattr(importlib.import_module(module), kind)
