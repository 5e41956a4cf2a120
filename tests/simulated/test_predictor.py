"""The predictor, SAM's routes and the training pictures on the simulated device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.sample import Question
from datasets.tokenization import load_tokenizer
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predictor import MoraPredictor
from evaluation.protocol import make_protocol
from model import presets
from model.segmenters import sam_attention
from tests.model.test_sam_encoder import CASES, build, frames
from tests.simulated.device import SimulatedTensor
from training.pictures import SamplePicture
from utils.batch import MoraBatch

QUESTIONS = [Question(str(n), text, is_question=True) for n, text in enumerate(("What moves?", "What is hit first?"))]


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


def tiny(tokenizer, dtype, **fields):
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), llm_layers=2, clip_layers=1, **fields), seed=3)
    attach_tokens(model, tokenizer)
    return model.eval().to(dtype)


@pytest.mark.parametrize("answer_mode", ["forced", "generate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_predicts_from_frames(device, tokenizer, dtype, answer_mode):
    """From uint8 frames to masks: what is fetched is what was asked for, and the pixels go up without a wait."""
    frames = list(np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), dtype=np.uint8))
    protocol = make_protocol(
        answer_mode=answer_mode, force_seg_token=True, force_loc_token=True, max_new_tokens=3, frame_control="shuffle"
    )
    host = MoraPredictor(tiny(tokenizer, dtype), tokenizer, protocol)
    there = MoraPredictor(tiny(tokenizer, dtype).to("simulated"), tokenizer, protocol)
    for limit in (None, 3):
        prepared = there.prepare("video", frames, [0.0] * len(frames))
        there.encode(prepared, limit)  # what is kept for the next video is made once
        device.forget()
        context = there.encode(prepared, limit)
        assert device.reads == [] and device.uploads == []
        answers = there.answer(context, QUESTIONS, limit)
        tokens = [read for read in device.reads if "sessions.py" in read]
        assert len(tokens) <= 3 and bool(tokens) == (answer_mode == "generate")
        assert len(device.reads) - len(tokens) == 1 + 2 * len(QUESTIONS), device.reads  # finite?, masks, probabilities
        expected = host.answer(host.encode(host.prepare("video", frames, [0.0] * len(frames)), limit), QUESTIONS, limit)
        for actual, wanted in zip(answers, expected):
            assert actual.masks.shape == (4, 24, 32) and actual.has_seg.all()
            if dtype == torch.float32:
                assert actual.answers == wanted.answers
                assert (actual.masks != wanted.masks).mean() < 1e-2
                assert np.abs(actual.loc_probs - wanted.loc_probs).max() < 1e-4


def test_a_training_picture(device, worlds, tokenizer):
    """A picture costs a few waits, none of them in the step itself."""
    model = worlds.model().to("simulated").train()
    batch = MoraBatch([worlds.video(1, 3, segs=[1, 2])])
    moved = batch.to("simulated")
    device.forget()
    output = model(moved, return_predictions=True)
    assert device.reads == []
    draw = SamplePicture(tokenizer, model.sam.pixel_rule)
    picture = draw(moved, output)
    assert len(device.reads) <= 1 + 4 * 2, device.reads  # frames; of a question its logits, masks, times and window
    expected = draw(batch, worlds.model().train()(batch, return_predictions=True))
    assert picture.dtype == np.uint8 and picture.shape == expected.shape
    assert (picture != expected).mean() < 0.01


@pytest.mark.parametrize("case", ["padded windows", "no window", "no positions"])
def test_sam_on_the_routes_of_cuda(device, case):
    """Windows by folding, global layers by a bias: what a CUDA device does where flex attention does not compile."""
    here, there = build(**CASES[case]), build(**CASES[case]).to("simulated")
    there.fast_encoder.routes = {"simulated": (sam_attention.attend_folded, sam_attention.attend_biased)}
    resized = (here.image_size // 2, here.image_size)
    pixels = frames(here, 2, resized)
    with torch.no_grad():
        there.encode(pixels.to("simulated"), resized)
        device.forget()
        actual = there.encode(pixels.to("simulated", non_blocking=True), resized)
        assert device.reads == [] and device.uploads == []
        expected = here.encode(pixels, resized)
        torch.testing.assert_close(actual.parts[0].cpu(), expected.parts[0], atol=1e-4, rtol=1e-4)
        prompts = torch.randn(2, here.embed_dim)
        device.forget()
        masks = there.to_frames(there.decode(actual, prompts.to("simulated", non_blocking=True)), resized, (20, 30))
        assert isinstance(masks, SimulatedTensor) and device.reads == [] and device.uploads == []
        wanted = here.to_frames(here.decode(expected, prompts), resized, (20, 30))
        torch.testing.assert_close(masks.cpu(), wanted, atol=1e-3, rtol=1e-3)
