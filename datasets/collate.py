"""From drawn samples to the tensors of a training step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.conversation import (
    LOC,
    SEG,
    Shown,
    build_example,
    check_answer_style,
    groundmore_question,
    segmentation_answer,
    segmentation_question,
    template_named,
)
from datasets.mixture import Mixture
from datasets.pixels import Preprocessor
from datasets.room import describe_change, fitted_rule
from datasets.sample import Question, VideoSample
from datasets.tokenization import MoraTokenizer
from utils.batch import IMAGE_TOKEN_INDEX, FrameMarks, MoraBatch, PixelRule, QuestionTensors, VideoTensors
from utils.errors import ConfigError, DataError
from utils.video import read_frame

logger = logging.getLogger(__name__)

OUTSIDE_WINDOW = ("zero", "ignore")
_PROCESS = 3
"""This room's stream of chance; the mixture has others of the same seed."""


@dataclass
class SampleProcessor:
    """Turns a :class:`VideoSample` into :class:`VideoTensors`.

    Attributes:
        tokenizer: has [SEG], and [LOC] if ``with_loc``.
        sam_pixels: how frames become the segmenter's.
        pixels: how frames become the backbone's.
        marks: where prompts show them.
        template: name of a conversation template.
        answer_style: "fixed", "name" or "bare".
        with_loc: ask for [LOC] where the question has a window.
        loc_for_referring: ask for it also where there is no window; then every frame counts as inside.
        outside_window: what supervises the masks of frames outside the window. "zero": an empty mask. "ignore":
            nothing; the object is there, but the question does not ask for it then.
        mask_frames: how many of the T frames have their masks supervised, drawn anew each time; 0: all that may be.
        max_length: most text tokens of a conversation; a longer one is an error. Where frames keep their shape ("area")
            visual tokens count as well, and frames are made smaller until they fit. None: no limit.

    Raises:
        ConfigError: a value is not one of those above.
        TokenizerError: the tokenizer lacks a token.
    """

    tokenizer: MoraTokenizer
    sam_pixels: PixelRule
    pixels: PixelRule
    marks: FrameMarks = FrameMarks()
    template: str = "llava_llama_2"
    answer_style: str = "fixed"
    with_loc: bool = True
    loc_for_referring: bool = False
    outside_window: str = "zero"
    mask_frames: int = 0
    max_length: int | None = None

    def __post_init__(self):
        template_named(self.template)
        check_answer_style(self.answer_style)
        if self.outside_window not in OUTSIDE_WINDOW:
            raise ConfigError(
                f"outside_window {self.outside_window!r} is unknown; choose one of {', '.join(OUTSIDE_WINDOW)}"
            )
        self._seg_id = self.tokenizer.id_of(SEG)
        if self.with_loc:
            self.tokenizer.id_of(LOC)
        self._sam = Preprocessor(self.sam_pixels)
        self._clip = Preprocessor(self.pixels)
        self._fits = self.pixels.resize == "area" and self.max_length is not None
        self._told: set[str] = set()

    def __call__(self, sample: VideoSample, rng: np.random.Generator) -> VideoTensors:
        """Read, preprocess and tokenise one sample. Each frame is read once, and only the masks that are needed.

        Args:
            sample: frames and questions of a record.
            rng: draws wordings and supervised frames.

        Raises:
            DataError: a frame or mask is unreadable or of another size, or a conversation is too long.
        """
        frames = self._read_frames(sample)
        height, width = frames[0].shape[:2]
        questions = [self._question(sample, question, (height, width), rng) for question in sample.questions]
        try:
            clip_pixels = self._clip_for(questions, height, width)(frames)
        except DataError as error:
            raise DataError(f"{sample.record.corpus} video {sample.record.video_id}: {error}") from error
        return VideoTensors(
            video_id=sample.record.video_id,
            clip_pixels=clip_pixels,
            sam_pixels=self._sam(frames),
            resized_size=self._sam.resized_size(height, width),
            original_size=(height, width),
            questions=questions,
        )

    def _clip_for(self, questions: Sequence[QuestionTensors], height: int, width: int) -> Preprocessor:
        """How frames of that size become the backbone's pixels, so that each of these conversations fits; a change is
        told once."""
        if not self._fits:
            return self._clip
        images = int((questions[0].input_ids == IMAGE_TOKEN_INDEX).sum())
        text = max(len(question.input_ids) for question in questions) - images
        fitted = fitted_rule(height, width, self.pixels, images, text, self.max_length)
        if fitted is self.pixels:
            return self._clip
        change = describe_change(height, width, self.pixels, fitted)
        if change not in self._told:
            self._told.add(change)
            logger.warning("%s", change)
        return Preprocessor(fitted)

    def _read_frames(self, sample: VideoSample) -> list[np.ndarray]:
        """uint8 RGB [H, W, 3] for every sampled frame; a repeated one is read once.

        Raises:
            DataError: frames differ in size.
        """
        paths = sample.record.frame_paths
        indices = [int(index) for index in sample.frame_indices]
        read = {index: read_frame(paths[index]) for index in dict.fromkeys(indices)}
        first = indices[0]
        height, width = read[first].shape[:2]
        for index, frame in read.items():
            if frame.shape[:2] != (height, width):
                raise DataError(
                    f"{paths[index]} is {frame.shape[0]} x {frame.shape[1]}, but {paths[first]} of the same clip is "
                    f"{height} x {width} (height x width); extract the clip's frames at one size"
                )
        return [read[index] for index in indices]

    def _question(
        self, sample: VideoSample, question: Question, size: tuple[int, int], rng: np.random.Generator
    ) -> QuestionTensors:
        """Tokens and targets of one question."""
        asks_time = self.with_loc and (question.window is not None or self.loc_for_referring)
        where = f"{sample.record.corpus} video {sample.record.video_id} query {question.query_id}"
        if question.is_question:
            text = groundmore_question(question.text, where)
        else:
            text = segmentation_question(question.text, rng, question.is_sentence, where)
        answer = segmentation_answer(rng, self.answer_style, asks_time, question.answer, where)
        shown = Shown(sample.record.times(sample.frame_indices), self.marks)
        most = None if self._fits else self.max_length
        input_ids, labels = build_example(text, answer, self.template, self.tokenizer, most, where, shown)
        inside = question.in_window(sample.frame_indices)
        positions = self._supervised(inside, rng)
        tube = np.zeros((len(positions), *size), dtype=np.uint8)
        for row, position in enumerate(positions):
            if inside[position]:
                tube[row] = sample.record.read_object_mask(question, int(sample.frame_indices[position]))
        num_seg = int((input_ids == self._seg_id).sum())
        return QuestionTensors(
            input_ids=input_ids,
            labels=labels,
            masks=torch.from_numpy(tube).expand(num_seg, *tube.shape),
            mask_frames=torch.from_numpy(positions),
            in_window=torch.from_numpy(inside.astype(np.float32)) if asks_time else None,
        )

    def _supervised(self, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [m], increasing: positions among the sampled frames whose masks are supervised."""
        allowed = np.flatnonzero(inside) if self.outside_window == "ignore" else np.arange(len(inside))
        if 0 < self.mask_frames < len(allowed):
            allowed = np.sort(rng.choice(allowed, size=self.mask_frames, replace=False))
        return allowed.astype(np.int64)


def collate(videos: Sequence[VideoTensors]) -> MoraBatch:
    """Put videos into one micro-batch; nothing is padded, so frames, questions and sizes may differ."""
    return MoraBatch(list(videos))


class CorpusDataset(Dataset):
    """Item i: sample i of a mixture, processed. A pure function of the seed and i, on any worker, after any restart.

    It has no length; a sampler says which numbers a step sees.

    Args:
        source: draws the samples; only ``source[i]`` is used.
        processor: turns samples into tensors.
        seed: for wordings and supervised frames; may be the mixture's own.
    """

    def __init__(self, source: Mixture, processor: SampleProcessor, seed: int):
        self.source = source
        self.processor = processor
        self.seed = seed

    def __getitem__(self, index: int) -> VideoTensors:
        """Item ``index`` (0 or more).

        Raises:
            DataError: a file it needs cannot be used; the message names it.
        """
        return self.processor(self.source[index], np.random.default_rng([self.seed, _PROCESS, index]))
