"""Text on a terminal, in a log, in a table: whatever it holds, it is one line, and writing it never fails."""

from __future__ import annotations

import sys


def write_any_text() -> None:
    """Let stdout and stderr write what their encoding lacks as escapes, instead of raising; for entry programs.

    A container or a Slurm job without a locale has a terminal that takes ASCII only, and names that came from a file
    system with another encoding fit into no encoding at all.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's or a notebook's stand-in may lack it
            stream.reconfigure(errors="backslashreplace")


def one_line(text: object, reserved: str = "") -> str:
    """Text of unknown origin as part of a line: what does not print becomes an escape such as ``\\n``.

    Line breaks, terminal commands, letters that change the direction of writing and halves of letters do not print.

    Args:
        text: an id, a question, a reason; ordinary text comes back as it is.
        reserved: letters that have a meaning in the line and are escaped as well.
    """
    return "".join(
        letter if letter.isprintable() and letter not in reserved else _escape(letter) for letter in str(text)
    )


def _escape(letter: str) -> str:
    code = ord(letter)
    if letter.isprintable():
        return f"\\x{code:02x}"
    return letter.encode("unicode_escape").decode("ascii")
