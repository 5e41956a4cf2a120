"""Files that a ``git clone`` without git-lfs leaves behind: a few lines about the file instead of the file."""

from __future__ import annotations

from pathlib import Path

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"

POINTER = (
    "a Git LFS pointer, not the file itself; fetch it with `git lfs install` and `git lfs pull` in the clone, or "
    "download it again"
)
"""What to say about a pointer, after its path."""


def is_pointer(path: str | Path) -> bool:
    """Whether a file is a Git LFS pointer; False for what cannot be opened.

    Args:
        path: a regular file (a named pipe would wait for its writer).
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(len(_FIRST_LINE)) == _FIRST_LINE
    except (OSError, ValueError):
        return False
