"""The README's cluster route, walked with what its own programs write: train, kill, resume, merge, evaluate, go on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from training.checkpoints.weights import read_weights

pytestmark = pytest.mark.slow

SRUN = """#!/usr/bin/env bash
# A stand-in for srun --ntasks=N: N tasks on this machine, as on N nodes; the first that fails ends all.
while [[ "$1" == --* ]]; do
  case "$1" in --ntasks=*) tasks="${1#*=}" ;; esac
  shift
done
echo "srun started $tasks tasks" >> "$SRUN_LOG"
for ((task = 0; task < tasks; task++)); do
  SLURM_PROCID=$task SLURM_NODEID=$task "$@" &
done
status=0
for ((task = 0; task < tasks; task++)); do wait -n || { status=$?; kill $(jobs -p) 2> /dev/null; }; done
exit "$status"
"""

TRIAL = ("--device", "cpu", "--precision", "fp32", "--num_frames", "2", "--workers", "0", "--warmup_steps", "1",
         "--lora_r", "4", "--lr", "1e-3", "--picture_freq", "0", "--keep_ckpt_every", "1")  # fmt: skip


class Cluster:
    """Runs the scripts as sbatch would: a copy in a spool folder, in the folder of submission."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {"srun": SRUN, "scontrol": "#!/usr/bin/env bash\necho localhost\n"}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "MASTER"))}
        self.environment = {
            **keep, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": sys.executable,
            "SRUN_LOG": str(folder / "srun"), "MORA_ROOT": str(root), "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "71", "GPUS_PER_NODE": "1",
            "LOG_BASE_DIR": "runs", "DATASET_DIR": "data", "STEPS_PER_EPOCH": "3", "GRAD_ACCUM": "1", "EPOCHS": "1",
            "VIDEO_ROOT": "data/GroundMoRe/groundmore_videos", "META_FILE": "data/GroundMoRe/trainval_v2.json",
            "NUM_FRAMES": "2", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip

    def start(self, script: str, *flags: str, **variables: str) -> subprocess.Popen:
        spool = Path(tempfile.mkdtemp(dir=self.folder, prefix="job"))
        copy = shutil.copy(self.root / "scripts" / script, spool / "slurm_script")
        return subprocess.Popen(
            ["bash", str(copy), *flags], cwd=self.folder, env={**self.environment, **variables}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, script: str, *flags: str, code: int = 0, **variables: str) -> str:
        output, _ = (job := self.start(script, *flags, **variables)).communicate(timeout=300)
        assert job.returncode == code, output[-3000:]
        return output

    def evaluate(self, name: str, checkpoint: str, *flags: str, code: int = 0, **variables: str) -> str:
        return self.run(
            "eval_groundmore_ckpt.sbatch", "--limit", "1", "--pictures", "0", "--device", "cpu", *flags, code=code,
            CKPT_DIR=checkpoint, EVAL_NAME=name, **variables,
        )  # fmt: skip

    def python(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env={**self.environment, "PYTHONPATH": str(self.root)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout


def kill_when(cluster: Cluster, job: subprocess.Popen, ready, seconds: float = 120) -> None:
    """SIGKILL every process of a job as soon as ``ready()``, as Slurm does: its launcher's children have sessions of
    their own, and are known by their environment."""
    end = time.monotonic() + seconds
    while not ready() and job.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert job.poll() is None, job.stdout.read()[-3000:]
    mark = f"SRUN_LOG={cluster.folder / 'srun'}".encode()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
    job.communicate()


def step_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / "run.json").read_text())["step"]


def exported(cluster: Cluster, name: str) -> dict:
    return load_file(cluster.folder / "runs" / "exported" / name / "hf" / "model.safetensors")


@pytest.fixture(scope="module")
def cluster(project_root, tmp_path_factory):
    cluster = Cluster(project_root, tmp_path_factory.mktemp("cluster"))
    cluster.python(
        "-m", "datasets.synthetic", "--out", "data", "--seed", "3", "--num_videos", "3", "--num_refytvos", "2",
        "--num_mevis", "1", "--height", "48", "--width", "64",
    )  # fmt: skip
    return cluster


def test_the_whole_route(cluster, project_root):
    base, runs = str(project_root / "assets" / "tiny_base"), cluster.folder / "runs"

    # Stage 1 on two "nodes", killed after its first checkpoint, started again.
    stage1 = dict(BASE_MODEL=base, EXP_NAME="stage1", SLURM_NNODES="2", SLURM_JOB_NODELIST="n[1-2]", EPOCHS="6")
    job = cluster.start("train_mora_h200.sbatch", *TRIAL, **stage1)
    kill_when(cluster, job, lambda: (runs / "stage1" / "ckpt_model" / "latest").is_file())
    killed_at = step_of(runs / "stage1" / "ckpt_model")
    assert killed_at < 18
    output = cluster.run("train_mora_h200.sbatch", *TRIAL, **stage1)
    assert "going on after step" in output and step_of(runs / "stage1" / "ckpt_model") == 18
    assert "srun started 2 tasks" in (cluster.folder / "srun").read_text()

    # Export, stage 2 from it.
    cluster.python(
        str(project_root / "merge_lora_weights_and_save_hf_model.py"), "--version", base, "--weight",
        "runs/stage1/ckpt_model_epoch_006", "--save_path", "exported/stage1",
    )  # fmt: skip
    stage2 = dict(BASE_MODEL="exported/stage1", EXP_NAME="stage2", LOC_MODE="global")
    cluster.run("finetune_groundmore_loc_h200.sbatch", *TRIAL, **stage2)

    # Evaluate the rolling checkpoint; the same command again finds everything done.
    rolling = dict(BASE_MODEL="exported/stage1")
    cluster.evaluate("e", "runs/stage2/ckpt_model", **rolling)
    first, result = exported(cluster, "e"), (runs / "eval_results" / "e.txt").read_bytes()
    weights = read_weights(runs / "stage2" / "ckpt_model")
    assert first["text_hidden_fcs.0.2.weight"].equal(weights["text_hidden_fcs.0.2.weight"])
    again = cluster.evaluate("e", "runs/stage2/ckpt_model", **rolling)
    assert "kept: " in again and "kept 0 recorded" not in again
    assert (runs / "eval_results" / "e.txt").read_bytes() == result

    # Train further: the checkpoint under the same name is newer, and its weights are what is evaluated.
    cluster.run("finetune_groundmore_loc_h200.sbatch", *TRIAL, **stage2, EPOCHS="2")
    refused = cluster.evaluate("e", "runs/stage2/ckpt_model", code=2, **rolling)
    assert "made under other settings" in refused and "weights: " in refused
    cluster.evaluate("e", "runs/stage2/ckpt_model", "--overwrite", **rolling)
    second, weights = exported(cluster, "e"), read_weights(runs / "stage2" / "ckpt_model")
    assert second["text_hidden_fcs.0.2.weight"].equal(weights["text_hidden_fcs.0.2.weight"])
    assert not second["text_hidden_fcs.0.2.weight"].equal(first["text_hidden_fcs.0.2.weight"])

    # The kept epoch is the older one, still; the exported folder itself gives what its checkpoint gave.
    cluster.evaluate("old", "runs/stage2/ckpt_model_epoch_001", **rolling)
    assert exported(cluster, "old")["text_hidden_fcs.0.2.weight"].equal(first["text_hidden_fcs.0.2.weight"])
    cluster.evaluate("itself", "runs/exported/e/hf")
    marks = [json.loads((runs / "eval_outputs" / name / "run.json").read_text()) for name in ("e", "itself")]
    assert marks[0]["fingerprint"] == marks[1]["fingerprint"], "the same weights, asked in the same way"

    # A base replaced in place, and another one, are noticed.
    (cluster.folder / "exported" / "stage1" / "model.safetensors").rename(cluster.folder / "kept.safetensors")
    state = load_file(cluster.folder / "kept.safetensors")
    name = "language_model.model.layers.0.self_attn.k_proj.weight"
    state[name] = -state[name]
    save_file(state, cluster.folder / "exported" / "stage1" / "model.safetensors", metadata={"format": "pt"})
    output = cluster.evaluate("e", "runs/stage2/ckpt_model", code=1, **rolling)
    assert "not those that were exported" in output or "another base" in output
    assert "another base" in cluster.evaluate("e", "runs/stage2/ckpt_model", code=1, BASE_MODEL=base)


def test_an_array_exports_once_and_divides_the_clips(cluster, project_root):
    base = str(project_root / "assets" / "tiny_base")
    cluster.run("train_mora_h200.sbatch", *TRIAL, BASE_MODEL=base, EXP_NAME="array")
    array = dict(SLURM_ARRAY_TASK_COUNT="2", SLURM_ARRAY_TASK_MIN="0", SLURM_ARRAY_TASK_STEP="1")
    jobs = [
        cluster.start(
            "eval_groundmore_ckpt.sbatch", "--pictures", "0", "--device", "cpu", "--limit", "2", **array,
            SLURM_ARRAY_TASK_ID=str(task), CKPT_DIR="runs/array/ckpt_model", EVAL_NAME="array", BASE_MODEL=base,
            SEG_ONLY="1",
        )
        for task in range(2)
    ]  # fmt: skip
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs), outputs
    assert sum("saved: " in output for output in outputs) == 1
    assert sum("kept: " in output for output in outputs) == 1, outputs
    assert (cluster.folder / "runs" / "eval_results" / "array.txt").is_file()
