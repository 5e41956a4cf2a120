"""What to evaluate: some videos, some of their questions, and this process's share of them.

Whole videos are the unit. What belongs to which share follows from the annotation file and the number of shares alone,
so the processes need not talk to each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.sample import VideoRecord
from evaluation.protocol import Protocol
from utils.errors import ConfigError
from utils.processes import Launch, find_launch, read_integer

FRAME_COST = 10
"""What encoding a frame costs, in units of reading it for one question; estimated from operation counts at 7B."""


@dataclass(frozen=True)
class Selected:
    """A video of which some questions are wanted.

    Attributes:
        video: with all its questions.
        questions: ids of those wanted, in their order.
    """

    video: VideoRecord
    questions: tuple[str, ...]

    @property
    def scored(self) -> VideoRecord:
        """The video with the wanted questions only."""
        questions = tuple(query for query in self.video.questions if query.query_id in self.questions)
        return replace(self.video, questions=questions)


def select(
    corpus: Sequence[VideoRecord],
    videos: Iterable[str] | None = None,
    questions: Iterable[str] | None = None,
    limit: int | None = None,
) -> list[Selected]:
    """The videos and questions to evaluate, in the corpus's order.

    Args:
        corpus: of GroundMoRe records.
        videos: video ids to keep; None or nothing keeps all.
        questions: question ids to keep, in every video that has them; None or nothing keeps all.
        limit: keep at most this many videos, the first ones of those left; None keeps all.

    Raises:
        ConfigError: a name that the corpus, or the videos named, do not have, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: must be at least 1 video")
    known = {video.video_id for video in corpus}
    names, ids = list(dict.fromkeys(videos or ())), list(dict.fromkeys(questions or ()))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--video {', '.join(unknown)}: not among the {len(known)} videos of the annotation file")
    kept = [video for video in corpus if not names or video.video_id in names]
    found = {query.query_id for video in kept for query in video.questions}
    if unknown := [name for name in ids if name not in found]:
        where = "the videos named" if names else "any video of the annotation file"
        raise ConfigError(f"--question {', '.join(unknown)}: not in {where}")
    selected = [
        Selected(video, tuple(query.query_id for query in video.questions if not ids or query.query_id in ids))
        for video in kept
    ]
    return [each for each in selected if each.questions][:limit]


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
