"""The program: a tiny random model over a corpus, files and exit codes, resume, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.corpora.groundmore import GroundMoRe
from datasets.tokenization import load_tokenizer
from evaluate_groundmore import main
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predictor import MoraPredictor, control_order
from evaluation.protocol import make_protocol
from evaluation.records import read_record, write_record
from evaluation.settings import parse_arguments, protocol_of
from model import presets
from utils.errors import ConfigError, TokenizerError
from utils.masks import decode_rle
from utils.video import read_frame


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer):
    fields = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), **fields))
    attach_tokens(model, tokenizer)
    return model


@pytest.fixture(scope="module")
def model_folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def flags(model_folder, corpus_paths, tmp_path):
    """The README's command with the paths of this test."""
    return [
        "--version", str(model_folder), "--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]),
        "--output_dir", str(tmp_path / "out"), "--result_file", str(tmp_path / "result.txt"), "--num_frames", "6",
        "--force_seg_token", "--force_loc_token", "--use_loc_refine", "--loc_threshold", "0.5", "--workers", "0",
        "--max_new_tokens", "4", "--precision", "fp32", "--device", "cpu",
    ]  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_program(flags, tmp_path, capsys):
    assert main(flags) == 0
    printed = capsys.readouterr().out
    for word in ("protocol groundmore", "num_frames = 6", "Overall", "Counterfactual", "all_empty", "right object"):
        assert word in printed
    out = tmp_path / "out"
    assert len(list((out / "records").rglob("*.json"))) == 4
    record = read_record(out, "beta_0110_0114", "a")
    assert record.ok and record.forced_seg and record.forced_loc and len(record.masks) == 6 == len(record.loc_probs)
    assert decode_rle(record.masks[0]).shape == (24, 32)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["questions_ok"] == 4 and summary["counts"]["questions_with_forced_seg"] == 4
    assert summary["run"]["settings"]["protocol"]["num_frames"] == 6
    assert "Final Descriptive JF" in (tmp_path / "result.txt").read_text()
    page = (out / "report.html").read_text()
    assert "What moves first?" in page and summary["run"]["fingerprint"] in page

    before = tree(out)
    assert main(flags) == 0
    assert "kept 4 recorded earlier" in capsys.readouterr().out
    assert tree(out) == before
    assert sorted(path.name for path in (out / "scores").iterdir()) == ["alpha_0000_0004.json", "beta_0110_0114.json"]


def test_records_are_scored_again_under_another_threshold(flags, corpus_paths, tmp_path, capsys):
    assert main([*flags, "--predict_only"]) == 0
    assert not (tmp_path / "out" / "summary.json").exists()
    score = [
        "--score_only", "--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]),
        "--output_dir", str(tmp_path / "out"), "--pictures", "0", "--workers", "0",
    ]  # fmt: skip
    assert main([*score, "--use_loc_refine", "--loc_threshold", "1.0"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["protocol"]["loc_threshold"] == 1.0 and summary["protocol"]["force_seg_token"] is True
    rows = summary["rows"]
    assert rows["model"]["table"]["Overall"]["JF"] == rows["all_empty"]["table"]["Overall"]["JF"]
    assert (tmp_path / "out" / "result.txt").exists()
    assert main([*score, "--num_frames", "7"]) == 2
    assert "--num_frames: 7, but the records were made with 6" in capsys.readouterr().err


def test_other_settings_in_the_same_folder(flags, capsys):
    assert main([*flags, "--predict_only"]) == 0
    assert main([*flags, "--no-force_loc_token"]) == 2
    assert "protocol.force_loc_token: True -> False" in capsys.readouterr().err
    assert main([*flags, "--no-force_loc_token", "--overwrite", "--predict_only"]) == 0


def test_a_question_that_fails_ends_non_zero(flags, tmp_path, monkeypatch, capsys):
    answer = MoraPredictor.answer

    def failing(self, context, questions, frames_per_pass=None):
        if any(query.query_id == "1" for query in questions):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB. GPU 0 has 17.3 MiB free")
        return answer(self, context, questions, frames_per_pass)

    monkeypatch.setattr(MoraPredictor, "answer", failing)
    assert main(flags) == 1
    printed = capsys.readouterr().out
    assert "FAILED: 1 questions" in printed and "OutOfMemoryError: CUDA out of memory\n" in printed
    assert "# questions 4, failed 1 (each counts as 0)" in (tmp_path / "result.txt").read_text()


def test_a_full_disk_keeps_the_records_written_so_far(flags, tmp_path, monkeypatch, capsys):
    done = []

    def filling(folder, record):
        if len(done) == 2:
            raise OSError(28, "No space left on device")
        done.append(record.query_id)
        write_record(folder, record)

    monkeypatch.setattr("evaluation.engine.predict.write_record", filling)
    assert main(flags) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(flags) == 0
    assert "predicted 2 questions, kept 2 recorded earlier" in capsys.readouterr().out


def test_limit_video_and_question(flags, tmp_path, capsys):
    assert main([*flags, "--limit", "1", "--pictures", "0"]) == 0
    assert [path.name for path in (tmp_path / "out" / "records").iterdir()] == ["alpha_0000_0004"]
    assert main([*flags, "--video", "beta_0110_0114", "--pictures", "0"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"]["questions"] == 2 and summary["run"]["selection"]["video"] == ["beta_0110_0114"]
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out" / "records" / "beta_0110_0114").iterdir()}
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "other")
    assert main([*flags, "--question", "b", "--question", "1", "--pictures", "0"]) == 0
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert summary["counts"]["questions"] == 2 and summary["run"]["selection"]["question"] == ["b", "1"]
    # A question alone is asked with those of its clip, so its record is the same.
    assert (tmp_path / "other" / "records" / "beta_0110_0114" / "b.json").read_bytes() == whole["b.json"]
    assert not (tmp_path / "other" / "records" / "beta_0110_0114" / "a.json").exists()
    capsys.readouterr()
    assert main([*flags, "--video", "alpha_0000_0004", "--question", "b"]) == 2
    assert "--question b: not in the videos named" in capsys.readouterr().err


def test_every_flag_mistake_is_listed_at_once(capsys, tmp_path):
    arguments = ["--meta_file", str(tmp_path / "no.json"), "--video_root", str(tmp_path / "no"), "--limit", "0"]
    if not torch.cuda.is_available():
        arguments += ["--device", "cuda"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    for word in ("--meta_file", "--video_root", "--limit", "--version", "no such file"):
        assert word in error
    assert torch.cuda.is_available() or "torch sees no GPU" in error


def test_fp16_without_a_gpu_and_both_steps_only(flags, capsys):
    assert main([*flags, "--precision", "fp16", "--predict_only", "--score_only"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert main([*flags, "--precision", "fp16"]) == 2
    assert "fp16 needs a GPU" in capsys.readouterr().err


def test_bad_models_and_tokens(flags, model, tokenizer, tmp_path, capsys):
    assert main([*flags, "--version", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    no_loc = presets.build(presets.tiny(vocab_size=len(tokenizer), clip_layers=1, llm_layers=1, loc_mode="none"))
    with pytest.raises(ConfigError, match=r"\[LOC\] head"):
        MoraPredictor(no_loc, tokenizer, make_protocol(loc_refine=True))
    attach_tokens(no_loc, tokenizer)
    assert no_loc.config.loc_token_id is None
    no_loc.config.seg_token_id += 1
    with pytest.raises(TokenizerError, match="saved with the weights"):
        attach_tokens(no_loc, tokenizer)
    no_loc.config.seg_token = "[NONE]"
    with pytest.raises(TokenizerError, match="NONE"):
        MoraPredictor(no_loc, tokenizer, make_protocol())


def test_score_only_before_anything_was_predicted(corpus_paths, tmp_path, capsys):
    arguments = ["--score_only", "--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1])]
    assert main([*arguments, "--output_dir", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_flags_reach_the_protocol(flags):
    protocol = protocol_of(parse_arguments([*flags, "--protocol", "groundmore_2025", "--frame_control", "shuffle"]))
    expected = make_protocol(
        "groundmore_2025", num_frames=6, max_new_tokens=4, force_seg_token=True, force_loc_token=True, loc_refine=True,
        frame_control="shuffle",
    )  # fmt: skip
    assert protocol == expected
    every = {field.name for field in dataclasses.fields(protocol)}
    assert {"num_frames", "loc_refine", "seg_only"} <= every


def test_frame_control_disturbs_only_what_the_language_model_sees(model, tokenizer, corpus):
    video = corpus[0]
    frames = [read_frame(path) for path in video.frame_paths[:6]]
    predictors = {
        control: MoraPredictor(model, tokenizer, make_protocol(frame_control=control))
        for control in ("none", "repeat_first", "shuffle")
    }
    contexts = {
        name: each.encode(each.prepare(video.video_id, frames, [0.0] * len(frames)))
        for name, each in predictors.items()
    }
    for control in ("repeat_first", "shuffle"):
        assert torch.equal(*(contexts[name].sam_embeddings.parts[0] for name in (control, "none")))
        assert not torch.equal(contexts[control].visual.tokens, contexts["none"].visual.tokens)
    order = control_order("shuffle", 6, "a")
    assert sorted(order) == list(range(6)) and list(order) != list(range(6))
    assert np.array_equal(order, control_order("shuffle", 6, "a"))
    assert {tuple(control_order("shuffle", 2, str(name))) for name in range(9)} == {(1, 0)}
    assert control_order("repeat_first", 3, "a").tolist() == [0, 0, 0]
    assert control_order("shuffle", 1, "a").tolist() == [0]


@pytest.mark.parametrize(
    "prompt, expected", [("groundmore", "Please respond with masks."), ("referring", "Can you segment the ")]
)
def test_texts_are_asked_as_the_protocol_says(model, tokenizer, corpus, monkeypatch, prompt, expected):
    video = corpus[0]
    asked = []
    monkeypatch.setattr("model.answering.answer", lambda model, context, prompts, how: asked.extend(prompts) or [])
    predictor = MoraPredictor(model, tokenizer, make_protocol(prompt=prompt))
    predictor.answer(SimpleNamespace(times=[0.0]), video.questions)
    assert len(asked) == len(video.questions)
    for query, ids in zip(video.questions, asked):
        words = tokenizer.decode(ids[ids >= 0].tolist())
        assert expected in words and query.text.lower().split()[0] in words.lower()


def test_questions_together_equal_questions_alone(model, tokenizer, corpus):
    video = corpus[1]
    frames = [read_frame(path) for path in video.frame_paths[::4]]
    for fields in ({}, {"answer_mode": "forced"}):
        protocol = make_protocol(force_seg_token=True, force_loc_token=True, max_new_tokens=4, **fields)
        predictor = MoraPredictor(model, tokenizer, protocol)
        prepared = predictor.prepare(video.video_id, frames, [0.0] * len(frames))
        together = predictor.answer(predictor.encode(prepared), video.questions)
        for query, prediction in zip(video.questions, together):
            alone = predictor.answer(predictor.encode(prepared), [query])[0]
            assert alone.answers == prediction.answers and "[SEG]" in alone.answers[0]
            assert np.allclose(alone.loc_probs, prediction.loc_probs, atol=1e-5)
            assert (alone.masks != prediction.masks).mean() < 1e-3
            assert alone.has_seg.all() and alone.masks.shape == (6, 24, 32)


def test_a_model_that_says_nothing_has_no_masks_and_no_times(model, tokenizer, corpus):
    video = corpus[0]
    frames = [read_frame(path) for path in video.frame_paths[:3]]
    predictor = MoraPredictor(model, tokenizer, make_protocol(max_new_tokens=1))
    prepared = predictor.prepare(video.video_id, frames, [0.0] * len(frames))
    prediction = predictor.answer(predictor.encode(prepared), video.questions[:1])[0]
    assert not prediction.has_seg.any() and not prediction.masks.any() and prediction.loc_probs is None
    silent = MoraPredictor(model, tokenizer, make_protocol(seg_only=True, force_seg_token=True, max_new_tokens=1))
    prediction = silent.answer(silent.encode(prepared), video.questions[:1])[0]
    assert prediction.has_seg.all() and prediction.forced_seg and prediction.loc_probs is None


def test_sigkill_and_restart(flags, tmp_path, project_root):
    """A real process, killed after its first record, leaves whole records; a second run completes them."""
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "evaluate_groundmore.py", *flags, "--predict_only"]
    process = subprocess.Popen(command, cwd=project_root, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("records/*/*.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in out.glob("records/*/[!.]*.json"):
        json.loads(path.read_text())
    assert main([*flags, "--predict_only"]) == 0
    interrupted = {name: data for name, data in tree(out).items() if not Path(name).name.startswith(".")}
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "whole")
    assert main([*flags, "--predict_only"]) == 0
    assert interrupted == tree(tmp_path / "whole")


def test_the_real_mini_corpus(shared_data, flags, tmp_path):
    real = shared_data / "groundmore_real_mini"
    flags += ["--meta_file", str(real / "groundmore_test.json"), "--video_root", str(real / "groundmore_videos")]
    assert main(flags) == 0
    corpus = GroundMoRe(real / "groundmore_test.json", real / "groundmore_videos")
    for query in corpus[0].questions:
        record = read_record(tmp_path / "out", corpus[0].video_id, query.query_id)
        assert record.ok and len(record.masks) == 6
        assert all(decode_rle(rle).shape == (360, 640) for rle in record.masks)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"]["questions_ok"] == 4
    table = summary["rows"]["model"]["table"]
    assert [table[name]["N"] for name in ("Causal", "Sequential", "Counterfactual", "Descriptive")] == [1] * 4
