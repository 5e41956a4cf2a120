"""A tiny model and small random batches for tests of ``model``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import presets
from model.mora import MoraModel
from tests.model.fresh_session import reading
from tests.model.published_layout import write_published
from utils.batch import IGNORE_INDEX, IMAGE_TOKEN_INDEX, QuestionTensors, VideoTensors

SEG, LOC, EOS = 5, 6, 2
HEIGHT, WIDTH = 20, 30


class Worlds:
    """Makes tiny models and random videos, the same for the same seed."""

    seg, loc, eos = SEG, LOC, EOS

    def config(self, **overrides):
        """Smaller than ``presets.tiny()``, with the ids these batches use."""
        sizes = {"clip_image_size": 32, "clip_layers": 2, "sam_image_size": 32, "sam_layers": 1, "llm_layers": 2}
        fields = {"vocab_size": 64, "seg_token_id": SEG, "loc_token_id": LOC, "llm_hidden": 64, **sizes, **overrides}
        return presets.tiny(**fields)

    def model(self, **overrides) -> MoraModel:
        """A fresh model whose zero-initialised layers are not zero, so that nothing is tested in vain."""
        model = presets.build(self.config(**overrides), seed=3)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.count_nonzero() == 0:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        return model

    def ids(self, generator: torch.Generator, segs: int, image: bool, loc: bool, prefix: int = 2) -> tuple[Tensor, int]:
        """Random conversation and where its answer starts."""
        words = lambda n: torch.randint(10, 60, (n,), generator=generator).tolist()  # noqa: E731
        question = words(prefix) + ([IMAGE_TOKEN_INDEX] if image else []) + words(3 + segs)
        answer = words(1) + [SEG] * segs + words(1) + ([LOC] if loc else []) + [EOS]
        if prefix:
            question[:prefix] = range(50, 50 + prefix)  # the same beginning, so that rows are shared
        return torch.tensor(question + answer), len(question)

    def question(self, generator, frames: int, segs: int = 1, image: bool = True, loc: bool = True, prefix: int = 2):
        """One random question with 2 supervised frames."""
        ids, start = self.ids(generator, segs, image, loc, prefix)
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[start:] = ids[start:]
        count = min(2, frames)
        return QuestionTensors(
            input_ids=ids,
            labels=labels,
            masks=torch.randint(0, 2, (segs, count, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
            mask_frames=torch.randperm(frames, generator=generator)[:count],
            in_window=torch.randint(0, 2, (frames,), generator=generator).float() if loc and image else None,
        )

    def video(self, seed: int, frames: int, **questions) -> VideoTensors:
        """A random video; ``segs`` lists the number of [SEG] of each question, the rest goes to ``question``."""
        generator = torch.Generator().manual_seed(seed)
        segs = questions.pop("segs", [1])
        clip_pixels, sam_pixels = torch.randn(2, frames, 3, 32, 32, generator=generator)
        sam_pixels[:, :, 22:] = 0  # what pads a frame to the square
        return VideoTensors(
            video_id=f"video_{seed}",
            clip_pixels=clip_pixels,
            sam_pixels=sam_pixels,
            resized_size=(22, 32),
            original_size=(HEIGHT, WIDTH),
            questions=[self.question(generator, frames, count, **questions) for count in segs],
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``visual_mode`` and ``loc_mode`` what the module lists as MODES."""
    names = ("visual_mode", "loc_mode")
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if set(names) <= set(metafunc.fixturenames) and not any("visual_mode" in mark for mark in marks):
        metafunc.parametrize(names, metafunc.module.MODES)


@pytest.fixture(scope="session")
def worlds() -> Worlds:
    """Factory of tiny models and videos."""
    return Worlds()


@pytest.fixture(params=[True, False], ids=["cached", "whole rows"])
def cached(request) -> Iterator[bool]:
    """Once as it is, and once with every question read again from its start."""
    with reading(request.param):
        yield request.param


@pytest.fixture(scope="session")
def model_of(worlds: Worlds) -> Callable[..., MoraModel]:
    """Models by mode, each built once; tests must not change their weights."""
    made: dict = {}

    def get(visual_mode: str, loc_mode: str) -> MoraModel:
        key = (visual_mode, loc_mode)
        if key not in made:
            made[key] = worlds.model(visual_mode=visual_mode, loc_mode=loc_mode)
        return made[key]

    return get


@pytest.fixture
def published(tmp_path) -> Path:
    """A folder of the published layout with seeded noise, its CLIP tower beside it."""
    return write_published(tmp_path)
