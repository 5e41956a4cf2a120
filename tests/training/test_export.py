"""Merging: the same numbers as before merging, from every spelling of names, and nothing silently left out."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datasets.tokenization import load_tokenizer
from model.adapters import add_lora, set_trainable
from model.checkpoints import load_any
from training.checkpoints.weights import adapter_rank, fit_weights, plain_names
from training.export import export, parse_arguments
from training.run import train
from training.settings import parse_arguments as parse_training
from utils.errors import CheckpointError, ConfigError

HOW_IT_WAS_TRAINED = ("--visual_mode", "video", "--conv_type", "plain", "--answer_style", "name")
"""What weights that were not written by this program's training do not say."""


@pytest.fixture(scope="module")
def trained(tiny_base):
    """A model with adapters, everything trainable moved away from the base."""
    model, _ = load_any(tiny_base)
    add_lora(model, r=4, alpha=8, dropout=0.05)
    names = set_trainable(model, "default")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval(), names


def weights(trained, style: str, frozen: bool) -> dict[str, torch.Tensor]:
    """The state dict as different programs write it."""
    model, names = trained
    state = {name: value for name, value in model.state_dict().items() if frozen or name in set(names)}
    if style == "peft 0.4":  # no .base_layer
        state = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    if style == "adapter file":
        state = {name.replace(".default.weight", ".weight"): value for name, value in state.items()}
    if style in ("wrapped", "peft 0.4"):
        state = {f"base_model.model.{name}": value for name, value in state.items()}
    if style == "data parallel":
        state = {f"module.{name}": value for name, value in state.items()}
    return state


def run_export(tiny_base: Path, weight: Path, target: Path, *extra: str) -> Path:
    return export(
        parse_arguments(
            ["--version", str(tiny_base), "--weight", str(weight), "--save_path", str(target), "--precision", "fp32",
             "--lora_alpha", "8", *HOW_IT_WAS_TRAINED, *extra]
        )
    )  # fmt: skip


def logits(model) -> torch.Tensor:
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        return model.language_model(input_ids=ids).logits


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("style", ["plain", "wrapped", "peft 0.4", "data parallel", "adapter file"])
def test_merged_equals_unmerged_in_every_spelling(tiny_base, trained, tmp_path, style, frozen):
    torch.save(weights(trained, style, frozen), tmp_path / "fp32_model_state.pt")
    folder = run_export(tiny_base, tmp_path / "fp32_model_state.pt", tmp_path / "merged")
    merged, report = load_any(folder)
    assert not report.missing and not report.unexpected
    expected = logits(trained[0])
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    assert not torch.allclose(logits(load_any(tiny_base)[0]), expected, atol=1e-2), "the weights must matter"
    for name, value in merged.state_dict().items():
        if not name.startswith("language_model.model.layers."):
            assert torch.equal(value, trained[0].state_dict()[name]), name
    assert load_tokenizer(folder).id_of("[LOC]") == merged.config.loc_token_id


def test_shards_and_safetensors(tiny_base, trained, tmp_path):
    from safetensors.torch import save_file

    state = weights(trained, "plain", frozen=False)
    names = sorted(state)
    shards = tmp_path / "shards"
    shards.mkdir()
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, shards / file)
        where.update(dict.fromkeys(part, file))
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    safe = tmp_path / "safe"
    safe.mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, safe / "model.safetensors")
    first = run_export(tiny_base, shards, tmp_path / "a")
    second = run_export(tiny_base, safe, tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_trained_tensor_that_is_absent_is_named(tiny_base, trained, tmp_path):
    state = weights(trained, "plain", frozen=True)
    del state["text_hidden_fcs.0.2.weight"]
    del state["language_model.model.layers.1.self_attn.v_proj.lora_A.default.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        run_export(tiny_base, tmp_path / "w.pt", tmp_path / "merged")
    assert "text_hidden_fcs.0.2.weight: missing" in str(caught.value)
    assert "layers.1.self_attn.v_proj.lora_A.weight: missing" in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_a_tensor_without_a_place_and_one_of_another_shape_are_named(tiny_base, trained, tmp_path):
    state = weights(trained, "plain", frozen=False)
    state["seg_token_temporal_module.weight"] = torch.zeros(3)
    state["loc_head.query.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        run_export(tiny_base, tmp_path / "w.pt", tmp_path / "merged")
    assert "seg_token_temporal_module.weight: [3]" in str(caught.value)
    assert "loc_head.query.bias: shape [7]" in str(caught.value)


def test_an_interrupted_export_leaves_the_old_folder(tiny_base, trained, tmp_path, monkeypatch):
    torch.save(weights(trained, "plain", frozen=False), tmp_path / "w.pt")
    folder = run_export(tiny_base, tmp_path / "w.pt", tmp_path / "merged")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.tokenization.FastTokenizer.save", full)
    with pytest.raises(CheckpointError, match="No space left.*untouched"):
        run_export(tiny_base, tmp_path / "w.pt", tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".old"))] == []


def test_rank_comes_from_the_weights_and_contradictions_are_refused(tiny_base, trained, tmp_path):
    state = plain_names(weights(trained, "wrapped", frozen=False))
    assert adapter_rank(state) == 4
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="--lora_r: 8, but the adapters in the weights have rank 4"):
        run_export(tiny_base, tmp_path / "w.pt", tmp_path / "merged", "--lora_r", "8")


def test_all_mistakes_in_the_flags_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["--version", "/nowhere/b", "--weight", "/nowhere/w", "--save_path", str(tmp_path / "file")])
    for flag in ("--version", "--weight", "--save_path"):
        assert f"- {flag}: " in str(caught.value)


def test_published_names_are_understood(trained):
    """What a 2025 training run of the original code leaves behind: LISA's names inside peft's."""
    model, names = trained
    state = {}
    for name in names:
        if name.startswith("language_model."):
            renamed = name.removeprefix("language_model.").replace(".base_layer.", ".")
        elif name.startswith("text_hidden_fcs."):
            renamed = f"model.{name}"
        else:
            continue
        state[f"base_model.model.{renamed}"] = model.state_dict()[name]
    tower = "base_model.model.model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"
    state[tower] = torch.zeros(model.config.vision_config.hidden_size)
    fresh = copy.deepcopy(model)
    report = fit_weights(fresh, plain_names(state), "published")
    assert not report.unexpected and not report.mismatched and report.loaded >= len(state) - 1


def test_the_published_pipeline_end_to_end(shared_data, tiny_corpus, tmp_path, world, monkeypatch):
    """Stage 1 on a LISA folder, export, stage 2 with either head, export: the commands of the original README."""
    golden = shared_data / "lisa_golden"
    monkeypatch.chdir(golden)
    sam = str(golden / "sam_tiny.pth")
    common = (
        "--dataset_dir", str(tiny_corpus), "--dataset", "groundmore", "--precision", "fp32", "--epochs", "1",
        "--steps_per_epoch", "3", "--warmup_steps", "2", "--grad_accumulation_steps", "1", "--num_frames", "2",
        "--workers", "0", "--picture_freq", "0", "--log_base_dir", str(tmp_path), "--vision_pretrained", sam,
        "--conv_type", "llava_llama_2",
    )  # fmt: skip
    train(parse_training(["--version", str(golden / "lisa_tiny"), "--seg_only", "--exp_name", "stage1", *common]))
    stage1 = export(
        parse_arguments(
            ["--version", str(golden / "lisa_tiny"), "--vision_pretrained", sam, "--conv_type", "llava_llama_2",
             "--seg_only", "--weight", str(tmp_path / "stage1" / "ckpt_model"), "--precision", "fp32", "--save_path",
             str(tmp_path / "exported1")]
        )
    )  # fmt: skip
    tokenizer = load_tokenizer(stage1)
    assert tokenizer.rule == "legacy" and tokenizer.id_of("[SEG]") == 480
    monkeypatch.chdir(tmp_path)
    for mode in ("global", "frame"):
        train(parse_training(["--version", str(stage1), "--loc_mode", mode, "--exp_name", mode, *common]))
        converted = tmp_path / f"{mode}_fp32"
        done = subprocess.run(
            [sys.executable, f"{mode}/ckpt_model/zero_to_fp32.py", f"{mode}/ckpt_model", str(converted)],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        folder = export(
            parse_arguments(
                ["--version", str(stage1), "--weight", str(converted), "--save_path", str(tmp_path / f"{mode}_model")]
            )
        )
        model, _ = load_any(folder)
        assert model.config.loc_mode == mode and model.config.loc_token_id == load_tokenizer(folder).id_of("[LOC]")
        assert model.dtype == torch.float32, "the precision of the training"
        assert model.get_input_embeddings().weight.shape[0] == 484
