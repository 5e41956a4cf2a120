"""Qwen3-VL (Bai et al. 2025): a tower whose features enter several layers of the decoder, positions on three axes.

The library's networks are called one by one; positions, masks and the places of visual tokens are ours, so that frames
are encoded once, questions share a row, and what was read is kept.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from model.backbones.interface import Backbone, additive_mask, grad_if_trained
from model.fields import ACTIVATION, COMMON, EPSILON, FLAG, LAYER_LIST, LLAMA, SIZE, one_of, whole
from model.layout import Piece, Visual
from utils.batch import FrameMarks, PixelRule
from utils.errors import ConfigError, Problems

try:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
except ImportError as error:
    raise ConfigError(
        f"transformers {transformers.__version__} has no Qwen3VLForConditionalGeneration; install the version of "
        "requirements.txt (from 5.4 to below 5.40)"
    ) from error
if not (5, 4) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 40):
    raise ConfigError(f"transformers {transformers.__version__} is not one that Qwen3-VL works with here; install the "
                      "version of requirements.txt (from 5.4 to below 5.40)")  # fmt: skip

try:
    from transformers import vision_utils
except ImportError:  # older versions have it inside of each model
    vision_utils = None

VISION = {
    **COMMON,
    "depth": whole(1, 1024),
    "hidden_size": SIZE,
    "hidden_act": ACTIVATION,
    "intermediate_size": whole(1, 1 << 20),
    "num_heads": SIZE,
    "in_channels": one_of(3),
    "patch_size": whole(1, 1024),
    "spatial_merge_size": whole(1, 64),
    "temporal_patch_size": one_of(2),
    "out_hidden_size": SIZE,
    "num_position_embeddings": whole(1, 1 << 24),
    "deepstack_visual_indexes": LAYER_LIST,
    "initializer_range": EPSILON,
}
"""Fields of the vision tower."""


class Qwen3VL(Backbone):
    """Qwen3-VL. Fields of its own in :class:`model.config.MoraConfig`:

    * ``text_config``: decoder (``Qwen3VLTextConfig`` or dict); its ``tie_word_embeddings`` counts.
    * ``vision_config``: tower (``Qwen3VLVisionConfig`` or dict).
    * ``min_pixels``, ``max_pixels``: bounds of a resized frame; 32 x 32 pixels are one token in the published sizes.
    * ``frames_as``: "images", each frame on its own, or "video": two neighbours share their tokens, and a last one
      without a partner is repeated.
    * ``timestamps``: write the time before each frame or pair.

    ``visual_mode`` "video" puts all frames into one row, "frame" gives each a row of its own.
    """

    fields = {
        "visual_mode": ("video", one_of("frame", "video")),
        "template": ("qwen3_vl", one_of("qwen3_vl")),
        "tokenization": ("plain", one_of("plain")),
        "answer_style": ("bare", one_of("fixed", "name", "bare")),
        "min_pixels": (200_704, whole(1, 1 << 28)),
        "max_pixels": (802_816, whole(1, 1 << 28)),
        "frames_as": ("images", one_of("images", "video")),
        "timestamps": (False, FLAG),
    }
    parts = {
        "text_config": (Qwen3VLTextConfig, {**LLAMA, "model_type": one_of("qwen3_vl_text")}),
        "vision_config": (Qwen3VLVisionConfig, {**VISION, "model_type": one_of("qwen3_vl", "qwen3_vl_vision")}),
    }
    library: ClassVar[tuple[type, type]] = (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    normalised: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    decoder_part = "language_model.model.language_model"
    vocabulary_parts = ("language_model.model.language_model.embed_tokens", "language_model.lm_head")
    sides = {
        "text_config.vocab_size": ("language_model.model.language_model.embed_tokens.weight", 0),
        "text_config.hidden_size": ("language_model.model.language_model.embed_tokens.weight", 1),
        "text_config.intermediate_size": ("language_model.model.language_model.layers.0.mlp.gate_proj.weight", 0),
        "text_config.head_dim": ("language_model.model.language_model.layers.0.self_attn.q_norm.weight", 0),
        "vision_config.hidden_size": ("language_model.model.visual.patch_embed.proj.weight", 0),
        "vision_config.patch_size": ("language_model.model.visual.patch_embed.proj.weight", 3),
        "vision_config.intermediate_size": ("language_model.model.visual.blocks.0.mlp.linear_fc1.weight", 0),
        "vision_config.num_position_embeddings": ("language_model.model.visual.pos_embed.weight", 0),
        "vision_config.out_hidden_size": ("language_model.model.visual.merger.linear_fc2.weight", 0),
    }
    depths = {
        "text_config.num_hidden_layers": r"language_model\.model\.language_model\.layers\.(\d+)\.",
        "vision_config.depth": r"language_model\.model\.visual\.blocks\.(\d+)\.",
    }
    attentive = ("text_config", "vision_config")

    @classmethod
    def networks(cls, config: Any) -> dict[str, nn.Module]:
        text, vision = config.text_config, config.vision_config
        whole_config = cls.library[0](
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=text.tie_word_embeddings,
            # Unless told, the library forgets what was chosen for each part.
            attn_implementation={name: getattr(config, name)._attn_implementation for name in cls.parts},
        )
        network = cls.library[1](whole_config)
        if hasattr(network.model.visual, "pos_embed"):
            network.model.visual.pos_embed.grid_init = True  # see model.initialization
        network.model.language_model._deepstack_process = _add_features  # the library's own waits for the device
        return {"language_model": network}

    @classmethod
    def pixel_rule(cls, config: Any) -> PixelRule:
        side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        return PixelRule(side, "area", *cls.normalised, config.min_pixels, config.max_pixels)

    @classmethod
    def frame_marks(cls, config: Any) -> FrameMarks:
        if config.visual_mode == "frame":
            return FrameMarks()
        return FrameMarks(config.vision_config.temporal_patch_size if config.frames_as == "video" else 1,
                          config.timestamps)  # fmt: skip

    @classmethod
    def note_contradictions(cls, config: Any, problems: Problems) -> None:
        text, vision, unit = config.text_config, config.vision_config, cls.pixel_rule(config).size ** 2
        if config.max_pixels // unit * unit < config.min_pixels or config.max_pixels < unit:
            problems.add("max_pixels", f"is {config.max_pixels}; frames of whole tokens ({unit} pixels each) need at "
                         f"least one size between min_pixels, {config.min_pixels}, and max_pixels")  # fmt: skip
        if config.visual_mode == "frame" and (config.frames_as == "video" or config.timestamps):
            problems.add("visual_mode", "is 'frame', one row per frame: use frames_as 'images' and no timestamps")
        if vision.out_hidden_size != text.hidden_size:
            problems.add("vision_config.out_hidden_size",
                         f"is {vision.out_hidden_size}, but the decoder has {text.hidden_size}")  # fmt: skip
        if vision.hidden_size % (4 * vision.num_heads):
            problems.add("vision_config.hidden_size", f"is {vision.hidden_size}; rotary positions need heads of a "
                         f"multiple of 4, and there are {vision.num_heads}")  # fmt: skip
        sections = (text.rope_parameters or {}).get("mrope_section")
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        if not isinstance(sections, (list, tuple)) or len(sections) != 3 or 2 * sum(sections) != head:
            problems.add("text_config.rope_parameters", f"mrope_section is {sections}; three numbers that add up to "
                         f"half of head_dim, {head}")  # fmt: skip
        cls.note_tower(text, vision, problems)

    @classmethod
    def note_tower(cls, text: Any, vision: Any, problems: Problems) -> None:
        """Note where the tower's own fields do not fit."""
        levels = list(vision.deepstack_visual_indexes)
        if any(level >= vision.depth for level in levels) or len(levels) > text.num_hidden_layers:
            problems.add("vision_config.deepstack_visual_indexes", f"is {levels}; the tower has {vision.depth} layers, "
                         f"the decoder {text.num_hidden_layers}")  # fmt: skip
        if math.isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
            problems.add("vision_config.num_position_embeddings", "must be the square of a whole number")

    def _patches(self, video: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches of a video float [T, 3, H, W], in the order that the tower wants: [G, h * w, 3 * 2 * p * p], G images
        or pairs; and (h, w), patches along the sides."""
        vision = self.config.vision_config
        deep, p, m = vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size
        if self.config.frames_as == "images":
            video = video[:, None].expand(-1, deep, -1, -1, -1)
        else:
            video = torch.cat([video, video[-1:].expand(-len(video) % deep, -1, -1, -1)]).unflatten(0, (-1, deep))
        groups, _, channels, height, width = video.shape
        blocks = video.reshape(groups, deep, channels, height // (p * m), m, p, width // (p * m), m, p)
        # block row and column, row and column in it; then channel, frame, row and column of pixels
        blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return blocks.reshape(groups, -1, channels * deep * p * p), (height // p, width // p)

    def encode(self, videos: Sequence[Tensor], frames_per_pass: int | None = None) -> list[Visual]:
        tower, merge = self.part("language_model.model.visual"), self.config.vision_config.spatial_merge_size
        cut = [self._patches(video) for video in videos]
        grids = [(1, *sides) for patches, sides in cut for _ in patches]
        step = max(1, (frames_per_pass or 2 * len(grids)) // (1 if self.config.frames_as == "images" else 2))
        passes = [grids[start : start + step] for start in range(0, len(grids), step)]
        rows = torch.cat([patches.flatten(0, 1) for patches, _ in cut])
        made: list[list[Tensor]] = []
        with grad_if_trained(tower):
            for part, these in zip(rows.split([sum(h * w for _, h, w in each) for each in passes]), passes):
                seen = tower(part, **self.sizes(these, part.device))
                made.append([seen.pooler_output, *getattr(seen, "deepstack_features", ())])
        # Tokens, and what is added to them after the decoder's first layers: [n, D] each, of all videos.
        levels = [torch.cat(level) for level in zip(*made)]
        counts = [len(patches) * h * w // merge**2 for patches, (h, w) in cut]
        visuals = []
        for (patches, (h, w)), *parts in zip(cut, *(level.split(counts) for level in levels)):
            sides, images = (h // merge, w // merge), len(patches)
            lines = images if self.config.visual_mode == "frame" else 1
            tokens, *extras = (part.unflatten(0, (lines, -1)) for part in parts)
            visuals.append(Visual(tokens, [sides] * (images // lines), extras))
        return visuals

    def sizes(self, grids: Sequence[tuple[int, int, int]], device: torch.device) -> dict[str, Tensor]:
        """What the tower is told of images (1, h, w) in patches. What follows from these is made on the host where the
        library takes it: on a device each of its layers would wait for them."""
        grid, tower = torch.tensor(grids), self.part("language_model.model.visual")
        if not hasattr(vision_utils, "get_vision_interpolation_indices_and_weights"):
            return {"grid_thw": grid.to(device)}
        merge, sides = self.config.vision_config.spatial_merge_size, grid[:, 1] * grid[:, 2]
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        made = {
            "interp_indices": indices,
            "interp_weights": weights,
            "position_ids": vision_utils.get_vision_position_ids(grid, merge),
        }
        ends = nn.functional.pad(sides.cumsum(0, dtype=torch.int32), (1, 0))
        flash = "flash" in (self.config.vision_config._attn_implementation or "")
        made = {name: tensor.to(device, non_blocking=True) for name, tensor in made.items()}
        return {"grid_thw": grid, "cu_seqlens": ends.to(device) if flash else ends, **made}

    def positions(self, prefix: Sequence[Piece]) -> Tensor:
        """Time, height and width. A text counts on all three; an image of h x w tokens that starts at p stands at time
        p, rows p to p + h - 1 and columns p to p + w - 1."""
        parts, at = [torch.zeros(3, 0, dtype=torch.long)], 0
        for text, run in itertools.groupby(prefix, key=lambda piece: isinstance(piece, int)):
            if text:
                length = len(list(run))
                parts.append(torch.arange(at, at + length).expand(3, -1))
                at += length
                continue
            for height, width in run:
                rows, columns = torch.arange(height), torch.arange(width)
                place = torch.stack([torch.zeros(height * width, dtype=torch.long), rows.repeat_interleave(width),
                                     columns.repeat(height)])  # fmt: skip
                parts.append(place + at)
                at += max(height, width)
        return torch.cat(parts, dim=1)

    def read(
        self,
        embeds: Tensor,
        positions: Tensor | None,
        allowed: Tensor | None,
        cache: DynamicCache | None = None,
        places: Tensor | None = None,
        extras: Sequence[Tensor] = (),
    ) -> Tensor:
        batch, length = embeds.shape[:2]
        if positions is None:
            before = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(before, before + length, device=embeds.device)
        # Three axes: given a fourth, of columns, the library would look on the device for several sequences in a row.
        axes = positions.expand(3, batch, -1)
        features: dict[str, Any] = {}
        if extras:
            marks = torch.zeros(batch * length, dtype=torch.bool, device=embeds.device).index_fill(0, places, True)
            features = {"visual_pos_masks": marks.view(batch, length), "deepstack_visual_embeds": list(extras)}
        return self.decoder(
            inputs_embeds=embeds,
            attention_mask=additive_mask(allowed, embeds.dtype, self.decoder.config._attn_implementation),
            position_ids=axes,
            use_cache=cache is not None,
            **features,
            **{_CACHE: cache},
        ).last_hidden_state

    def frame_states(self, states: Tensor, frames: int) -> Tensor:
        if self.config.visual_mode == "frame":
            return states
        if self.config.frames_as == "images":
            return states[0].unflatten(0, (frames, -1))
        deep = self.config.vision_config.temporal_patch_size
        return states[0].unflatten(0, (-(-frames // deep), -1)).repeat_interleave(deep, 0)[:frames]


def _add_features(hidden: Tensor, marks: Tensor, features: Tensor) -> Tensor:
    """Add [n, D] to states [B, L, D] at the n marks of bool [B, L], in their order."""
    order = marks.flatten().cumsum(0).sub(1).clamp(min=0)
    spread = features.to(hidden.dtype)[order].view_as(hidden)
    return hidden + spread.masked_fill(~marks[..., None], 0)


def _cache_name() -> str:
    """What this version of transformers calls the keys and values of a decoder."""
    known = inspect.signature(Qwen3VLForConditionalGeneration.forward).parameters
    return "past_key_values" if "past_key_values" in known else "cache"


_CACHE = _cache_name()
