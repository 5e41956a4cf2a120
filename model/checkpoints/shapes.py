"""Read a model's sizes off the shapes of its tensors, so that no preset has to be guessed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor
from transformers import SamConfig

from model.config import MoraConfig
from model.segmenters.sam import sam_config
from utils.errors import CheckpointError, ConfigError, Problems

DECODER_HEADS = 8
"""The original's mask decoder always has eight heads; no shape shows it."""

_SIZES: dict[str, tuple[str | None, ...]] = {
    "language_model.model.embed_tokens.weight": ("text_config.vocab_size", "text_config.hidden_size"),
    "language_model.model.layers.0.mlp.gate_proj.weight": ("text_config.intermediate_size", None),
    "vision_tower.embeddings.patch_embedding.weight": (
        "vision_config.hidden_size", None, "vision_config.patch_size", "vision_config.patch_size",
    ),
    "vision_tower.encoder.layers.0.mlp.fc1.weight": ("vision_config.intermediate_size", None),
    "sam.vision_encoder.patch_embed.projection.weight": (
        "sam_config.vision_config.hidden_size", None, "sam_config.vision_config.patch_size",
        "sam_config.vision_config.patch_size",
    ),
    "sam.vision_encoder.layers.0.mlp.lin1.weight": ("sam_config.vision_config.mlp_dim", None),
    "sam.prompt_encoder.no_mask_embed.weight": (None, "sam_config.prompt_encoder_config.hidden_size"),
    "sam.mask_decoder.transformer.layers.0.mlp.lin1.weight": ("sam_config.mask_decoder_config.mlp_dim", None),
    "text_hidden_fcs.0.2.weight": ("out_dim", None),
}  # fmt: skip
"""Fields of a configuration that are a side of some tensor."""

_DEPTHS = {
    "text_config.num_hidden_layers": r"language_model\.model\.layers\.(\d+)\.",
    "vision_config.num_hidden_layers": r"vision_tower\.(?:vision_model\.)?encoder\.layers\.(\d+)\.",
    "sam_config.vision_config.num_hidden_layers": r"sam\.vision_encoder\.layers\.(\d+)\.",
    "sam_config.mask_decoder_config.num_hidden_layers": r"sam\.mask_decoder\.transformer\.layers\.(\d+)\.",
}
"""Fields that count layers, and the names of those."""


def require_sizes(config: MoraConfig, tensors: Mapping[str, Tensor], files: Mapping[str, Path]) -> None:
    """Compare a configuration with the tensors it came with, before a model of its size is built.

    Args:
        config: the configuration.
        tensors: named as in :class:`model.mora.MoraModel`; what is absent is not looked at.
        files: where fields are stored, by what their names begin with here and not there.

    Raises:
        ConfigError: naming file and field of every size that is not the tensors'.
    """
    problems = Problems()
    plain = {name.replace("vision_tower.vision_model.", "vision_tower.", 1): value for name, value in tensors.items()}
    found: dict[str, tuple[int, str]] = {}
    for name, sides in _SIZES.items():
        shape = tuple(plain[name].shape) if name in plain else ()
        for key, side in zip(sides, shape):
            if key is not None and len(shape) == len(sides):
                found.setdefault(key, (side, f"{name} is {list(shape)}"))
    for key, pattern in _DEPTHS.items():
        depth = count_layers(tensors, pattern, least=0)
        if depth:
            found[key] = depth, f"the weights have {depth} layers"
    for key, (size, reason) in found.items():
        stored = functools.reduce(getattr, key.split("."), config)
        where = next((start for start in files if key.startswith(start)), None)
        if stored != size and where is not None:
            problems.add(str(files[where]), f"{key.removeprefix(where).strip('.')} is {stored}, but {reason}")
    problems.raise_if_any(ConfigError, "sizes that are not those of the weights; use the config.json saved with them")


def sam_config_of(state: Mapping[str, Tensor]) -> SamConfig:
    """The configuration of a SAM checkpoint, named as in :class:`model.segmenters.sam.SamSegmenter`.

    The grid comes from ``pos_embed``; the width of a head from ``rel_pos_h``, whose length also tells windows from
    global attention (``2 * side - 1``); everything else is a plain dimension.

    Args:
        state: all tensors; :func:`model.checkpoints.key_maps.rename_sam` gives them their names.

    Raises:
        CheckpointError: a tensor that is needed is absent, or the shapes contradict each other.
    """
    embed_dim, channels, patch_size, _ = _shape(state, "vision_encoder.patch_embed.projection.weight")
    depth = count_layers(state, r"vision_encoder\.layers\.(\d+)\.")
    rel_pos = [_shape(state, f"vision_encoder.layers.{layer}.attn.rel_pos_h") for layer in range(depth)]
    sides = [(length + 1) // 2 for length, _ in rel_pos]
    grid = _grid(state, sides)
    window, global_layers = _windows(sides, grid)
    decoder = "mask_decoder.transformer"
    width = _shape(state, "prompt_encoder.no_mask_embed.weight")[1]
    config = sam_config(
        image_size=grid * patch_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // rel_pos[0][1],
        window_size=window,
        global_attn_indexes=global_layers,
        out_channels=_shape(state, "vision_encoder.neck.conv1.weight")[0],
        mlp_dim=_shape(state, "vision_encoder.layers.0.mlp.lin1.weight")[0],
        decoder_depth=count_layers(state, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        decoder_heads=DECODER_HEADS,
        decoder_mlp_dim=_shape(state, f"{decoder}.layers.0.mlp.lin1.weight")[0],
        num_channels=channels,
        qkv_bias="vision_encoder.layers.0.attn.qkv.bias" in state,
        use_abs_pos="vision_encoder.pos_embed" in state,
    )
    if config.vision_config.output_channels != width:
        raise CheckpointError(
            f"SAM's image encoder gives {config.vision_config.output_channels} channels but its prompts have {width}"
        )
    masks = config.mask_decoder_config
    masks.attention_downsample_rate = width // _shape(state, f"{decoder}.final_attn_token_to_image.q_proj.weight")[0]
    masks.num_multimask_outputs = _shape(state, "mask_decoder.mask_tokens.weight")[0] - 1
    masks.iou_head_depth = 2 + count_layers(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.", least=0)
    masks.iou_head_hidden_dim = _shape(state, "mask_decoder.iou_prediction_head.proj_in.weight")[0]
    prompts = config.prompt_encoder_config
    prompts.mask_input_channels = _shape(state, "prompt_encoder.mask_embed.conv2.weight")[0]
    prompts.num_point_embeddings = count_layers(state, r"prompt_encoder\.point_embed\.(\d+)\.")
    return config


def _grid(state: Mapping[str, Tensor], sides: list[int]) -> int:
    """Patches along one side of the image; ``sides`` are those of each layer's attention."""
    if "vision_encoder.pos_embed" not in state:
        return max(sides)  # at least one layer of every published encoder attends to the whole image
    shape = _shape(state, "vision_encoder.pos_embed")  # [1, g, g, D]
    if shape[1] != shape[2]:
        raise CheckpointError(f"vision_encoder.pos_embed: {list(shape)} is not square; SAM's input must be")
    return shape[1]


def _windows(sides: list[int], grid: int) -> tuple[int, list[int]]:
    """Side of the windows (0: none) and the layers that attend to the whole image."""
    windows = sorted({side for side in sides if side != grid})
    if len(windows) > 1:
        raise CheckpointError(f"SAM's windows have several sizes ({windows}); one is supported")
    return windows[0] if windows else 0, [layer for layer, side in enumerate(sides) if side == grid]


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Shape of a tensor that must be there."""
    if name not in state:
        raise CheckpointError(f"{name}: missing, so the model's size cannot be read from the checkpoint")
    return tuple(state[name].shape)


def count_layers(names: Iterable[str], pattern: str, least: int = 1) -> int:
    """One more than the largest number that ``pattern``'s group takes among the names; 0 if no name fits.

    Raises:
        CheckpointError: fewer than ``least``.
    """
    count = 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
    if count < least:
        raise CheckpointError(f"no tensor named like {pattern}; is this a SAM checkpoint?")
    return count
