"""Which samples a step sees. An item's number is a pure function of step, micro-batch, process and place in the batch,
so a run that was killed and goes on sees exactly what an uninterrupted one would, and so do two processes instead of
one with twice the accumulation."""

from __future__ import annotations

import multiprocessing.connection
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from training.settings import TrainingSettings
from utils.errors import MoraError
from utils.processes import World


class WorkerError(MoraError):
    """A process that reads samples has died."""


@dataclass(eq=False)
class StepSampler(Sampler[list[int]]):
    """Item numbers of one process, micro-batch by micro-batch.

    ``((step * accumulation + micro) * world + rank) * batch_size + j`` for j in 0..batch_size-1.

    Args:
        first_step: optimizer steps already taken.
        last_step: exclusive.
        accumulation: micro-batches per step.
        batch_size: items per micro-batch.
        rank: this process.
        world_size: number of processes.
    """

    first_step: int
    last_step: int
    accumulation: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def numbers(self, step: int, micro: int) -> list[int]:
        """The item numbers of one micro-batch of this process."""
        start = ((step * self.accumulation + micro) * self.world_size + self.rank) * self.batch_size
        return list(range(start, start + self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.last_step):
            for micro in range(self.accumulation):
                yield self.numbers(step, micro)

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step) * self.accumulation


class _Batches(Dataset):
    """``batches[numbers]``: the items of these numbers, collated; or an error of ours as a value, so that it reaches
    the user as it was raised and not as the text of a worker's traceback."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], Any]):
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, numbers: list[int]) -> Any:
        try:
            return self.collate([self.dataset[number] for number in numbers])
        except MoraError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


_TO_DIE = 15.0
"""Seconds for a process whose pipe has broken to be gone."""

_HINTS = {
    signal.SIGKILL: "the machine was probably out of memory",
    signal.SIGBUS: "shared memory (/dev/shm) was probably full",
}


def _ended_by(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code > 0:
        return f"ended with status {exit_code}; its own message is above"
    name = next((number.name for number in signal.Signals if number == -exit_code), str(-exit_code))
    return f"was killed by {name}" + (f" ({_HINTS[-exit_code]})" if -exit_code in _HINTS else "")


class StepLoader:
    """Micro-batches from ``first_step`` on, prepared ahead by worker processes.

    Args:
        dataset: map-style; any item number >= 0 is valid and gives the same item every time.
        collate: list of items -> batch.
        sampler: which items.
        workers: reading processes; 0 reads in this one.
        seed: of the workers' own generators (items should not need them).
    """

    def __init__(self, dataset: Dataset, collate: Callable[[list], Any], sampler: StepSampler, workers: int, seed: int):
        self.sampler = sampler
        # A generator of its own: otherwise making an iterator would draw from the global one, and a resumed run
        # would see other dropout masks than an uninterrupted one.
        self._loader = DataLoader(
            _Batches(dataset, collate),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(seed),
            prefetch_factor=2 if workers > 0 else None,
        )
        self._batches: Any = None

    def __iter__(self) -> Iterator[Any]:
        self._batches = iter(self._loader)
        while True:
            try:
                batch = next(self._batches, None)
            except (RuntimeError, OSError, EOFError) as error:  # whatever the pipe to a dead worker says
                found = self.explain(error)
                if found is error:
                    raise
                raise found from error
            if batch is None:
                return
            if isinstance(batch, MoraError):
                raise batch
            yield batch

    def explain(self, error: Exception) -> Exception:
        """The error itself, or a :class:`WorkerError` if a worker has died, which surfaces wherever this process is.

        Args:
            error: raised in this process, by the loader or by torch's handler of ended children.
        """
        workers = getattr(self._batches, "_workers", [])
        if not workers:
            return error
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise at any moment from here on
        if "Caught " not in str(error):  # else a worker reports an error of its own, and lives
            ready = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=_TO_DIE)
            for worker in workers:
                if worker.sentinel in ready:
                    worker.join(_TO_DIE)  # its pipe closes a moment before it has an exit code
        dead = [
            f"data worker {number} (process {worker.pid}) {_ended_by(worker.exitcode)}"
            for number, worker in enumerate(workers)
            if worker.exitcode
        ]
        if not dead:
            signal.signal(signal.SIGCHLD, before)
            return error
        return WorkerError(
            f"{'; '.join(dead)}. Checkpoints are whole: start again with --auto_resume, and with fewer --workers (now "
            f"{len(workers)}) or more memory if it happens again"
        )

    def __len__(self) -> int:
        return len(self.sampler)


def make_loader(
    dataset: Dataset, collate: Callable[[list], Any], world: World, first_step: int, settings: TrainingSettings
) -> StepLoader:
    """The loader of one process, from ``first_step`` (optimizer steps already taken) to the run's last one."""
    optimizer = settings.optimizer
    sampler = StepSampler(
        first_step, optimizer.total_steps, optimizer.grad_accumulation_steps, optimizer.batch_size, world.rank,
        world.size,
    )  # fmt: skip
    return StepLoader(dataset, collate, sampler, settings.data.workers, settings.run.seed)
