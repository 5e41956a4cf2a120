"""What a person reads: the tables on the terminal, the text result file, ``summary.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.sample import QUESTION_TYPES
from evaluation.protocol import Protocol
from evaluation.summary import OVERALL, best_baseline
from utils.files import atomic_write, write_json

SPLITS = (OVERALL, *QUESTION_TYPES)


def write_results(
    output_dir: str | Path, result_file: str | Path, scores: Sequence[dict], summary: dict, protocol: Protocol
) -> None:
    """Write ``summary.json`` and ``scores.json`` into the run folder, and the text result file; all atomically.

    Args:
        output_dir: run folder.
        result_file: the text file in the original evaluator's format.
        scores: per question.
        summary: of the same scores.
        protocol: printed at the head of the text file.
    """
    write_json(Path(output_dir) / "scores.json", list(scores))
    write_json(Path(output_dir) / "summary.json", summary)
    with atomic_write(result_file, "w") as stream:
        stream.write("\n".join(result_lines(scores, summary, protocol)) + "\n")


def result_lines(scores: Sequence[dict], summary: dict, protocol: Protocol) -> list[str]:
    """The text result: the contract as comments, ``video, question, JF, J, F`` per question, the final block.

    Lines that do not start with "#" are those of the original evaluator, four decimals.
    """
    lines = [f"# {line}" for line in protocol.describe()]
    failed = summary["counts"]["questions_failed"]
    lines.append(f"# questions {len(scores)}, failed {failed} (each counts as 0)")
    for score in scores:
        row = score["rows"]["model"]
        lines.append(f"{score['video_id']}, {score['query_id']}, {row['JF']:.4f}, {row['J']:.4f}, {row['F']:.4f}")
    table = summary["rows"]["model"]["table"]
    lines += [
        f"Final J (Jaccard Index): {_plain(table[OVERALL]['J'])}",
        f"Final F (F-measure): {_plain(table[OVERALL]['F'])}",
        f"Final JF (Average of J and F): {_plain(table[OVERALL]['JF'])}",
    ]
    for name in QUESTION_TYPES:
        lines += [
            f"Final {name} J: {_plain(table[name]['J'])}",
            f"Final {name} F: {_plain(table[name]['F'])}",
            f"Final {name} JF (Average of {name} J and F): {_plain(table[name]['JF'])}",
        ]
    return lines


def format_report(summary: dict, protocol: Protocol) -> str:
    """The whole report for a terminal: contract, main table, both sides of the metric, reference rows, counts."""
    parts = ["\n".join(protocol.describe()), _main_table(summary), _sides_table(summary), _reference_table(summary)]
    parts.append(_counts_text(summary))
    return "\n\n".join(parts)


def _main_table(summary: dict) -> str:
    table = summary["rows"]["model"]["table"]
    rows = [
        [split, str(table[split]["N"]), *(_with_error(table[split][measure]) for measure in ("JF", "J", "F"))]
        for split in SPLITS
    ]
    return _layout(["Result", "N", "J&F", "J", "F"], rows)


def _sides_table(summary: dict) -> str:
    """What J&F hides: it rewards silence, so quality inside the window and timing stand beside it."""
    measures = ("window_J", "window_F", "temporal_iou", "false_positive_rate", "object_accuracy", "object_chance")
    header = ["Both sides", "in-window J", "in-window F", "temporal IoU", "false positives", "right object", "chance"]
    table = summary["rows"]["model"]["table"]
    rows = [[split, *(_plain(table[split][measure]) for measure in measures)] for split in SPLITS]
    return _layout(header, rows)


def _reference_table(summary: dict) -> str:
    header = ["Row", "kind", "J&F", "J", "F", "in-window J", "temporal IoU"]
    measures = ("JF", "J", "F", "window_J", "temporal_iou")
    rows = [
        [name, row["kind"], *(_plain(row["table"][OVERALL][measure]) for measure in measures)]
        for name, row in summary["rows"].items()
    ]
    text = _layout(header, rows)
    if summary["counts"]["questions"]:
        name, value = best_baseline(summary)
        margin = summary["rows"]["model"]["table"][OVERALL]["JF"]["mean"] - value
        text += f"\nJ&F is {margin:+.4f} against the best baseline ({name})"
    return text


def _counts_text(summary: dict) -> str:
    counts = summary["counts"]
    frames = counts["listed_frames"] or 1
    lines = [
        f"{counts['questions']} questions about {counts['videos']} videos; standard errors are clustered by video",
        f"{counts['listed_frames_with_empty_truth'] / frames:.1%} of the listed frames have an empty ground truth: "
        "what silence scores there is 1",
        f"{counts['window_frames_without_mask_file']} in-window frames have no mask file (taken as empty), "
        f"{counts['questions_without_frame_in_window']} questions have no listed frame in their window",
        f"no [SEG] in {counts['questions_without_seg']} answers, no [LOC] in {counts['questions_without_loc']}; "
        f"appended: [SEG] to {counts['questions_with_forced_seg']}, [LOC] to {counts['questions_with_forced_loc']}",
    ]
    if counts["questions_failed"]:
        lines.append(f"FAILED: {counts['questions_failed']} questions; each counts as 0 in J, F and J&F:")
        lines += [f"  {f['video_id']}, {f['query_id']}: {f['reason']}" for f in summary["failures"][:20]]
        if len(summary["failures"]) > 20:
            lines.append(f"  … and {len(summary['failures']) - 20} more in summary.json")
    return "\n".join(lines)


def _plain(cell: dict | None) -> str:
    """A mean with four decimals; "-" where no question has a value."""
    return "-" if cell is None else f"{cell['mean']:.4f}"


def _with_error(cell: dict | None) -> str:
    if cell is None or cell["stderr"] is None:
        return _plain(cell)
    return f"{cell['mean']:.4f} ±{cell['stderr']:.4f}"


def _layout(header: list[str], rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths)) for row in [header, *rows])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
