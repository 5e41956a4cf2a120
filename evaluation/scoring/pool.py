"""Processes that score beside the model: they import no model, and end when the program that started them is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing.synchronize import Event
from typing import Any

import cv2

_stopping: Event | None = None


class Stopped(Exception):
    """The program is ending; the task was not done."""


class ScoringPool:
    """A pool of processes, each with one thread.

    Args:
        workers: how many.

    A context manager; leaving it by an exception (Ctrl-C too) gives up what is waiting, otherwise it is finished.
    """

    def __init__(self, workers: int):
        # A fresh interpreter per worker: forking a process whose libraries have threads may hang.
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._executor = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(self._stop,))

    def submit(self, function: Callable, *arguments: Any) -> Future:
        """Have ``function(*arguments)`` called in a process; both must be picklable.

        The future raises BrokenExecutor if a process died (killed for memory, say), and what the function raised.
        """
        try:
            return self._executor.submit(_call, function, *arguments)
        except BrokenExecutor as error:
            future: Future = Future()
            future.set_exception(error)
            return future

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)


def _begin(stop: Event) -> None:
    """Set up a worker."""
    global _stopping
    _stopping = stop
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot tell its workers, and they would wait for tasks forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable, *arguments: Any) -> Any:
    if _stopping is not None and _stopping.is_set():
        raise Stopped
    return function(*arguments)
