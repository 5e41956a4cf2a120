"""Sizes, fresh weights, configuration, saving."""

import json

import pytest
import torch
from torch import nn

from model import answering, presets
from model.adapters import add_lora, set_trainable
from model.answering import Request
from model.config import MoraConfig
from model.initialization import grid_positions
from model.mora import MoraModel
from utils.batch import MoraBatch
from utils.errors import ConfigError


def same_weights(a, b):
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_build_is_repeatable_and_leaves_global_random_state_alone():
    state = torch.random.get_rng_state()
    first = presets.build(presets.tiny(), seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert same_weights(first, presets.build(presets.tiny(), seed=1))
    assert not same_weights(first, presets.build(presets.tiny(), seed=2))
    assert not first.training


def test_tiny_is_tiny_and_resizable():
    assert sum(p.numel() for p in presets.build(presets.tiny()).parameters()) < 3_000_000
    config = presets.tiny(llm_hidden=64, clip_layers=1, sam_channels=32, visual_mode="pooled", vocab_size=99)
    assert config.text_config.hidden_size == 64 and config.text_config.vocab_size == 99
    assert config.out_dim == 32 and config.visual_mode == "pooled"
    presets.build(config)


def test_xavier_weights_carry_the_signal():
    model = presets.build(presets.tiny())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not getattr(module, "zero_init", False):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert bound / 2 < module.weight.abs().max() <= bound, name
            assert module.bias is None or not module.bias.any(), name
    last = model.projector.frame_time[-1]
    assert not last.weight.any() and not last.bias.any(), "time is silent at first"
    positions = model.vision_tower.embeddings.position_embedding.weight
    torch.testing.assert_close(positions[1:].detach(), grid_positions(8, 96))


def test_grid_positions_tell_rows_from_columns():
    code = grid_positions(4, 16).view(4, 4, 16)
    assert torch.equal(code[1, :, :8], code[1, :1, :8].expand(4, 8)), "half of it is the row"
    assert torch.equal(code[:, 2, 8:], code[:1, 2, 8:].expand(4, 8)), "half of it is the column"
    assert torch.pdist(code.view(16, 16)).min() > 0.1


@pytest.fixture(scope="module")
def lisa():
    return presets.build(presets.lisa_7b(loc_mode="none"), device="meta")


def test_lisa_has_the_published_sizes(lisa):
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert all(p.is_meta for p in lisa.parameters())
    assert count(lisa.sam.vision_encoder) == 637_026_048 and count(lisa.sam.mask_decoder) == 4_058_340
    assert count(lisa.text_hidden_fcs) == 17_830_144
    assert count(lisa.language_model) == 6_738_415_616 + 2 * 3 * 4096
    assert count(lisa.projector) == 1024 * 4096 + 4096


def test_lisa_trains_the_published_set():
    model = presets.build(presets.lisa_7b(), device="meta")
    adapters = add_lora(model)
    sizes = {name: model.get_parameter(name).numel() for name in set_trainable(model, "default")}
    assert sum(sizes[name] for name in adapters) == 4_194_304
    assert sum(sizes.values()) == 4_194_304 + 262_168_576 + 17_830_144 + 4_058_340


def test_save_and_load(worlds, tmp_path):
    model = worlds.model(visual_mode="pooled")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mora"
    again = MoraModel.from_pretrained(tmp_path)
    assert same_weights(model, again)
    assert again.config.visual_mode == "pooled" and again.config.seg_token_id == worlds.seg
    batch = MoraBatch([worlds.video(1, 2)])
    assert torch.equal(model(batch)["loss"], again(batch)["loss"])


def test_configuration_is_never_shared():
    config = presets.tiny()
    parts = {name: getattr(config, name) for name in ("text_config", "vision_config", "sam_config")}
    other = MoraConfig(**parts, out_dim=96)
    other.text_config.vocab_size = 7
    assert config.text_config.vocab_size == 640


def test_all_mistakes_of_a_configuration_at_once():
    with pytest.raises(ConfigError) as caught:
        presets.tiny(visual_mode="movie", loc_mode="frame", out_dim=7, vision_select_layer=-9, clip_image_size=72)
    message = str(caught.value)
    for part in ("visual_mode: is 'movie'", "loc_mode: 'frame' needs", "out_dim: is 7", "is -9", "even patch grid"):
        assert part in message
    assert "5 problems" in message


def test_vocabulary_grows_repeatably(worlds):
    models = [worlds.model(), worlds.model()]
    before = models[0].get_input_embeddings().weight.detach().clone()
    for model in models:
        torch.rand(5)
        state = torch.random.get_rng_state()
        model.resize_token_embeddings(67)
        assert torch.equal(state, torch.random.get_rng_state())
    assert same_weights(*models)
    model = models[0]
    weight, head = model.get_input_embeddings().weight, model.backbone.vocabulary[1].weight
    assert weight.shape == (67, 64) and head.shape == (67, 64)
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == 67
    assert torch.equal(weight[:64], before)
    far = (weight[64:] - before.mean(0)).norm(dim=1)
    assert (far > 0).all() and (far < 0.2 * before.std(0).norm()).all(), "near the mean, but not equal to each other"
    assert not torch.equal(weight[65], weight[66])


def test_bfloat16_trains_and_answers(worlds):
    model = worlds.model().to(torch.bfloat16)
    video = worlds.video(1, 3, segs=[1, 2])
    losses = model(MoraBatch([video]).to("cpu", torch.bfloat16))
    wanted = worlds.model()(MoraBatch([video]))
    assert losses["loss"].dtype == torch.float32
    torch.testing.assert_close(losses["loss"], wanted["loss"], rtol=0.05, atol=0.05)
    context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
    prompts, request = [video.questions[0].input_ids[:6]], Request(max_new_tokens=3, force_seg_token=True)
    (answer,) = answering.answer(model, context, prompts, request)
    assert answer.masks.dtype == torch.float32 and answer.masks.isfinite().all()


def test_default_sam_has_the_originals_constants():
    """transformers' own default would normalise with another epsilon inside the mask decoder."""
    assert MoraConfig().sam_config.to_dict() == presets.lisa_7b().sam_config.to_dict()
