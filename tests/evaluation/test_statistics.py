"""Intervals against enumeration, a slow loop, normal theory and simulated truth; and what must not change them."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest

from evaluation.scoring.statistics import VideoBootstrap, mean_and_error

VIDEOS = ["a", "a", "a", "b", "c", "c", "d"]
VALUES = [0.1, 0.2, 0.9, 0.4, 1.0, 0.7, 0.0]


def column(values) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def by_video(videos, values) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for video, value in zip(videos, values):
        groups.setdefault(video, []).append(value)
    return groups


def clustered(rng, groups, spread=0.3, noise=0.1, centre=0.5):
    """Videos with a common effect and 1 to 9 questions each; every question has the expectation ``centre``."""
    videos, values = [], []
    for group in range(groups):
        effect = rng.normal(0, spread)
        for _ in range(rng.integers(1, 10)):
            videos.append(f"v{group:04d}")
            values.append(centre + effect + rng.normal(0, noise))
    return videos, values


def test_every_draw_is_the_mean_of_the_questions_of_the_drawn_videos():
    bootstrap = VideoBootstrap(VIDEOS, draws=200)
    groups = by_video(VIDEOS, VALUES)
    means = bootstrap.means(column(VALUES))[0]
    for mean, counts in zip(means, bootstrap.counts):
        drawn = [value for times, video in zip(counts, sorted(groups)) for value in groups[video] * int(times)]
        assert mean == pytest.approx(statistics.fmean(drawn), abs=1e-12)


def test_videos_are_drawn_with_replacement_and_equal_chances():
    counts = VideoBootstrap([str(i) for i in range(30)]).counts
    assert counts.shape == (10_000, 30) and (counts.sum(axis=1) == 30).all()
    # Multinomial: mean 1, variance 1 - 1/G, covariance -1/G.
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.05
    covariance = np.cov(counts.T)
    assert np.abs(covariance - (np.eye(30) - 1 / 30)).max() < 0.06


def test_the_distribution_is_that_of_all_possible_draws():
    groups = list(by_video(VIDEOS, VALUES).values())
    exact = sorted(statistics.fmean(sum(drawn, [])) for drawn in itertools.product(groups, repeat=4))
    assert len(exact) == 256
    found = VideoBootstrap(VIDEOS).means(column(VALUES))[0]
    for at in np.linspace(0.0517, 0.9531, 19):
        expected = sum(value <= at for value in exact) / 256
        assert (found <= at).mean() == pytest.approx(expected, abs=0.02)
    ((low, high),) = VideoBootstrap(VIDEOS).intervals(column(VALUES))
    assert min(abs(low - value) for value in exact[3:11]) < 1e-9
    assert min(abs(high - value) for value in exact[-11:-3]) < 1e-9


def test_the_interval_is_that_of_a_slow_loop():
    videos, values = clustered(np.random.default_rng(1), 40)
    groups, generator = list(by_video(videos, values).values()), random.Random(5)
    means = sorted(statistics.fmean(sum(generator.choices(groups, k=40), [])) for _ in range(4000))
    (cell,) = VideoBootstrap(videos).cells(column(values))
    width = means[3899] - means[100]
    assert cell["low"] == pytest.approx(means[100], abs=0.05 * width)
    assert cell["high"] == pytest.approx(means[3899], abs=0.05 * width)


def test_with_many_videos_it_is_the_normal_interval():
    videos, values = clustered(np.random.default_rng(2), 400)
    (cell,) = VideoBootstrap(videos).cells(column(values))
    assert cell["mean"] == pytest.approx(statistics.fmean(values)) and cell["N"] == len(values)
    for bound, sign in (("low", -1), ("high", 1)):
        assert cell[bound] == pytest.approx(cell["mean"] + sign * 1.96 * cell["stderr"], abs=0.1 * cell["stderr"])


def test_intervals_hold_the_truth_as_often_as_they_say_but_not_if_questions_are_taken_as_independent():
    rng, hits, naive_hits, trials = np.random.default_rng(3), 0, 0, 200
    for _ in range(trials):
        videos, values = clustered(rng, 60)
        ((low, high),) = VideoBootstrap(videos, draws=600).intervals(column(values))
        hits += low <= 0.5 <= high
        ((low, high),) = VideoBootstrap([str(i) for i in range(len(values))], draws=600).intervals(column(values))
        naive_hits += low <= 0.5 <= high
    assert 0.90 <= hits / trials <= 0.985
    assert naive_hits / trials < 0.80


def test_the_order_of_the_questions_and_the_names_do_not_matter():
    videos, values = clustered(np.random.default_rng(4), 25)
    table = np.stack([values, np.square(values)], axis=1)
    table[::3, 1] = np.nan
    cells = VideoBootstrap(videos).cells(table)
    order = np.random.default_rng(0).permutation(len(videos))
    assert VideoBootstrap([videos[i] for i in order]).cells(table[order]) == cells
    assert VideoBootstrap([f"clip {video}" for video in videos]).cells(table) == cells
    assert VideoBootstrap(videos).cells(table) == cells


def test_a_column_does_not_depend_on_those_beside_it():
    # One column is a matrix-vector product, many are a blocked one: only exact sums agree bit for bit.
    videos, values = clustered(np.random.default_rng(5), 90)
    table = np.random.default_rng(6).normal(size=(len(values), 40)) * 10.0 ** np.arange(-3, 1).repeat(10)
    bootstrap = VideoBootstrap(videos, draws=2000)
    together = bootstrap.means(table)
    for index in range(40):
        assert (bootstrap.means(table[:, index : index + 1])[0] == together[index]).all()


def test_questions_without_a_value_are_left_out():
    values = column([0.1, math.nan, 0.9, math.nan, 1.0, 0.7, math.nan])
    (cell,) = VideoBootstrap(VIDEOS).cells(values)
    assert cell["N"] == 4 and cell["mean"] == pytest.approx(2.7 / 4)
    # Draws of b and d alone have no mean; the rest is a (0.5), c (0.85) and mixes.
    means = VideoBootstrap(VIDEOS).means(values)[0]
    assert np.isnan(means).mean() == pytest.approx((2 / 4) ** 4, abs=0.01)
    assert (cell["low"], cell["high"]) == (0.5, 0.85)


def test_degenerate_tables():
    nothing = [math.nan] * 7
    one_video = [0.2, 0.4, math.nan, *[math.nan] * 4]
    constant = [0.1] * 7
    cells = VideoBootstrap(VIDEOS).cells(np.array([nothing, one_video, constant]).T)
    assert cells[0] is None
    assert cells[1] == {"mean": pytest.approx(0.3), "stderr": None, "low": None, "high": None, "N": 2}
    assert cells[2] == {"mean": 0.1, "stderr": 0.0, "low": 0.1, "high": 0.1, "N": 7}
    assert VideoBootstrap(["a"] * 3).cells(column([0, 1, 1]))[0]["low"] is None
    assert VideoBootstrap([]).cells(np.zeros((0, 2))) == [None, None]
    bootstrap = VideoBootstrap(VIDEOS)
    assert bootstrap.share_above_zero(column(one_video)) == bootstrap.sign_flip_p(column(one_video)) == [None]


def test_standard_errors_are_clustered_by_video():
    mean, error = mean_and_error([0.1, 0.5, 0.9, 0.4], list("abcd"))
    assert mean == pytest.approx(0.475)
    assert error == pytest.approx(statistics.stdev([0.1, 0.5, 0.9, 0.4]) / 2)
    repeated = mean_and_error([0.1] * 3 + [0.9] * 3, ["a"] * 3 + ["b"] * 3)[1]
    assert repeated == pytest.approx(statistics.stdev([0.1, 0.9]) / math.sqrt(2))
    assert mean_and_error([0.3, 0.4], ["a", "a"]) == (pytest.approx(0.35), None)


def test_draws_at_zero_count_half():
    # 0.3 - 0.1 and 0.1 - 0.3 cancel only if sums are exact; so do equal runs.
    videos, difference = ["a", "b"], column([0.3 - 0.1, 0.1 - 0.3])
    bootstrap = VideoBootstrap(videos)
    means = bootstrap.means(difference)[0]
    assert (means == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert bootstrap.share_above_zero(difference)[0] == pytest.approx(0.5, abs=0.01)
    assert bootstrap.sign_flip_p(difference) == [1.0]
    assert bootstrap.share_above_zero(column([0, 0])) == [0.5] and bootstrap.sign_flip_p(column([0, 0])) == [1.0]
    assert bootstrap.share_above_zero(column([0.1, 0.2])) == [1.0]
    assert bootstrap.share_above_zero(column([-0.1, -0.2])) == [0.0]


def test_p_is_the_share_of_sign_patterns_as_far_from_zero():
    videos = [str(group) for group in range(8) for _ in range(2)]
    values = np.random.default_rng(7).normal(0.15, 0.3, 16)
    sums = values.reshape(8, 2).sum(axis=1)
    flipped = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=8)]
    expected = np.mean(np.array(flipped) >= abs(sums.sum()) - 1e-12)
    found, mirrored = VideoBootstrap(videos).sign_flip_p(np.stack([values, -values], axis=1))
    assert found == pytest.approx(expected, abs=0.02) and mirrored == found
    assert 0.01 < expected < 0.9  # a case that could go wrong


def test_p_is_uniform_when_there_is_no_difference():
    rng, small, trials = np.random.default_rng(8), 0, 300
    for _ in range(trials):
        videos, values = clustered(rng, 12, centre=0.0)
        small += VideoBootstrap(videos, draws=400).sign_flip_p(column(values))[0] <= 0.1
    assert small / trials == pytest.approx(0.1, abs=0.05)
