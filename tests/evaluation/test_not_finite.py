"""A model whose numbers are NaN or infinite must not score: masks of NaN are empty, and silence scores."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from datasets.tokenization import load_tokenizer
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predict import Options, predict_corpus
from evaluation.engine.predictor import MoraPredictor
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record
from model import presets
from tests.targets import read_target

ALPHA = "alpha_0000_0004"
FORCED = {"num_frames": 3, "max_new_tokens": 3, "force_seg_token": True, "force_loc_token": True}


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


@pytest.fixture(scope="module", params=["global", "frame"])
def model(tokenizer, request):
    sizes = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    visual = "frame" if request.param == "frame" else "video"
    config = presets.tiny(vocab_size=len(tokenizer), loc_mode=request.param, visual_mode=visual, **sizes)
    model = presets.build(config)
    attach_tokens(model, tokenizer)
    return model.eval()


def run(model, tokenizer, corpus, folder, **fields):
    """Predict the first clip; the records of its two questions."""
    protocol = make_protocol(**{**FORCED, **fields})
    predictor = MoraPredictor(model, tokenizer, protocol)
    mark = open_run(folder, protocol.prediction_settings())
    predict_corpus([corpus[0]], predictor, folder, protocol, mark, options=Options(0, quiet=True))
    return [read_record(folder, ALPHA, name) for name in "01"]


@contextmanager
def broken(module, value):
    """Within, what a module gives holds one value that is not finite."""

    def spoil(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        first = first.clone()
        first[..., -1] = value
        return (first, *output[1:]) if isinstance(output, tuple) else first

    handle = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


PLACES = {
    "logits of a generated token": lambda model: model.language_model.lm_head,
    "[SEG] states": lambda model: model.language_model.model.norm,
    "prompt embeddings": lambda model: model.text_hidden_fcs[0],
    "mask logits": lambda model: model.sam.mask_decoder,
    "[LOC] logits": lambda model: model.loc_head,
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_a_failure_that_names_it(model, tokenizer, corpus, tmp_path, place, value):
    mode = "forced" if place == "[SEG] states" else "generate"  # generating would notice the logits first
    with broken(PLACES[place](model), value):
        records = run(model, tokenizer, corpus, tmp_path, answer_mode=mode)
    assert [record.status for record in records] == ["failed"] * 2
    for record in records:
        assert record.reason.startswith("NumericalError: not finite (NaN or infinity)") and place in record.reason
    assert all(record.ok for record in run(model, tokenizer, corpus, tmp_path, answer_mode=mode))


def test_a_bad_question_does_not_fail_the_others(model, tokenizer, corpus, tmp_path):
    word = tokenizer.encode("ball")[-1]  # only question 1 has it
    asked = [query.text for query in corpus[0].questions]
    assert [word in tokenizer.encode(text) for text in asked] == [False, True]

    def spoil(module, inputs, output):
        return output.masked_fill((inputs[0] == word)[..., None], float("nan"))

    handle = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        records = run(model, tokenizer, corpus, tmp_path)
    finally:
        handle.remove()
    assert [record.status for record in records] == ["ok", "failed"]
    assert "NumericalError" in records[1].reason


def test_a_head_that_is_not_used_does_not_matter(model, tokenizer, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "evaluation.engine.predictor.forced_answer", lambda *_: "It is [SEG], [LOC]."
    )  # said all the same
    with broken(model.loc_head, float("nan")):
        records = run(model, tokenizer, corpus, tmp_path, seg_only=True, force_loc_token=False, answer_mode="forced")
    assert all(record.ok and record.loc_probs is None for record in records)


def test_half_precision_that_overflows(model, tokenizer, corpus, tmp_path):
    half = copy.deepcopy(model)
    with torch.no_grad():
        half.text_hidden_fcs[0][2].bias.fill_(6e4)
        half.text_hidden_fcs[0][2].weight.zero_()
    half = half.to(torch.float16)
    half.text_hidden_fcs[0].append(torch.nn.Linear(half.config.out_dim, half.config.out_dim).half())
    with torch.no_grad():
        half.text_hidden_fcs[0][-1].weight.fill_(1.0)  # finite, as all weights are; the sum is not
    records = run(half, tokenizer, corpus, tmp_path)
    assert all(record.status == "failed" and "prompt embeddings" in record.reason for record in records)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_a_record_holds_probabilities_only(corpus, dummy_predictor, tmp_path, value):
    protocol = make_protocol(num_frames=3)
    predictor = dummy_predictor(
        corpus, protocol, lambda v, q, i: read_target(v, q, i), lambda v, q, i: value if q.query_id == "1" else 0.5
    )
    mark = open_run(tmp_path, protocol.prediction_settings())
    summary = predict_corpus(corpus, predictor, tmp_path, protocol, mark, options=Options(quiet=True))
    assert [failure[:2] for failure in summary.failures] == [(ALPHA, "1")] and summary.written == 3
    assert "[LOC] probabilities" in read_record(tmp_path, ALPHA, "1").reason
    for path in tmp_path.glob("records/*/*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert np.isfinite(read_record(tmp_path, ALPHA, "0").loc_probs).all()
