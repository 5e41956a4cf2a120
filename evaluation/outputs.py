"""What the programs of this room write, how it is recognised later, and what they refuse to replace or to read."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataError, Problems
from utils.files import read_json, write_json
from utils.paths import is_inside, is_same

RESULT_HEAD = b"# protocol "
PAGE_MARK = b"Skip to the questions</a>"

RECORD_MARK = b'{"format": "mora-'
"""Of the files in ``records/`` and ``scores/``."""

PICTURE_MARK = "MoRA overlay"
"""In the sheets and videos of ``evaluation.overlay_video``."""

FILES: Mapping[str, bytes] = {
    "run.json": b'"format": "mora-run-',
    "summary.json": b'"format": "mora-summary-',
    "scores.json": b'[\n  {\n    "video_id": ',
    "digests.json": b'"format": "mora-digests-',
    "report.html": PAGE_MARK,
    "result.txt": RESULT_HEAD,
}
"""Files of an output folder, each with bytes that only this program's have near their beginning."""

FOLDERS = ("records", "scores", "overlays")

DIGESTS = "digests.json"
DIGESTS_FORMAT = "mora-digests-1"

SCORE_AGAIN = "score the records again: evaluate_groundmore.py --score_only"

_HEAD = 100_000
"""Bytes that are searched: a page begins with its styles."""


def is_written_here(path: str | Path, mark: bytes) -> bool:
    """Whether a file holds the mark of what this program writes; an empty file belongs to nobody.

    Args:
        path: of the file.
        mark: bytes near its beginning.

    Raises:
        OSError: it cannot be read.
    """
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        head = stream.read(_HEAD)
    return not head or mark in head


def note_foreign_file(problems: Problems, flag: str, path: str | Path, mark: bytes) -> None:
    """Note a file that would be replaced although this program did not write it."""
    if os.path.lexists(path) and os.path.exists(path) and not is_written_here(path, mark):
        problems.add(flag, f"{path}: exists, and this program did not write it; choose another place, or move it away")


def note_foreign_folder(problems: Problems, flag: str, folder: str | Path, names: Iterable[str] = FILES) -> None:
    """Note everything in an output folder that an evaluation would replace although no evaluation wrote it.

    Args:
        problems: gets a line each.
        flag: that named the folder.
        folder: may be missing.
        names: those of :data:`FILES` that will be written.
    """
    folder = Path(folder)
    for name in names:
        note_foreign_file(problems, flag, folder / name, FILES[name])
    if (folder / "run.json").exists():
        return  # what others put beside the records is neither replaced nor deleted
    for path in sorted([*folder.glob("records/**/*"), *folder.glob("scores/**/*")]):
        if path.is_file() and path.suffix != ".tmp" and not is_written_here(path, RECORD_MARK):
            problems.add(flag, f"{folder} holds {path}, which no evaluation wrote; choose another folder")


def note_own_place(problems: Problems, flag: str, path: str | Path, folder: str | Path) -> None:
    """Note a file that would lie where an evaluation in ``folder`` writes something else."""
    taken = [Path(folder) / name for name in FILES if name != "result.txt"]
    if any(is_same(path, other) for other in taken) or any(is_inside(path, Path(folder) / name) for name in FOLDERS):
        problems.add(flag, f"{path}: the evaluation in {folder} writes something else there; choose another name")


def write_digests(folder: str | Path, names: tuple[str, ...] = ("scores.json", "summary.json")) -> None:
    """Write ``digests.json`` over files of an output folder, for :func:`read_whole`."""
    digests = {name: _digest(Path(folder) / name) for name in names}
    write_json(Path(folder) / DIGESTS, {"format": DIGESTS_FORMAT, "files": digests})


def read_whole(path: str | Path) -> Any:
    """A result file's content, if it is what was written.

    Args:
        path: a JSON file that lies beside its ``digests.json``; without one (older results) nothing is compared.

    Raises:
        DataError: missing, not JSON, or changed since it was written; the message names the remedy.
    """
    path = Path(path)
    value, beside = read_json(path), path.with_name(DIGESTS)
    if not beside.is_file():
        return value
    known = read_json(beside)
    files = known.get("files") if isinstance(known, dict) and known.get("format") == DIGESTS_FORMAT else None
    if not isinstance(files, dict):
        raise DataError(f"{beside}: not a file of format {DIGESTS_FORMAT}; {SCORE_AGAIN}")
    if path.name in files and files[path.name] != _digest(path):
        raise DataError(f"{path}: damaged or changed (its digest in {DIGESTS} is another); {SCORE_AGAIN}")
    return value


@contextlib.contextmanager
def reading_results(*paths: str | Path) -> Iterator[None]:
    """Within, a value of the wrong kind or a key that is missing is a damaged file, not a mistake of the program.

    For results without a digest (those of older versions): what was read is used inside.

    Raises:
        DataError: names the files and the remedy.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ConfigError) as error:
        names = " or ".join(map(str, paths))
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{names}: damaged, or of another version ({what}); {SCORE_AGAIN}") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
