"""The Slurm scripts give train_ds.py flags it understands, with the published defaults."""

from __future__ import annotations

import os
import subprocess

import pytest

from training.arguments import build_parser


def flags_of(project_root, tmp_path, script: str, expect_failure: bool = False, **variables: str):
    """What the script would start, with a stand-in for Python that prints its arguments."""
    recorder = tmp_path / "python"
    recorder.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    keep = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    run = subprocess.run(
        ["bash", f"scripts/{script}", "--seed", "7"], cwd=project_root, capture_output=True, text=True, timeout=30,
        env={**keep, "PYTHON": str(recorder), **variables},
    )  # fmt: skip
    if expect_failure:
        return run
    assert run.returncode == 0, run.stderr
    words = run.stdout.splitlines()
    return words, build_parser().parse_args(words[words.index("train_ds.py") + 1 :])


def test_stage_1(project_root, tmp_path):
    words, args = flags_of(
        project_root, tmp_path, "train_mora_h200.sbatch", SAM_CKPT="/sam.pth", DATASET_DIR="/data",
        LOG_BASE_DIR="/logs", GPUS_PER_NODE="4", EXP_NAME="a name with spaces",
    )  # fmt: skip
    assert "--nproc_per_node=4" in words
    assert (args.version, args.vision_pretrained) == ("xinlai/LISA-7B-v1", "/sam.pth")
    assert (args.dataset, args.sample_rates, args.seg_only) == ("refer_video_seg||mevis", "1,1", True)
    assert (args.num_frames, args.steps_per_epoch, args.epochs) == (5, 500, 20)
    assert (args.batch_size, args.grad_accumulation_steps, args.keep_ckpt_every) == (1, 10, 5)
    assert (args.exp_name, args.conv_type) == ("a name with spaces", "llava_llama_2")
    assert (args.seed, args.auto_resume) == (7, True)


@pytest.mark.parametrize("mode", ["global", "frame"])
def test_stage_2(project_root, tmp_path, mode):
    _, args = flags_of(
        project_root, tmp_path, "finetune_groundmore_loc_h200.sbatch", BASE_MODEL="/exported", LOC_MODE=mode,
        LOC_LOSS_WEIGHT="0.5", INIT_FROM="/weights",
    )  # fmt: skip
    assert (args.version, args.loc_mode, args.loc_loss_weight) == ("/exported", mode, 0.5)
    assert (args.dataset, args.sample_rates, args.seg_only) == ("groundmore", "1", False)
    assert (args.vision_pretrained, args.init_from) == (None, "/weights")
    assert args.exp_name == f"mora-lisa7b-f5-groundmore-loc-{mode}"


@pytest.mark.parametrize(
    ("script", "variable"),
    [("train_mora_h200.sbatch", "SAM_CKPT"), ("finetune_groundmore_loc_h200.sbatch", "BASE_MODEL")],
)
def test_what_must_be_set_is_asked_for(project_root, tmp_path, script, variable):
    run = flags_of(project_root, tmp_path, script, expect_failure=True)
    assert run.returncode != 0 and variable in run.stderr
