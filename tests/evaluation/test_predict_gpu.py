"""The predictor on a GPU: what workers prepare there, and what it predicts, is what the CPU predicts."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from datasets.tokenization import load_tokenizer
from evaluation.engine.memory import free_memory, is_out_of_memory
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predictor import MoraPredictor
from evaluation.protocol import make_protocol
from model import presets
from utils.video import read_frame

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def predictors(project_root):
    """One on the CPU, one on the GPU, of the same fp32 weights."""
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    model = presets.build(presets.tiny(vocab_size=len(tokenizer)))
    attach_tokens(model, tokenizer)
    models = model.eval(), copy.deepcopy(model).eval().cuda()
    return [MoraPredictor(each, tokenizer, make_protocol(answer_mode="forced")) for each in models]


def test_equals_the_cpu(predictors, corpus):
    frames = [read_frame(path) for path in corpus[0].frame_paths[::4]]
    ready = [each.prepare("v", frames, [0.0] * len(frames)) for each in predictors]
    assert ready[1].sam.is_pinned() and torch.equal(ready[0].sam, ready[1].sam)
    answers = [each.answer(each.encode(part), corpus[0].questions) for each, part in zip(predictors, ready)]
    for host, device in zip(*answers):
        assert (host.masks != device.masks).mean() < 1e-2 and host.answers == device.answers
        assert np.abs(host.loc_probs - device.loc_probs).max() < 1e-3


def test_frames_are_prepared_in_threads(predictors, corpus):
    frames = [read_frame(path) for path in corpus[0].frame_paths[::4]]
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(predictors[1].prepare("v", frames, [0.0] * len(frames))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4 and all(torch.equal(each.clip, done[0].clip) for each in done)


def test_fewer_frames_per_pass_give_the_same(predictors, corpus):
    frames = [read_frame(path) for path in corpus[0].frame_paths[::4]]
    predictor = predictors[1]
    whole, parts = (predictor.encode(predictor.prepare("v", frames, [0.0] * len(frames)), limit) for limit in (None, 2))
    assert torch.allclose(whole.sam_embeddings.parts[0], parts.sam_embeddings.parts[0], atol=1e-4)
    assert torch.allclose(whole.visual.tokens, parts.visual.tokens, atol=1e-4)


def test_a_full_gpu_is_known_and_can_be_emptied():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)
    free_memory()
