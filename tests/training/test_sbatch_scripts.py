"""The Slurm scripts give the programs flags that they understand, with the published defaults."""

from __future__ import annotations

import os
import subprocess

import pytest

from training.settings import build_parser


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
    program, backbone = ("train_qwen_ds.py", "qwen3_vl") if "qwen3" in script else ("train_ds.py", "llava")
    return words, build_parser(backbone).parse_args(words[words.index(f"{project_root}/{program}") + 1 :])


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
    assert args.conv_type is None, "the template is the base's own"


@pytest.mark.parametrize(
    ("script", "gpus", "steps", "variables"),
    [
        ("train_mora_qwen3_stage1_h200.sbatch", 4, 1000, {}),
        ("finetune_mora_qwen3_groundmore_h200.sbatch", 2, 500, {"INIT_FROM": "/stage1/ckpt_model_epoch_005"}),
    ],
)
def test_both_stages_on_qwen(project_root, tmp_path, script, gpus, steps, variables):
    words, args = flags_of(project_root, tmp_path, script, SAM_CKPT="/sam.pth", EXP_NAME="a name", **variables)
    assert f"--nproc_per_node={gpus}" in words
    assert (args.version, args.vision_pretrained) == ("Qwen/Qwen3-VL-8B-Instruct", "/sam.pth")
    assert (args.num_frames, args.steps_per_epoch, args.epochs, args.keep_ckpt_every) == (5, steps, 20, 5)
    assert (args.loc_mode, args.attn_implementation, args.model_max_length) == ("global", "flash_attention_2", 4096)
    assert (args.min_pixels, args.max_pixels, args.batch_size) == (200704, 802816, 1)
    assert (args.exp_name, args.seed, args.auto_resume, args.seg_only) == ("a name", 7, True, False)
    assert args.init_from == variables.get("INIT_FROM")
    assert args.dataset == ("groundmore" if variables else "refer_video_seg||mevis")
    changed = {"QWEN_VERSION": "~/qwen", "QWEN_MIN_PIXELS": "1", "QWEN_MAX_PIXELS": "2", "MODEL_MAX_LENGTH": "99",
               "ATTN_IMPLEMENTATION": "sdpa", "LOC_MODE": "frame", "GPUS_PER_NODE": "8", "HOME": "/me"}  # fmt: skip
    words, args = flags_of(project_root, tmp_path, script, SAM_CKPT="/sam.pth", **{**variables, **changed})
    assert (args.version, args.min_pixels, args.max_pixels, args.model_max_length) == ("/me/qwen", 1, 2, 99)
    assert (args.attn_implementation, args.loc_mode) == ("sdpa", "frame") and "--nproc_per_node=8" in words
    assert args.exp_name == (
        "mora-qwen3-vl-8b-groundmore-finetune-f5-frame-loc" if variables
        else "mora-qwen3-vl-8b-stage1-refytvos-mevis-f5"
    )  # fmt: skip


def test_qwen_weights_are_converted_if_they_are_a_checkpoint_and_evaluated(project_root, tmp_path):
    """What is started, with a stand-in for Python that prints its arguments."""
    recorder = tmp_path / "python"
    recorder.write_text('#!/usr/bin/env bash\nprintf "%s " "$@"; echo\n')
    recorder.chmod(0o755)
    (tmp_path / "ckpt").mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    given = {
        **keep,
        "PYTHON": str(recorder),
        "CKPT_DIR": f"{tmp_path}/ckpt",
        "EVAL_NAME": "e",
        "LOG_BASE_DIR": f"{tmp_path}/logs",
    }

    def lines(**more: str) -> list[str]:
        command = ["bash", "scripts/eval_groundmore_qwen_ckpt.sbatch", "--limit", "3"]
        done = subprocess.run(
            command, cwd=project_root, env={**given, **more}, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return [line.strip() for line in done.stdout.splitlines()]

    ending = (
        f"--video_root groundmore_videos --meta_file groundmore_test.json --output_dir {tmp_path}/logs/eval_outputs/e "
        f"--result_file {tmp_path}/logs/eval_results/e.txt --num_frames 20 "
    )
    begin = f"{project_root}/evaluate_groundmore_qwen.py --version Qwen/Qwen3-VL-8B-Instruct --weight "
    assert lines() == [f"{begin}{tmp_path}/ckpt {ending}--loc_threshold 0.5 --limit 3"], "weights as published"
    (tmp_path / "ckpt" / "latest").touch()
    weight = f"{tmp_path}/logs/exported/e/fp32_model_state.pt"
    assert lines(LOC_MODE="global", SAM_CKPT="/sam.pth") == [
        f"-m training.convert {tmp_path}/ckpt {weight} --reuse",
        f"{begin}{weight} --vision_pretrained /sam.pth {ending}--loc_mode global --loc_threshold 0.5 --limit 3",
    ]


def test_a_base_of_ones_own_keeps_its_template_and_its_sam(project_root, tmp_path):
    _, args = flags_of(project_root, tmp_path, "train_mora_h200.sbatch", BASE_MODEL="/mine")
    assert (args.version, args.conv_type, args.vision_pretrained) == ("/mine", None, None)


@pytest.mark.parametrize("script", ["train_mora_h200.sbatch", "finetune_groundmore_loc_h200.sbatch"])
def test_tilde_is_home_in_every_path(project_root, tmp_path, script):
    places = {name: f"~/{name}" for name in ("BASE_MODEL", "SAM_CKPT", "DATASET_DIR", "LOG_BASE_DIR", "INIT_FROM")}
    words, args = flags_of(project_root, tmp_path, script, HOME="/home/me", **places)
    assert "~" not in "".join(words)
    assert (args.version, args.log_base_dir) == ("/home/me/BASE_MODEL", "/home/me/LOG_BASE_DIR")


def test_every_job_that_may_be_queued_again_keeps_its_log(project_root):
    scripts = sorted((project_root / "scripts").glob("*.sbatch"))
    assert len(scripts) == 6
    for script in scripts:
        text = script.read_text()
        assert "#SBATCH --requeue\n" in text and "#SBATCH --open-mode=append\n" in text, script


@pytest.mark.parametrize(
    ("submitted", "here"), [("checkout", "elsewhere"), ("elsewhere", "checkout"), (None, "checkout")]
)
def test_slurms_copy_of_a_script_finds_the_checkout(project_root, tmp_path, submitted, here):
    """Slurm runs a copy of the script in its spool; a shell of salloc has the folder of its own submission."""
    spool, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    spool.mkdir()
    elsewhere.mkdir()
    places = {"checkout": project_root, "elsewhere": elsewhere}
    copy = spool / "slurm_script"
    copy.write_text((project_root / "scripts" / "eval_groundmore_ckpt.sbatch").read_text())
    keep = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = {**keep, "PYTHON": "echo", "CKPT_DIR": str(tmp_path / "m"), "EVAL_NAME": "x"}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").touch()
    if submitted:
        environment["SLURM_SUBMIT_DIR"] = str(places[submitted])
    done = subprocess.run(
        ["bash", str(copy)], cwd=places[here], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and f"{project_root}/evaluate_groundmore.py" in done.stdout, done.stderr
    lost = {**environment, "SLURM_SUBMIT_DIR": str(elsewhere)}
    done = subprocess.run(["bash", str(copy)], cwd=elsewhere, env=lost, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and f"SLURM_SUBMIT_DIR={elsewhere}" in done.stderr and "MORA_ROOT" in done.stderr
    found = {**lost, "MORA_ROOT": str(project_root)}
    done = subprocess.run(["bash", str(copy)], cwd=elsewhere, env=found, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("script", "variable"),
    [
        ("train_mora_h200.sbatch", "SAM_CKPT"),
        ("finetune_groundmore_loc_h200.sbatch", "BASE_MODEL"),
        ("train_mora_qwen3_stage1_h200.sbatch", "SAM_CKPT"),
        ("finetune_mora_qwen3_groundmore_h200.sbatch", "INIT_FROM"),
        ("eval_groundmore_qwen_ckpt.sbatch", "CKPT_DIR"),
    ],
)
def test_what_must_be_set_is_asked_for(project_root, tmp_path, script, variable):
    run = flags_of(project_root, tmp_path, script, expect_failure=True)
    assert run.returncode != 0 and variable in run.stderr
