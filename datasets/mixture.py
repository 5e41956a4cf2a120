"""Several corpora as one endless, seeded sequence of training samples.

Sample ``i`` depends on the seed and on ``i`` alone: not on what was asked for before, on workers, or on processes. A
run that stopped after ``i`` samples goes on with sample ``i``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.corpora.base import Corpus
from datasets.corpora.groundmore import GroundMoRe
from datasets.corpora.mevis import MeViS
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos
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
        num_frames: frames per sample.
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
        num_frames: int = 5,
        max_questions: int = 3,
        strategy: str = "anchor",
    ):
        self.names = tuple(corpora)
        self.corpora = tuple(corpora.values())
        self.rates = _proportions(self.names, sample_rates)
        for name, corpus in zip(self.names, self.corpora):
            if not len(corpus):
                raise ConfigError(f"corpus {name} has no record; leave it out of --dataset")
        if seed < 0 or num_frames < 1 or max_questions < 1:
            raise ConfigError(
                f"seed must be 0 or more, frames and questions per sample 1 or more; got seed {seed}, "
                f"{num_frames} frames, {max_questions} questions"
            )
        if strategy not in STRATEGIES:
            raise ConfigError(f"the frame strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        self.seed, self.num_frames, self.max_questions, self.strategy = seed, num_frames, max_questions, strategy
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
        return draw_sample(self.corpora[corpus][record], self.num_frames, self.max_questions, rng, self.strategy)

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
        raise ConfigError(f"no corpus given; --dataset takes keys joined by ||: {', '.join(KNOWN)}")
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
        dataset: keys joined by ``||``: refer_video_seg, mevis, groundmore.
        sample_rates: numbers joined by commas, one per key.
        dataset_dir: holds ``refytvos/``, ``MeViSv2/`` (or ``mevis/``), and ``GroundMoRe/`` with ``trainval_v2.json``
            and ``groundmore_videos/``.
        seed: see :class:`Mixture`.
        num_frames: see :class:`Mixture`.
        max_questions: see :class:`Mixture`.
        strategy: see :class:`Mixture`.
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Corpus`.

    Raises:
        ConfigError: unknown or repeated keys, rates that do not fit.
        DataError: a corpus is missing or has mistakes.
    """
    keys = [key.strip() for key in dataset.split("||") if key.strip()]
    unknown = [key for key in keys if key not in KNOWN]
    if unknown:
        raise ConfigError(f"unknown corpus {', '.join(unknown)} in --dataset {dataset!r}; known: {', '.join(KNOWN)}")
    if len(set(keys)) != len(keys):
        raise ConfigError(f"--dataset {dataset!r} names a corpus twice; raise its sample rate instead")
    try:
        rates = [float(rate) for rate in sample_rates.split(",")]
    except ValueError:
        raise ConfigError(f"--sample_rates {sample_rates!r} must be numbers joined by commas, as in 1,1") from None
    _proportions(keys, rates)  # before the corpora are opened, which takes time
    corpora = {key: KNOWN[key](Path(dataset_dir), on_problem) for key in keys}
    return Mixture(corpora, rates, seed, num_frames, max_questions, strategy)


def _open_refer_youtube_vos(folder: Path, on_problem: str) -> Corpus:
    return ReferYoutubeVos(folder / "refytvos", on_problem=on_problem)


def _open_mevis(folder: Path, on_problem: str) -> Corpus:
    roots = [folder / "MeViSv2", folder / "mevis"]
    return MeViS(next((root for root in roots if os.path.isdir(root)), roots[0]), on_problem=on_problem)


def _open_groundmore(folder: Path, on_problem: str) -> Corpus:
    root = folder / "GroundMoRe"
    return GroundMoRe(root / "trainval_v2.json", root / "groundmore_videos", on_problem=on_problem)


KNOWN: dict[str, Callable[[Path, str], Corpus]] = {
    "refer_video_seg": _open_refer_youtube_vos,
    "mevis": _open_mevis,
    "groundmore": _open_groundmore,
}
"""How each key of ``--dataset`` is opened, given the folder of all corpora and ``on_problem``."""
