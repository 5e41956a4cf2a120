"""How weights were trained goes with them: through conversion, merge, --init_from and resume."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.tokenization import load_tokenizer
from model.checkpoints import PROVENANCE, Adapters, Provenance, differences, digest_base, load_any
from training import convert
from training.checkpoints.weights import read_weights, take_provenance
from training.export import export, parse_arguments
from training.run import train
from training.settings import parse_arguments as parse_training
from utils.errors import CheckpointError, ConfigError, MoraError

UNUSUAL = ("--visual_mode", "frame", "--answer_style", "fixed", "--lora_r", "4", "--lora_alpha", "64", "--conv_type",
           "llava_v1", "--lora_target_modules", "v_proj,o_proj", "--loc_mode", "frame")  # fmt: skip
"""Nothing as the base or the defaults have it."""


def training(base, corpus, folder, name, *flags):
    return train(
        parse_training(
            ["--version", str(base), "--dataset_dir", str(corpus), "--dataset", "groundmore", "--precision", "fp32",
             "--epochs", "1", "--steps_per_epoch", "3", "--warmup_steps", "1", "--grad_accumulation_steps", "1",
             "--num_frames", "2", "--workers", "0", "--picture_freq", "0", "--log_base_dir", str(folder),
             "--exp_name", name, "--device", "cpu", "--lr", "1e-3", *flags]
        )
    )  # fmt: skip


def exporting(base, weight, target, *flags):
    return export(
        parse_arguments(["--version", str(base), "--weight", str(weight), "--save_path", str(target), *flags])
    )


@pytest.fixture(scope="module")
def headless(tiny_base, tmp_path_factory):
    """The tiny base without a [LOC] head, so that either kind may be trained."""
    model, _ = load_any(tiny_base, loc_mode="none")
    folder = tmp_path_factory.mktemp("headless")
    model.save_pretrained(folder)
    load_tokenizer(tiny_base).save(folder)
    return folder


@pytest.fixture(scope="module")
def run(headless, tiny_corpus, tmp_path_factory, world):
    """A run trained with unusual settings; its checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    training(headless, tiny_corpus, folder, "a", *UNUSUAL)
    return folder / "a" / "ckpt_model"


def with_changed_weights(base, folder, word: str, change=torch.neg):
    """A copy of a base, one tensor of which is another."""
    shutil.copytree(base, folder)
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if word in name)
    state[name] = change(state[name]).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def converted(run, target, how: str):
    """The checkpoint's weights, as each converter leaves them."""
    if how == "the folder itself":
        return run
    if how == "our own":
        assert convert.main([str(run), str(target.with_suffix(".safetensors"))]) == 0
        return target.with_suffix(".safetensors")
    more = ["--max_shard_size", "200KB"] if how == "zero_to_fp32.py in shards" else []
    command = [sys.executable, str(run / "zero_to_fp32.py"), str(run), str(target), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (len(list(target.glob("*.bin"))) > 1) == bool(more)
    return target


@pytest.mark.parametrize("how", ["the folder itself", "our own", "zero_to_fp32.py", "zero_to_fp32.py in shards"])
def test_every_setting_survives_every_conversion(headless, run, tmp_path, how, capsys):
    folder = exporting(headless, converted(run, tmp_path / "fp32", how), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    told = {name: config[name] for name in ("visual_mode", "answer_style", "template", "loc_mode")}
    assert told == {"visual_mode": "frame", "answer_style": "fixed", "template": "llava_v1", "loc_mode": "frame"}
    tokenizer = load_tokenizer(folder)
    assert config["loc_token_id"] == tokenizer.id_of("[LOC]") and config["seg_token_id"] == tokenizer.id_of("[SEG]")
    state, base = read_weights(run), load_file(headless / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.o_proj"
    product = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    expected = base[f"{name}.weight"] + 64 / 4 * product
    torch.testing.assert_close(load_any(folder)[0].state_dict()[f"{name}.weight"], expected, atol=1e-6, rtol=0)
    assert product.abs().max() > 1e-6 and "NOT CHECKED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--visual_mode", "video"), ["--visual_mode: video", "frame"]),
        (("--conv_type", "plain"), ["--conv_type: plain", "llava_v1"]),
        (("--answer_style", "name"), ["--answer_style: name", "fixed"]),
        (("--loc_mode", "global"), ["--loc_mode", "--loc_mode frame"]),
        (("--seg_only",), ["--seg_only", "--loc_mode frame"]),
        (("--lora_alpha", "16"), ["--lora_alpha: 16", "64"]),
        (("--lora_r", "8"), ["--lora_r: 8", "4"]),
        (("--lora_target_modules", "q_proj,v_proj"), ["--lora_target_modules", "o_proj,v_proj"]),
        (("--trainable", "all"), ["--trainable: all", "default"]),
        (("--visual_mode", "video", "--lora_alpha", "16"), ["2 problems"]),
    ],
)
def test_a_flag_that_contradicts_the_weights_is_an_error(headless, run, tmp_path, flags, named):
    with pytest.raises(ConfigError) as caught:
        exporting(headless, run, tmp_path / "out", *flags)
    assert all(word in str(caught.value) for word in named), caught.value
    assert not (tmp_path / "out").exists()


def test_flags_that_agree_are_accepted(headless, run, tmp_path):
    assert exporting(headless, run, tmp_path / "out", *UNUSUAL, "--lora_target_modules", "o_proj,v_proj").is_dir()


@pytest.mark.parametrize("word", ["self_attn.q_proj", "vision_tower.", "sam.vision_encoder.", "projector."])
def test_another_base_is_refused_and_the_same_elsewhere_is_not(headless, run, tmp_path, word):
    other = with_changed_weights(headless, tmp_path / "other", word)
    with pytest.raises(CheckpointError, match="another base than the one it was trained on") as caught:
        exporting(other, run, tmp_path / "out")
    part = {"self_attn.q_proj": "language_model"}.get(word, word.split(".")[0])
    assert f"other weights in {part}" in str(caught.value)
    shutil.copytree(headless, tmp_path / "moved")
    assert exporting(tmp_path / "moved", run, tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config["text_config"].update(rms_norm_eps=1e-3), "text_config.rms_norm_eps"),
        (lambda config: config.update(clip_resize="pad"), "clip_resize"),
        (lambda config: config["vision_config"].update(layer_norm_eps=1e-2), "vision_config.layer_norm_eps"),
    ],
)
def test_a_base_in_another_network_is_refused(headless, run, tmp_path, change, named):
    other = tmp_path / "other"
    shutil.copytree(headless, other)
    config = json.loads((other / "config.json").read_text())
    change(config)
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(MoraError, match=named):
        exporting(other, run, tmp_path / "out")


def test_a_base_with_another_tokenizer_is_refused(headless, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(headless, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[300][0], vocabulary[301][0] = vocabulary[301][0], vocabulary[300][0]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tokenizer: another one"):
        exporting(other, run, tmp_path / "out")


def test_weights_that_say_nothing_are_asked_about(headless, run, tmp_path, capsys):
    state = read_weights(run)
    del state[PROVENANCE]
    save_file(state, tmp_path / "foreign.safetensors")
    with pytest.raises(ConfigError) as caught:
        exporting(headless, tmp_path / "foreign.safetensors", tmp_path / "out")
    for flag in ("--visual_mode", "--conv_type", "--answer_style", "--lora_alpha"):
        assert flag in str(caught.value)
    flags = ("--visual_mode", "frame", "--conv_type", "llava_v1", "--answer_style", "fixed", "--lora_alpha", "64")
    told = exporting(headless, tmp_path / "foreign.safetensors", tmp_path / "a", *flags, "--precision", "fp32")
    assert "NOT CHECKED" in capsys.readouterr().out
    known = exporting(headless, run, tmp_path / "b")
    assert (told / "model.safetensors").read_bytes() == (known / "model.safetensors").read_bytes()


def test_a_checkpoint_of_an_earlier_version_is_understood(headless, run, tmp_path):
    """It has config.json and run.json, and neither the tensor nor the base's digest."""
    state = read_weights(run)
    del state[PROVENANCE]
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("config.json", "run.json", "latest"):
        shutil.copy(run / name, folder)
    (folder / (run / "latest").read_text()).mkdir()
    trained = take_provenance(folder, state)
    assert trained.adapters == Adapters(4, 64.0, ("o_proj", "v_proj")) and trained.network["visual_mode"] == "frame"
    assert trained.base == {}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--visual_mode", "pooled", "--loc_mode", "global"), "visual_mode: trained with 'frame', here 'pooled'"),
        (("--conv_type", "plain"), "template: trained with 'llava_v1', here 'plain'"),
        (("--lora_alpha", "16"), "LoRA: trained with --lora_r 4 --lora_alpha 64"),
        (("--answer_style", "name"), "answer_style: trained with 'fixed', here 'name'"),
    ],
)
def test_init_from_and_resume_refuse_another_network(headless, run, tiny_corpus, tmp_path, world, flags, named):
    with pytest.raises(CheckpointError, match=named):
        training(headless, tiny_corpus, tmp_path, "b", *UNUSUAL, *flags, "--init_from", str(run))
    shutil.copytree(run, tmp_path / "a" / "ckpt_model")
    with pytest.raises(CheckpointError, match=named):
        training(headless, tiny_corpus, tmp_path, "a", *UNUSUAL, *flags, "--epochs", "2")


def test_init_from_and_resume_refuse_another_base(headless, run, tiny_corpus, tmp_path, world):
    other = with_changed_weights(headless, tmp_path / "other", "self_attn.q_proj")
    shutil.copytree(run, tmp_path / "a" / "ckpt_model")
    for name, more in (("b", ("--init_from", str(run))), ("a", ("--epochs", "2"))):
        with pytest.raises(CheckpointError, match="another base than the one it was trained on"):
            training(other, tiny_corpus, tmp_path, name, *UNUSUAL, *more)
    shutil.copytree(headless, tmp_path / "moved")
    assert training(tmp_path / "moved", tiny_corpus, tmp_path, "a", *UNUSUAL, "--epochs", "2") == 6
    moved = take_provenance(tmp_path, read_weights(tmp_path / "a" / "ckpt_model"))
    assert moved.base_name == str(tmp_path / "moved") and moved.base == digest_base(headless)


def test_a_loc_head_may_come_with_init_from(headless, tiny_corpus, tmp_path, world):
    training(headless, tiny_corpus, tmp_path, "first", "--seg_only")
    first = tmp_path / "first" / "ckpt_model"
    assert training(headless, tiny_corpus, tmp_path, "second", "--loc_mode", "global", "--init_from", str(first)) == 3
    folder = exporting(headless, first, tmp_path / "exported")
    more = ("--lora_r", "0", "--loc_mode", "global", "--init_from", str(folder))
    # Its checkpoints would lack the merged matrices, which are not the base's.
    with pytest.raises(CheckpointError, match="does not train them.*q_proj.*give that as --version"):
        training(headless, tiny_corpus, tmp_path, "third", *more)
    everything = ("--trainable", "all", *more)
    assert training(headless, tiny_corpus, tmp_path, "third", *everything) == 3, "an export brings every tensor itself"


def test_damaged_words_are_refused(run, tmp_path):
    state = read_weights(run)
    for tensor in (state[PROVENANCE][:-3], torch.full((5,), 200, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(CheckpointError, match=f"w.pt: its tensor '{PROVENANCE}' is damaged"):
            take_provenance(tmp_path / "w.pt", {PROVENANCE: tensor})
    for value in ([], {}, {"format": 9}, {"format": 1, "network": 3, "adapters": None, "trainable": "all"}):
        with pytest.raises(CheckpointError, match="cannot be read"):
            Provenance.from_dict(value, "w.pt")
    floats = take_provenance("w.pt", {PROVENANCE: state[PROVENANCE].float()})  # what older converters make of it
    assert floats == take_provenance("w.pt", {PROVENANCE: state[PROVENANCE]})


def test_what_only_one_side_knows_is_no_contradiction():
    one = Provenance({"a": 1, "deep": {"b": 2, "new_field": 3}}, None, "all")
    other = Provenance({"a": 1, "deep": {"b": 2}, "newer": 0}, None, "all", {"sam": "x"}, "here", "t")
    assert differences(one, other) == []
    assert differences(one, Provenance({"a": 2, "deep": {"b": 4}}, None, "all")) == [
        "a: trained with 1, here 2", "deep.b: trained with 2, here 4",
    ]  # fmt: skip


def test_tokenizers_that_do_the_same_have_one_digest(tiny_base, tmp_path):
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).digest() == tokenizer.digest()
    before = tokenizer.digest()
    tokenizer.add_tokens(["[NEW]"])
    assert tokenizer.digest() != before
