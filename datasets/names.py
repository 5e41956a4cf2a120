"""Ids and texts of annotation files: what no folder, table or UTF-8 file can carry is refused on opening."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from utils.errors import Problems, one_line

_LONGEST = 255
"""Bytes of a file name on Linux."""

_CONTROL = ("Cc", "Zl", "Zp")
"""Unicode categories of control characters and of line and paragraph separators."""


def text_fault(text: str) -> str | None:
    """Why a text cannot be written as UTF-8; None if it can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a letter (a lone surrogate, {one_line(text[error.start])}), which UTF-8 cannot hold"
    return None


def id_fault(name: str) -> str | None:
    """Why a text cannot be an id, which stands in tables and in the names of records; None if it can."""
    if not name.strip():
        return "is empty"
    if any(unicodedata.category(letter) in _CONTROL for letter in name):
        return "holds a line break or another control character"
    return text_fault(name)


def folder_fault(name: str) -> str | None:
    """Why a text cannot be the name of a folder or file inside a corpus; None if it can."""
    if name in (".", "..") or "/" in name:
        return "is a path, which may lead out of the corpus; it must be the name of a folder or file"
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST:
        return f"is longer than the {_LONGEST} bytes of a file name"
    return id_fault(name)


def without_bad_ids(
    entries: Mapping[str, Any], what: str, problems: Problems, where: str = "", are_folders: bool = False
) -> dict[str, Any]:
    """The entries whose ids can be used; the others are noted.

    Args:
        entries: by id, as JSON has them.
        what: "video", "question" or "expression", for messages.
        problems: where mistakes go.
        where: names the entry that holds them; may be empty.
        are_folders: the ids are names of folders, too.
    """
    fault = folder_fault if are_folders else id_fault
    good = {}
    for name, entry in entries.items():
        reason = fault(name)
        if reason is None:
            good[name] = entry
        else:
            place = ", ".join(filter(None, (where, f"{what} {shown(name)}")))
            problems.add(place, f"its id {reason}; rename it", kind="bad-name")
    return good


def shown(text: str, most: int = 80) -> str:
    """A text of unknown origin as part of a message: in quotes, on one line, not too long."""
    return repr(text if len(text) <= most else text[:most] + "…")
