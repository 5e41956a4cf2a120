"""What a person runs from scripts/: help, refusals, and the tables of the demo."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scripts.demo_summary import RUNS, summarise
from utils.errors import DataError


def shell(root, *command):
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_demo_explains_itself(project_root):
    done = shell(project_root, "bash", "scripts/demo.sh", "--help")
    assert done.returncode == 0
    for word in ("--quick", "--full", "--out DIR", "Run it again"):
        assert word in done.stdout


@pytest.mark.parametrize("flags, complaint", [(["--fast"], "unknown argument --fast"), (["--out"], "needs a folder")])
def test_demo_refuses_what_it_does_not_know(project_root, flags, complaint):
    done = shell(project_root, "bash", "scripts/demo.sh", *flags)
    assert done.returncode == 2 and complaint in done.stderr


def test_shell_scripts_parse(project_root):
    scripts = [*project_root.glob("scripts/*.sh"), *project_root.glob("scripts/*.sbatch"), project_root / ".ci/run"]
    assert len(scripts) >= 6
    for script in scripts:
        done = shell(project_root, "bash", "-n", str(script))
        assert done.returncode == 0, done.stderr


def test_make_tiny_base_explains_itself(project_root):
    done = shell(project_root, sys.executable, "-m", "scripts.make_tiny_base", "--help")
    assert done.returncode == 0 and "--shorten" in done.stdout


def measure(value):
    return None if value is None else {"mean": value, "stderr": 0.0, "N": 2}


def table(**values):
    return {"table": {"Overall": {"N": 2, **{key: measure(value) for key, value in values.items()}}}}


def write_summary(folder, rows):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"rows": rows}))


def test_summary_compares_with_the_best_baseline(tmp_path):
    numbers = dict(JF=0.6, J=0.5, F=0.7, window_J=0.4, temporal_iou=0.75, object_accuracy=0.5, object_chance=0.25)
    rows = {
        name: table(JF=value)
        for name, value in {"no_refinement": 0.3, "perfect_timing": 0.9, "all_empty": 0.45, "whole_frame": 0.1}.items()
    }
    for name, row in rows.items():
        row["kind"] = "baseline" if name in ("all_empty", "whole_frame") else "other"
    rows["model"] = {**table(**numbers), "kind": "result"}
    rows["model"]["table"].update(
        {kind: rows["model"]["table"]["Overall"] for kind in ("Causal", "Sequential", "Counterfactual", "Descriptive")}
    )
    write_summary(tmp_path / "eval/groundmore", rows)
    write_summary(tmp_path / "eval/shuffled", {"model": table(JF=0.2)})
    text = summarise(tmp_path)
    assert "| Causal | 2 | 0.600 | 0.500 | 0.700 | 0.400 | 0.750 | 0.500 |" in text
    assert f"| {RUNS['shuffled']} | 2 | 0.200 |" in text and RUNS["one_frame"] not in text
    assert "+0.150 against the best baseline" in text and "right in 0.250" in text


def test_summary_of_a_folder_without_results(tmp_path):
    with pytest.raises(DataError, match="summary.json"):
        summarise(tmp_path)
