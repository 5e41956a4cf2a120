"""The model on the simulated device: no tensor leaves it by accident, and the host waits no more than it must."""

from __future__ import annotations

import pytest
import torch

from model import answering
from model.adapters import add_lora, set_trainable
from tests.simulated.device import SimulatedTensor
from utils.batch import IGNORE_INDEX, MoraBatch

MODES = [
    ("frame", "none"), ("frame", "frame"), ("frame", "global"), ("pooled", "none"), ("pooled", "global"),
    ("video", "none"), ("video", "global"),
]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]

in_both_precisions = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])


@pytest.fixture(scope="module")
def models(worlds):
    """(model, the same on the device, both in eval mode) by mode and precision, made once."""
    made = {}

    def get(mode: tuple[str, str], dtype: torch.dtype):
        if (mode, dtype) not in made:
            here, there = (worlds.model(visual_mode=mode[0], loc_mode=mode[1]).to(dtype).eval() for _ in range(2))
            made[mode, dtype] = here, there.to("simulated")
            assert all(isinstance(t, SimulatedTensor) for t in (*there.parameters(), *there.buffers()))
        return made[mode, dtype]

    return get


@pytest.fixture(params=MODES, ids="-".join)
def pair(request, device, models, dtype):
    """A model of each mode on the CPU and on the device."""
    here, there = models(request.param, dtype)
    yield here, there
    for model in (here, there):
        model.zero_grad()
        model.eval().set_gradient_checkpointing(False)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare what the device computed with what the CPU did."""
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(actual.detach().cpu().float(), expected.float(), atol=tolerance, rtol=tolerance)


@in_both_precisions
def test_training_step(device, worlds, pair, dtype):
    """The host waits for no result, forward and backward; decoder layers are recomputed."""
    batch = MoraBatch([worlds.video(1, 3, segs=[1, 2, 0]), worlds.video(2, 1, segs=[1])])  # and a picture
    host, model = pair
    model.train().set_gradient_checkpointing(True)
    moved = batch.to("simulated", dtype)
    assert moved.videos[0].questions[0].masks.device.type == "simulated"
    device.forget()
    losses = model(moved, return_predictions=True)
    losses["loss"].backward()
    assert device.reads == []
    assert all(isinstance(value, SimulatedTensor) for name, value in losses.items() if name.endswith("loss"))
    for parameter in model.parameters():
        assert parameter.grad is None or (isinstance(parameter.grad, SimulatedTensor) and parameter.grad.dtype == dtype)
    assert all(isinstance(asked["mask_logits"], SimulatedTensor) for asked in losses["predictions"][0])
    with torch.no_grad():
        expected = host(batch.to("cpu", dtype))
    for name in expected:
        close(losses[name], expected[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES[:1])
def test_uploads_of_a_training_step(device, worlds, pair, dtype):
    """Rows, places and targets go up once per batch, whatever the number of questions."""
    _, model = pair
    set_trainable(model, "default")
    counts = []
    for segs in ([1], [1, 2, 0, 3]):
        batch = MoraBatch([worlds.video(1, 3, segs=segs)]).to("simulated", dtype)
        device.forget()
        model.train()(batch)["loss"].backward()
        counts.append(len(device.uploads))
    extra = {"none": 0, "frame": 1, "global": 2}[model.config.loc_mode]
    packed = 2  # position ids and segments, where questions share rows
    set_trainable(model, "all")
    assert counts == [8 + extra, 8 + extra + packed], device.uploads


@pytest.mark.parametrize("dtype", DTYPES[:1])
def test_a_question_alone_costs_one_wait(device, worlds, dtype):
    """Where no row holds two questions no mask is given, and transformers looks whether there are several."""
    model = worlds.model().to("simulated", dtype).train()
    model(MoraBatch([worlds.video(1, 3)]).to("simulated", dtype))["loss"].backward()
    assert len(device.reads) == 1


@in_both_precisions
def test_adapters(device, worlds, dtype):
    model = worlds.model()
    adapters = add_lora(model)
    set_trainable(model, "default")
    model.to("simulated", dtype).train()
    model(MoraBatch([worlds.video(1, 3, segs=[1, 1])]).to("simulated", dtype))["loss"].backward()
    assert device.reads == []
    assert all(isinstance(model.get_parameter(name).grad, SimulatedTensor) for name in adapters)


def encoded(model, video, dtype):
    """The context of a video, on the model's device."""
    there = next(model.parameters()).device
    moved = MoraBatch([video]).to(there, dtype).videos[0]
    return answering.encode(model, moved.clip_pixels, moved.sam_pixels, video.resized_size, video.original_size)


@in_both_precisions
def test_encodes_without_a_wait(device, worlds, pair, dtype):
    _, model = pair
    video = worlds.video(1, 3)
    encoded(model, video, dtype)
    device.forget()
    context = encoded(model, video, dtype)
    assert isinstance(context.sam_embeddings[:1].parts[0], SimulatedTensor)
    assert isinstance(context.visual.tokens, SimulatedTensor)
    assert device.reads == [] and device.uploads == []


@in_both_precisions
def test_reads_without_a_wait(device, worlds, pair, dtype):
    host, model = pair
    video = worlds.video(1, 3, segs=[1, 2, 0])
    context = encoded(model, video, dtype)
    ids = [question.input_ids for question in video.questions]
    device.forget()
    readings = answering.read(model, context, ids)
    assert device.reads == []
    for actual, expected in zip(readings, answering.read(host, encoded(host, video, dtype), ids)):
        close(actual.states, expected.states, dtype)
        close(actual.seg_states, expected.seg_states, dtype)
        close(actual.logits, expected.logits, dtype)


@in_both_precisions
@pytest.mark.parametrize("forced", [False, True], ids=["generated", "forced"])
def test_answers(device, worlds, pair, dtype, forced):
    """The host waits once per generated token, whatever the number of questions, and once for all that is drawn."""
    host, model = pair
    video = worlds.video(1, 3, segs=[1, 2, 0])
    prompts = [q.input_ids[: int((q.labels != IGNORE_INDEX).nonzero()[0])] for q in video.questions]
    request = answering.Request(
        forced=[torch.tensor([11, worlds.seg, 12])] * 3 if forced else None,
        force_seg_token=True,
        force_loc_token=True,
        max_new_tokens=3,
        eos_token_id=[],
    )
    context = encoded(model, video, dtype)
    device.forget()
    answers = answering.answer(model, context, prompts, request)
    assert len(device.reads) == (1 if forced else 1 + 3), device.reads
    for answer in answers:
        assert isinstance(answer.masks, SimulatedTensor) and answer.masks.dtype == torch.float32
        assert (answer.loc_probs is None) == (model.config.loc_mode == "none")
        assert answer.loc_probs is None or isinstance(answer.loc_probs, SimulatedTensor)
    if dtype == torch.float32:
        for actual, expected in zip(answers, answering.answer(host, encoded(host, video, dtype), prompts, request)):
            assert actual.token_ids == expected.token_ids and torch.equal(actual.has_seg, expected.has_seg)
            close(actual.masks, expected.masks, dtype)
            if expected.loc_probs is not None:
                close(actual.loc_probs, expected.loc_probs, dtype)
