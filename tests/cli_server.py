"""Runs the programs of this project as real processes without paying for their imports each time.

One process imports everything, then forks for every run: exit status and output are those of the program.

    python tests/cli_server.py         # reads one JSON request per line, writes one JSON answer per line

Tests use the fixture ``programs``, which starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Done:
    """What a run left behind: exit status (minus the signal's number if killed), stdout, stderr."""

    status: int
    out: str
    err: str


class Programs:
    """Client side: ``programs("train_ds.py", "--epochs", 1)`` runs a program and waits for it.

    Args:
        process: the server.
    """

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def __call__(self, script: str, *argv: object, before: str = "", limit: int = 0, processes: int = 1) -> Done:
        """Run a program.

        Args:
            script: file in the root, or a module with a dot in front (".datasets.synthetic").
            argv: flags.
            before: Python source executed in the process first, to plant an accident.
            limit: the kernel refuses to write files beyond so many bytes, as a full disk would; 0: no limit.
            processes: ranks of one distributed run; the answer is that of rank 0.
        """
        request = {"script": script, "argv": list(map(str, argv)), "before": before, "limit": limit, "size": processes}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server of tests/cli_server.py died"
        return Done(**json.loads(answer))


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    """Runs the programs of this project; see :class:`Programs`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment["HF_HUB_OFFLINE"] = "1"
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    server = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield Programs(server)
    server.stdin.close()
    server.wait(timeout=60)


def clear_error(done: Done, *words: str) -> None:
    """Assert that a run failed as it should: a non-zero status, and a message of one screen that holds ``words``."""
    said = done.out + done.err
    assert done.status > 0, said
    assert "Traceback" not in said, said
    message = done.err.rpartition("]\n")[2] if done.err.startswith("usage: ") else done.err  # argparse's has all flags
    assert sum(bool(line.strip()) for line in message.splitlines()) <= 40, done.err
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} not in:\n{said}"


def _run_child(request: dict, rank: int, port: int, streams: tuple[int, int]) -> None:
    """In a forked process: become the program and end as it ends."""
    os.dup2(streams[0], 1)
    os.dup2(streams[1], 2)
    sys.stdin = open(os.devnull)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if request["size"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request["size"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if request["limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
    sys.argv = [request["script"], *request["argv"]]
    status = 0
    try:
        exec(request["before"], {})
        if request["script"].startswith("."):
            runpy.run_module(request["script"][1:], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / request["script"]), run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # what the interpreter does with an error nobody caught
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):  # the limit counts here too
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _serve(request: dict) -> dict:
    """Run one request, all its ranks, and collect what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "wb") as nowhere:
        children = []
        for rank in range(request["size"]):
            child = os.fork()
            if child == 0:
                mine = (out.fileno(), err.fileno()) if rank == 0 else (nowhere.fileno(), err.fileno())
                _run_child(request, rank, port, mine)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        out.seek(0)
        err.seek(0)
        said = {"out": out.read().decode(errors="replace"), "err": err.read().decode(errors="replace")}
    return {"status": next((status for status in statuses if status), 0), **said}


def main() -> None:
    """Import what the programs import, then serve until stdin ends."""
    sys.path.insert(0, str(ROOT))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print while they are imported
    import deepspeed  # noqa: F401
    import torch

    import datasets.synthetic.__main__  # noqa: F401
    import evaluation.run  # noqa: F401
    import training.export
    import training.run  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
