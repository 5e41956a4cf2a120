"""LLaVA: a CLIP tower, a projector and a Llama decoder (Liu et al. 2023, "Visual Instruction Tuning")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaForCausalLM

from model.backbones.interface import Backbone, additive_mask, grad_if_trained
from model.fields import CLIP, FLAG, LAYERS, LLAMA, SIZE, one_of, optional, whole
from model.layout import Visual
from model.localization import TIME_FREQUENCIES, fourier_features, normalised_times
from utils.batch import PixelRule
from utils.errors import Problems

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Llava(Backbone):
    """CLIP, a projector, Llama. Fields of its own in :class:`model.config.MoraConfig`:

    * ``text_config``: Llama decoder (``LlamaConfig`` or dict); ``vision_config``: CLIP (``CLIPVisionConfig`` or dict).
    * ``vision_select_layer``: index into the tower's hidden states; -2 is the input of its last layer.
    * ``projector``: "linear" (LLaVA v1) or "mlp" (two layers with GELU); ``projector_hidden_size``: width between the
      two, None: that of the decoder.
    * ``projector_shuffle``: 2 joins each 2x2 block of neighbouring patches into one token; 1 keeps every patch.
    * ``projector_motion``: give the projector each token's difference to the same token one frame earlier as well.
    * ``frame_time_embedding``: add an embedding of the frame's time, normalised to 0..1, to its visual tokens.
    * ``clip_resize``: how a frame becomes the tower's square: centre crop, pad or squash.
    """

    fields = {
        "vision_select_layer": (-2, whole(-LAYERS - 1, LAYERS)),
        "projector": ("linear", one_of("linear", "mlp")),
        "projector_hidden_size": (None, optional(SIZE)),
        "projector_shuffle": (1, one_of(1, 2)),
        "projector_motion": (False, FLAG),
        "frame_time_embedding": (False, FLAG),
        "clip_resize": ("crop", one_of("crop", "pad", "squash")),
    }
    parts = {
        "text_config": (LlamaConfig, {**LLAMA, "model_type": one_of("llama")}),
        "vision_config": (CLIPVisionConfig, {**CLIP, "model_type": one_of("clip_vision_model")}),
    }
    decoder_part = "language_model"
    vocabulary_parts = ("language_model.model.embed_tokens", "language_model.lm_head")
    sides = {
        "text_config.vocab_size": ("language_model.model.embed_tokens.weight", 0),
        "text_config.hidden_size": ("language_model.model.embed_tokens.weight", 1),
        "text_config.intermediate_size": ("language_model.model.layers.0.mlp.gate_proj.weight", 0),
        "vision_config.hidden_size": ("vision_tower.embeddings.patch_embedding.weight", 0),
        "vision_config.patch_size": ("vision_tower.embeddings.patch_embedding.weight", 2),
        "vision_config.intermediate_size": ("vision_tower.encoder.layers.0.mlp.fc1.weight", 0),
    }
    depths = {
        "text_config.num_hidden_layers": r"language_model\.model\.layers\.(\d+)\.",
        "vision_config.num_hidden_layers": r"vision_tower\.encoder\.layers\.(\d+)\.",
    }

    @classmethod
    def networks(cls, config: Any) -> dict[str, nn.Module]:
        networks = {  # in this order: a seed's weights follow from it
            "language_model": LlamaForCausalLM(config.text_config),
            "vision_tower": CLIPVisionModel(config.vision_config),
            "projector": Projector(config),
        }
        networks["vision_tower"].embeddings.position_embedding.grid_init = True  # see model.initialization
        return networks

    @classmethod
    def pixel_rule(cls, config: Any) -> PixelRule:
        return PixelRule(config.vision_config.image_size, config.clip_resize, CLIP_MEAN, CLIP_STD)

    @classmethod
    def note_contradictions(cls, config: Any, problems: Problems) -> None:
        if config.projector_shuffle == 2 and patches_per_side(config) % 2:
            problems.add("projector_shuffle", f"2 needs an even patch grid, this tower has {patches_per_side(config)}")
        depth = config.vision_config.num_hidden_layers
        if not -(depth + 1) <= config.vision_select_layer <= depth:
            problems.add("vision_select_layer", f"is {config.vision_select_layer}; this tower has {depth} layers")
        if config.text_config.head_dim % 2:
            problems.add("text_config.head_dim", f"is {config.text_config.head_dim}; rotary positions need an even one")

    def encode(self, videos: Sequence[Tensor], frames_per_pass: int | None = None) -> list[Visual]:
        tower, projector = self.part("vision_tower"), self.part("projector")
        pixels = torch.cat(list(videos))
        with grad_if_trained(tower):
            parts = pixels.split(frames_per_pass or len(pixels))
            features = torch.cat([vision_features(tower, part, self.config.vision_select_layer) for part in parts])
        visuals = []
        for part in features.split([len(video) for video in videos]):
            tokens = projector(part)
            visuals.append(Visual(tokens, [(1, tokens.shape[1])]))
        return visuals

    def read(
        self,
        embeds: Tensor,
        positions: Tensor | None,
        allowed: Tensor | None,
        cache: DynamicCache | None = None,
        places: Tensor | None = None,
        extras: Sequence[Tensor] = (),
    ) -> Tensor:
        return self.decoder.model(
            inputs_embeds=embeds,
            attention_mask=additive_mask(allowed, embeds.dtype, self.decoder.config._attn_implementation),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def frame_states(self, states: Tensor, frames: int) -> Tensor:
        return self.part("projector").frame_states(states, frames)


def patches_per_side(config: Any) -> int:
    """Patches along one side of a frame, before the projector joins any."""
    return config.vision_config.image_size // config.vision_config.patch_size


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

    def __init__(self, config: Any):
        super().__init__()
        self.mode = config.visual_mode
        self.shuffle = config.projector_shuffle
        self.motion = config.projector_motion
        self.side = patches_per_side(config)
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
            last.zero_init = True  # a fresh model starts as one without time; see model.initialization
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
