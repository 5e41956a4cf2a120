"""Atomic writes: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import DataError


def _temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process uses; same file system, so a rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; rename it into place when the block ends without error.

    Args:
        path: final file; its folder is made if missing.
        mode: "wb" or "w" (text is UTF-8).

    Raises:
        OSError: when the disk is full or not writable; ``path`` keeps its old content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; what was there before is untouched", str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def unusable_folder(path: str | Path) -> str | None:
    """Why files cannot be written into a folder that exists or could be made; None if they can. Makes nothing."""
    path = Path(path).absolute()
    if path.exists():
        if not path.is_dir():
            return f"{path} is a file"
        return None if os.access(path, os.W_OK | os.X_OK) else f"{path} is not writable"
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        return f"{parent} is a file, so {path} cannot be made"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that takes the name ``path`` when the block ends without error.

    An older folder of that name is moved aside first and deleted last, so at every moment a complete one exists
    under ``path`` or under ``.NAME.*.old`` (see :func:`recover_directory`).

    Raises:
        OSError: when the disk is full; the old folder stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    replace_directory(temporary, path)


def replace_directory(new: Path, path: Path) -> None:
    """Give the complete folder ``new`` the name ``path``; an old folder of that name is deleted afterwards."""
    old = None
    if path.exists():
        old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(path, old)
    os.rename(new, path)
    _sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def recover_directory(path: str | Path) -> None:
    """Undo a kill inside :func:`replace_directory`: bring an old folder back if ``path`` is gone; delete leftovers."""
    path = Path(path)
    if not path.parent.is_dir():
        return
    for old in sorted(path.parent.glob(f".{path.name}.*.old")):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, path)
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as UTF-8 JSON, atomically. Keys keep their order."""
    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=indent, ensure_ascii=False)
        stream.write("\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not JSON; the message has the file, line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); is it a JSON file?") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for JSON of this kind; is it the right file?") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "download or write the file again"
        ) from None
