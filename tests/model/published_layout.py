"""A tiny checkpoint of the published layout: its table of names and shapes, filled with seeded noise."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def sam_table(image, patch, dim, depth, heads, window, layers_global, out) -> Shapes:
    """Names and shapes of the original SAM, written out from its published table."""
    grid, table = image // patch, {}
    table["image_encoder.pos_embed"] = (1, grid, grid, dim)
    table["image_encoder.patch_embed.proj.weight"] = (dim, 3, patch, patch)
    table["image_encoder.patch_embed.proj.bias"] = (dim,)
    for index in range(depth):
        block = f"image_encoder.blocks.{index}"
        side = grid if index in layers_global else window
        table |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
        table |= {f"{block}.attn.rel_pos_{axis}": (2 * side - 1, dim // heads) for axis in "hw"}
        table |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
        table |= linear(f"{block}.mlp.lin1", 4 * dim, dim) | linear(f"{block}.mlp.lin2", dim, 4 * dim)
    table["image_encoder.neck.0.weight"] = (out, dim, 1, 1)
    table["image_encoder.neck.2.weight"] = (out, out, 3, 3)
    table |= norm("image_encoder.neck.1", out) | norm("image_encoder.neck.3", out)
    table["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, out // 2)
    embeddings = [f"point_embeddings.{index}" for index in range(4)] + ["not_a_point_embed", "no_mask_embed"]
    table |= {f"prompt_encoder.{name}.weight": (1, out) for name in embeddings}
    down = "prompt_encoder.mask_downscaling"
    table |= {f"{down}.0.weight": (4, 1, 2, 2), f"{down}.0.bias": (4,), f"{down}.3.weight": (16, 4, 2, 2)}
    table |= {f"{down}.3.bias": (16,), f"{down}.6.weight": (out, 16, 1, 1), f"{down}.6.bias": (out,)}
    table |= norm(f"{down}.1", 4) | norm(f"{down}.4", 16)
    return table | mask_decoder_table(out)


def mask_decoder_table(out) -> Shapes:
    """The mask decoder's part of :func:`sam_table`."""
    transformer, table = "mask_decoder.transformer", {}

    def attention(name: str, inner: int) -> Shapes:
        shapes = linear(f"{name}.out_proj", out, inner)
        for part in "qkv":
            shapes |= linear(f"{name}.{part}_proj", inner, out)
        return shapes

    for index in range(2):
        layer = f"{transformer}.layers.{index}"
        table |= attention(f"{layer}.self_attn", out)
        table |= attention(f"{layer}.cross_attn_token_to_image", out // 2)
        table |= attention(f"{layer}.cross_attn_image_to_token", out // 2)
        table |= linear(f"{layer}.mlp.lin1", 2048, out) | linear(f"{layer}.mlp.lin2", out, 2048)
        for number in range(1, 5):
            table |= norm(f"{layer}.norm{number}", out)
    table |= attention(f"{transformer}.final_attn_token_to_image", out // 2)
    table |= norm(f"{transformer}.norm_final_attn", out)
    table |= {"mask_decoder.iou_token.weight": (1, out), "mask_decoder.mask_tokens.weight": (4, out)}
    up = "mask_decoder.output_upscaling"
    table |= {f"{up}.0.weight": (out, out // 4, 2, 2), f"{up}.0.bias": (out // 4,)} | norm(f"{up}.1", out // 4)
    table |= {f"{up}.3.weight": (out // 4, out // 8, 2, 2), f"{up}.3.bias": (out // 8,)}
    for index in range(4):
        name = f"mask_decoder.output_hypernetworks_mlps.{index}.layers"
        table |= linear(f"{name}.0", out, out) | linear(f"{name}.1", out, out) | linear(f"{name}.2", out // 8, out)
    name = "mask_decoder.iou_prediction_head.layers"
    return table | linear(f"{name}.0", 256, out) | linear(f"{name}.1", 256, 256) | linear(f"{name}.2", 4, 256)


def llava_table(vocabulary, hidden, layers, heads, kv_heads, mlp, clip, out) -> Shapes:
    """Names and shapes of the rest of a published checkpoint."""
    table: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    head = hidden // heads
    for index in range(layers):
        layer = f"model.layers.{index}"
        table |= {f"{layer}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qo"}
        table |= {f"{layer}.self_attn.{part}_proj.weight": (kv_heads * head, hidden) for part in "kv"}
        table[f"{layer}.self_attn.rotary_emb.inv_freq"] = (head // 2,)
        table |= {f"{layer}.mlp.{part}_proj.weight": (mlp, hidden) for part in ("gate", "up")}
        table[f"{layer}.mlp.down_proj.weight"] = (hidden, mlp)
        table |= {f"{layer}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    table["model.norm.weight"] = (hidden,)
    table |= linear("model.mm_projector", hidden, clip)
    head = "model.text_hidden_fcs.0"
    return table | linear(f"{head}.0", hidden, hidden) | linear(f"{head}.2", out, hidden)


def clip_table(hidden, layers, mlp, image, patch) -> Shapes:
    """Names and shapes of a CLIP vision tower as transformers 4 stored it."""
    table: Shapes = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        "embeddings.position_embedding.weight": (1 + (image // patch) ** 2, hidden),
    }
    table |= norm("pre_layrnorm", hidden) | norm("post_layernorm", hidden)
    for index in range(layers):
        layer = f"encoder.layers.{index}"
        for part in ("k", "v", "q", "out"):
            table |= linear(f"{layer}.self_attn.{part}_proj", hidden, hidden)
        table |= norm(f"{layer}.layer_norm1", hidden) | norm(f"{layer}.layer_norm2", hidden)
        table |= linear(f"{layer}.mlp.fc1", mlp, hidden) | linear(f"{layer}.mlp.fc2", hidden, mlp)
    return {f"vision_model.{name}": shape for name, shape in table.items()}


def noise(table: Shapes, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in table.items()}


SAM_SIZE = {"image": 56, "patch": 8, "dim": 24, "depth": 3, "heads": 3, "window": 3, "layers_global": (1,), "out": 16}
SAM = sam_table(**SAM_SIZE)
CLIP = clip_table(hidden=20, layers=2, mlp=44, image=42, patch=14)
LLAVA = llava_table(vocabulary=70, hidden=48, layers=2, heads=6, kv_heads=2, mlp=80, clip=20, out=16)
CONFIG = {
    "architectures": ["MoRAForCausalLM"],
    "model_type": "llava",
    "vocab_size": 70,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 3e-4,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "vision_tower": "tower",
    "mm_vision_select_layer": -1,
    "out_dim": 16,
    "train_mask_decoder": True,
}


def write_published(place: Path) -> Path:
    """A folder of the published layout in ``place``, its CLIP tower beside it."""
    folder, tower = place / "lisa", place / "tower"
    folder.mkdir()
    tower.mkdir()
    state = noise(LLAVA | {f"model.visual_model.{name}": shape for name, shape in SAM.items()}, seed=1)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "added_tokens.json").write_text(json.dumps({"[SEG]": 67, "<im_start>": 68, "[LOC]": 69}))
    extras = {"logit_scale": (), "text_model.final_layer_norm.weight": (8,)}
    save_file(noise(CLIP | extras, seed=2), tower / "model.safetensors")
    config = CLIPVisionConfig(
        hidden_size=20, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5, image_size=42, patch_size=14
    )
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config.to_dict()}))
    return folder


def edit(folder: Path, drop: str = "\0", add: dict[str, Tensor] | None = None) -> None:
    """Take away all tensors whose name begins with ``drop`` and add some."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(drop)} | (add or {})
    torch.save(state, folder / "pytorch_model.bin")
