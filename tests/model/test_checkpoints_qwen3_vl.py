"""A published Qwen3-VL folder as a base: what is taken from it, what is new, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3VLForConditionalGeneration

from model.checkpoints import digest_base, load_any
from tests.model.published_qwen import ROWS, change_config, join, write_qwen
from utils.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def base(place):
    return write_qwen(place)


@pytest.fixture
def changed(tmp_path):
    """A folder that a test may change."""
    return write_qwen(tmp_path)


def test_every_tensor_finds_its_place(base, place):
    model, report = load_any(base, place / "sam.pth", loc_mode="global", digest=True)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(base).state_dict()
    own = model.state_dict()
    assert len(stock) > 60 and all(torch.equal(own[f"language_model.{name}"], value) for name, value in stock.items())
    assert report.initialised == ["text_hidden_fcs.0.0", "text_hidden_fcs.0.2", *report.initialised[2:]]
    assert all(name.startswith(("text_hidden_fcs", "loc_head")) for name in report.initialised)
    assert not (report.missing.keys() - {name for name in own if name.startswith(("text_hidden", "loc_head"))})
    config = model.config
    assert (config.backbone, config.template, config.visual_mode) == ("qwen3_vl", "qwen3_vl", "video")
    assert (config.answer_style, config.min_pixels, config.max_pixels) == ("bare", 200704, 802816)
    assert (config.frames_as, config.timestamps, config.readout) == ("images", False, "before")
    assert (config.seg_token_id, config.loc_token_id, config.out_dim) == (None, None, 16)
    assert config.text_config.rope_parameters["rope_theta"] == 5e6 and config.text_config.vocab_size == ROWS
    assert set(report.digests) == {"language_model", "sam"}
    assert report.digests == digest_base(base, place / "sam.pth", loc_mode="global", max_pixels=300_000)


def test_an_older_config_says_the_same(base, changed, place):
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    stored = json.loads((base / "config.json").read_text())["text_config"]["rope_parameters"]
    assert stored == {**rope, "rope_theta": 5e6}
    change_config(changed, text_config__rope_parameters=None, text_config__rope_scaling=rope,
                  text_config__rope_theta=5_000_000, architectures=["Qwen3VLForConditionalGeneration"],
                  image_token_id=151655, transformers_version="4.57.0.dev0")  # fmt: skip
    old, new = load_any(changed, place / "sam.pth")[0], load_any(base, place / "sam.pth")[0]
    assert old.config.text_config.rope_parameters == new.config.text_config.rope_parameters
    embeds, positions = torch.randn(1, 5, 64), torch.arange(5)[None]
    assert torch.equal(old.backbone.read(embeds, positions, None), new.backbone.read(embeds, positions, None))


def test_it_needs_sam_and_no_other_tower(base, place):
    with pytest.raises(CheckpointError, match="has no SAM image encoder.*--vision_pretrained"):
        load_any(base)
    with pytest.raises(CheckpointError, match="its own; leave it out"):
        load_any(base, place / "sam.pth", vision_tower=base)


def test_tied_matrices(tmp_path):
    folder = write_qwen(tmp_path, tied=True)
    model, report = load_any(folder, tmp_path / "sam.pth")
    words, head = model.backbone.vocabulary
    assert head.weight is words.weight and not any("lm_head" in name for name in report.initialised)
    change_config(folder, text_config__tie_word_embeddings=False)  # says nothing
    assert load_any(folder, tmp_path / "sam.pth")[0].config.text_config.tie_word_embeddings is True
    change_config(folder, tie_word_embeddings=False)
    for allowed in ((), ("*",)):
        with pytest.raises(CheckpointError, match="no language head .*saved as one matrix"):
            load_any(folder, tmp_path / "sam.pth", allow_missing=allowed)


def test_two_matrices_that_should_be_one(changed, tmp_path):
    change_config(changed, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="lm_head.weight differs from the word embeddings"):
        load_any(changed, tmp_path / "sam.pth")


@pytest.mark.parametrize("kind", ["qwen3", "qwen2_5_vl", "qwen3_vl_moe", "llama"])
def test_other_models_are_refused(changed, tmp_path, kind):
    change_config(changed, model_type=kind)
    with pytest.raises(CheckpointError) as failed:
        load_any(changed, tmp_path / "sam.pth")
    assert f"model_type is '{kind}'" in str(failed.value)
    assert ("Qwen/Qwen3-VL-8B-Instruct" in str(failed.value)) == kind.startswith("qwen")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_config": None}, "text_config"),
        ({"text_config__num_hidden_layers": None}, "num_hidden_layers is 32, but the weights have 2 layers"),
        ({"text_config__num_hidden_layers": 3}, "num_hidden_layers is 3, but the weights have 2 layers"),
        ({"vision_config__depth": 3}, "depth is 3, but the weights have 2 layers"),
        ({"text_config__vocab_size": 700}, r"vocab_size is 700, but .*embed_tokens.weight is \[651, 64\]"),
        ({"text_config__head_dim": 32}, "mrope_section|head_dim is 32"),
        ({"vision_config__patch_size": 16}, "patch_size is 16"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: is 'no'"),
        ({"text_config__model_type": "qwen3"}, "text_config.model_type"),
    ],
)
def test_a_config_of_other_weights_is_refused(changed, tmp_path, fields, said):
    change_config(changed, **fields)
    with pytest.raises(ConfigError, match=said) as failed:
        load_any(changed, tmp_path / "sam.pth")
    assert "config.json" in str(failed.value)


def test_missing_and_strange_tensors_are_named(changed, tmp_path):
    state = join(changed)
    lost = "model.visual.blocks.1.attn.qkv.weight"
    del state[lost]
    save_file({**state, "model.temporal.weight": torch.zeros(2)}, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as failed:
        load_any(changed, tmp_path / "sam.pth")
    assert f"language_model.{lost}: missing" in str(failed.value) and "model.temporal.weight" in str(failed.value)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_reaches_tower_and_decoder(base, place, name):
    model, _ = load_any(base, place / "sam.pth", attn_implementation=name)
    tower, decoder = model.language_model.model.visual, model.backbone.decoder
    assert tower.blocks[0].attn.config._attn_implementation == name == decoder.config._attn_implementation
    assert decoder.layers[0].self_attn.config._attn_implementation == name
