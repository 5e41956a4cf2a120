"""Flags and exit codes of the program: an answer without [SEG], towers, left-out tensors, compiled layers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.tokenization import load_tokenizer
from evaluate_groundmore import main
from evaluation.engine.opening import attach_tokens, load_model
from evaluation.settings import parse_arguments
from model import presets


@pytest.fixture(scope="module")
def model_folder(project_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    fields = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), **fields))
    attach_tokens(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def flags(model_folder, corpus_paths, tmp_path):
    return [
        "--version", str(model_folder), "--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]),
        "--output_dir", str(tmp_path / "out"), "--num_frames", "3", "--max_new_tokens", "2", "--precision", "fp32",
        "--device", "cpu", "--workers", "0", "--pictures", "0", "--limit", "1",
    ]  # fmt: skip


def test_answers_without_seg_are_told_by_the_exit_code(flags, tmp_path, capsys):
    assert main(flags) == 1  # random weights do not say [SEG] in two tokens
    assert "NO [SEG] in 2 answers; each counts as empty masks" in capsys.readouterr().out
    counts = json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]
    assert counts["questions_without_seg"] == 2 and counts["questions_failed"] == 0
    assert main([*flags, "--force_seg_token", "--overwrite"]) == 0
    assert "NO [SEG]" not in capsys.readouterr().out


def test_a_tower_that_is_not_there(flags, capsys):
    assert main([*flags, "--vision-tower", "/nowhere/clip"]) == 2
    assert "--vision-tower: /nowhere/clip: no such folder" in capsys.readouterr().err


def test_tensors_are_left_out_by_name_only(flags, model_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (weights,) = folder.glob("*.safetensors")
    save_file({**load_file(weights), "other_head.weight": torch.zeros(2)}, weights, {"format": "pt"})
    flags = [*flags, "--version", str(folder), "--force_seg_token"]
    assert main(flags) == 2
    assert "other_head.weight" in capsys.readouterr().err
    assert main([*flags, "--allow_unexpected", "other_head*"]) == 0


def test_compiled_layers_are_asked_for_and_are_another_setting(flags, capsys):
    def opened(*extra):
        settings = parse_arguments([*flags, *extra])
        return load_model(settings.model, settings.compute)[0]

    assert opened("--compile").sam.fast_encoder.compile
    assert not opened().sam.fast_encoder.compile
    assert main([*flags, "--force_seg_token"]) == 0
    assert main([*flags, "--force_seg_token", "--compile"]) == 2
    assert "compile: False -> True" in capsys.readouterr().err
