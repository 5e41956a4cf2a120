"""Sizes of the network as builder functions. A size is a function, never a branch on a path."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig

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
    sam = sam_config(
        image_size=sam_image_size,
        patch_size=sam_patch_size,
        embed_dim=sam_hidden,
        depth=sam_layers,
        num_heads=sam_heads,
        window_size=0,
        global_attn_indexes=range(sam_layers),
        out_channels=sam_channels,
        mlp_dim=2 * sam_hidden,
        decoder_heads=sam_heads,
        decoder_mlp_dim=2 * sam_channels,
    )
    parts = {
        "text_config": _llama(vocab_size, llm_hidden, llm_layers, llm_heads, llm_mlp or 3 * llm_hidden),
        "vision_config": _clip(clip_image_size, clip_patch_size, clip_hidden, clip_layers, clip_heads, 2 * clip_hidden),
        "sam_config": sam,
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
