"""What works beside the model: reading ahead, writing behind, scoring processes; and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor

import pytest

from evaluation.engine.pipeline import Behind, prefetch
from evaluation.engine.predict import Options, predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run
from evaluation.scoring.pool import ScoringPool
from tests.targets import read_target
from utils.processes.ending import Terminated, ending_on_sigterm

PROTOCOL = make_protocol(num_frames=8)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_jobs_come_in_order_and_their_errors_in_their_place(workers):
    def prepare(job, stop):
        time.sleep(0.01 * (job % 3 == 0))
        if job == 2:
            raise OSError("unreadable")
        return job * 10

    results = list(prefetch(range(6), prepare, (OSError,), workers))
    assert [job for job, _ in results] == list(range(6))
    assert [ready for _, ready in results if not isinstance(ready, OSError)] == [0, 10, 30, 40, 50]
    assert not threads("prefetch")


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_are_raised(workers):
    def prepare(job, stop):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        list(prefetch(range(6), prepare, (OSError,), workers))
    assert not threads("prefetch")


def test_no_more_than_a_few_are_prepared_ahead():
    begun, allowed = [], threading.Semaphore(0)

    def prepare(job, stop):
        begun.append(job)
        allowed.release()
        return job

    ready = prefetch(range(50), prepare, (), workers=4, ahead=3)
    for taken in range(1, 6):
        next(ready)
        for _ in range(3 if taken == 1 else 1):
            allowed.acquire()
        assert len(begun) <= taken + 2
    ready.close()
    assert len(begun) < 10 and not threads("prefetch")


def test_closing_tells_those_under_way_to_stop():
    stopped = []

    def prepare(job, stop):
        if job:
            stopped.append(stop.wait(timeout=30))
        return job

    ready = prefetch(range(9), prepare, (), workers=2)
    next(ready)
    ready.close()
    assert stopped and all(stopped) and len(stopped) <= 3


def test_items_are_handled_behind_in_order_and_waited_for():
    done = []
    with Behind(lambda item: (time.sleep(0.002), done.append(item))) as behind:
        for item in range(20):
            behind.put(item)
            assert item - len(done) <= 4
    assert done == list(range(20)) and not threads("behind")


def test_an_error_behind_is_raised_in_front():
    def handle(item):
        if item == 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Behind(handle) as behind:
        for item in range(1000):
            behind.put(item)
    with pytest.raises(OSError, match="No space left"), Behind(handle) as behind:
        behind.put(1)
    assert not threads("behind")


def test_an_error_in_front_still_writes_what_was_put():
    done = []
    with pytest.raises(KeyboardInterrupt), Behind(done.append) as behind:
        behind.put(1)
        behind.put(2)
        raise KeyboardInterrupt
    assert done == [1, 2]


def test_an_interrupt_while_waiting_still_writes_what_was_put():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    written = []

    def handle(item):
        if item == 0:
            time.sleep(0.2)  # the other thread is waiting at the end of the block by now
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        written.append(item)

    try:
        with pytest.raises(KeyboardInterrupt):
            with Behind(handle, ahead=2) as behind:
                behind.put(0)
                behind.put(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert written == [0, 1]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_records_do_not_depend_on_the_threads(corpus, dummy_predictor, tmp_path, workers):
    def rule(video, query, index):
        return read_target(video, query, index)

    for folder, count in ((tmp_path / "plain", 0), (tmp_path / "threads", workers)):
        mark = open_run(folder, {})
        predictor = dummy_predictor(corpus, PROTOCOL, rule)
        predict_corpus(corpus, predictor, folder, PROTOCOL, mark, options=Options(decode_workers=count))
        assert predictor.encoded == [video.video_id for video in corpus]
    for path in (tmp_path / "plain").rglob("*.json"):
        assert path.read_bytes() == (tmp_path / "threads" / path.relative_to(tmp_path / "plain")).read_bytes()


def test_videos_are_announced_when_all_their_questions_are_recorded(corpus, dummy_predictor, tmp_path):
    announced, started = [], []

    def rule(video, query, index):
        return read_target(video, query, index)

    for _ in range(2):
        predict_corpus(
            corpus, dummy_predictor(corpus, PROTOCOL, rule), tmp_path, PROTOCOL, open_run(tmp_path, {}), 1,
            on_start=lambda *counts: started.append(counts),
            on_video=lambda video: announced.append((video.video_id, len(list(tmp_path.rglob("records/*/*.json"))))),
        )  # fmt: skip
    assert announced == [("alpha_0000_0004", 2), ("beta_0110_0114", 4), ("alpha_0000_0004", 4), ("beta_0110_0114", 4)]
    assert started == [(4, 0), (4, 4)]


def test_a_scoring_process_that_dies_breaks_the_pool_and_hangs_nobody():
    with ScoringPool(1) as pool:
        assert pool.submit(abs, -3).result(timeout=60) == 3
        with pytest.raises(BrokenExecutor):
            pool.submit(os._exit, 1).result(timeout=60)
        assert isinstance(pool.submit(abs, -3).exception(timeout=60), BrokenExecutor)


PARENT = """
import os, sys, time
from evaluation.scoring.pool import ScoringPool
from tests.targets import read_target

if __name__ == "__main__":
    pool = ScoringPool(2)
    ids = {pool.submit(os.getpid).result()}
    while len(ids) < 2:
        ids |= {task.result() for task in [pool.submit(os.getpid) for _ in range(8)]}
        pool.submit(time.sleep, 0.05)
    print(*ids, flush=True)
    time.sleep(60)
"""


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process_id}/stat") as stream:
        return stream.read().rpartition(")")[2].split()[0] != "Z"


def test_scoring_processes_end_with_a_parent_that_was_killed(project_root, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    with subprocess.Popen([sys.executable, script], env=environment, text=True, stdout=subprocess.PIPE) as parent:
        ids = [int(word) for word in parent.stdout.readline().split()]
        assert len(ids) == 2 and all(map(alive, ids))
        parent.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not any(map(alive, ids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"processes {ids} are still there")


def test_scoring_processes_import_no_model(project_root):
    code = "import sys; import evaluation.scoring.score, evaluate_groundmore; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "False"


def test_sigterm_ends_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt) as caught, ending_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert isinstance(caught.value, Terminated) and caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
