"""Whatever happens inside one question is that question's record; what breaks the run ends it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from datasets.tokenization import load_tokenizer
from evaluation.engine.memory import is_device_lost, is_out_of_memory
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predict import DeviceLost, Options, predict_corpus
from evaluation.engine.predictor import MoraPredictor
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record
from model import presets
from tests.targets import read_target
from utils.errors import TokenizerError

PROTOCOL = make_protocol(num_frames=3, max_new_tokens=3, force_seg_token=True)
ALPHA, BETA = "alpha_0000_0004", "beta_0110_0114"
LOST = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"),
]


def run(corpus, predictor, folder):
    mark = open_run(folder, PROTOCOL.prediction_settings())
    return predict_corpus(corpus, predictor, folder, PROTOCOL, mark, options=Options(0, quiet=True))


def raising(error, *wanted):
    """A rule whose questions of these ids raise."""

    def rule(video, query, index):
        if query.query_id in wanted:
            raise error
        return read_target(video, query, index)

    return rule


@pytest.mark.parametrize(
    "error",
    [
        IndexError("piece id is out of range"),
        KeyError("x"),
        TypeError("TextInputSequence must be str"),
        AssertionError(),
        AttributeError("no"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        ZeroDivisionError("division by zero"),
        StopIteration(),
        RecursionError("too deep"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_error_is_its_questions_own(corpus, dummy_predictor, tmp_path, error):
    summary = run(corpus, dummy_predictor(corpus, PROTOCOL, raising(error, "1")), tmp_path)
    assert summary.written == 3 and [failure[:2] for failure in summary.failures] == [(ALPHA, "1")]
    record = read_record(tmp_path, ALPHA, "1")
    assert record.status == "failed" and record.reason.startswith(f"{type(error).__name__}: {error}")
    again = run(corpus, dummy_predictor(corpus, PROTOCOL, raising(error)), tmp_path)
    assert not again.failures and read_record(tmp_path, ALPHA, "1").ok


def test_a_bug_is_recorded_with_its_place(corpus, dummy_predictor, tmp_path):
    run(corpus, dummy_predictor(corpus, PROTOCOL, raising(TypeError("a bug"), "1")), tmp_path)
    assert "(test_question_errors.py, line " in read_record(tmp_path, ALPHA, "1").reason
    every = dummy_predictor(corpus, PROTOCOL, raising(TypeError("a bug"), "0", "1", "a", "b"))
    with pytest.raises(TypeError, match="a bug"):
        run(corpus, every, tmp_path / "other")
    assert len(list((tmp_path / "other").glob("records/*/*.json"))) == 4


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_end_from_outside_is_no_questions_failure(corpus, dummy_predictor, tmp_path, ending):
    with pytest.raises(ending):
        run(corpus, dummy_predictor(corpus, PROTOCOL, raising(ending(), "b")), tmp_path)
    assert not list(tmp_path.glob(f"records/{BETA}/*.json"))


@pytest.mark.parametrize("where", ["together", "alone", "encode"])
@pytest.mark.parametrize("error", LOST, ids=("accelerator", "runtime"))
def test_a_lost_device_ends_the_run_after_the_question_that_lost_it(corpus, dummy_predictor, tmp_path, where, error):
    predictor = dummy_predictor(corpus, PROTOCOL, raising(error, "1"))
    videos = corpus
    if where == "alone":
        videos = [dataclasses.replace(corpus[0], questions=corpus[0].questions[1:]), corpus[1]]
    if where == "encode":
        predictor.encode = lambda *_, **__: (_ for _ in ()).throw(error)
    with pytest.raises(DeviceLost, match="same command again"):
        run(videos, predictor, tmp_path)
    assert predictor.asked in ([], [["0", "1"]], [["1"]])  # nothing was asked after it
    assert "DeviceLost" in read_record(tmp_path, ALPHA, "1").reason or where == "encode"
    assert read_record(tmp_path, ALPHA, "1").status == "failed" and not list(tmp_path.glob(f"records/{BETA}/*"))


def test_memory_that_is_short_is_no_lost_device():
    for text in (
        "CUDA out of memory. Tried",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when",
    ):
        assert is_out_of_memory(RuntimeError(text)) and not is_device_lost(RuntimeError(text))
    assert not is_device_lost(ValueError("CUDA error: device-side assert triggered"))
    assert not is_device_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


def build(tokenizer, rows):
    sizes = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    model = presets.build(presets.tiny(vocab_size=rows, loc_mode="none", **sizes))
    attach_tokens(model, tokenizer)
    return model.eval()


def test_a_generated_id_that_the_tokenizer_lacks(tokenizer, corpus, tmp_path):
    model = build(tokenizer, len(tokenizer) + 30)
    with torch.no_grad():  # the model says nothing but the last id
        model.language_model.lm_head.weight.zero_()
    model.language_model.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor([-1]), 1.0))
    summary = run(corpus, MoraPredictor(model, tokenizer, PROTOCOL), tmp_path)
    assert len(summary.failures) == 4
    reason = read_record(tmp_path, ALPHA, "0").reason
    assert reason.startswith("TokenizerError") and f"token id {len(tokenizer) + 29} was written" in reason


def test_an_id_without_an_embedding(project_root, tokenizer, corpus, tmp_path):
    larger = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    larger.add_tokens(["ball"])  # only question 1 has it
    model = build(tokenizer, len(tokenizer))
    summary = run(corpus, MoraPredictor(model, larger, PROTOCOL), tmp_path)
    assert [failure[:2] for failure in summary.failures] == [(ALPHA, "1")]
    assert f"ids {len(tokenizer)} have no row in the word embeddings ({len(tokenizer)} rows)" in summary.failures[0][2]
    model.config.text_config.vocab_size = tokenizer.id_of("[SEG]")
    with pytest.raises(TokenizerError, match="embeddings"):  # no question could be answered
        MoraPredictor(model, tokenizer, PROTOCOL)


def test_text_that_utf8_cannot_hold(tokenizer, corpus, tmp_path):
    model, half = build(tokenizer, len(tokenizer)), "\udce9"
    questions = (dataclasses.replace(corpus[0].questions[0], text=f"What is {half}?"), corpus[0].questions[1])
    video = dataclasses.replace(corpus[0], video_id=f"caf{half}_0000_0004", questions=questions)
    summary = run([video], MoraPredictor(model, tokenizer, PROTOCOL), tmp_path)
    assert summary.written == 1
    assert "U+DCE9 at character 8" in read_record(tmp_path, video.video_id, "0").reason
    for path in tmp_path.glob("records/*/*.json"):
        assert json.loads(path.read_bytes())["video_id"] == video.video_id


def test_a_written_answer_that_utf8_cannot_hold(corpus, dummy_predictor, tmp_path):
    predictor = dummy_predictor(corpus, PROTOCOL, raising(None))
    answer = predictor.answer
    predictor.answer = lambda *a, **k: [dataclasses.replace(p, answers=["a\ud800"]) for p in answer(*a, **k)]
    assert run(corpus, predictor, tmp_path).written == 4
    assert read_record(tmp_path, BETA, "a").answers == ["a\ud800"]


def test_what_cannot_be_recorded_is_a_failure(corpus, dummy_predictor, tmp_path):
    predictor = dummy_predictor(corpus, PROTOCOL, raising(None))
    answer = predictor.answer
    predictor.answer = lambda *a, **k: [dataclasses.replace(p, masks=p.masks[:, 0]) for p in answer(*a, **k)]
    summary = run(corpus, predictor, tmp_path)
    assert summary.written == 0 and len(summary.failures) == 4
    assert "two dimensions" in read_record(tmp_path, ALPHA, "0").reason
