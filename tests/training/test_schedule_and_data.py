"""The learning rate of every step, the DeepSpeed configuration, and which items a step sees."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from deepspeed.runtime import lr_schedules

from tests.training.toy_run import toy_arguments
from training.data import StepLoader, StepSampler
from training.engine import deepspeed_config, schedule_config
from utils.errors import DataError


def rates(flags) -> list[float]:
    """The rate each optimizer step is taken with."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=flags.lr)
    config = schedule_config(flags)
    schedule = getattr(lr_schedules, config["type"])(optimizer, **config["params"])
    seen = []
    for _ in range(flags.total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return seen


def test_warm_up_and_linear_decay(tmp_path):
    args = toy_arguments(tmp_path, "--epochs", "2", "--steps_per_epoch", "10", "--warmup_steps", "4", "--lr", "1e-3")
    seen = rates(args.optimizer)
    assert seen[:6] == pytest.approx([0, 0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    falling = [1e-3 * (20 - i) / 16 for i in range(4, 19)]
    assert seen[5:] == pytest.approx(falling)


def test_cosine_ends_where_it_is_told(tmp_path):
    args = toy_arguments(
        tmp_path, "--steps_per_epoch", "20", "--lr_schedule", "cosine", "--min_lr_ratio", "0.1", "--lr", "1e-3"
    )
    seen = rates(args.optimizer)
    assert max(seen) <= 1e-3 and seen[-1] == pytest.approx(1e-4, rel=0.01)
    assert all(a >= b for a, b in zip(seen[4:], seen[5:]))


def test_configuration(tmp_path):
    flags = toy_arguments(tmp_path)
    config = deepspeed_config(flags.optimizer, flags.compute, num_trainable=10**10)
    zero = config["zero_optimization"]
    assert zero["stage"] == 2 and zero["reduce_bucket_size"] == 500_000_000
    assert all(zero[name] for name in ("contiguous_gradients", "overlap_comm", "reduce_scatter"))
    assert config["gradient_clipping"] == 1.0 and config["train_micro_batch_size_per_gpu"] == 2
    assert "bf16" not in config and "fp16" not in config
    flags = toy_arguments(tmp_path, "--precision", "bf16")
    small = deepspeed_config(flags.optimizer, flags.compute, num_trainable=1025)
    assert small["zero_optimization"]["reduce_bucket_size"] == 2048 and small["bf16"] == {"enabled": True}


def numbers(*args, **kwargs) -> list[list[int]]:
    return list(StepSampler(*args, **kwargs))


def test_processes_share_what_one_would_see():
    alone = numbers(0, 3, accumulation=4, batch_size=2)
    first = numbers(0, 3, accumulation=2, batch_size=2, rank=0, world_size=2)
    second = numbers(0, 3, accumulation=2, batch_size=2, rank=1, world_size=2)
    assert [item for pair in zip(first, second) for item in pair] == alone
    assert sum(alone, []) == list(range(24))


def test_a_resumed_run_sees_the_rest():
    assert numbers(0, 5, 2, 3)[2 * 2 :] == numbers(2, 5, 2, 3)
    assert len(StepSampler(2, 5, 2, 3)) == 6


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index):
        if index == 13:
            raise DataError("clip13/images/0000001.jpg: cannot be read")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_keeps_order_and_leaves_the_global_generator_alone(workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loader = StepLoader(Numbers(), list, StepSampler(0, 3, 2, 2), workers, seed=0)
    assert list(loader) == [[2 * i, 2 * i + 1] for i in range(6)]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_stops_the_run_with_its_own_message(workers):
    loader = StepLoader(Numbers(), list, StepSampler(0, 9, 1, 2), workers, seed=0)
    seen = []
    with pytest.raises(DataError, match="^clip13/images/0000001.jpg: cannot be read$"):
        for batch in loader:
            seen.append(batch)
    assert seen == [[2 * i, 2 * i + 1] for i in range(6)]


DEATH = """
import os, signal, time, torch
from training.data import StepLoader, StepSampler, WorkerError

class Accidents(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return {accident} if index == 5 else torch.full((1000,), float(index))

loader = StepLoader(Accidents(), torch.stack, StepSampler(0, 50, 1, 1), 2, seed=0)
try:
    try:
        for _ in loader:
            time.sleep({seconds})
    except RuntimeError as error:
        raise loader.explain(error) from error
except WorkerError as error:
    print(error, flush=True)
    os._exit(7)
"""


@pytest.mark.parametrize(
    ("accident", "words"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "was killed by SIGKILL .the machine was .* out of memory.*fewer --workers .now 2",
        ),
        ("os.kill(os.getpid(), signal.SIGBUS)", "was killed by SIGBUS .shared memory"),
        ("os._exit(3)", "ended with status 3"),
    ],
    ids=["SIGKILL", "SIGBUS", "exit"],
)
@pytest.mark.parametrize("seconds", [0.0, 0.3], ids=["waited for", "while something else is done"])
def test_a_worker_that_dies_is_named(accident, words, seconds, project_root):
    # In a process of its own: torch raises at any moment after a worker's death, and would end the test run with it.
    code = DEATH.format(accident=accident, seconds=seconds)
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr[-2000:]
    assert re.search(f"data worker [01] .process [0-9]+. {words}", done.stdout), done.stdout


@pytest.mark.parametrize("kind", [KeyError, ConnectionResetError, RuntimeError])
def test_a_bug_in_a_worker_stays_what_it_is(kind):
    class Bug(torch.utils.data.Dataset):
        def __getitem__(self, index):
            raise kind("DataLoader worker (pid 1) is killed")

    loader = StepLoader(Bug(), torch.stack, StepSampler(0, 50, 1, 1), 2, seed=0)
    with pytest.raises(kind, match="Caught") as caught:
        list(loader)
    assert loader.explain(caught.value) is caught.value
