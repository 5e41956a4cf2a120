"""Sizes of the network as builder functions. A size is a function, never a branch on a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, SamConfig

from model.config import MoraConfig
from model.initialization import xavier_everywhere
from model.mora import MoraModel
from model.segmenters import sam_config


def _llama(vocab: int, hidden: int, layers: int, heads: int, mlp: int, **more: Any) -> LlamaConfig:
    """A Llama decoder with as many key heads as query heads and an untied language head."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        **{"pad_token_id": None, **more},
    )


def _clip(image: int, patch: int, hidden: int, layers: int, heads: int, mlp: int, **more: Any) -> CLIPVisionConfig:
    """A CLIP vision tower."""
    return CLIPVisionConfig(
        image_size=image,
        patch_size=patch,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )


def _tiny_sam(image: int, patch: int, hidden: int, layers: int, heads: int, channels: int) -> SamConfig:
    """A SAM whose encoder attends globally."""
    return sam_config(
        image_size=image,
        patch_size=patch,
        embed_dim=hidden,
        depth=layers,
        num_heads=heads,
        window_size=0,
        global_attn_indexes=range(layers),
        out_channels=channels,
        mlp_dim=2 * hidden,
        decoder_heads=heads,
        decoder_mlp_dim=2 * channels,
    )


TINY_FIELDS: dict[str, Any] = {
    "vision_select_layer": -1,
    "projector": "mlp",
    "projector_hidden_size": 512,
    "projector_shuffle": 2,
    "projector_motion": True,
    "frame_time_embedding": True,
    "visual_mode": "video",
    "loc_mode": "global",
    "loc_hidden_size": 128,
    "template": "plain",
    "tokenization": "plain",
    "answer_style": "name",
    "initialization": "xavier",
}
"""What :func:`tiny` sets beside sizes."""


def tiny(
    *,
    vocab_size: int = 640,
    clip_image_size: int = 64,
    clip_patch_size: int = 8,
    clip_hidden: int = 96,
    clip_layers: int = 3,
    clip_heads: int = 4,
    llm_hidden: int = 128,
    llm_layers: int = 4,
    llm_heads: int = 4,
    llm_mlp: int | None = None,
    sam_image_size: int = 64,
    sam_patch_size: int = 8,
    sam_hidden: int = 96,
    sam_layers: int = 3,
    sam_heads: int = 4,
    sam_channels: int = 96,
    **overrides: Any,
) -> MoraConfig:
    """A network of a few million weights that trains on a CPU; the one the demo and the tests use.

    Args:
        vocab_size: words.
        clip_image_size, clip_patch_size: side of the vision tower's input and of its patches, pixels.
        clip_hidden, clip_layers, clip_heads: the tower's width, depth and attention heads; its MLP is twice as wide.
        llm_hidden, llm_layers, llm_heads: of the decoder.
        llm_mlp: width of its MLP; default three times ``llm_hidden``.
        sam_image_size, sam_patch_size: side of SAM's input and of its patches, pixels.
        sam_hidden, sam_layers: width and depth of SAM's image encoder; its MLP is twice as wide, attention is global.
        sam_heads: attention heads of encoder and mask decoder.
        sam_channels: width of embeddings, prompts and mask decoder.
        overrides: any other field of :class:`MoraConfig`.

    Returns:
        A new configuration.
    """
    parts = {
        "text_config": _llama(vocab_size, llm_hidden, llm_layers, llm_heads, llm_mlp or 3 * llm_hidden),
        "vision_config": _clip(clip_image_size, clip_patch_size, clip_hidden, clip_layers, clip_heads, 2 * clip_hidden),
        "sam_config": _tiny_sam(sam_image_size, sam_patch_size, sam_hidden, sam_layers, sam_heads, sam_channels),
        "out_dim": sam_channels,
    }
    return MoraConfig(**{**TINY_FIELDS, **parts, **overrides})


def lisa_7b(**overrides: Any) -> MoraConfig:
    """LISA-7B: Llama 7B, CLIP ViT-L/14 at 224 pixels, SAM ViT-H at 1024; one LLM row per frame, as in MoRA.

    Args:
        overrides: any field of :class:`MoraConfig`.

    Returns:
        A new configuration.
    """
    fields = {
        "text_config": _llama(32003, 4096, 32, 32, 11008, pad_token_id=0),
        "vision_config": _clip(224, 14, 1024, 24, 16, 4096, projection_dim=768),
        "sam_config": sam_config(),
    }
    return MoraConfig(**{**fields, **overrides})


def _qwen3_vl(
    vocab: int,
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    mlp: int,
    tower: tuple[int, int, int, int],
    levels: Sequence[int],
    sections: Sequence[int],
    head_dim: int = 128,
    tied: bool = False,
    **vision: Any,
) -> dict[str, dict[str, Any]]:
    """Decoder and tower of a Qwen3-VL; ``heads`` for queries and keys; ``tower``: width, depth, heads, MLP width."""
    width, depth, tower_heads, tower_mlp = tower
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": list(sections), "mrope_interleaved": True}
    return {
        "text_config": {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads[0],
            "num_key_value_heads": heads[1],
            "head_dim": head_dim,
            "max_position_embeddings": 262144,
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "hidden_size": width,
            "depth": depth,
            "num_heads": tower_heads,
            "intermediate_size": tower_mlp,
            "out_hidden_size": hidden,
            "deepstack_visual_indexes": list(levels),
            **vision,
        },
    }


def tiny_qwen(
    *,
    vocab_size: int = 640,
    tower_hidden: int = 96,
    tower_layers: int = 3,
    tower_heads: int = 4,
    patch_size: int = 8,
    llm_hidden: int = 128,
    llm_layers: int = 4,
    llm_heads: tuple[int, int] = (4, 2),
    tied: bool = False,
    sam_channels: int = 96,
    **overrides: Any,
) -> MoraConfig:
    """A Qwen3-VL of a few million weights with the SAM of :func:`tiny`; frames of 64 x 64 pixels are 4 x 4 tokens.

    Args:
        vocab_size: words.
        tower_hidden, tower_layers, tower_heads: of the vision tower; its MLP is twice as wide. The features of its
            first two layers also enter the decoder.
        patch_size: side of its patches, pixels; 2 x 2 of them are one token.
        llm_hidden, llm_layers, llm_heads: of the decoder, heads for queries and for keys; its MLP is thrice as wide.
        tied: one matrix for word embeddings and language head.
        sam_channels: width of embeddings, prompts and mask decoder.
        overrides: any other field of :class:`MoraConfig`.

    Returns:
        A new configuration.
    """
    head = llm_hidden // llm_heads[0]
    sections = (head // 2 - 2 * (head // 6), head // 6, head // 6)
    parts = _qwen3_vl(
        vocab_size, llm_hidden, llm_layers, llm_heads, 3 * llm_hidden,
        (tower_hidden, tower_layers, tower_heads, 2 * tower_hidden), range(min(2, tower_layers)), sections,
        head_dim=head, tied=tied, patch_size=patch_size, num_position_embeddings=64,
    )  # fmt: skip
    fields = {
        "backbone": "qwen3_vl",
        "sam_config": _tiny_sam(64, 8, 96, 3, 4, sam_channels),
        "out_dim": sam_channels,
        "min_pixels": 64 * 64,
        "max_pixels": 64 * 64,
        "loc_mode": "global",
        "loc_hidden_size": 128,
        "answer_style": "name",
        "initialization": "xavier",
    }
    return MoraConfig(**{**fields, **parts, **overrides})


def _published_qwen3_vl(overrides: dict[str, Any], *sizes: Any, **more: Any) -> MoraConfig:
    """A published Qwen3-VL with SAM ViT-H at 1024."""
    parts = _qwen3_vl(151936, *sizes, sections=(24, 20, 20), **more)
    parts["text_config"] |= {"bos_token_id": 151643, "eos_token_id": 151645}
    fields = {"backbone": "qwen3_vl", "sam_config": sam_config(), "loc_mode": "global"}
    return MoraConfig(**{**fields, **parts, **overrides})


def qwen3_vl_8b(**overrides: Any) -> MoraConfig:
    """Qwen3-VL-8B; arguments and result as of :func:`lisa_7b`."""
    tower = (1152, 27, 16, 4304)
    return _published_qwen3_vl(overrides, 4096, 36, (32, 8), 12288, tower, (8, 16, 24))


def qwen3_vl_4b(**overrides: Any) -> MoraConfig:
    """Qwen3-VL-4B, whose head is its embeddings; arguments and result as of :func:`lisa_7b`."""
    tower = (1024, 24, 16, 4096)
    return _published_qwen3_vl(overrides, 2560, 36, (32, 8), 9728, tower, (5, 11, 17), tied=True)


def qwen3_vl_2b(**overrides: Any) -> MoraConfig:
    """Qwen3-VL-2B, whose head is its embeddings; arguments and result as of :func:`lisa_7b`."""
    tower = (1024, 24, 16, 4096)
    return _published_qwen3_vl(overrides, 2048, 28, (16, 8), 6144, tower, (5, 11, 17), tied=True)


def qwen2_5_vl_7b(**overrides: Any) -> MoraConfig:
    """Qwen2.5-VL-7B; arguments and result as of :func:`lisa_7b`."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    vision = {"hidden_size": 1280, "depth": 32, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584}
    fields = {"text_config": text, "vision_config": vision, "sam_config": sam_config(), "loc_mode": "global"}
    return MoraConfig(**{"backbone": "qwen2_5_vl", **fields, **overrides})


def build(config: MoraConfig, device: torch.device | str = "cpu", seed: int = 0) -> MoraModel:
    """A model with fresh weights.

    Args:
        config: its shape.
        device: where; "meta" makes shapes without memory.
        seed: of the weights; the same on every call, whatever the state of the global generators, which is kept.

    Returns:
        The model in eval mode, float32.
    """
    device = torch.device(device)
    if device.type == "meta":
        with device:
            return MoraModel(config).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MoraModel(config)
        if config.initialization == "xavier":
            xavier_everywhere(model, torch.Generator().manual_seed(seed))
    return model.to(device).eval()
