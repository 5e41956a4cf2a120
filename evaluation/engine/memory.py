"""Out of memory: how it is known, and how a task goes on with smaller parts. And a device that is lost altogether."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_warned = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory (the device's, or the machine's) was not enough."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    words = ("out of memory", "defaultcpuallocator", "status_alloc_failed")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the device does no more work for this process.

    After a failed assertion or an illegal access on a GPU everything that the process asks of it raises the same again.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    words = ("cuda error", "hip error", "device-side assert")
    return isinstance(error, torch.AcceleratorError) or any(word in text for word in words)


def reason_of(error: BaseException) -> str:
    """What a failure's record says about an error; of one about memory only the first sentence.

    The rest tells how much was free at that moment, and two runs would not write the same record.
    """
    text = str(error)
    if is_out_of_memory(error):
        text = text.split(". ")[0].splitlines()[0] if text else "out of memory"
    return f"{type(error).__name__}: {text}"


def free_memory() -> None:
    """Give back what is cached; to be called where no error is being handled, which would keep its frames alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def warn_once(what: str) -> None:
    """Say once per process that memory was short."""
    global _warned
    if not _warned:
        logger.warning("out of memory: going on with %s; results stay comparable, the run gets slower", what)
    _warned = True


def with_fewer_frames(run: Callable[[int | None], Result], frames: int) -> Result:
    """``run(None)``; while memory is short again with half as many frames per pass, down to one.

    Args:
        run: takes the largest number of frames per pass, None for all.
        frames: T.

    Raises:
        whatever ``run`` raises with one frame per pass, and every error that is not about memory.
    """
    limit: int | None = None
    while True:
        try:
            return run(limit)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or limit == 1 or frames < 2:
                raise
        free_memory()
        limit = (limit or frames) // 2
        warn_once(f"{limit} frames per pass")
