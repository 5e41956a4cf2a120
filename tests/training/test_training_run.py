"""The whole of train_ds.py over a very small model and corpus: what learns, resuming, precision, overfitting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import training.run
from datasets.conversation import encode_prompt, groundmore_question
from datasets.corpora.groundmore import GroundMoRe
from datasets.pixels import Preprocessor
from datasets.sampling import uniform_frames
from datasets.tokenization import load_tokenizer
from evaluation.metrics import score_clip
from model.answering import Request, answer, encode
from model.checkpoints import load_any
from model.presets import build
from tests.targets import read_target
from tests.training.conftest import small_config
from training.checkpoints.files import read_run_card
from training.checkpoints.weights import plain_name, read_weights
from training.export import export
from training.export import parse_arguments as parse_export
from training.run import changed_flags, train
from training.settings import parse_arguments
from utils.errors import CheckpointError, ConfigError, DataError, TokenizerError
from utils.flags import values_of
from utils.video import read_frame

pytestmark = pytest.mark.slow


@pytest.fixture
def flags(tiny_base, tiny_corpus, tmp_path, world):
    """Flags of a run of four steps; more may be added."""

    def make(*extra: str):
        return parse_arguments(
            ["--version", str(tiny_base), "--dataset_dir", str(tiny_corpus), "--dataset", "groundmore",
             "--precision", "fp32", "--epochs", "2", "--steps_per_epoch", "2", "--warmup_steps", "2",
             "--grad_accumulation_steps", "1", "--num_frames", "3", "--workers", "0", "--picture_freq", "0",
             "--log_base_dir", str(tmp_path), "--exp_name", "run", *extra]
        )  # fmt: skip

    return make


def trained_names(folder: Path) -> set[str]:
    return set(read_run_card(folder)["trained"])


def changed_names(folder: Path, base: Path) -> set[str]:
    """Plain names of tensors in a checkpoint that differ from the base's (LoRA: from zero or their first values)."""
    before = load_any(base)[0].state_dict()
    after = read_weights(folder)
    return {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}


def test_exactly_the_published_set_learns(flags, tmp_path, tiny_base):
    train(flags())
    folder = tmp_path / "run" / "ckpt_model"
    names = {plain_name(name) for name in trained_names(folder)}
    groups = ("language_model.lm_head.", "language_model.model.embed_tokens.", "sam.mask_decoder.", "text_hidden_fcs.",
              "loc_head.")  # fmt: skip
    everything = load_any(tiny_base)[0].state_dict()
    lora = {name for name in names if ".lora_" in name}
    assert names - lora == {name for name in everything if name.startswith(groups)}
    assert all(name.startswith("language_model.model.layers.") for name in lora)
    assert {name.split(".")[-3] for name in lora} == {"q_proj", "v_proj"}
    saved = read_weights(folder)
    assert saved.keys() - {"provenance"} == names, "a checkpoint holds what learns, what it belongs to, nothing else"
    still = names - changed_names(folder, tiny_base)
    silent = ("sam.mask_decoder.iou_prediction_head.", "sam.mask_decoder.output_hypernetworks_mlps.")
    assert all(name.startswith(silent) for name in still), still
    assert not any(".lora_B" in name and not saved[name].any() for name in lora)
    assert "sam.mask_decoder.output_hypernetworks_mlps.0.proj_in.weight" not in still


def test_no_frozen_tensor_moves(flags, monkeypatch):
    kept = {}

    def remember(settings, world, resuming):
        kept["parts"] = prepare(settings, world, resuming)
        kept["before"] = {name: value.clone() for name, value in kept["parts"].model.state_dict().items()}
        return kept["parts"]

    prepare = training.run.prepare_model
    monkeypatch.setattr(training.run, "prepare_model", remember)
    train(flags())
    trained = set(kept["parts"].trained)
    after = kept["parts"].model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, kept["before"][name])}
    assert moved and moved <= trained, moved - trained


def test_patterns_choose_what_learns(flags, tmp_path):
    train(flags("--trainable", "projector.*||text_hidden_fcs.*", "--lora_r", "0", "--epochs", "1"))
    names = trained_names(tmp_path / "run" / "ckpt_model")
    assert {name.split(".")[0] for name in names} == {"projector", "text_hidden_fcs"}


def test_going_on_is_the_same_as_never_stopping(flags, tmp_path):
    train(flags("--workers", "1", "--save_every_steps", "1", "--exp_name", "whole"))
    args = flags("--workers", "1", "--save_every_steps", "1", "--max_minutes", "1e-9")
    assert train(args) == 1
    args.run.max_minutes = 0.0
    assert train(args) == 4
    whole, parts = (read_weights(tmp_path / name / "ckpt_model") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run")]
    curves = [[json.loads(line)["loss/total"] for line in text] for text in lines]
    assert curves[0] == curves[1] and len(curves[0]) == 4


def test_bf16_and_checkpointing_train_too(flags, tmp_path):
    train(flags("--precision", "bf16", "--epochs", "1", "--gradient_checkpointing", "--picture_freq", "1"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss/total"]) for line in lines) and len(lines) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_seg_only_has_no_localisation(flags, tmp_path):
    train(flags("--seg_only", "--epochs", "1"))
    names = trained_names(tmp_path / "run" / "ckpt_model")
    assert not any(name.startswith("loc_head.") for name in names)
    config = json.loads((tmp_path / "run" / "ckpt_model" / "config.json").read_text())
    assert config["loc_mode"] == "none" and config["loc_token_id"] is None


def test_init_from_takes_weights_only_and_auto_resume_wins(flags, tmp_path):
    train(flags("--exp_name", "first"))
    first = read_weights(tmp_path / "first" / "ckpt_model")
    args = flags("--init_from", str(tmp_path / "first" / "ckpt_model"), "--epochs", "1", "--lr", "1e-12")
    assert train(args) == 2
    second = read_weights(tmp_path / "run" / "ckpt_model")
    assert all(torch.allclose(first[name], second[name], atol=1e-9) for name in first)
    args.run.init_from = str(tmp_path / "nowhere")
    assert train(args) == 2, "the second launch goes on and does not look at --init_from"


def test_init_from_what_does_not_fit(flags, tmp_path):
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="none of its tensors fits"):
        train(flags("--init_from", str(tmp_path / "other.pt")))
    train(flags("--exp_name", "first", "--epochs", "1"))
    with pytest.raises(CheckpointError, match="has LoRA adapters and this run has none"):
        train(flags("--init_from", str(tmp_path / "first" / "ckpt_model"), "--lora_r", "0", "--trainable", "all"))


def test_an_existing_run_is_not_overwritten(flags):
    train(flags("--epochs", "1"))
    with pytest.raises(ConfigError, match="--no-auto_resume would overwrite it"):
        train(flags("--no-auto_resume"))


def test_a_checkpoint_without_latest_stops_the_run(flags, tmp_path):
    train(flags("--epochs", "1"))
    (tmp_path / "run" / "ckpt_model" / "latest").unlink()
    with pytest.raises(CheckpointError, match="without a file 'latest'"):
        train(flags())


def test_changed_flags_are_reported(flags):
    card = {"args": values_of(flags("--lr", "1e-4", "--num_frames", "4"))}
    assert changed_flags(flags("--lr", "2e-4"), card) == ["--num_frames: 4 -> 3", "--lr: 0.0001 -> 0.0002"]


def test_mistakes_of_the_base_and_the_corpus(flags, tmp_path, tiny_corpus):
    with pytest.raises(ConfigError, match="no parameter matches 'projector.nothing'"):
        train(flags("--trainable", "projector.nothing"))
    with pytest.raises(ConfigError, match="known: refer_video_seg, mevis, groundmore"):
        train(flags("--dataset", "groundmoar"))
    with pytest.raises(DataError, match="refytvos"):
        train(flags("--dataset", "refer_video_seg"))


def test_a_base_without_seg_token(flags, tmp_path, tiny_base):
    folder = tmp_path / "no_seg"
    shutil.copytree(tiny_base, folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("[SEG]", "[XYZ]"))
    with pytest.raises(TokenizerError, match=r"no token '\[SEG\]'"):
        train(flags("--version", str(folder)))


def test_a_base_that_never_met_loc_gets_the_token_and_the_head(flags, tmp_path, tiny_base):
    """As published: stage 1 knows [SEG] only, stage 2 adds [LOC]."""
    folder = tmp_path / "stage1"
    tokenizer = load_tokenizer(tiny_base)
    rows = len(tokenizer)
    build(small_config(loc_mode="none", seg_token_id=tokenizer.id_of("[SEG]"))).save_pretrained(folder)
    tokenizer.save(folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("[LOC]", "<other>"))
    train(flags("--version", str(folder), "--epochs", "1", "--loc_mode", "global"))
    checkpoint = tmp_path / "run" / "ckpt_model"
    written = json.loads((checkpoint / "config.json").read_text())
    assert (written["loc_mode"], written["loc_token_id"]) == ("global", rows)
    assert read_weights(checkpoint)["language_model.lm_head.weight"].shape[0] == rows + 1
    assert len(load_tokenizer(checkpoint / "tokenizer")) == rows + 1


def test_overfitting_eight_samples(flags, tmp_path, tiny_corpus, tiny_base):
    """Train on eight clips, export, open the export, answer by generation: J&F above 0.9."""
    train(
        flags("--trainable", "all", "--lora_r", "0", "--epochs", "1", "--steps_per_epoch", "100", "--warmup_steps",
              "10", "--batch_size", "8", "--num_frames", "4", "--frame_sampling", "uniform", "--lr", "1e-3",
              "--beta2", "0.98", "--lr_schedule", "cosine", "--no-gradient_checkpointing", "--print_freq", "20")
    )  # fmt: skip
    folder = export(
        parse_export(
            ["--version", str(tiny_base), "--weight", str(tmp_path / "run" / "ckpt_model"), "--save_path",
             str(tmp_path / "exported"), "--precision", "fp32"]
        )
    )  # fmt: skip
    model, _ = load_any(folder)
    tokenizer = load_tokenizer(folder)
    sam, clip = Preprocessor(model.sam.pixel_rule), Preprocessor(model.config.pixel_rule)
    root = tiny_corpus / "GroundMoRe"
    scores, overlaps = [], []
    for record in GroundMoRe(root / "trainval_v2.json", root / "groundmore_videos"):
        chosen = uniform_frames(len(record.frame_paths), 4)
        frames = np.stack([read_frame(record.frame_paths[index]) for index in chosen])
        context = encode(model, clip(frames), sam(frames), (64, 64), (64, 64))
        (query,) = record.questions
        prompt = encode_prompt(groundmore_question(query.text), model.config.template, tokenizer)
        (said,) = answer(model, context, [prompt], Request(eos_token_id=tokenizer.eos_id))
        assert query.answer in tokenizer.decode(said.token_ids[0])
        truth = np.stack([read_target(record, query, int(index)) for index in chosen])
        j, f = score_clip(truth, (said.masks > 0).numpy())
        scores.append((j.mean() + f.mean()) / 2)
        inside = query.in_window(chosen)
        overlaps.append(j[inside].mean())
        assert ((said.loc_probs > 0.5).numpy() == inside).all()
    assert np.mean(scores) > 0.9 and np.mean(overlaps) > 0.8, (scores, overlaps)
