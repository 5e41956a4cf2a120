"""Ahead of the model: frames are read, decoded and resized by threads while it works on earlier videos.

Threads, not processes: Pillow and PyTorch do this work outside the interpreter's lock, and nothing has to be copied.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Ready = TypeVar("Ready")

AHEAD = 3
"""Videos that are ready or being prepared at any time; each keeps its resized frames in memory."""


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
