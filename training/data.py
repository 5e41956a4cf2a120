"""Which samples a step sees. An item's number is a pure function of step, micro-batch, process and place in the batch,
so a run that was killed and goes on sees exactly what an uninterrupted one would, and so do two processes instead of
one with twice the accumulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.distributed import World
from utils.errors import MoraError


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

    def __init__(
        self, first_step: int, last_step: int, accumulation: int, batch_size: int, rank: int = 0, world_size: int = 1
    ):
        self.first_step = first_step
        self.last_step = last_step
        self.accumulation = accumulation
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

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


class _ErrorsAsValues(Dataset):
    """Hands an error of ours over as a value, so that it reaches the user as it was raised and not as the text of a
    worker's traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except MoraError as error:
            return error


class _CollateUnlessError:
    """Collates items, or passes on the first error among them."""

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __call__(self, items: list) -> Any:
        for item in items:
            if isinstance(item, MoraError):
                return item
        return self.collate(items)


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
            _ErrorsAsValues(dataset),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_CollateUnlessError(collate),
            generator=torch.Generator().manual_seed(seed),
            prefetch_factor=2 if workers > 0 else None,
        )

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if isinstance(batch, MoraError):
                raise batch
            yield batch

    def __len__(self) -> int:
        return len(self.sampler)


def make_loader(
    dataset: Dataset, collate: Callable[[list], Any], world: World, first_step: int, last_step: int, args: Any
) -> StepLoader:
    """The loader of one process.

    Args:
        dataset: see :class:`StepLoader`.
        collate: see :class:`StepLoader`.
        world: gives rank and size.
        first_step: optimizer steps already taken.
        last_step: exclusive.
        args: has ``grad_accumulation_steps``, ``batch_size``, ``workers``, ``seed``.
    """
    sampler = StepSampler(first_step, last_step, args.grad_accumulation_steps, args.batch_size, world.rank, world.size)
    return StepLoader(dataset, collate, sampler, args.workers, args.seed)
