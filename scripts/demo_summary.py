"""Put the demo's evaluations side by side: what was learned, what refinement is worth, what is left without motion.

    python scripts/demo_summary.py demo_output

Reads DIR/eval/*/summary.json, prints Markdown tables and writes them to DIR/summary.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.files import atomic_write, read_json

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
COLUMNS = {
    "JF": "J&F",
    "J": "J",
    "F": "F",
    "window_J": "in-window J",
    "temporal_iou": "temporal IoU",
    "object_accuracy": "right object",
}
WITH_INTERVAL = ("JF", "window_J")
"""Columns that show the 95% interval; with more of them the lines would be too long to read."""

TYPES = ("Overall", "Causal", "Sequential", "Counterfactual", "Descriptive")


def cell(measure: dict | None, interval: bool = False) -> str:
    """A measure's mean as the tables show it, with its interval on demand: 0.602 [0.58, 0.62]."""
    mean = (measure or {}).get("mean")
    if mean is None:
        return "–"
    low, high = measure.get("low"), measure.get("high")
    return f"{mean:.3f} [{low:.2f}, {high:.2f}]" if interval and low is not None else f"{mean:.3f}"


def line(name: str, values: dict) -> str:
    """One row of a table."""
    cells = [cell(values.get(key), key in WITH_INTERVAL) for key in COLUMNS]
    return f"| {name} | {values['N']} | " + " | ".join(cells) + " |"


def table(rows: list[tuple[str, dict]], first: str) -> list[str]:
    """A Markdown table."""
    head = f"| {first} | N | " + " | ".join(COLUMNS.values()) + " |"
    return [head, "|---" * (2 + len(COLUMNS)) + "|", *(line(name, values) for name, values in rows)]


def margin(summary: dict) -> str:
    """The model's J&F minus that of the best baseline, with its paired interval where there is one."""
    name = max(("all_empty", "whole_frame"), key=lambda row: summary["rows"][row]["table"]["Overall"]["JF"]["mean"])
    model, baseline = (summary["rows"][row]["table"]["Overall"]["JF"]["mean"] for row in ("model", name))
    text = f"J&F is {model - baseline:+.3f} against the best baseline ({name})"
    difference = summary.get("differences", {}).get(name, {}).get("table", {}).get("Overall", {}).get("JF") or {}
    if difference.get("low") is not None:
        text += f", paired 95% interval {difference['low']:+.3f} to {difference['high']:+.3f}"
    return f"{text}."


def summarise(folder: Path) -> str:
    """All tables of a demo folder as Markdown.

    Args:
        folder: the demo's output; needs eval/groundmore/summary.json.

    Raises:
        DataError: that file is missing or damaged.
    """
    summary = read_json(folder / "eval" / "groundmore" / "summary.json")
    main = summary["rows"]
    lines = ["By question type ([low, high]: 95% interval, bootstrap clustered by video):", ""]
    lines += table([(kind, main["model"]["table"][kind]) for kind in TYPES], "MoRA-tiny")
    lines += ["", "Beside it:", ""]
    rows = [(name, main[key]["table"]["Overall"]) for name, key in ROWS.values()]
    for run, name in RUNS.items():
        path = folder / "eval" / run / "summary.json"
        if path.is_file():
            rows.append((name, read_json(path)["rows"]["model"]["table"]["Overall"]))
    lines += table(rows, "row")
    chance = cell(main["model"]["table"]["Overall"]["object_chance"])
    lines += ["", f"{margin(summary)} A random visible object is right in {chance} of the questions."]
    return "\n".join(lines)


def main() -> None:
    """Read the flags, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="output of scripts/demo.sh")
    folder = parser.parse_args().folder
    text = summarise(folder)
    print(text)
    with atomic_write(folder / "summary.md", "w") as stream:
        stream.write(text + "\n")


if __name__ == "__main__":
    main()
