"""Several processes share an evaluation: which share is this one's.

Whole videos are the unit. What belongs to which share follows from the annotation file and the number of shares alone,
so the processes need not talk to each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.engine.selection import Selected
from evaluation.protocol import Protocol
from utils.errors import ConfigError
from utils.processes import Launch, find_launch, read_integer

FRAME_COST = 10
"""What encoding a frame costs, in units of reading it for one question; estimated from operation counts at 7B."""


@dataclass(frozen=True)
class Shard:
    """This process's share.

    Attributes:
        index: 0 <= index < count.
        count: number of shares.
        source: what said so, for the reader.
        launch: this process among those that a launcher started; its ``local_rank`` is the GPU that it uses.
    """

    index: int = 0
    count: int = 1
    source: str = ""
    launch: Launch = Launch()

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count} ({self.source})" if self.count > 1 else "one process"


def find_shard(
    num_shards: int | None = None, shard_id: int | None = None, environment: Mapping[str, str] | None = None
) -> Shard:
    """This process's share, from the first of these that says something:

    1. ``--num_shards`` and ``--shard_id``; ``--num_shards 1`` switches sharding off;
    2. a Slurm array (``SLURM_ARRAY_TASK_ID``, ``_MIN``, ``_COUNT``, ``_STEP``), each task of which is divided further
       among the processes that a launcher started;
    3. a launcher's processes: ``RANK`` and ``WORLD_SIZE`` (torchrun, deepspeed, accelerate launch), or the tasks of an
       ``srun`` step.

    Args:
        num_shards, shard_id: the flags.
        environment: default ``os.environ``.

    Raises:
        ConfigError: flags or variables that make no sense.
    """
    environment = os.environ if environment is None else environment
    launch = find_launch(environment)
    if num_shards is not None or shard_id is not None:
        count = 1 if num_shards is None else num_shards
        index = 0 if shard_id is None else shard_id
        if num_shards is None or (shard_id is None and count > 1):
            raise ConfigError("--num_shards and --shard_id go together; give both (--num_shards 1 alone: all of it)")
        if not 0 <= index < count:
            raise ConfigError(f"--shard_id {index}: must be from 0 to {count - 1} with --num_shards {count}")
        return Shard(index, count, "--num_shards, --shard_id", launch)
    task, tasks = _array(environment)
    sources = [name for name, size in (("Slurm array", tasks), ("launcher", launch.size)) if size > 1]
    return Shard(task * launch.size + launch.rank, tasks * launch.size, " and ".join(sources), launch)


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, number) of this task of a Slurm array; (0, 1) outside one."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    count = read_integer(environment, "SLURM_ARRAY_TASK_COUNT", 1)
    if count < 1:
        raise ConfigError(f"SLURM_ARRAY_TASK_COUNT={count}: an array has tasks; unset it, or give --num_shards")
    first = read_integer(environment, "SLURM_ARRAY_TASK_MIN", 0)
    step = max(1, read_integer(environment, "SLURM_ARRAY_TASK_STEP", 1))
    index, left = divmod(read_integer(environment, "SLURM_ARRAY_TASK_ID", 0) - first, step)
    if left or not 0 <= index < count:
        raise ConfigError(
            f"SLURM_ARRAY_TASK_ID={environment['SLURM_ARRAY_TASK_ID']} in an array of {count} tasks from {first} with "
            f"step {step}: the array has gaps. Use one without (--array=0-{count - 1}; any number of tasks goes on "
            "where others stopped), or give --num_shards and --shard_id"
        )
    return index, count


def share_of(selected: Sequence[Selected], shard: Shard, protocol: Protocol) -> list[Selected]:
    """The videos of a shard, in the order given.

    The most expensive video goes to the share that has least so far, then the next; ties go to the earlier one.
    """
    costs = [_cost(each, protocol) for each in selected]
    loads, owners = [0] * shard.count, [0] * len(selected)
    for position in sorted(range(len(selected)), key=lambda position: (-costs[position], position)):
        owners[position] = min(range(shard.count), key=lambda index: (loads[index], index))
        loads[owners[position]] += costs[position]
    return [each for each, owner in zip(selected, owners) if owner == shard.index]


def _cost(selected: Selected, protocol: Protocol) -> int:
    """Work for a video, in frames read for one question. All its questions are asked, wanted or not."""
    frames = len(np.unique(protocol.sample(len(selected.video.frame_paths))))
    return frames * (FRAME_COST + len(selected.video.questions))
