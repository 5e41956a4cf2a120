"""``OUTPUT_DIR/report.html``: one file that opens offline, with tables, the distribution, and a gallery of questions.

    python -m evaluation.report.page --output_dir outputs/mora --video_root groundmore_videos \\
      --meta_file groundmore_test.json --limit 100

makes it again from the records and scores of an evaluation; ``--video`` and ``--question`` choose what is shown with
frames. Equal inputs give equal bytes. The page loads nothing: its own content security policy forbids it, and allows
only the scripts that it was written with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from datasets.corpora.groundmore import GroundMoRe
from datasets.sample import VideoRecord
from evaluation.benchmark import OVERALL, Benchmark, benchmark_of
from evaluation.outputs import FILES, SCORE_AGAIN, note_foreign_file, read_whole, reading_results
from evaluation.protocol import Protocol
from evaluation.report.data import gallery_data
from evaluation.report.failures import breakdown
from evaluation.report.template import render, sources
from evaluation.report.text import count_sentences
from evaluation.scoring.summary import SUMMARY_FORMAT, best_baseline
from utils.errors import ConfigError, DataError, MoraError, Problems
from utils.files import atomic_write
from utils.paths import user_path
from utils.terminal import write_any_text

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


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m evaluation.report.page``."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report.page", description="Make report.html again from records and scores."
    )
    add_run_flags(parser)
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="N",
                        help="questions shown with frames (%(default)s)")  # fmt: skip
    parser.add_argument("--video", action="append", metavar="ID", help="show only this clip's; may be repeated")
    parser.add_argument("--question", action="append", metavar="ID", help="show only these ids; may be repeated")
    return parser


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which evaluation and which ground truth."""
    parser.add_argument("--output_dir", type=user_path, required=True, metavar="DIR", help="the evaluation's folder")
    parser.add_argument("--meta_file", type=user_path, default="groundmore_test.json", metavar="FILE",
                        help="questions (%(default)s)")  # fmt: skip
    parser.add_argument("--video_root", type=user_path, default="groundmore_videos", metavar="DIR",
                        help="one folder per clip with images/ and masks/ (%(default)s)")  # fmt: skip


def read_evaluation(args: argparse.Namespace) -> tuple[GroundMoRe, dict, list[dict], Protocol]:
    """(corpus, summary, scores, protocol) of the evaluation that the flags name.

    Raises:
        DataError: a file is missing, damaged, or was written by another version of the program.
    """
    folder = Path(args.output_dir)
    summary, scores = read_whole(folder / "summary.json"), read_whole(folder / "scores.json")
    if not isinstance(summary, dict) or summary.get("format") != SUMMARY_FORMAT:
        raise DataError(f"{folder / 'summary.json'}: not a summary of format {SUMMARY_FORMAT}; {SCORE_AGAIN}")
    with reading_results(folder / "summary.json"):
        protocol = Protocol(**summary["protocol"])
    whole = isinstance(scores, list) and all(isinstance(score, dict) for score in scores)
    if not whole or not all({"frames", "objects"} <= set(score) for score in scores):
        raise DataError(f"{folder / 'scores.json'}: no 'frames' or 'objects' of a question; {SCORE_AGAIN}")
    empty_windows = "keep" if protocol.window == "unclipped" else "error"
    return GroundMoRe(args.meta_file, args.video_root, empty_windows=empty_windows), summary, scores, protocol


def _chosen(args: argparse.Namespace, scores: Sequence[dict]) -> set[tuple[str, str]] | None:
    """The questions that the flags choose, or None for all.

    Raises:
        ConfigError: they choose none.
    """
    if not args.video and not args.question:
        return None
    keys = {(score["video_id"], score["query_id"]) for score in scores}
    chosen = {
        (video, question)
        for video, question in keys
        if (not args.video or video in args.video) and (not args.question or question in args.question)
    }
    if not chosen:
        raise ConfigError(f"--video {args.video}, --question {args.question}: no such question was scored")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns:
        Exit code: 0, or 2 if no page could be made.
    """
    write_any_text()
    args = build_parser().parse_args(argv)
    try:
        if args.limit < 1:
            raise ConfigError(f"--limit: {args.limit} is too small; at least 1")
        corpus, summary, scores, protocol = read_evaluation(args)
        videos = [corpus[index] for index in range(len(corpus))]
        folder, problems = Path(args.output_dir), Problems()
        note_foreign_file(problems, "--output_dir", folder / "report.html", FILES["report.html"])
        problems.raise_if_any(ConfigError, "the page cannot be written there")
        with reading_results(folder / "scores.json", folder / "summary.json"):
            chosen = _chosen(args, scores)
            page = write_report_page(videos, folder, scores, summary, protocol, args.limit, chosen)
        if page is None:
            raise DataError(f"{args.output_dir}: no question was scored")
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
