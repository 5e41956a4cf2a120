"""The threads around the model: frames are read, decoded and resized ahead of it, masks encoded and records written
behind it, while it works on other videos.

Threads, not processes: Pillow and PyTorch do this work outside the interpreter's lock, and nothing has to be copied.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Ready = TypeVar("Ready")
Item = TypeVar("Item")

AHEAD = 3
"""Videos that are ready or being prepared at any time; each keeps its resized frames in memory."""

_POLL = 0.1
"""Seconds after which a waiting thread looks whether the other one has died."""


def prefetch(
    jobs: Sequence[Job],
    prepare: Callable[[Job, threading.Event], Ready],
    expected: tuple[type[Exception], ...],
    workers: int,
    ahead: int = AHEAD,
) -> Generator[tuple[Job, Ready | Exception], None, None]:
    """Prepare jobs ahead of their use; yields them in order.

    Args:
        jobs: what to prepare.
        prepare: called with a job and an event, in a thread; returns early once the event is set.
        expected: errors that belong to the job and are yielded in its place; others are raised.
        workers: threads; 0 prepares each job when it is asked for.
        ahead: at most this many jobs are under way or waiting to be taken, and no more than ``workers`` at once
            under way.

    Closing the generator (also by an error where it is used) ends the threads.
    """
    stop = threading.Event()
    if workers < 1:
        for job in jobs:
            yield job, _outcome(prepare, job, stop, expected)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    waiting: deque[tuple[Job, Future]] = deque()
    rest = iter(jobs)
    try:
        while True:
            for job in rest:
                waiting.append((job, executor.submit(_outcome, prepare, job, stop, expected)))
                if len(waiting) >= max(ahead, 1):
                    break
            if not waiting:
                return
            job, future = waiting.popleft()
            ready = future.result()
            del future
            yield job, ready
            del ready
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _outcome(
    prepare: Callable[[Job, threading.Event], Ready],
    job: Job,
    stop: threading.Event,
    expected: tuple[type[Exception], ...],
) -> Ready | Exception:
    try:
        return prepare(job, stop)
    except expected as error:
        return error


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
