"""Processes: who am I, where do I compute, and how do all ranks agree.

Works under plain ``python``, ``torchrun``, ``deepspeed`` and ``srun``: whatever the launcher did not set is filled in
for a single process.
"""

from __future__ import annotations

import os
import socket
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


def _read_integer(name: str) -> int:
    value = os.environ[name]
    if not value.isdigit():
        raise ConfigError(f"environment variable {name}={value!r} is not a number; unset it or use a launcher")
    return int(value)


def _fill_environment() -> tuple[int, int, int]:
    """What a launcher would have set; ``srun`` says it in variables of its own.

    Returns:
        rank, local rank, number of processes.

    Raises:
        ConfigError: the variables make no sense.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_STEP_NUM_TASKS"]
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "24999")
    rank, local_rank, size = (_read_integer(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if not 0 <= rank < size:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={size}; unset both or use a launcher")
    return rank, local_rank, size


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
    _share_threads(size)
    if not is_running():
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    return World(rank, local_rank, size, device)


def _share_threads(world_size: int) -> None:
    """Split the cores among the processes of this machine, unless OMP_NUM_THREADS says otherwise.

    Two processes with all cores each spin against each other and are several times slower than one thread each.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // max(1, local_size)))


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
