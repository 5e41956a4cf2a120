"""Behaviour of our SAM that no comparison with the original shows: chunks, caches, precision, gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import SamConfig

from model.segmenters import Embeddings, sam_config
from model.segmenters.sam import SamSegmenter


@pytest.fixture
def sam() -> SamSegmenter:
    config = sam_config(64, 8, 32, 2, 4, 3, (1,), 32, decoder_heads=4, decoder_mlp_dim=48)
    model = SamSegmenter(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def embedded(frames: int) -> Embeddings:
    return Embeddings((noise(frames, 32, 8, 8),))


@torch.no_grad()
def test_shapes_and_chunks(sam):
    pixels = noise(5, 3, 64, 64)
    embeddings = sam.encode(pixels)
    assert embeddings.parts[0].shape == (5, sam.embed_dim, sam.grid_size, sam.grid_size) and len(embeddings) == 5
    torch.testing.assert_close(sam.encode(pixels, at_once=2).parts, embeddings.parts)
    prompts = noise(5, 32)
    low_res = sam.decode(embeddings, prompts)
    assert low_res.shape == (5, 32, 32)
    for at_once in (1, 3):
        torch.testing.assert_close(sam.decode(embeddings, prompts, at_once), low_res, atol=1e-4, rtol=1e-4)
    full = sam.to_frames(low_res, (40, 64), (25, 40))
    assert full.shape == (5, 25, 40) and full.dtype == torch.float32


def test_no_prompts_give_no_masks(sam):
    low_res = sam.decode(embedded(0), noise(0, 32))
    assert low_res.shape == (0, 32, 32)
    assert sam.to_frames(low_res, (40, 64), (25, 40)).shape == (0, 25, 40)


def test_pairs_must_match(sam):
    with pytest.raises(ValueError, match="2 embeddings but 3 prompts"):
        sam.decode(embedded(2), noise(3, 32))


def test_gradients_reach_prompt_and_decoder_and_encoder(sam):
    prompts = noise(2, 32).requires_grad_()
    low_res = sam.decode(sam.encode(noise(2, 3, 64, 64)), prompts)
    sam.to_frames(low_res, (64, 64), (20, 20)).square().sum().backward()
    assert prompts.grad.abs().sum() > 0
    assert sam.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0
    assert sam.vision_encoder.patch_embed.projection.weight.grad.abs().sum() > 0
    assert sam.shared_image_embedding.positional_embedding.grad is None


def test_positions_follow_the_weights(sam):
    first = sam.dense_positions()
    assert sam.dense_positions(torch.bfloat16).dtype == torch.bfloat16 and not first.requires_grad
    state = sam.state_dict()
    state["shared_image_embedding.positional_embedding"] = noise(2, 16)
    sam.load_state_dict(state)
    assert not torch.allclose(first, sam.dense_positions())


@torch.no_grad()
def test_half_precision_does_not_overflow_in_the_neck(sam):
    """Weights that take the neck beyond 65504, where float16 ends: LISA computes the neck in float32."""
    sam.vision_encoder.neck.conv1.weight.mul_(1e4)
    pixels = noise(1, 3, 64, 64)
    (expected,) = sam.encode(pixels).parts
    half = copy.deepcopy(sam).half()
    (embeddings,) = half.encode(pixels).parts
    assert embeddings.dtype == torch.float16 and torch.isfinite(embeddings).all()
    torch.testing.assert_close(embeddings.float(), expected, atol=0.1, rtol=0.1)


def test_one_position_matrix(sam):
    """Points would use the same matrix, yet it is stored once; copies keep the link within themselves."""
    assert [name for name in sam.state_dict() if "positional_embedding" in name] == [
        "shared_image_embedding.positional_embedding"
    ]
    other = copy.deepcopy(sam)
    assert other.prompt_encoder.shared_embedding is other.shared_image_embedding
    assert other.shared_image_embedding is not sam.shared_image_embedding


def test_configuration_survives_json(sam):
    again = SamSegmenter(SamConfig(**sam.config.to_dict()))
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in sam.state_dict().items()
    }
    assert again.config.mask_decoder_config.layer_norm_eps == 1e-5
