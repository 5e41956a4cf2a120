"""Qwen2.5-VL (Bai et al. 2025): as Qwen3-VL, but its tower looks within windows and its features enter only below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

from model.backbones.llava import CLIP_MEAN, CLIP_STD
from model.backbones.qwen3_vl import VISION, Qwen3VL
from model.fields import LAYER_LIST, LLAMA, SIZE, one_of
from utils.errors import Problems

_NOT_HERE = ("num_position_embeddings", "deepstack_visual_indexes")
_TEXT = {**LLAMA, "use_sliding_window": one_of(False, None), "model_type": one_of("qwen2_5_vl_text")}
_TOWER = {
    **{
        name: rule
        for name, rule in VISION.items()
        if name not in ("num_position_embeddings", "deepstack_visual_indexes")
    },
    "window_size": SIZE,
    "fullatt_block_indexes": LAYER_LIST,
    "model_type": one_of("qwen2_5_vl", "qwen2_5_vl_vision"),
}


class Qwen25VL(Qwen3VL):
    """Qwen2.5-VL; fields as of :class:`model.backbones.qwen3_vl.Qwen3VL`. 28 x 28 pixels are one token in the published
    sizes. ``frames_as`` is "images": its videos have positions in units of time, which ours have not. The prompt is
    that of Qwen3-VL, without the system text that Qwen2.5-VL's own begins with.
    """

    fields = {**Qwen3VL.fields, "frames_as": ("images", one_of("images"))}
    parts = {"text_config": (Qwen2_5_VLTextConfig, _TEXT), "vision_config": (Qwen2_5_VLVisionConfig, _TOWER)}
    library = (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)
    normalised = (CLIP_MEAN, CLIP_STD)
    sides = {
        **{field: where for field, where in Qwen3VL.sides.items() if field.endswith(("_size", "vocab_size"))},
        "vision_config.intermediate_size": ("language_model.model.visual.blocks.0.mlp.gate_proj.weight", 0),
        "vision_config.out_hidden_size": ("language_model.model.visual.merger.mlp.2.weight", 0),
    }

    @classmethod
    def note_tower(cls, text: Any, vision: Any, problems: Problems) -> None:
        unit = vision.patch_size * vision.spatial_merge_size
        if vision.window_size % unit:
            problems.add("vision_config.window_size", f"is {vision.window_size}; use a multiple of {unit} pixels")
        if any(level >= vision.depth for level in vision.fullatt_block_indexes):
            problems.add("vision_config.fullatt_block_indexes", f"is {list(vision.fullatt_block_indexes)}; the tower "
                         f"has {vision.depth} layers")  # fmt: skip
        if getattr(text, "head_dim", None) not in (None, text.hidden_size // text.num_attention_heads):
            problems.add("text_config.head_dim", f"is {text.head_dim}; here it is hidden_size / num_attention_heads")

    def sizes(self, grids: Sequence[tuple[int, int, int]], device: torch.device) -> dict[str, Tensor]:
        return {"grid_thw": torch.tensor(grids, device=device)}
