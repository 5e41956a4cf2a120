"""Processes whose batches use different parts of the network train together, with ZeRO-2 and with ZeRO-3 alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datasets.tokenization import load_tokenizer
from model.presets import build
from tests.training.conftest import small_qwen
from training.checkpoints import read_weights

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent


def test_a_process_without_masks_times_and_pictures_keeps_step(project_root, tiny_corpus, tmp_path):
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_qwen_tokenizer")
    ids = {f"{name}_token_id": tokenizer.id_of(f"[{name.upper()}]") for name in ("seg", "loc")}
    build(small_qwen(vocab_size=len(tokenizer), tied=True, loc_hidden_size=32, **ids)).save_pretrained(
        tmp_path / "base"
    )
    tokenizer.save(tmp_path / "base")
    environment = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", HERE / "uneven_run.py",
         tmp_path / "base", tiny_corpus, tmp_path / "runs"], cwd=project_root, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("zero2", "zero3", "parts")
    curves, states = {}, {}
    for name in names:
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        curves[name] = [json.loads(line)["loss/total"] for line in lines]
        states[name] = read_weights(tmp_path / "runs" / name / "ckpt_model")
    assert len(curves["zero2"]) == 3 and curves["zero3"] == curves["parts"]
    assert curves["zero3"] == pytest.approx(curves["zero2"], abs=1e-4)
    assert states["zero2"].keys() == states["zero3"].keys()
    for name, value in states["zero3"].items():
        assert torch.equal(value, states["parts"][name]), "going on is the same as never stopping"
        torch.testing.assert_close(value, states["zero2"][name], rtol=0, atol=2e-4)
    rows = [name for name in states["zero3"] if name.endswith(".token_rows")]
    assert len(rows) == 2 and torch.equal(*(states["zero3"][name] for name in rows)), "tied rows stay one"
