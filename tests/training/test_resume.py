"""Kill a run anywhere, start it again: the same weights to the last bit, the same loss curve, no checkpoint lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOY = str(Path(__file__).with_name("toy_run.py"))


def launch(*command: str, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *launcher, TOY, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def curve(folder: Path) -> list[float]:
    lines = (folder / "toy" / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert [value["step"] for value in values] == list(range(1, len(values) + 1))
    return [value["loss/total"] for value in values]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = launch(str(folder))
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    ("hook", "flags", "step"),
    [
        # item 26 belongs to step 7 (4 items per step): killed inside the second epoch, between two checkpoints
        (("--kill_at_item", "26"), ("--save_every_steps", "3"), 6),
        # killed while the checkpoint of step 8 is half written: that of step 4 must still be there
        (("--kill_while_saving", "8"), (), 4),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, uninterrupted, hook, flags, step):
    killed = launch(str(tmp_path), *hook, *flags)
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert json.loads((tmp_path / "toy" / "ckpt_model" / "run.json").read_text())["step"] == step
    resumed = launch(str(tmp_path), *flags)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    expected = weights(uninterrupted)
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, expected[name]), name
    assert curve(tmp_path) == curve(uninterrupted)
    assert (tmp_path / "toy" / "ckpt_model_epoch_002").is_dir()
    leftovers = [path.name for path in (tmp_path / "toy").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_two_processes_follow_the_curve_of_one(tmp_path, uninterrupted):
    """Two processes with one micro-batch each see the items one process sees in two micro-batches."""
    one = tmp_path / "one"
    two = tmp_path / "two"
    without_dropout = ("--lora_dropout", "0")
    run = launch(str(one), *without_dropout)
    assert run.returncode == 0, run.stderr[-3000:]
    run = launch(str(two), "--grad_accumulation_steps", "1", *without_dropout, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    assert curve(two) == pytest.approx(curve(one), rel=1e-5)
    resumed = tmp_path / "resumed"
    flags = ("--grad_accumulation_steps", "1", *without_dropout)
    killed = launch(str(resumed), "--kill_at_item", "26", *flags, processes=2)
    assert killed.returncode != 0
    run = launch(str(resumed), *flags, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    assert curve(resumed) == pytest.approx(curve(two), rel=1e-6)
    for name, value in weights(resumed).items():
        assert torch.allclose(value, weights(one)[name], atol=1e-5), name


def test_a_disk_that_is_full_leaves_the_previous_checkpoint(tmp_path):
    """The kernel refuses to write past a size, in the middle of a checkpoint."""
    folder = tmp_path / "run"
    first = launch(str(folder), "--epochs", "1", "--warmup_steps", "2")
    assert first.returncode == 0, first.stderr[-3000:]
    before = {p.relative_to(folder): p.read_bytes() for p in (folder / "toy" / "ckpt_model").rglob("*") if p.is_file()}
    full = launch(str(folder), "--limit_file_size", "3000")
    assert full.returncode != 0
    assert "the previous checkpoint is untouched" in full.stderr, full.stderr[-3000:]
    assert "--auto_resume" in full.stderr
    after = {p.relative_to(folder): p.read_bytes() for p in (folder / "toy" / "ckpt_model").rglob("*") if p.is_file()}
    assert after == before
    assert not list((folder / "toy").glob(".ckpt_model*"))
