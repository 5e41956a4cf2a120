"""datasets/sampling.py: distinct, in bounds, uniform where promised, reproducible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sample import Question, VideoRecord
from datasets.sampling import (
    draw_sample,
    jittered_frames,
    linspace_truncated,
    sample_frames,
    uniform_frames,
)


def generator(seed=0):
    return np.random.default_rng(seed)


def check_frames(frames, num_total, n):
    assert frames.dtype == np.int64 and frames.shape == (n,)
    assert (np.diff(frames) >= 0).all() and frames[0] >= 0 and frames[-1] < num_total
    if num_total >= n:
        assert len(set(frames.tolist())) == n
    else:
        counts = np.bincount(frames, minlength=num_total)
        assert counts.min() >= 1 and counts.max() - counts.min() <= 1


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 70), st.integers(1, 25), st.integers(0, 10**6))
def test_random_strategies_are_distinct_sorted_and_in_bounds(num_total, n, seed):
    check_frames(sample_frames(num_total, n, generator(seed)), num_total, n)
    check_frames(jittered_frames(num_total, n, generator(seed)), num_total, n)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 70), st.integers(1, 25), st.integers(0, 10**6), st.data())
def test_an_anchor_is_always_sampled(num_total, n, seed, data):
    anchor = data.draw(st.integers(0, num_total - 1))
    for draw in (sample_frames, jittered_frames):
        frames = draw(num_total, n, generator(seed), anchor)
        check_frames(frames, num_total, n)
        if num_total > n:
            assert anchor in frames


def test_neighbours_are_near_and_on_both_sides():
    for seed in range(200):
        frames = sample_frames(60, 3, generator(seed), anchor=30)
        assert 27 <= frames[0] <= 29 and frames[1] == 30 and 31 <= frames[2] <= 33
    pairs = {tuple(sample_frames(60, 2, generator(seed), anchor=30) - 30) for seed in range(200)}
    assert pairs == {(-3, 0), (-2, 0), (-1, 0), (0, 1), (0, 2), (0, 3)}


def test_at_the_ends_the_rest_comes_from_anywhere():
    for anchor, near in ((0, slice(1, 4)), (59, slice(56, 59))):
        far = [set(range(60)[near]) ^ set(sample_frames(60, 3, generator(seed), anchor)) for seed in range(50)]
        assert len(set().union(*far)) > 30


def test_every_frame_is_equally_likely_as_anchor():
    """The original anchored every clip at frame 0."""
    rng = generator()
    counts = np.bincount([sample_frames(40, 1, rng)[0] for _ in range(8000)], minlength=40)
    assert counts.min() > 140 and counts.max() < 260
    rng = generator()
    counts = np.bincount(np.concatenate([sample_frames(40, 5, rng) for _ in range(4000)]), minlength=40)
    assert counts.min() > 350 and counts.max() < 700


def test_same_generator_state_same_frames():
    for draw in (sample_frames, jittered_frames):
        first = [draw(58, 5, generator(3)).tolist() for _ in range(2)]
        assert first[0] == first[1]
        rng = generator(3)
        assert len({tuple(draw(58, 5, rng)) for _ in range(20)}) > 15


def test_jitter_takes_one_frame_of_each_part():
    for seed in range(100):
        frames = jittered_frames(24, 8, generator(seed))
        assert (frames // 3 == np.arange(8)).all()


def test_uniform_frames():
    assert uniform_frames(24, 8).tolist() == np.rint(np.linspace(0, 23, 8)).astype(int).tolist()
    assert uniform_frames(7, 7).tolist() == list(range(7)) and uniform_frames(9, 1).tolist() == [0]
    for num_total in range(1, 130):
        for n in range(1, 30):
            frames = uniform_frames(num_total, n)
            assert frames[0] == 0 and (n == 1 or frames[-1] == num_total - 1) and frames.dtype == np.int64
            assert len(set(frames.tolist())) == min(n, num_total)


def test_the_first_evaluators_rule():
    np.testing.assert_array_equal(linspace_truncated(58, 20), np.linspace(0, 57, 20, dtype=int))
    assert linspace_truncated(58, 20)[1] == 3 and linspace_truncated(4, 6).tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("num_total, n", [(0, 3), (3, 0), (-1, 1)])
def test_impossible_numbers(num_total, n):
    for draw in (sample_frames, jittered_frames):
        with pytest.raises(ValueError):
            draw(num_total, n, generator())
    for rule in (uniform_frames, linspace_truncated):
        with pytest.raises(ValueError):
            rule(num_total, n)


def record_of(num_frames, num_queries=4, visible=None, window=None, object_ids=(1,)):
    """A record in memory; its objects show on the frames ``visible`` (all if None); ``looked_at`` lists mask reads."""
    looked_at = []

    def read(query, index):
        looked_at.append(index)
        return np.full((2, 2), visible is None or index in visible)

    questions = tuple(
        Question(str(k), f"thing {k}", is_question=False, object_ids=object_ids, window=window)
        for k in range(num_queries)
    )
    paths = tuple(Path(f"{k:05d}.jpg") for k in range(num_frames))
    return VideoRecord("test", "v", paths, questions, read), looked_at


@pytest.mark.parametrize("strategy", ["anchor", "uniform", "jitter"])
def test_draw_sample(strategy):
    record, _ = record_of(30)
    sample = draw_sample(record, 5, 2, generator(1), strategy)
    assert sample.record is record
    check_frames(sample.frame_indices, 30, 5)
    assert len(sample.questions) == 2 and sample.questions[0].query_id < sample.questions[1].query_id
    again = draw_sample(record, 5, 2, generator(1), strategy)
    np.testing.assert_array_equal(again.frame_indices, sample.frame_indices)
    assert again.questions == sample.questions
    assert len(draw_sample(record, 5, 9, generator(1), strategy).questions) == 4
    drawn = {draw_sample(record, 5, 1, generator(seed), strategy).questions[0].query_id for seed in range(60)}
    assert drawn == {"0", "1", "2", "3"}


@pytest.mark.parametrize("strategy", ["anchor", "jitter"])
def test_a_rarely_visible_object_is_found(strategy):
    for seed in range(50):
        record, _ = record_of(50, visible={17, 18})
        assert {17, 18} & set(draw_sample(record, 5, 3, generator(seed), strategy).frame_indices.tolist())


def test_looking_for_the_object_is_bounded():
    record, looked_at = record_of(500, visible=set())
    check_frames(draw_sample(record, 5, 3, generator(), "anchor").frame_indices, 500, 5)
    assert len(looked_at) == 64
    record, looked_at = record_of(500)
    draw_sample(record, 5, 3, generator(), "anchor")
    assert len(looked_at) == 1


@pytest.mark.parametrize(
    "options", [dict(window=(3, 9)), dict(object_ids=()), dict(num_frames=5)], ids=["window", "no target", "short clip"]
)
def test_no_mask_is_read_where_it_cannot_help(options):
    record, looked_at = record_of(**{"num_frames": 40, **options})
    draw_sample(record, 5, 2, generator(), "anchor")
    assert looked_at == []


def test_windowed_clips_are_sampled_inside_and_outside():
    record, _ = record_of(60, window=(20, 39))
    inside = [record.questions[0].in_window(draw_sample(record, 5, 1, generator(s)).frame_indices) for s in range(300)]
    assert 0.25 < np.mean(inside) < 0.42


def test_draw_sample_refuses_nonsense():
    record, _ = record_of(10)
    with pytest.raises(ValueError, match="strategy"):
        draw_sample(record, 5, 1, generator(), "random")
    with pytest.raises(ValueError, match="max_questions"):
        draw_sample(record, 5, 0, generator())
