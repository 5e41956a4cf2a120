"""The report page's charts, as SVG inside HTML: the distribution of J&F, and what each kind of failure costs."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from datasets.sample import QUESTION_TYPES
from evaluation.scoring.summary import OVERALL

BINS = 20
_LEFT, _RIGHT, _TOP, _BOTTOM = 26, 6, 32, 20
_LARGE, _SMALL = (600, 334), (300, 140)
"""(width, height) of the panel of all questions and of a panel of one type."""


def histograms(scores: Sequence[dict], summary: dict) -> str:
    """J&F per question, for all questions and by type, each with the means of the model and of the all-empty answer."""
    panels = []
    for split in (OVERALL, *QUESTION_TYPES):
        values = [s["rows"]["model"]["JF"] for s in scores if split in (OVERALL, s["q_type"])]
        if not values:
            continue
        means = {row: summary["rows"][row]["table"][split]["JF"]["mean"] for row in ("model", "all_empty")}
        panels.append(_histogram(split, np.asarray(values), means, _LARGE if split == OVERALL else _SMALL))
    return "".join(panels)


def _histogram(split: str, values: np.ndarray, means: dict[str, float], size: tuple[int, int]) -> str:
    """One panel; the last bin holds 1.0 too."""
    counts = np.bincount(np.minimum((values * BINS + 1e-9).astype(int), BINS - 1), minlength=BINS)
    top = int(counts.max())
    width, height = size
    span, floor = width - _LEFT - _RIGHT, height - _BOTTOM

    def x_of(value: float) -> float:
        return round(_LEFT + span * value, 1)

    def y_of(count: float) -> float:
        return round(floor - (floor - _TOP) * count / top, 1)

    parts = [f"<path class='axis' d='M{_LEFT} {floor}h{span}'/>"]
    parts += [
        f"<text class='tick' x='{x_of(value)}' y='{height - 6}' text-anchor='middle'>{value:g}</text>"
        for value in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts.append(f"<text class='tick' x='{_LEFT - 4}' y='{y_of(top) + 4}' text-anchor='end'>{top}</text>")
    for number, count in enumerate(counts.tolist()):
        if count:
            left, right = x_of(number / BINS), x_of((number + 1) / BINS)
            name = f"J&amp;F {number / BINS:.2f} to {(number + 1) / BINS:.2f}: {count} questions"
            parts.append(
                f"<rect class='bar' x='{left + 0.7:.1f}' y='{y_of(count)}' width='{right - left - 1.4:.1f}' "
                f"height='{floor - y_of(count):.1f}'><title>{name}</title></rect>"
            )
    for row, label, line in (("model", "mean", 10), ("all_empty", "all-empty", 22)):
        x = x_of(means[row])
        # The lower of the two means is named to its left and the higher to its right, unless an edge is near.
        left = means[row] > 0.75 or means[row] == min(means.values()) and means[row] > 0.3
        anchor, shift = ("end", -4) if left else ("start", 4)
        parts.append(f"<path class='mark {row}' d='M{x} {line - 8}V{floor}'/>")
        parts.append(
            f"<text class='mark {row}' x='{x + shift:.1f}' y='{line}' text-anchor='{anchor}'>"
            f"{label} {means[row]:.3f}</text>"
        )
    means_text = f"mean {means['model']:.3f}, an all-empty answer {means['all_empty']:.3f}"
    label = f"J&F of {len(values)} questions, {split}: {means_text}"
    return (
        f"<figure class='{'wide' if split == OVERALL else 'narrow'}'><figcaption>{split} <span>{len(values)} "
        f"question{'' if len(values) == 1 else 's'}</span></figcaption>"
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{html.escape(label, quote=True)}'>"
        f"{''.join(parts)}</svg></figure>"
    )


def failure_table(breakdown: Sequence[dict]) -> str:
    """Named failures: how many questions, and what they take from the mean J&F, as timing and as masks.

    Args:
        breakdown: from :func:`evaluation.report.failures.breakdown`.
    """
    total = sum(line["questions"] for line in breakdown) or 1
    widest = max((line["lost"] for line in breakdown), default=0) or 1
    rows = []
    for line in breakdown:
        name = html.escape(line["name"], quote=True)
        timing = min(max(line["timing"], 0.0), line["lost"]) / widest * 100
        masks = line["lost"] / widest * 100 - timing
        parts = f"timing {line['timing']:.3f}, masks {line['masks']:.3f}"
        kind, parts = ("rest", "no prediction") if line["name"] == "failed" else ("masks", parts)
        disabled = "" if line["questions"] else " disabled"
        rows.append(
            f"<tr><th scope='row'><button class='badge' data-name='{name}'{disabled}>{name}</button></th>"
            f"<td>{line['questions']}</td><td>{line['questions'] / total:.0%}</td><td>{line['lost']:.3f}</td>"
            f"<td class='wide'><svg class='bars' viewBox='0 0 100 8' preserveAspectRatio='none' aria-hidden='true'>"
            f"<rect class='timing' width='{timing:.2f}' height='8'/>"
            f"<rect class='{kind}' x='{timing:.2f}' width='{masks:.2f}' height='8'/></svg><small>{parts}</small></td>"
            f"<td class='left'>{html.escape(line['meaning'])}</td></tr>"
        )
    lost = sum(line["lost"] for line in breakdown)
    head = "".join(
        f"<th scope='col' class='{'left' if number > 3 else ''}'>{label}</th>"
        for number, label in enumerate(("Name", "questions", "share", "J&amp;F lost", "to timing and to masks", "rule"))
    )
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='Named failures'><table class='failures'><caption>"
        f"Named failures: together they lose {lost:.3f} of the mean J&amp;F</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
