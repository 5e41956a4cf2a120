"""A lock is held by one process, says by whom, and ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from utils.processes.locks import LockedError, hold

HOLDER = """
import os, sys, time
from utils.processes.locks import hold
with hold(sys.argv[1], "the folder"):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)  # the fork, too
"""


@pytest.fixture
def holder(tmp_path, project_root):
    """A process that holds the lock, and has a helper that outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], cwd=project_root, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(LockedError, match=f"the folder is in use by process {holder.pid} on .*wait for it to end"):
        with hold(tmp_path / "lock", "the folder"):
            pass


def test_a_lock_ends_with_its_process_though_a_helper_lives_on(tmp_path, holder):
    holder.kill()
    with hold(tmp_path / "lock", "the folder", patience=30):
        pass


def test_a_lock_is_let_go_at_the_end(tmp_path):
    for _ in range(2):
        with hold(tmp_path / "lock", "the folder"):
            pass
