"""What an export may replace, when it is made again, and what it leaves after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.tokenization import load_tokenizer
from evaluation.engine.opening import load_model
from evaluation.settings import parse_arguments as parse_evaluation
from model.checkpoints import load_any, require_own_tokenizer
from training import convert
from training.checkpoints.weights import read_weights
from training.export import export, parse_arguments
from training.run import train
from training.settings import parse_arguments as parse_training
from utils.errors import CheckpointError, ConfigError, MoraError, TokenizerError
from utils.processes import LockedError, hold


@pytest.fixture(scope="module")
def runs(tiny_base, tiny_corpus, tmp_path_factory, world):
    """A folder with a run "a" of two kept epochs."""
    folder = tmp_path_factory.mktemp("runs")
    train(
        parse_training(
            ["--version", str(tiny_base), "--dataset_dir", str(tiny_corpus), "--dataset", "groundmore", "--precision",
             "fp32", "--epochs", "2", "--steps_per_epoch", "3", "--warmup_steps", "1", "--grad_accumulation_steps", "1",
             "--num_frames", "2", "--workers", "0", "--picture_freq", "0", "--log_base_dir", str(folder), "--exp_name",
             "a", "--device", "cpu", "--lr", "1e-3", "--keep_ckpt_every", "1", "--loc_mode", "global"]
        )
    )  # fmt: skip
    return folder


def exporting(base, weight, target, *flags):
    paths = ["--version", str(base), "--weight", str(weight), "--save_path", str(target)]
    return export(parse_arguments([*paths, *flags]))


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["notes/thesis.txt", "model.safetensors", "config.json", ".hidden"])
def test_a_users_folder_is_not_touched(tiny_base, runs, tmp_path, place):
    mine = tmp_path / "mine"
    (mine / place).parent.mkdir(parents=True, exist_ok=True)
    (mine / place).write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=f"--save_path .*holds {place.split('/')[0]}"):
        exporting(tiny_base, runs / "a" / "ckpt_model", mine)
    assert snapshot(tmp_path) == before


def test_a_file_added_to_an_export_is_kept(tiny_base, runs, tmp_path):
    folder = exporting(tiny_base, runs / "a" / "ckpt_model", tmp_path / "out")
    exporting(tiny_base, runs / "a" / "ckpt_model_epoch_001", folder)  # an export may be replaced
    (folder / "README.md").write_text("my notes")
    before = snapshot(folder)
    with pytest.raises(ConfigError, match="holds README.md"):
        exporting(tiny_base, runs / "a" / "ckpt_model", folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("what", ["run", "runs", "checkpoint", "base", "above the base", "link to the base", "weights"])
def test_inputs_are_never_outputs(tiny_base, runs, tmp_path, what):
    base, copied = tmp_path / "bases" / "base", tmp_path / "runs"
    shutil.copytree(tiny_base, base)
    shutil.copytree(runs, copied)
    (tmp_path / "link").symlink_to(base)
    targets = {
        "run": copied / "a", "runs": copied, "checkpoint": copied / "a" / "ckpt_model", "base": base,
        "above the base": base.parent, "link to the base": tmp_path / "link", "weights": tmp_path / "w" / ".." / "w",
    }  # fmt: skip
    weight = copied / "a" / "ckpt_model"
    if what == "weights":
        (tmp_path / "w").mkdir()
        save_file(read_weights(weight), tmp_path / "w" / "model.safetensors")
        weight = tmp_path / "w" / "model.safetensors"
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match="would replace"):
        exporting(base, weight, targets[what])
    assert snapshot(tmp_path) == before


def test_reuse_is_by_content(tiny_base, runs, tmp_path, capsys):
    """Made again exactly if weights, base or settings are others; names and times do not matter."""
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copytree(runs / "a" / "ckpt_model_epoch_001", tmp_path / "c")

    def made(*flags, base=tmp_path / "base", weight=tmp_path / "c") -> bool:
        capsys.readouterr()
        exporting(base, weight, tmp_path / "out", "--reuse", *flags)
        told = capsys.readouterr().out
        assert ("saved: " in told) != ("kept: " in told)
        return "saved: " in told

    assert made() and not made()
    shutil.copytree(tiny_base, tmp_path / "same base elsewhere")
    shutil.copytree(tmp_path / "c", tmp_path / "same weights elsewhere")
    assert not made(base=tmp_path / "same base elsewhere", weight=tmp_path / "same weights elsewhere")
    assert made("--precision", "bf16") and made()
    shutil.rmtree(tmp_path / "c")
    shutil.copytree(runs / "a" / "ckpt_model", tmp_path / "c")  # newer, under the same name
    assert made() and not made()
    expected = read_weights(tmp_path / "c")["text_hidden_fcs.0.2.weight"]
    assert load_file(tmp_path / "out" / "model.safetensors")["text_hidden_fcs.0.2.weight"].equal(expected)
    state = load_file(tmp_path / "base" / "model.safetensors")
    name = next(name for name in state if "vision_tower" in name)
    times = os.stat(tmp_path / "base" / "model.safetensors")
    state[name] = state[name] + 1
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    os.utime(tmp_path / "base" / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CheckpointError, match="another base"):  # replaced in place, to the second
        made()


def test_a_damaged_export_is_noticed(tiny_base, runs, tmp_path):
    folder = exporting(tiny_base, runs / "a" / "ckpt_model", tmp_path / "out")
    load_any(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="are not those that were exported"):
        load_any(folder)
    card = json.loads((folder / "export.json").read_text())
    for damage in ("{", "[]", json.dumps({**card, "digests": 3}), json.dumps({**card, "format": "x"})):
        (folder / "export.json").write_text(damage)
        with pytest.raises(CheckpointError, match="export.json"):
            load_any(folder)


def test_an_export_keeps_its_tokenizer(tiny_base, runs, tmp_path):
    folder = exporting(tiny_base, runs / "a" / "ckpt_model", tmp_path / "out")
    require_own_tokenizer(folder, load_tokenizer(folder).digest())
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[300][0], vocabulary[301][0] = vocabulary[301][0], vocabulary[300][0]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="not the one that was exported"):
        exporting(folder, runs / "a" / "ckpt_model", tmp_path / "another")
    settings = parse_evaluation(
        ["--version", str(folder), "--video_root", str(tmp_path), "--meta_file", str(folder / "config.json"),
         "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]
    )  # fmt: skip
    with pytest.raises(TokenizerError, match="not the one that was exported"):
        load_model(settings.model, settings.compute)


def test_rounding_is_told_and_overflow_refused(tiny_base, runs, tmp_path, capsys):
    exporting(tiny_base, runs / "a" / "ckpt_model", tmp_path / "exact")
    assert "rounding changes" not in capsys.readouterr().out and load_any(tmp_path / "exact")[0].dtype == torch.float32
    exporting(tiny_base, runs / "a" / "ckpt_model", tmp_path / "rounded", "--precision", "bf16")
    assert "saved as bf16: rounding changes the merged weights by 1." in capsys.readouterr().out
    state = read_weights(runs / "a" / "ckpt_model")
    state["text_hidden_fcs.0.2.weight"][0, 0] = 1e6
    save_file(state, tmp_path / "large.safetensors")
    with pytest.raises(MoraError, match="(?s)text_hidden_fcs.0.2.weight.*bf16"):
        exporting(tiny_base, tmp_path / "large.safetensors", tmp_path / "out", "--precision", "fp16")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(tiny_base, runs, tmp_path):
    for value in (float("nan"), float("inf")):
        state = read_weights(runs / "a" / "ckpt_model")
        state["text_hidden_fcs.0.2.weight"][0, 0] = value
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(MoraError, match="(?s)finite.*text_hidden_fcs.0.2.weight"):
            exporting(tiny_base, tmp_path / "w.safetensors", tmp_path / "out")


def test_one_export_at_a_time(tiny_base, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.PATIENCE", 0.3)
    with hold(tmp_path / ".out.lock", "the folder"), pytest.raises(LockedError, match="in use by process"):
        exporting(tiny_base, runs / "a" / "ckpt_model", tmp_path / "out")


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_behind_the_next_one(tiny_base, runs, tmp_path, project_root):
    command = [
        sys.executable, str(project_root / "merge_lora_weights_and_save_hf_model.py"), "--version", str(tiny_base),
        "--weight", str(runs / "a" / "ckpt_model"), "--save_path", str(tmp_path / "out"),
    ]  # fmt: skip
    hang = "import training.export as e, time; e.write_json = lambda *_: (print('half', flush=True), time.sleep(60))"
    code = f"{hang}; import sys; sys.argv = {command[1:]!r}; e.export(e.parse_arguments(sys.argv[1:]))"
    job = subprocess.Popen([sys.executable, "-c", code], cwd=project_root, stdout=subprocess.PIPE, text=True)
    while "half" not in job.stdout.readline():
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")], "the kill came too late"
    assert subprocess.run(command, cwd=project_root, capture_output=True).returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".old"))] == []
    load_any(tmp_path / "out")


def test_the_converter_leaves_what_holds_these_weights_and_replaces_others(runs, tmp_path, capsys):
    first, second = runs / "a" / "ckpt_model_epoch_001", runs / "a" / "ckpt_model"
    target = tmp_path / "fp32_model_state.pt"
    for source, word in ((first, "saved"), (first, "kept"), (second, "saved"), (second, "kept")):
        assert convert.main([str(source), str(target), "--reuse"]) == 0
        assert capsys.readouterr().out.startswith(word)
        wanted, found = read_weights(source), read_weights(target)
        assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    target.write_bytes(target.read_bytes()[:-100])
    assert convert.main([str(second), str(target), "--reuse"]) == 0 and capsys.readouterr().out.startswith("saved")
    assert convert.main([str(second), str(target)]) == 1 and "exists already" in capsys.readouterr().err


def test_the_converter(runs, tmp_path, capsys):
    checkpoint, target = runs / "a" / "ckpt_model", tmp_path / "w.safetensors"
    assert convert.main([str(checkpoint), str(target)]) == 0
    assert {name: value.tolist() for name, value in read_weights(target).items()} == {
        name: value.tolist() for name, value in read_weights(checkpoint).items()
    }
    for source, place, named in (
        (checkpoint, target, "exists already"),
        (checkpoint, tmp_path / "w.txt", ".safetensors"),
        (tmp_path, tmp_path / "x.safetensors", "no DeepSpeed checkpoint"),
    ):
        assert convert.main([str(source), str(place)]) == 1
        assert named in capsys.readouterr().err


def test_foreign_code_in_a_checkpoint_does_not_run(runs, tiny_base, tmp_path):
    class Foreign:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    checkpoint = tmp_path / "c"
    shutil.copytree(runs / "a" / "ckpt_model", checkpoint)
    (checkpoint / "zero_to_fp32.py").write_text(f"import os; os.mkdir({str(tmp_path / 'was here')!r})")
    states = next(checkpoint.glob("global_step*/*optim_states.pt"))
    content = torch.load(states, weights_only=False)
    torch.save({**content, "extra": Foreign()}, states)
    (checkpoint / "digests.json").unlink()
    card = json.loads((checkpoint / "run.json").read_text())
    del card["digests"]
    (checkpoint / "run.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="refused"):
        exporting(tiny_base, checkpoint, tmp_path / "out")
    assert convert.main([str(checkpoint), str(tmp_path / "w.safetensors")]) == 1
    assert not (tmp_path / "was here").exists()


def test_a_damaged_checkpoint_is_not_merged(runs, tiny_base, tmp_path):
    checkpoint = tmp_path / "c"
    shutil.copytree(runs / "a" / "ckpt_model", checkpoint)
    (checkpoint / "config.json").unlink()  # not needed: the weights say what they belong to
    exporting(tiny_base, checkpoint, tmp_path / "out")
    states = next(checkpoint.glob("global_step*/*optim_states.pt"))
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 1
    states.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s)damaged.*{states.name}"):
        exporting(tiny_base, checkpoint, tmp_path / "out")
    assert convert.main([str(checkpoint), str(tmp_path / "w.safetensors")]) == 1
