"""Atomic writes: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import DataError

_HOST_FILES = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<here>[0-9a-f]{6})\.(?P<pid>[0-9]+)\.[0-9a-f]{6}\.(?P<kind>tmp|old)", re.S)
"""Names of :func:`_temporary_name`."""

_POINTERS_FIRST_LINE = b"version https://git-lfs.github.com/spec/"

POINTER = (
    "a Git LFS pointer, not the file itself; fetch it with `git lfs install` and `git lfs pull` in the clone, or "
    "download it again"
)
"""What to say about a pointer, after its path."""

_writes: Counter[str] = Counter()
"""Files this process has written into each folder."""


def is_pointer(path: str | Path) -> bool:
    """Whether a file is a Git LFS pointer; False for what cannot be opened.

    Args:
        path: a regular file (a named pipe would wait for its writer).
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_POINTERS_FIRST_LINE)) == _POINTERS_FIRST_LINE
    except (OSError, ValueError):
        return False


@functools.cache
def _here() -> str:
    """Six digits that stand for the place where a process number means something: this host since it was started,
    and within it this container."""
    known = [socket.gethostname()]
    for path in _HOST_FILES:
        with contextlib.suppress(OSError):
            known.append(os.readlink(path) if os.path.islink(path) else Path(path).read_text().strip())
    return hashlib.sha256("|".join(known).encode()).hexdigest()[:6]


def _temporary_name(path: Path, kind: str = "tmp") -> Path:
    """A name beside ``path`` that no other process uses and that says who writes; a rename from it is atomic."""
    return path.with_name(f".{path.name}.{_here()}.{os.getpid()}.{uuid.uuid4().hex[:6]}.{kind}")


def _left_by_the_dead(folder: Path) -> list[tuple[Path, str, str]]:
    """(path, name it was meant for, "tmp" or "old") of what killed processes of this machine left in a folder.

    What another machine wrote stays: nobody here knows whether its process lives.
    """
    found = []
    try:
        entries = sorted(os.listdir(folder))
    except OSError:  # a folder may be written to and not be read
        return []
    for entry in entries:
        match = _LEFTOVER.fullmatch(entry)
        if match and match["here"] == _here() and not _is_alive(int(match["pid"])):
            found.append((folder / entry, match["name"], match["kind"]))
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else
        return True
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sweep(folder: Path) -> None:
    """Delete what killed writers left; bring a folder back that one of them had moved aside and not yet replaced."""
    for path, name, kind in _left_by_the_dead(folder):
        if kind == "old" and not os.path.lexists(folder / name):
            with contextlib.suppress(OSError):
                os.rename(path, folder / name)
        else:
            _delete(path)


def _sweep_now_and_then(folder: Path) -> None:
    """:func:`_sweep` on the first, second, fourth, eighth ... write of this process into a folder.

    Listing a folder of many files on every write would make writing all of them quadratic.
    """
    _writes[str(folder)] += 1
    count = _writes[str(folder)]
    if count & (count - 1) == 0:
        _sweep(folder)


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
    _sweep_now_and_then(path.parent)
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
    under ``path`` or under ``.NAME.*.old``. What a killed writer left is put in order by the next one.

    Raises:
        OSError: when the disk is full; the old folder stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
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
        old = _temporary_name(path, "old")
        os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:  # Ctrl-C comes between any two steps
        if old is not None and not path.exists():
            os.rename(old, path)
        raise
    _sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def recover_directory(path: str | Path) -> None:
    """Undo a kill inside :func:`replace_directory`: bring an old folder back if ``path`` is gone; delete leftovers.

    Only for a caller who knows that nobody else writes there: leftovers are deleted whoever made them.
    """
    path = Path(path)
    if not path.parent.is_dir():
        return
    begin = f".{path.name}."
    beside = sorted(name for name in os.listdir(path.parent) if name.startswith(begin))
    for name in beside:
        if name.endswith(".old") and not path.exists():
            os.rename(path.parent / name, path)
        elif name.endswith((".old", ".tmp")):
            _delete(path.parent / name)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as UTF-8 JSON, atomically. Keys keep their order.

    Raises:
        DataError: a number is not finite, which JSON cannot hold; nothing is written.
        OSError: when the disk is full or not writable.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{path}: a number to be written there is NaN or infinite ({error})") from None
    with atomic_write(path) as stream:
        # Half a letter (a lone surrogate) fits into no UTF-8; its escape is what JSON has for it.
        stream.write(text.encode("utf-8", "backslashreplace") + b"\n")


_SORTS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def not_a_file(path: str | Path) -> str | None:
    """Why a path leads to no regular file, as words; None if it does. Opening a named pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to a file that is not there" if os.path.islink(path) else "no such file"
    except (OSError, ValueError) as error:  # links in a circle, a forbidden folder, a name with NUL or too long
        return f"cannot be looked at ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else f"is {_SORTS.get(stat.S_IFMT(mode), 'something else')}, not a file"


def read_json(path: str | Path, repeated: list[str] | None = None, fallback: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        repeated: gets every key that an object has twice. JSON readers keep the last value and lose the others.
        fallback: encoding of what is not UTF-8, for corpora that are known to hold such files.

    Raises:
        DataError: the file is missing, no regular file, cannot be read or is not JSON (which has no NaN); the message
            has the file, and line and column where they are known.
    """
    path = Path(path)
    reason = not_a_file(path)
    if reason:
        raise DataError(f"{path}: {reason}; check the path")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(items)
        if len(entry) < len(items):
            repeated.extend(key for key, times in Counter(key for key, _ in items).items() if times > 1)
        return entry

    hook = None if repeated is None else pairs
    try:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            if fallback is None:
                raise
            text = content.decode(fallback)
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); is it a JSON file?") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply for JSON of this kind; is it the right file?") from None
    except json.JSONDecodeError as error:
        if is_pointer(path):
            raise DataError(f"{path}: {POINTER}") from None
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "download or write the file again"
        ) from None
    except ValueError as error:  # NaN, or a number with thousands of digits
        raise DataError(f"{path}: not valid JSON ({error}); download or write the file again") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def size_and_time(path: Path) -> list[int | None]:
    """Size and time of change of a file, which tell cheaply that it was written again; None twice if there is none."""
    try:
        found = path.stat()
    except OSError:
        return [None, None]
    return [found.st_size, found.st_mtime_ns]
