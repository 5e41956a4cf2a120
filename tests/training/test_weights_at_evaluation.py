"""What training wrote, laid over its base by the evaluation, is the model that the merge exports."""

from __future__ import annotations

import shutil

import pytest
import torch

from datasets.tokenization import load_tokenizer
from evaluation.engine.opening import load_model
from evaluation.settings import parse_arguments as parse_evaluation
from model.checkpoints import load_any
from tests.model.published_qwen import write_qwen
from training import convert
from training.export import export
from training.export import parse_arguments as parse_export
from training.run import train
from training.settings import parse_arguments
from utils.errors import CheckpointError


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, project_root):
    """Flags that name a published Qwen3-VL without [SEG] and [LOC], and SAM."""
    place = tmp_path_factory.mktemp("published")
    words = place / "words"
    shutil.copytree(project_root / "assets" / "tiny_qwen_tokenizer", words)
    text = (words / "tokenizer.json").read_text()
    (words / "tokenizer.json").write_text(text.replace("[SEG]", "<one>").replace("[LOC]", "<two>"))
    return ["--version", str(write_qwen(place, words)), "--vision_pretrained", str(place / "sam.pth")]


def trained(base, backbone, corpus, folder, *flags):
    """A checkpoint of one step, and the file that it was converted to."""
    train(
        parse_arguments(
            [*base, "--dataset_dir", str(corpus), "--dataset", "groundmore", "--precision", "fp32", "--epochs", "1",
             "--steps_per_epoch", "2", "--warmup_steps", "1", "--grad_accumulation_steps", "1", "--num_frames", "2",
             "--workers", "0", "--picture_freq", "0", "--log_base_dir", str(folder), "--device", "cpu", "--exp_name",
             "a", "--lr", "1e-2", "--loc_mode", "global", *flags], backbone,
        )
    )  # fmt: skip
    assert convert.main([str(folder / "a" / "ckpt_model"), str(folder / "w.pt")]) == 0
    return folder / "a" / "ckpt_model", folder / "w.pt"


def opened(base, weight, corpus, folder, *flags):
    settings = parse_evaluation(
        [*base, "--weight", str(weight), "--precision", "fp32", "--device", "cpu", "--output_dir", str(folder / "out"),
         "--meta_file", str(corpus / "GroundMoRe" / "trainval_v2.json"), "--video_root",
         str(corpus / "GroundMoRe" / "groundmore_videos"), *flags]
    )  # fmt: skip
    return load_model(settings.model, settings.compute)


@pytest.mark.parametrize("rows", ["all", "new"])
def test_qwen_weights_are_those_of_the_export(qwen, tiny_corpus, tmp_path, world, rows, capsys):
    unusual = ["--timestamps", "--readout", "at", "--min_pixels", "1024", "--max_pixels", "4096", "--lora_alpha", "64"]
    checkpoint, weight = trained(qwen, "qwen3_vl", tiny_corpus, tmp_path, "--token_rows", rows, *unusual)
    export(parse_export([*qwen, "--weight", str(checkpoint), "--save_path", str(tmp_path / "whole")]))
    capsys.readouterr()
    model, tokenizer = opened(qwen, weight, tiny_corpus, tmp_path)
    assert "NOT CHECKED" not in capsys.readouterr().out
    whole = load_any(tmp_path / "whole")[0]
    wanted = whole.state_dict()
    assert model.state_dict().keys() == wanted.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-7, rtol=0, msg=name)
    fields = ("timestamps", "readout", "min_pixels", "max_pixels", "answer_style", "seg_token_id", "loc_token_id")
    assert [getattr(model.config, name) for name in fields] == [getattr(whole.config, name) for name in fields]
    assert (model.config.timestamps, model.config.readout, model.config.max_pixels) == (True, "at", 4096)
    assert tokenizer.digest() == load_tokenizer(tmp_path / "whole").digest()


def test_llava_weights_too(tiny_base, tiny_corpus, tmp_path, world):
    base = ["--version", str(tiny_base)]
    checkpoint, weight = trained(base, "llava", tiny_corpus, tmp_path, "--answer_style", "fixed")
    export(parse_export([*base, "--weight", str(checkpoint), "--save_path", str(tmp_path / "whole")]))
    model, _ = opened(base, weight, tiny_corpus, tmp_path)
    wanted = load_any(tmp_path / "whole")[0].state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-7, rtol=0, msg=name)
    assert model.config.answer_style == "fixed"
    state = torch.load(weight, weights_only=True)
    torch.save({name: t for name, t in state.items() if "model.layers.1" not in name}, weight)
    with pytest.raises(CheckpointError, match="lacks 2 of the .* that were trained"):
        opened(base, weight, tiny_corpus, tmp_path)
