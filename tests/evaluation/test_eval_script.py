"""The Slurm script: which programs it runs with which flags, with a stand-in for Python that writes them down."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

STAND_IN = """#!/usr/bin/env bash
echo "$@" >> "$LOG_OF_CALLS"
"""


@pytest.fixture
def launch(tmp_path, project_root):
    """Run the script with environment variables; returns (exit code, calls of Python, stderr)."""
    python, log = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(**variables) -> tuple[int, list[str], str]:
        log.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHON": str(python), "LOG_OF_CALLS": str(log), "LOG_BASE_DIR": str(tmp_path)}
        command = ["bash", "scripts/eval_groundmore_ckpt.sbatch"]
        done = subprocess.run(
            command, cwd=project_root, env={**environment, **variables}, capture_output=True, text=True, check=False
        )
        return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr

    return run


def checkpoint(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return str(folder)


def test_a_checkpoint_is_merged_and_evaluated(launch, tmp_path, project_root):
    # config.json is in every checkpoint of training, too; it does not make a model of it.
    deepspeed = checkpoint(tmp_path / "ckpt_model_epoch_020", "latest", "config.json", "zero_to_fp32.py")
    variables = {"CKPT_DIR": deepspeed, "BASE_MODEL": "base", "EVAL_NAME": "e20", "SAM_CKPT": "sam.pth"}
    code, calls, _ = launch(**variables)
    export = f"{tmp_path}/exported/e20"
    assert code == 0 and calls == [
        f"{project_root}/merge_lora_weights_and_save_hf_model.py --version base --weight {deepspeed} "
        f"--save_path {export}/hf --reuse --vision_pretrained sam.pth",
        f"{project_root}/evaluate_groundmore.py --version {export}/hf --vision_pretrained sam.pth "
        "--video_root groundmore_videos --meta_file groundmore_test.json "
        f"--output_dir {tmp_path}/eval_outputs/e20 --result_file {tmp_path}/eval_results/e20.txt "
        "--num_frames 20 --force_seg_token --force_loc_token --use_loc_refine --loc_threshold 0.5",
    ]
    _, calls, _ = launch(**variables, LOC_MODE="frame", CONV_TYPE="plain")
    assert "--conv_type plain" in calls[0] and "--loc_mode frame" in calls[0] and "--conv_type plain" in calls[1]
    _, calls, _ = launch(**variables, SEG_ONLY="1", LOC_MODE="frame")
    assert "--loc_mode" not in calls[0] and "--seg_only" not in calls[0] and calls[1].endswith("--seg_only")


def test_tilde_is_home_in_every_path(launch, tmp_path, project_root):
    deepspeed = checkpoint(tmp_path / "c", "latest")
    places = {name: f"~/{name}" for name in ("BASE_MODEL", "SAM_CKPT", "VISION_TOWER", "VIDEO_ROOT", "META_FILE")}
    _, calls, _ = launch(CKPT_DIR="~/c", EVAL_NAME="x", HOME=str(tmp_path), LOG_BASE_DIR="~/log", **places)
    assert len(calls) == 2 and deepspeed in calls[0] and "~" not in "".join(calls)
    assert f"--output_dir {tmp_path}/log/eval_outputs/x" in calls[1]


def test_switches(launch, tmp_path, project_root):
    model = checkpoint(tmp_path / "model", "config.json")
    code, calls, _ = launch(
        CKPT_DIR=model, EVAL_NAME="x", NUM_FRAMES="5", SEG_ONLY="1", FORCE_SEG_TOKEN="0", VIDEO_ROOT="v", META_FILE="m"
    )
    assert code == 0 and len(calls) == 1
    assert calls[0].startswith(f"{project_root}/evaluate_groundmore.py --version {model} --video_root v ")
    assert calls[0].endswith("--num_frames 5 --seg_only")
    _, calls, _ = launch(CKPT_DIR=model, EVAL_NAME="x", FORCE_LOC_TOKEN="0", LOC_THRESHOLD="0.3")
    assert calls[0].endswith("--num_frames 20 --force_seg_token --use_loc_refine --loc_threshold 0.3")
    _, calls, _ = launch(CKPT_DIR=model, EVAL_NAME="x", USE_LOC_REFINE="0")
    assert calls[0].endswith("--num_frames 20 --force_seg_token --force_loc_token")


def test_several_gpus(launch, tmp_path, project_root):
    model = checkpoint(tmp_path / "model", "config.json")
    _, calls, _ = launch(CKPT_DIR=model, EVAL_NAME="x", NUM_GPUS="4")
    words = "-m torch.distributed.run --standalone --nproc_per_node 4 "
    words += f"{project_root}/evaluate_groundmore.py --version"
    assert len(calls) == 1 and calls[0].startswith(words)


def test_what_is_missing_is_named(launch, tmp_path):
    for variables, word in (
        ({}, "CKPT_DIR"),
        ({"CKPT_DIR": str(tmp_path)}, "EVAL_NAME"),
        ({"CKPT_DIR": str(tmp_path), "EVAL_NAME": "x"}, "neither a checkpoint of training"),
    ):
        code, calls, error = launch(**variables)
        assert code != 0 and calls == [] and word in error
    deepspeed = checkpoint(tmp_path / "c", "latest")
    code, calls, error = launch(CKPT_DIR=deepspeed, EVAL_NAME="x")
    assert code != 0 and calls == [] and "BASE_MODEL" in error
