"""Paths that a user typed: what ``~`` means, and which files a program may replace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.errors import ConfigError, Problems


def user_path(text: str) -> str:
    """A path flag's value with ``~`` and ``~name`` as home folders; for ``argparse`` (``type=user_path``).

    No shell expands the ``~`` of ``--flag=~/x``. A name on the hub or an empty text stays as it is.
    """
    return os.path.expanduser(text)


def is_same(first: str | Path, second: str | Path) -> bool:
    """Whether two paths lead to one file or folder, through links and however they are spelled."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether ``path`` is ``folder`` or lies somewhere below it, links resolved."""
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return inner == outer or outer in inner.parents or is_same(inner, outer)


def note_inputs_overwritten(
    problems: Problems, output: tuple[str, str | Path], inputs: Mapping[str, str | Path | None], whole: bool = False
) -> None:
    """Note every input of a program that one of its outputs would replace.

    Args:
        problems: gets a line per input.
        output: (flag, path) of a file or folder that is about to be written.
        inputs: flag -> path of what the program reads; None and what does not exist are passed over.
        whole: the output is a folder that is replaced as a whole, so an input inside it would be lost as well.
    """
    flag, path = output
    for name, source in inputs.items():
        if source is None or not os.path.exists(source):
            continue
        if is_same(path, source) or (whole and is_inside(source, path)):
            problems.add(flag, f"{path} would replace {source}, which {name} reads; choose another place")


def require_own(folder: str | Path, own: Iterable[str], flag: str) -> None:
    """Refuse to replace a folder that holds anything but what this program wrote there.

    Args:
        folder: about to be replaced as a whole; need not exist.
        own: names of the files that an earlier run of the program wrote into it.
        flag: that names it, for the message.

    Raises:
        ConfigError: naming what else is there.
    """
    try:
        found = sorted(set(os.listdir(folder)) - set(own))
    except FileNotFoundError:
        return
    if found:
        shown = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        raise ConfigError(
            f"{flag} {folder}: holds {shown}, which this program did not write there; nothing was touched. Choose "
            "another folder, or move these away"
        )
