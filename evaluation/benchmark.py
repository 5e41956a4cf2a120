"""What a benchmark is to the evaluation: one row that says what is asked, how it is scored and how that is shown.

Engine, records, shards, statistics and report read the row and know no benchmark by name. A new one is a file in
``evaluation/benchmarks`` with a ``BENCHMARK`` in it, and a line in :data:`BENCHMARKS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Benchmark:
    """One row.

    Attributes:
        name: as ``--benchmark`` gives it.
        groups: parts of the questions that have means of their own, besides :data:`OVERALL`; ``Question.q_type`` names
            a question's.
        measures: what is averaged over questions, the headline first.
        rows: name -> (kind, meaning) of what is scored beside the model: kind "result", "baseline", "ablation" or
            "oracle"; "model" first.
        tables: place -> title of the tables of measures by group.
        tokens: how the answers came about, averaged over those that did not fail.
    """

    name: str
    groups: tuple[str, ...]
    measures: tuple[Measure, ...]
    rows: Mapping[str, tuple[str, str]]
    tables: Mapping[str, str]
    tokens: tuple[Measure, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Lines of a table by group."""
        return (OVERALL, *self.groups)

    def columns(self, where: str) -> tuple[Measure, ...]:
        """The measures that a place shows, in their order."""
        return tuple(measure for measure in self.measures if where in measure.where)


BENCHMARKS = {"groundmore": "groundmore"}
"""Name -> the module in ``evaluation/benchmarks`` that holds its row."""


def find_benchmark(name: str = "groundmore") -> Benchmark:
    """The row of that name; imports its module.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"--benchmark {name}: unknown; choose one of {', '.join(BENCHMARKS)}")
    return importlib.import_module(f"evaluation.benchmarks.{BENCHMARKS[name]}").BENCHMARK


def benchmark_of(summary: Mapping) -> Benchmark:
    """The row that a ``summary.json`` was made under."""
    return find_benchmark(summary.get("benchmark", "groundmore"))
