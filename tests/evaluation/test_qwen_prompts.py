"""Qwen3-VL is asked in evaluation what it was taught in training: the same ids, and the same pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from datasets.collate import SampleProcessor
from datasets.sample import VideoSample
from datasets.tokenization import load_tokenizer
from evaluation.engine.opening import attach_tokens
from evaluation.engine.predictor import MoraPredictor
from evaluation.protocol import make_protocol
from model import presets
from utils.batch import IMAGE_TOKEN_INDEX
from utils.video import read_frame

SHOWN = [("images", False), ("images", True), ("video", False), ("video", True)]


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_qwen_tokenizer")


def build(tokenizer, **fields):
    sizes = {"tower_hidden": 32, "tower_layers": 1, "llm_hidden": 32, "llm_layers": 1, "llm_heads": (2, 1)}
    model = presets.build(presets.tiny_qwen(vocab_size=len(tokenizer), **sizes, **fields))
    attach_tokens(model, tokenizer)
    return model.eval()


def processor_of(model, tokenizer, **fields):
    config = model.config
    return SampleProcessor(
        tokenizer, model.sam.pixel_rule, config.pixel_rule, config.frame_marks, config.template, config.answer_style,
        **fields,
    )  # fmt: skip


def ask(model, tokenizer, video, indices, monkeypatch, **fields):
    """Prompts, forced answers and the encoded video that reach the model."""
    told = []
    monkeypatch.setattr("model.answering.answer", lambda *given: told.append(given) or [])
    predictor = MoraPredictor(model, tokenizer, make_protocol(**fields))
    frames = [read_frame(video.frame_paths[index]) for index in indices]
    context = predictor.encode(predictor.prepare(video.video_id, frames, video.times(indices)))
    predictor.answer(context, video.questions)
    ((_, _, prompts, request),) = told
    return prompts, request.forced, context


@pytest.mark.parametrize(("frames_as", "stamps"), SHOWN)
@pytest.mark.parametrize("style", ["bare", "fixed", "name"])
def test_evaluation_asks_what_training_taught(tokenizer, corpus, monkeypatch, frames_as, stamps, style):
    model = build(tokenizer, frames_as=frames_as, timestamps=stamps, answer_style=style)
    for video, indices in ((corpus[0], [0, 4, 9, 13, 23]), (corpus[1], [7])):
        indices = np.array(indices)
        taught = processor_of(model, tokenizer)(VideoSample(video, indices, video.questions), np.random.default_rng(0))
        for control in ("none", "shuffle"):
            fields = {"answer_mode": "forced", "frame_control": control}
            prompts, forced, context = ask(model, tokenizer, video, indices, monkeypatch, **fields)
            for question, prompt, answer in zip(taught.questions, prompts, forced, strict=True):
                ids = question.input_ids
                if style == "bare":
                    assert torch.equal(torch.cat([prompt, answer]), ids)
                assert torch.equal(prompt, ids[: len(prompt)]) and len(prompt) < len(ids)
                marks = len(indices) if frames_as == "images" else -(-len(indices) // 2)
                assert (prompt == IMAGE_TOKEN_INDEX).sum() == marks == len(context.visual.grids)
                words = tokenizer.decode(prompt[prompt >= 0].tolist())
                assert words.count(" seconds>") == stamps * marks
                if stamps and len(indices) > 1:
                    assert ("<0.0 seconds>" if frames_as == "images" else "<0.3 seconds>") in words
        generated, none, _ = ask(model, tokenizer, video, indices, monkeypatch)
        assert none is None and all(map(torch.equal, generated, prompts))


@pytest.mark.parametrize(("frames_as", "stamps"), SHOWN)
def test_pixels_are_the_same(tokenizer, corpus, monkeypatch, frames_as, stamps):
    model = build(tokenizer, frames_as=frames_as, timestamps=stamps)
    video, indices = corpus[0], np.array([0, 5, 11])
    taught = processor_of(model, tokenizer)(VideoSample(video, indices, video.questions), np.random.default_rng(0))
    _, _, context = ask(model, tokenizer, video, indices, monkeypatch)
    with torch.inference_mode():
        (visual,) = model.backbone.encode([taught.clip_pixels])
    assert torch.equal(visual.tokens, context.visual.tokens)
    assert context.times == [0.0, 5 / 6, 11 / 6]


def test_the_same_prompts_with_a_row_per_frame(tokenizer, corpus, monkeypatch):
    model = build(tokenizer, visual_mode="frame", answer_style="bare")
    video, indices = corpus[0], np.array([0, 5, 11])
    taught = processor_of(model, tokenizer)(VideoSample(video, indices, video.questions), np.random.default_rng(0))
    prompts, forced, _ = ask(model, tokenizer, video, indices, monkeypatch, answer_mode="forced")
    for question, prompt, answer in zip(taught.questions, prompts, forced, strict=True):
        assert torch.equal(torch.cat([prompt, answer]), question.input_ids)
        assert (prompt == IMAGE_TOKEN_INDEX).sum() == 1


def test_what_frames_cost_is_told(tokenizer, corpus):
    model = build(tokenizer, frames_as="video")
    predictor = MoraPredictor(model, tokenizer, make_protocol(num_frames=5))
    assert predictor.describe_cost(corpus[0]) == (
        "video alpha_0000_0004: frames of 24 x 32 (height x width) are shown at 64 x 80: 20 visual tokens for every 2 "
        "frames; in a row: 5 frames 60"
    )
    gone = dataclasses.replace(corpus[0], frame_paths=(corpus[0].frame_paths[0].with_name("gone.jpg"),))
    assert predictor.describe_cost(gone) is None
