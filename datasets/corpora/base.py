"""What the three readers share: how mistakes are gathered, and how masks kept as PNG files are read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.names import folder_fault, shown, text_fault, without_bad_ids
from datasets.sample import Question, VideoRecord
from utils.errors import DataError, Problems, one_line
from utils.files import not_a_file, read_json, size_and_time
from utils.masks import IdMaskCache, check_mask_header
from utils.pictures import MisfitError
from utils.video import frame_order, frame_size, scan_images

logger = logging.getLogger(__name__)

ON_PROBLEM = ("raise", "skip")


class Reader(Sequence):
    """A list of :class:`VideoRecord` read from one annotation file.

    A reader parses its file, notes every mistake, and hands both to this class, which raises or skips.

    Args:
        source: the annotation file, for messages.
        records: the entries without mistakes.
        problems: the mistakes found so far.
        on_problem: "raise": any mistake is an error that lists all of them. "skip": each is logged as a warning and
            only the entries concerned are left out; meant for training on a corpus known to have a few bad entries.

    Raises:
        DataError: with "raise" and any mistake; or nothing usable is left.
    """

    name: str

    def __init__(self, source: Path, records: list[VideoRecord], problems: Problems, on_problem: str = "raise"):
        if on_problem not in ON_PROBLEM:
            raise ValueError(f"on_problem must be one of {ON_PROBLEM}, not {on_problem!r}")
        if on_problem == "raise":
            problems.raise_if_any(DataError, f"{source}: this {self.name} corpus cannot be used as it is")
        for message in problems.messages:
            logger.warning("%s: left out: %s", source, message)
        if problems:
            logger.warning("%s: %d mistakes; %d records are left", source, len(problems), len(records))
        if not records:
            problems.raise_if_any(DataError, f"{source}: no usable entry in this {self.name} corpus")
            raise DataError(f"{source}: no video in this {self.name} corpus; is it the right file?")
        self._records = records

    @classmethod
    def open(cls, folder: Path, split: str, on_problem: str) -> Reader:
        """Read a split of the corpus in its folder, laid out as published; what the registry calls.

        Raises:
            DataError: as the class does.
        """
        return cls(folder, split, on_problem)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> VideoRecord:
        return self._records[index]

    def __iter__(self) -> Iterator[VideoRecord]:
        return iter(self._records)


class IdMasks:
    """``read_object_mask`` of a clip whose masks are PNG files of object ids.

    Args:
        video_id: for messages.
        frame_paths: the clip's frames.
        mask_paths: one per frame; None where the corpus has no mask file (an empty mask).
        cache: decoded masks, shared by the records of a corpus.

    Calling it gives bool [H, W] and raises DataError when a file cannot be read, when a mask and its frame differ in
    size, or when one of the question's objects is in none of the clip's masks.
    """

    def __init__(
        self, video_id: str, frame_paths: Sequence[Path], mask_paths: Sequence[Path | None], cache: IdMaskCache
    ):
        self.video_id = video_id
        self.frame_paths = frame_paths
        self.mask_paths = mask_paths
        self._cache = cache
        self._present: set[int] = set()
        self._all_read = False

    def __call__(self, question: Question, frame_index: int) -> np.ndarray:
        ids = self.ids(frame_index)
        self.require_present(question)
        return np.isin(ids, question.object_ids) if len(question.object_ids) != 1 else ids == question.object_ids[0]

    def ids(self, frame_index: int) -> np.ndarray:
        """uint8 [H, W], read-only: the object at every pixel of a frame, 0 for none.

        Raises:
            DataError: the file cannot be read, or its size is not the frame's.
        """
        mask_path, frame_path = self.mask_paths[frame_index], self.frame_paths[frame_index]
        size = frame_size(frame_path)
        if mask_path is None:
            return np.zeros(size, dtype=np.uint8)
        ids = self._cache.read(mask_path)
        if ids.shape != size:
            raise DataError(
                f"{mask_path}: this mask is {ids.shape[0]} x {ids.shape[1]} (height x width), its frame "
                f"{frame_path} is {size[0]} x {size[1]}; they must agree: write one of them again"
            )
        return ids

    def state(self) -> list:
        """Name, size and time of change of every mask file, JSON-able: what is read depends on nothing else."""
        return [None if path is None else [path.name, *size_and_time(path)] for path in self.mask_paths]

    def require_present(self, question: Question) -> None:
        """See that each of the question's ids is somewhere in the clip; looked for once per id, until found.

        Raises:
            DataError: one is not.
        """
        missing = set(question.object_ids) - self._present
        if missing and not self._all_read:
            for path in filter(None, self.mask_paths):
                self._present |= set(np.unique(self._cache.read(path)).tolist())
                if not missing - self._present:
                    return
            self._all_read = True
            missing -= self._present
        if missing:
            raise DataError(
                f"video {self.video_id}: object id {', '.join(map(str, sorted(missing)))} of query {question.query_id} "
                f"is in none of the clip's masks, which hold {sorted(self._present - {0}) or 'no object'}; correct "
                "the id or the masks"
            )


def read_annotation(path: Path, problems: Problems, fallback: str | None = None) -> Any:
    """A JSON file of a corpus, as :func:`utils.files.read_json` reads it. Keys given twice are noted: all but the last
    of their values would be lost unseen.

    Raises:
        DataError: the file is missing, no regular file, or not JSON.
    """
    repeated: list[str] = []
    annotation = read_json(path, repeated, fallback)
    if repeated:
        names = ", ".join(map(shown, repeated[:5])) + (" …" if len(repeated) > 5 else "")
        problems.add(
            path.name,
            f"{len(repeated)} keys are given twice in one object, so all but the last of their values are lost: "
            f"{names}; rename or remove one of each",
            kind="duplicate-key",
            files=[path],
            count=len(repeated),
        )
    return annotation


def read_videos(path: Path, problems: Problems) -> dict[str, Any]:
    """The ``videos`` object of an annotation file, without those whose ids can be no folder's name (noted).

    Raises:
        DataError: as :func:`read_annotation`; or it is missing, or not an object with at least one video.
    """
    annotation = read_annotation(path, problems)
    videos = annotation.get("videos") if isinstance(annotation, dict) else None
    if not isinstance(videos, dict) or not videos:
        raise DataError(
            f'{path}: expected {{"videos": {{video_id: {{...}}}}}} with at least one video; is it the right file?'
        )
    return without_bad_ids(videos, "video", problems, are_folders=True)


def get_field(
    entry: dict[str, Any], key: str, kind: type, where: str, problems: Problems, fault: str = "entry-malformed"
) -> Any:
    """``entry[key]`` if it is there, of the right kind and not empty; else None, and the mistake is noted.

    Args:
        entry: a JSON object.
        key: its key.
        kind: str (which UTF-8 must be able to hold), list, or dict (by id; those with bad ids are noted and left out).
        where: names the entry in messages.
        problems: where mistakes go.
        fault: what kind of mistake it is (see datasets/doctor/findings.py).
    """
    names = {str: "a string", list: "a list", dict: "an object"}
    if key not in entry:
        problems.add(where, f"has no '{key}'", kind=fault)
        return None
    value = entry[key]
    if not isinstance(value, kind):
        told = f"{type(value).__name__} ({one_line(str(value)[:40])})"
        problems.add(where, f"'{key}' must be {names[kind]}, not {told}", kind=fault)
        return None
    if not (value.strip() if kind is str else value):
        problems.add(where, f"'{key}' is empty", kind=fault)
        return None
    reason = text_fault(value) if kind is str else None
    if reason:
        problems.add(where, f"'{key}' {reason}; write it again", kind=fault)
        return None
    return without_bad_ids(value, key.removesuffix("s"), problems, where) if kind is dict else value


def is_object(value: Any, fields: str, where: str, problems: Problems, fault: str = "entry-malformed") -> bool:
    """Whether a JSON value is an object; if not, it is noted that it must be one with some fields."""
    if not isinstance(value, dict):
        problems.add(where, f"must be an object with {fields}, not {type(value).__name__}", kind=fault)
    return isinstance(value, dict)


def object_number(text: str) -> int | None:
    """An object id, from 1 to 255 as a mask's pixels hold it; None if the text is none."""
    number = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else 0
    return number if 1 <= number <= 255 else None


def check_headers(frames: Sequence[Path], masks: Sequence[Path | None], where: str, problems: Problems) -> None:
    """See that frames and masks of a clip are what they should be, by the headers of the first and last of each.

    Modes and depths that do not fit, and Git LFS pointers, are noted if both have them. A single such file, or one that
    is damaged, is not: it is found by the data doctor, and when it is read.
    """
    for look, paths in ((frame_size, frames), (check_mask_header, [path for path in masks if path is not None])):
        reason = _misfit(look, paths[0]) if paths else None
        if reason and _misfit(look, paths[-1]):
            problems.add(where, reason)


def _misfit(look: Callable[[Path], Any], path: Path) -> str | None:
    try:
        look(path)
    except MisfitError as error:
        return str(error)
    except DataError:
        return None
    return None


def read_listed_video(video: Any, where: str, problems: Problems) -> tuple[list[str], dict[str, Any]]:
    """A video's entry: the names of its frames, without suffix, in time order; and its expressions by id, as they are.

    What cannot be used is noted, and empty.
    """
    fault = "video-malformed"
    if not is_object(video, "'frames' and 'expressions'", where, problems, fault):
        return [], {}
    names = get_field(video, "frames", list, where, problems, fault)
    reason = None if names is None else _unusable_names(names)
    if reason:
        problems.add(where, f"'frames' {reason}", kind=fault)
    expressions = get_field(video, "expressions", dict, where, problems, fault) or {}
    return ([] if names is None or reason else sorted(names)), expressions


def _unusable_names(names: list[Any]) -> str | None:
    if not all(isinstance(name, str) and name for name in names):
        return "must be a list of file names without suffix"
    faults = [(name, fault) for name in names if (fault := folder_fault(name))]
    if faults:
        return f"holds names that cannot be used: {shown(faults[0][0])} {faults[0][1]}"
    if len(set(names)) != len(names):
        return "names a frame twice"
    if sorted(names, key=frame_order) != sorted(names):
        return "sort differently as text and as numbers; pad the numbers with zeros"
    return None


def images_in(folder: Path, where: str, problems: Problems, missing: str) -> list[Path]:
    """The image files of a folder, sorted by name.

    Noted: a folder that cannot be listed (a mistake of the kind ``missing``); pipes, folders and links to nothing that
    have images' names.
    """
    try:
        files, others = scan_images(folder)
    except DataError as error:
        problems.add(where, str(error), kind=missing, files=[folder])
        return []
    if others:
        told = "; ".join(f"{path.name} {not_a_file(path) or 'cannot be opened'}" for path in others[:5])
        more = f" (and {len(others) - 5} more)" if len(others) > 5 else ""
        message = f"{folder}: {told}{more}; put image files there, or remove what has their names"
        problems.add(where, message, kind="not-a-file", files=others, count=len(others))
    return sorted(files)


def files_by_stem(
    folder: Path, suffix: str, where: str, problems: Problems, missing: str = "layout-missing"
) -> dict[str, Path]:
    """A folder's image files with that suffix, by stem; mistakes are noted as by :func:`images_in`, and two files of
    one stem."""
    files: dict[str, Path] = {}
    for path in images_in(folder, where, problems, missing):
        if path.suffix.lower() == suffix and files.setdefault(path.stem, path) is not path:
            message = f"{path} and {files[path.stem].name} have one name; keep one of them"
            problems.add(where, message, kind="frame-number-repeated", files=[path])
    return files


def listed_files(
    names: Sequence[str], folder: Path, suffix: str, where: str, problems: Problems
) -> tuple[Path | None, ...]:
    """The file of each name; None, with the mistake noted, where it is missing.

    Args:
        names: of frames, without suffix.
        folder: where they should be.
        suffix: ".jpg": they are frames; ".png": masks.
        where: names the video in messages.
        problems: where mistakes go.
    """
    what, some, none_at_all = "mask", "mask-missing", "mask-missing"
    if suffix == ".jpg":
        what, some, none_at_all = "frame", "frame-missing", "video-without-folder"
    files = files_by_stem(folder, suffix, where, problems, none_at_all) if os.path.isdir(folder) else {}
    missing = [name for name in names if name not in files]
    lost = dict(files=[folder / f"{name}{suffix}" for name in missing], count=len(missing))
    if missing and not files:
        problems.add(where, f"has no {what} file; expected them in {folder}", kind=none_at_all, **lost)
    elif missing:
        told = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(names)} {what} files are missing from {folder}: {told}"
        problems.add(where, message, kind=some, **lost)
    return tuple(files.get(name) for name in names)


def caption(text: str) -> str:
    """A referring expression as models of this line are trained on it: lower case, single spaces."""
    return " ".join(text.lower().split())
