"""The flags of train_qwen_ds.py: the published ones and their defaults, and which program a base is for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from training.assembly import build_parts
from training.settings import build_parser, parse_arguments
from utils.errors import ConfigError
from utils.flags import values_of


def arguments(tmp_path, *extra: str) -> list[str]:
    (tmp_path / "base").mkdir(exist_ok=True)
    return ["--version", str(tmp_path / "base"), "--dataset_dir", str(tmp_path), "--precision", "fp32", *extra]


def parse(tmp_path, *extra: str) -> dict:
    return values_of(parse_arguments(arguments(tmp_path, *extra), "qwen3_vl"))


def test_the_published_defaults(tmp_path):
    values = parse(tmp_path, "--min_pixels", "200704", "--qwen_max_pixels", "802816", "--loc_mode", "global",
                   "--attn_implementation", "sdpa")  # fmt: skip
    assert (values["min_pixels"], values["max_pixels"], values["model_max_length"]) == (200704, 802816, 4096)
    assert (values["steps_per_epoch"], values["epochs"], values["num_frames"]) == (1000, 20, 5)
    assert (values["lora_r"], values["lora_alpha"], values["lora_target_modules"]) == (8, 16, "q_proj,v_proj")
    asked = ("readout", "frames_as", "timestamps", "answer_style", "conv_type", "visual_mode")
    assert {parse(tmp_path)[name] for name in asked} == {None}, "what is not asked for is the base's"


def test_each_program_has_the_flags_of_its_backbone():
    llava, qwen = (" ".join(build_parser(name).format_help().split()) for name in ("llava", "qwen3_vl"))
    for flag in ("--min_pixels", "--max_pixels", "--frames_as", "--timestamps", "--readout"):
        assert flag in qwen and flag not in llava
    assert "TEXT tokens" in llava and "visual ones included" in qwen


def test_every_mistake_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, "--visual_mode", "pooled", "--conv_type", "llava_v1", "--min_pixels", "9", "--max_pixels", "4",
              "--model_max_length", "1")  # fmt: skip
    message = str(caught.value)
    assert message.startswith("train_qwen_ds.py cannot start")
    for flag in ("--visual_mode", "--conv_type", "--min_pixels", "--model_max_length"):
        assert f"- {flag}: " in message, flag


@pytest.mark.parametrize(("base", "program", "right"), [("llava", "qwen3_vl", "train_ds.py"),
                                                        ("qwen3_vl", "llava", "train_qwen_ds.py")])  # fmt: skip
def test_a_base_of_the_other_backbone_is_told_its_program(tmp_path, tiny_base, qwen_base, base, program, right):
    folder = {"llava": tiny_base, "qwen3_vl": qwen_base}[base]
    argv = ["--version", str(folder), *arguments(tmp_path)[2:]]
    settings = parse_arguments(argv, program)
    with pytest.raises(ConfigError, match=f"its backbone is {base}, .* use {right}$"):
        build_parts(settings.model, settings.trainable, 0, settings.compute.dtype)


def test_the_attention_is_chosen_once_and_said(tmp_path, qwen_base):
    argv = ["--version", str(qwen_base), *arguments(tmp_path)[2:]]
    settings = parse_arguments(argv, "qwen3_vl")
    parts = build_parts(settings.model, settings.trainable, 0, settings.compute.dtype, "eager")
    assert "attention: text eager, vision eager" in parts.describe()
    network = parts.model.language_model.model
    assert {network.visual.config._attn_implementation, network.language_model.config._attn_implementation} == {"eager"}


def test_the_program_itself_runs(project_root):
    done = subprocess.run(
        [sys.executable, "train_qwen_ds.py", "--version", "/nowhere/base"], cwd=project_root, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "train_qwen_ds.py cannot start" in done.stderr and "/nowhere/base" in done.stderr
