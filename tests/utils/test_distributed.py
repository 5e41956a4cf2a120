"""Who this process is under every launcher, and that failures are shared."""

from __future__ import annotations

import pytest
import torch

from utils.errors import CheckpointError, ConfigError
from utils.processes.distributed import (
    _fill_environment,
    gather_objects,
    mean_over_processes,
    raise_together,
    start_world,
)

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


@pytest.fixture
def bare(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_without_a_launcher(bare):
    assert _fill_environment() == (0, 0, 1)


def test_under_a_launcher(bare):
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        bare.setenv(name, value)
    assert _fill_environment() == (3, 1, 4)


def test_under_srun(bare):
    for name, value in {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}.items():
        bare.setenv(name, value)
    assert _fill_environment() == (5, 1, 8)


def test_inside_a_batch_script_without_srun(bare):
    bare.setenv("SLURM_STEP_NUM_TASKS", "1")
    bare.setenv("SLURM_PROCID", "0")
    assert _fill_environment() == (0, 0, 1)


@pytest.mark.parametrize(("rank", "size"), [("4", "4"), ("x", "2")])
def test_nonsense_is_refused(bare, rank, size):
    bare.setenv("RANK", rank)
    bare.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match="RANK"):
        _fill_environment()


def test_cuda_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        start_world(use_cuda=True)


def test_alone_nothing_waits():
    assert gather_objects("x") == ["x"]
    assert mean_over_processes(torch.tensor(2.0)) == 2.0
    raise_together(None, CheckpointError, "headline")
    with pytest.raises(CheckpointError, match=r"headline \(rank 0: OSError: full\)"):
        raise_together(OSError("full"), CheckpointError, "headline")
