"""Several corpora as one endless, seeded sequence of training samples.

Sample ``i`` depends on the seed and on ``i`` alone: not on what was asked for before, on workers, or on processes. A
run that stopped after ``i`` samples goes on with sample ``i``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.corpora import CORPORA, SPELLINGS
from datasets.sample import VideoRecord, VideoSample
from datasets.sampling import draw_sample
from utils.errors import ConfigError, Problems

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
        ConfigError: an empty corpus.
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
        self.rates = np.array(sample_rates, dtype=np.float64) / sum(sample_rates)
        for name, corpus in corpora.items():
            if not len(corpus):
                raise ConfigError(f"corpus {name} has no record; leave it out of --dataset")
        self.num_frames = [num_frames] * len(corpora) if isinstance(num_frames, int) else list(num_frames)
        self.seed, self.max_questions, self.strategy = seed, max_questions, strategy
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


def read_shares(dataset: str, sample_rates: str, problems: Problems) -> dict[str, float]:
    """How often each corpus of a command line is drawn.

    Args:
        dataset: names of :data:`datasets.corpora.CORPORA`, or aliases, joined by ``||``.
        sample_rates: numbers joined by commas, one per corpus; only proportions matter.
        problems: where mistakes go.

    Returns:
        Rates by name of the corpus, in the order given; without meaning if there was a mistake.
    """
    names = [name.strip() for name in dataset.split("||") if name.strip()]
    for name in sorted(set(names) - set(SPELLINGS)) or ([] if names else ["nothing"]):
        problems.add("--dataset", f"{name} is no corpus; known: {', '.join(CORPORA)}")
    known = [SPELLINGS[name].name for name in names if name in SPELLINGS]
    if len(set(known)) < len(known):
        problems.add("--dataset", f"{dataset} names a corpus twice; raise its sample rate instead")
    try:
        rates = [float(rate) for rate in sample_rates.split(",")]
    except ValueError:
        problems.add("--sample_rates", f"{sample_rates!r} is not a list of numbers such as '1,1'")
        return {}
    if len(rates) != len(names):
        problems.add("--sample_rates", f"{len(rates)} rates for {len(names)} corpora ({dataset})")
    if not all(0 <= rate < math.inf for rate in rates) or sum(rates) <= 0:
        problems.add("--sample_rates", f"{sample_rates}: finite, none negative, one above 0")
    return dict(zip(known, rates))


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
        dataset: see :func:`read_shares`.
        sample_rates: see :func:`read_shares`.
        dataset_dir: holds the folders of the corpora.
        seed: see :class:`Mixture`.
        num_frames: see :class:`Mixture`.
        max_questions: see :class:`Mixture`.
        strategy: see :class:`Mixture`.
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.

    Raises:
        ConfigError: unknown or repeated names, rates that do not fit; all are listed.
        DataError: a corpus is missing or has mistakes.
    """
    problems = Problems()
    shares = read_shares(dataset, sample_rates, problems)
    problems.raise_if_any(ConfigError, "these corpora cannot be mixed")
    rows = [CORPORA[name] for name in shares]
    corpora = {row.name: row.open(dataset_dir, on_problem=on_problem) for row in rows}
    frames = [row.frames_per_sample(num_frames) for row in rows]
    return Mixture(corpora, list(shares.values()), seed, frames, max_questions, strategy)
