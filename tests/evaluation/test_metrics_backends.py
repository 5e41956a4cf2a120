"""Which code counts, where its machine code is kept, and that threads and processes may use it together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.official_davis import official_clip
from evaluation import metrics
from evaluation.metrics import compiled as metrics_compiled


@pytest.fixture
def fresh(monkeypatch):
    """Forget which code was chosen, before and after."""
    monkeypatch.delenv("MORA_METRICS", raising=False)
    metrics.kernels_of.cache_clear()
    yield monkeypatch
    metrics.kernels_of.cache_clear()


def clip(seed=0, frames=3):
    rng = np.random.default_rng(seed)
    gt = np.kron(rng.random((frames, 12, 20)) < 0.3, np.ones((1, 8, 8), dtype=bool))
    return gt, np.roll(gt, (1, 2), axis=(1, 2)) & (rng.random(gt.shape) < 0.99)


def chosen():
    return metrics.kernels_of(os.environ.get("MORA_METRICS") or "auto").__name__


def test_numba_is_used_where_it_is_installed(fresh):
    pytest.importorskip("numba")
    assert chosen() == "evaluation.metrics.with_numba"
    fresh.setenv("MORA_METRICS", "numpy")
    assert chosen() == "evaluation.metrics.with_numpy"


def test_compiled_code_lets_other_threads_run(fresh):
    pytest.importorskip("numba")
    kernels = metrics.kernels_of("numba")
    for entry in (kernels.count_dense, kernels.count_runs, kernels.parse_strings):
        assert entry.targetoptions["nogil"]


def test_numba_that_may_not_compile_is_not_used(fresh):
    config = pytest.importorskip("numba").config
    fresh.setattr(config, "DISABLE_JIT", 1)
    assert chosen() == "evaluation.metrics.with_numpy"
    fresh.setenv("MORA_METRICS", "numba")
    with pytest.raises(ImportError, match="NUMBA_DISABLE_JIT"):
        metrics.score_clip(*clip())


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_without_numba_numpy_counts(fresh, missing):
    for name in [name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite")]:
        fresh.delitem(sys.modules, name)
    fresh.delitem(sys.modules, "evaluation.metrics.with_numba", raising=False)
    fresh.setitem(sys.modules, missing, None)
    assert chosen() == "evaluation.metrics.with_numpy"
    gt, pred = clip()
    assert np.array_equal(metrics.score_clip(gt, pred), official_clip(gt, pred))
    fresh.setenv("MORA_METRICS", "numba")
    with pytest.raises(ImportError, match="pip install numba"):
        metrics.score_clip(gt, pred)


def test_an_unknown_choice_is_refused(fresh):
    fresh.setenv("MORA_METRICS", "cupy")
    with pytest.raises(ValueError, match="MORA_METRICS=cupy: choose auto, numba or numpy"):
        metrics.score_clip(*clip())


def test_threads_may_score_together(fresh):
    for name in ("numba", "numpy"):
        fresh.setenv("MORA_METRICS", name)
        clips = [clip(seed) for seed in range(24)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda pair: metrics.score_clip(*pair), clips))
        for pair, scores in zip(clips, together):
            assert np.array_equal(scores, official_clip(*pair))


SCORE = """
import json, sys
import numpy as np
from evaluation import metrics
from evaluation.metrics import compiled as metrics_compiled
metrics_compiled.LONGEST_WAIT = 3600.0
mask = np.eye(70, dtype=bool)
scores = metrics.score_clip(mask, np.roll(mask, 1, axis=0))
from evaluation.metrics import with_numba as metrics_numba
stats = metrics_numba.count_dense.stats
import numba
print(json.dumps([float(scores[0][0]), sum(stats.cache_hits.values()), stats.cache_path, numba.config.CACHE_DIR]))
"""


def start(project_root, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("MORA_METRICS", "NUMBA_CACHE_DIR")}
    return subprocess.Popen(
        [sys.executable, "-c", SCORE], cwd=project_root, env=kept | environment, stdout=subprocess.PIPE, text=True
    )


def test_processes_that_start_together_compile_once(project_root, tmp_path):
    pytest.importorskip("numba")
    running = [start(project_root, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    printed = [json.loads(process.communicate()[0]) for process in running]
    assert len({score for score, *_ in printed}) == 1
    assert sorted(hits for _, hits, *_ in printed) == [0, 1]
    for _, _, path, setting in printed:
        assert Path(path).is_relative_to(tmp_path / "mora")
        assert setting == ""  # numba's own setting is as it was


def test_where_the_machine_code_is_kept(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chosen = metrics_compiled.cache_folder("")
    assert chosen.parent == tmp_path / "cache" / "mora"
    named = metrics_compiled.cache_folder(str(tmp_path / "named"))
    assert named.parent == tmp_path / "named" and named.name == chosen.name

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    removed = []
    monkeypatch.setattr(metrics_compiled.atexit, "register", lambda function, path, **_: removed.append(path))
    temporary = metrics_compiled.cache_folder(str(tmp_path / "file"))
    assert temporary.is_dir() and removed == [temporary]
    temporary.rmdir()


def test_a_lock_that_never_comes_is_not_waited_for(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(metrics_compiled, "LONGEST_WAIT", 0.1)
    with open(tmp_path / "lock", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with metrics_compiled.one_at_a_time(tmp_path):
            pass
    with metrics_compiled.one_at_a_time(tmp_path / "gone"):
        pass


def test_the_benchmark_prints_its_table(capsys, monkeypatch):
    pytest.importorskip("numba")
    from benchmarks import metrics as benchmark

    monkeypatch.setitem(benchmark.SIZES, "480p", (48, 85))
    benchmark.main(["--sizes", "480p", "--frames", "2", "--official_frames", "1", "--repeats", "1"])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 12 and all(row.count("x") >= 4 for row in rows[1:])
