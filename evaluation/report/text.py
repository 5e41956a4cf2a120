"""What a person reads: the tables on the terminal, the text result file, ``summary.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.sample import QUESTION_TYPES
from evaluation.outputs import write_digests
from evaluation.protocol import Protocol
from evaluation.scoring.summary import OVERALL, best_baseline
from utils.files import atomic_write, write_json
from utils.terminal import one_line

SPLITS = (OVERALL, *QUESTION_TYPES)

RESERVED = ",#:\\"
"""Letters that have a meaning in a line of the text result, and are escaped in ids."""


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
    lines = [f"# {line}" for line in protocol.describe()]
    failed = summary["counts"]["questions_failed"]
    lines.append(f"# questions {len(scores)}, failed {failed} (each counts as 0)")
    lines.append(f"# J&F with its {_interval_method(summary)}:")
    table = summary["rows"]["model"]["table"]
    lines += [f"#   {split} {interval_text(table[split]['JF'])}" for split in SPLITS]
    for score in scores:
        row = score["rows"]["model"]
        names = ", ".join(one_line(score[key], RESERVED) for key in ("video_id", "query_id"))
        lines.append(f"{names}, {row['JF']:.4f}, {row['J']:.4f}, {row['F']:.4f}")
    lines += [
        f"Final J (Jaccard Index): {mean_text(table[OVERALL]['J'])}",
        f"Final F (F-measure): {mean_text(table[OVERALL]['F'])}",
        f"Final JF (Average of J and F): {mean_text(table[OVERALL]['JF'])}",
    ]
    for name in QUESTION_TYPES:
        lines += [
            f"Final {name} J: {mean_text(table[name]['J'])}",
            f"Final {name} F: {mean_text(table[name]['F'])}",
            f"Final {name} JF (Average of {name} J and F): {mean_text(table[name]['JF'])}",
        ]
    return lines


def format_report(summary: dict, protocol: Protocol) -> str:
    """The whole report for a terminal: contract, tables, counts; the tables are at most 120 columns wide."""
    parts = ["\n".join(protocol.describe()), _main_table(summary), *_sides_tables(summary), _reference_table(summary)]
    parts += [_token_table(summary), _counts_text(summary)]
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


def _main_table(summary: dict) -> str:
    return _interval_table("Result", summary["rows"]["model"]["table"], {"JF": "J&F", "J": "J", "F": "F"})


def _sides_tables(summary: dict) -> list[str]:
    """What J&F hides: it rewards silence, so quality inside the window, timing and the object stand beside it."""
    table = summary["rows"]["model"]["table"]
    inside = {"window_J": "in-window J", "window_F": "in-window F", "temporal_iou": "temporal IoU"}
    chosen = {
        "false_positive_rate": "false positives",
        "object_accuracy": "right object",
        "object_chance": "chance of a guess",
    }
    return [_interval_table("In the window", table, inside), _interval_table("Time and object", table, chosen)]


def _interval_table(title: str, table: dict, measures: dict[str, str]) -> str:
    """Mean and interval of some measures, overall and by type."""
    rows = [
        [split, str(table[split]["N"]), *(interval_text(table[split][measure]) for measure in measures)]
        for split in SPLITS
    ]
    return layout([title, "N", *measures.values()], rows)


def _reference_table(summary: dict) -> str:
    header = ["Row", "kind", "J&F", "model - row", "J", "F", "in-window J", "temporal IoU"]
    rows = []
    for name, row in summary["rows"].items():
        cells = row["table"][OVERALL]
        margin = "" if name == "model" else interval_text(summary["differences"][name]["table"][OVERALL]["JF"], "+")
        plain = [mean_text(cells[measure]) for measure in ("J", "F", "window_J", "temporal_iou")]
        rows.append([name, row["kind"], interval_text(cells["JF"]), margin, *plain])
    text = layout(header, rows)
    if summary["counts"]["questions"]:
        name, _ = best_baseline(summary)
        cell = summary["differences"][name]["table"][OVERALL]["JF"]
        text += f"\nJ&F is {cell['mean']:+.4f} against the best baseline ({name})"
        if cell["low"] is not None:
            level = summary["interval"]["level"]
            text += f", paired {level:.0%} interval {cell['low']:+.4f} to {cell['high']:+.4f}"
    return text


def _token_table(summary: dict) -> str:
    """How the answers came about, in percent of the answers and of the listed frames."""
    columns = {
        "seg": "[SEG]",
        "forced_seg": "appended",
        "loc": "[LOC]",
        "forced_loc": "appended",
        "mask_frames": "frames with a mask",
        "kept_frames": "after refinement",
        "truth_frames": "ground truth",
    }
    table = summary["tokens"]["table"]
    rows = [[split, str(table[split]["N"]), *(_percent(table[split][key]) for key in columns)] for split in SPLITS]
    return layout(["Answers", "N", *columns.values()], rows)


def _counts_text(summary: dict) -> str:
    counts = summary["counts"]
    frames = counts["listed_frames"] or 1
    lines = [
        f"{counts['questions']} questions about {counts['videos']} videos",
        f"[low, high]: {_interval_method(summary)}",
        f"{counts['listed_frames_with_empty_truth'] / frames:.1%} of the listed frames have an empty ground truth: "
        "what silence scores there is 1",
        f"{counts['window_frames_without_mask_file']} in-window frames have no mask file (taken as empty), "
        f"{counts['questions_without_frame_in_window']} questions have no listed frame in their window",
        f"no [SEG] in {counts['questions_without_seg']} answers, no [LOC] in {counts['questions_without_loc']}; "
        f"appended: [SEG] to {counts['questions_with_forced_seg']}, [LOC] to {counts['questions_with_forced_loc']}",
    ]
    if counts["questions_of_no_known_type"]:
        lines.append(f"{counts['questions_of_no_known_type']} questions of no known type count in {OVERALL} only")
    return "\n".join(lines + _failure_lines(summary))


def _failure_lines(summary: dict, limit: int = 20) -> list[str]:
    """How failures were counted, and which there were."""
    failures = summary["failures"]
    silent = summary["counts"]["questions_without_seg"]
    no_token = [f"NO [SEG] in {silent} answers; each counts as empty masks (missing_mask)"] if silent else []
    if not failures:
        return ["no question failed", *no_token]
    lines = [
        *no_token,
        f"FAILED: {len(failures)} questions; each counts as 0 in J, F and J&F, and also in the window, in temporal IoU",
        "and in right object if its ground truth is readable; it is left out of the false positives and the answers:",
    ]
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


def _percent(cell: dict | None) -> str:
    return "-" if cell is None else f"{cell['mean']:.1%}"
