"""Out of memory: half the questions, then half the frames, and a record when nothing helps."""

from __future__ import annotations

import logging

import pytest
import torch

from evaluation.engine import memory
from evaluation.engine.memory import is_out_of_memory, reason_of, with_fewer_frames
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record
from tests.targets import read_target

PROTOCOL = make_protocol(num_frames=8)


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 17.3 MiB free.")


@pytest.fixture
def small_predictor(corpus, dummy_predictor):
    """Predictors with room for so many questions, and so many frames of one question or of the encoder, at a time."""

    def make(questions: int, frames: int = 8, encoder_frames: int = 8):
        class Small(dummy_predictor):
            def __init__(self):
                super().__init__(corpus, PROTOCOL, lambda video, query, index: read_target(video, query, index))
                self.passes = []

            def encode(self, prepared, frames_per_pass=None):
                self.passes.append(("encode", frames_per_pass))
                return super().encode(prepared) if (frames_per_pass or 8) <= encoder_frames else out_of_memory()

            def answer(self, context, asked, frames_per_pass=None):
                self.passes.append((len(asked), frames_per_pass))
                if len(asked) > questions or (frames_per_pass or 8) > frames:
                    out_of_memory()
                return super().answer(context, asked)

        return Small()

    return make


def run(corpus, predictor, folder):
    return predict_corpus(corpus, predictor, folder, PROTOCOL, open_run(folder, PROTOCOL.prediction_settings()))


def test_half_the_questions_then_half_the_frames(corpus, small_predictor, tmp_path):
    predictor = small_predictor(1, frames=2, encoder_frames=4)
    assert run([corpus[0]], predictor, tmp_path).written == 2
    halving = [(1, None), (1, 4), (1, 2)]
    assert predictor.passes == [("encode", None), ("encode", 4), (2, None), *halving, *halving]
    assert read_record(tmp_path, "alpha_0000_0004", "1").ok


def test_records_do_not_tell_that_memory_was_short(corpus, small_predictor, tmp_path):
    run(corpus, small_predictor(2), tmp_path / "large")
    run(corpus, small_predictor(1, 1, 1), tmp_path / "small")
    for path in sorted((tmp_path / "large").rglob("*.json")):
        assert path.read_bytes() == (tmp_path / "small" / path.relative_to(tmp_path / "large")).read_bytes()


def test_when_nothing_helps_the_question_fails_and_the_run_goes_on(corpus, small_predictor, tmp_path):
    predictor = small_predictor(0)
    summary = run([corpus[0]], predictor, tmp_path)
    reason = "OutOfMemoryError: CUDA out of memory"  # not how much was free, which another run would not repeat
    assert summary.failures == [("alpha_0000_0004", query, reason) for query in "01"]
    assert read_record(tmp_path, "alpha_0000_0004", "0").reason == reason
    assert [frames for _, frames in predictor.passes] == [None, None, *[None, 4, 2, 1] * 2]
    predictor = small_predictor(2, encoder_frames=0)
    assert len(run([corpus[0]], predictor, tmp_path / "encoder").failures) == 2
    assert predictor.passes == [("encode", frames) for frames in (None, 4, 2, 1)]


def test_it_is_said_once(corpus, small_predictor, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(memory, "_warned", False)
    with caplog.at_level(logging.WARNING):
        run(corpus, small_predictor(1, 2, 2), tmp_path)
    assert [record.message[:13] for record in caplog.records if "memory" in record.message] == ["out of memory"]


def test_other_errors_are_not_tried_with_less(corpus, dummy_predictor, tmp_path):
    calls = []

    def failing(limit):
        calls.append(limit)
        raise RuntimeError("an index is wrong")

    with pytest.raises(RuntimeError, match="an index"):
        with_fewer_frames(failing, 8)
    assert calls == [None]


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    assert reason_of(MemoryError()) == "MemoryError: out of memory"
    assert reason_of(ValueError("a. b")) == "ValueError: a. b"


def test_real_memory_of_this_machine():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
