"""Means over questions with error bars, where questions about one video are not independent of each other.

Questions about one clip share its frames, its objects and often its window, so the unit that is drawn again is the
video: all its questions come along (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8). Intervals are plain percentiles of the resampled means. BCa would add a correction for
skewness, which is undefined exactly where such tables have corners (all values equal, two videos of a type), and a
percentile interval of a difference excludes 0 just when 97.5% of the draws lie on one side of it, so the two ways to
read a comparison agree.

Nothing here depends on the order of the questions, the number of threads or the version of NumPy: videos are sorted by
id, draws are taken from the raw stream of a bit generator, and sums are made of integers small enough to be exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
LEVEL = 0.95
SEED = 20_251_118
METHOD = "percentile bootstrap clustered by video"

EXACT_BITS = 52
"""Integers below 2**53 are exact in float64; one bit is left for the rounding of the values."""

DECIMALS = 10
"""Digits kept of errors and bounds, well above the quantisation of the sums (2**-39 for a test set of 2,005)."""


def mean_and_error(values: Sequence[float], clusters: Sequence) -> tuple[float, float | None]:
    """Mean and its standard error when values of one cluster are not independent.

    The error is the cluster-robust one: sqrt(G / (G - 1) * sum over clusters of (sum of residuals)^2) / N. With one
    value per cluster it is the usual standard error of the mean.

    Args:
        values: at least one.
        clusters: the cluster (video) of every value.

    Returns:
        (mean, standard error); the error is None with fewer than two clusters.
    """
    mean = math.fsum(values) / len(values)
    residuals: dict = {}
    for value, cluster in zip(values, clusters):
        residuals.setdefault(cluster, []).append(value - mean)
    groups = len(residuals)
    if groups < 2:
        return mean, None
    total = math.fsum(math.fsum(group) ** 2 for group in residuals.values())
    return mean, math.sqrt(groups / (groups - 1) * total) / len(values)


class VideoBootstrap:
    """Draws of videos with replacement, made once and shared, so that every mean meets the same resampled test sets.

    Args:
        videos: the video id of every question; fixes what a row of ``values`` is in the methods below.
        draws: number of resampled test sets.
        level: share of the draws inside an interval, 0 to 1.
        seed: of the draws.
        per_video: every mean is one over videos, of the means over each video's questions; "N" counts videos.

    Attributes:
        video_of: int64 [N], position of each question's video among the sorted ids.
        counts: float64 [draws, G], how often each of the G videos was drawn; every row sums to G.
    """

    def __init__(
        self,
        videos: Sequence[str],
        draws: int = DRAWS,
        level: float = LEVEL,
        seed: int = SEED,
        per_video: bool = False,
    ):
        self.level, self.seed, self.per_video = level, seed, per_video
        # Not NumPy's texts, which lose a NUL at their end.
        places = {name: place for place, name in enumerate(sorted(set(videos)))}
        self.video_of = np.array([places[name] for name in videos], dtype=np.int64)
        self.groups = len(places)
        self.counts = _draw_counts(self.groups, draws, seed)

    def cells(self, values: np.ndarray) -> list[dict | None]:
        """One table cell per column.

        Args:
            values: float [N, M], a measure per column; NaN where a question has no value.

        Returns:
            M times {"mean", "stderr", "low", "high", "N"}, or None where no question has a value. Error and bounds are
            None if the values come from fewer than two videos.
        """
        values = self.weighted(values)
        bounds = self.intervals(values)
        table: list[dict | None] = []
        for column, interval in zip(values.T, bounds):
            present = ~np.isnan(column)
            if not present.any():
                table.append(None)
                continue
            mean, error = mean_and_error(column[present].tolist(), self.video_of[present].tolist())
            low, high = (None, None) if interval is None else interval
            error = None if error is None else round(error, DECIMALS)
            table.append({"mean": mean, "stderr": error, "low": low, "high": high, "N": int(present.sum())})
        return table

    def intervals(self, values: np.ndarray) -> list[tuple[float, float] | None]:
        """Percentile interval of the mean of every column of ``values`` (see :meth:`cells`); None if there is none.

        A draw that contains no question with a value has no mean and is left out of that column.
        """
        videos = self._videos_with_values(values)
        edges = [(1 - self.level) / 2, (1 + self.level) / 2]
        intervals: list[tuple[float, float] | None] = []
        for means, count in zip(self.means(values), videos):
            if count < 2:
                intervals.append(None)
                continue
            low, high = np.quantile(means[~np.isnan(means)], edges)
            intervals.append((round(float(low), DECIMALS), round(float(high), DECIMALS)))
        return intervals

    def means(self, values: np.ndarray) -> np.ndarray:
        """float64 [M, draws]: mean of every column in every draw; NaN where a draw has no value."""
        values = self.weighted(values)
        sums, scale = self._sums(values)
        numbers = self._per_video(~np.isnan(values))
        with np.errstate(invalid="ignore"):
            return (sums.T @ self.counts.T) / (numbers.T @ self.counts.T) / scale[:, None]

    def share_above_zero(self, values: np.ndarray) -> list[float | None]:
        """Share of the draws whose mean is above 0, per column; draws at exactly 0 count half. None as in intervals."""
        shares: list[float | None] = []
        for means, count in zip(self.means(values), self._videos_with_values(values)):
            means = means[~np.isnan(means)]
            shares.append(None if count < 2 else float(((means > 0).mean() + (means >= 0).mean()) / 2))
        return shares

    def sign_flip_p(self, values: np.ndarray) -> list[float | None]:
        """Two-sided p-value, per column, that differences as far from 0 arise if each video's sign is a coin toss.

        The statistic is the sum of the differences. All differences of a video are flipped together; (1 + number of
        draws at least as far from 0) / (1 + draws). Exact ties count, as sums are exact. None as in intervals.
        """
        values = self.weighted(values)
        sums, _ = self._sums(values)
        signs = _draw_signs(self.groups, len(self.counts), self.seed + 1)
        flipped = np.abs(sums.T @ signs.T)
        far = (flipped >= np.abs(sums.sum(axis=0))[:, None]).sum(axis=1)
        return [
            None if count < 2 else (1 + int(number)) / (1 + len(signs))
            for number, count in zip(far, self._videos_with_values(values))
        ]

    def weighted(self, values: np.ndarray) -> np.ndarray:
        """float64 [N, M]: the values of which means are taken. As they are; or, ``per_video``, the mean of each video's
        values, standing at the first of them, and NaN elsewhere."""
        if not self.per_video:
            return values
        means = np.full_like(values, np.nan, dtype=np.float64)
        for column, target in zip(values.T, means.T):
            groups: dict[int, list[int]] = {}
            for place in np.flatnonzero(~np.isnan(column)).tolist():
                groups.setdefault(int(self.video_of[place]), []).append(place)
            for places in groups.values():
                target[places[0]] = math.fsum(column[places]) / len(places)
        return means

    def _videos_with_values(self, values: np.ndarray) -> np.ndarray:
        """int [M]."""
        return (self._per_video(~np.isnan(values)) > 0).sum(axis=0)

    def _sums(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(float64 [G, M] of integers, scale [M]): per video and column the sum of the values times ``scale``.

        Integers, and so small that no sum of G of them rounds: the order of summation cannot show.
        """
        filled = np.nan_to_num(values, nan=0.0)
        largest = self.groups * self._per_video(np.abs(filled)).max(axis=0, initial=0.0)
        scale = np.ldexp(1.0, EXACT_BITS - np.frexp(np.maximum(largest, 1.0))[1])
        return self._per_video(np.rint(filled * scale)), scale

    def _per_video(self, values: np.ndarray) -> np.ndarray:
        """float64 [G, M]: sums over the questions of every video."""
        sums = np.zeros((self.groups, values.shape[1]))
        np.add.at(sums, self.video_of, values)
        return sums


def _draw_counts(groups: int, draws: int, seed: int) -> np.ndarray:
    """float64 [draws, groups]: how often each group is drawn when ``groups`` are drawn with replacement."""
    if groups == 0:
        return np.zeros((draws, 0))
    # The raw stream is the only part of numpy.random that promises to stay the same between versions.
    raw = np.random.PCG64(seed).random_raw(draws * groups) >> np.uint64(32)
    drawn = ((raw * np.uint64(groups)) >> np.uint64(32)).astype(np.int64).reshape(draws, groups)
    flat = (drawn + np.arange(draws)[:, None] * groups).ravel()
    return np.bincount(flat, minlength=draws * groups).reshape(draws, groups).astype(np.float64)


def _draw_signs(groups: int, draws: int, seed: int) -> np.ndarray:
    """float64 [draws, groups] of -1 and 1."""
    raw = np.random.PCG64(seed).random_raw(draws * groups) >> np.uint64(63)
    return raw.astype(np.float64).reshape(draws, groups) * 2 - 1
