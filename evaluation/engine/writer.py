"""Behind the model: a thread that encodes masks and writes records while the next video is read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Item = TypeVar("Item")

_POLL = 0.1
"""Seconds after which a waiting thread looks whether the other one has died."""


class Behind:
    """Calls ``handle(item)`` in a thread, one item after the other.

    Args:
        handle: what to do with an item.
        ahead: as many items may wait; then :meth:`put` does.

    What ``handle`` raises ends the thread, and is raised by the next :meth:`put` or at the end. A context manager:
    leaving it without an error waits for what was put; leaving it by an error (Ctrl-C too) finishes only those items,
    at most ``ahead`` + 1, too.
    """

    def __init__(self, handle: Callable[[Item], None], ahead: int = 2):
        self._handle = handle
        self._items: queue.Queue = queue.Queue(maxsize=ahead)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="behind", daemon=True)

    def put(self, item: Item) -> None:
        """Hand over an item; waits while too many are waiting."""
        while True:
            self._raise()
            try:
                self._items.put(item, timeout=_POLL)
                return
            except queue.Full:
                continue

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._finish()
        except KeyboardInterrupt:  # while waiting: the few items left are finished all the same
            self._finish()
            raise
        if kind is None:
            self._raise()

    def _finish(self) -> None:
        """Wait until everything that was put is handled."""
        # An event, because a join that a signal interrupts makes Python take the thread for ended.
        while not self._ended.is_set():
            try:
                self._items.put(None, timeout=_POLL)
                break
            except queue.Full:
                continue
        self._ended.wait()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (item := self._items.get()) is not None:
                self._handle(item)
                del item
        except BaseException as error:  # raised again where the program can end
            self._error = error
        finally:
            self._ended.set()
