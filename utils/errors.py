"""Errors that a user can act on: they name the file, the key and the remedy; and text that always fits on one line."""

from __future__ import annotations

import sys
from typing import Any


class MoraError(Exception):
    """Base of every error this project raises on purpose."""


class DataError(MoraError):
    """A corpus file, frame, mask or annotation cannot be used."""


class CheckpointError(MoraError):
    """A checkpoint or weight file cannot be read, written or matched."""


class ConfigError(MoraError):
    """A flag or configuration value cannot be used."""


class TokenizerError(MoraError):
    """A tokenizer lacks something the model needs."""


class NumericalError(MoraError):
    """A model's numbers are not finite: they overflowed, or its weights are damaged."""


class Problems:
    """Collects mistakes so that all of them are reported at once.

    Args:
        limit: at most this many are printed; the rest are counted.
    """

    def __init__(self, limit: int = 50):
        self.limit = limit
        self.messages: list[str] = []

    def add(self, where: str, message: str, **details: Any) -> None:
        """Note one mistake: ``where`` is a path or id, ``message`` says what is wrong and what to do.

        ``details`` (of a corpus: ``kind``, ``files``, ``count``) are for subclasses that keep more than messages.
        """
        self.messages.append(f"{where}: {message}")

    def __bool__(self) -> bool:
        return bool(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def raise_if_any(self, error_type: type[MoraError], headline: str) -> None:
        """Raise ``error_type`` with every mistake noted so far, or return if there is none.

        Raises:
            MoraError: of the given type, with one line per mistake.
        """
        if not self.messages:
            return
        shown = "\n".join(f"  - {message}" for message in self.messages[: self.limit])
        hidden = len(self.messages) - self.limit
        tail = f"\n  … and {hidden} more" if hidden > 0 else ""
        plural = "s" if len(self.messages) > 1 else ""
        raise error_type(f"{headline} ({len(self.messages)} problem{plural}):\n{shown}{tail}")


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
