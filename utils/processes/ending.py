"""SIGTERM ends a run as Ctrl-C does: what is under way is put in order, then the program says goodbye."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM has come.

    Attributes:
        exit_code: of a program ended by it.
    """

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises :class:`Terminated` in the main thread; elsewhere than in the main thread, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
