"""LLaVA-style backbone: a CLIP tower, a projector and a Llama decoder (Liu et al. 2023, "Visual Instruction Tuning").

Here are its parts; :class:`model.mora.MoraModel` holds them under the names of a checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlamaForCausalLM

from model.backbones.packing import Layout, Row, attention_mask, pack, require_rows, segment_mask
from model.config import MoraConfig
from model.localization import TIME_FREQUENCIES, fourier_features, normalised_times


def vision_features(tower: CLIPVisionModel, pixels: Tensor, select_layer: int) -> Tensor:
    """Patch features of frames; layers after the selected one are not run.

    Args:
        tower: the vision tower.
        pixels: float [F, 3, c, c].
        select_layer: index into the hidden states (0: input of the first layer).

    Returns:
        [F, N, C], without the class token, in the dtype of the weights.
    """
    layers = tower.encoder.layers
    depth = select_layer if select_layer >= 0 else len(layers) + 1 + select_layer
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in layers[:depth]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


class Projector(nn.Module):
    """From the features of a video's frames to the visual tokens of its LLM rows.

    Args:
        config: ``projector``, ``projector_shuffle``, ``projector_motion``, ``frame_time_embedding``, ``visual_mode``.
    """

    def __init__(self, config: MoraConfig):
        super().__init__()
        self.mode = config.visual_mode
        self.shuffle = config.projector_shuffle
        self.motion = config.projector_motion
        self.side = config.patches_per_side
        width = config.vision_config.hidden_size * self.shuffle**2 * (2 if self.motion else 1)
        hidden = config.text_config.hidden_size
        if config.projector == "mlp":
            inner = config.projector_hidden_size or hidden
            layers: list[nn.Module] = [nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, hidden)]
        else:
            layers = [nn.Linear(width, hidden)]
        self.layers = nn.Sequential(*layers)
        self.frame_time: nn.Sequential | None = None
        if config.frame_time_embedding:
            last = nn.Linear(hidden, hidden)
            last.zero_init = True  # a fresh model starts as one without time; see MoraModel._init_weights
            self.frame_time = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, hidden), nn.GELU(), last)

    def tokens(self, features: Tensor) -> Tensor:
        """What the linear layers see: features [T, N, C] to [T, n, F], joined in 2x2 and with their motion if asked."""
        if self.shuffle > 1:
            frames, _, channels = features.shape
            grid = features.reshape(frames, self.side, self.side, channels).permute(0, 3, 1, 2)
            features = F.pixel_unshuffle(grid, self.shuffle).flatten(2).transpose(1, 2)
        if self.motion:
            change = torch.cat([torch.zeros_like(features[:1]), features[1:] - features[:-1]])
            features = torch.cat([features, change], dim=-1)
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens of one video.

        Args:
            features: [T, N, C] of the vision tower.

        Returns:
            [R, n_vis, D]: "frame" [T, n, D]; "video" [1, T * n, D], frame after frame; "pooled" [1, n + T, D], the n
            temporal means and then the T spatial means.
        """
        tokens = self.tokens(features)
        frames, count, _ = tokens.shape
        if self.mode == "pooled":
            tokens = torch.cat([tokens.mean(0), tokens.mean(1)])[None]
        visual = self.layers(tokens)
        if self.frame_time is not None:
            codes = fourier_features(normalised_times(frames, visual.device)).to(visual.dtype)
            times = self.frame_time(codes)
            if self.mode == "pooled":
                times = F.pad(times, (0, 0, count, 0))  # a temporal mean has no time of its own
                visual = visual + times[None]
            else:
                visual = visual + times[:, None]
        return visual.reshape(1, -1, visual.shape[-1]) if self.mode == "video" else visual

    def frame_states(self, states: Tensor, frames: int) -> Tensor:
        """Regroup states at visual tokens by frame.

        Args:
            states: [R, n_vis, D], LLM states at the tokens that :meth:`forward` made.
            frames: T.

        Returns:
            [T, n, D]; n is 1 in "pooled" mode.
        """
        if self.mode == "frame":
            return states
        if self.mode == "pooled":
            return states[0, -frames:, None]
        return states[0].unflatten(0, (frames, -1))


def embed_rows(llm: LlamaForCausalLM, layout: Layout, visual: Sequence[Tensor]) -> Tensor:
    """Input embeddings of rows, visual tokens in their places.

    Args:
        llm: the decoder.
        layout: the rows.
        visual: visual rows, each [n_vis, D]; rows name them by index.

    Returns:
        [B, L, D].
    """
    embeds = llm.get_input_embeddings()(layout.ids)
    if not layout.visual_rows:
        return embeds
    tokens = torch.cat([visual[index] for index in layout.visual_rows]).to(embeds.dtype)
    return embeds.flatten(0, 1).index_copy(0, layout.visual_places, tokens).view_as(embeds)


def run_rows(llm: LlamaForCausalLM, rows: Sequence[Row], visual: Sequence[Tensor]) -> tuple[Layout, Tensor]:
    """Read whole rows without a cache.

    Args:
        llm: the decoder.
        rows: what to read.
        visual: visual rows, each [n_vis, D]; ``Row.visual`` is an index into them.

    Returns:
        The layout, and the states after the final norm as [B * L, D].

    Raises:
        TokenizerError: an id that has no row in the word embeddings.
    """
    for row in rows:
        require_rows([*row.prefix, *itertools.chain.from_iterable(row.suffixes)], llm.config.vocab_size)
    layout = pack(rows, llm.get_input_embeddings().weight.device)
    embeds = embed_rows(llm, layout, visual)
    mask = None
    if layout.segments is not None:
        allowed = segment_mask(layout.segments, layout.segments)
        mask = attention_mask(allowed, llm.config._attn_implementation, embeds.dtype)
    output = llm.model(inputs_embeds=embeds, attention_mask=mask, position_ids=layout.position_ids, use_cache=False)
    return layout, output.last_hidden_state.flatten(0, 1)
