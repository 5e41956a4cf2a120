"""What a benchmark is to the evaluation: one row that says what is asked, how it is scored and how that is shown.

Engine, records, shards, statistics and report read the row and know no benchmark by name. A new one is a file in
``evaluation/benchmarks`` with a ``BENCHMARK`` in it, and a line in :data:`BENCHMARKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.corpora import corpus_named, load
from datasets.sample import Question, VideoRecord
from evaluation.protocol import Protocol
from utils.errors import ConfigError

OVERALL = "Overall"
"""The group of all questions."""


@dataclass(frozen=True)
class Measure:
    """A number per question of which means are shown: one column of the tables.

    Attributes:
        key: in scores and summaries.
        label: of the column, in tables and on the page alike.
        meaning: in one sentence.
        where: places that show it: a key of ``Benchmark.tables``, "reference" (the table of all rows), "detail" (one
            question on the page), "tile" (the page's head), "demo" (the demo's summary).
        format: "f": a number; "%": a share, shown in percent; "?": a share, of one question yes or no.
        better: "higher" or "lower"; "" for what two runs on one corpus cannot differ in.
    """

    key: str
    label: str
    meaning: str
    where: tuple[str, ...] = ()
    format: str = "f"
    better: str = "higher"


def _nothing(_: Any) -> dict:
    return {}


@dataclass(frozen=True)
class Kind:
    """What predictions are made of, and what follows from it whatever the benchmark.

    Attributes:
        name: "masks", "points" or "text"; of ``Record.kind``.
        truths: (video, distinct frames int [U], protocol) -> what reads the ground truth of one of its questions; that
            may raise DataError.
        state: (video) -> what the ground truth was read from, besides question and frames, JSON-able: a score whose
            truth has changed is made again.
        tokens: how the answers came about, averaged over those that did not fail.
        facts: (score of a question) -> its values of ``tokens``.
        count: (scores) -> numbers for the summary.
    """

    name: str
    truths: Callable[[VideoRecord, np.ndarray, Protocol], Callable[[Question], Any]]
    state: Callable[[VideoRecord], Any] = _nothing
    tokens: tuple[Measure, ...] = ()
    facts: Callable[[dict], dict[str, float | None]] = _nothing
    count: Callable[[Sequence[dict]], dict[str, int]] = _nothing


@dataclass(frozen=True)
class Benchmark:
    """One row.

    Attributes:
        name: as ``--benchmark`` gives it.
        corpus: name of its row among the corpora.
        kind: of its predictions.
        score: (truth or None, record or None, question, listed frames int [n], protocol) -> {"rows": {row: {measure:
            number or None}}, and what else is to be kept of the question}, JSON-able. A row or measure that is left out
            is None. DataError: the record cannot be scored, for the reason that it gives.
        groups: parts of the questions that have means of their own, besides :data:`OVERALL`; ``Question.q_type`` names
            a question's.
        measures: what is averaged over questions, the headline first; that one is also in "reference".
        rows: name -> (kind, meaning) of what is scored beside the model: kind "result", "baseline", "ablation" or
            "oracle"; "model" first.
        constant: the rows made without the model: two runs that differ in them did not see the same truth.
        tables: place -> title of the tables of measures by group.
        zero: measures that are 0, in every row, if the ground truth cannot be read.
        protocol: the preset that ``--protocol`` names unless it is given.
        inputs: flag -> (default, what to do if there is no such place) of the flags that say where the corpus lies.
        open: (input by flag, protocol) -> the videos, if the corpus's reader is not opened at ``video_root``.
        split: of the corpus, if it is.
    """

    name: str
    corpus: str
    kind: Kind
    score: Callable[..., dict]
    groups: tuple[str, ...]
    measures: tuple[Measure, ...]
    rows: Mapping[str, tuple[str, str]]
    constant: tuple[str, ...]
    tables: Mapping[str, str]
    zero: tuple[str, ...]
    protocol: str
    inputs: Mapping[str, tuple[str, str]]
    open: Callable[[Mapping[str, str], Protocol], Sequence[VideoRecord]] | None = None
    split: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Lines of a table by group."""
        return (OVERALL, *self.groups)

    def videos(self, inputs: Mapping[str, str], protocol: Protocol) -> Sequence[VideoRecord]:
        """The videos with their questions; ``inputs``: by flag.

        Raises:
            DataError: the corpus is missing or has mistakes.
        """
        if self.open is not None:
            return self.open(inputs, protocol)
        return load(corpus_named(self.corpus).reader).open(inputs["video_root"], self.split, "raise")

    def places(self, **given: str | None) -> dict[str, str]:
        """Where the corpus lies, by flag; ``given`` wins over the benchmark's defaults."""
        return {name: given.get(name) or default for name, (default, _) in self.inputs.items()}

    @property
    def compared(self) -> tuple[Measure, ...]:
        """The measures in which two runs can differ."""
        return tuple(measure for measure in self.measures if measure.better)

    @property
    def tokens(self) -> tuple[Measure, ...]:
        """How the answers came about; see :class:`Kind`."""
        return self.kind.tokens

    def columns(self, where: str) -> tuple[Measure, ...]:
        """The measures that a place shows, in their order."""
        return tuple(measure for measure in self.measures if where in measure.where)


DEFAULT = "groundmore"

BENCHMARKS = {
    "groundmore": "evaluation.benchmarks.groundmore:BENCHMARK",
    "mevis_valid_u": "evaluation.benchmarks.mevis:BENCHMARK",
}
"""Name -> "module:name" of its row; the module is imported when the row is asked for."""


def find_benchmark(name: str = DEFAULT) -> Benchmark:
    """The row of that name; imports its module.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    if not isinstance(name, str) or name not in BENCHMARKS:
        raise ConfigError(f"--benchmark {name}: unknown; choose one of {', '.join(BENCHMARKS)}")
    return load(BENCHMARKS[name])


def benchmark_of(summary: Mapping) -> Benchmark:
    """The row that a ``summary.json`` was made under."""
    return find_benchmark(summary.get("benchmark", DEFAULT))
