"""Sizes of a SAM: its configuration, what its fields may hold, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import SamConfig

from model import fields
from model.fields import DEPTH, FLAG, SIZE
from utils.errors import Problems

PARTS: dict[str, dict[str, fields.Rule]] = {
    "vision_config": {
        **fields.VISION,
        "output_channels": SIZE,
        "qkv_bias": FLAG,
        "mlp_ratio": fields.real(0, 1e3),
        "mlp_dim": fields.optional(fields.whole(1, 1 << 20)),
        "use_abs_pos": FLAG,
        "use_rel_pos": FLAG,
        "window_size": fields.whole(0, fields.WIDTH),
        "global_attn_indexes": fields.LAYER_LIST,
        "num_pos_feats": SIZE,
    },
    "prompt_encoder_config": {
        **fields.COMMON,
        "image_embedding_size": SIZE,
        "hidden_size": SIZE,
        "image_size": SIZE,
        "patch_size": SIZE,
        "mask_input_channels": SIZE,
        "num_point_embeddings": DEPTH,
        "hidden_act": fields.ACTIVATION,
        "layer_norm_eps": fields.EPSILON,
    },
    "mask_decoder_config": {
        **fields.COMMON,
        "hidden_size": SIZE,
        "hidden_act": fields.ACTIVATION,
        "mlp_dim": fields.whole(1, 1 << 20),
        "num_hidden_layers": DEPTH,
        "num_attention_heads": SIZE,
        "attention_downsample_rate": SIZE,
        "num_multimask_outputs": fields.whole(1, 64),
        "iou_head_depth": fields.whole(2, 64),
        "iou_head_hidden_dim": SIZE,
        "layer_norm_eps": fields.EPSILON,
    },
}
"""Fields of each part of SAM."""


def sam_config(
    image_size: int = 1024,
    patch_size: int = 16,
    embed_dim: int = 1280,
    depth: int = 32,
    num_heads: int = 16,
    window_size: int = 14,
    global_attn_indexes: Sequence[int] = (7, 15, 23, 31),
    out_channels: int = 256,
    mlp_dim: int | None = None,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    decoder_mlp_dim: int = 2048,
    **vision: Any,
) -> SamConfig:
    """Describe a SAM with the original's constants; the defaults are ViT-H.

    Two constants of ``transformers`` are not the original's and are set right here: the normalisations inside the mask
    decoder's transformer have epsilon 1e-5, and the random Fourier matrix of positions has unit variance.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        embed_dim: width of the image encoder.
        depth: layers of the image encoder.
        num_heads: attention heads of the image encoder.
        window_size: side of an attention window, patches; 0 for global attention everywhere.
        global_attn_indexes: layers without windows.
        out_channels: width of the embeddings, prompts and mask decoder.
        mlp_dim: hidden width of the image encoder's MLP; default 4 x ``embed_dim``.
        decoder_depth: two-way layers of the mask decoder.
        decoder_heads: its attention heads.
        decoder_mlp_dim: hidden width of its MLP.
        vision: further fields of ``SamVisionConfig`` (``use_rel_pos``, ``use_abs_pos``, ``qkv_bias`` ...).

    Returns:
        A new configuration.
    """
    vision_config = {
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_size": embed_dim,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "window_size": window_size,
        "global_attn_indexes": list(global_attn_indexes),
        "output_channels": out_channels,
        "num_pos_feats": out_channels // 2,
        "mlp_dim": 4 * embed_dim if mlp_dim is None else mlp_dim,
        "initializer_range": 0.02,
        **vision,
    }
    return SamConfig(
        vision_config=vision_config,
        prompt_encoder_config={"hidden_size": out_channels, "image_size": image_size, "patch_size": patch_size},
        mask_decoder_config={
            "hidden_size": out_channels,
            "num_hidden_layers": decoder_depth,
            "num_attention_heads": decoder_heads,
            "mlp_dim": decoder_mlp_dim,
            "layer_norm_eps": 1e-5,
        },
    )


def note_wrong_values(values: Any, problems: Problems, where: str) -> None:
    """Note every field of a SAM, an object of objects named ``where``, that holds what it may not."""
    own = {**fields.COMMON, "initializer_range": fields.EPSILON, "model_type": fields.one_of("sam")}
    fields.note_problems(values, own, problems, where)
    if isinstance(values, Mapping):
        for part, rules in PARTS.items():
            if values.get(part) is not None:
                names = [
                    f"sam_{part.removesuffix('_config')}",
                    "sam_vision_model",
                    SamConfig.sub_configs[part].model_type,
                ]
                kind = {"model_type": fields.one_of(*dict.fromkeys(names))}  # older libraries give no name
                fields.note_problems(values[part], {**rules, **kind}, problems, f"{where}.{part}")


def note_contradictions(sam: SamConfig, problems: Problems) -> None:
    """Note where the parts of a SAM do not fit each other."""
    vision, prompts, masks = sam.vision_config, sam.prompt_encoder_config, sam.mask_decoder_config
    for name, (first, second) in {
        "vision_config.output_channels": (vision.output_channels, prompts.hidden_size),
        "mask_decoder_config.hidden_size": (masks.hidden_size, prompts.hidden_size),
        "vision_config.num_pos_feats": (2 * vision.num_pos_feats, prompts.hidden_size),
        "vision_config.image_size": (vision.image_size, prompts.image_size),
        "vision_config.patch_size": (vision.patch_size, prompts.patch_size),
        "prompt_encoder_config.image_embedding_size": (
            prompts.image_embedding_size, prompts.image_size // prompts.patch_size,
        ),
    }.items():  # fmt: skip
        if first != second:
            problems.add(f"sam_config.{name}", f"gives {first}, but prompt_encoder_config wants {second}")
    if masks.hidden_size % (masks.attention_downsample_rate * masks.num_attention_heads) or masks.hidden_size % 8:
        problems.add(
            "sam_config.mask_decoder_config.hidden_size",
            f"is {masks.hidden_size}; use a multiple of 8 and of attention_downsample_rate x num_attention_heads "
            f"({masks.attention_downsample_rate} x {masks.num_attention_heads})",
        )
    if any(layer >= vision.num_hidden_layers for layer in vision.global_attn_indexes):
        problems.add(
            "sam_config.vision_config.global_attn_indexes",
            f"is {list(vision.global_attn_indexes)}; the encoder has {vision.num_hidden_layers} layers",
        )
