"""Processes: who am I, where do I compute, and how do all ranks agree.

Works under plain ``python``, ``torchrun``, ``deepspeed`` and ``srun``: whatever the launcher did not set is filled in
for a single process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from utils.errors import ConfigError, MoraError
from utils.processes.rendezvous import FAILURE, RendezvousError, leave_word, meet

_store: dist.Store | None = None
"""Shared by the processes of this run, if they are several; rank 0 or its launcher has it."""

_LAST_MEETING = 10.0
"""Seconds that a process with a mistake in its flags waits for the others, who have it too."""

_COMMUNICATION = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|socket", re.IGNORECASE)


class PeerError(MoraError):
    """Another process of this run has ended, so this one cannot go on."""


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
        if "WORLD_SIZE" not in environment:
            rank = read_integer(environment, "RANK", 0)
            raise ConfigError(f"RANK={rank} is set and WORLD_SIZE is not; unset RANK or use a launcher")
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif read_integer(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Launch()
    rank, size, local_rank = (read_integer(environment, name, value) for name, value in zip(names, (0, 1, 0)))
    if not 0 <= rank < size:
        raise ConfigError(f"{names[0]}={rank} is not below {names[1]}={size}; unset both or use a launcher")
    here = read_integer(environment, "LOCAL_WORLD_SIZE", size) if names[0] == "RANK" else size
    if not local_rank < min(size, here):
        raise ConfigError(
            f"{names[2]}={local_rank} is not below the {min(size, here)} process(es) of a machine; unset it or use a "
            "launcher"
        )
    return Launch(rank, size, local_rank)


def read_integer(environment: Mapping[str, str], name: str, default: int) -> int:
    """An environment variable that is a number, not negative.

    Raises:
        ConfigError: it is something else.
    """
    value = environment.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", value):
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
    elif "MASTER_ADDR" not in os.environ and read_integer(os.environ, "SLURM_STEP_NUM_NODES", 1) > 1:
        raise ConfigError("the processes are on several machines and MASTER_ADDR is not set; set it to that of rank 0")
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
        ConfigError: CUDA is asked for and absent, this rank has no GPU of its own, or a variable makes no sense.
        RendezvousError: the other processes did not come.
    """
    available = torch.cuda.is_available()
    if use_cuda and not available:
        raise ConfigError("CUDA is asked for, but torch sees no GPU; use a CPU precision (fp32 or bf16) and device")
    on_gpu = available if use_cuda is None else use_cuda
    numbered = "LOCAL_RANK" in os.environ or "RANK" not in os.environ
    rank, local_rank, size = _fill_environment()
    if on_gpu:
        if size > 1 and not numbered:
            raise ConfigError("RANK is set and LOCAL_RANK is not, so all processes would use one GPU; set it")
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
        _open_group(rank, size, device)
    return World(rank, local_rank, size, device)


def _open_group(rank: int, size: int, device: torch.device) -> None:
    """Meet the other processes and open the process group."""
    global _store
    store = meet(rank, size)
    _store = store if size > 1 else None
    on_gpu = device.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise RendezvousError(f"rank {rank}: no connection among the processes ({reason})") from error


def share_threads(world_size: int) -> None:
    """Split the cores among the processes of this machine, unless OMP_NUM_THREADS says otherwise.

    Two processes with all cores each spin against each other and are several times slower than one thread each.

    Raises:
        ConfigError: OMP_NUM_THREADS is no number.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given is None:
        torch.set_num_threads(cores_per_process(world_size))
    elif not re.fullmatch(r"\s*0*[1-9][0-9]{0,5}\s*(,\s*[0-9]+\s*)*", given):  # OpenMP takes one number per level
        raise ConfigError(
            f"environment variable OMP_NUM_THREADS={given!r} is no number of threads; correct or unset it"
        )


def cores_per_process(world_size: int) -> int:
    """Cores of this machine for each of its processes, at least 1; all may be on this machine unless it is known.

    Raises:
        ConfigError: ``LOCAL_WORLD_SIZE`` or ``LOCAL_SIZE`` is no number.
    """
    local_size = read_integer(os.environ, "LOCAL_SIZE", world_size)
    local_size = read_integer(os.environ, "LOCAL_WORLD_SIZE", local_size)
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


def agree(error: MoraError | None) -> None:
    """Go on only if no process has failed; every process must call this.

    Args:
        error: what went wrong on this process, or None.

    Raises:
        MoraError: ``error`` where there is one, :class:`PeerError` on the other processes.
    """
    reports = gather_objects(None if error is None else _described(error))
    if error is not None:
        raise error
    failed = [report for report in reports if report is not None]
    if failed:
        raise PeerError(f"another process has failed: {failed[0]}")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def as_lost_peer(error: Exception) -> PeerError | None:
    """What a failed communication means: another process has ended, perhaps saying why. None: it is something else."""
    if _store is None or not (isinstance(error, dist.DistError) or _COMMUNICATION.search(str(error))):
        return None
    why = None
    with contextlib.suppress(RuntimeError, ConnectionError):
        for _ in range(20):  # its message may be on the way
            if _store.check([FAILURE]):
                why = _store.get(FAILURE).decode(errors="replace")
                break
            time.sleep(0.1)
    return PeerError(
        f"another process of this run has ended: {why}" if why else "another process of this run has ended or was "
        f"killed; its log may say why ({str(error).strip().splitlines()[0][:200]})"
    )  # fmt: skip


def say_last_words(error: BaseException | str) -> None:
    """Print why this process ends, unless another one says the same, and let the others know.

    Args:
        error: what went wrong, also before :func:`start_world`; or a message.
    """
    message = error if isinstance(error, str) else _described(error)
    try:
        launch = find_launch()
    except MoraError:
        launch = Launch()
    alone = launch.size == 1 or (_store is None and launch.rank == 0)
    if alone:  # before anything that may take time
        print(message, file=sys.stderr, flush=True)
    heard = alone or getattr(error, "told", False)
    store = None
    with contextlib.suppress(RuntimeError, ConnectionError, MoraError, KeyboardInterrupt):
        store = _store
        if store is None and launch.size > 1 and not isinstance(error, RendezvousError):
            _fill_environment()
            store = leave_word(launch.rank, message[:2000], _LAST_MEETING)
        if store is not None:
            told = heard
            # Another process may hold this one up until it has gone itself, and rank 0 with the store: an ending that
            # was asked for (a message, no error) has been told by then.
            heard = told or (isinstance(error, str) and _store is not None and launch.rank > 0)
            heard = _is_said(store, error, message, wait=_store is None and launch.rank > 0) or told
    if not heard:
        print(message, file=sys.stderr, flush=True)
    if store is not None:
        with contextlib.suppress(RuntimeError, ConnectionError, KeyboardInterrupt):
            store.add("ended", 1)
            for _ in range(30 if launch.rank == 0 else 0):  # rank 0 has the store; let the others look
                if store.add("ended", 0) >= launch.size:
                    break
                time.sleep(0.1)
    if is_running() and dist.get_backend() == "gloo":  # its threads may abort a process that exits beside them
        with contextlib.suppress(RuntimeError):
            stop_world()


def _is_said(store: dist.Store, error: BaseException | str, message: str, wait: bool) -> bool:
    """Note that this process says something; whether another one had said it.

    Args:
        store: shared.
        error: see :func:`say_last_words`.
        message: what it says.
        wait: rank 0 is about to say the same.
    """
    if not isinstance(error, PeerError):
        store.compare_set(FAILURE, "", message[:2000])
    name = f"said/{hashlib.sha256(message.encode(errors='replace')).hexdigest()}"
    for _ in range(20 if wait else 0):
        if store.add(name, 0):
            break
        time.sleep(0.1)
    return store.add(name, 1) > 1


def stop_world() -> None:
    """Close the process group, if one is open."""
    global _store
    _store = None
    if is_running():
        dist.destroy_process_group()
