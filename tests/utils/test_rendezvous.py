"""Processes that come together, or say soon why not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from utils.errors import ConfigError
from utils.processes import rendezvous
from utils.processes.distributed import find_launch, share_threads
from utils.processes.rendezvous import RendezvousError, leave_word, meet

PROGRAM = """
import os, sys
from utils.processes.distributed import agree, gather_objects, say_last_words, start_world, stop_world
from utils.errors import MoraError
try:
    if "early" in sys.argv[1]:
        raise MoraError("a flag is wrong")
    world = start_world(use_cuda=False)
    agree(MoraError("one is bad") if sys.argv[1] == "one" and world.rank == 1 else None)
    if sys.argv[1] == "all":
        raise MoraError("all are bad")
    print(gather_objects(world.rank))
    stop_world()
except MoraError as error:
    say_last_words(error)
    sys.exit(1)
"""


@pytest.fixture
def place(monkeypatch) -> str:
    """A free port in the environment; returns its number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, rendezvous.PATIENCE: "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return port


def launch(rank: int, size: int, *argv: str, patience: str = "60") -> subprocess.Popen:
    here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), rendezvous.PATIENCE: patience}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv], env={**os.environ, **here, "TORCH_CPP_LOG_LEVEL": "ERROR"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ends(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    said = [process.communicate(timeout=100) for process in processes]
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, said)]


@pytest.mark.parametrize("ranks", [[0, 1], [1, 0]])
def test_whoever_comes_first_waits_for_the_other(place, ranks):
    results = ends(*(launch(rank, 2, "well") for rank in ranks))
    assert [(code, out) for code, out, _ in results] == [(0, "[0, 1]\n")] * 2, results


@pytest.mark.slow
@pytest.mark.parametrize(("what", "message"), [("early", "a flag is wrong"), ("all", "all are bad")])
def test_what_all_find_wrong_is_said_once(place, what, message):
    results = ends(*(launch(rank, 3, what) for rank in (2, 1, 0)))
    assert [code for code, _, _ in results] == [1, 1, 1]
    assert "".join(err for _, _, err in results).count(message) == 1, results


@pytest.mark.slow
def test_what_one_finds_wrong_ends_the_others(place):
    (code, _, err), (other, _, said) = ends(launch(0, 2, "one"), launch(1, 2, "one"))
    assert (code, other) == (1, 1)
    assert err == "PeerError: another process has failed: MoraError: one is bad\n" and said == "MoraError: one is bad\n"
    (code, _, err), (other, _, said) = ends(launch(0, 2, "well"), launch(1, 2, "early"))
    assert (code, other) == (1, 1) and "another process has failed: MoraError: a flag is wrong" in err, err
    assert "a flag is wrong" in said


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_came_and_died_ends_the_others(place, victim):
    """Three are expected and two come; one of these is killed while they wait for the third."""
    processes = [launch(0, 3, "well", patience="300"), launch(1, 3, "well", patience="300")]
    store = None
    for _ in range(600):
        try:
            store = store or rendezvous._open_or_find(2, "127.0.0.1", int(place), time.monotonic(), 0)
            if store.add("pulse/1", 0) > 0:
                break
        except RendezvousError:
            pass
        time.sleep(0.1)
    processes[victim].kill()
    (_, _, _), (code, _, err) = ends(processes[victim], processes[1 - victim])
    assert code == 1 and "RendezvousError" in err, err
    assert ("ended before the run began" in err or "lost rank 0" in err) and "Traceback" not in err


def test_who_waits_alone_says_for_whom(place):
    with pytest.raises(RendezvousError, match="^ranks 1, 2 of 3 did not come to 127.0.0.1:.* within 1 s"):
        meet(0, 3)


def test_who_finds_nobody_says_where(place):
    with pytest.raises(RendezvousError, match=f"rank 1: rank 0 did not open 127.0.0.1:{place} within 1 s"):
        meet(1, 2)


def test_two_runs_at_one_place(place):
    store = leave_word(0, "first", 1)
    store.add("seat/0", 1)
    with pytest.raises(RendezvousError, match="another process is rank 0 .* Give each its own MASTER_PORT"):
        meet(0, 2)
    with pytest.raises(RendezvousError, match="one of 3 processes, others .* as one of 2"):
        meet(0, 3)


def test_a_port_that_is_in_use(place):
    with socket.socket() as other:
        other.bind(("0.0.0.0", int(place)))
        other.listen()
        for size in (1, 2):
            with pytest.raises(ConfigError, match=f"port {place} of this machine is in use.*MASTER_PORT"):
                meet(0, size)


@pytest.mark.parametrize("port", ["x", "0", "99999", "-1", "", "²", "1.5", "9" * 5000])
def test_a_port_that_is_none(place, monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match="MASTER_PORT=.* is no port"):
        meet(0, 2)


@pytest.mark.parametrize("host", ["no.such.machine.invalid", "a" * 300, "a..b", ""])
def test_a_machine_that_is_none(place, monkeypatch, host):
    monkeypatch.setattr(rendezvous, "_RESOLVE", 0.0)
    monkeypatch.setenv("MASTER_ADDR", host)
    for rank in (0, 1):
        with pytest.raises(ConfigError, match="MASTER_ADDR"):
            meet(rank, 2)


@pytest.mark.parametrize("seconds", ["x", "0", "-1", "nan", ""])
def test_a_time_that_is_none(place, monkeypatch, seconds):
    monkeypatch.setenv(rendezvous.PATIENCE, seconds)
    with pytest.raises(ConfigError, match=rendezvous.PATIENCE):
        meet(0, 2)


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE='-2'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "²", "WORLD_SIZE": "2"}, "RANK='²'"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "RANK="),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "7"}, "LOCAL_RANK=7 is not below"),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=2 is not below"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE='x'"),
    ],
)
def test_what_no_launcher_says(environment, word):
    with pytest.raises(ConfigError, match=word):
        find_launch(environment)


@pytest.mark.parametrize("threads", ["x", "0", "-1", "1.5", "", "2;3"])
def test_threads_that_are_none(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS"):
        share_threads(1)


def test_threads_by_level(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    share_threads(1)


def test_a_local_size_that_is_none(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE='many'"):
        share_threads(2)
