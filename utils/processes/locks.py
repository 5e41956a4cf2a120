"""One writer at a time: a lock that dies with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils.errors import MoraError

logger = logging.getLogger(__name__)

_POLL = 0.2
"""Seconds between two attempts."""

_held: set[IO[str]] = set()
"""Lock files of this process."""


def _let_go_in_a_fork() -> None:
    """A forked helper must not keep the lock of a process that was killed."""
    for stream in _held:
        stream.close()  # nothing is buffered, and the lock belongs to all copies of what was opened
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_a_fork)


class LockedError(MoraError):
    """Another process writes where this one wants to."""


@contextlib.contextmanager
def hold(path: str | Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` within the block.

    The kernel releases it when the process ends, by a kill as well. The file stays, holding who had it last.

    Args:
        path: lock file; its folder is made if missing.
        what: what is locked, for messages ("the run folder runs/stage1").
        patience: seconds to wait for another process to let go.

    Raises:
        LockedError: somebody else holds it; the message says who, as far as that is known.
        OSError: the file cannot be made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        if _take(stream, path, what, patience):
            stream.truncate(0)
            stream.write(json.dumps(_me()))
            stream.flush()
        _held.add(stream)
        try:
            yield
        finally:
            _held.discard(stream)


def _take(stream, path: Path, what: str, patience: float) -> bool:
    """Lock the open file; False if its file system knows no locks (said once, and the work goes on)."""
    end, said = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                logger.warning("%s: this file system has no locks; see that nobody else writes %s", path, what)
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() >= end:
            raise LockedError(f"{what} is in use by {_owner(path)} (lock {path}); wait for it to end, or end it")
        if not said:
            logger.warning("waiting up to %.0f s for %s, in use by %s", patience, what, _owner(path))
            said = True
        time.sleep(_POLL)


def _me() -> dict[str, str | int]:
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), **({"slurm_job": job} if job else {})}


def _owner(path: Path) -> str:
    """Who wrote themselves into the lock file, as words."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        job = f", Slurm job {found['slurm_job']}" if "slurm_job" in found else ""
        return f"process {found['pid']} on {found['host']}{job}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
