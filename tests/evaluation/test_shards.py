"""Which share of the videos is whose: flags, launchers, Slurm arrays; every video once, in balance."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.protocol import make_protocol
from evaluation.shards import Shard, find_shard, select, share_of
from utils.errors import ConfigError
from utils.processes import gpu_of


def place(num_shards=None, shard_id=None, **environment):
    shard = find_shard(num_shards, shard_id, {name: str(value) for name, value in environment.items()})
    return shard.index, shard.count, shard.launch.local_rank


def array(task, count, first=0, step=1):
    prefix = "SLURM_ARRAY_TASK_"
    return {f"{prefix}ID": task, f"{prefix}COUNT": count, f"{prefix}MIN": first, f"{prefix}STEP": step}


def test_alone():
    assert place() == (0, 1, 0)
    assert place(SLURM_STEP_NUM_TASKS=1, SLURM_PROCID=0, SLURM_LOCALID=0) == (0, 1, 0)


def test_launchers():
    assert place(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1) == (5, 8, 1)
    assert place(SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=3, SLURM_LOCALID=1) == (3, 4, 1)
    assert place(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=3) == (1, 2, 1)


def test_slurm_arrays():
    assert place(**array(2, 8)) == (2, 8, 0)
    assert place(**array(13, 4, 11)) == (2, 4, 0)
    assert place(**array(14, 3, 10, 2)) == (2, 3, 0)
    assert place(SLURM_ARRAY_TASK_ID=0) == (0, 1, 0)
    for wrong in (array(5, 2, 3), array(13, 3, 10, 2)):
        with pytest.raises(ConfigError, match="array has gaps"):
            place(**wrong)


def test_each_task_of_an_array_is_divided_among_its_processes():
    places = {
        place(**array(task, 3), RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank)[:2] for task in range(3) for rank in (0, 1)
    }
    assert places == {(index, 6) for index in range(6)}


def test_flags_win():
    launched = {**array(2, 8), "RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1}
    assert place(4, 3, **launched) == (3, 4, 1)
    assert place(1, None, **launched) == place(1, 0, **launched) == (0, 1, 1)


@pytest.mark.parametrize("flags", [(4, 4), (4, -1), (4, None), (None, 2)])
def test_flags_that_make_no_sense(flags):
    with pytest.raises(ConfigError, match="--shard_id"):
        place(*flags)


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"RANK": 2, "WORLD_SIZE": 2}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "x"}, "RANK='x' is not a number"),
        ({"SLURM_ARRAY_TASK_ID": "-1"}, "is not a number"),
    ],
)
def test_variables_that_make_no_sense(environment, word):
    with pytest.raises(ConfigError, match=word):
        place(**environment)


def test_gpus():
    assert [gpu_of(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert gpu_of(3, 1) == 0  # every process sees only its own
    with pytest.raises(ConfigError, match="no GPU: there are 2"):
        gpu_of(2, 2)


@pytest.fixture
def many(corpus):
    """Twelve videos with 1 to 12 questions, in no order of size."""
    query = corpus[0].questions[0]
    counts = [7, 1, 12, 3, 9, 5, 11, 2, 8, 4, 10, 6]
    return [
        replace(
            corpus[0],
            video_id=f"v{number}",
            questions=tuple(replace(query, query_id=str(k)) for k in range(count)),
        )
        for number, count in enumerate(counts)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 20])
def test_every_video_belongs_to_one_share_and_shares_are_balanced(many, count):
    protocol, selected = make_protocol(), select(many)
    shares = [share_of(selected, Shard(index, count), protocol) for index in range(count)]
    names = [each.video.video_id for share in shares for each in share]
    assert sorted(names) == sorted(video.video_id for video in many)
    for share in shares:  # in the corpus's order
        assert [selected.index(each) for each in share] == sorted(selected.index(each) for each in share)
    loads = [sum(10 + len(each.video.questions) for each in share) for share in shares]
    assert max(loads) - min(loads) <= 22  # one video at most
    assert [share_of(selected, Shard(index, count), protocol) for index in range(count)] == shares


def test_a_share_does_not_depend_on_the_questions_that_are_wanted(many):
    # All questions of a video are asked together, so the work is the same.
    protocol = make_protocol()
    for index in range(3):
        whole = share_of(select(many), Shard(index, 3), protocol)
        first = share_of(select(many, questions=["0"]), Shard(index, 3), protocol)
        assert [each.video.video_id for each in whole] == [each.video.video_id for each in first]
