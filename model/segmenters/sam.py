"""SAM with text prompts: encode frames into embeddings, decode embeddings and prompts into masks.

The parts are those of ``transformers`` (``SamVisionEncoder``, ``SamPromptEncoder``, ``SamMaskDecoder``), wired as in
LISA: the prompt is the projected hidden state of ``[SEG]``, given to the mask decoder as a sparse embedding without a
position, and every prompt meets exactly one image embedding. Sources: Kirillov et al. 2023, "Segment Anything"; Lai et
al. 2024, "LISA: Reasoning Segmentation via Large Language Model".
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SamConfig
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPromptEncoder,
    SamVisionEncoder,
    SamVisionNeck,
)

from model.segmenters.interface import Embeddings, Segmenter
from model.segmenters.sam_encoder import FastEncoder
from model.segmenters.sam_sizes import note_contradictions, note_wrong_values, sam_config
from utils.batch import PixelRule

ATTENTION_BYTES = 2 << 30
"""The plain route splits its frames so that one layer's attention bias stays below this (SDPA takes a dense tensor)."""

ACTIVATION_BYTES = {"cuda": 8 << 30}
"""The fast route splits its frames so that what one layer makes stays below this, 1 GiB on other devices."""

_ACTIVATIONS = 24
"""Tensors of the size of the tokens that a layer of the fast route keeps at once, at most."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of 0..255 values (ImageNet's, times 255)."""

DECODE_CHUNK = 64
"""Prompts decoded at once when no gradient is kept; an upscaled embedding is 8 MB per prompt at full size."""


class HalfSafeNeck(SamVisionNeck):
    """The image encoder's neck, computed in float32 when the encoder runs in float16, where it overflows."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project [F, h, w, D] to [F, C, h, w], in the input's dtype."""
        if hidden_states.dtype != torch.float16:
            return super().forward(hidden_states)
        wide = {name: parameter.float() for name, parameter in self.named_parameters()}
        # functional_call runs this very method again, now on float32, so the plain branch above does the work.
        return torch.func.functional_call(self, wide, (hidden_states.float(),)).to(torch.float16)


class SamSegmenter(Segmenter):
    """SAM's parts under the names of ``transformers.SamModel``, so that its checkpoints fit.

    Where no gradient is wanted, :class:`model.segmenters.sam_encoder.FastEncoder` runs the image encoder's weights;
    where one is, or the configuration asks for eager attention, ``transformers``' own modules do.

    Args:
        config: a ``SamConfig``; see :func:`model.segmenters.sam_sizes.sam_config`. It is copied.

    Attributes:
        image_size: S.
        embed_dim: C, channels of the embeddings and of a prompt.
        grid_size: h = w of the embeddings.
    """

    config_class = SamConfig
    encoder_part = "vision_encoder"
    decoder_part = "mask_decoder"
    constants = ("shared_image_embedding.positional_embedding",)  # a buffer in the original

    default_config = staticmethod(sam_config)
    note_wrong_values = staticmethod(note_wrong_values)
    note_contradictions = staticmethod(note_contradictions)

    def __init__(self, config: SamConfig):
        super().__init__()
        self.fast_encoder = FastEncoder()
        config = copy.deepcopy(config)
        # Decomposed relative positions and 8-wide heads rule out flash attention: it is SDPA unless eager is asked for.
        implementation = "eager" if getattr(config, "_attn_implementation", None) == "eager" else "sdpa"
        config.vision_config._attn_implementation = implementation
        config.mask_decoder_config._attn_implementation = implementation
        config.vision_config.scale = 1.0
        self.config = config
        self.image_size: int = config.vision_config.image_size
        self.pixel_rule = PixelRule(self.image_size, "corner", MEAN, STD)
        self.embed_dim: int = config.prompt_encoder_config.hidden_size
        self.grid_size: int = config.prompt_encoder_config.image_embedding_size
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.shared_image_embedding.requires_grad_(False)
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        self.vision_encoder.neck = HalfSafeNeck(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(config)
        # One position matrix, stored once: a plain reference keeps it out of state_dict, where safetensors would
        # refuse two names for one tensor.
        del self.prompt_encoder.shared_embedding
        object.__setattr__(self.prompt_encoder, "shared_embedding", self.shared_image_embedding)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)

    @classmethod
    def prompt_width(cls, config: SamConfig) -> int:
        return config.prompt_encoder_config.hidden_size

    def encode(
        self, pixels: Tensor, resized_size: tuple[int, int] | None = None, at_once: int | None = None
    ) -> Embeddings:
        """See :meth:`Segmenter.encode`. One part, [F, C, h, w] in the dtype of the weights."""
        encoder, vision = self.vision_encoder, self.config.vision_config
        pixels = pixels.to(encoder.patch_embed.projection.weight.dtype)
        tokens, size = self.grid_size**2, pixels.element_size()
        if self._runs_fast(pixels):
            largest = ACTIVATION_BYTES.get(pixels.device.type, 1 << 30)
            frame_bytes = _ACTIVATIONS * tokens * vision.hidden_size * size
            run = functools.partial(self.fast_encoder, encoder, resized_size=resized_size)
        else:
            largest, frame_bytes = ATTENTION_BYTES, vision.num_attention_heads * tokens**2 * size
            run = self._encode_plain
        passes = pixels.split(at_once or max(1, largest // frame_bytes))
        return Embeddings((run(passes[0]) if len(passes) == 1 else torch.cat([run(part) for part in passes]),))

    def _encode_plain(self, pixels: Tensor) -> Tensor:
        """One pass of ``transformers``' own encoder."""
        return self.vision_encoder(pixels)[0]

    def _runs_fast(self, pixels: Tensor) -> bool:
        """Whether the fast encoder may run: it keeps no gradient, and knows no eager attention."""
        encoder = self.vision_encoder
        if torch.is_grad_enabled() and (pixels.requires_grad or any(p.requires_grad for p in encoder.parameters())):
            # An optimiser is about to change the weights, perhaps through ``.data``, which leaves no trace.
            self.fast_encoder.forget()
            return False
        return self.config.vision_config._attn_implementation != "eager"

    def compile_encoder(self) -> None:
        """See :meth:`Segmenter.compile_encoder`."""
        self.fast_encoder.compile = True

    def dense_positions(self, dtype: torch.dtype | None = None) -> Tensor:
        """Positional encoding of the embedding grid, float [C, h, w].

        Args:
            dtype: of the result; by default that of the stored matrix. The sines are taken in float32.
        """
        matrix = self.shared_image_embedding.positional_embedding
        steps = (torch.arange(self.grid_size, device=matrix.device, dtype=torch.float32) + 0.5) / self.grid_size
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        phase = 2 * torch.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ matrix.float())
        return torch.cat([phase.sin(), phase.cos()], dim=-1).permute(2, 0, 1).to(dtype or matrix.dtype).contiguous()

    def decode(self, embeddings: Embeddings, prompts: Tensor, at_once: int | None = None) -> Tensor:
        """See :meth:`Segmenter.decode`: the logits of mask token 0, [N, 4h, 4w].

        A prompt is used as it is, without a position. By default :data:`DECODE_CHUNK` pairs make a pass without
        gradients, and all do with.
        """
        (images,) = embeddings.parts
        if len(prompts) != len(images):
            raise ValueError(f"{len(images)} embeddings but {len(prompts)} prompts; give one embedding per prompt")
        if not len(images):
            return images.new_zeros(0, 4 * self.grid_size, 4 * self.grid_size)
        at_once = at_once or (len(images) if torch.is_grad_enabled() else DECODE_CHUNK)
        return torch.cat([self._decode_pass(*pair) for pair in zip(images.split(at_once), prompts.split(at_once))])

    def _decode_pass(self, images: Tensor, prompts: Tensor) -> Tensor:
        """One pass of the mask decoder; see :meth:`decode`."""
        masks, _ = self.mask_decoder(
            image_embeddings=images,
            image_positional_embeddings=self.dense_positions(images.dtype).expand_as(images),
            sparse_prompt_embeddings=prompts.to(images.dtype)[:, None, None],  # one prompt of one token per image
            dense_prompt_embeddings=self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(images),
            multimask_output=False,
        )
        return masks[:, 0, 0]

    def to_frames(self, logits: Tensor, resized_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """See :meth:`Segmenter.to_frames`: upsample, cut the padding, resize."""
        height, width = resized_size
        square = F.interpolate(logits[:, None].float(), (self.image_size,) * 2, mode="bilinear", align_corners=False)
        inner = square[..., : int(height), : int(width)]
        target = (int(original_size[0]), int(original_size[1]))
        return F.interpolate(inner, target, mode="bilinear", align_corners=False)[:, 0]
