"""What the doctor can find: every kind, how bad it is, and the list that findings are gathered in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEVERITIES = ("error", "warning", "note")
"""error: a reader refuses it, or a number computed from it would be wrong. warning: look at it. note: good to know."""

GROUPS = ("layout", "questions and expressions", "windows and ids", "frames", "masks", "drift", "doctor")
"""In the order of the report."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding: its severity, its group and what it means in one line."""

    severity: str
    group: str
    title: str


def _kinds(group: str, **rows: tuple[str, str]) -> dict[str, Kind]:
    """Kinds of one group; underscores of the keyword become hyphens."""
    return {name.replace("_", "-"): Kind(severity, group, title) for name, (severity, title) in rows.items()}


KINDS: dict[str, Kind] = {
    **_kinds(
        "layout",
        layout_missing=("error", "an expected file or folder is missing"),
        annotation_unreadable=("error", "an annotation file cannot be read or has another structure"),
        duplicate_key=("error", "a JSON object names a key twice; all but the last of the values are lost"),
        other_json=("note", "a JSON file that is no annotation of this corpus; passed over"),
        video_malformed=("error", "a video's entry lacks a field or has one of another type"),
        video_without_folder=("error", "an annotated video has no folder, or its folder has no image"),
        folder_without_annotation=("warning", "a video folder that no annotation file names"),
        video_in_several_files=("note", "annotation files share videos"),
        bad_name=("error", "an id that can be no folder's name, or that no table or UTF-8 file can carry"),
        not_a_file=("error", "pipes, folders or links to nothing that have the names of images"),
        stray_file=("note", "files among frames or masks that are neither"),
    ),
    **_kinds(
        "questions and expressions",
        entry_malformed=("error", "a question or expression lacks a field or has one of another type"),
        answer_missing=("error", "a question without an answer"),
        unknown_type=("error", "a question of unknown type"),
        bad_object_id=("error", "object ids that cannot be parsed"),
        ids_not_parallel=("warning", "obj_id and anno_id do not have the same length"),
        duplicate_text=("note", "the same text twice in a video, for the same objects and window"),
        contradicting_text=("warning", "the same text twice in a video, for different objects, answers or windows"),
    ),
    **_kinds(
        "windows and ids",
        bad_video_id=("error", "a video id without the clip's times (MMSS_MMSS)"),
        bad_time=("error", "an action time that is missing or cannot be parsed"),
        window_empty=("error", "an action that ends before it starts"),
        window_outside=("error", "an action outside its clip"),
        window_clipped=("warning", "an action that begins before its clip or ends after it"),
        clip_length=("warning", "more or fewer frames than the clip's times say, by more than a second"),
        object_absent=("error", "an object named by the annotation is in no mask of its clip"),
        object_outside_window=("warning", "the answer is visible in the clip, but on no frame of the action"),
        window_without_mask=("warning", "no frame of the action has a mask file"),
        window_mask_gaps=("note", "some frames of the action have no mask file"),
    ),
    **_kinds(
        "frames",
        frame_missing=("error", "frames that the annotation lists and the folder lacks"),
        frame_unreadable=("error", "frames that are empty, truncated or no image"),
        frame_mode=("error", "frames of a mode that is none, of several pictures, too large, or Git LFS pointers"),
        frame_size_mixed=("error", "frames of different sizes in one clip"),
        frame_number_hole=("error", "frame numbers with holes; every later window would shift"),
        frame_number_repeated=("error", "two frames with one number"),
        frame_without_number=("warning", "frame names without a number"),
        frame_step_irregular=("note", "frame numbers whose step varies"),
        frame_unlisted=("note", "frame files that the annotation does not list; not used"),
        naming_mixed=("warning", "two naming conventions in one clip"),
        naming_differs=("note", "frames and masks of a clip follow different naming conventions"),
        naming_unknown=("note", "frame names that follow neither published convention"),
    ),
    **_kinds(
        "masks",
        mask_missing=("error", "masks that must be there are missing"),
        mask_unreadable=("error", "masks that are empty, truncated or no PNG"),
        mask_mode=("error", "masks in a mode that holds no ids (colours, 16 bits)"),
        mask_mode_mixed=("note", "palette and grey masks in one clip"),
        mask_size=("error", "a mask and its frame differ in size"),
        mask_numbering=("error", "masks numbered otherwise than their frames, so that each may lie under a wrong one"),
        mask_orphan=("warning", "mask files that belong to no frame"),
        mask_many_ids=("warning", "masks with so many ids that they look like grey or smoothed pictures"),
        tube_missing=("error", "an annotation that mask_dict.json does not hold"),
        tube_length=("error", "an annotation with another number of masks than its video has frames"),
        tube_shared=("warning", "one annotation used by two videos"),
        tube_unused=("note", "annotations in mask_dict.json that no expression names"),
        rle_damaged=("error", "run-length masks that cannot be decoded"),
    ),
    **_kinds("drift", drift_suspect=("warning", "masks that fit the frames better when shifted in time")),
    **_kinds(
        "doctor",
        reader_refuses=("error", "the reader refuses the corpus for a reason that no check above names"),
        examination_failed=("error", "a clip could not be examined to its end"),
    ),
}
"""Every kind, in the order of the report."""


@dataclass(frozen=True)
class Picture:
    """What the contact sheet needs to draw a finding.

    Attributes:
        frame: image file.
        mask: PNG of ids, run-length masks (object ``k + 1`` is number ``k``), or None.
        fitting: the mask that would fit better (drift), of the same sort.
        ids: objects to draw; empty: all.
        note: a few words, e.g. the frame's index.
    """

    frame: Path
    mask: Path | tuple[Any, ...] | None = None
    fitting: Path | tuple[Any, ...] | None = None
    ids: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing found; mistakes of one kind in one clip's files are one finding with a count.

    Attributes:
        kind: key of KINDS.
        message: what is wrong and what to do.
        split, video, query: where; "" where it does not apply.
        files: paths concerned, the first few.
        count: files or entries concerned.
        score: orders suspects of one kind, worst first.
        pictures: for the contact sheet.
    """

    kind: str
    message: str
    split: str = ""
    video: str = ""
    query: str = ""
    files: tuple[str, ...] = ()
    count: int = 1
    score: float = 0.0
    pictures: tuple[Picture, ...] = field(default=(), repr=False, compare=False)

    @property
    def severity(self) -> str:
        """Of its kind."""
        return KINDS[self.kind].severity

    @property
    def place(self) -> str:
        """Split, video and question, as far as they apply."""
        return ", ".join(filter(None, (self.split, self.video, self.query and f"query {self.query}")))


class Findings:
    """Gathers findings; counts all, keeps the first ones of each kind.

    Args:
        keep: at most this many findings of a kind are kept, so that memory stays bounded.
    """

    def __init__(self, keep: int = 10_000):
        self.keep = keep
        self.totals: Counter[str] = Counter()
        self._kept: dict[str, list[Finding]] = {}

    def put(self, finding: Finding) -> None:
        """Note one finding.

        Raises:
            KeyError: of a kind that is not in KINDS.
        """
        if finding.kind not in KINDS:
            raise KeyError(finding.kind)
        self.totals[finding.kind] += 1
        kept = self._kept.setdefault(finding.kind, [])
        if len(kept) < self.keep:
            kept.append(finding)

    def of(self, kind: str) -> list[Finding]:
        """Those of one kind that were kept: the worst score first, else in the order found."""
        return sorted(self._kept.get(kind, ()), key=lambda finding: -finding.score)

    def kinds(self) -> list[str]:
        """Kinds that were found, in the order of the report."""
        return [kind for kind in KINDS if self.totals[kind]]

    def count(self, severity: str) -> int:
        """Findings of one severity."""
        return sum(total for kind, total in self.totals.items() if KINDS[kind].severity == severity)

    def __iter__(self):
        for kind in self.kinds():
            yield from self.of(kind)
