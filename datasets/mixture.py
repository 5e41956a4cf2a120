"""Several corpora as one endless, seeded sequence of training samples.

Sample ``i`` depends on the seed and on ``i`` alone: not on what was asked for before, on workers, or on processes. A
run that stopped after ``i`` samples goes on with sample ``i``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.corpora import CORPORA, corpus_named
from datasets.sample import VideoRecord, VideoSample
from datasets.sampling import STRATEGIES, draw_sample
from utils.errors import ConfigError

_CHUNK = 4096
"""Corpus choices made at a time."""

_CHOICE, _ORDER, _SAMPLE = range(3)
"""Separate streams of chance for: which corpus, in which order its records, which frames and questions."""


class Mixture:
    """``mixture[i]`` for any ``i >= 0`` is a :class:`VideoSample`; there is no last one.

    The corpus of each sample is drawn with the given rates. Within a corpus every record comes once per pass, in an
    order drawn anew for each pass. A record that cannot be read raises; it is never replaced by another.

    Args:
        corpora: by name; each has at least one record.
        sample_rates: one per corpus, in the same order; not negative, not all zero; only proportions matter.
        seed: not negative.
        num_frames: frames per sample, one number for all corpora or one for each.
        max_questions: questions per sample at most.
        strategy: how frames are drawn, see :func:`datasets.sampling.draw_sample`.

    Raises:
        ConfigError: rates that do not fit, an empty corpus, or a number out of range.
    """

    def __init__(
        self,
        corpora: Mapping[str, Sequence[VideoRecord]],
        sample_rates: Sequence[float],
        seed: int,
        num_frames: int | Sequence[int] = 5,
        max_questions: int = 3,
        strategy: str = "anchor",
    ):
        self.names = tuple(corpora)
        self.corpora = tuple(corpora.values())
        self.rates = _proportions(self.names, sample_rates)
        for name, corpus in zip(self.names, self.corpora):
            if not len(corpus):
                raise ConfigError(f"corpus {name} has no record; leave it out of --dataset")
        frames = [num_frames] * len(self.names) if isinstance(num_frames, int) else list(num_frames)
        if seed < 0 or min(frames) < 1 or max_questions < 1:
            raise ConfigError(
                f"seed must be 0 or more, frames and questions per sample 1 or more; got seed {seed}, "
                f"{min(frames)} frames, {max_questions} questions"
            )
        if strategy not in STRATEGIES:
            raise ConfigError(f"the frame strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        self.seed, self.num_frames, self.max_questions, self.strategy = seed, frames, max_questions, strategy
        self._before = [np.zeros(len(self.names), dtype=np.int64)]  # per chunk: draws of each corpus before it
        self._chunk: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # per corpus: the pass last asked for, and its order

    def __getitem__(self, index: int) -> VideoSample:
        """Sample ``index``.

        Raises:
            DataError: a file it needs cannot be read; the message names it.
            IndexError: a negative index.
        """
        corpus, record = self.locate(index)
        rng = np.random.default_rng([self.seed, _SAMPLE, index])
        return draw_sample(
            self.corpora[corpus][record], self.num_frames[corpus], self.max_questions, rng, self.strategy
        )

    def locate(self, index: int) -> tuple[int, int]:
        """(corpus number, record number) of sample ``index``; reads no file."""
        if index < 0:
            raise IndexError(f"samples are numbered from 0; there is no {index}")
        chunk, place = divmod(index, _CHUNK)
        choices = self._choices(chunk)
        corpus = int(choices[place])
        count = int(self._counts_before(chunk)[corpus]) + int((choices[:place] == corpus).sum())
        which_pass, position = divmod(count, len(self.corpora[corpus]))
        return corpus, int(self._order(corpus, which_pass)[position])

    def _choices(self, chunk: int) -> np.ndarray:
        """int64 [4096]: the corpus of every sample in a chunk."""
        if self._chunk[0] != chunk:
            rng = np.random.default_rng([self.seed, _CHOICE, chunk])
            edges = np.cumsum(self.rates)
            choices = np.searchsorted(edges / edges[-1], rng.random(_CHUNK), side="right")
            self._chunk = chunk, choices
        return self._chunk[1]

    def _counts_before(self, chunk: int) -> np.ndarray:
        """int64 [corpora]: how often each was chosen in all earlier chunks."""
        while len(self._before) <= chunk:
            counts = np.bincount(self._choices(len(self._before) - 1), minlength=len(self.names))
            self._before.append(self._before[-1] + counts)
        return self._before[chunk]

    def _order(self, corpus: int, which_pass: int) -> np.ndarray:
        """The order of a corpus's records in one pass."""
        known = self._orders.get(corpus)
        if known is None or known[0] != which_pass:
            rng = np.random.default_rng([self.seed, _ORDER, corpus, which_pass])
            known = self._orders[corpus] = which_pass, rng.permutation(len(self.corpora[corpus]))
        return known[1]


def _proportions(names: Sequence[str], rates: Sequence[float]) -> np.ndarray:
    """float64, one per corpus, summing to 1.

    Raises:
        ConfigError: they do not fit.
    """
    if not names:
        raise ConfigError(f"no corpus given; --dataset takes names joined by ||: {', '.join(CORPORA)}")
    if len(names) != len(rates):
        raise ConfigError(
            f"{len(names)} corpora ({', '.join(names)}) but {len(rates)} sample rates; give one rate for each, "
            'as in --dataset "refer_video_seg||mevis" --sample_rates "1,1"'
        )
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or not sum(rates) > 0:
        raise ConfigError(f"sample rates must be 0 or more and not all 0; got {', '.join(map(str, rates))}")
    return np.array(rates, dtype=np.float64) / sum(rates)


def build_mixture(
    dataset: str,
    sample_rates: str,
    dataset_dir: str | Path,
    seed: int = 0,
    num_frames: int = 5,
    max_questions: int = 3,
    strategy: str = "anchor",
    on_problem: str = "raise",
) -> Mixture:
    """Open the corpora named on a command line.

    Args:
        dataset: names of :data:`datasets.corpora.CORPORA`, or aliases, joined by ``||``.
        sample_rates: numbers joined by commas, one per corpus.
        dataset_dir: holds the folders of the corpora.
        seed: see :class:`Mixture`.
        num_frames: see :class:`Mixture`.
        max_questions: see :class:`Mixture`.
        strategy: see :class:`Mixture`.
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.

    Raises:
        ConfigError: unknown or repeated names, rates that do not fit.
        DataError: a corpus is missing or has mistakes.
    """
    rows = [corpus_named(name.strip()) for name in dataset.split("||") if name.strip()]
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ConfigError(f"--dataset {dataset!r} names a corpus twice; raise its sample rate instead")
    try:
        rates = [float(rate) for rate in sample_rates.split(",")]
    except ValueError:
        raise ConfigError(f"--sample_rates {sample_rates!r} must be numbers joined by commas, as in 1,1") from None
    _proportions(names, rates)  # before the corpora are opened, which takes time
    corpora = {row.name: row.open(dataset_dir, on_problem=on_problem) for row in rows}
    frames = [row.frames_per_sample(num_frames) for row in rows]
    return Mixture(corpora, rates, seed, frames, max_questions, strategy)
