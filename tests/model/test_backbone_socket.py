"""A stand-in backbone goes wherever LLaVA goes: training, answering, adapters, vocabulary, save and load.

It does what LLaVA does not: an image mark per frame with text between, positions of two axes, features that only its
decoder reads, networks and fields with names of its own.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from model import answering, presets
from model.adapters import add_lora, merge_adapters, set_trainable
from model.answering import Request
from model.backbones import BACKBONES, Backbone
from model.checkpoints import load_any
from model.fields import SIZE
from model.layout import Visual
from model.mora import MoraModel
from tests.model.fresh_session import reading
from utils.batch import IMAGE_TOKEN_INDEX, MoraBatch, PixelRule
from utils.errors import ConfigError, DataError

FRAMES = 3


class WordsConfig(PretrainedConfig):
    """Of the decoder of :class:`Mosaic`."""

    def __init__(self, hidden_size=32, vocab_size=64, eos_token_id=2, pad_token_id=None, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.eos_token_id, self.pad_token_id, self.tie_word_embeddings = eos_token_id, pad_token_id, False


class Reader(nn.Module):
    """One layer of attention."""

    def __init__(self, width):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)


class Mosaic(Backbone):
    """Patches of every frame and their brightness; a decoder of one layer."""

    fields = {"patch": (16, SIZE)}
    parts = {"text_config": (WordsConfig, {"hidden_size": SIZE})}
    decoder_part = "reader"
    vocabulary_parts = ("lexicon.words", "speaker")

    @classmethod
    def networks(cls, config):
        width, words = config.text_config.hidden_size, config.text_config.vocab_size
        return {
            "lexicon": nn.ModuleDict({"words": nn.Embedding(words, width)}),
            "speaker": nn.Linear(width, words, bias=False),
            "reader": Reader(width),
            "eye": nn.Conv2d(3, width, config.patch, stride=config.patch),
        }

    @classmethod
    def pixel_rule(cls, config):
        return PixelRule(2 * config.patch, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def encode(self, videos, frames_per_pass=None):
        maps = [self.part("eye")(video) for video in videos]
        tokens = [each.flatten(2).transpose(1, 2).flatten(0, 1)[None] for each in maps]
        return [Visual(t, [tuple(m.shape[2:])] * len(m), [t.mean(-1, True) * t]) for t, m in zip(tokens, maps)]

    def positions(self, prefix):
        places = [[], []]
        for piece in prefix:
            start = max(map(max, places)) + 1 if places[0] else 0
            height, width = (1, 1) if isinstance(piece, int) else piece
            places[0] += [start + row for row in range(height) for _ in range(width)]
            places[1] += [start + column for _ in range(height) for column in range(width)]
        return torch.tensor(places, dtype=torch.long)

    def read(self, embeds, positions, allowed, cache=None, places=None, extras=()):
        reader, width = self.decoder, embeds.shape[-1]
        positions = positions.expand(2, *positions.shape) if positions.dim() == 2 else positions
        code = torch.stack([positions[0].sin(), positions[1].cos()], -1).repeat(1, 1, width // 2)
        hidden = embeds + code
        for extra in extras:
            hidden = hidden.flatten(0, 1).index_add(0, places, extra).view_as(hidden)
        query, key, value = (f(hidden)[:, None] for f in (reader.q_proj, reader.k_proj, reader.v_proj))
        if cache is not None:
            key, value = cache.update(key, value, 0)
        if allowed is None:
            new, total = query.shape[2], key.shape[2]
            allowed = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        return reader.norm(hidden + F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)[:, 0])

    def frame_states(self, states, frames):
        return states[0].unflatten(0, (frames, -1))


@pytest.fixture
def model(worlds, monkeypatch) -> MoraModel:
    monkeypatch.setitem(BACKBONES, "mosaic", f"{__name__}:Mosaic")
    sam = worlds.config().sam_config
    config = presets.MoraConfig(
        backbone="mosaic", text_config={"hidden_size": 32}, sam_config=sam, visual_mode="video", loc_mode="global",
        out_dim=96, seg_token_id=worlds.seg, loc_token_id=worlds.loc, patch=8, initialization="xavier",
    )  # fmt: skip
    return presets.build(config, seed=1)


@pytest.fixture
def video(worlds):
    """Three questions, two with the same beginning: a mark and a word for every frame."""
    video = worlds.video(1, FRAMES, segs=[1, 2, 1])
    video.questions[2].input_ids[0] = 44
    for question in video.questions:
        at = question.input_ids.tolist().index(IMAGE_TOKEN_INDEX)
        marks = torch.tensor([IMAGE_TOKEN_INDEX, 9] * (FRAMES - 1))
        for name, more in (("input_ids", marks), ("labels", torch.full_like(marks, -100))):
            old = getattr(question, name)
            setattr(question, name, torch.cat([old[:at], more, old[at:]]))
    return video


def prompts_of(video):
    starts = [int((question.labels != -100).nonzero()[0]) for question in video.questions]
    return zip(*((q.input_ids[:start], q.input_ids[start:-1]) for q, start in zip(video.questions, starts)))


def encode(model, video):
    return answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_training_step_packed_and_alone(model, video, monkeypatch):
    set_trainable(model.train(), "all")
    results = []
    for packed in (True, False):
        monkeypatch.setattr(Mosaic, "packs_questions", property(lambda self, packed=packed: packed))
        model.zero_grad()
        losses = model(MoraBatch([video]))
        losses["loss"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((losses["loss"].detach(), gradients))
    close(results[0][0], results[1][0])
    for name in ("eye.weight", "lexicon.words.weight", "speaker.weight", "reader.k_proj.weight", "loc_head.key.weight"):
        assert results[0][1][name].abs().sum() > 0, name
        close(results[0][1][name], results[1][1][name])


def test_its_images_positions_and_features_are_read(model, video):
    with torch.no_grad():
        loss = model(MoraBatch([video]))["loss"]
        for name, other in (
            ("positions", lambda prefix: Mosaic.positions(model.backbone, [1] * 200)[:, : len(prefix) + 15 * FRAMES]),
            ("encode", lambda videos: [Visual(v.tokens, v.grids) for v in Mosaic.encode(model.backbone, videos)]),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(model.backbone, name, other)
                assert (model(MoraBatch([video]))["loss"] - loss).abs() > 1e-4, name


def test_forced_generated_cached_and_taught_are_one(model, video):
    prompts, answers = prompts_of(video)
    for question in video.questions:
        question.mask_frames = torch.arange(FRAMES)
        question.masks = torch.zeros(len(question.masks), FRAMES, *video.original_size, dtype=torch.uint8)
    with torch.no_grad():
        (taught,) = model(MoraBatch([video]), return_predictions=True)["predictions"]
    for said, wanted in zip(answering.answer(model, encode(model, video), prompts, Request(forced=answers)), taught):
        close(said.masks, wanted["mask_logits"].amax(0))
        close(said.loc_probs, wanted["loc_logits"].sigmoid())
    request = Request(max_new_tokens=4, force_seg_token=True, force_loc_token=True)
    free = answering.answer(model, encode(model, video), prompts, request)
    forced = Request(forced=[torch.tensor(each.token_ids[0]) for each in free])
    with reading(cached=False):
        whole = answering.answer(model, encode(model, video), prompts, request)
    for one, again, other in zip(free, answering.answer(model, encode(model, video), prompts, forced), whole):
        assert one.token_ids == other.token_ids == again.token_ids and one.has_seg.all()
        for each in (again, other):
            close(one.masks, each.masks)
            close(one.loc_probs, each.loc_probs)


def test_adapters_vocabulary_and_the_default_set(model, video):
    model.resize_token_embeddings(70)
    assert model.config.text_config.vocab_size == 70 and model.get_input_embeddings().weight.shape == (70, 32)
    before = model(MoraBatch([video]))["loss"]
    adapters = add_lora(model)
    names = set_trainable(model, "default")
    assert {name.split(".lora")[0] for name in adapters} == {"reader.q_proj", "reader.v_proj"}
    tops = {name.split(".")[0] for name in names}
    assert tops == {"reader", "lexicon", "speaker", "sam", "text_hidden_fcs", "loc_head"}
    assert torch.equal(model(MoraBatch([video]))["loss"], before) and merge_adapters(model) == 2


def test_save_and_load(model, video, tmp_path):
    prompts, answers = prompts_of(video)
    request = Request(forced=answers)
    wanted = answering.answer(model, encode(model, video), prompts, request)
    model.save_pretrained(tmp_path)
    loaded, report = load_any(tmp_path)
    assert not (report.missing or report.unexpected or report.initialised) and loaded.config.patch == 8
    assert isinstance(loaded.backbone, Mosaic) and isinstance(copy.deepcopy(model).backbone.part("eye"), nn.Conv2d)
    assert loaded.config.pixel_rule.size == 16 and not hasattr(loaded.config, "projector")
    for one, other in zip(answering.answer(loaded, encode(loaded, video), prompts, request), wanted):
        assert torch.equal(one.masks, other.masks)


def test_mistakes_are_named(model, video):
    video.questions[0].input_ids[video.questions[0].input_ids == 9] = IMAGE_TOKEN_INDEX
    with pytest.raises(DataError, match="5 image tokens in one conversation; this video takes exactly 3"):
        model(MoraBatch([video]))
    with pytest.raises(ConfigError, match="backbone: is 'mamba'; use one of 'llava'"):
        presets.tiny(backbone="mamba")
    with pytest.raises(ConfigError, match="patch: is 0"):
        presets.MoraConfig(backbone="mosaic", patch=0)
