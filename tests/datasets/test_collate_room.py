"""Training rows that keep their limit: frames of kept shape become smaller, and tokens are never cut off."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.collate import SampleProcessor
from datasets.sample import Question, VideoRecord, VideoSample
from datasets.tokenization import load_tokenizer
from tests.datasets.conftest import corner
from utils.batch import IMAGE_TOKEN_INDEX, FrameMarks, PixelRule
from utils.errors import DataError

HALF = (0.5, 0.5, 0.5)
RULE = PixelRule(8, "area", HALF, HALF, 64 * 64, 128 * 128)
"""A frame of 90 x 160 is 88 x 160 pixels, 220 tokens."""

ONE = FrameMarks(1)
SHORT = Question("q1", "What moves left?", True, None, (1,), "Descriptive", (3, 6), (3, 6))
LONG = Question("q2", "What moves left and right and left? " * 4, True, None, (1,), "Descriptive", (0, 1), (0, 1))


@pytest.fixture(scope="module")
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_qwen_tokenizer")


def record_of(folder, size=(90, 160), count=6):
    paths = []
    for index in range(count):
        paths.append(folder / f"{index:07d}.png")
        noise = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(paths[-1])
    return VideoRecord("groundmore", "clip", tuple(paths), (SHORT, LONG), lambda query, index: np.zeros(size, bool))


@pytest.fixture
def process(tokenizer):
    """Five frames of a record and some questions, under a limit."""

    def run(record, most, questions=(SHORT,), marks=ONE, processor=None, indices=(0, 1, 2, 3, 5)):
        processor = processor or SampleProcessor(
            tokenizer, corner(32), RULE, marks, "qwen3_vl", "bare", max_length=most
        )
        sample = VideoSample(record, np.array(indices), tuple(questions))
        return processor(sample, np.random.default_rng(0))

    return run


def tokens_of(video, question=0) -> int:
    """Tokens of a row, visual ones included."""
    ids, (height, width) = video.questions[question].input_ids, video.clip_pixels.shape[2:]
    images = int((ids == IMAGE_TOKEN_INDEX).sum())
    return len(ids) - images + images * height * width // 64


def test_what_fits_is_as_without_a_limit(process, tmp_path):
    record = record_of(tmp_path)
    free = process(record, None)
    assert free.clip_pixels.shape == (5, 3, 88, 160)
    whole = tokens_of(free)
    exact = process(record, whole)
    assert torch.equal(exact.clip_pixels, free.clip_pixels) and tokens_of(exact) == whole
    less = process(record, whole - 1)
    assert less.clip_pixels.numel() < free.clip_pixels.numel() and tokens_of(less) <= whole - 1
    assert torch.equal(less.questions[0].input_ids, free.questions[0].input_ids), "no token is cut off"


@pytest.mark.parametrize("marks", [FrameMarks(1), FrameMarks(1, True), FrameMarks(2), FrameMarks(2, True)])
@pytest.mark.parametrize("most", [460, 600, 900])
def test_rows_keep_the_limit(process, tmp_path, marks, most):
    record = record_of(tmp_path)
    video = process(record, most, (SHORT, LONG), marks)
    assert max(tokens_of(video, 0), tokens_of(video, 1)) <= most
    height, width = video.clip_pixels.shape[2:]
    assert height % 8 == width % 8 == 0
    shown = [Image.open(record.frame_paths[index]).resize((width, height), Image.BICUBIC) for index in (0, 1, 2, 3, 5)]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in shown])).permute(0, 3, 1, 2)
    assert torch.equal(video.clip_pixels, (pixels / 255 - 0.5) / 0.5), "resized once, from the frames themselves"
    assert video.sam_pixels.shape == (5, 3, 32, 32) and video.original_size == (90, 160)


def test_times_and_pairs_are_counted(process, tmp_path):
    record = record_of(tmp_path)
    whole = tokens_of(process(record, None))
    assert process(record, whole).clip_pixels.shape[2:] == (88, 160)
    assert process(record, whole, marks=FrameMarks(1, True)).clip_pixels.shape[2:] != (88, 160)
    assert process(record, whole - 2 * 220, marks=FrameMarks(2)).clip_pixels.shape[2:] == (88, 160)


def test_the_longest_conversation_of_a_sample_decides(process, tmp_path):
    record = record_of(tmp_path)
    whole = tokens_of(process(record, None))
    both, longer = process(record, whole, (SHORT, LONG)), process(record, whole, (LONG,))
    assert process(record, whole, (SHORT,)).clip_pixels.shape[2:] == (88, 160)
    assert both.clip_pixels.shape[2:] == longer.clip_pixels.shape[2:] != (88, 160)


def test_a_change_is_told_once_and_changes_nothing_later(process, tokenizer, tmp_path, caplog):
    processor = SampleProcessor(tokenizer, corner(32), RULE, FrameMarks(1), "qwen3_vl", "bare", max_length=600)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    wide, tall = record_of(tmp_path / "a"), record_of(tmp_path / "b", (160, 90))
    with caplog.at_level(logging.WARNING, "datasets.collate"):
        first, again = (process(wide, 600, processor=processor) for _ in range(2))
        process(tall, 600, processor=processor)
    assert torch.equal(first.clip_pixels, again.clip_pixels)
    told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("frames of 90 x 160 (height x width) are shown at 64 x 112, 112 tokens each, instead of "
                              "88 x 160, 220 tokens")  # fmt: skip


def test_no_room_names_the_video_and_the_flags(process, tmp_path):
    with pytest.raises(DataError, match="^groundmore video clip: 5 x 220 visual tokens and .*--model_max_length.*"):
        process(record_of(tmp_path), 340)


def test_frames_of_extreme_shape_or_of_other_sizes_are_named(process, tmp_path):
    (tmp_path / "thin").mkdir()
    with pytest.raises(DataError, match="^groundmore video clip: .*more than 200 times"):
        process(record_of(tmp_path / "thin", (4, 804)), 4096)
    record = record_of(tmp_path)
    Image.fromarray(np.zeros((90, 80, 3), dtype=np.uint8)).save(record.frame_paths[3])
    with pytest.raises(DataError, match="0000003.png is 90 x 80, but .*0000000.png .* is 90 x 160"):
        process(record, 4096)


def test_a_clip_of_fewer_frames_than_asked_shows_them_again(process, tmp_path):
    video = process(record_of(tmp_path, count=2), 4096, marks=FrameMarks(1, True), indices=(0, 0, 0, 1, 1))
    assert torch.equal(video.clip_pixels[0], video.clip_pixels[2]) and len(video.clip_pixels) == 5
    assert (video.questions[0].input_ids == IMAGE_TOKEN_INDEX).sum() == 5


def test_squares_count_text_alone(tokenizer, tmp_path):
    square = PixelRule(16, "crop", HALF, HALF)
    fields = {"template": "qwen3_vl", "answer_style": "bare", "max_length": 40}
    record = record_of(tmp_path)
    processor = SampleProcessor(tokenizer, corner(32), square, FrameMarks(), **fields)
    sample = VideoSample(record, np.arange(5), (SHORT,))
    assert processor(sample, np.random.default_rng(0)).clip_pixels.shape == (5, 3, 16, 16)
    with pytest.raises(DataError, match="query q2: the conversation has"):
        processor(dataclasses.replace(sample, questions=(LONG,)), np.random.default_rng(0))
