"""Why two scripts with the same J and F disagree: every reason as a small case that runs without data.

python -m evaluation.disagreements                     the table of docs/disagreements.md
python -m evaluation.disagreements --case both_empty_zero   one case, explained
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from evaluation.disagreements import counting, frames, masks
from evaluation.disagreements.world import Case
from utils.errors import write_any_text

GROUPS: dict[str, tuple[Case, ...]] = {
    "The same masks, counted differently": counting.CASES,
    "Other frames, other windows": frames.CASES,
    "Other pixels": masks.CASES,
}
"""All cases by what the two scripts differ in."""

HEADER = ("case", "measure", "a script that", "gives", "another that", "gives", "difference", "here")


def all_cases() -> dict[str, Case]:
    """Every case by name, in the order of the page."""
    return {case.name: case for cases in GROUPS.values() for case in cases}


def row(case: Case) -> list[str]:
    """One line of the table; computes the case."""
    first, second = case.run()
    return [
        f"`{case.name}`",
        case.measure,
        case.first,
        f"{first:.3f}",
        case.second,
        f"{second:.3f}",
        f"{first - second:+.3f}",
        case.here,
    ]


def table(cases: Sequence[Case]) -> str:
    """A Markdown table of some cases."""
    rows = [row(case) for case in cases]
    widths = [max(len(line[column]) for line in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = [HEADER, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def page() -> str:
    """All groups as Markdown: a heading, the table, and the explanation of every case."""
    parts = []
    for title, cases in GROUPS.items():
        parts += [f"## {title}", table(cases)]
        parts += [f"### {case.name}\n\n{case.explanation}" for case in cases]
    return "\n\n".join(parts) + "\n"


def explain(case: Case) -> str:
    """One case for the terminal: what differs, both numbers, what this project does."""
    first, second = case.run()
    return "\n".join(
        [
            f"{case.name} ({case.measure})",
            "",
            case.explanation,
            "",
            f"  {first:.4f}  a script that {case.first}",
            f"  {second:.4f}  a script that {case.second}",
            f"  {first - second:+.4f}  difference",
            "",
            f"This project: {case.here}.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or one case.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    """
    write_any_text()
    cases = all_cases()
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.disagreements",
        description="Why two scripts with the same J and F disagree: every reason as a case that runs without data.",
    )
    parser.add_argument("--case", choices=tuple(cases), metavar="NAME", help=f"explain one: {', '.join(cases)}")
    args = parser.parse_args(argv)
    if args.case is not None:
        print(explain(cases[args.case]))
        return 0
    print("\n\n".join(f"{title}\n\n{table(group)}" for title, group in GROUPS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
