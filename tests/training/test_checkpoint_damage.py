"""A checkpoint that is damaged in any way is refused by name; one that is whole exists at every moment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.toy_run import toy_arguments, toy_trainer
from training.checkpoints.digests import check_digests
from training.checkpoints.files import read_run_card
from training.checkpoints.store import CheckpointStore
from utils.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, world):
    """A toy run of four steps that kept its first epoch."""
    folder = tmp_path_factory.mktemp("trained")
    args = toy_arguments(folder, "--epochs", "1", "--keep_ckpt_every", "1")
    trainer, store = toy_trainer(args, world)
    trainer.fit()
    (store.rolling / "tokenizer").mkdir()
    return trainer, store.folder


@pytest.fixture
def run(trained, tmp_path, world):
    """The engine, and a store over a copy of the run's folder."""
    shutil.copytree(trained[1], tmp_path / "toy")
    return trained[0].engine, CheckpointStore(tmp_path / "toy", world)


FILES = [
    "global_step4/mp_rank_00_model_states.pt", "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "rng/rank_00000.pt", "run.json", "zero_to_fp32.py", "digests.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("which", ["ckpt_model", "ckpt_model_epoch_001"])
def test_one_bit_is_noticed(run, name, which):
    engine, store = run
    path = store.folder / which / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name}.*|damaged"):
        store.load(engine, store.folder / which)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(run, name):
    engine, store = run
    (store.rolling / name).unlink()
    with pytest.raises(CheckpointError, match=Path(name).name):
        store.load(engine, store.rolling)


@pytest.mark.parametrize("name", FILES[:3])
def test_a_missing_file_is_noticed_without_digests_too(run, name):
    engine, store = run
    forget_digests(store.rolling)
    (store.rolling / name).unlink()
    with pytest.raises(CheckpointError, match="states.pt|rank_00000.pt"):
        store.load(engine, store.rolling)


def test_all_damage_is_named_at_once(run):
    _, store = run
    (store.rolling / FILES[0]).unlink()
    (store.rolling / FILES[2]).write_bytes(b"short")
    (store.rolling / FILES[4]).write_bytes(b"#" * (store.rolling / FILES[4]).stat().st_size)
    (store.rolling / "global_step4" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"another run's")
    with pytest.raises(CheckpointError, match="take an earlier one, or copy it again .4 problems.") as caught:
        check_digests(store.rolling)
    for words in ("no such file", "5 of", "not what was written", "was not there"):
        assert words in str(caught.value)


def test_a_user_may_put_files_beside(run):
    engine, store = run
    (store.rolling / "notes.txt").write_text("the good one")
    (store.rolling / "pytorch_model.bin").write_bytes(b"converted")
    (store.rolling / "latest").write_text("global_step4\n")
    assert store.load(engine, store.rolling)["step"] == 4


def forget_digests(folder: Path) -> None:
    """As an earlier version wrote it."""
    card = json.loads((folder / "run.json").read_text())
    (folder / "run.json").unlink()
    (folder / "run.json").write_text(json.dumps({k: v for k, v in card.items() if k not in ("digests", "run_id")}))
    (folder / "digests.json").unlink()


def test_a_checkpoint_from_before_digests_is_read_with_a_word(run, caplog):
    engine, store = run
    forget_digests(store.rolling)
    with caplog.at_level(logging.WARNING):
        assert store.load(engine, store.rolling)["step"] == 4
    assert "has no digests.json" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", "4"), ("step", -1), ("step", 4.0), ("step", True), ("step", None), ("epoch", "x"), ("epoch", False),
     ("world_size", 0), ("world_size", [1]), ("args", ["--lr"]), ("format", True), ("format", 1.0), ("run_id", 5)],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(run, field, value):
    _, store = run
    card = json.loads((store.rolling / "run.json").read_text())
    (store.rolling / "run.json").write_text(json.dumps({**card, field: value}))
    with pytest.raises(CheckpointError, match=f"run.json.*\n?.*{field}"):
        read_run_card(store.rolling)


@pytest.mark.parametrize("text", ["", "5", "[]", "{", '"x"', "null", "\xff"])
def test_a_run_card_that_is_none(run, text):
    _, store = run
    (store.rolling / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="run.json"):
        read_run_card(store.rolling)


@pytest.mark.parametrize(
    "tag", [b"\xff\xfe", b"../ckpt_model", b"..", b".", b"/etc", b"a\0b", b"a\nb", b"x" * 300, b"", b"rng/x"]
)
def test_a_tag_that_leads_nowhere(run, tag):
    _, store = run
    (store.rolling / "latest").write_bytes(tag)
    with pytest.raises(CheckpointError, match="latest.*take another checkpoint"):
        read_run_card(store.rolling)
    (store.rolling / "latest").unlink()
    (store.rolling / "latest").mkdir()
    with pytest.raises(CheckpointError, match="latest"):
        read_run_card(store.rolling)


def test_a_folder_that_cannot_be_read(run, monkeypatch):
    _, store = run

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match="ckpt_model: the checkpoint folder cannot be read .*Permission denied"):
        read_run_card(store.rolling)


def whole_ones(folder: Path) -> set[int]:
    """Steps of the complete checkpoints that bear the name ckpt_model, or are moved aside from it."""
    steps = set()
    for path in [folder / "ckpt_model", *folder.glob(".ckpt_model.*.old")]:
        with contextlib.suppress(CheckpointError):  # half deleted
            check_digests(path)
            steps.add(read_run_card(path)["step"])
    return steps


def test_a_whole_checkpoint_exists_before_and_after_every_step_of_saving(run, monkeypatch):
    engine, store = run
    seen = []

    def watched(original):
        def call(*args, **kwargs):
            seen.append(whole_ones(store.folder))
            try:
                return original(*args, **kwargs)
            finally:
                seen.append(whole_ones(store.folder))

        return call

    for module, name in [(os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink"), (shutil, "rmtree")]:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    store.save(engine, {"step": 5, "epoch": 1})
    monkeypatch.undo()
    assert len(seen) > 10 and all(steps & {4, 5} for steps in seen), seen
    assert whole_ones(store.folder) == {5}


@pytest.mark.parametrize("number", range(1, 12))
def test_ctrl_c_at_any_step_of_saving_leaves_one_whole_checkpoint_and_nothing_else(run, monkeypatch, number):
    engine, store = run
    before = set(os.listdir(store.folder))
    steps = 0

    def interrupted(original):
        def call(*args, **kwargs):
            nonlocal steps
            result = original(*args, **kwargs)
            steps += 1
            if steps == number:
                raise KeyboardInterrupt
            return result

        return call

    for module, name in [(os, "rename"), (os, "replace"), (os, "fsync"), (torch, "save")]:
        monkeypatch.setattr(module, name, interrupted(getattr(module, name)))
    try:
        store.save(engine, {"step": 5, "epoch": 1})
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    assert store.recover()
    assert whole_ones(store.folder) in ({4}, {5})
    assert set(os.listdir(store.folder)) == before


def test_a_straggler_of_an_earlier_launch_writes_elsewhere(run, monkeypatch):
    engine, store = run
    folders = []
    original = engine.save_checkpoint
    monkeypatch.setattr(engine, "save_checkpoint", lambda folder, **k: (folders.append(folder), original(folder, **k)))
    store.save(engine, {"step": 5, "epoch": 1})
    store.save(engine, {"step": 5, "epoch": 1})
    assert len(set(folders)) == 2


def test_checkpoints_say_which_run_they_are_of(run, world):
    engine, store = run
    first = read_run_card(store.rolling)["run_id"]
    assert read_run_card(store.folder / "ckpt_model_epoch_001")["run_id"] == first
    again = CheckpointStore(store.folder, world)
    assert again.begin(read_run_card(again.rolling)) == []
    again.load(engine, again.rolling)
    again.save(engine, {"step": 5, "epoch": 1})
    assert read_run_card(again.rolling)["run_id"] == first


def test_what_another_run_kept_is_neither_used_nor_lost(run, world):
    engine, store = run
    kept = store.folder / "ckpt_model_epoch_001"
    before = (kept / "digests.json").read_bytes()
    shutil.rmtree(store.rolling)
    new = CheckpointStore(store.folder, world)
    with pytest.raises(ConfigError, match=f"checkpoints of another run.*another --exp_name.*\n.*{kept.name}: step 4"):
        new.begin(None)
    new.save(engine, {"step": 4, "epoch": 1})
    with pytest.raises(CheckpointError, match="ckpt_model_epoch_001: cannot keep.*another run"):
        new.keep(1)
    assert (kept / "digests.json").read_bytes() == before


def test_going_on_from_another_run_does_not_replace_this_one(run, world, tmp_path):
    engine, store = run
    other = CheckpointStore(tmp_path / "other", world)
    other.save(engine, {"step": 9, "epoch": 2})
    with pytest.raises(ConfigError, match="ckpt_model: step 4 of run(.|\n)*ckpt_model_epoch_001: step 4 of run"):
        CheckpointStore(store.folder, world).begin(read_run_card(other.rolling))


def test_what_was_kept_on_a_course_that_was_left_is_replaced(run, world):
    engine, store = run
    store.load(engine, store.rolling)
    store.save(engine, {"step": 8, "epoch": 2, "args": {"lr": 1}})
    store.keep(2)
    shutil.rmtree(store.rolling)
    back = CheckpointStore(store.folder, world)
    lines = back.begin(read_run_card(store.folder / "ckpt_model_epoch_001"))
    assert len(lines) == 1 and "ckpt_model_epoch_002" in lines[0]
    back.load(engine, store.folder / "ckpt_model_epoch_001")
    back.save(engine, {"step": 8, "epoch": 2, "args": {"lr": 2}})
    back.keep(2)
    assert read_run_card(store.folder / "ckpt_model_epoch_002")["args"]["lr"] == 2
    assert read_run_card(store.folder / "ckpt_model_epoch_001")["step"] == 4
