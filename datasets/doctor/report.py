"""The doctor's report: text for a terminal, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.doctor.clip import ClipReport
from datasets.doctor.drift import Peak
from datasets.doctor.findings import KINDS, SEVERITIES, Finding, Findings
from utils.errors import DataError
from utils.files import read_json

SCHEMA = 1
"""Version of the JSON's structure; docs/data.md describes it."""

_PLAIN = ("videos", "frames", "masks", "frames without a mask file", "questions", "expressions")
_LISTS = {
    "types": "questions of type ",
    "mask modes": "masks in mode ",
    "frame sizes (clips)": "frame size ",
    "names (clips)": "clips named ",
    "drift (clips)": "drift: ",
}
"""Heading of a line of the report, and the counts it gathers."""


@dataclass
class Examined:
    """Everything one run has found.

    Attributes:
        corpus, folder: what was examined.
        fast, partial: headers only; some videos left out.
        counts: per split.
        findings: all.
        drifts: per clip, as JSON holds it.
    """

    corpus: str
    folder: str
    fast: bool
    partial: bool
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    drifts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, report: ClipReport) -> None:
        """Take in what was found in one clip."""
        self.counts.setdefault(report.split, Counter()).update(report.counts)
        for finding in report.findings:
            self.findings.put(finding)
        if report.drift is not None:
            clues = {"edges": _clue(report.drift.edges), "motion": _clue(report.drift.motion)}
            verdict = {"status": report.drift.status, "shift": report.drift.shift}
            self.drifts.append({"split": report.split, "video": report.video, **verdict, **clues})

    def exit_code(self, strict: bool) -> int:
        """0: clean, 1: errors (with ``strict``: or warnings)."""
        return int(self.findings.count("error") > 0 or (strict and self.findings.count("warning") > 0))


def _clue(peak: Peak | None) -> dict[str, Any] | None:
    if peak is None:
        return None
    return {"shift": peak.shift, "gain": round(peak.gain, 4), "z": round(min(peak.z, 1e3), 2), "frames": peak.frames}


def as_json(examined: Examined) -> dict[str, Any]:
    """The report as JSON can hold it; docs/data.md describes every key."""
    findings = examined.findings
    return {
        "schema": SCHEMA,
        "corpus": examined.corpus,
        "folder": examined.folder,
        "fast": examined.fast,
        "partial": examined.partial,
        "counts": {split: dict(sorted(counts.items())) for split, counts in examined.counts.items()},
        "totals": {severity: findings.count(severity) for severity in SEVERITIES},
        "kinds": {
            kind: {**dataclasses.asdict(KINDS[kind]), "found": findings.totals[kind], "listed": len(findings.of(kind))}
            for kind in findings.kinds()
        },
        "findings": [_entry(finding) for finding in findings],
        "drift": examined.drifts,
    }


def is_report(path: Path) -> bool:
    """Whether a file is a report that :func:`as_json` made."""
    try:
        value = read_json(path)
    except DataError:
        return False
    return isinstance(value, dict) and {"schema", "corpus", "findings", "drift"} <= set(value)


def _entry(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "split": finding.split,
        "video": finding.video,
        "query": finding.query,
        "files": list(finding.files),
        "count": finding.count,
        "message": finding.message,
    }


def as_text(examined: Examined, examples: int) -> str:
    """The report for a terminal: counts of each split, then findings by severity and kind.

    Args:
        examined: everything found.
        examples: at most this many findings of a kind are printed; the rest are counted.
    """
    depth = ", headers and names only" if examined.fast else ""
    lines = [f"Data doctor: {examined.corpus} in {examined.folder}{depth}", ""]
    for split, counts in examined.counts.items():
        lines += [f"{split}", *_counted(counts), ""]
    findings = examined.findings
    for severity in SEVERITIES:
        kinds = [kind for kind in findings.kinds() if KINDS[kind].severity == severity]
        if not kinds:
            continue
        lines += [f"{severity.upper()}S ({findings.count(severity)})", ""]
        group = ""
        for kind in kinds:
            if KINDS[kind].group != group:
                group = KINDS[kind].group
                lines.append(f"  {group}")
            lines += _about(kind, findings, examples)
        lines.append("")
    totals = [_plural(findings.count(severity), severity) for severity in SEVERITIES]
    lines.append(f"Found: {', '.join(totals)}.{' Some videos were left out.' if examined.partial else ''}")
    if examined.fast:
        lines.append("Not looked at: the pixels (ids, truncated files, drift); leave out --fast to read every file.")
    return "\n".join(lines)


def _about(kind: str, findings: Findings, examples: int) -> list[str]:
    total = findings.totals[kind]
    lines = [f"    {kind} ({total}): {KINDS[kind].title}"]
    for finding in findings.of(kind)[:examples]:
        lines.append(f"      - {': '.join(filter(None, (finding.place, finding.message)))}")
    if total > examples:
        lines.append(f"        … and {total - examples} more")
    return lines


def _counted(counts: Counter[str]) -> list[str]:
    """Lines of counts: the plain ones, then the lists, then what is left."""
    told = [_plural(counts[name], name) for name in _PLAIN if counts[name]]
    lines = [f"  {', '.join(told)}"] if told else ["  nothing to count"]
    known = set(_PLAIN)
    for heading, prefix in _LISTS.items():
        names = [name for name in counts if name.startswith(prefix) and counts[name]]
        known |= set(names)
        if names:
            listed = sorted(names, key=lambda name: (-counts[name], name))
            words = [f"{name.removeprefix(prefix)} {counts[name]:,}" for name in listed[:6]]
            lines.append(f"  {heading}: {', '.join(words)}{' …' if len(listed) > 6 else ''}")
    rest = [f"{name} {counts[name]:,}" for name in sorted(counts) if name not in known and counts[name]]
    return lines + ([f"  {', '.join(rest)}"] if rest else [])


def _plural(number: int, name: str) -> str:
    """ "1 video" of (1, "videos") or (1, "video")."""
    first, _, rest = name.partition(" ")
    first = first.removesuffix("s") + ("" if number == 1 else "s")
    return f"{number:,} {first}{f' {rest}' if rest else ''}"
