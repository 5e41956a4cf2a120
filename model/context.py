"""What passes between encoding a video, reading a question and answering it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.backbones.sessions import Prefix
from model.segmenters import Embeddings

NO_MASK_LOGIT = -1.0e4
"""Mask logit of a frame for which no ``[SEG]`` was said: finite, and no pixel is in the mask."""


@dataclass
class VideoContext:
    """Everything about a video that no question changes; made once by ``MoraModel.encode_video``.

    Attributes:
        sam_embeddings: of the T frames.
        visual: visual tokens of the LLM rows, [R, n_vis, D].
        resized_size: (h, w) of a frame inside SAM's square.
        original_size: (H, W) of the frames.
        prefixes: beginnings of prompts read so far, by (ids, has image, with cache); filled on demand, then only read.
    """

    sam_embeddings: Embeddings
    visual: Tensor
    resized_size: tuple[int, int]
    original_size: tuple[int, int]
    prefixes: dict[tuple[tuple[int, ...], bool, bool], Prefix] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.sam_embeddings)


@dataclass
class Reading:
    """A question and its answer, read with teacher forcing.

    Attributes:
        seg_states: [n_seg, R, D], states that predict each [SEG].
        loc_states: [n_loc, R, D], states that predict each [LOC].
        logits: [R, S, V]; entry j predicts token j of the text after the image (or of the whole text without one).
        states: [R, S, D], states at that text.
        prefix_states: [R, P, D], states at the text before the image and at the visual tokens.
    """

    seg_states: Tensor
    loc_states: Tensor
    logits: Tensor
    states: Tensor
    prefix_states: Tensor

    @property
    def hidden_states(self) -> Tensor:
        """States of the whole rows, [R, P + S, D], after the final norm."""
        return torch.cat([self.prefix_states, self.states], dim=1)


@dataclass
class Answer:
    """What the model says about one question.

    Attributes:
        token_ids: ids of the answer, one list per LLM row (R = T rows in "frame" mode, else 1); no end token. Forced
            tokens are included.
        mask_logits: float32 [T, H, W]; above 0 is inside. The highest of several masks; ``NO_MASK_LOGIT`` without one.
            None if masks were asked for.
        has_seg: bool [T], whether a [SEG] stands behind the frame's mask.
        loc_probs: float32 [T] in 0..1, or None without a [LOC] head or token.
        forced_seg: a missing [SEG] was appended in some row.
        forced_loc: a missing [LOC] was appended in some row.
        masks: bool [T, H, W], the union of several, if masks were asked for by a threshold; else None.
    """

    token_ids: list[list[int]]
    mask_logits: Tensor | None
    has_seg: Tensor
    loc_probs: Tensor | None
    forced_seg: bool = False
    forced_loc: bool = False
    masks: Tensor | None = None
