"""The published LISA / MoRA layout: its whole table of names and shapes, several sizes, and refusals."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, SamModel

from model.checkpoints import digest_base, load_any, rename_published
from model.presets import build, lisa_7b
from model.segmenters import sam_config
from tests.model.published_layout import CONFIG, SAM, clip_table, edit, llava_table, noise, sam_table
from utils.errors import CheckpointError, ConfigError


def test_table_of_7b():
    """Every tensor of LISA-7B has its one place, of the same shape, in our 7B model; only CLIP is elsewhere."""
    vit_h = {"image": 1024, "patch": 16, "dim": 1280, "depth": 32, "heads": 16, "window": 14, "out": 256}
    sam = sam_table(**vit_h, layers_global=(7, 15, 23, 31))
    assert len(sam) == 594
    table = llava_table(32003, 4096, 32, 32, 32, 11008, 1024, 256)
    table |= {f"model.visual_model.{name}": shape for name, shape in sam.items()}
    renamed, ignored = rename_published(table)
    assert sorted(ignored) == sorted(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(32))
    model = build(lisa_7b(), "meta")
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert renamed == {name: shape for name, shape in ours.items() if not name.startswith("vision_tower.")}
    clip = clip_table(1024, 24, 4096, 224, 14)
    tower, _ = rename_published({f"model.vision_tower.vision_tower.{name}": shape for name, shape in clip.items()})
    assert tower == {name: shape for name, shape in ours.items() if name.startswith("vision_tower.")}
    counts = {
        part: sum(parameter.numel() for parameter in getattr(model.sam, part).parameters())
        for part in ("vision_encoder", "prompt_encoder", "mask_decoder")
    }
    assert counts == {"vision_encoder": 637_026_048, "prompt_encoder": 6_220, "mask_decoder": 4_058_340}
    assert sum(p.numel() for p in model.text_hidden_fcs.parameters()) == 17_830_144


def test_sizes_are_read_off(published):
    model, report = load_any(published)
    assert not (report.missing or report.unexpected or report.mismatched or report.initialised)
    config = model.config
    vision = config.sam_config.vision_config
    assert (vision.image_size, vision.patch_size, vision.num_attention_heads) == (56, 8, 3)
    assert (vision.window_size, list(vision.global_attn_indexes)) == (3, [1])
    assert config.sam_config.mask_decoder_config.num_attention_heads == 8
    assert (config.out_dim, config.vision_select_layer, config.projector) == (16, -1, "linear")
    assert (config.seg_token_id, config.loc_token_id) == (67, 69)
    assert (config.template, config.tokenization, config.visual_mode) == ("llava_llama_2", "legacy", "frame")
    assert config.text_config.rms_norm_eps == 3e-4


def test_decoder_computes_what_plain_llama_does(published):
    """Grouped heads, odd epsilon and another RoPE base survive the load."""
    model, _ = load_any(published)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    plain = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=70,
            rms_norm_eps=3e-4,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            **{name: CONFIG[name] for name in names},
        )
    )
    state = torch.load(published / "pytorch_model.bin", weights_only=True)
    result = plain.load_state_dict({n: t for n, t in state.items() if n in plain.state_dict()}, strict=True)
    assert not result.missing_keys
    ids = torch.randint(0, 70, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.language_model(ids).logits, plain.eval()(ids).logits, atol=1e-6, rtol=0)


def test_names_of_peft_and_ddp_are_understood(published):
    state = torch.load(published / "pytorch_model.bin", weights_only=True)
    wrapped = {name.replace("q_proj.", "q_proj.base_layer."): tensor for name, tensor in state.items()}
    wrapped = {f"module.base_model.model.{name}": tensor for name, tensor in wrapped.items()}
    torch.save(wrapped, published / "pytorch_model.bin")
    model, _ = load_any(published)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(model.language_model.state_dict()[name], state[name])


def test_half_precision_keeps_constants_exact(published):
    model, _ = load_any(published, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_trained_decoder_is_never_replaced(published, tmp_path):
    plain = noise(SAM, seed=7)
    torch.save(plain, tmp_path / "sam.pth")
    trained = torch.load(published / "pytorch_model.bin", weights_only=True)
    model, report = load_any(published, vision_pretrained=tmp_path / "sam.pth")
    name = "mask_decoder.mask_tokens.weight"
    assert torch.equal(model.sam.state_dict()[name], trained[f"model.visual_model.{name}"])
    assert any("NOT USED" in note for note in report.notes)
    edit(published, drop="model.visual_model.image_encoder")
    model, report = load_any(published, vision_pretrained=tmp_path / "sam.pth")
    assert torch.equal(model.sam.state_dict()[name], trained[f"model.visual_model.{name}"])
    assert torch.equal(model.sam.vision_encoder.pos_embed, plain["image_encoder.pos_embed"])


def test_base_without_sam_needs_one_and_gets_fresh_heads(published, tmp_path):
    edit(published, drop=("model.visual_model", "model.text_hidden_fcs"))
    config = {name: value for name, value in CONFIG.items() if name != "train_mask_decoder"}
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no SAM image encoder.*vision_pretrained"):
        load_any(published)
    torch.save(noise(SAM, seed=7), tmp_path / "sam.pth")
    torch.manual_seed(123)
    model, report = load_any(published, vision_pretrained=tmp_path / "sam.pth", loc_mode="global", seed=5)
    assert any(name.startswith("loc_head") for name in report.initialised)
    assert any(name.startswith("text_hidden_fcs") for name in report.initialised)
    assert model.text_hidden_fcs[0][0].weight.std() > 0
    torch.manual_seed(321)
    again, _ = load_any(published, vision_pretrained=tmp_path / "sam.pth", loc_mode="global", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_read_out_of_a_lisa_checkpoint_must_be_there(published):
    edit(published, drop="model.text_hidden_fcs")
    with pytest.raises(CheckpointError, match=r"text_hidden_fcs\.0\.2\.weight: missing .*\[16, 48\]"):
        load_any(published)


def test_unknown_heads_are_named_with_shapes(published):
    add = {
        "model.loc_head.0.weight": torch.zeros(3, 48),
        "model.seg_token_temporal_module.layers.0.bias": torch.zeros(16),
        "model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 48),
    }
    edit(published, add=add)
    with pytest.raises(CheckpointError) as error:
        load_any(published)
    message = str(error.value)
    assert "model.loc_head.0.weight: [3, 48]" in message and "localization or temporal head" in message
    assert "unmerged LoRA" in message
    flags = "--allow_unexpected 'model.loc_head*' --allow_unexpected 'model.seg_token_temporal_module*' --seg_only"
    assert "2 of these tensors are a localization or temporal head in a layout that is not known here" in message
    assert f"To load everything else, add {flags}: masks work, times are not predicted" in message
    with pytest.raises(CheckpointError) as error:
        load_any(published, allow_unexpected=["model.loc_head*", "model.seg_token_temporal_module*"])
    assert "unmerged LoRA" in str(error.value) and "--seg_only" not in str(error.value)
    _, report = load_any(published, allow_unexpected=["*loc_head*", "*temporal*", "*lora_*"])
    assert report.localization_keys == ["model.loc_head.0.weight", "model.seg_token_temporal_module.layers.0.bias"]
    assert "LOOKS LIKE A LOCALIZATION HEAD" in str(report)


def test_the_flags_that_the_message_gives_are_enough(published):
    """What a person does next after meeting a head of another layout."""
    edit(published, add={"model.loc_head.temporal.0.weight": torch.zeros(3, 48), "loc_proj.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError) as error:
        load_any(published)
    patterns = re.findall("--allow_unexpected '([^']*)'", str(error.value))
    model, report = load_any(published, allow_unexpected=patterns, loc_mode="none")
    assert sorted(report.unexpected) == ["loc_proj.weight", "model.loc_head.temporal.0.weight"]
    assert not hasattr(model, "loc_head")


def test_strangers_keep_their_names_and_do_not_tell_which_base_it_is(published):
    """Runs are continued on the base that they began with, whatever else its files hold."""
    plain = digest_base(published)
    edit(published, add={"model.loc_head.weight": torch.ones(3), "model.visual_model.strange.thing": torch.ones(2)})
    assert digest_base(published) == plain
    patterns = ["model.loc_head.*", "model.visual_model.*"]
    _, report = load_any(published, allow_unexpected=patterns)
    assert sorted(report.unexpected) == ["model.loc_head.weight", "model.visual_model.strange.thing"]


def test_wrong_shapes_are_all_named(published):
    edit(published, add={"model.norm.weight": torch.zeros(5), "lm_head.weight": torch.zeros(66, 48)})
    with pytest.raises(CheckpointError) as error:
        load_any(published)
    assert "shape [5] in the checkpoint, [48] in the model" in str(error.value)
    assert "shape [66, 48] in the checkpoint, [70, 48] in the model" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type is None"),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps({**CONFIG, "mm_vision_select_feature": "cls_patch"})
            ),
            "mm_vision_select_feature is 'cls_patch'",
        ),
        (lambda folder: shutil.rmtree(folder.parent / "tower"), "tower: no such folder"),
        (lambda folder: (folder / "added_tokens.json").write_text('{"[SEG]": 70}'), r"\[SEG\] the id 70"),
        (lambda folder: edit(folder, drop="model.mm_projector"), r"mm_projector\.\*: missing"),
        (lambda folder: edit(folder, drop="model.embed_tokens"), r"embed_tokens\.weight: missing"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
    ],
)
def test_refusals(published, change, message):
    change(published)
    with pytest.raises(CheckpointError, match=message):
        load_any(published)


def test_overrides(published):
    model, _ = load_any(published, visual_mode="video", template="llava_v1")
    assert (model.config.visual_mode, model.config.template) == ("video", "llava_v1")
    with pytest.raises(ConfigError, match="colour: not a field"):
        load_any(published, colour="red")


def test_sam_of_transformers(published, tmp_path):
    """A SamModel folder fits too, whether or not it repeats its position matrix; another file is told from it."""
    edit(published, drop="model.visual_model")
    theirs = SamModel(sam_config(56, 8, 24, 3, 3, 3, (1,), 16))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    theirs.save_pretrained(tmp_path / "sam")
    state = theirs.state_dict()
    positions = state.pop("prompt_encoder.shared_embedding.positional_embedding")
    repeated = {**state, "prompt_encoder.shared_embedding.positional_embedding": positions}
    del repeated["shared_image_embedding.positional_embedding"]
    torch.save(repeated, tmp_path / "sam.pth")
    for source in ("sam", "sam.pth"):
        model, _ = load_any(published, tmp_path / source)
        assert model.sam.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.sam.state_dict().items())
    save_file({"stranger": torch.zeros(1)}, tmp_path / "stranger.safetensors")
    with pytest.raises(CheckpointError, match="no tensor of SAM"):
        load_any(published, tmp_path / "stranger.safetensors")


def test_a_sam_that_contradicts_itself(published, tmp_path):
    edit(published, drop="model.visual_model")
    torch.save({**noise(SAM, seed=7), "image_encoder.neck.2.weight": torch.zeros(16, 9, 3, 3)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"neck\.conv2\.weight: shape \[16, 9, 3, 3\]"):
        load_any(published, tmp_path / "sam.pth")
