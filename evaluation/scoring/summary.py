"""From scores per question to the tables: means with intervals, reference rows, differences, tokens, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from evaluation.benchmark import DEFAULT, OVERALL, Benchmark, benchmark_of, find_benchmark
from evaluation.protocol import Protocol
from evaluation.scoring.statistics import METHOD, VideoBootstrap

SUMMARY_FORMAT = "mora-summary-2"


def summarise(scores: Sequence[dict], protocol: Protocol, run: dict, benchmark: Benchmark | None = None) -> dict:
    """Aggregate scored questions.

    Args:
        scores: from ``evaluation.scoring.score``, one per question, failures included.
        protocol: as scored.
        run: the run's settings, stored as they are.
        benchmark: as scored; default GroundMoRe.

    Returns:
        JSON-able summary; the schema is in docs/evaluation.md.
    """
    benchmark = benchmark or find_benchmark()
    bootstrap = VideoBootstrap([score["video_id"] for score in scores], per_video=protocol.aggregation == "videos")
    measures = {measure.key: measure.meaning for measure in benchmark.measures}
    values = {name: {key: row_values(scores, name, key) for key in measures} for name in benchmark.rows}
    ok = np.array([score["status"] == "ok" for score in scores], dtype=bool)

    def table(columns: dict[str, np.ndarray], counted: np.ndarray | None = None) -> dict[str, dict]:
        return _table(columns, [score["q_type"] for score in scores], benchmark.groups, bootstrap, counted)

    return {
        "format": SUMMARY_FORMAT,
        **({} if benchmark.name == DEFAULT else {"benchmark": benchmark.name}),
        "protocol": protocol.as_dict(),
        "run": run,
        "counts": {
            "videos": len({score["video_id"] for score in scores}),
            "questions": len(scores),
            "questions_ok": int(ok.sum()),
            "questions_failed": int((~ok).sum()),
            "questions_of_no_known_type": sum(
                bool(benchmark.groups) and score["q_type"] not in benchmark.groups for score in scores
            ),
            **benchmark.kind.count(scores),
        },
        "interval": {
            "method": METHOD,
            "level": bootstrap.level,
            "draws": len(bootstrap.counts),
            "seed": bootstrap.seed,
        },
        "measures": measures,
        "rows": {
            name: {"kind": kind, "meaning": meaning, "table": table(values[name])}
            for name, (kind, meaning) in benchmark.rows.items()
        },
        "differences": {
            name: {
                "meaning": f"model - {name}, question by question",
                "table": table({key: values["model"][key] - values[name][key] for key in measures}),
            }
            for name in benchmark.rows
            if name != "model"
        },
        "tokens": _tokens(scores, benchmark, table, ok),
        "failures": [
            {"video_id": score["video_id"], "query_id": score["query_id"], "reason": score["reason"]}
            for score in scores
            if score["status"] != "ok"
        ],
    }


def _tokens(scores: Sequence[dict], benchmark: Benchmark, table: Callable[..., dict], ok: np.ndarray) -> dict:
    """How the questions that did not fail were answered."""
    facts = [benchmark.kind.facts(score) if score["status"] == "ok" else {} for score in scores]
    meanings = {token.key: token.meaning for token in benchmark.kind.tokens}
    columns = {key: _numbers(fact.get(key) for fact in facts) for key in meanings}
    return {"measures": meanings, "table": table(columns, ok)}


def row_values(scores: Sequence[dict], row: str, measure: str) -> np.ndarray:
    """float64 [N]: one measure of one row per question; NaN where it does not apply."""
    return _numbers(score["rows"][row].get(measure) for score in scores)


def best_baseline(summary: dict) -> tuple[str, float] | None:
    """Name and value of the row of kind "baseline" that scores best overall, by the headline; None without one."""
    measure = benchmark_of(summary).measures[0].key
    values = {
        name: row["table"][OVERALL][measure]["mean"]
        for name, row in summary["rows"].items()
        if row["kind"] == "baseline" and row["table"][OVERALL][measure] is not None
    }
    name = max(values, key=values.__getitem__, default=None)
    return None if name is None else (name, values[name])


def split_table(values: np.ndarray, kinds: Sequence[str], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """One measure per question, overall and for each group alone.

    Args:
        values: float [N].
        kinds: group of every question.
        groups: those of the benchmark.

    Returns:
        {"Overall" or a group: float [N], NaN for the questions of other groups}.
    """
    types = np.asarray(kinds, dtype=np.str_)
    return {OVERALL: values} | {name: np.where(types == name, values, np.nan) for name in groups}


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """float64 [N], NaN for None."""
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _table(
    columns: dict[str, np.ndarray],
    kinds: Sequence[str],
    groups: Sequence[str],
    bootstrap: VideoBootstrap,
    counted: np.ndarray | None,
) -> dict[str, dict]:
    """{split: {"N": questions, key: cell or None}} from one value per question and key.

    Args:
        columns: float [N] each.
        kinds: group of every question.
        groups: those of the benchmark.
        bootstrap: of the same questions.
        counted: bool [N], the questions that "N" counts; None: all.
    """
    counted = np.ones(len(kinds), dtype=bool) if counted is None else counted
    numbers = split_table(np.where(counted, 1.0, np.nan), kinds, groups)
    split = {
        (key, name): part
        for key, column in columns.items()
        for name, part in split_table(column, kinds, groups).items()
    }
    cells = dict(zip(split, bootstrap.cells(np.stack(list(split.values()), axis=1)))) if split else {}
    return {
        name: {"N": int(np.nansum(number)), **{key: cells[key, name] for key in columns}}
        for name, number in numbers.items()
    }
