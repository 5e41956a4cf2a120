"""The figures of :mod:`benchmarks.groundmore_eval` as text: what was measured, what is extrapolated."""

from __future__ import annotations

from collections.abc import Mapping

ORDER = (
    "decode", "resize", "device", "SAM", "tower", "LLM", "LLM prefix", "LLM suffix", "decoder", "masks", "records",
    "scoring",
)  # fmt: skip

LABELS = {
    "decode": "read and decode JPEG",
    "resize": "resize (and, in (a), normalise)",
    "tower": "vision tower",
    "device": "to the device, normalise, project",
    "decoder": "mask decoder, enlarge",
    "masks": "prompts, masks to the CPU",
    "records": "run lengths, records",
    "scoring": "J and F",
}


def format_result(result: Mapping) -> str:
    """A page of Markdown from what :func:`benchmarks.compare_routes.compare` measured."""
    settings, machine = result["settings"], result["machine"]
    engine, published = result["engine"], result["published"]
    peak = settings["peak"]
    lines = [
        "",
        f"# {settings['preset']}, {settings['width']}x{settings['height']}, {settings['num_frames']} frames, "
        f"{settings['precision']}, rows per {settings['visual_mode']}, answers {settings['answer_mode']}",
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        "",
        f"MEASURED (a) as published: {published['questions']} questions, {published['tokens']} tokens each, "
        f"{published['seconds'] / published['questions']:.3f} s per question",
        "",
        *_table(published, "question", published["questions"], peak, settings["device"]),
        "",
        f"MEASURED (b) this engine: {engine['questions']} questions about {engine['videos']} clips, "
        f"{sum(engine['seconds'].values()):.3f} s (prediction {engine['seconds']['predict']:.3f}, "
        f"scoring {engine['seconds']['score']:.3f}), {_per_question(engine):.3f} s per question",
        "Stage by stage, one after another in one process; the run itself reads and resizes ahead of the model, writes "
        f"records behind it and scores in {engine['scoring_processes'] or 'no'} other processes:",
        "",
        *_table(engine, "clip", engine["videos"], peak, settings["device"]),
        "",
        *_counts(engine, published, settings["device"]),
        *_agreement(result["agreement"]),
        *_ratios(engine, published, settings["device"]),
    ]
    if "ladder" in result:
        lines += ["", f"| step | {'ms' if settings['device'] == 'cuda' else 'ms of processor time'} |", "|---|---|"]
        lines += [f"| {row['step']}, per {row['per']} | {1e3 * row['seconds']:.2f} |" for row in result["ladder"]]
    return "\n".join([*lines, "", *_extrapolated(result["extrapolated"], peak)])


def _per_question(engine: Mapping) -> float:
    return sum(engine["seconds"].values()) / engine["questions"]


def _ratios(engine: Mapping, published: Mapping, device: str) -> list[str]:
    """How many times (b) is faster per question."""
    wall = published["seconds"] / published["questions"] / _per_question(engine)
    lines = [f"wall time per question, (a) to (b): {wall:.1f}x"]
    if device != "cuda":
        each = [route["processor_seconds"] / route["questions"] for route in (published, engine)]
        lines.append(
            f"processor time per question: (a) {each[0]:.3f} s, (b) {each[1]:.3f} s (its scoring processes not "
            f"counted): {each[0] / each[1]:.1f}x"
        )
    return lines


def _table(route: Mapping, unit: str, units: int, peak: float | None, device: str) -> list[str]:
    """Stages of one route per question or clip: time, share, arithmetic, and what part of the peak it reaches."""
    total = sum(route["stages"].values())
    clock = "ms" if device == "cuda" else "ms of processor time"
    head = f"| stage | {clock} per {unit} | share of time | TFLOP |" + (" of peak |" if peak else "")
    lines = [head, "|---|---|---|---|" + ("---|" if peak else "")]
    for name in ORDER:
        if name not in route["stages"]:
            continue
        seconds, work = route["stages"][name], route["tflop"].get(name)
        line = f"| {LABELS.get(name, name)} | {1e3 * seconds / units:.2f} | {seconds / total:.1%} | "
        line += f"{work / units:.4g} |" if work else "– |"
        if peak:
            line += f" {work / seconds / peak:.1%} |" if work else " – |"
        lines.append(line)
    return [*lines, f"| sum | {1e3 * total / units:.2f} | | |" + (" |" if peak else "")]


def _counts(engine: Mapping, published: Mapping, device: str) -> list[str]:
    """Encoder calls and memory."""
    memory = f"most memory: (a) {published['peak_bytes'] / 2**30:.2f} GiB, (b) {engine['peak_bytes'] / 2**30:.2f} GiB"
    lines = [
        f"frames through SAM's encoder: (a) {published['encoded']['sam']} for {published['questions']} questions, "
        f"(b) {engine['encoded']['sam']} for {engine['questions']} questions about {engine['frames']} distinct frames",
        f"images through the vision tower: (a) {published['encoded']['tower']}, (b) {engine['encoded']['tower']}",
        memory + ("" if device == "cuda" else " (of the whole process, which had run (b) before)"),
    ]
    if engine["failed"]:
        lines.append(f"FAILED in (b): {len(engine['failed'])} questions, the first: {engine['failed'][0]}")
    return lines


def _agreement(agreement: Mapping) -> list[str]:
    """Whether both routes say the same."""
    return [
        f"agreement on {agreement['questions']} questions, {agreement['masks']} masks with "
        f"{agreement['pixels_inside']:.1%} of the pixels inside: {agreement['pixels_that_differ']:.2e} of the pixels "
        f"differ, [LOC] by at most {agreement['largest_loc_difference']:.1e}",
        f"J and F of a question: {agreement['same_masks_metric_difference']:.1e} apart for the same masks by both "
        f"metrics, {agreement['own_masks_metric_difference']:.1e} for each route's own masks",
    ]


def _extrapolated(full: Mapping, peak: float | None) -> list[str]:
    """The full test."""
    engine = full["engine"]
    at_peak = f"; at the device's peak (b) would take {_time(engine['tflop'] / peak)}" if peak else ""
    return [
        f"EXTRAPOLATED to {full['videos']} clips, {full['questions']} questions, {full['frames']} frames of this size:",
        f"(b) {_time(engine['total'])} (prediction {_time(engine['predict'])}, scoring {_time(engine['score'])}, once "
        f"{_time(engine['once'])}; loading weights not counted), (a) {_time(full['published']['total'])}: "
        f"{full['ratio']:.1f}x",
        f"COUNTED arithmetic of the same: (b) {engine['tflop']:.4g} TFLOP, (a) {full['published']['tflop']:.4g} TFLOP: "
        f"{full['published']['tflop'] / engine['tflop']:.1f}x" + at_peak,
    ]


def _time(seconds: float) -> str:
    """Such as "41 s", "3 min 05 s", "1 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
