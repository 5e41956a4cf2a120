"""Errors that a user can act on: they name the file, the key and the remedy."""

from __future__ import annotations

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
