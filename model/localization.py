"""The ``[LOC]`` head: in which frames does the motion happen?

It never depends on the number of frames: trained on 5, it answers about 20.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIME_FREQUENCIES = 8

LOC_HEADS = 4
"""Attention heads of the global head; they divide its width."""


def normalised_times(frames: int, device: torch.device | None = None) -> Tensor:
    """Time of each of T frames, float32 [T] from 0 (first) to 1 (last); one frame alone is at 0."""
    return torch.arange(frames, device=device, dtype=torch.float32) / max(frames - 1, 1)


def fourier_features(times: Tensor, frequencies: int = TIME_FREQUENCIES) -> Tensor:
    """Smooth code of a time: sines and cosines at half-octave steps from half a period per clip.

    Args:
        times: float [...], 0..1.
        frequencies: how many.

    Returns:
        float32 [..., 2 * frequencies] in -1..1.
    """
    scales = math.pi * 2.0 ** (torch.arange(frequencies, device=times.device, dtype=torch.float32) / 2)
    angles = times.float()[..., None] * scales
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class LocHead(nn.Module):
    """What both heads share: how they are called.

    Attributes:
        takes: how many tensors :meth:`logits` takes.
    """

    takes: ClassVar[int]

    def forward(self, *given: Tensor) -> Tensor:
        """The logits of a video, or of several in one call: processes that divide the head's weights wait for each
        other at every call, and must make as many.

        Args:
            given: what :meth:`logits` takes, of one video after another.

        Returns:
            Its result; of several videos, all logits one after the other in one tensor [n].
        """
        made = [self.logits(*given[at : at + self.takes]) for at in range(0, len(given), self.takes)]
        return made[0] if len(made) == 1 else torch.cat([logits.flatten() for logits in made])

    def logits(self, *given: Tensor) -> Tensor:
        """Logits of one video."""
        raise NotImplementedError


class FrameLocHead(LocHead):
    """A logit from each frame's own ``[LOC]`` state.

    Args:
        hidden_size: width of a state.
        width: of the hidden layer.
    """

    takes = 1

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Linear(width, 1))

    def logits(self, states: Tensor) -> Tensor:
        """States [..., D] to logits [...]."""
        return self.mlp(states).squeeze(-1)


class GlobalLocHead(LocHead):
    """One video-level ``[LOC]`` state matched against every frame.

    The state is the query of an attention pooling over each frame's visual states; an MLP then compares the state, what
    it found in the frame, their product and the frame's normalised time.

    Args:
        hidden_size: width of a state.
        width: of the head.
        heads: of the attention pooling; divides ``width``.
    """

    takes = 2

    def __init__(self, hidden_size: int, width: int, heads: int = LOC_HEADS):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden_size, width)
        self.key = nn.Linear(hidden_size, width)
        self.value = nn.Linear(hidden_size, width)
        self.state = nn.Linear(hidden_size, width)
        self.mlp = nn.Sequential(nn.Linear(3 * width + 2 * TIME_FREQUENCIES, width), nn.GELU(), nn.Linear(width, 1))

    def _split(self, x: Tensor) -> Tensor:
        """[B, n, W] to [B, heads, n, W / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def logits(self, states: Tensor, frames: Tensor) -> Tensor:
        """Match states against the frames of their video.

        Args:
            states: float [Q, D], one per question.
            frames: float [T, n, D], LLM output states of each frame's n visual tokens.

        Returns:
            logits [Q, T].
        """
        count, length = states.shape[0], frames.shape[0]
        # The questions of a video are the queries of one attention over each frame.
        query = self._split(self.query(states)[None]).expand(length, -1, -1, -1)  # [T, heads, Q, d]
        key, value = self._split(self.key(frames)), self._split(self.value(frames))  # [T, heads, n, d]
        found = F.scaled_dot_product_attention(query, key, value)
        found = found.permute(2, 0, 1, 3).flatten(2)  # [Q, T, W]
        state = self.state(states)[:, None].expand_as(found)
        times = fourier_features(normalised_times(length, frames.device)).to(found.dtype).expand(count, -1, -1)
        return self.mlp(torch.cat([state, found, state * found, times], dim=-1)).squeeze(-1)


def build_loc_head(loc_mode: str, hidden_size: int, width: int) -> nn.Module | None:
    """The head for ``loc_mode``, or None for "none"."""
    if loc_mode == "none":
        return None
    return (FrameLocHead if loc_mode == "frame" else GlobalLocHead)(hidden_size, width)
