"""Pickles of plain data: the one place where a pickle is read.

A pickle is a program: one that names a class or a function may run anything. This reader knows no name but ``set`` and
``frozenset``; numbers, texts, bytes, lists, tuples and dictionaries need none.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

from utils.errors import DataError
from utils.files import POINTER, is_pointer, not_a_file

_NAMES = {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)}

_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError, RecursionError,
)  # fmt: skip
"""What damaged pickles raise."""


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every name but those of plain data."""

    def __init__(self, stream: IO[bytes], path: Path):
        super().__init__(stream, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise DataError(
                f"{self._path}: this pickle asks for {module}.{name}, which could run code; only plain data (numbers, "
                "texts, lists, dictionaries) is read: get the file from its publisher again, or write it as plain data"
            )
        return _NAMES[module, name]


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of numbers, texts, bytes, lists, tuples, sets and dictionaries, of any protocol.

    Raises:
        DataError: the file is missing, no regular file, damaged, or names a class or function.
    """
    path = Path(path)
    reason = not_a_file(path)
    if reason:
        raise DataError(f"{path}: {reason}; check the path")
    try:
        with open(path, "rb") as stream:
            return _PlainUnpickler(stream, path).load()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    except _BROKEN as error:
        reason = POINTER if is_pointer(path) else f"not a pickle, or damaged ({error}); get the file again"
        raise DataError(f"{path}: {reason}") from None
