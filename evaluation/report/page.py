"""``OUTPUT_DIR/report.html``: one file that opens offline, with tables, the distribution, and a gallery of questions.

    python -m evaluation.report.page --output_dir outputs/mora --video_root groundmore_videos \\
      --meta_file groundmore_test.json --limit 100

makes it again from the records and scores of an evaluation; ``--video`` and ``--question`` choose what is shown with
frames. Equal inputs give equal bytes. The page loads nothing: its own content security policy forbids it, and allows
only the scripts that it was written with.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from datasets.corpora.groundmore import GroundMoRe
from datasets.sample import VideoRecord
from evaluation.outputs import FILES, SCORE_AGAIN, note_foreign_file, read_whole, reading_results
from evaluation.protocol import Protocol
from evaluation.report.charts import failure_table, histograms
from evaluation.report.data import gallery_data
from evaluation.report.failures import breakdown
from evaluation.report.tables import (
    counts_list,
    facts,
    main_table,
    measure_facts,
    reference_table,
    run_facts,
    sides_table,
    tiles,
    title,
    token_table,
)
from evaluation.scoring.summary import SUMMARY_FORMAT
from utils.errors import ConfigError, DataError, MoraError, Problems
from utils.files import atomic_write
from utils.paths import user_path
from utils.terminal import write_any_text

PAGE_FOLDER = Path(__file__).with_name("assets")
STYLES = ("page.css", "gallery.css")
SCRIPTS = ("data.js", "detail.js", "main.js")
LIMIT = 60
"""Questions shown with frames unless told otherwise."""


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
    data = gallery_data(videos, str(output_dir), scores, protocol, limit, only)
    pictured = sum("picture" in question for question in data["questions"])
    head, *lines = protocol.describe()
    choices = (line.strip().split(" = ", 1) for line in lines)
    style = "\n".join((PAGE_FOLDER / name).read_text(encoding="utf-8") for name in STYLES)
    script = "\n".join((PAGE_FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = Template((PAGE_FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title(summary)),
        tiles=tiles(summary),
        main_table=main_table(summary),
        sides_table=sides_table(summary),
        reference_table=reference_table(summary),
        token_table=token_table(summary),
        counts=counts_list(summary),
        protocol_name=html.escape(protocol.name),
        protocol=facts((name, value) for name, value in choices),
        run=run_facts(summary),
        measures=measure_facts(),
        histograms=histograms(scores, summary),
        failure_table=failure_table(breakdown(scores)),
        footer=html.escape(_footer(len(scores), pictured, only is not None)),
        data=embedded_json(data),
        style=style,
        script=script,
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
    )
    path = Path(output_dir) / "report.html"
    with atomic_write(path) as stream:
        stream.write(page.encode("utf-8", "replace"))
    return path


def embedded_json(value: object) -> str:
    """JSON for a script element of type application/json: ASCII, and without any letter that HTML could act on."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _source_hash(source: str) -> str:
    """What a content security policy calls the inline source that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _footer(questions: int, pictured: int, chosen: bool) -> str:
    if pictured == questions:
        return f"All {questions} questions are shown with frames."
    how = "those asked for" if chosen else "half of them those that lost most, the rest evenly over the ranking"
    return (
        f"{pictured} of {questions} questions are shown with frames ({how}); the others are listed with their scores. "
        "python -m evaluation.report.page with --limit, --video or --question remakes this page."
    )


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
