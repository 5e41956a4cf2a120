"""A flag is one field of a settings dataclass: adding it there is all it takes to be parsed, checked, compared on
resume, written into the run and carried to the export."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

import training.export
import training.settings
from training.export import MergeSettings, export
from training.run import train
from training.settings import AnyModelSettings, DataSettings, ModelSettings, TrainingSettings
from utils.errors import CheckpointError, ConfigError
from utils.flags import flag


@dataclass
class WiderModel(ModelSettings):
    clip_resize: str | None = flag(None, choices=("crop", "pad"), network="clip_resize", help="how frames are cut")


@dataclass
class WiderData(DataSettings):
    patience: int = flag(3, at_least=1, help="how often a frame is looked at (%(default)s)")
    spare: float = flag(0.5, at_least=0, below=1, course=False, help="what is kept free")


@dataclass
class WiderTraining(TrainingSettings):
    model: WiderModel
    data: WiderData


@dataclass
class WiderMergedModel(AnyModelSettings):
    clip_resize: str | None = flag(None, choices=("crop", "pad"), network="clip_resize", help="how frames are cut")


@dataclass
class WiderMerge(MergeSettings):
    model: WiderMergedModel


@pytest.fixture
def parse(tiny_base, tiny_corpus, tmp_path, monkeypatch, world):
    """Parses flags of train_ds.py where the program's settings have three fields more."""
    monkeypatch.setitem(training.settings.PROGRAMS, "llava", WiderTraining)
    monkeypatch.setattr(training.export, "MergeSettings", WiderMerge)
    return lambda *extra: training.settings.parse_arguments(
        ["--version", str(tiny_base), "--dataset_dir", str(tiny_corpus), "--dataset", "groundmore", "--precision",
         "fp32", "--epochs", "1", "--steps_per_epoch", "1", "--warmup_steps", "1", "--grad_accumulation_steps", "1",
         "--num_frames", "2", "--workers", "0", "--picture_freq", "0", "--log_base_dir", str(tmp_path),
         "--exp_name", "run", *extra]
    )  # fmt: skip


def test_a_field_is_a_flag_with_help_and_a_range(parse):
    text = training.settings.build_parser().format_help()
    assert "how often a frame is looked at (3)" in text and "--clip_resize {crop,pad}" in text
    settings = parse("--patience", "5")
    assert (settings.data.patience, settings.data.spare, settings.model.clip_resize) == (5, 0.5, None)
    with pytest.raises(ConfigError) as caught:
        parse("--patience", "0", "--spare", "1.0", "--epochs", "0")
    for line in ("--patience: 0 is too small; at least 1", "--spare: 1.0 must be in [0, 1)", "--epochs: 0 is too"):
        assert line in str(caught.value)


@pytest.mark.slow
def test_a_field_is_compared_on_resume_and_travels(parse, tiny_base, tmp_path, capsys):
    train(parse("--patience", "5", "--clip_resize", "pad"))
    checkpoint = tmp_path / "run" / "ckpt_model"
    assert json.loads((checkpoint / "run.json").read_text())["args"]["patience"] == 5
    assert json.loads((checkpoint / "config.json").read_text())["clip_resize"] == "pad"
    capsys.readouterr()
    train(parse("--patience", "7", "--spare", "0.1", "--clip_resize", "pad", "--epochs", "2"))
    said = capsys.readouterr().out
    assert "WARNING, another flag than before: --patience: 5 -> 7" in said and "--spare" not in said
    with pytest.raises(CheckpointError, match="clip_resize: trained with 'pad', here 'crop'"):
        train(parse("--clip_resize", "crop", "--epochs", "3"))

    def merge(*extra):
        paths = ["--version", str(tiny_base), "--weight", str(checkpoint), "--save_path", str(tmp_path / "out")]
        return export(training.export.parse_arguments([*paths, *extra]))

    with pytest.raises(ConfigError, match="--clip_resize: crop, but the weights were trained with pad"):
        merge("--clip_resize", "crop")
    assert json.loads((merge() / "config.json").read_text())["clip_resize"] == "pad"
    card = json.loads((tmp_path / "out" / "export.json").read_text())
    assert card["made_from"]["settings"]["clip_resize"] == "pad" and "patience" not in card["made_from"]["settings"]
