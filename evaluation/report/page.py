"""``report.html`` again, from the records and scores of an evaluation.

    python -m evaluation.report.page --output_dir outputs/mora --video_root groundmore_videos \\
      --meta_file groundmore_test.json --limit 100

``--video`` and ``--question`` choose what is shown with frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.outputs import FILES, note_foreign_file, reading_results
from evaluation.report.html import LIMIT, write_report_page
from evaluation.report.opening import RunFlags, read_evaluation
from utils.errors import ConfigError, DataError, MoraError, Problems, write_any_text
from utils.flags import flag, parse_small


@dataclass
class PageFlags(RunFlags):
    """Which evaluation, and what is shown with frames."""

    limit: int = flag(LIMIT, at_least=1, metavar="N", help="questions shown with frames (%(default)s)")
    video: list[str] = flag([], metavar="ID", help="show only this clip's; may be repeated")
    question: list[str] = flag([], metavar="ID", help="show only these ids; may be repeated")


def _chosen(args: PageFlags, scores: Sequence[dict]) -> set[tuple[str, str]] | None:
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
    description, program = "Make report.html again from records and scores.", "python -m evaluation.report.page"
    try:
        args = parse_small(PageFlags, description, argv, prog=program)
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
