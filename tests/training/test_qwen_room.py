"""A training run of Qwen3-VL says what frames cost, and what it does where they do not fit."""

from __future__ import annotations

import logging

import pytest

from datasets.collate import collate
from training.assembly import build_dataset, build_parts, describe_dataset
from training.settings import parse_arguments
from utils.errors import DataError


@pytest.fixture
def made(tmp_path, qwen_base, tiny_corpus):
    """Model and data of a command line."""

    def make(*extra: str):
        settings = parse_arguments(
            ["--version", str(qwen_base), "--dataset_dir", str(tiny_corpus), "--dataset", "groundmore", "--precision",
             "fp32", "--sample_rates", "1", "--log_base_dir", str(tmp_path / "runs"), *extra], "qwen3_vl",
        )  # fmt: skip
        parts = build_parts(settings.model, settings.trainable, 0, settings.compute.dtype)
        return parts, build_dataset(settings.data, 0, parts)

    return make


@pytest.mark.parametrize(("frames_as", "by", "five", "twenty"), [("images", "a frame", 80, 320),
                                                                 ("video", "every 2 frames", 48, 160)])  # fmt: skip
def test_costs_are_told_at_the_start(made, frames_as, by, five, twenty):
    _, dataset = made("--frames_as", frames_as, "--timestamps")
    assert describe_dataset(dataset).splitlines()[-1] == (
        f"frames of 64 x 64 (height x width) are shown at 64 x 64: 16 visual tokens for {by}; in a row: "
        f"5 frames {five}, 20 frames {twenty}"
    )
    video = dataset[0]
    words = dataset.processor.tokenizer.decode(video.questions[0].input_ids.tolist())
    assert words.count(" seconds>") == (5 if frames_as == "images" else 3)


def test_a_step_with_smaller_frames(made, caplog):
    """Frames of 128 x 128 pixels are 64 tokens; the limit is theirs, the row is read at its new size."""
    sizes = ("--min_pixels", "16384", "--max_pixels", "25600")
    _, free = made(*sizes)
    assert free[0].clip_pixels.shape[2:] == (128, 128)
    tokens = max(len(question.input_ids) for question in free[0].questions) - 5 + 5 * 64
    with pytest.raises(DataError, match="groundmore video .*--model_max_length"):
        made(*sizes, "--model_max_length", str(tokens - 1))[1][0]
    wide = ("--min_pixels", "25600", "--max_pixels", "25600", "--model_max_length", str(tokens + 5 * 20))
    parts, dataset = made(*wide)
    with caplog.at_level(logging.WARNING, "datasets.collate"):
        batch = collate([dataset[0], dataset[0]])
    assert [entry.getMessage() for entry in caplog.records] == [
        "frames of 64 x 64 (height x width) are shown at 144 x 144, 81 tokens each, instead of 160 x 160, 100 tokens, "
        "so that a row fits --model_max_length"
    ]
    parts.model.train()(batch)["loss"].backward()
