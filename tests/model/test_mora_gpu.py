"""The same network on a CUDA device."""

import pytest
import torch

from model import answering
from model.answering import Request
from utils.batch import MoraBatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODES = [("video", "global"), ("pooled", "global"), ("frame", "frame")]


@pytest.mark.parametrize("visual_mode, loc_mode", MODES)
def test_equals_the_cpu(worlds, visual_mode, loc_mode, cached):
    here = worlds.model(visual_mode=visual_mode, loc_mode=loc_mode)
    there = worlds.model(visual_mode=visual_mode, loc_mode=loc_mode).to("cuda")
    video = worlds.video(1, 3, segs=[1, 2, 0])
    batch = MoraBatch([video])
    one, other = here(batch, return_predictions=True), there(batch.to("cuda"), return_predictions=True)
    torch.testing.assert_close(one["loss"], other["loss"].cpu(), atol=1e-3, rtol=1e-3)
    assert all(p["mask_logits"].is_cuda for p in other["predictions"][0])
    prompts = [question.input_ids[:6] for question in video.questions]
    options = {"max_new_tokens": 3, "force_seg_token": True, "force_loc_token": True}
    answers = []
    for model, device in ((here, "cpu"), (there, "cuda")):
        moved = batch.to(device).videos[0]
        context = answering.encode(model, moved.clip_pixels, moved.sam_pixels, video.resized_size, video.original_size)
        answers.append(answering.answer(model, context, prompts, Request(**options)))
    for a, b in zip(*answers):
        assert a.token_ids == b.token_ids and b.masks.is_cuda
        torch.testing.assert_close(a.masks, b.masks.cpu(), atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(a.loc_probs, b.loc_probs.cpu(), atol=1e-3, rtol=1e-3)


def test_bfloat16_training_step(worlds):
    model = worlds.model().to("cuda", torch.bfloat16).train()
    model.set_gradient_checkpointing(True)
    losses = model(MoraBatch([worlds.video(1, 3, segs=[1, 2])]).to("cuda", torch.bfloat16))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
