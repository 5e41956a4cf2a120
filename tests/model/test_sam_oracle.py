"""Our SAM against the original's own modules with the same random weights."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from model.checkpoints.sam import rename_sam, sam_config_of
from model.segmenters import Embeddings, sam_config
from model.segmenters.sam import SamSegmenter

CASES = {
    # padded windows (7 patches in windows of 3), global blocks in between, odd sizes
    "windows": {"img_size": 112, "embed_dim": 24, "depth": 4, "heads": 3, "window": 3, "global": (1, 3), "out": 32},
    "wide": {"img_size": 96, "embed_dim": 32, "depth": 3, "heads": 2, "window": 4, "global": (2,), "out": 64},
}


@pytest.fixture(scope="module")
def original():
    """``segment_anything.modeling``, without its package's ``__init__``, which imports torchvision."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or spec.origin is None:
        pytest.skip("segment-anything is not installed")
    package = types.ModuleType("segment_anything")
    package.__path__ = [str(Path(spec.origin).parent)]
    saved = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "segment_anything"}
    sys.modules["segment_anything"] = package
    try:
        yield importlib.import_module("segment_anything.modeling")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
            del sys.modules[name]
        sys.modules.update(saved)


def build_original(original, img_size, embed_dim, depth, heads, window, out, patch=16, **case) -> nn.Module:
    """The original SAM with its builder's constants at another size, seeded noise in every tensor."""
    grid = img_size // patch
    sam = original.Sam(
        image_encoder=original.ImageEncoderViT(
            depth=depth,
            embed_dim=embed_dim,
            img_size=img_size,
            mlp_ratio=4,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            num_heads=heads,
            patch_size=patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=case["global"],
            window_size=window,
            out_chans=out,
        ),
        prompt_encoder=original.PromptEncoder(
            embed_dim=out, image_embedding_size=(grid, grid), input_image_size=(img_size, img_size), mask_in_chans=16
        ),
        mask_decoder=original.MaskDecoder(
            num_multimask_outputs=3,
            transformer=original.TwoWayTransformer(depth=2, embedding_dim=out, mlp_dim=2048, num_heads=8),
            transformer_dim=out,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in sam.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            is_scale = name.endswith("weight") and tensor.ndim == 1
            tensor.copy_(1 + noise if is_scale else noise)
    return sam.eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request, original):
    """(original, ours) holding the same weights; ours is built from the tensors' shapes alone."""
    theirs = build_original(original, **CASES[request.param])
    state = theirs.state_dict()
    renamed = rename_sam(state)
    ours = SamSegmenter(sam_config_of(renamed)).eval()
    ours.load_state_dict(renamed, strict=True)
    return theirs, ours


def prompts_for(sam: SamSegmenter, count: int) -> torch.Tensor:
    return torch.randn(count, sam.embed_dim, generator=torch.Generator().manual_seed(9))


def pixels_for(sam: SamSegmenter, count: int) -> torch.Tensor:
    pixels = torch.randn(count, 3, sam.image_size, sam.image_size, generator=torch.Generator().manual_seed(8))
    pixels[:, :, int(sam.image_size * 0.7) :] = 0  # padding below, as for wide frames
    return pixels


@torch.no_grad()
def test_embeddings_equal(pair):
    theirs, ours = pair
    pixels = pixels_for(ours, 3)
    expected = theirs.image_encoder(pixels)
    for at_once in (None, 2):
        torch.testing.assert_close(ours.encode(pixels, at_once=at_once).parts[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_and_dense_prompt_equal(pair):
    theirs, ours = pair
    torch.testing.assert_close(ours.dense_positions(), theirs.prompt_encoder.get_dense_pe()[0], atol=1e-5, rtol=0)
    _, dense = theirs.prompt_encoder(points=None, boxes=None, masks=None)
    assert torch.equal(ours.prompt_encoder.no_mask_embed.weight[0], dense[0, :, 0, 0])


@torch.no_grad()
def test_masks_equal(pair):
    theirs, ours = pair
    embeddings, prompts = theirs.image_encoder(pixels_for(ours, 3)), prompts_for(ours, 3)
    low_res = ours.decode(Embeddings((embeddings,)), prompts)
    _, dense = theirs.prompt_encoder(points=None, boxes=None, masks=None)
    for index in range(3):
        masks, _ = theirs.mask_decoder.predict_masks(
            image_embeddings=embeddings[index : index + 1],
            image_pe=theirs.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[index][None, None],
            dense_prompt_embeddings=dense,
        )
        scale = masks.abs().max().item()
        assert scale > 0.1  # otherwise the comparison below would compare zeros
        torch.testing.assert_close(low_res[index], masks[0, 0], atol=1e-5 * max(1, scale), rtol=0)


@torch.no_grad()
def test_postprocess_equals(pair):
    theirs, ours = pair
    low_res = ours.decode(ours.encode(pixels_for(ours, 2)), prompts_for(ours, 2))
    resized, size = (int(ours.image_size * 0.7), ours.image_size), (45, 61)
    expected = theirs.postprocess_masks(low_res[:, None], resized, size)[:, 0]
    assert torch.equal(ours.to_frames(low_res, resized, size), expected)


def test_gradients_equal(pair):
    theirs, ours = pair
    prompts = prompts_for(ours, 2).requires_grad_()
    with torch.no_grad():
        embeddings = ours.encode(pixels_for(ours, 2))
    low_res = ours.decode(embeddings, prompts)
    (embeddings,) = embeddings.parts
    weights = torch.randn(low_res.shape, generator=torch.Generator().manual_seed(3)) / low_res.numel()
    (gradient,) = torch.autograd.grad((low_res * weights).sum(), prompts)
    _, dense = theirs.prompt_encoder(points=None, boxes=None, masks=None)
    total = 0
    for index in range(2):
        masks, _ = theirs.mask_decoder(
            embeddings[index : index + 1],
            theirs.prompt_encoder.get_dense_pe(),
            prompts[index][None, None],
            dense,
            multimask_output=False,
        )
        total = total + (masks[0, 0] * weights[index]).sum()
    (expected,) = torch.autograd.grad(total, prompts)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected, atol=1e-3 * expected.abs().max().item(), rtol=1e-3)


def test_full_size_names_and_shapes(original):
    """All 594 tensors of ViT-H, on the meta device, find exactly one place of the same shape."""
    case = {"img_size": 1024, "embed_dim": 1280, "depth": 32, "heads": 16, "window": 14, "out": 256}
    with torch.device("meta"):
        theirs = build_original_meta(original, case)
        ours = SamSegmenter(sam_config())
    state = theirs.state_dict()
    renamed = rename_sam(state)
    assert len(state) == len(renamed) == 594
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }
    inferred, plain = sam_config_of(renamed).to_dict(), sam_config().to_dict()
    assert inferred == plain


def build_original_meta(original, case):
    """As :func:`build_original`, without noise."""
    grid = case["img_size"] // 16
    return original.Sam(
        image_encoder=original.ImageEncoderViT(
            depth=case["depth"],
            embed_dim=case["embed_dim"],
            img_size=case["img_size"],
            num_heads=case["heads"],
            use_rel_pos=True,
            global_attn_indexes=(7, 15, 23, 31),
            window_size=case["window"],
            out_chans=case["out"],
        ),
        prompt_encoder=original.PromptEncoder(case["out"], (grid, grid), (case["img_size"],) * 2, 16),
        mask_decoder=original.MaskDecoder(
            transformer_dim=case["out"],
            transformer=original.TwoWayTransformer(depth=2, embedding_dim=case["out"], num_heads=8, mlp_dim=2048),
        ),
    )
