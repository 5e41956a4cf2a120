"""Processes: who am I, where do I compute, and how do all ranks agree.

Works under plain ``python``, ``torchrun``, ``deepspeed`` and ``srun``: whatever the launcher did not set is filled in
for a single process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from utils.errors import ConfigError, MoraError


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 <= rank < size, over all machines.
        local_rank: index on this machine; also the GPU it uses.
        size: number of processes.
        device: where this process computes ("cpu" or "cuda:N").
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and prints."""
        return self.rank == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Launch:
    """What a launcher said about this process: 0 <= rank < size, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def find_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """This process's place by ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` (torchrun, deepspeed, accelerate), or by the
    variables of an ``srun`` step; a single process without any.

    Args:
        environment: default ``os.environ``.

    Raises:
        ConfigError: the variables make no sense.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif read_integer(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Launch()
    rank, size, local_rank = (read_integer(environment, name, value) for name, value in zip(names, (0, 1, 0)))
    if not 0 <= rank < size:
        raise ConfigError(f"{names[0]}={rank} is not below {names[1]}={size}; unset both or use a launcher")
    return Launch(rank, size, local_rank)


def read_integer(environment: Mapping[str, str], name: str, default: int) -> int:
    """An environment variable that is a number, not negative.

    Raises:
        ConfigError: it is something else.
    """
    value = environment.get(name, str(default))
    if not value.isdigit():
        raise ConfigError(f"environment variable {name}={value!r} is not a number; unset it or use a launcher")
    return int(value)


def gpu_of(local_rank: int, gpus: int) -> int:
    """Which of the visible GPUs a process uses that works for itself.

    Raises:
        ConfigError: there are several GPUs, but fewer than processes.
    """
    if local_rank < gpus:
        return local_rank
    if gpus == 1:  # a launcher that shows every process a GPU of its own
        return 0
    raise ConfigError(
        f"process {local_rank} of this machine has no GPU: there are {gpus}; start as many processes as there are GPUs"
    )


def _fill_environment() -> tuple[int, int, int]:
    """Set what a launcher would have set.

    Returns:
        rank, local rank, number of processes.

    Raises:
        ConfigError: the variables make no sense.
    """
    launch = find_launch()
    if "RANK" not in os.environ and launch.size == 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    os.environ.update(RANK=str(launch.rank), LOCAL_RANK=str(launch.local_rank), WORLD_SIZE=str(launch.size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "24999")
    return launch.rank, launch.local_rank, launch.size


def start_world(use_cuda: bool | None = None) -> World:
    """Fill in the environment that a launcher would set, choose device and threads, open the process group.

    ``DS_ACCELERATOR`` is set for CPU runs (before DeepSpeed is imported), and a port that is free now is chosen for
    single processes, so that two runs on one machine do not meet.

    Args:
        use_cuda: True or False to insist; None takes CUDA when there is one.

    Returns:
        This process's place.

    Raises:
        ConfigError: CUDA is asked for and absent, this rank has no GPU of its own, or RANK/WORLD_SIZE make no sense.
    """
    available = torch.cuda.is_available()
    if use_cuda and not available:
        raise ConfigError("CUDA is asked for, but torch sees no GPU; use a CPU precision (fp32 or bf16) and device")
    on_gpu = available if use_cuda is None else use_cuda
    rank, local_rank, size = _fill_environment()
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        device = torch.device("cpu")
    share_threads(size)
    if not is_running():
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    return World(rank, local_rank, size, device)


def share_threads(world_size: int) -> None:
    """Split the cores among the processes of this machine, unless OMP_NUM_THREADS says otherwise.

    Two processes with all cores each spin against each other and are several times slower than one thread each.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(cores_per_process(world_size))


def cores_per_process(world_size: int) -> int:
    """Cores of this machine for each of its processes, at least 1; all may be on this machine unless it is known."""
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, local_size))


def is_running() -> bool:
    """Whether a process group is open."""
    return dist.is_available() and dist.is_initialized()


def barrier() -> None:
    """Wait until every process is here; returns at once without a process group."""
    if is_running() and dist.get_world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every process, in rank order; ``[value]`` without a process group."""
    if not is_running() or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes, on its device; the tensor itself without a process group."""
    if not is_running() or dist.get_world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def raise_together(error: Exception | None, error_type: type[MoraError], headline: str) -> None:
    """Raise on every process if any of them failed, so that none waits for another that is gone.

    Args:
        error: what went wrong on this process, or None. Every process must call this.
        error_type: what to raise.
        headline: first words of the message.

    Raises:
        MoraError: of ``error_type``, naming the ranks that failed and why.
    """
    reports = gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    failed = [f"rank {rank}: {report}" for rank, report in enumerate(reports) if report is not None]
    if failed:
        raise error_type(f"{headline} ({'; '.join(failed)})") from error


def stop_world() -> None:
    """Close the process group, if one is open."""
    if is_running():
        dist.destroy_process_group()
