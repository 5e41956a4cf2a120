"""Arithmetic of one forward pass, counted from a configuration: floating-point operations, a multiply and an add each.

Matrix products only; norms, activations, rotary positions and softmax are a few percent more in time and nothing here.
Attention counts every pair of positions, also those that a causal mask removes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import MoraConfig
from model.segmenters import segmenter_class


@dataclass(frozen=True)
class Costs:
    """What a model's parts take.

    Attributes:
        sam_frame: SAM's image encoder, one frame; windows padded to full size, as the published code computes them.
        clip_frame: the vision tower up to the layer that is read, and the projector, one frame.
        decoder_prompt: SAM's mask decoder, one prompt on one frame.
        llm_token: the language model's matrices, one position; without the language head.
        llm_pair: its attention, one query position with one key position.
        llm_head: the language head, one position.
    """

    sam_frame: float
    clip_frame: float
    decoder_prompt: float
    llm_token: float
    llm_pair: float
    llm_head: float

    def llm(self, rows: int, positions: int, context: int = 0) -> float:
        """``rows`` rows of ``positions`` new positions, after ``context`` cached ones."""
        return rows * (positions * self.llm_token + positions * (context + positions) * self.llm_pair)


def costs_of(config: MoraConfig) -> Costs:
    """Count the parts of a network."""
    text = config.text_config
    width, layers = text.hidden_size, text.num_hidden_layers
    key_width = width * text.num_key_value_heads // text.num_attention_heads
    per_layer = 2 * width * (2 * width + 2 * key_width + 3 * text.intermediate_size)
    return Costs(
        sam_frame=sam_encoder(config),
        clip_frame=clip_tower(config),
        decoder_prompt=mask_decoder(config),
        llm_token=layers * per_layer,
        llm_pair=layers * 4 * width,
        llm_head=2 * width * text.vocab_size,
    )


def sam_encoder(config: MoraConfig) -> float:
    """SAM's image encoder, one frame: patches, attention with decomposed relative positions, MLP, neck."""
    vision = config.sam_config.vision_config
    side, width, mlp = vision.image_size // vision.patch_size, vision.hidden_size, vision.mlp_dim
    patches, out = side**2, vision.output_channels
    total = 2 * patches * 3 * vision.patch_size**2 * width
    for layer in range(vision.num_hidden_layers):
        windowed = vision.window_size > 0 and layer not in vision.global_attn_indexes
        span = vision.window_size if windowed else side
        tokens = (math.ceil(side / span) * span) ** 2
        total += 2 * tokens * 4 * width**2 + 4 * patches * width * mlp  # qkv and output; MLP
        total += 4 * tokens * span**2 * width  # scores and weighted values
        total += 4 * tokens * span * width if vision.use_rel_pos else 0
    return total + 2 * patches * width * out + 2 * patches * out**2 * 9


def tokens_per_frame(config: MoraConfig) -> int:
    """Visual tokens of one frame as the decoder sees them."""
    vision = config.vision_config
    return (vision.image_size // vision.patch_size // config.projector_shuffle) ** 2


def clip_tower(config: MoraConfig) -> float:
    """The vision tower's layers that are read, one frame, and the projector's share of it."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    width, tokens = vision.hidden_size, patches + 1
    depth, select = vision.num_hidden_layers, config.vision_select_layer
    used = select if select >= 0 else depth + 1 + select
    layer = 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * tokens**2 * width
    total = 2 * patches * 3 * vision.patch_size**2 * width + used * layer
    hidden = config.text_config.hidden_size
    inner = (config.projector_hidden_size or hidden) if config.projector == "mlp" else hidden
    entry = width * config.projector_shuffle**2 * (2 if config.projector_motion else 1)
    per_token = 2 * entry * inner + (2 * inner * hidden if config.projector == "mlp" else 0)
    return total + tokens_per_frame(config) * per_token


def mask_decoder(config: MoraConfig) -> float:
    """SAM's mask decoder, one prompt, counted operation by operation on a copy without memory."""
    with torch.device("meta"):
        sam = segmenter_class(config.segmenter)(config.sam_config)
    channels, grid = sam.embed_dim, sam.grid_size
    image = torch.zeros(1, channels, grid, grid, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        sam.mask_decoder(
            image_embeddings=image,
            image_positional_embeddings=image,
            sparse_prompt_embeddings=torch.zeros(1, 1, 1, channels, device="meta"),
            dense_prompt_embeddings=image,
            multimask_output=False,
        )
    return float(counter.get_total_flops())
