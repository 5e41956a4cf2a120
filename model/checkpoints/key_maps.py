"""Names of tensors: from the published layouts to those of this project's modules.

Sources: ``segment_anything`` (build_sam.py, modeling/), ``transformers`` (models/sam, models/clip), LLaVA v1 and LISA
(``model.*`` prefixes as ``save_pretrained`` of transformers 4.31 wrote them).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

Value = TypeVar("Value")

_MLP_LAYER = re.compile(r"^(.*(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.(weight|bias)$")
"""Layers of SAM's small MLPs, numbered from 0; transformers calls the first ``proj_in`` and the last ``proj_out``."""

_SAM_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^image_encoder\.pos_embed$", r"vision_encoder.pos_embed"),
        (r"^image_encoder\.patch_embed\.proj\.(.*)$", r"vision_encoder.patch_embed.projection.\1"),
        (r"^image_encoder\.blocks\.(\d+)\.norm(\d)\.(.*)$", r"vision_encoder.layers.\1.layer_norm\2.\3"),
        (r"^image_encoder\.blocks\.(\d+)\.(attn|mlp)\.(.*)$", r"vision_encoder.layers.\1.\2.\3"),
        (r"^image_encoder\.neck\.0\.(.*)$", r"vision_encoder.neck.conv1.\1"),
        (r"^image_encoder\.neck\.1\.(.*)$", r"vision_encoder.neck.layer_norm1.\1"),
        (r"^image_encoder\.neck\.2\.(.*)$", r"vision_encoder.neck.conv2.\1"),
        (r"^image_encoder\.neck\.3\.(.*)$", r"vision_encoder.neck.layer_norm2.\1"),
        (
            r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
            r"shared_image_embedding.positional_embedding",
        ),
        (r"^prompt_encoder\.point_embeddings\.(\d+)\.weight$", r"prompt_encoder.point_embed.\1.weight"),
        (r"^prompt_encoder\.(not_a_point_embed|no_mask_embed)\.weight$", r"prompt_encoder.\1.weight"),
        (r"^prompt_encoder\.mask_downscaling\.0\.(.*)$", r"prompt_encoder.mask_embed.conv1.\1"),
        (r"^prompt_encoder\.mask_downscaling\.1\.(.*)$", r"prompt_encoder.mask_embed.layer_norm1.\1"),
        (r"^prompt_encoder\.mask_downscaling\.3\.(.*)$", r"prompt_encoder.mask_embed.conv2.\1"),
        (r"^prompt_encoder\.mask_downscaling\.4\.(.*)$", r"prompt_encoder.mask_embed.layer_norm2.\1"),
        (r"^prompt_encoder\.mask_downscaling\.6\.(.*)$", r"prompt_encoder.mask_embed.conv3.\1"),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm(\d)\.(.*)$", r"\1.layer_norm\2.\3"),
        (
            r"^(mask_decoder\.transformer\.layers\.\d+\.(?:self_attn|cross_attn_\w+|mlp)\..*)$",
            r"\1",
        ),
        (r"^mask_decoder\.transformer\.norm_final_attn\.(.*)$", r"mask_decoder.transformer.layer_norm_final_attn.\1"),
        (r"^(mask_decoder\.transformer\.final_attn_token_to_image\..*)$", r"\1"),
        (r"^(mask_decoder\.(?:iou_token|mask_tokens)\.weight)$", r"\1"),
        (r"^mask_decoder\.output_upscaling\.0\.(.*)$", r"mask_decoder.upscale_conv1.\1"),
        (r"^mask_decoder\.output_upscaling\.1\.(.*)$", r"mask_decoder.upscale_layer_norm.\1"),
        (r"^mask_decoder\.output_upscaling\.3\.(.*)$", r"mask_decoder.upscale_conv2.\1"),
    )
)

_HF_SAM_DUPLICATE = "prompt_encoder.shared_embedding.positional_embedding"
"""``SamModel`` may store its position matrix a second time under this name."""

SAM_PARTS = {
    "image encoder": ("vision_encoder.",),
    "prompt encoder": ("prompt_encoder.", "shared_image_embedding."),
    "mask decoder": ("mask_decoder.",),
}
"""Parts of SAM that are filled as a whole or not at all, with the prefixes of their tensors (our names)."""


def sam_names(names: Iterable[str]) -> dict[str, str | None]:
    """Map names of the original ``segment_anything`` layout to those of :class:`model.segmenters.sam.SamSegmenter`.

    Args:
        names: all names of one checkpoint (the depth of its MLPs is read from them).

    Returns:
        Original name to ours; None for a name the original does not have.
    """
    names = list(names)
    last: dict[str, int] = {}
    for name in names:
        if match := _MLP_LAYER.match(name):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    return {name: _sam_name(name, last) for name in names}


def _sam_name(name: str, last: Mapping[str, int]) -> str | None:
    """Our name of one original SAM tensor; ``last`` gives the index of each MLP's last layer."""
    if match := _MLP_LAYER.match(name):
        head, number, kind = match[1], int(match[2]), match[3]
        if number == 0:
            return f"{head}.proj_in.{kind}"
        if number == last[head]:
            return f"{head}.proj_out.{kind}"
        return f"{head}.layers.{number - 1}.{kind}"
    for pattern, replacement in _SAM_RULES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return None


def is_hf_sam(names: Iterable[str]) -> bool:
    """Whether the names are those of ``transformers.SamModel`` rather than of ``segment_anything``."""
    return any(name.startswith(("vision_encoder.", "shared_image_embedding.")) for name in names)


def rename_sam(state: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Rename a SAM checkpoint of either layout to the names of :class:`model.segmenters.sam.SamSegmenter`.

    Returns:
        (renamed, unknown): values under our names, and those whose name neither layout has, under their own.
    """
    if is_hf_sam(state):
        renamed = dict(state)
        positions = renamed.pop(_HF_SAM_DUPLICATE, None)
        if positions is not None:
            renamed.setdefault("shared_image_embedding.positional_embedding", positions)
        prefixes = tuple(prefix for part in SAM_PARTS.values() for prefix in part)
        unknown = {name: renamed.pop(name) for name in list(renamed) if not name.startswith(prefixes)}
        return renamed, unknown
    return split_renamed(state, sam_names(state).get)


def split_renamed(
    state: Mapping[str, Value], rename: Callable[[str], str | None]
) -> tuple[dict[str, Value], dict[str, Value]]:
    """Apply ``rename`` to every name; values whose new name is None come back separately under the old one."""
    renamed: dict[str, Value] = {}
    unknown: dict[str, Value] = {}
    for name, value in state.items():
        new = rename(name)
        if new is None:
            unknown[name] = value
        else:
            renamed[new] = value
    return renamed, unknown


def strip_prefix(state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The values whose name begins with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


@functools.cache
def _clip_prefix() -> str:
    """What the installed ``CLIPVisionModel`` puts before its tensors: "vision_model." until transformers 5, now ""."""
    with torch.device("meta"):
        tower = CLIPVisionModel(
            CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        )
    return "vision_model." if all(name.startswith("vision_model.") for name in tower.state_dict()) else ""


def rename_clip(state: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Pick the vision tower out of a ``CLIPModel`` or ``CLIPVisionModel`` checkpoint of any transformers version.

    Returns:
        (tower, ignored): the tower's values under the names of the installed ``CLIPVisionModel``; text tower,
        projections and ``position_ids``, which LLaVA does not use.
    """
    tower: dict[str, Value] = {}
    ignored: dict[str, Value] = {}
    for name, value in state.items():
        if name.startswith(("text_model.", "text_projection.", "visual_projection.")) or name == "logit_scale":
            ignored[name] = value
        elif name.endswith("embeddings.position_ids"):
            ignored[name] = value
        else:
            tower[_clip_prefix() + name.removeprefix("vision_model.")] = value
    return tower, ignored


def strip_wrappers(state: Mapping[str, Value]) -> dict[str, Value]:
    """Undo the names that peft and data-parallel wrappers add: ``module.``, ``base_model.model.``, ``.base_layer``.

    LoRA matrices keep their ``lora_A`` / ``lora_B`` names; the export tool merges them.
    """
    plain: dict[str, Value] = {}
    wrapped = all(name.startswith("module.") for name in state)
    for name, value in state.items():
        if wrapped:
            name = name.removeprefix("module.")
        plain[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = value
    return plain
