"""SAM with text prompts: encode frames into embeddings, decode embeddings and prompts into masks.

The parts are those of ``transformers`` (``SamVisionEncoder``, ``SamPromptEncoder``, ``SamMaskDecoder``), wired as in
LISA: the prompt is the projected hidden state of ``[SEG]``, given to the mask decoder as a sparse embedding without a
position, and every prompt meets exactly one image embedding. Sources: Kirillov et al. 2023, "Segment Anything"; Lai et
al. 2024, "LISA: Reasoning Segmentation via Large Language Model".
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPromptEncoder,
    SamVisionEncoder,
    SamVisionNeck,
)

from model.segmenters.sam_encoder import FastEncoder

ATTENTION_BYTES = 2 << 30
"""The plain route splits its frames so that one layer's attention bias stays below this (SDPA takes a dense tensor)."""

ACTIVATION_BYTES = {"cuda": 8 << 30}
"""The fast route splits its frames so that what one layer makes stays below this, 1 GiB on other devices."""

_ACTIVATIONS = 24
"""Tensors of the size of the tokens that a layer of the fast route keeps at once, at most."""

DECODE_CHUNK = 64
"""Prompts decoded at once when no gradient is kept; an upscaled embedding is 8 MB per prompt at full size."""


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


class HalfSafeNeck(SamVisionNeck):
    """The image encoder's neck, computed in float32 when the encoder runs in float16, where it overflows."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project [F, h, w, D] to [F, C, h, w], in the input's dtype."""
        if hidden_states.dtype != torch.float16:
            return super().forward(hidden_states)
        wide = {name: parameter.float() for name, parameter in self.named_parameters()}
        # functional_call runs this very method again, now on float32, so the plain branch above does the work.
        return torch.func.functional_call(self, wide, (hidden_states.float(),)).to(torch.float16)


class SamSegmenter(nn.Module):
    """SAM's parts under the names of ``transformers.SamModel``, so that its checkpoints fit.

    Args:
        config: a ``SamConfig`` or its dict; see :func:`sam_config`. It is copied.
        attention: see below.

    Attributes:
        attention: "auto": where no gradient is wanted, :class:`model.segmenters.sam_encoder.FastEncoder` runs the image
            encoder's weights; where one is, ``transformers``' own modules do. "reference": they do always,
            as they do for a configuration that asks for eager attention.
        fast_encoder: may be replaced by one with other settings (``compile=True``, another route).
        image_size: side S of the square input, pixels.
        embed_dim: C, channels of the embeddings and of a prompt.
        grid_size: h = w of the embeddings.
    """

    def __init__(self, config: SamConfig | dict[str, Any], attention: str = "auto"):
        super().__init__()
        if attention not in ("auto", "reference"):
            raise ValueError(f"attention {attention!r} is unknown; choose auto or reference")
        self.attention = attention
        self.fast_encoder = FastEncoder()
        config = SamConfig(**config) if isinstance(config, dict) else copy.deepcopy(config)
        # Decomposed relative positions and 8-wide heads rule out flash attention: it is SDPA unless eager is asked for.
        implementation = "eager" if getattr(config, "_attn_implementation", None) == "eager" else "sdpa"
        config.vision_config._attn_implementation = implementation
        config.mask_decoder_config._attn_implementation = implementation
        config.vision_config.scale = 1.0
        self.config = config
        self.image_size: int = config.vision_config.image_size
        self.embed_dim: int = config.prompt_encoder_config.hidden_size
        self.grid_size: int = config.prompt_encoder_config.image_embedding_size
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.shared_image_embedding.requires_grad_(False)  # a buffer in the original
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        self.vision_encoder.neck = HalfSafeNeck(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(config)
        # One position matrix, stored once: a plain reference keeps it out of state_dict, where safetensors would
        # refuse two names for one tensor.
        del self.prompt_encoder.shared_embedding
        object.__setattr__(self.prompt_encoder, "shared_embedding", self.shared_image_embedding)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self._dense_pe: tuple[tuple[Any, ...], Tensor] | None = None

    def encode(self, pixels: Tensor, chunk: int | None = None, resized_size: tuple[int, int] | None = None) -> Tensor:
        """Embed frames. Gradients flow if the caller wants them.

        Args:
            pixels: float [F, 3, S, S], normalised and zero-padded right and bottom.
            chunk: frames per pass; by default as many as :data:`ACTIVATION_BYTES` or :data:`ATTENTION_BYTES` allows.
            resized_size: (h, w) of the frames inside the square, if all pixels beyond are zero: windows of padding are
                then not computed for every frame. The result is the same.

        Returns:
            [F, C, h, w] in the dtype of the weights.
        """
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
        chunk = chunk or max(1, largest // frame_bytes)
        if pixels.shape[0] <= chunk:
            return run(pixels)
        return torch.cat([run(part) for part in pixels.split(chunk)])

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
        return self.attention == "auto" and self.config.vision_config._attn_implementation != "eager"

    def dense_positions(self, dtype: torch.dtype | None = None) -> Tensor:
        """Positional encoding of the embedding grid, float [C, h, w], computed once per device, dtype and weights.

        Args:
            dtype: of the result; by default that of the stored matrix. The sines are taken in float32.
        """
        matrix = self.shared_image_embedding.positional_embedding
        dtype = dtype or matrix.dtype
        version = 0 if matrix.is_inference() else matrix._version
        key = (matrix.device, dtype, matrix.data_ptr(), version)
        if self._dense_pe is not None and self._dense_pe[0] == key:
            return self._dense_pe[1]
        # A tensor born in inference mode could never be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            steps = (torch.arange(self.grid_size, device=matrix.device, dtype=torch.float32) + 0.5) / self.grid_size
            y, x = torch.meshgrid(steps, steps, indexing="ij")
            phase = 2 * torch.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ matrix.detach().clone().float())
            positions = torch.cat([phase.sin(), phase.cos()], dim=-1).permute(2, 0, 1).to(dtype).contiguous()
        self._dense_pe = (key, positions)
        return positions

    def decode(self, embeddings: Tensor, prompts: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """One mask for each pair of embedding and prompt. Gradients reach prompts, embeddings and decoder.

        Args:
            embeddings: [N, C, h, w], from :meth:`encode`, repeated by the caller where prompts share a frame.
            prompts: [N, n_tok, C]; n_tok tokens make one prompt. Used as they are: no position is added.
            chunk: pairs per pass; default :data:`DECODE_CHUNK` without gradients, all with.

        Returns:
            Logits of mask token 0 [N, 4h, 4w], and its predicted IoU [N].
        """
        masks, iou = self.decode_masks(embeddings, prompts, multimask_output=False, chunk=chunk)
        return masks[:, 0], iou[:, 0]

    def decode_masks(
        self, embeddings: Tensor, prompts: Tensor, multimask_output: bool, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`decode`, with mask tokens 1-3 (``multimask_output``) or token 0.

        Returns:
            Logits [N, M, 4h, 4w] and predicted IoU [N, M], M = 3 or 1.

        Raises:
            ValueError: embeddings and prompts differ in number.
        """
        count = embeddings.shape[0]
        if prompts.shape[0] != count:
            raise ValueError(f"{count} embeddings but {prompts.shape[0]} prompts; give one embedding per prompt")
        if count == 0:
            side = 4 * self.grid_size
            outputs = 3 if multimask_output else 1
            return embeddings.new_zeros(0, outputs, side, side), embeddings.new_zeros(0, outputs)
        if chunk is None:
            chunk = count if torch.is_grad_enabled() else DECODE_CHUNK
        parts = [
            self._decode_part(some_embeddings, some_prompts, multimask_output)
            for some_embeddings, some_prompts in zip(embeddings.split(chunk), prompts.split(chunk))
        ]
        return torch.cat([masks for masks, _ in parts]), torch.cat([iou for _, iou in parts])

    def _decode_part(self, embeddings: Tensor, prompts: Tensor, multimask_output: bool) -> tuple[Tensor, Tensor]:
        """One pass of the mask decoder; see :meth:`decode_masks`."""
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embeddings)
        masks, iou = self.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=self.dense_positions(embeddings.dtype).expand_as(embeddings),
            sparse_prompt_embeddings=prompts.to(embeddings.dtype)[:, None],  # one prompt per image
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        return masks[:, 0], iou[:, 0]

    def postprocess(self, low_res: Tensor, resized_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Bring mask logits to the size of the frames: upsample, cut the padding, resize.

        Args:
            low_res: [N, a, b] logits.
            resized_size: (h, w) of the frame inside the S x S input.
            original_size: (H, W) of the frame on disk.

        Returns:
            float32 logits [N, H, W]; a pixel is in the mask when its logit is above 0.
        """
        height, width = resized_size
        full = (self.image_size, self.image_size)
        square = F.interpolate(low_res[:, None].float(), full, mode="bilinear", align_corners=False)
        inner = square[..., : int(height), : int(width)]
        target = (int(original_size[0]), int(original_size[1]))
        return F.interpolate(inner, target, mode="bilinear", align_corners=False)[:, 0]
