"""Checkpoints: what is written, what is refused, and that a failed write loses nothing."""

from __future__ import annotations

import errno
import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.toy_run import ToyNet, toy_arguments, toy_trainer
from training.checkpoints.files import load_states, read_run_card
from training.checkpoints.random_states import random_states, restore_random_states
from training.checkpoints.store import CheckpointStore
from training.checkpoints.weights import read_weights
from training.engine import DivergedError
from utils.errors import CheckpointError


@pytest.fixture
def run(tmp_path, world):
    """A toy run of four steps with its checkpoint."""
    args = toy_arguments(tmp_path, "--epochs", "1", "--keep_ckpt_every", "1")
    trainer, store = toy_trainer(args, world)
    trainer.fit()
    return trainer, store


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_layout(run):
    trainer, store = run
    names = {path.name for path in store.rolling.iterdir()}
    assert {"latest", "global_step4", "zero_to_fp32.py", "rng", "run.json"} <= names
    card = read_run_card(store.rolling)
    assert (card["step"], card["epoch"], card["world_size"]) == (4, 1, 1)
    assert card["args"]["lr"] == 0.05
    states = load_states(store.rolling / "global_step4" / "mp_rank_00_model_states.pt")
    assert "frozen.weight" not in states["module"] and "head.weight" in states["module"]


def test_kept_checkpoints_share_their_bytes_and_outlive_the_rolling_one(run):
    trainer, store = run
    kept = store.folder / "ckpt_model_epoch_001"
    file = Path("global_step4") / "mp_rank_00_model_states.pt"
    assert (kept / file).samefile(store.rolling / file)
    before = contents(kept)
    store.save(trainer.engine, {"step": 5, "epoch": 1})
    assert contents(kept) == before
    assert read_run_card(kept)["step"] == 4 and read_run_card(store.rolling)["step"] == 5


def test_random_states_come_back():
    states = random_states()
    drawn = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.rand(5), np.random.rand(7), random.random()  # noqa: NPY002
    restore_random_states(states)
    assert torch.equal(drawn[0], torch.rand(3))
    assert np.array_equal(drawn[1], np.random.rand(3))  # noqa: NPY002
    assert drawn[2] == random.random()


@pytest.mark.parametrize("where", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")]
)
def test_a_full_disk_leaves_the_previous_checkpoint(run, monkeypatch, where, failure):
    trainer, store = run
    before = contents(store.rolling)
    storage = trainer.engine.checkpoint_engine
    original = storage.save

    def save(state_dict, path):
        if path.endswith(where):
            Path(path).write_bytes(b"half")
            raise failure
        original(state_dict, path)

    monkeypatch.setattr(storage, "save", save)
    with pytest.raises(CheckpointError, match="the previous checkpoint is untouched.*--auto_resume"):
        store.save(trainer.engine, {"step": 5, "epoch": 1})
    assert contents(store.rolling) == before
    assert not list(store.folder.glob(".*"))
    monkeypatch.undo()
    store.save(trainer.engine, {"step": 5, "epoch": 1})
    assert read_run_card(store.rolling)["step"] == 5


def test_a_kill_between_the_two_renames_is_undone(run, world):
    _, store = run
    before = contents(store.rolling)
    store.rolling.rename(store.folder / ".ckpt_model.abcd1234.old")
    (store.folder / ".ckpt_model.step00000008.tmp").mkdir()
    (store.folder / ".ckpt_model_epoch_002.tmp").mkdir()
    assert CheckpointStore(store.folder, world).recover()
    assert contents(store.rolling) == before
    assert not list(store.folder.glob(".*"))


def test_without_latest(run, world):
    trainer, store = run
    (store.rolling / "latest").unlink()
    with pytest.raises(CheckpointError, match="without a file 'latest'; write 'global_step4' into it"):
        store.load(trainer.engine, store.rolling)
    (store.rolling / "latest").write_text("global_step9")
    with pytest.raises(CheckpointError, match="names 'global_step9', which is not there"):
        store.load(trainer.engine, store.rolling)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        store.load(trainer.engine, store.folder / "absent")


@pytest.mark.parametrize("where", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_a_truncated_shard_is_named(run, where):
    trainer, store = run
    path = store.rolling / "global_step4" / where
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{where}: cannot be read, probably truncated"):
        store.load(trainer.engine, store.rolling)
    with pytest.raises(CheckpointError, match=f"{where}: cannot be read, probably truncated"):
        read_weights(store.rolling)


def test_a_missing_shard_is_named(run):
    trainer, store = run
    (store.rolling / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="optim_states"):
        store.load(trainer.engine, store.rolling)


class Payload:
    """What an attacker would put into a checkpoint."""

    def __reduce__(self):
        return Path.touch, (Path("/tmp/this-must-not-be-made"),)


def test_foreign_code_is_never_run(run):
    trainer, store = run
    path = store.rolling / "global_step4" / "mp_rank_00_model_states.pt"
    (store.rolling / "digests.json").unlink()  # whoever means harm would not leave them
    card = json.loads((store.rolling / "run.json").read_text())
    del card["digests"]
    (store.rolling / "run.json").write_text(json.dumps(card))
    torch.save({"module": Payload()}, path)
    for attempt in (lambda: store.load(trainer.engine, store.rolling), lambda: read_weights(store.rolling)):
        with pytest.raises(CheckpointError, match="refused"):
            attempt()
    assert not Path("/tmp/this-must-not-be-made").exists()
    path.write_bytes(pickle.dumps({"module": Payload()}))
    with pytest.raises(CheckpointError):
        store.load(trainer.engine, store.rolling)


def test_another_number_of_processes_is_refused(run):
    trainer, store = run
    card = json.loads((store.rolling / "run.json").read_text())
    (store.rolling / "run.json").write_text(json.dumps({**card, "world_size": 4}))
    with pytest.raises(CheckpointError, match=r"written by 4 process\(es\), and this run has 1.*--init_from"):
        store.load(trainer.engine, store.rolling)


def test_another_model_is_refused_by_name(run, tmp_path, world, monkeypatch):
    _, store = run

    def wider(self, dropout=0.2):
        original(self, dropout)
        self.head = torch.nn.Linear(16, 2)
        self.extra = torch.nn.Linear(1, 1)

    original = ToyNet.__init__
    monkeypatch.setattr(ToyNet, "__init__", wider)
    other, _ = toy_trainer(toy_arguments(tmp_path / "other"), world)
    with pytest.raises(CheckpointError) as caught:
        store.load(other.engine, store.rolling)
    for expected in ("missing ['extra.bias', 'extra.weight']", "head.weight (1, 16) for (2, 16)", "run.json"):
        assert expected in str(caught.value)


def test_a_loss_that_is_not_a_number_stops_the_run_before_anything_is_saved(tmp_path, world):
    args = toy_arguments(tmp_path, "--print_freq", "4")
    trainer, store = toy_trainer(args, world, forward_options={"nan_at": 6})
    with pytest.raises(DivergedError, match="step 2, rank 0, samples 6, 7: {'loss': nan, 'ce_loss': nan}"):
        trainer.fit()
    assert not store.rolling.exists()


def test_stopping_in_time_and_going_on(tmp_path, world):
    args = toy_arguments(tmp_path, "--max_minutes", "1e-9")
    trainer, store = toy_trainer(args, world)
    assert trainer.fit() == 1
    assert read_run_card(store.rolling)["step"] == 1


def test_zero_to_fp32_inside_the_checkpoint_gives_the_trained_weights(run, tmp_path):
    trainer, store = run
    moved = tmp_path / "moved"
    shutil.copytree(store.rolling, moved)
    done = subprocess.run(
        [sys.executable, str(moved / "zero_to_fp32.py"), str(moved), str(tmp_path / "fp32_model_state.pt")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    own = {name: value for name, value in trainer.engine.module.state_dict().items() if not name.startswith("frozen.")}
    for weights in (read_weights(tmp_path / "fp32_model_state.pt"), read_weights(store.rolling)):
        assert weights.keys() == own.keys()
        assert all(torch.equal(weights[name], own[name]) for name in own)
