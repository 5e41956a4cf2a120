"""Qwen3-VL on the simulated device: what holds for LLaVA, and no wait for a question that is alone."""

from __future__ import annotations

import pytest
import torch

from model.adapters import set_trainable
from tests.model.qwen_worlds import QwenWorlds
from tests.simulated.device import SimulatedTensor
from tests.simulated.test_model import (
    test_adapters,
    test_answers,
    test_encodes_without_a_wait,
    test_reads_without_a_wait,
    test_training_step,
)
from utils.batch import MoraBatch

__all__ = [
    "test_adapters",
    "test_answers",
    "test_encodes_without_a_wait",
    "test_reads_without_a_wait",
    "test_training_step",
]


@pytest.fixture(scope="module")
def models():
    """(model, the same on the device, both in eval mode) by mode and precision, made once."""
    made = {}

    def get(mode: tuple[str, str], dtype: torch.dtype):
        if (mode, dtype) not in made:
            worlds = QwenWorlds(mode[0])
            here, there = (worlds.model(loc_mode=mode[1]).to(dtype).eval() for _ in range(2))
            made[mode, dtype] = here, there.to("simulated")
            assert all(isinstance(t, SimulatedTensor) for t in (*there.parameters(), *there.buffers()))
        return made[mode, dtype]

    return get


@pytest.fixture(params=[("video", "global"), ("pairs", "global"), ("frame", "frame")], ids="-".join)
def pair(request, device, models, dtype):
    """A model of each mode on the CPU and on the device."""
    here, there = models(request.param, dtype)
    yield here, there
    for model in (here, there):
        model.zero_grad()
        model.eval().set_gradient_checkpointing(False)


@pytest.fixture
def worlds(request) -> QwenWorlds:
    """Of the mode of ``pair``."""
    return QwenWorlds(request.node.callspec.params.get("pair", ("video",))[0])


@pytest.mark.parametrize("mode", ["video", "pairs", "frame"])
def test_uploads_and_waits_of_a_training_step(device, mode):
    """Rows, places and targets go up once per batch, whatever the number of questions, and nothing is waited for."""
    worlds = QwenWorlds(mode)
    model, counts = worlds.model(loc_mode="global").to("simulated").train(), []
    set_trainable(model, "default")
    for segs in ([1], [1, 2, 0, 3]):
        batch = MoraBatch([worlds.video(1, 3, segs=segs), worlds.video(2, 1, segs=segs)]).to("simulated")
        device.forget()
        model(batch)["loss"].backward()
        assert device.reads == []
        counts.append(len(device.uploads))
    per_video = 3  # which frames are drawn on, places of the frames' states and of [LOC]
    assert counts == [8 + 2 * per_video, 9 + 2 * per_video], "segments go up where questions share rows"
