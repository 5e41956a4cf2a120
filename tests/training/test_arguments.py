"""Flags: what is refused, and that all mistakes are named at once."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from training.settings import build_parser
from training.settings import parse_arguments as parse_settings
from utils.errors import ConfigError
from utils.flags import values_of


def parse_arguments(argv: list[str]) -> SimpleNamespace:
    """All values, whatever their group."""
    return SimpleNamespace(**values_of(parse_settings(argv)))


def arguments(tmp_path, *extra: str) -> list[str]:
    (tmp_path / "base").mkdir(exist_ok=True)
    return ["--version", str(tmp_path / "base"), "--dataset_dir", str(tmp_path), "--precision", "fp32", *extra]


def test_the_published_command_is_understood(tmp_path):
    args = parse_arguments(
        arguments(
            tmp_path, "--dataset", "refer_video_seg||mevis", "--sample_rates", "1,1", "--conv_type", "llava_llama_2",
            "--steps_per_epoch", "500", "--epochs", "20", "--num_frames", "5", "--seg_only", "--keep_ckpt_every", "5",
            "--vision-tower", "openai/clip-vit-large-patch14", "--local_rank=0",
        )
    )  # fmt: skip
    assert args.seg_only and args.vision_tower == "openai/clip-vit-large-patch14"
    assert (args.lr, args.beta1, args.beta2, args.weight_decay) == (3e-4, 0.9, 0.95, 0.0)
    assert (args.ce_loss_weight, args.bce_loss_weight, args.dice_loss_weight, args.loc_loss_weight) == (1, 2, 0.5, 1)
    assert (args.lora_r, args.lora_alpha, args.warmup_steps, args.grad_clip) == (8, 16, 100, 1.0)


def test_switches_can_be_switched_off(tmp_path):
    args = parse_arguments(arguments(tmp_path, "--no-auto_resume", "--no-gradient_checkpointing"))
    assert not args.auto_resume and not args.gradient_checkpointing


def test_rates_default_to_equal(tmp_path):
    assert parse_arguments(arguments(tmp_path, "--dataset", "mevis||groundmore")).sample_rates == "1,1"


def test_every_mistake_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse_arguments(
            ["--version", "/nowhere/base", "--dataset_dir", str(tmp_path / "absent"), "--dataset", "mevis",
             "--sample_rates", "1,1", "--epochs", "0", "--lr", "0", "--beta2", "1.5", "--seg_only", "--loc_mode",
             "global", "--vision_pretrained", "/nowhere/sam.pth", "--init_from", "/nowhere/weights"]
        )  # fmt: skip
    message = str(caught.value)
    for flag in (
        "--version", "--dataset_dir", "--sample_rates", "--epochs", "--lr", "--beta2", "--seg_only",
        "--vision_pretrained", "--init_from",
    ):  # fmt: skip
        assert f"- {flag}: " in message, flag


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (("--sample_rates", "1,x"), "--sample_rates"),
        (("--sample_rates", "0,0"), "--sample_rates"),
        (("--warmup_steps", "11", "--epochs", "2", "--steps_per_epoch", "5"), "--warmup_steps: 11 is more than all 10"),
        (("--batch_size", "0"), "--batch_size: 0 is too small"),
        (("--seed", "9" * 400), "--seed: 9+ is too large"),
        (("--lora_alpha", "0"), "--lora_alpha: 0 would scale every adapter to nothing"),
        (("--lora_alpha", "-16"), "--lora_alpha: -16"),
        (("--vision-tower", "/nowhere"), "--vision-tower: /nowhere: no such folder"),
        (("--vision-tower", "./clip"), "--vision-tower: ./clip: no such folder"),
    ],
)
def test_single_mistakes(tmp_path, extra, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_arguments(arguments(tmp_path, *extra))


def test_what_looks_like_those_mistakes_and_is_none(tmp_path):
    args = parse_arguments(arguments(tmp_path, "--lora_r", "0", "--lora_alpha", "0"))
    assert (args.lora_r, args.lora_alpha) == (0, 0)
    (tmp_path / "clip").mkdir()
    assert parse_arguments(arguments(tmp_path, "--vision-tower", "clip")).vision_tower == "clip"  # beside the base


def test_patterns_may_be_repeated(tmp_path):
    patterns = ("--allow_missing", "a.*", "--allow_missing", "b.*", "--allow_unexpected", "*loc*")
    args = parse_arguments(arguments(tmp_path, *patterns))
    assert (args.allow_missing, args.allow_unexpected) == (["a.*", "b.*"], ["*loc*"])
    assert parse_arguments(arguments(tmp_path)).allow_missing == []


def test_a_gpu_run_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device.*no GPU"):
        parse_arguments(arguments(tmp_path, "--device", "cuda"))
    with pytest.raises(ConfigError, match="--precision: fp16 needs a GPU"):
        parse_arguments(arguments(tmp_path, "--precision", "fp16"))


@pytest.mark.parametrize("flag", ["--no_eval", "--val_dataset", "--load_in_4bit", "--explanatory", "--vis_save_path"])
def test_dead_flags_of_the_original_are_refused(tmp_path, flag, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(arguments(tmp_path, flag, "1"))
    assert "unrecognized arguments" in capsys.readouterr().err


def test_help_teaches():
    text = build_parser().format_help()
    assert "Two stages" in text and "deepspeed --num_gpus=2 train_ds.py" in text
    for action in build_parser()._actions:
        assert action.help, action.option_strings


def test_mistakes_end_the_program_with_a_message(project_root):
    run = subprocess.run(
        [sys.executable, "train_ds.py", "--version", "/nowhere", "--dataset_dir", "/nowhere"],
        cwd=project_root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("ConfigError: train_ds.py cannot start (2 problems)")
    assert "Traceback" not in run.stderr
