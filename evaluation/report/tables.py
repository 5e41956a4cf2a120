"""The report page's tables, as HTML: every text from data is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.sample import QUESTION_TYPES
from evaluation.scoring.summary import MEASURES, OVERALL, best_baseline

SPLITS = (OVERALL, *QUESTION_TYPES)
SHOWN_FAILURES = 200

_MAIN = (("JF", "J&F"), ("J", "J"), ("F", "F"))
_SIDES = (
    ("window_J", "in-window J"),
    ("window_F", "in-window F"),
    ("temporal_iou", "temporal IoU"),
    ("false_positive_rate", "false positives"),
    ("object_accuracy", "right object"),
    ("object_chance", "by chance"),
)
_REFERENCE = (*_MAIN, ("window_J", "in-window J"), ("temporal_iou", "temporal IoU"))


def title(summary: dict) -> str:
    """Plain text: which model on how much."""
    counts, about = summary["counts"], summary["run"].get("about", {})
    name = Path(str(about.get("version", ""))).name or "MoRA"
    return f"{name}: {_number(counts['questions'], 'question')} about {_number(counts['videos'], 'video')}"


def tiles(summary: dict) -> str:
    """The few figures to read first."""
    table = summary["rows"]["model"]["table"][OVERALL]
    parts = [_tile("J&F", table["JF"], _interval(table["JF"]))]
    if summary["counts"]["questions"]:
        name, value = best_baseline(summary)
        margin = summary["differences"][name]["table"][OVERALL]["JF"]
        parts.append(_tile(f"against {_words(name)} ({value:.3f})", margin, _interval(margin, "+"), "+"))
    parts.append(_tile("J inside the window", table["window_J"], "what silence cannot win"))
    parts.append(_tile("temporal IoU", table["temporal_iou"], _interval(table["temporal_iou"])))
    chance = table["object_chance"]
    note = "" if chance is None else f"{chance['mean']:.3f} by chance"
    parts.append(_tile("right object", table["object_accuracy"], note))
    failed = summary["counts"]["questions_failed"]
    parts.append(_tile("failed questions", failed, "each counts as 0" if failed else "none"))
    return "".join(parts)


def main_table(summary: dict) -> str:
    """J&F, J and F by question type with their intervals."""
    return _by_type(summary["rows"]["model"]["table"], _MAIN, "Result by question type, with 95% intervals")


def sides_table(summary: dict) -> str:
    """What J&F hides: quality inside the window, timing, and the choice of the object."""
    return _by_type(summary["rows"]["model"]["table"], _SIDES, "Both sides of the metric, by question type")


def reference_table(summary: dict) -> str:
    """The model among baselines, ablations and oracles computed from the same frames."""
    head = _head(["Row", "kind", "model − row, J&F", *(label for _, label in _REFERENCE)])
    rows = []
    for name, row in summary["rows"].items():
        cells = [f"<th scope='row' title='{_text(row['meaning'])}'>{_text(_words(name))}</th>"]
        cells.append(f"<td>{_text(row['kind'])}</td>")
        other = summary["differences"].get(name)
        cells.append("<td></td>" if other is None else _cell(other["table"][OVERALL]["JF"], "+"))
        cells += [_cell(row["table"][OVERALL].get(key)) for key, _ in _REFERENCE]
        rows.append(_row(cells, "own" if name == "model" else ""))
    meanings = "; ".join(f"{_words(name)}: {row['meaning']}" for name, row in summary["rows"].items())
    return _table("Reference rows, all questions", head, rows) + f"<p class='note'>{_text(meanings)}.</p>"


def token_table(summary: dict) -> str:
    """How the answers came about: tokens written and appended, frames with masks."""
    labels = {
        "seg": "[SEG]",
        "forced_seg": "[SEG] appended",
        "loc": "[LOC]",
        "forced_loc": "[LOC] appended",
        "mask_frames": "frames with a mask",
        "kept_frames": "after refinement",
        "truth_frames": "with ground truth",
    }
    return _by_type(summary["tokens"]["table"], tuple(labels.items()), "Tokens and masks, as shares", percent=True)


def counts_list(summary: dict) -> str:
    """What was counted, and how failures were."""
    counts, interval = summary["counts"], summary["interval"]
    frames = counts["listed_frames"] or 1
    lines = [
        f"{counts['questions']} questions about {counts['videos']} videos, {counts['listed_frames']} listed frames. "
        f"Intervals: {interval['level']:.0%}, {interval['method']}, {interval['draws']} draws.",
        f"{counts['listed_frames_with_empty_truth'] / frames:.1%} of the listed frames have an empty ground truth: "
        "what silence scores there is 1.",
        f"{counts['window_frames_without_mask_file']} in-window frames have no mask file (taken as empty); "
        f"{counts['questions_without_frame_in_window']} questions have no listed frame in their window.",
        f"No [SEG] in {counts['questions_without_seg']} answers, no [LOC] in {counts['questions_without_loc']}; "
        f"appended: [SEG] to {counts['questions_with_forced_seg']}, [LOC] to {counts['questions_with_forced_loc']}.",
        f"{counts['questions_failed']} questions failed. A failed question is never dropped: it counts as 0 in J, F "
        "and J&F, and, where its ground truth is readable, inside the window, in temporal IoU and in right object.",
    ]
    return "<ul class='facts'>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>" + _failures(summary)


def _failures(summary: dict) -> str:
    failures = summary["failures"]
    if not failures:
        return ""
    rows = [
        _row([f"<td class='left'>{_text(failure[key])}</td>" for key in ("video_id", "query_id", "reason")])
        for failure in failures[:SHOWN_FAILURES]
    ]
    more = len(failures) - SHOWN_FAILURES
    note = f"<p class='note'>… and {more} more in summary.json</p>" if more > 0 else ""
    table = _table("Failed questions", _head(["video", "question", "reason"]), rows)
    return f"<details open><summary>{_number(len(failures), 'failed question')}</summary>{table}{note}</details>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values as a definition list; nested values are flattened with dotted names."""
    parts = [f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in _flat(pairs)]
    return f"<dl class='facts'>{''.join(parts)}</dl>"


def run_facts(summary: dict) -> str:
    """Model and run: fingerprint, settings of the predictions, paths, selection."""
    run = summary["run"]
    settings = {key: value for key, value in run.get("settings", {}).items() if key != "protocol"}
    pairs = [("fingerprint", run.get("fingerprint")), *run.get("about", {}).items(), *settings.items()]
    selection = {key: value for key, value in run.get("selection", {}).items() if value is not None}
    return facts([*pairs, ("selection", selection or "everything")])


def measure_facts() -> str:
    """What each measure means."""
    return facts((key, meaning) for key, meaning in MEASURES.items())


def _flat(pairs: Iterable[tuple[str, object]]) -> Iterable[tuple[str, object]]:
    for name, value in pairs:
        if isinstance(value, dict):
            yield from _flat((f"{name}.{key}", inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif value is not None:
            yield name, value


def _by_type(table: dict, measures: Sequence[tuple[str, str]], caption: str, percent: bool = False) -> str:
    form = "%" if percent else ""
    rows = [
        _row(
            [
                f"<th scope='row'>{_text(split)}</th><td>{table[split]['N']}</td>",
                *(_cell(table[split].get(key), form) for key, _ in measures),
            ],
            "own" if split == OVERALL else "",
        )
        for split in SPLITS
    ]
    return _table(caption, _head(["Type", "N", *(label for _, label in measures)]), rows)


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    # A wide table scrolls inside its own box, which the keyboard must be able to reach.
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{_text(caption)}'><table>"
        f"<caption>{_text(caption)}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(labels: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th scope='col'>{_text(label)}</th>" for label in labels) + "</tr>"


def _row(cells: Sequence[str], kind: str = "") -> str:
    return f"<tr class='{kind}'>{''.join(cells)}</tr>" if kind else f"<tr>{''.join(cells)}</tr>"


def _cell(cell: dict | None, form: str = "") -> str:
    """A mean with its interval below; a dash where no question has a value. ``form``: see :func:`_figure`."""
    if cell is None:
        return "<td><span class='none' title='applies to no question'>–</span></td>"
    spread = _interval(cell, form)
    note = f"<small>{_text(spread)}</small>" if spread else ""
    return f"<td title='{cell['N']} questions'>{_figure(cell['mean'], form)}{note}</td>"


def _figure(value: float, form: str = "") -> str:
    """Three decimals; with their sign ("+"); as a percentage ("%")."""
    text = f"{value:.0%}" if form == "%" else f"{value:{form}.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _interval(cell: dict | None, form: str = "") -> str:
    """The 95% interval; the standard error where there is none; nothing with a single video."""
    if cell is None:
        return ""
    low, high = cell.get("low"), cell.get("high")
    if low is not None and high is not None:
        return f"{_figure(low, form)} {'to' if form == '+' else '–'} {_figure(high, form)}"
    return "" if cell["stderr"] is None else f"± {_figure(cell['stderr'], form.strip('+'))}"


def _tile(label: str, value: dict | int | None, note: str, form: str = "") -> str:
    shown = "–" if value is None else value if isinstance(value, int) else _figure(value["mean"], form)
    return f"<li><b>{_text(shown)}</b><span>{_text(label)}</span><small>{_text(note)}</small></li>"


def _words(name: str) -> str:
    """all_empty -> all-empty."""
    return name.replace("_", "-")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _text(value: object) -> str:
    """Escaped for text and for attributes in either kind of quotes."""
    return html.escape(str(value), quote=True)
