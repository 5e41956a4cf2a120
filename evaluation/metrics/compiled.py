"""Loads the compiled counting of J and F once per process, and says where its machine code is kept.

Compiling takes seconds, loading what was compiled before a fraction of one, so the code is kept on disk: in the folder
that ``NUMBA_CACHE_DIR`` names, else in ``$XDG_CACHE_HOME/mora`` (``~/.cache/mora``), else, where that cannot be
written, in a temporary folder of this process. The folder of the sources is never written. Below it there is one folder
per state of the sources, numba version and kind of processor: a home may be shared by machines whose instructions
differ.

Processes that start together wait for the first of them to compile. The wait is a courtesy: files are replaced
atomically and each holds one function with one signature, so writers that do not wait are wasteful, not wrong.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from evaluation.sources import sources_digest

LONGEST_WAIT = 120.0
"""Seconds to wait for another process that compiles; then this one compiles too."""

_once = threading.Lock()


def load_kernels() -> ModuleType:
    """:mod:`evaluation.metrics.with_numba`, compiled.

    Raises:
        ImportError: numba is not installed, does not support this NumPy, or is told not to compile.
        OSError: machine code can be kept nowhere.
    """
    with _once:
        from numba import config

        if config.DISABLE_JIT:
            raise ImportError("NUMBA_DISABLE_JIT is set")
        chosen = config.CACHE_DIR
        folder = cache_folder(chosen)
        config.CACHE_DIR = str(folder)  # numba reads it where a function is decorated
        try:
            with one_at_a_time(folder):
                from evaluation.metrics import with_numba as metrics_numba
        finally:
            config.CACHE_DIR = chosen
    return metrics_numba


def cache_folder(chosen: str) -> Path:
    """An existing folder that can be written, for these sources, this numba and this processor."""
    import llvmlite.binding
    import numba

    # Of every source: numba itself looks only at the file of the outermost function.
    kind = f"{numba.__version__} {llvmlite.binding.get_host_cpu_name()} {llvmlite.binding.get_host_cpu_features()}"
    sources = sources_digest("evaluation.metrics.with_numba")
    name = "metrics_" + hashlib.sha256(f"{kind} {sources}".encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for base in (chosen, os.path.join(home, "mora")):
        if not base:
            continue
        with contextlib.suppress(OSError):
            folder = Path(base, name)
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    folder = Path(tempfile.mkdtemp(prefix="mora_metrics_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, if there is locking here and it comes within :data:`LONGEST_WAIT`."""
    try:
        import fcntl

        lock = open(folder / "lock", "ab")
    except (ImportError, OSError):
        yield
        return
    with lock:
        give_up = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < give_up:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break  # a file system without locks
        yield
