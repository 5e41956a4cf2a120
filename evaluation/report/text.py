"""What a person reads: the tables on the terminal, the text result file, ``summary.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.benchmark import OVERALL, Measure, benchmark_of
from evaluation.outputs import write_digests
from evaluation.protocol import Protocol
from evaluation.scoring import best_baseline
from utils.errors import one_line
from utils.files import atomic_write, write_json

RESERVED = ",#:\\"
"""Letters that have a meaning in a line of the text result, and are escaped in ids."""

_FINAL = {"J": "J (Jaccard Index)", "F": "F (F-measure)", "JF": "JF (Average of J and F)"}
"""Names of the means in the final block of the text result, in its order."""

_FAILED_OF_MASKS = """ in J, F and J&F, and also in the window, in temporal IoU
and in right object if its ground truth is readable; it is left out of the false positives and the answers"""


def write_results(
    output_dir: str | Path, result_file: str | Path, scores: Sequence[dict], summary: dict, protocol: Protocol
) -> None:
    """Write ``scores.json``, ``summary.json`` and their digests into the run folder, and the text result file; all
    atomically.

    Args:
        output_dir: run folder.
        result_file: the text file in the original evaluator's format.
        scores: per question.
        summary: of the same scores.
        protocol: printed at the head of the text file.
    """
    write_json(Path(output_dir) / "scores.json", list(scores))
    write_json(Path(output_dir) / "summary.json", summary)
    write_digests(output_dir)
    with atomic_write(result_file, "w") as stream:
        stream.write("\n".join(result_lines(scores, summary, protocol)) + "\n")


def result_lines(scores: Sequence[dict], summary: dict, protocol: Protocol) -> list[str]:
    """The text result: the contract as comments, ``video, question, JF, J, F`` per question, the final block.

    Lines that do not start with "#" are those of the original evaluator, four decimals.
    """
    benchmark, table = benchmark_of(summary), summary["rows"]["model"]["table"]
    headline, columns = benchmark.measures[0], benchmark.columns("main")
    lines = [f"# {line}" for line in protocol.describe()]
    failed = summary["counts"]["questions_failed"]
    lines.append(f"# questions {len(scores)}, failed {failed} (each counts as 0)")
    lines.append(f"# {headline.label} with its {_interval_method(summary)}:")
    lines += [f"#   {split} {interval_text(table[split][headline.key])}" for split in benchmark.splits]
    for score in scores:
        names = ", ".join(one_line(score[key], RESERVED) for key in ("video_id", "query_id"))
        values = [score["rows"]["model"][column.key] for column in columns]
        lines.append(", ".join([names, *("-" if value is None else f"{value:.4f}" for value in values)]))
    last = sorted(columns, key=lambda column: [*_FINAL, column.key].index(column.key))
    for split in benchmark.splits:
        for measure in last:
            lines.append(f"Final {_final_name(measure, split)}: {mean_text(table[split][measure.key])}")
    return lines


def format_report(summary: dict, protocol: Protocol) -> str:
    """The whole report for a terminal: contract, tables, counts; the tables are at most 120 columns wide."""
    benchmark, table = benchmark_of(summary), summary["rows"]["model"]["table"]
    parts = ["\n".join(protocol.describe())]
    for place, title in benchmark.tables.items():
        parts.append(_group_table(title, table, benchmark.splits, benchmark.columns(place), interval_text))
    parts.append(_reference_table(summary, benchmark.columns("reference")))
    if benchmark.tokens:
        tokens = summary["tokens"]["table"]
        parts.append(_group_table("Answers", tokens, benchmark.splits, benchmark.tokens, _percent))
    parts.append("\n".join([*count_sentences(summary), *_failure_lines(summary)]))
    return "\n\n".join(parts)


def layout(header: list[str], rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths)) for row in [header, *rows])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def mean_text(cell: dict | None) -> str:
    """A mean with four decimals; "-" where no question has a value."""
    return "-" if cell is None else f"{cell['mean']:.4f}"


def interval_text(cell: dict | None, sign: str = "") -> str:
    """A mean and its interval, "0.6021 [0.5803, 0.6240]"; the mean alone where there is no interval.

    Args:
        cell: of a summary's table.
        sign: "+" to show the sign of positive numbers (differences).
    """
    if cell is None:
        return "-"
    mean = f"{cell['mean']:{sign}.4f}"
    return mean if cell["low"] is None else f"{mean} [{cell['low']:{sign}.4f}, {cell['high']:{sign}.4f}]"


def _group_table(
    title: str, table: dict, splits: Sequence[str], columns: Sequence[Measure], form: Callable[[dict | None], str]
) -> str:
    """Some measures, overall and by group."""
    rows = [
        [split, str(table[split]["N"]), *(form(table[split][column.key]) for column in columns)] for split in splits
    ]
    return layout([title, "N", *(column.label for column in columns)], rows)


def _reference_table(summary: dict, columns: Sequence[Measure]) -> str:
    headline, *others = columns
    header = ["Row", "kind", headline.label, "model - row", *(column.label for column in others)]
    rows = []
    for name, row in summary["rows"].items():
        cells = row["table"][OVERALL]
        margin = "" if name == "model" else interval_text(_margin(summary, name), "+")
        plain = [mean_text(cells[column.key]) for column in others]
        rows.append([name, row["kind"], interval_text(cells[headline.key]), margin, *plain])
    text = layout(header, rows)
    best = best_baseline(summary)
    if best is not None:
        cell = _margin(summary, best[0])
        text += f"\n{headline.label} is {cell['mean']:+.4f} against the best baseline ({best[0]})"
        if cell["low"] is not None:
            level = summary["interval"]["level"]
            text += f", paired {level:.0%} interval {cell['low']:+.4f} to {cell['high']:+.4f}"
    return text


def _margin(summary: dict, row: str) -> dict | None:
    """Model minus another row in the headline measure, over all questions."""
    return summary["differences"][row]["table"][OVERALL][benchmark_of(summary).measures[0].key]


def count_sentences(summary: dict) -> list[str]:
    """What was counted, for terminal and page."""
    counts, benchmark = summary["counts"], benchmark_of(summary)
    about = f"{counts['questions']} questions about {counts['videos']} videos"
    method = f"[low, high]: {_interval_method(summary)}"
    lines = [about, method]
    if benchmark.kind.name == "masks":
        frames = counts["listed_frames"] or 1
        lines = [
            f"{about}, {counts['listed_frames']} listed frames",
            method,
            f"{counts['listed_frames_with_empty_truth'] / frames:.1%} of the listed frames have an empty ground truth: "
            "what silence scores there is 1",
            f"{counts['window_frames_without_mask_file']} in-window frames have no mask file (taken as empty), "
            f"{counts['questions_without_frame_in_window']} questions have no listed frame in their window",
            f"no [SEG] in {counts['questions_without_seg']} answers, no [LOC] in {counts['questions_without_loc']}; "
            f"appended: [SEG] to {counts['questions_with_forced_seg']}, [LOC] to {counts['questions_with_forced_loc']}",
        ]
    if benchmark.groups and counts["questions_of_no_known_type"]:
        lines.append(f"{counts['questions_of_no_known_type']} questions of no known type count in {OVERALL} only")
    return lines


def _failure_lines(summary: dict, limit: int = 20) -> list[str]:
    """How failures were counted, and which there were."""
    failures, silent = summary["failures"], summary["counts"].get("questions_without_seg")
    no_token = [f"NO [SEG] in {silent} answers; each counts as empty masks (missing_mask)"] if silent else []
    if not failures:
        return ["no question failed", *no_token]
    counted = _FAILED_OF_MASKS if "perfect_timing" in summary["rows"] else ""
    lines = [*no_token, f"FAILED: {len(failures)} questions; each counts as 0{counted}:"]
    lines += [
        f"  {one_line(failure['video_id'])}, {one_line(failure['query_id'])}: {one_line(failure['reason'])}"
        for failure in failures[:limit]
    ]
    if len(failures) > limit:
        lines.append(f"  … and {len(failures) - limit} more in summary.json")
    return lines


def _interval_method(summary: dict) -> str:
    interval = summary["interval"]
    return f"{interval['level']:.0%} interval ({interval['method']}, {interval['draws']} draws)"


def _final_name(measure: Measure, split: str) -> str:
    """A mean's name in the final block, as the original evaluator writes it."""
    if split == OVERALL:
        return _FINAL.get(measure.key, measure.label)
    if measure.key == "JF":
        return f"{split} JF (Average of {split} J and F)"
    return f"{split} {measure.key if measure.key in _FINAL else measure.label}"


def _percent(cell: dict | None) -> str:
    return "-" if cell is None else f"{cell['mean']:.1%}"
