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
        tower_image: the backbone's vision tower as far as it is read, and what makes tokens of it, one image: a frame,
            or a pair that shares its tokens.
        decoder_prompt: SAM's mask decoder, one prompt on one frame.
        llm_token: the language model's matrices, one position; without the language head.
        llm_pair: its attention, one query position with one key position.
        llm_head: the language head, one position.
    """

    sam_frame: float
    tower_image: float
    decoder_prompt: float
    llm_token: float
    llm_pair: float
    llm_head: float

    def llm(self, rows: int, positions: int, context: int = 0) -> float:
        """``rows`` rows of ``positions`` new positions, after ``context`` cached ones."""
        return rows * (positions * self.llm_token + positions * (context + positions) * self.llm_pair)


def costs_of(config: MoraConfig, frame: tuple[int, int] = (0, 0)) -> Costs:
    """Count the parts of a network.

    Args:
        config: its shape.
        frame: (height, width) in pixels at which the backbone sees a frame; LLaVA's are squares of one size, whatever
            is said here.
    """
    text = config.text_config
    width, layers = text.hidden_size, text.num_hidden_layers
    query_width, key_width = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    per_layer = 2 * width * (2 * query_width + 2 * key_width + 3 * text.intermediate_size)
    return Costs(
        sam_frame=sam_encoder(config),
        tower_image=_TOWERS[config.backbone](config, frame),
        decoder_prompt=mask_decoder(config),
        llm_token=layers * per_layer,
        llm_pair=layers * 4 * query_width,
        llm_head=2 * width * text.vocab_size,
    )


def key_bytes(config: MoraConfig, width: int = 2) -> int:
    """Bytes that a position's keys and values take in the cache, of ``width`` bytes each."""
    text = config.text_config
    return 2 * width * text.num_hidden_layers * text.num_key_value_heads * text.head_dim


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


def tokens_per_image(config: MoraConfig, frame: tuple[int, int] = (0, 0)) -> int:
    """Visual tokens of one image as the decoder sees them; arguments as of :func:`costs_of`."""
    vision, rule = config.vision_config, config.pixel_rule
    if rule.resize == "area":
        return frame[0] // rule.size * (frame[1] // rule.size)
    return (vision.image_size // vision.patch_size // config.projector_shuffle) ** 2


def images_of(config: MoraConfig, frames: int) -> int:
    """How many images the tower makes of so many frames: as many, or one of each pair."""
    return math.ceil(frames / (config.frame_marks.frames or 1))


def clip_tower(config: MoraConfig, frame: tuple[int, int]) -> float:
    """CLIP's layers that are read, one frame, and the projector's share of it."""
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
    return total + tokens_per_image(config, frame) * per_token


def qwen_tower(config: MoraConfig, frame: tuple[int, int]) -> float:
    """Qwen3-VL's whole tower, one image, with the mergers of its end and of the levels that enter the decoder."""
    vision, tokens = config.vision_config, tokens_per_image(config, frame)
    width, block = vision.hidden_size, vision.spatial_merge_size**2
    patches = tokens * block
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    layer = 2 * patches * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * patches**2 * width
    merger = 2 * tokens * block * width * (block * width + vision.out_hidden_size)
    return 2 * patches * patch * width + vision.depth * layer + (1 + len(vision.deepstack_visual_indexes)) * merger


_TOWERS = {"llava": clip_tower, "qwen3_vl": qwen_tower}


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
