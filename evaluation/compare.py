"""Paired difference of two evaluations: ``python -m evaluation.compare A B``; ``--help`` has examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evaluation.benchmark import OVERALL, Benchmark, benchmark_of, find_benchmark
from evaluation.comparison import COMPARISON_FORMAT, compare, read_scored_run
from evaluation.outputs import note_foreign_file, note_own_place
from evaluation.report import layout
from utils.errors import ConfigError, DataError, MoraError, Problems, one_line, write_any_text
from utils.files import read_json, write_json
from utils.flags import flag, parse_small

DESCRIPTION = """\
Compare two evaluations question by question: is B better than A, where, and how sure is that?

Two models on one test set (the folders are the --output_dir of evaluate_groundmore.py):
  python -m evaluation.compare outputs/baseline outputs/mora

What refinement by [LOC] is worth: a run against its own masks without it:
  python -m evaluation.compare outputs/mora --row_a no_refinement --row_b model

Another measure, ten questions each way, everything into a file:
  python -m evaluation.compare outputs/baseline outputs/mora --measure window_J --top 10 --json difference.json
"""

EPILOG = """\
How to read it. Every difference is B - A of the same question, so what makes a question easy or hard cancels, and the
interval is usually much narrower than those of the two means. Videos are drawn with replacement and all their
questions come along (questions about one video are not independent): [low, high] holds 95% of the resampled mean
differences, "draws > 0" is the share of them above 0 (at 0: half). p is two-sided, from flipping the sign of all
differences of a video at random. Neither is corrected for how many lines you read. better/same/worse count questions.

Exit code: 0 whatever the outcome; 2 if the runs cannot be compared.
"""


@dataclass
class ComparisonFlags:
    """What is compared; a missing ``b`` is ``a``, a missing row of one run is ``row``."""

    a: str = flag(names=("a",), path=True, metavar="A", help="output folder of an evaluation, or the scores.json in it")
    b: str | None = flag(None, names=("b",), path=True, metavar="B", help="the same; default: A, with other rows")
    measure: str | None = flag(None, metavar="NAME", help="of the table by type and the questions: "
        f"{', '.join(measure.key for measure in find_benchmark().compared)} (default: the first)")  # fmt: skip
    row: str = flag("model", metavar="ROW",
                    help=f"what is compared: {', '.join(find_benchmark().rows)} (default model)")  # fmt: skip
    row_a: str | None = flag(None, metavar="ROW", help="row of A, if another")
    row_b: str | None = flag(None, metavar="ROW", help="row of B, if another")
    top: int = flag(5, at_least=0, metavar="N", help="questions shown each way (default 5)")
    json: str | None = flag(None, path=True, written=True, metavar="FILE",
                            help="write everything, every changed question included")  # fmt: skip
    allow_different_protocols: bool = flag(
        False, help="compare runs that do not measure the same thing; what differs is printed"
    )

    def __post_init__(self) -> None:
        self.b, self.row_a, self.row_b = self.b or self.a, self.row_a or self.row, self.row_b or self.row

    def check(self, problems: Problems) -> None:
        """Note a measure or rows that the runs' benchmark does not have; a missing measure is its first."""
        benchmark = _benchmark(Path(self.a))
        keys = [measure.key for measure in benchmark.compared]
        self.measure = self.measure or keys[0]
        if self.measure not in keys:
            problems.add(f"--measure {self.measure}", f"choose one of {', '.join(keys)}")
        for row in dict.fromkeys((self.row_a, self.row_b)):
            if row not in benchmark.rows:
                problems.add(f"row {row}", f"choose one of {', '.join(benchmark.rows)}")


def _benchmark(path: Path) -> Benchmark:
    """What a run was evaluated on; the default where its summary does not say, which is another mistake."""
    file = (path if path.is_dir() else path.parent) / "summary.json"
    with suppress(DataError, AttributeError):
        return benchmark_of(read_json(file))
    return find_benchmark()


def format_comparison(result: dict, measure: str = "JF", top: int = 5) -> str:
    """A comparison as text, at most 120 columns wide but for long paths and reasons.

    Args:
        result: from :func:`evaluation.comparison.compare`.
        measure: of the table by type and of the questions.
        top: questions shown each way.
    """
    table = result["table"]
    by_type = [_line(split, cell) for split, cell in table[measure].items()]
    by_measure = [_line(name, cells[OVERALL]) for name, cells in table.items() if cells[OVERALL] is not None]
    level = f"{result['interval']['level']:.0%} interval"
    header = ["N", "A", "B", "B - A", level, "draws > 0", "p", "better/same/worse"]
    parts = [
        "\n".join(_head(result)),
        layout([measure, *header], by_type),
        layout([OVERALL, *header], by_measure),
    ]
    if lower := ", ".join(name for name in table if name in result["lower_is_better"]):
        parts[-1] += f"\nlower is better: {lower}"
    return "\n\n".join([*parts, *_questions(result["changes"][measure], measure, top)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit code: 0, or 2 if the runs cannot be compared.
    """
    write_any_text()
    texts = {"prog": "python -m evaluation.compare", "epilog": EPILOG}
    try:
        args = parse_small(ComparisonFlags, DESCRIPTION, argv, **texts)
        a, b, runs, problems = Path(args.a), Path(args.b), {}, Problems()
        for path in dict.fromkeys((a, b)):
            try:
                runs[path] = read_scored_run(path)
            except DataError as error:
                problems.messages.append(str(error))
        problems.raise_if_any(DataError, "nothing to compare")
        if args.json:
            _check_output(args)
        result = compare(runs[a], runs[b], args.row_a, args.row_b, args.allow_different_protocols)
        print(format_comparison(result, args.measure, args.top))
        if args.json:
            write_json(args.json, result)
            print(f"\nwritten: {args.json}")
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check_output(args: ComparisonFlags) -> None:
    """Refuse a ``--json`` that would replace what was read, or what this program did not write.

    Raises:
        ConfigError: it would.
    """
    problems, mark = Problems(), f'"format": "{COMPARISON_FORMAT}"'.encode()
    note_foreign_file(problems, "--json", args.json, mark)
    for run in map(Path, (args.a, args.b)):
        note_own_place(problems, "--json", args.json, run if run.is_dir() else run.parent)
    problems.raise_if_any(ConfigError, "the comparison cannot be written there")


def _head(result: dict) -> list[str]:
    """What is compared with what, what differs, and what is left out."""
    lines = []
    for side in ("a", "b"):
        run = result[side]
        failed = f", {run['failed']} failed (each counts as 0)" if run["failed"] else ""
        lines.append(f"{side.upper()}: {run['path']}, row {run['row']}, {run['questions']} questions{failed}")
    settings = result["settings"]
    lines += [f"NOT COMPARABLE, {line}" for line in settings["not_comparable"]]
    lines += [f"differs: {line}" for line in settings["compared"]]
    lines += [] if any(settings.values()) else ["the protocols are equal"]
    lines.append(f"paired: {result['questions']} questions about {result['videos']} videos")
    for side in ("a", "b"):
        alone = result[f"only_in_{side}"]
        if alone:
            shown = "; ".join(one_line(", ".join(key)) for key in alone[:5]) + ("; …" if len(alone) > 5 else "")
            lines.append(f"left out: {len(alone)} questions only in {side.upper()} ({shown})")
    return lines


def _line(name: str, cell: dict | None) -> list[str]:
    """A row of a table; "-" where there is nothing to compare, and no interval from a single video."""
    if cell is None:
        return [name, "0", *["-"] * 7]
    alone = cell["low"] is None
    return [
        name,
        str(cell["N"]),
        f"{cell['a']:.4f}",
        f"{cell['b']:.4f}",
        f"{cell['mean']:+.4f}",
        "-" if alone else f"[{cell['low']:+.4f}, {cell['high']:+.4f}]",
        "-" if alone else f"{cell['share_above_zero']:.1%}",
        "-" if alone else f"{cell['p']:.4f}",
        f"{cell['better']}/{cell['same']}/{cell['worse']}",
    ]


def _questions(changes: list[dict], measure: str, top: int) -> list[str]:
    """The questions that moved most, each way."""
    if top == 0:
        return []
    rises = [change for change in changes if change["difference"] > 0][:top]
    falls = [change for change in sorted(changes, key=lambda change: change["difference"]) if change["difference"] < 0]
    parts = []
    for title, chosen in ((f"Largest rises of {measure}", rises), (f"Largest falls of {measure}", falls[:top])):
        if not chosen:
            parts.append(f"{title}: none")
            continue
        names = [one_line(f"{change['video_id']}, {change['query_id']}") for change in chosen]
        room = max(120 - max(map(len, names)) - 30, 20)
        lines = [
            f"  {change['difference']:+.4f}  {change['a']:.4f} -> {change['b']:.4f}  {name}: "
            f"{_shorten(one_line(change['question']), room)}"
            for name, change in zip(names, chosen)
        ]
        parts.append("\n".join([f"{title}:", *lines]))
    return parts


def _shorten(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
