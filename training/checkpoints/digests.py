"""A checkpoint's files with their digests, so that damage is found before it becomes a result.

``digests.json`` is written last but for ``latest``; it has size and SHA-256 of every other file of the checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError, DataError, Problems
from utils.files import read_json

logger = logging.getLogger(__name__)

DIGESTS = "digests.json"
FORMAT = 1

_NOT_LISTED = {DIGESTS, "latest"}
_CHUNK = 2**22
_THREADS = 4


def digest_files(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of some files, which are read in threads.

    Args:
        folder: names in the result are relative to it.
        paths: files below it.

    Raises:
        OSError: one cannot be read.
    """

    def digest(path: Path) -> tuple[str, dict[str, Any]]:
        found, size = hashlib.sha256(), 0
        with open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
                size += len(chunk)
        return path.relative_to(folder).as_posix(), {"size": size, "sha256": found.hexdigest()}

    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return dict(pool.map(digest, paths))


def listed_files(folder: Path) -> list[Path]:
    """Every file of a checkpoint that its digests are about."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if str(path.relative_to(folder)) not in _NOT_LISTED)


def check_digests(folder: str | Path, rank: int = 0, size: int = 1, within: str | None = None) -> None:
    """Compare a checkpoint with the digests it was written with.

    A checkpoint from before there were digests passes, with a word in the log. Files that somebody added pass, too,
    unless they lie among DeepSpeed's own, which would be read.

    Args:
        folder: the checkpoint.
        rank: of this process; processes that check together divide the files.
        size: how many check together.
        within: look only at the files of this folder in it, for a reader that opens no others.

    Raises:
        CheckpointError: naming every file that is damaged, missing or one too many.
    """
    folder = Path(folder)
    if not (folder / DIGESTS).exists():
        if _is_promised(folder):
            raise CheckpointError(f"{folder}: has lost its {DIGESTS}; take an earlier checkpoint, or copy it again")
        if rank == 0:
            logger.warning("%s: has no %s; damage to its files would go unnoticed", folder, DIGESTS)
        return
    expected = {
        name: entry for name, entry in _read(folder / DIGESTS).items() if within is None or name.split("/")[0] == within
    }
    problems = Problems()
    present = {}
    for name in sorted(expected)[rank::size]:
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            problems.add(str(path), "no such file")
        elif found != expected[name]["size"]:
            full = expected[name]["size"]
            problems.add(str(path), f"cannot be read, probably truncated ({found:,} of {full:,} bytes)")
        else:
            present[name] = path
    try:
        for name, found in digest_files(folder, present.values()).items():
            if found != expected[name]:
                problems.add(str(folder / name), "its content is not what was written")
    except OSError as error:
        problems.add(str(error.filename or folder), f"cannot be read ({error.strerror or error})")
    if rank == 0:
        inside = {path.relative_to(folder).as_posix() for path in listed_files(folder) if path.parent != folder}
        ours = {name.split("/")[0] for name in expected if "/" in name}
        for name in sorted(inside - set(expected)):
            if name.split("/")[0] in ours:
                problems.add(str(folder / name), "was not there when the checkpoint was written")
    problems.raise_if_any(
        CheckpointError, f"{folder}: the checkpoint is damaged; take an earlier one, or copy it again"
    )


def _is_promised(folder: Path) -> bool:
    """Whether run.json says that there are digests."""
    try:
        return read_json(folder / "run.json").get("digests") == DIGESTS
    except (DataError, AttributeError):
        return False


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``digests.json``."""
    try:
        files = read_json(path)["files"]
        for name, entry in files.items():
            if os.path.isabs(name) or ".." in name.split("/"):
                raise ValueError(f"{name!r} leads elsewhere")
            if type(entry["size"]) is not int or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
                raise ValueError(f"the entry of {name!r} is no size and digest")
        return {name: {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in files.items()}
    except (DataError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); take an earlier checkpoint, or copy it again") from None
