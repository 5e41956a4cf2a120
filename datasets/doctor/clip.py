"""Examining one clip's files: every frame and mask once, in time order; runs in a worker process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.doctor.drift import MAX_SHIFT, Drift, DriftProbe
from datasets.doctor.files import Look, by, look_at_frame, look_at_mask
from datasets.doctor.findings import Finding, Picture
from datasets.sample import Question

_MANY_IDS = 40
"""A clip with more ids than this is no clip of objects: its masks are smoothed or grey pictures."""

_NAMED = 5
"""Files named by one finding."""

_MOMENTS, _TRIED = 3, 6
"""Frames drawn of a drift suspect, and how many are compared to choose each."""


@dataclass(frozen=True)
class ClipTask:
    """What a worker must know of a clip.

    Attributes:
        split, video: names.
        frames: in time order.
        masks: per frame a PNG of ids or None; or, with ``tubes``, empty.
        tubes: per annotation id one run-length mask or None per frame (MeViS); None for PNG masks.
        questions: those whose ids could be parsed; ids are looked for in the masks. Windows are clipped ones.
        fast: headers only.
    """

    split: str
    video: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...] = ()
    tubes: dict[int, list[Any]] | None = None
    questions: tuple[Question, ...] = ()
    fast: bool = False


@dataclass
class ClipReport:
    """What a worker found in a clip: findings, counts to add up, and the verdict on drift (None with ``fast``)."""

    split: str
    video: str
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    drift: Drift | None = None

    def find(self, kind: str, message: str, **details: Any) -> None:
        """Add a finding; ``details`` are fields of :class:`Finding`."""
        self.findings.append(Finding(kind, message, self.split, self.video, **details))


class _Tally:
    """Mistakes of one clip by kind: the first message, the first files, how many."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {}

    def add(self, kind: str, message: str, file: str | Path, picture: Picture | None = None) -> None:
        row = self.rows.setdefault(kind, [message, [], 0, []])
        row[2] += 1
        if len(row[1]) < _NAMED:
            row[1].append(str(file))
        if picture is not None and not row[3]:
            row[3].append(picture)

    def tell(self, report: ClipReport) -> None:
        for kind, (message, files, count, pictures) in self.rows.items():
            more = f" (and {count - 1} more of this clip)" if count > 1 else ""
            report.find(kind, message + more, files=tuple(files), count=count, pictures=tuple(pictures))


def examine(task: ClipTask) -> ClipReport:
    """Look at every file of a clip. Never raises: what stops the examination is itself a finding."""
    report = ClipReport(task.split, task.video)
    try:
        _examine(task, report)
    except Exception as error:  # one clip, however broken, must not end the examination of the others
        report.find("examination-failed", f"stopped by {type(error).__name__}: {error}; look at this clip by hand")
    return report


def _examine(task: ClipTask, report: ClipReport) -> None:
    tally, counts, probe = _Tally(), report.counts, None if task.fast else DriftProbe()
    numbers = sorted(task.tubes) if task.tubes is not None else []
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    present = _Presence(len(task.frames))
    for index, path in enumerate(task.frames):
        frame = look_at_frame(path, decode=not task.fast)
        for kind, message in frame.mistakes:
            tally.add(kind, message, path)
        if frame.size is not None:
            if sizes and frame.size not in sizes:
                usual = sizes.most_common(1)[0][0]
                tally.add("frame-size-mixed", f"{path} is {by(frame.size)}, earlier frames {by(usual)}", path)
            sizes[frame.size] += 1
        source = mask_source(task, numbers, index)
        mask = None
        if source is not None:
            mask = look_at_mask(source, not task.fast, frame.size, numbers)
            _note_mask(task.frames[index], mask, source, frame, index, tally)
            counts[f"masks in mode {mask.mode}" if mask.mode else "masks"] += 1
            modes[mask.mode] += not mask.mistakes
            present.note(index, mask, numbers)
        if probe is not None:
            probe.push(frame.pixels, None if mask is None or mask.mistakes else mask.pixels)
    counts.update({f"frame size {by(size)}": 1 for size in sizes})
    if len(+modes) > 1:
        told = ", ".join(f"{number} in mode {mode}" for mode, number in modes.most_common() if number)
        report.find("mask-mode-mixed", f"masks: {told}")
    tally.tell(report)
    if probe is not None:
        present.tell(task, numbers, report)
        counts["objects in masks"] += len(present.seen)
        _judge_drift(task, probe.verdict(), numbers, report)


def mask_source(task: ClipTask, numbers: Sequence[int], index: int) -> Path | tuple[Any, ...] | None:
    """The PNG, or the run-length masks of all annotations, of a frame; None if there is none."""
    if task.tubes is None:
        return task.masks[index] if index < len(task.masks) else None
    return tuple(task.tubes[number][index] if index < len(task.tubes[number]) else None for number in numbers) or None


def _note_mask(path: Path, mask: Look, source: Any, frame: Look, index: int, tally: _Tally) -> None:
    """Note a mask that cannot be used or does not fit its frame."""
    picture = Picture(path, source, note=f"frame {index}")
    single = isinstance(source, Path)
    for kind, message in mask.mistakes:
        tally.add(kind, message if single else f"{path.name}, {message}", source if single else path, picture)
    if mask.size is not None and frame.size is not None and mask.size != frame.size:
        message = (
            f"{source}: this mask is {by(mask.size)}, its frame {path} is {by(frame.size)} (height x width); write one "
            "of them again"
        )
        tally.add("mask-size", message, source, picture)


class _Presence:
    """On which frames each object is visible."""

    def __init__(self, num_frames: int):
        self.num_frames = num_frames
        self.seen: dict[int, np.ndarray] = {}
        self.read, self.damaged = 0, 0

    def note(self, index: int, mask: Look, numbers: Sequence[int]) -> None:
        """Add a frame's mask; with ``numbers`` pixel value k + 1 stands for object numbers[k]."""
        self.damaged += bool(mask.mistakes)
        if mask.pixels is None:
            return
        self.read += 1
        for value in np.flatnonzero(np.bincount(mask.pixels.ravel())).tolist():
            if value:
                number = numbers[value - 1] if numbers else value
                self.seen.setdefault(number, np.zeros(self.num_frames, dtype=bool))[index] = True

    def tell(self, task: ClipTask, numbers: Sequence[int], report: ClipReport) -> None:
        """Note objects that questions name and masks lack, per question; too many ids, per clip."""
        if len(self.seen) > _MANY_IDS and not numbers:
            message = f"{len(self.seen)} different ids in this clip's masks; were they smoothed or stored as JPEG?"
            index = int(np.sum(list(self.seen.values()), axis=0).argmax())
            picture = Picture(task.frames[index], mask_source(task, numbers, index), note=f"frame {index}")
            report.find("mask-many-ids", message, pictures=(picture,))
        for question in task.questions:
            self._tell_about(question, task, numbers, report)

    def _tell_about(self, question: Question, task: ClipTask, numbers: Sequence[int], report: ClipReport) -> None:
        absent = [number for number in question.object_ids if number not in self.seen]
        if absent and self.read and task.tubes is None:  # a tube without any mask is noted with the annotation
            held = ", ".join(map(str, sorted(self.seen)[:20])) or "no object"
            doubt = f" ({self.damaged} masks could not be read)" if self.damaged else ""
            message = (
                f"object {', '.join(map(str, absent))} is in none of the clip's masks, which hold {held}{doubt}; "
                "correct the id or the masks"
            )
            index = next((k for k, path in enumerate(task.masks) if path is not None), 0)
            picture = Picture(task.frames[index], mask_source(task, numbers, index), note=f"frame {index}, all objects")
            report.find("object-absent", message, query=question.query_id, pictures=(picture,))
        if question.window is None or absent or not self.read:
            return
        visible = np.any([self.seen[number] for number in question.object_ids], axis=0)
        first, last = question.window
        if visible[first : last + 1].any() or not any(task.masks[first : last + 1]):
            return  # with no mask file at all in the window, that is what is noted
        index = int(np.abs(np.flatnonzero(visible) - (first + last) / 2).argmin())
        nearest = int(np.flatnonzero(visible)[index])
        message = (
            f"the answer is visible on {int(visible.sum())} frames (the nearest is {nearest}), but on none of its "
            f"window, frames {first} to {last}: the target is empty; look at the times and the masks"
        )
        mask = mask_source(task, numbers, nearest)
        picture = Picture(task.frames[nearest], mask, ids=question.object_ids, note=f"frame {nearest}")
        report.find("object-outside-window", message, query=question.query_id, pictures=(picture,))


def _judge_drift(task: ClipTask, drift: Drift, numbers: Sequence[int], report: ClipReport) -> None:
    """Count the verdict; describe and picture a suspect."""
    report.drift = drift
    report.counts[f"drift: {drift.status}"] += 1
    if drift.status != "suspect":
        return
    shift, way = drift.shift, "late" if drift.shift > 0 else "early"
    clues = [f"edges +{drift.edges.gain:.0%} (z {min(drift.edges.z, 99):.0f}, {drift.edges.frames} masks)"]
    if drift.motion is not None:
        clues.append(f"motion +{drift.motion.gain:.0%} (z {min(drift.motion.z, 99):.0f})")
    message = (
        f"masks come {abs(shift)} frame{'s' if abs(shift) > 1 else ''} {way}: the mask filed under frame t{shift:+d} "
        f"fits frame t better; {', '.join(clues)}. Look at the contact sheet, then extract the frames or write the "
        "masks again"
    )
    report.find("drift-suspect", message, score=drift.score, pictures=_moments(task, numbers, shift))


def _moments(task: ClipTask, numbers: Sequence[int], shift: int) -> tuple[Picture, ...]:
    """The frame of each third of the clip on which the mask filed under it and the one that fits differ most."""
    pairs = []
    for index in range(MAX_SHIFT, len(task.frames) - MAX_SHIFT):
        filed, fitting = (mask_source(task, numbers, at) for at in (index, index + shift))
        if filed is not None and fitting is not None:
            pairs.append(Picture(task.frames[index], filed, fitting, note=f"frame {index}"))
    parts = [pairs[first : first + -(-len(pairs) // _MOMENTS)] for first in _starts(len(pairs))]
    return tuple(max(part[:: max(1, len(part) // _TRIED)], key=_difference) for part in parts if part)


def _starts(count: int) -> range:
    """Where each part of a list begins that is cut into _MOMENTS parts."""
    return range(0, count, -(-count // _MOMENTS) or 1)


def _difference(picture: Picture) -> int:
    """Pixels in which the two masks of a picture differ."""
    filed, fitting = (look_at_mask(mask, decode=True).pixels for mask in (picture.mask, picture.fitting))
    if filed is None or fitting is None or filed.shape != fitting.shape:
        return -1
    return int((filed != fitting).sum())
