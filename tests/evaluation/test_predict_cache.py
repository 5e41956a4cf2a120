"""Reusing what was read of a video changes nothing: states, probabilities and masks, in fp32 and in bf16."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from datasets.conversation import Shown, groundmore_question
from datasets.tokenization import load_tokenizer
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predictor import MoraPredictor
from evaluation.protocol import make_protocol
from model import presets
from model.answering import Request, answer, read
from tests.model.fresh_session import reading
from utils.video import read_frame

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


@pytest.fixture(scope="module", params=["frame", "pooled"])
def model(request, tokenizer):
    torch.manual_seed(0)
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), visual_mode=request.param))
    attach_tokens(model, tokenizer)
    return model.eval()


def contexts(predictor, corpus):
    """(video, context) with each video encoded once."""
    for video in corpus:
        frames = [read_frame(path) for path in video.frame_paths[::6]]
        yield video, predictor.encode(predictor.prepare(video.video_id, frames, [0.0] * len(frames)))


def messages_of(video):
    return [groundmore_question(query.text, "") for query in video.questions]


@pytest.mark.parametrize("answer_mode", ["forced", "generate"])
def test_predictions_in_fp32(model, tokenizer, corpus, answer_mode):
    protocol = make_protocol(force_seg_token=True, force_loc_token=True, max_new_tokens=4, answer_mode=answer_mode)
    predictor = MoraPredictor(model, tokenizer, protocol)
    for video, context in contexts(predictor, corpus):
        with reading(cached=False):
            whole = predictor.answer(context, video.questions)
        for fast, slow in zip(predictor.answer(context, video.questions), whole):
            assert fast.answers == slow.answers and np.array_equal(fast.has_seg, slow.has_seg)
            assert slow.has_seg.all() and np.array_equal(fast.masks, slow.masks)
            assert np.abs(fast.loc_probs - slow.loc_probs).max() <= 1e-5


def test_masks_in_bf16_are_as_near_to_each_other_as_to_fp32(model, tokenizer, corpus):
    """A random model has logits around 0 everywhere, and whatever way they are computed, bf16 tosses a coin for some.
    The cache must not add to that."""

    def logits(dtype, cached):
        cast = copy.deepcopy(model).to(dtype)
        predictor = MoraPredictor(cast, tokenizer, make_protocol(answer_mode="forced"))
        every = []
        for video, context in contexts(predictor, corpus):
            prompts, answers = predictor._prompts(messages_of(video), Shown())
            with reading(cached):
                every += answer(cast, context, prompts, Request(forced=answers))
        return torch.stack([answer.masks for answer in every]), torch.stack([a.loc_probs for a in every])

    exact, cached, fresh = logits(torch.float32, False), logits(torch.bfloat16, True), logits(torch.bfloat16, False)
    assert (cached[0] - fresh[0]).norm() <= (fresh[0] - exact[0]).norm()
    assert (cached[0] - exact[0]).norm() <= 1.5 * (fresh[0] - exact[0]).norm()
    assert (cached[1] - fresh[1]).abs().max() <= 1e-2
    flips = [((one[0] > 0) != (other[0] > 0)).float().mean() for one, other in ((cached, fresh), (exact, fresh))]
    assert flips[0] <= flips[1] < 0.05
    # Away from 0 no pixel differs.
    firm = fresh[0].abs() > 0.1 * fresh[0].abs().max()
    assert firm.any() and torch.equal((cached[0] > 0)[firm], (fresh[0] > 0)[firm])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
def test_states_and_logits(model, tokenizer, corpus, dtype):
    cast = copy.deepcopy(model).to(dtype)
    predictor = MoraPredictor(cast, tokenizer, make_protocol(answer_mode="forced"))
    with torch.inference_mode():
        for video, context in contexts(predictor, corpus):
            prompts, answers = predictor._prompts(messages_of(video), Shown())
            ids = [torch.cat(pair) for pair in zip(prompts, answers)]
            with reading(cached=False):
                whole = read(cast, context, ids)
            for fast, slow in zip(read(cast, context, ids), whole):
                for name in ("states", "logits"):
                    one, other = getattr(fast, name).float(), getattr(slow, name).float()
                    assert (one - other).norm() <= TOLERANCE[dtype] * other.norm(), name


def test_masks_are_the_logits_above_the_threshold(model, tokenizer, corpus):
    """Also where several [SEG] are united, and whatever number of frames goes through at a time."""
    predictor = MoraPredictor(model, tokenizer, make_protocol())
    seg, loc = model.token_ids()
    (video, context), *_ = contexts(predictor, corpus)
    prompts, _ = predictor._prompts(messages_of(video), Shown())
    words = [torch.tensor([seg, 20, seg, loc]), torch.tensor([loc])]
    logits = answer(model, context, prompts, Request(forced=words))
    for threshold in (0.0, 0.1):
        for frames_per_pass in (None, 1, 3):
            request = Request(forced=words, mask_threshold=threshold, frames_per_pass=frames_per_pass)
            with torch.inference_mode():
                masks = answer(model, context, prompts, request)
            for one, other in zip(masks, logits):
                assert one.masks.dtype is torch.bool
                assert torch.equal(one.masks, other.masks > threshold)
                assert torch.equal(one.has_seg, other.has_seg)
    assert masks[0].masks.any() and masks[0].has_seg.all() and not masks[1].has_seg.any()
