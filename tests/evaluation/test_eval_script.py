"""The Slurm script: which programs it runs with which flags, with a stand-in for Python that writes them down."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

STAND_IN = """#!/usr/bin/env bash
echo "$@" >> "$LOG_OF_CALLS"
case "$1" in
  */zero_to_fp32.py) touch "$3" ;;
  merge_lora*)
    sleep "${MERGE_SECONDS:-0}"
    while [ "$1" != --save_path ]; do shift; done
    mkdir -p "$2"; touch "$2/config.json" ;;
esac
"""


@pytest.fixture
def launch(tmp_path, project_root):
    """Run the script with environment variables; returns (exit code, calls of Python, stderr)."""
    python, log = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(**variables) -> tuple[int, list[str], str]:
        if "MERGE_SECONDS" not in variables:
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


def test_a_deepspeed_checkpoint_is_converted_merged_and_evaluated_once(launch, tmp_path):
    deepspeed = checkpoint(tmp_path / "ckpt_model_epoch_020", "latest", "zero_to_fp32.py")
    variables = {"CKPT_DIR": deepspeed, "BASE_MODEL": "base", "EVAL_NAME": "e20", "SAM_CKPT": "sam.pth"}
    code, calls, _ = launch(**variables)
    export = f"{tmp_path}/exported/e20"
    assert code == 0 and calls == [
        f"{deepspeed}/zero_to_fp32.py {deepspeed} {export}/fp32_model_state.pt.partial",
        f"merge_lora_weights_and_save_hf_model.py --version base --weight {export}/fp32_model_state.pt "
        f"--save_path {export}/hf --conv_type llava_llama_2 --vision_pretrained sam.pth --loc_mode global",
        f"evaluate_groundmore.py --version {export}/hf --conv_type llava_llama_2 --vision_pretrained sam.pth "
        "--video_root groundmore_videos --meta_file groundmore_test.json "
        f"--output_dir {tmp_path}/eval_outputs/e20 --result_file {tmp_path}/eval_results/e20.txt "
        "--num_frames 20 --force_seg_token --force_loc_token --use_loc_refine --loc_threshold 0.5",
    ]
    assert len(launch(**variables)[1]) == 1  # exported already
    code, calls, error = launch(**{**variables, "BASE_MODEL": "another"})
    assert code == 2 and calls == [] and "choose another EVAL_NAME" in error


def test_switches(launch, tmp_path):
    model = checkpoint(tmp_path / "model", "config.json")
    code, calls, _ = launch(
        CKPT_DIR=model, EVAL_NAME="x", NUM_FRAMES="5", SEG_ONLY="1", FORCE_SEG_TOKEN="0", VIDEO_ROOT="v", META_FILE="m"
    )
    assert code == 0 and len(calls) == 1
    assert calls[0].startswith(f"evaluate_groundmore.py --version {model} --conv_type llava_llama_2 --video_root v ")
    assert calls[0].endswith("--num_frames 5 --seg_only")
    _, calls, _ = launch(CKPT_DIR=model, EVAL_NAME="x", FORCE_LOC_TOKEN="0", LOC_THRESHOLD="0.3")
    assert calls[0].endswith("--num_frames 20 --force_seg_token --use_loc_refine --loc_threshold 0.3")
    _, calls, _ = launch(CKPT_DIR=model, EVAL_NAME="x", USE_LOC_REFINE="0")
    assert calls[0].endswith("--num_frames 20 --force_seg_token --force_loc_token")


def test_several_gpus(launch, tmp_path):
    model = checkpoint(tmp_path / "model", "config.json")
    _, calls, _ = launch(CKPT_DIR=model, EVAL_NAME="x", NUM_GPUS="4")
    words = "-m torch.distributed.run --standalone --nproc_per_node 4 evaluate_groundmore.py --version"
    assert len(calls) == 1 and calls[0].startswith(words)


def test_jobs_of_an_array_export_once(launch, tmp_path):
    deepspeed = checkpoint(tmp_path / "c", "zero_to_fp32.py")
    variables = {"CKPT_DIR": deepspeed, "BASE_MODEL": "base", "EVAL_NAME": "x", "MERGE_SECONDS": "0.3"}
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: launch(**variables), range(3)))
    assert [code for code, _, _ in done] == [0] * 3, done
    calls = (tmp_path / "calls").read_text().splitlines()
    counts = [sum(word in call for call in calls) for word in ("zero_to_fp32", "merge_lora", "evaluate_ground")]
    assert counts == [1, 1, 3]


def test_what_is_missing_is_named(launch, tmp_path):
    for variables, word in (
        ({}, "CKPT_DIR"),
        ({"CKPT_DIR": str(tmp_path)}, "EVAL_NAME"),
        ({"CKPT_DIR": str(tmp_path), "EVAL_NAME": "x"}, "zero_to_fp32.py"),
    ):
        code, calls, error = launch(**variables)
        assert code != 0 and calls == [] and word in error
    deepspeed = checkpoint(tmp_path / "c", "zero_to_fp32.py")
    code, calls, error = launch(CKPT_DIR=deepspeed, EVAL_NAME="x")
    assert code != 0 and calls == [] and "BASE_MODEL" in error
