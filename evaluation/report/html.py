"""``report.html``: one file that opens offline, with tables, the distribution, and a gallery of questions.

Equal inputs give equal bytes. The page loads nothing: its own content security policy forbids it, and allows only the
scripts that it was written with. Every text in its templates is escaped unless it is marked as safe here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from datasets.sample import VideoRecord
from evaluation.benchmark import OVERALL, Benchmark, benchmark_of
from evaluation.protocol import Protocol
from evaluation.report.data import gallery_data
from evaluation.report.failures import breakdown
from evaluation.report.text import count_sentences
from evaluation.scoring import best_baseline
from utils.files import atomic_write

ASSETS = Path(__file__).with_name("assets")

LIMIT = 60
"""Questions shown with frames unless told otherwise."""

BINS = 20


def write_report_page(
    videos: Sequence[VideoRecord],
    output_dir: str | Path,
    scores: Sequence[dict],
    summary: dict,
    protocol: Protocol,
    limit: int = LIMIT,
    only: set[tuple[str, str]] | None = None,
) -> Path | None:
    """Write ``report.html`` into a run folder, atomically.

    Args:
        videos: the ground truth.
        output_dir: run folder with the records.
        scores: per question, from ``evaluation.score``.
        summary: of the same scores.
        protocol: as scored.
        limit: questions shown with frames: half of them those that lost most, the rest evenly over the ranking. The
            other questions are listed with their scores. 0 writes nothing.
        only: (video id, question id) of the questions that may be shown with frames; None: all.

    Returns:
        The page, or None if there was nothing to show.

    Raises:
        DataError: a record of a scored question is missing or damaged.
    """
    if limit < 1 or not scores:
        return None
    benchmark = benchmark_of(summary)
    data = gallery_data(videos, str(output_dir), scores, benchmark, protocol, limit, only)
    run = summary["run"]
    name = Path(str(run.get("about", {}).get("version", ""))).name or "MoRA"
    settings = {key: value for key, value in run.get("settings", {}).items() if key != "protocol"}
    selection = {key: value for key, value in run.get("selection", {}).items() if value is not None}
    page = render(
        "page.html",
        benchmark=benchmark,
        headline=benchmark.measures[0],
        everything=OVERALL,
        name=name,
        summary=summary,
        lines=summary["rows"]["model"]["table"],
        tables=_tables(benchmark),
        baseline=best_baseline(summary),
        sentences=count_sentences(summary),
        protocol=protocol,
        run=[("fingerprint", run.get("fingerprint")), *run.get("about", {}).items(), *settings.items(),
             ("selection", selection or "everything")],
        panels=_panels(scores, summary, benchmark),
        breakdown=breakdown(scores, benchmark),
        timed="perfect_timing" in benchmark.rows,
        pictured=sum("picture" in question for question in data["questions"]),
        chosen=only is not None,
        data=embedded_json(data),
        style=sources("page.css", "gallery.css"),
        script=sources("data.js", "detail.js", "main.js"),
    )  # fmt: skip
    path = Path(output_dir) / "report.html"
    with atomic_write(path) as stream:
        stream.write(page.encode("utf-8", "replace"))
    return path


def embedded_json(value: object) -> Markup:
    """JSON for a script element of type application/json: ASCII, and without any letter that HTML could act on."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _tables(benchmark: Benchmark) -> list[tuple[str, tuple]]:
    """(title, measures) of the tables by group: the first of the benchmark's, and all others side by side in one."""
    columns = [(title, benchmark.columns(place)) for place, title in benchmark.tables.items()]
    others = ", ".join(title for title, _ in columns[1:]).capitalize()
    joined = [(others, sum((measures for _, measures in columns[1:]), ()))] if others else []
    return [*columns[:1], *joined]


def _panels(scores: Sequence[dict], summary: dict, benchmark: Benchmark) -> list[dict]:
    """Per group how many questions, those per bin of the headline measure (the last bin holds 1.0 too), and means."""
    key, beside = benchmark.measures[0].key, [name for name, (kind, _) in benchmark.rows.items() if kind == "baseline"]
    panels = []
    for split in benchmark.splits:
        values = [score["rows"]["model"][key] for score in scores if split in (OVERALL, score["q_type"])]
        values = np.array([value for value in values if value is not None], dtype=np.float64)
        if len(values):
            bins = np.bincount(np.minimum((values * BINS + 1e-9).astype(int), BINS - 1), minlength=BINS).tolist()
            cells = {row: summary["rows"][row]["table"][split][key] for row in ("model", *beside[:1])}
            means = {row: cell["mean"] for row, cell in cells.items() if cell}
            panels.append({"group": split, "questions": len(values), "bins": bins, "means": means})
    return panels


def render(template: str, **values: object) -> str:
    """Fill a template of the folder ``assets``.

    Raises:
        jinja2.UndefinedError: it asks for a value that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {
            "counted": lambda count, noun: f"{count} {noun}" if count == 1 else f"{count} {noun}s",
            "figure": _figure,
            "flat": _flat,
            "mean": lambda cell, form="": "–" if cell is None else _figure(cell["mean"], form),
            "source_hash": lambda source: (
                f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
            ),
            "spread": _spread,
            "words": lambda name: name.replace("_", "-"),
        }
    )
    return environment.get_template(template).render(values)


def sources(*names: str) -> Markup:
    """Scripts or styles of the folder ``assets``, joined."""
    return Markup("\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names))


def _figure(value: float, form: str = "") -> str:
    """Three decimals; with their sign ("+"); as a percentage ("%")."""
    text = f"{value:.0%}" if form == "%" else f"{value:{form}.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _spread(cell: dict | None, form: str = "") -> str:
    """The interval; the standard error where there is none; nothing with a single video."""
    if cell is None:
        return ""
    if cell["low"] is not None:
        return f"{_figure(cell['low'], form)} {'to' if form == '+' else '–'} {_figure(cell['high'], form)}"
    return "" if cell["stderr"] is None else f"± {_figure(cell['stderr'], form.strip('+'))}"


def _flat(pairs: Iterable[tuple[str, object]]) -> Iterable[tuple[str, object]]:
    """Names and values with nested values under dotted names; None is left out."""
    for name, value in pairs:
        if isinstance(value, dict):
            yield from _flat((f"{name}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif value is not None:
            yield name, value
