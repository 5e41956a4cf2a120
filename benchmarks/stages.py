"""Where the time goes, and how often an encoder runs: timers that wait for the device, counters on modules."""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class Stages:
    """Seconds per stage. Stages may nest; an inner one's time is taken from the outer one.

    Args:
        device: a CUDA device is waited for at both ends of a stage, so that kernels count where they were launched. On
            a CPU it is this process's processor time that counts, all threads together: other programs do not disturb
            it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``."""
        self._inner.append(0.0)
        start = self._now()
        try:
            yield
        finally:
            spent = self._now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent

    @contextlib.contextmanager
    def timing(self, *targets: tuple[Any, str, str]) -> Iterator[None]:
        """Within, calls of ``owner.attribute`` count as a stage.

        Args:
            targets: (owner, attribute, stage); the owner is a module of Python or an object.
        """
        with contextlib.ExitStack() as stack:
            for owner, attribute, stage in targets:
                stack.enter_context(_replaced(owner, attribute, self._timed(getattr(owner, attribute), stage)))
            yield

    def _timed(self, function: Any, stage: str) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self(stage):
                return function(*args, **kwargs)

        return run


@contextlib.contextmanager
def _replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """Within, ``owner.attribute`` is ``value``; what only the owner's class had is the class's again afterwards."""
    missing = object()
    own = vars(owner).get(attribute, missing)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if own is missing:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, own)


class FrameCounter:
    """Counts the frames that pass through modules, by forward hooks.

    Args:
        modules: by name; the first axis of what each returns counts, divided by the number beside it.
    """

    def __init__(self, **modules: tuple[nn.Module, int]):
        self.frames = dict.fromkeys(modules, 0)
        self._hooks = [
            module.register_forward_hook(functools.partial(self._count, name, rows))
            for name, (module, rows) in modules.items()
        ]

    def _count(self, name: str, rows: int, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.frames[name] += output.shape[0] // rows

    def __enter__(self) -> FrameCounter:
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def reset_peak(device: torch.device) -> None:
    """Forget the most memory used so far, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory used: on the GPU since :func:`reset_peak`, on the CPU by this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
