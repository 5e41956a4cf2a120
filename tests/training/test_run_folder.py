"""What a run finds in its folder: another run at work, curves of an earlier one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from training import run_folder
from training.checkpoints.files import UNRECORDED
from training.logging import LogError, RunLog, set_aside_logs
from training.run_folder import LOCK, hold_run_folder
from utils.processes import LockedError, hold


def test_a_folder_that_is_in_use(tmp_path, world, caplog):
    folder = tmp_path / "run"
    with hold(folder / LOCK, "the run folder"):
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(LockedError, match="in use by .*another --exp_name"),
        ):
            with hold_run_folder(folder, world, patience=0.3):
                raise AssertionError("two are in")
    assert "waiting up to" in caplog.text
    with hold_run_folder(folder, world):
        pass


def test_a_job_that_was_put_back_into_the_queue_waits_for_its_predecessor():
    assert run_folder.PATIENCE == 30.0


def test_a_folder_that_cannot_be_locked(tmp_path, world):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).mkdir()
    with pytest.raises(run_folder.ConfigError, match=f"{LOCK}: cannot be made"):
        with hold_run_folder(tmp_path / "run", world):
            pass


def write_curve(folder: Path, steps: range) -> None:
    log = RunLog(folder, 10, steps.start - 1, enabled=True)
    for step in steps:
        log.scalars(step, {"loss/total": 1.0})
    log.close()


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_curves_of_another_run_are_moved_aside(tmp_path):
    assert set_aside_logs(tmp_path, "first") is None
    write_curve(tmp_path, range(1, 6))
    assert set_aside_logs(tmp_path, "first") is None
    write_curve(tmp_path, range(4, 7))
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert "earlier_logs_1" in set_aside_logs(tmp_path, "second")
    write_curve(tmp_path, range(1, 3))
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2]
    assert steps_of(tmp_path / "earlier_logs_1" / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "earlier_logs_1" / "tensorboard").iterdir())) == 2
    assert "earlier_logs_2" in set_aside_logs(tmp_path, "third")


def test_curves_from_before_runs_had_names(tmp_path):
    write_curve(tmp_path, range(1, 3))
    assert set_aside_logs(tmp_path, UNRECORDED) is None
    assert set_aside_logs(tmp_path, "new") is not None


def test_a_damaged_line_ends_the_curve(tmp_path):
    write_curve(tmp_path, range(1, 4))
    with open(tmp_path / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": 4, "lo\xff')
    write_curve(tmp_path, range(4, 5))
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]


def test_a_curve_that_cannot_be_written(tmp_path):
    log = RunLog(tmp_path, 10, 0, enabled=True)
    log._lines.close()
    log._lines = open("/dev/full", "w")
    with pytest.raises(LogError, match="metrics.jsonl or tensorboard/ cannot be written .*--auto_resume"):
        log.scalars(1, {"loss/total": 1.0})
    with pytest.raises(LogError):
        log.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError):
        RunLog(tmp_path / "file", 10, 0, enabled=True)
