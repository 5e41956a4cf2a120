"""From samples to tensors: what is supervised where, and what is read how often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import collate as collate_module
from datasets.collate import CorpusDataset, SampleProcessor, collate
from datasets.conversation import ANSWERS
from datasets.sample import Question, VideoRecord, VideoSample
from datasets.tokenization import load_tokenizer
from tests.datasets.conftest import corner, pixels_of
from utils.batch import IGNORE_INDEX, MoraBatch
from utils.errors import ConfigError, DataError, TokenizerError

HEIGHT, WIDTH, FRAMES = 30, 40, 10
QUESTION = Question("q1", "What moves left?", True, "the red circle", (1,), "Descriptive", (3, 6), (3, 6))
PHRASE = Question("e1", "the red circle", False, None, (1,))


@pytest.fixture
def tokenizer(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


@pytest.fixture
def processor(tokenizer):
    return SampleProcessor(
        tokenizer, sam_pixels=corner(32), pixels=pixels_of(16), template="plain", answer_style="name"
    )


def object_mask(query: Question, index: int) -> np.ndarray:
    """The object is ``index + 1`` pixels wide on frame ``index``, inside the window and outside."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:7, : index + 1] = True
    return mask


@pytest.fixture
def record(tmp_path) -> VideoRecord:
    paths = []
    for index in range(FRAMES):
        paths.append(tmp_path / f"{index:07d}.png")
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * index, dtype=np.uint8)).save(paths[-1])
    return VideoRecord("groundmore", "clip_0000_0002", tuple(paths), (QUESTION, PHRASE), object_mask)


def sample_of(record: VideoRecord, frames=(0, 3, 6, 9), questions=None) -> VideoSample:
    return VideoSample(record, np.array(frames, dtype=np.int64), questions or record.questions)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def taught(question, tokenizer) -> str:
    return tokenizer.decode(question.labels[question.labels != IGNORE_INDEX].tolist())


def test_tensors_of_a_sample(processor, record, tokenizer):
    video = processor(sample_of(record), rng())
    assert video.video_id == "clip_0000_0002" and video.num_frames == 4
    assert video.clip_pixels.shape == (4, 3, 16, 16) and video.sam_pixels.shape == (4, 3, 32, 32)
    assert video.original_size == (HEIGHT, WIDTH) and video.resized_size == (24, 32)
    brightness = video.sam_pixels[:, :, :24].mean(dim=(1, 2, 3))
    assert (brightness.diff() > 0).all(), "frames in the order of their indices"
    question, phrase = video.questions
    assert question.masks.shape == (1, 4, HEIGHT, WIDTH) and question.masks.dtype == torch.uint8
    assert question.masks.sum(dim=(2, 3)).tolist() == [[0, 8, 14, 0]], "empty outside the window 3..6"
    assert question.mask_frames.tolist() == [0, 1, 2, 3] and question.mask_frames.dtype == torch.int64
    assert question.in_window.tolist() == [0, 1, 1, 0] and question.in_window.dtype == torch.float32
    assert taught(question, tokenizer) == " It is the red circle [SEG] [LOC].</s>"
    assert "What moves left? Please respond with masks." in tokenizer.decode(question.input_ids.tolist())
    assert phrase.in_window is None
    assert phrase.masks.sum(dim=(2, 3)).tolist() == [[2, 8, 14, 20]], "an expression has no window"
    assert taught(phrase, tokenizer).removesuffix("</s>").strip() in ANSWERS


def test_time_may_be_left_out_or_asked_for_everywhere(tokenizer, record):
    sizes = {"sam_pixels": corner(32), "pixels": pixels_of(16), "template": "plain"}
    without = SampleProcessor(tokenizer, **sizes, with_loc=False)(sample_of(record), rng())
    assert all(q.in_window is None and "[LOC]" not in taught(q, tokenizer) for q in without.questions)
    always = SampleProcessor(tokenizer, **sizes, loc_for_referring=True)(sample_of(record), rng())
    assert always.questions[1].in_window.tolist() == [1, 1, 1, 1]
    assert all("[LOC]" in taught(q, tokenizer) for q in always.questions)


def test_frames_outside_the_window_may_be_ignored(tokenizer, record):
    processor = SampleProcessor(tokenizer, corner(32), pixels_of(16), outside_window="ignore")
    question, phrase = processor(sample_of(record), rng()).questions
    assert question.mask_frames.tolist() == [1, 2] and question.masks.sum(dim=(2, 3)).tolist() == [[8, 14]]
    assert question.in_window.tolist() == [0, 1, 1, 0]
    assert phrase.mask_frames.tolist() == [0, 1, 2, 3]
    outside = processor(sample_of(record, (0, 9), (QUESTION,)), rng()).questions[0]
    assert outside.masks.shape == (1, 0, HEIGHT, WIDTH) and outside.mask_frames.shape == (0,)


@pytest.mark.parametrize("outside, allowed", [("zero", {0, 1, 2, 3}), ("ignore", {1, 2})])
def test_some_frames_supervise_masks(tokenizer, record, outside, allowed):
    processor = SampleProcessor(tokenizer, corner(32), pixels_of(16), outside_window=outside, mask_frames=1)
    generator = rng()
    drawn = [processor(sample_of(record, questions=(QUESTION,)), generator).questions[0] for _ in range(40)]
    assert {int(q.mask_frames) for q in drawn} == allowed
    for question in drawn:
        assert question.masks[0, 0].sum() == [0, 8, 14, 0][int(question.mask_frames)]


def test_every_frame_and_mask_is_read_once_and_only_if_needed(tokenizer, record, monkeypatch):
    frames, masks = [], []
    read = collate_module.read_frame
    monkeypatch.setattr(collate_module, "read_frame", lambda path: frames.append(Path(path).stem) or read(path))

    def counted(query: Question, index: int) -> np.ndarray:
        masks.append(index)
        return object_mask(query, index)

    record = VideoRecord(record.corpus, record.video_id, record.frame_paths, record.questions, counted)
    video = SampleProcessor(tokenizer, corner(32), pixels_of(16))(sample_of(record, (0, 0, 4, 9), (QUESTION,)), rng())
    assert frames == ["0000000", "0000004", "0000009"] and masks == [4]
    assert video.num_frames == 4 and video.clip_pixels[0].equal(video.clip_pixels[1])


def test_sizes_that_disagree_name_both(processor, record):
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), dtype=np.uint8)).save(record.frame_paths[6])
    with pytest.raises(DataError, match="0000006.png is 30 x 41, but .*0000000.png .* 30 x 40"):
        processor(sample_of(record), rng())


def test_bad_text_and_long_text_name_the_question(tokenizer, record):
    bad = Question("q9", "Where is [SEG]?", True, None, (1,), "Causal", (0, 1), (0, 1))
    with pytest.raises(DataError, match="groundmore video clip_0000_0002 query q9"):
        SampleProcessor(tokenizer, corner(32), pixels_of(16))(sample_of(record, questions=(bad,)), rng())
    long = Question("q8", "What moves " * 60, True, None, (1,), "Causal", (0, 1), (0, 1))
    with pytest.raises(DataError, match="clip_0000_0002 query q8: the conversation has"):
        SampleProcessor(tokenizer, corner(32), pixels_of(16), max_length=100)(
            sample_of(record, questions=(long,)), rng()
        )


def test_settings_are_checked_at_once(tokenizer):
    for wrong in ({"template": "x"}, {"answer_style": "x"}, {"outside_window": "x"}):
        with pytest.raises(ConfigError, match="'x' is unknown"):
            SampleProcessor(tokenizer, corner(32), pixels_of(16), **wrong)


def test_a_tokenizer_without_loc_serves_only_without_time(llama_folder):
    tokenizer = load_tokenizer(llama_folder)
    with pytest.raises(TokenizerError, match=r"\[LOC\]"):
        SampleProcessor(tokenizer, corner(32), pixels_of(16))
    SampleProcessor(tokenizer, corner(32), pixels_of(16), with_loc=False)


def test_items_depend_on_seed_and_number_only(tokenizer, record):
    class Source:
        def __getitem__(self, index: int) -> VideoSample:
            return sample_of(record, (index % 3, 5, 9))

    processor = SampleProcessor(tokenizer, corner(32), pixels_of(16), mask_frames=1)
    first, again = CorpusDataset(Source(), processor, 5), CorpusDataset(Source(), processor, 5)
    other = CorpusDataset(Source(), processor, 6)
    forwards = [first[index] for index in range(8)]
    backwards = [again[index] for index in reversed(range(8))][::-1]

    def same(left, right) -> bool:
        pairs = zip(left.questions, right.questions)
        return all(a.input_ids.equal(b.input_ids) and a.mask_frames.equal(b.mask_frames) for a, b in pairs)

    assert all(same(left, right) for left, right in zip(forwards, backwards))
    assert not all(same(left, other[index]) for index, left in enumerate(forwards))


def test_batch_keeps_videos_of_different_shapes(processor, record):
    videos = [processor(sample_of(record, (0, 5), (QUESTION,)), rng()), processor(sample_of(record), rng())]
    batch = collate(videos)
    assert isinstance(batch, MoraBatch) and [video.num_frames for video in batch.videos] == [2, 4]
    moved = batch.to("cpu", torch.bfloat16)
    assert moved.videos[0].sam_pixels.dtype == torch.bfloat16
    assert moved.videos[0].questions[0].in_window.dtype == torch.float32
