"""Qwen3-VL against the library's own forward, positions and pixels; its sizes; what its configuration refuses."""

import copy

import pytest
import torch
from PIL import Image

from model import presets
from model.backbones import Session, qwen3_vl, read_prefix, read_rows
from model.layout import after, expand, place_questions, split_at_images
from tests.model.qwen_worlds import IMAGE, QwenWorlds, close, patch_rows, stock_of
from utils.batch import MoraBatch
from utils.errors import ConfigError

MODES = ["video", "pairs", "frame"]
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def made():
    """(worlds, model) by mode; tests must not change the weights."""
    return {mode: (worlds := QwenWorlds(mode), worlds.model(loc_mode="global")) for mode in MODES}


@pytest.mark.parametrize(
    "size, whole, tower, merger, deepstack, embeddings, decoder, tensors",
    [
        ("8b", 8_767_123_696, 415_891_440, 40_119_040, 120_377_856, 622_329_856, 6_946_075_648, 750),
        ("4b", 4_437_815_808, 306_242_560, 27_271_680, 81_833_472, 388_956_160, 3_633_511_936, 713),
        ("2b", 2_127_532_032, 306_242_560, 25_174_016, 75_540_480, 311_164_928, 1_409_410_048, 625),
    ],
)
def test_published_sizes(size, whole, tower, merger, deepstack, embeddings, decoder, tensors):
    model = presets.build(getattr(presets, f"qwen3_vl_{size}")(), device="meta")
    network, count = model.language_model, lambda module: sum(p.numel() for p in module.parameters())
    visual, (words, head) = network.model.visual, model.backbone.vocabulary
    parts = [count(visual.merger), count(visual.deepstack_merger_list)]
    assert all(parameter.is_meta for parameter in model.parameters())
    assert [count(visual) - sum(parts), *parts] == [tower, merger, deepstack]
    assert count(words) == count(head) == embeddings and (words.weight is head.weight) == (size != "8b")
    assert count(model.backbone.decoder) - embeddings == decoder and count(network) == whole
    assert len(dict(network.named_parameters())) == tensors


@modes
@pytest.mark.parametrize("frames, seed", [(1, 1), (3, 1), (4, 2), (5, 5)])
def test_positions_are_the_librarys(made, mode, frames, seed):
    worlds, model = made[mode]
    video = worlds.video(seed, frames)
    ids = video.questions[0].input_ids
    with torch.no_grad():
        (visual,) = model.backbone.encode([video.clip_pixels])
    stock = stock_of(model, ids, video.clip_pixels[:1] if mode == "frame" else video.clip_pixels)
    wanted, delta = stock.network(model).model.get_rope_index(stock.ids, stock.kinds, **stock.grids())
    prefix, suffix = split_at_images(ids.tolist(), visual.grids, "here")
    got = model.backbone.positions(prefix)
    assert torch.equal(got, wanted[:, 0, : got.shape[1]])
    assert after(got) == wanted[0, 0, got.shape[1]] and after(got) + len(suffix) == stock.ids.shape[1] + delta
    assert len({tuple(axis) for axis in got.tolist()}) == 3, "the three axes differ"
    assert torch.equal(model.backbone.positions([]), torch.zeros(3, 0, dtype=torch.long))


def test_patches_are_the_librarys():
    """Bytes of pictures through the library's processor, and through ours of pixels already normalised."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    except ImportError:
        pytest.skip("this transformers has no image processor that works without torchvision")
    half, side = [0.5, 0.5, 0.5], 8
    processor = Qwen2VLImageProcessorPil(patch_size=side, merge_size=2, image_mean=half, image_std=half)
    model = QwenWorlds().model()
    frames = torch.randint(0, 256, (3, 48, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    wanted = processor([Image.fromarray(f.numpy()) for f in frames], do_resize=False, return_tensors="pt")
    pixels = (frames.permute(0, 3, 1, 2).float() * (1 / 255) - 0.5) / 0.5
    assert wanted["image_grid_thw"].tolist() == [[1, 6, 4]] * 3
    ours = torch.cat([patch_rows(torch.stack([frame, frame]), side) for frame in pixels])
    torch.testing.assert_close(ours, wanted["pixel_values"], atol=1e-6, rtol=0)
    network = model.language_model.model.visual
    with torch.no_grad():
        seen = network(wanted["pixel_values"], grid_thw=wanted["image_grid_thw"])
        (visual,) = model.backbone.encode([pixels])
    close(visual.tokens[0], seen.pooler_output)
    for ours, level in zip(visual.extras, seen.deepstack_features, strict=True):
        close(ours[0], level)


def ragged(worlds):
    """Two videos of other sizes and frames; questions that share a beginning, one with another, one without image."""
    first, second = worlds.video(1, 3, segs=[1, 2, 0]), worlds.video(5, 5, segs=[1])
    generator = torch.Generator().manual_seed(9)
    second.questions.append(worlds.question(generator, 5, segs=0, image=False, loc=False))
    second.questions.append(worlds.question(generator, 5, prefix=3))
    assert first.clip_pixels.shape[2:] != second.clip_pixels.shape[2:]
    return MoraBatch([first, second])


def compare(model, batch, packed=True, tolerance=1e-5):
    """Read a batch in our rows and every question's text after the images by the library; the largest state."""
    visuals = model.backbone.encode([video.clip_pixels for video in batch.videos])
    questions, rows = place_questions(batch, visuals, 5, 6, packed)
    assert any(len(row.suffixes) > 2 for row in rows) == packed
    layout, states = read_rows(model.backbone, rows, [row for visual in visuals for row in visual.rows()])
    largest = 0.0
    for question in questions:
        video = batch.videos[question.video]
        for index, (row, number) in enumerate(question.rows):
            frames = video.clip_pixels[index : index + 1] if len(question.rows) > 1 else video.clip_pixels
            wanted = stock_of(model, video.questions[question.number].input_ids, frames).states(model)
            start, length = layout.starts[row][number], layout.prefix_lengths[row]
            close(states[row, start : start + len(question.suffix)], wanted[length:], tolerance)
            close(states[row, :length], wanted[:length], tolerance)
            largest = max(largest, wanted.abs().max().item())
    return largest


@modes
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "alone"])
@torch.no_grad()
def test_states_are_the_librarys(made, mode, packed):
    worlds, model = made[mode]
    assert 1 < compare(model, ragged(worlds), packed) < 10


@pytest.mark.parametrize("frames", [1, 2])
@modes
@torch.no_grad()
def test_states_of_short_videos(made, mode, frames):
    worlds, model = made[mode]
    compare(model, MoraBatch([worlds.video(2, frames, segs=[1, 1, 1])]))


@torch.no_grad()
def test_eager_adds_its_mask(made, monkeypatch):
    worlds, model = QwenWorlds(), copy.deepcopy(made["video"][1])
    model.language_model.set_attn_implementation("eager")
    assert model.backbone.decoder.config._attn_implementation == "eager"
    compare(model, ragged(worlds))
    monkeypatch.setattr(qwen3_vl, "additive_mask", lambda allowed, *_: allowed)
    with pytest.raises(AssertionError, match="not close"):
        compare(model, ragged(worlds))


@pytest.mark.parametrize("broken", ["features", "positions"])
@torch.no_grad()
def test_features_and_positions_are_used(made, broken, monkeypatch):
    worlds, model = made["video"]
    encode = model.backbone.encode

    def without(videos):
        visuals = encode(videos)
        for visual in visuals:
            visual.extras.clear()
        return visuals

    if broken == "features":
        monkeypatch.setattr(model.backbone, "encode", without)
    else:
        count = lambda prefix: torch.arange(len(expand(prefix)[0])).expand(3, -1)  # noqa: E731
        monkeypatch.setattr(model.backbone, "positions", count)
    with pytest.raises(AssertionError, match="not close"):
        compare(model, ragged(worlds), tolerance=0.1)


@modes
@pytest.mark.parametrize("frames_per_pass", [1, 2, 3, 100])
@torch.no_grad()
def test_passes_change_nothing(made, mode, frames_per_pass):
    worlds, model = made[mode]
    videos = [worlds.video(seed, frames).clip_pixels for seed, frames in ((1, 3), (5, 4), (2, 1))]
    together = model.backbone.encode(videos)
    for cut, one in zip(model.backbone.encode(videos, frames_per_pass), together):
        assert cut.grids == one.grids and len(cut.extras) == 2
        for part, wanted in zip((cut.tokens, *cut.extras), (one.tokens, *one.extras)):
            close(part, wanted)


@modes
@torch.no_grad()
def test_frames_per_pass_bounds_a_pass(made, mode, monkeypatch):
    worlds, model = made[mode]
    tower, sizes = model.language_model.model.visual, []
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda x, **kw: sizes.append(len(x)) or forward(x, **kw))
    model.backbone.encode([worlds.video(1, 5).clip_pixels], 2)  # frames of 4 x 6 patches
    assert sizes == ([24, 24, 24] if mode == "pairs" else [48, 48, 24])


@modes
@torch.no_grad()
def test_a_cached_beginning_and_steps(made, mode):
    """Questions grow side by side, token by token, from one cache; each state is the library's."""
    worlds, model = made[mode]
    video = worlds.video(5, 3, segs=[1, 2])
    (visual,) = model.backbone.encode([video.clip_pixels])
    cut = [split_at_images(q.input_ids.tolist(), visual.grids, "here") for q in video.questions]
    prefix = read_prefix(model.backbone, cut[0][0], visual)
    session, rows = Session(model.backbone, prefix, 2), prefix.rows
    said = [[], []]
    for step in range(max(len(suffix) for _, suffix in cut)):
        pieces = {k: torch.tensor([[s[step]]] * rows) for k, (_, s) in enumerate(cut) if step < len(s)}
        for k, states in session.append(pieces).items():
            said[k].append(states)
    for question, states in zip(video.questions, said):
        for row in range(rows):
            pixels = video.clip_pixels[row : row + 1] if mode == "frame" else video.clip_pixels
            wanted = stock_of(model, question.input_ids, pixels).states(model)
            length = prefix.states.shape[1]
            close(prefix.states[row], wanted[:length])
            close(torch.cat(states, dim=1)[row], wanted[length:])


@torch.no_grad()
def test_states_of_frames(made):
    """Each frame's own tokens; a pair's for both of its frames, the repeated one left out."""
    for mode, images in (("video", [0, 1, 2, 3, 4]), ("pairs", [0, 0, 1, 1, 2])):
        backbone = made[mode][1].backbone
        states = torch.arange(max(images) + 1).repeat_interleave(6)[None, :, None].expand(1, -1, 4)
        grouped = backbone.frame_states(states, 5)
        assert grouped.shape == (5, 6, 4) and grouped[:, 0, 0].tolist() == images
        assert (grouped == grouped[:, :1, :1]).all()
    assert made["frame"][1].backbone.frame_states(states[:, :12].expand(5, -1, -1), 5).shape == (5, 12, 4)


def test_what_a_configuration_refuses_at_once():
    with pytest.raises(ConfigError) as caught:
        presets.tiny_qwen(
            visual_mode="frame", frames_as="video", min_pixels=9000, max_pixels=8999, tower_hidden=36,
            vision_config={"hidden_size": 36, "num_heads": 4, "depth": 3, "deepstack_visual_indexes": [0, 3],
                           "out_hidden_size": 99, "num_position_embeddings": 63, "patch_size": 8},
            text_config={"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
                         "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                                       "mrope_section": [4, 4]}},
        )  # fmt: skip
    message = str(caught.value)
    for part in ("max_pixels: is 8999", "visual_mode: is 'frame'", "out_hidden_size: is 99", "indexes: is [0, 3]",
                 "must be the square", "hidden_size: is 36", "mrope_section is [4, 4]", "7 problems"):  # fmt: skip
        assert part in message, message


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"visual_mode": "pooled"}, "visual_mode: is 'pooled'"),
        ({"visual_mode": "frame", "timestamps": True}, "no timestamps"),
        ({"min_pixels": 0}, "min_pixels"),
        ({"max_pixels": 1 << 40}, "max_pixels"),
        ({"min_pixels": 300, "max_pixels": 511}, "frames of whole tokens"),
        ({"min_pixels": 1, "max_pixels": 255}, "frames of whole tokens"),
        ({"frames_as": "movie"}, "frames_as"),
        ({"timestamps": 1}, "timestamps"),
        ({"template": "llava_v1"}, "template"),
        ({"tokenization": "legacy"}, "tokenization"),
        ({"llm_layers": 1}, "indexes: is [0, 1]"),
    ],
)
def test_what_a_field_refuses(wrong, said):
    with pytest.raises(ConfigError) as caught:
        presets.tiny_qwen(**wrong)
    assert said in str(caught.value)


@torch.no_grad()
def test_extreme_values():
    """Pixels far outside of the usual give finite states; one token per image, and no levels of features, work."""
    worlds = QwenWorlds()
    model = worlds.model()
    video = worlds.video(1, 2)
    for value in (0.0, 1e4, -1e4):
        video.clip_pixels.fill_(value)
        assert model(MoraBatch([video]))["loss"].isfinite()
    video.clip_pixels = torch.randn(2, 3, 16, 16)
    compare(model, MoraBatch([video, worlds.video(3, 1, segs=[1, 1, 1])]))
    config = worlds.config()
    config.vision_config.deepstack_visual_indexes = []
    flat = presets.build(config, seed=1)
    video = worlds.video(1, 2, segs=[1, 1, 1])
    compare(flat, MoraBatch([video]))
    assert not flat.backbone.encode([video.clip_pixels])[0].extras and IMAGE not in video.questions[0].input_ids
