"""The fast image encoder against ``transformers``' own, on the same weights."""

from __future__ import annotations

import copy
import io
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.segmenters import sam as model_sam
from model.segmenters import sam_attention, sam_config, sam_encoder
from model.segmenters.sam import SamSegmenter
from model.segmenters.sam_encoder import FastEncoder

PATCH = 4
FOLD, BIAS = sam_attention.attend_folded, sam_attention.attend_biased
CASES = {
    "padded windows": {"grid": 9, "window_size": 4, "depth": 5, "global_attn_indexes": (2, 4)},
    "whole windows": {"grid": 8, "window_size": 4, "depth": 3, "global_attn_indexes": (2,)},
    "one short window": {"grid": 3, "window_size": 5, "depth": 2, "global_attn_indexes": (1,)},
    "no window": {"grid": 6, "window_size": 0, "depth": 2, "global_attn_indexes": ()},
    "no global layer": {"grid": 9, "window_size": 4, "depth": 3, "global_attn_indexes": ()},
    "heads of 10": {"grid": 7, "window_size": 3, "depth": 2, "global_attn_indexes": (1,), "embed_dim": 30},
    "no positions": {"grid": 7, "window_size": 3, "depth": 2, "global_attn_indexes": (1,), "use_rel_pos": False},
    "no table, no bias": {"grid": 7, "window_size": 3, "depth": 2, "global_attn_indexes": (0,), "qkv_bias": False}
    | {"use_abs_pos": False},
}


def build(grid: int, embed_dim: int = 24, seed: int = 0, **case) -> SamSegmenter:
    """A SAM with noise everywhere, loud in the relative positions."""
    settings = {"num_heads": 3, "out_channels": 16, "decoder_heads": 4, "decoder_mlp_dim": 16, **case}
    sam = SamSegmenter(sam_config(image_size=grid * PATCH, patch_size=PATCH, embed_dim=embed_dim, **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.endswith("weight") and parameter.ndim == 1
            loudness = 0.5 if "rel_pos" in name or "bias" in name else parameter[0].numel() ** -0.5
            parameter.copy_(1 + 0.2 * noise if is_scale else noise * loudness)
    return sam


def frames(sam: SamSegmenter, count: int = 2, resized_size: tuple[int, int] | None = None) -> torch.Tensor:
    """Noise, zero beyond ``resized_size``."""
    pixels = torch.randn(count, 3, sam.image_size, sam.image_size, generator=torch.Generator().manual_seed(7))
    if resized_size is not None:
        pixels[:, :, resized_size[0] :] = 0
        pixels[..., resized_size[1] :] = 0
    return pixels


def encode(sam: SamSegmenter, *args, **kwargs) -> torch.Tensor:
    """The one tensor of SAM's embeddings."""
    return sam.encode(*args, **kwargs).parts[0]


def routed(windows, global_, compile: bool = False) -> FastEncoder:
    """A fast encoder that takes these attentions on every device."""
    fast = FastEncoder()
    fast.routes = dict.fromkeys(("cpu", "cuda"), (windows, global_))
    fast.compile = compile
    return fast


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, where the second is of scale one."""
    assert one.shape == other.shape
    return ((one.double() - other.double()).abs().max() / other.double().std()).item()


@pytest.fixture
def plain_flex(monkeypatch):
    """``flex_attention`` as Python runs it, without a compiler."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(sam_attention, "_flex_kernel", lambda: flex_attention)
    monkeypatch.setattr(sam_attention, "_broken_flex", [])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "windows, global_", [(FOLD, BIAS), (BIAS, FOLD), (FOLD, sam_attention.attend_flex)], ids=["fold", "bias", "flex"]
)
def test_equals_the_reference(plain_flex, case, windows, global_):
    sam = build(**CASES[case])
    pixels = frames(sam, 3)
    expected = sam.vision_encoder(pixels)[0]
    assert difference(routed(windows, global_)(sam.vision_encoder, pixels), expected) < 1e-5
    assert difference(encode(sam, pixels), expected) < 1e-5
    assert difference(encode(sam, pixels, at_once=2), expected) < 1e-5


@torch.no_grad()
def test_relative_positions_matter_here():
    """Otherwise the comparison above would not see them."""
    sam = build(**CASES["padded windows"])
    pixels = frames(sam)
    expected = encode(sam, pixels)
    for name, parameter in sam.named_parameters():
        if "rel_pos_w" in name:
            parameter.copy_(parameter.flip(0))
    assert difference(encode(sam, pixels), expected) > 0.1


@torch.no_grad()
def test_many_images_share_the_memory_of_one(monkeypatch):
    sam = build(**CASES["padded windows"])
    pixels = frames(sam, 5)
    expected = encode(sam, pixels)
    monkeypatch.setattr(sam_attention, "BIAS_BYTES", 2 * 3 * 81 * 81 * 4)
    assert difference(encode(sam, pixels), expected) < 1e-6


@torch.no_grad()
def test_passes_are_bounded_by_memory(monkeypatch):
    """81 tokens of 24 channels take 7,776 bytes in float32, of which a layer holds 24 at most."""
    built = build(**CASES["padded windows"])
    pixels = frames(built, 5)
    expected = encode(built, pixels)
    passes: list[int] = []
    built.vision_encoder.neck.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    monkeypatch.setattr(model_sam, "ACTIVATION_BYTES", {"cpu": 2 * 24 * 7776 + 1})
    assert difference(encode(built, pixels), expected) < 1e-6
    assert passes == [2, 2, 1]


SIZES = [(36, 20), (20, 36), (17, 36), (36, 1), (10, 10), (33, 36), (36, 36), (16, 32)]


@torch.no_grad()
@pytest.mark.parametrize("resized_size", SIZES)
def test_padding_is_left_out_without_a_difference(resized_size):
    """Bit for bit before the first global layer, that is where there is none; to rounding behind it."""
    for name, limit in (("no global layer", 0.0), ("padded windows", 1e-6)):
        sam = build(**CASES[name])
        pixels = frames(sam, 2, resized_size)
        whole = FastEncoder()(sam.vision_encoder, pixels)
        assert difference(encode(sam, pixels, resized_size=resized_size), whole) <= limit
        assert difference(whole, sam.vision_encoder(pixels)[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("resized_size, kept", [((36, 20), (9, 8)), ((17, 36), (8, 9)), ((16, 16), (4, 4))])
def test_padding_is_computed_once(resized_size, kept):
    """Tokens that the early layers see: all of one blank picture at first, and of each picture the kept part."""
    sam = build(**CASES["padded windows"])
    seen: list[int] = []
    early, late = sam.vision_encoder.layers[1].mlp, sam.vision_encoder.layers[2].mlp
    early.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    pixels = frames(sam, 3, resized_size)
    for _ in range(2):
        encode(sam, pixels, resized_size=resized_size)
    picture = kept[0] * kept[1]
    assert seen == [3 * picture, 81, 3 * picture]
    late.register_forward_hook(lambda module, args, output: seen.append(-output.shape[:-1].numel()))
    encode(sam, pixels, resized_size=resized_size)
    assert seen[3:] == [3 * picture, -3 * 81]
    encode(sam, pixels)
    assert seen[5:] == [3 * 81, -3 * 81]


def change_in_place(sam):
    with torch.no_grad():
        sam.vision_encoder.layers[0].mlp.lin1.weight.mul_(1.5)


def change_in_inference_mode(sam):
    with torch.inference_mode():
        sam.vision_encoder.layers[0].mlp.lin1.weight.mul_(1.5)


def change_by_loading(sam):
    sam.load_state_dict(build(**CASES["padded windows"], seed=1).state_dict())


def change_by_assignment(sam):
    sam.load_state_dict(build(**CASES["padded windows"], seed=1).state_dict(), assign=True)


def change_by_rounding(sam):
    sam.to(torch.bfloat16).to(torch.float32)


def change_positions(sam):
    sam.vision_encoder.pos_embed.data = sam.vision_encoder.pos_embed.data * 2


def change_by_training(sam):
    """The optimiser of DeepSpeed writes through ``.data``."""
    encode(sam, frames(sam, 1)).sum().backward()
    for parameter in sam.vision_encoder.parameters():
        parameter.data.add_(parameter.grad, alpha=0.1)


CHANGES = [change_in_place, change_in_inference_mode, change_by_loading, change_by_assignment, change_by_rounding]


@pytest.mark.parametrize("change", [*CHANGES, change_positions, change_by_training])
def test_changed_weights_are_noticed(change):
    sam = build(**CASES["padded windows"])
    size = (36, 20)
    pixels = frames(sam, 2, size)
    with torch.no_grad():
        before = encode(sam, pixels, resized_size=size)
    change(sam)
    with torch.no_grad():
        after = encode(sam, pixels, resized_size=size)
        assert difference(after, sam.vision_encoder(pixels)[0]) < 1e-5
    assert difference(before, after) > 1e-3


@torch.no_grad()
def test_writes_behind_the_back_need_a_word():
    sam = build(**CASES["padded windows"])
    size = (36, 20)
    pixels = frames(sam, 2, size)
    encode(sam, pixels, resized_size=size)
    sam.vision_encoder.layers[0].mlp.lin1.weight.data.mul_(1.5)
    sam.fast_encoder.forget()
    assert difference(encode(sam, pixels, resized_size=size), sam.vision_encoder(pixels)[0]) < 1e-5


@torch.no_grad()
def test_copies_and_files_hold_nothing_but_weights():
    sam = build(**CASES["padded windows"])
    names = set(sam.state_dict())
    size = (36, 20)
    pixels = frames(sam, 2, size)
    expected = encode(sam, pixels, resized_size=size)
    assert set(sam.state_dict()) == names
    assert sam.fast_encoder._padding is not None
    other = copy.deepcopy(sam)
    assert other.fast_encoder is not sam.fast_encoder and other.fast_encoder._padding is None
    other.vision_encoder.layers[0].mlp.lin1.weight.mul_(2)
    assert difference(encode(other, pixels, resized_size=size), expected) > 1e-3
    assert torch.equal(encode(sam, pixels, resized_size=size), expected)
    file = io.BytesIO()
    torch.save(sam, file)
    assert len(file.getbuffer()) < 1.2 * sum(t.nbytes for t in sam.state_dict().values()) + 100_000


def test_what_inference_mode_made_serves_later():
    sam = build(**CASES["padded windows"])
    size = (36, 20)
    pixels = frames(sam, 2, size)
    with torch.inference_mode():
        first = encode(sam, pixels, resized_size=size)
    with torch.no_grad():
        again = encode(sam, pixels, resized_size=size)
    assert torch.equal(first, again) and not again.is_inference()
    (again * torch.ones((), requires_grad=True)).sum().backward()


def test_gradients_are_those_of_the_reference():
    sam = build(**CASES["padded windows"])
    pixels = frames(sam, 2, (36, 20)).requires_grad_()
    weights = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(3))
    parameters = [pixels, *sam.vision_encoder.parameters()]
    ours = torch.autograd.grad((encode(sam, pixels, resized_size=(36, 20)) * weights).sum(), parameters)
    theirs = torch.autograd.grad((sam.vision_encoder(pixels)[0] * weights).sum(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs))
    frozen = sam.requires_grad_(False)
    assert torch.autograd.grad((encode(frozen, pixels) * weights).sum(), pixels)[0].abs().sum() > 0
    assert not encode(frozen, pixels.detach()).requires_grad


@torch.no_grad()
def test_eager_attention_stays_eager():
    config = build(**CASES["padded windows"]).config
    config._attn_implementation = "eager"
    sam = SamSegmenter(config).eval()
    assert type(sam.vision_encoder.layers[0].attn).__name__ == "SamVisionAttention"
    pixels = frames(sam)
    assert torch.equal(encode(sam, pixels), sam.vision_encoder(pixels)[0])


@torch.no_grad()
@pytest.mark.parametrize("route", [FOLD, BIAS], ids=["fold", "bias"])
def test_bfloat16_errs_no_more_than_the_reference(route):
    """Measured against float32 on the same rounded weights; the two bfloat16 results differ by noise."""
    sam = build(**CASES["padded windows"]).to(torch.bfloat16)
    wide = copy.deepcopy(sam).float()
    size = (36, 20)
    pixels = frames(sam, 4, size).to(torch.bfloat16)
    exact = wide.vision_encoder(pixels.float())[0]
    scale = exact.std()

    def error(embeddings):
        return ((embeddings.float() - exact).square().mean().sqrt() / scale).item()

    theirs = error(sam.vision_encoder(pixels)[0])
    ours = error(routed(route, route)(sam.vision_encoder, pixels, size))
    assert theirs < 0.05 and ours < 1.2 * theirs


class Arrivals(TorchDispatchMode):
    """Counts operators that make index ranges or move tensors between devices."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.arange, torch.ops.aten._to_copy, torch.ops.aten.nonzero):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("resized_size", [None, (36, 20)])
def test_geometry_is_made_once(resized_size):
    """A second pass of the same shape makes no index and copies nothing from the host."""
    sam = build(**CASES["padded windows"])
    pixels = frames(sam, 2, resized_size)
    encode(sam, pixels, resized_size=resized_size)
    with Arrivals() as arrivals:
        encode(sam, pixels, resized_size=resized_size)
    assert arrivals.names == []


@torch.no_grad()
def test_flex_that_cannot_compile_is_replaced(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(sam_attention, "_flex_kernel", lambda: refuse)
    monkeypatch.setattr(sam_attention, "_broken_flex", [])
    sam = build(**CASES["padded windows"])
    pixels = frames(sam)
    with caplog.at_level(logging.WARNING):
        embeddings = routed(FOLD, sam_attention.attend_flex_or_biased)(sam.vision_encoder, pixels)
    assert difference(embeddings, sam.vision_encoder(pixels)[0]) < 1e-5
    assert [record.getMessage().count("no compiler") for record in caplog.records] == [1]
    assert "long story" not in caplog.text


@torch.no_grad()
def test_want_of_memory_is_no_reason_to_replace_flex(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(sam_attention, "_flex_kernel", lambda: refuse)
    monkeypatch.setattr(sam_attention, "_broken_flex", [])
    sam = build(**CASES["padded windows"])
    with pytest.raises(torch.OutOfMemoryError):
        routed(FOLD, sam_attention.attend_flex_or_biased)(sam.vision_encoder, frames(sam))
    assert sam_attention._broken_flex == []


@torch.no_grad()
def test_layers_share_what_is_compiled(monkeypatch):
    """Traced, not translated: as many graphs for five layers as for nine."""
    graphs: list[int] = []

    def backend(module, example_inputs):
        graphs.append(len(example_inputs))
        return module.forward

    compiled: dict = {}
    monkeypatch.setattr(
        sam_encoder,
        "_compiled",
        lambda function: compiled.setdefault(function, torch.compile(function, backend=backend)),
    )
    counts = []
    for depth, global_attn_indexes in ((5, (2, 4)), (9, (2, 5, 8))):
        torch._dynamo.reset()
        graphs.clear()
        sam = build(**{**CASES["padded windows"], "depth": depth, "global_attn_indexes": global_attn_indexes})
        pixels = frames(sam)
        fast = FastEncoder()
        fast.compile = True
        assert difference(fast(sam.vision_encoder, pixels), sam.vision_encoder(pixels)[0]) < 1e-5
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts[0] == counts[1] <= 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("global_", [FOLD, BIAS, sam_attention.attend_flex], ids=["fold", "bias", "flex"])
def test_routes_on_a_gpu(global_, compile):
    # Heads of 16 and 32 patches a side, since flex wants tiles of a certain size.
    sam = build(grid=32, window_size=14, depth=3, global_attn_indexes=(1,), embed_dim=48)
    size = (72, 128)
    pixels = frames(sam, 3, size)
    expected = sam.vision_encoder(pixels)[0]
    there = copy.deepcopy(sam).cuda()
    fast = routed(FOLD, global_, compile)
    assert difference(fast(there.vision_encoder, pixels.cuda(), size).cpu(), expected) < 1e-3
    half = there.to(torch.bfloat16)
    ours = fast(half.vision_encoder, pixels.cuda().bfloat16(), size).cpu()
    theirs = half.vision_encoder(pixels.cuda().bfloat16())[0].cpu()
    assert difference(ours, expected) < 1.5 * difference(theirs, expected) + 1e-3
