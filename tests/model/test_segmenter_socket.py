"""A stand-in segmenter goes wherever SAM goes: training, prediction, trainable sets, save and load."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from model import answering, presets
from model.adapters import set_trainable
from model.checkpoints import load_any
from model.mora import MoraModel
from model.segmenters import SEGMENTERS, Embeddings, Segmenter
from utils.batch import MoraBatch, PixelRule
from utils.errors import CheckpointError, ConfigError, Problems


class DotsConfig(PretrainedConfig):
    """Of :class:`Dots`."""

    def __init__(self, image_size: int = 32, width: int = 24, **kwargs):
        super().__init__(**kwargs)
        self.image_size, self.width = image_size, width


class Dots(Segmenter):
    """Patch features times prompt, with finer features beside them, so that embeddings have two parts."""

    config_class = DotsConfig
    encoder_part, decoder_part = "patches", "drawer"

    def __init__(self, config: DotsConfig):
        super().__init__()
        self.config, self.pixel_rule = config, PixelRule(config.image_size, "corner", (127.5,) * 3, (64.0,) * 3)
        self.patches = nn.Conv2d(3, config.width, 8, stride=8)
        self.drawer = nn.Linear(config.width, config.width)

    @classmethod
    def prompt_width(cls, config: DotsConfig) -> int:
        return config.width

    @classmethod
    def note_contradictions(cls, config: DotsConfig, problems: Problems) -> None:
        if config.image_size % 8:
            problems.add("sam_config.image_size", "is no multiple of 8")

    def encode(self, pixels, resized_size=None, at_once=None):
        pieces = [Embeddings((self.patches(part), part.mean(1))) for part in pixels.split(at_once or len(pixels))]
        return Embeddings.cat(pieces)

    def decode(self, embeddings, prompts, at_once=None):
        coarse, fine = embeddings.parts
        low = torch.einsum("nchw,nc->nhw", coarse, self.drawer(prompts))
        return F.interpolate(low[:, None], fine.shape[1:], mode="bilinear")[:, 0] + fine

    def to_frames(self, logits, resized_size, original_size):
        inner = logits[:, None, : resized_size[0], : resized_size[1]].float()
        return F.interpolate(inner, original_size, mode="bilinear")[:, 0]


@pytest.fixture
def config(monkeypatch, worlds):
    monkeypatch.setitem(SEGMENTERS, "dots", f"{__name__}:Dots")
    return lambda **fields: worlds.config(
        **{"segmenter": "dots", "sam_config": {"width": 24}, "out_dim": 24, "visual_mode": "video", **fields}
    )


@pytest.fixture
def model(config) -> MoraModel:
    return presets.build(config(), seed=1)


def test_a_training_step_teaches_its_decoder_and_not_its_encoder(model, worlds):
    names = set_trainable(model.train(), "default")
    assert {name for name in names if name.startswith("sam.")} == {"sam.drawer.weight", "sam.drawer.bias"}
    losses = model(MoraBatch([worlds.video(1, 3, segs=[1, 2])]))
    losses["loss"].backward()
    assert model.sam.drawer.weight.grad.abs().sum() > 0
    assert model.text_hidden_fcs[0][0].weight.grad.abs().sum() > 0
    model.zero_grad()
    model(MoraBatch([worlds.video(1, 3, segs=[0])]))["loss"].backward()
    assert model.sam.drawer.weight.grad is not None  # also in a batch without masks


def answer(model: MoraModel, video) -> Tensor:
    context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
    ids = video.questions[0].input_ids
    (answer,) = answering.answer(model, context, [ids[:-4]], answering.Request(forced=[ids[-4:]]))
    return answer.masks


def test_prediction_and_checkpoint(model, worlds, tmp_path):
    video = worlds.video(2, 3)
    masks = answer(model, video)
    assert masks.shape == (3, *video.original_size) and masks.std() > 0
    model.save_pretrained(tmp_path)
    loaded, report = load_any(tmp_path)
    assert isinstance(loaded.sam, Dots) and not (report.missing or report.unexpected or report.initialised)
    assert torch.equal(answer(loaded, video), masks)
    torch.save(model.sam.state_dict(), tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="sam.pth: not needed.*'dots'"):
        load_any(tmp_path, tmp_path / "sam.pth")


def test_its_configuration_is_checked_by_itself(config):
    with pytest.raises(ConfigError, match="out_dim: is 7.*width 24"):
        config(out_dim=7)
    with pytest.raises(ConfigError, match="no multiple of 8"):
        config(sam_config={"width": 24, "image_size": 33})
    with pytest.raises(ConfigError, match="segmenter: is 'sam3'; use one of 'sam'"):
        config(segmenter="sam3")


def test_embeddings_are_those_of_any_frames():
    whole = Embeddings((torch.arange(6), torch.arange(12).view(6, 2)))
    some = whole[torch.tensor([4, 0, 4])]
    assert len(whole) == 6 and len(some) == 3
    assert [part.tolist() for part in some.parts] == [[4, 0, 4], [[8, 9], [0, 1], [8, 9]]]
    assert [len(part) for part in whole.split(4)] == [4, 2]
    again = Embeddings.cat(whole.split(4))
    assert all(torch.equal(one, other) for one, other in zip(again.parts, whole.parts))
