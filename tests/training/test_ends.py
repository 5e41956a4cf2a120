"""How a run ends when it cannot go on: one message that names what happened, on every process, soon, nothing broken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.test_checkpoint_damage import whole_ones

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOY = str(Path(__file__).with_name("toy_run.py"))
LONG = ("--epochs", "100000", "--keep_ckpt_every", "0")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Launched:
    """Processes of one run.

    Args:
        folder: for --log_base_dir.
        flags: of the toy.
        size: how many processes.
    """

    def __init__(self, folder: Path, *flags: str, size: int = 1):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        self.processes = []
        port = free_port()
        # A shell that starts the tests in the background has Ctrl-C ignored by them and all they start.
        toy = f"import runpy, signal, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        toy += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        toy += f"runpy.run_path({TOY!r}, run_name='__main__')"
        for rank in range(size):
            if size > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", toy, str(folder), *flags], cwd=ROOT, env=environment, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        self.log = folder / "toy" / "metrics.jsonl"

    def has_taken(self, steps: int) -> None:
        for _ in range(1200):
            if self.log.exists() and len(self.log.read_text().splitlines()) >= steps:
                return
            assert any(process.poll() is None for process in self.processes), self.end()
            time.sleep(0.05)
        raise AssertionError(self.end())

    def end(self) -> list[tuple[int, str]]:
        """(status, what was said apart from the progress bar) of every process."""
        results = []
        for process in self.processes:
            _, said = process.communicate(timeout=60)
            lines = said.replace("\r", "\n").splitlines()
            results.append((process.returncode, "\n".join(line for line in lines if not line.startswith("training:"))))
        return results

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def launch(tmp_path) -> Iterator:
    launched = []

    def start(*flags: str, **options) -> Launched:
        launched.append(Launched(tmp_path, *flags, **options))
        return launched[-1]

    yield start
    for run in launched:
        run.kill()


@pytest.mark.parametrize(
    ("number", "size", "status"), [(signal.SIGINT, 1, 130), (signal.SIGTERM, 1, 143), (signal.SIGINT, 2, 130)]
)
def test_ended_by_a_signal(launch, tmp_path, number, size, status):
    run = launch(*LONG, size=size)
    run.has_taken(6)
    for process in run.processes:
        process.send_signal(number)
    results = run.end()
    assert [code for code, _ in results] == [status] * size
    said = [text for _, text in results if text.strip()]
    assert len(said) == 1 and said[0].strip().count("\n") == 0 and "goes on from the last one" in said[0]
    assert whole_ones(tmp_path / "toy")
    assert "Traceback" not in said[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others(launch, tmp_path, victim):
    run = launch(*LONG, size=2)
    run.has_taken(6)
    run.processes[victim].kill()
    status, said = run.end()[1 - victim]
    assert status == 1
    assert "PeerError: another process of this run has ended" in said and "Traceback" not in said
    assert whole_ones(tmp_path / "toy")


@pytest.mark.parametrize("size", [1, 2])
def test_a_data_worker_that_is_killed_is_named(launch, size):
    run = launch("--kill_at_item", "40", "--workers", "2", *LONG, size=size)
    for status, said in run.end():
        assert status == 1
        assert "WorkerError: data worker" in said and "killed by SIGKILL" in said and "--workers" in said
        assert "Traceback" not in said and "reset" not in said


def test_a_second_run_in_the_folder_is_refused_on_every_process(launch, tmp_path):
    first = launch(*LONG)
    first.has_taken(6)
    for status, said in launch(*LONG, size=2).end():
        assert status == 1 and "Traceback" not in said
        assert f"toy is in use by process {first.processes[0].pid}" in said and "--exp_name" in said
    first.processes[0].kill()
    first.end()
    third = launch(*LONG)
    third.has_taken(8)


def test_a_disk_that_is_full_of_curves(launch, tmp_path):
    (tmp_path / "toy").mkdir()
    run = launch("--limit_file_size", "2000", "--epochs", "1", "--steps_per_epoch", "200")
    ((status, said),) = run.end()
    assert status == 1 and "LogError" in said and "metrics.jsonl" in said and "--auto_resume" in said
    assert "Traceback" not in said
