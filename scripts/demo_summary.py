"""Put the demo's evaluations side by side: what was learned, what refinement is worth, what is left without motion.

    python scripts/demo_summary.py demo_output

Reads DIR/eval/*/summary.json, prints Markdown tables and writes them to DIR/summary.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluation.benchmark import OVERALL, benchmark_of
from evaluation.comparison import compare, read_scored_run
from evaluation.outputs import note_foreign_file, read_whole, reading_results
from evaluation.scoring import best_baseline
from utils.errors import ConfigError, MoraError, Problems, write_any_text
from utils.files import atomic_write
from utils.paths import user_path

ROWS = {
    "groundmore": ("MoRA-tiny, refined by [LOC]", "model"),
    "no_refinement": ("the same masks without refinement", "no_refinement"),
    "perfect_timing": ("the same masks with perfect timing (oracle)", "perfect_timing"),
    "all_empty": ("all-empty", "all_empty"),
    "whole_frame": ("whole-frame", "whole_frame"),
}
RUNS = {
    "seg_only": "trained without [LOC] (--seg_only)",
    "one_frame": "the LLM sees one frame, repeated",
    "shuffled": "the LLM sees the frames in random order",
    "referring": "plain referring: the question names the object",
}
WITH_INTERVAL = ("JF", "window_J")
"""Columns that show the 95% interval; with more of them the lines would be too long to read."""

HEAD = "By question type ([low, high]: 95% interval, bootstrap clustered by video):"


def cell(measure: dict | None, interval: bool = False) -> str:
    """A measure's mean as the tables show it, with its interval on demand: 0.602 [0.58, 0.62]."""
    mean = (measure or {}).get("mean")
    if mean is None:
        return "–"
    low, high = measure.get("low"), measure.get("high")
    return f"{mean:.3f} [{low:.2f}, {high:.2f}]" if interval and low is not None else f"{mean:.3f}"


def table(rows: list[tuple[str, dict]], first: str, summary: dict) -> list[str]:
    """A Markdown table of the measures that the benchmark names for it."""
    columns = benchmark_of(summary).columns("demo")
    lines = [[first, "N", *(column.label for column in columns)]]
    for name, values in rows:
        cells = [cell(values.get(column.key), column.key in WITH_INTERVAL) for column in columns]
        lines.append([name, str(values["N"]), *cells])
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return [head, "|---" * len(lines[0]) + "|", *body]


def margin(summary: dict) -> str:
    """The model's J&F minus that of the best baseline, with its paired interval where there is one."""
    name, baseline = best_baseline(summary)
    model = summary["rows"]["model"]["table"][OVERALL]["JF"]["mean"]
    text = f"J&F is {model - baseline:+.3f} against the best baseline ({name})"
    difference = summary.get("differences", {}).get(name, {}).get("table", {}).get(OVERALL, {}).get("JF") or {}
    if difference.get("low") is not None:
        text += f", paired 95% interval {difference['low']:+.3f} to {difference['high']:+.3f}"
    return f"{text}."


CONTROLS = ("one_frame", "shuffled")


def against_control(folder: Path, run: str) -> str:
    """J&F of the model minus that under a control, on the questions that both answered, with its paired interval."""
    control, model = (read_scored_run(folder / "eval" / name) for name in (run, "groundmore"))
    cell = compare(control, model)["table"]["JF"][OVERALL]
    sure = "" if cell["low"] is None else f", paired 95% interval {cell['low']:+.3f} to {cell['high']:+.3f}"
    return f"J&F is {cell['mean']:+.3f} against the same model where {RUNS[run]}{sure}, {cell['N']} questions."


def summarise(folder: Path) -> str:
    """All tables of a demo folder as Markdown.

    Args:
        folder: the demo's output; needs eval/groundmore/summary.json.

    Raises:
        DataError: that file is missing, or one of them is damaged.
    """
    main_file = folder / "eval" / "groundmore" / "summary.json"
    with reading_results(main_file, folder / "eval" / "*" / "summary.json"):
        return _tables(read_whole(main_file), folder)


def _tables(summary: dict, folder: Path) -> str:
    main, splits = summary["rows"], benchmark_of(summary).splits
    lines = [HEAD, "", *table([(split, main["model"]["table"][split]) for split in splits], "MoRA-tiny", summary)]
    lines += ["", "Beside it:", ""]
    rows = [(name, main[key]["table"][OVERALL]) for name, key in ROWS.values()]
    for run, name in RUNS.items():
        path = folder / "eval" / run / "summary.json"
        if path.is_file():
            rows.append((name, read_whole(path)["rows"]["model"]["table"][OVERALL]))
    lines += table(rows, "row", summary)
    chance = cell(main["model"]["table"][OVERALL]["object_chance"])
    lines += ["", f"{margin(summary)} A random visible object is right in {chance} of the questions."]
    scored = [run for run in CONTROLS if (folder / "eval" / run / "scores.json").is_file()]
    lines += [line for run in scored for line in ("", against_control(folder, run))]
    return "\n".join(lines)


def main() -> int:
    """Read the flags, print and write.

    Returns:
        Exit code: 0, or 2 if a summary is missing or damaged.
    """
    write_any_text()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=user_path, metavar="DIR", help="output of scripts/demo.sh")
    folder = Path(parser.parse_args().folder)
    try:
        text, problems = summarise(folder), Problems()
        note_foreign_file(problems, "DIR", folder / "summary.md", HEAD.encode())
        problems.raise_if_any(ConfigError, "the tables cannot be written there")
        print(text)
        with atomic_write(folder / "summary.md", "w") as stream:
            stream.write(text + "\n")
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
