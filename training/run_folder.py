"""One run at a time in a run's folder, and nothing of another run's mixed with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from utils.errors import ConfigError, MoraError
from utils.processes import World, agree, hold

LOCK = "run.lock"

PATIENCE = 30.0
"""Seconds for the run before this one to end; a requeued job may start while its predecessor is still writing."""


@contextlib.contextmanager
def hold_run_folder(folder: Path, world: World, patience: float | None = None) -> Iterator[None]:
    """Keep a run's folder for the processes of this run within the block.

    Args:
        folder: ``LOG_BASE_DIR/EXP_NAME``; made if missing.
        world: this process; all of them must come here.
        patience: seconds to wait for another run that is ending (default: PATIENCE).

    Raises:
        MoraError: on every process, if another run has it or it cannot be locked.
    """
    with contextlib.ExitStack() as stack:
        error: MoraError | None = None
        if world.is_main:
            try:
                stack.enter_context(hold(folder / LOCK, f"the run folder {folder}", patience or PATIENCE))
            except MoraError as failure:
                error = type(failure)(f"{failure}; or choose another --exp_name")
            except OSError as failure:
                error = ConfigError(f"{folder / LOCK}: cannot be made ({failure.strerror or failure})")
        agree(error)
        yield
