"""A MoRA model as the predictor of an evaluation: preprocessing, prompts, answers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.conversation import (
    Shown,
    encode_forced_answer,
    encode_prompt,
    forced_answer,
    groundmore_question,
    referring_question,
)
from datasets.pixels import Preprocessor
from datasets.room import describe_cost
from datasets.sample import Question, VideoRecord
from datasets.tokenization import MoraTokenizer
from evaluation.engine.jobs import Prediction
from evaluation.protocol import Protocol
from model import answering
from model.layout import require_rows
from model.mora import MoraModel
from utils.errors import ConfigError, DataError, one_line
from utils.video import frame_size


@dataclass
class PreparedVideo:
    """Frames as the model's encoders take them, still as bytes.

    Attributes:
        clip: uint8 [T, 3, h, w], in the order in which the language model is shown them.
        sam: uint8 [T, 3, h, w], in time order.
        original_size: (H, W).
        times: seconds of the T frames in the clip.
    """

    clip: Tensor
    sam: Tensor
    original_size: tuple[int, int]
    times: Sequence[float]


class MoraPredictor:
    """Asks a MoRA model.

    Args:
        model: in eval mode, on its device, in its precision.
        tokenizer: the model's; must know [SEG], and [LOC] if the model has a [LOC] head.
        protocol: how to ask.
        template: conversation template; None: the one the model was trained with.

    Raises:
        TokenizerError: the tokenizer lacks a token, or the model has no embedding for it.
        ConfigError: the protocol needs a [LOC] head that the model does not have.
    """

    def __init__(
        self,
        model: MoraModel,
        tokenizer: MoraTokenizer,
        protocol: Protocol,
        template: str | None = None,
    ):
        config = model.config
        self.has_loc = config.loc_mode != "none" and not protocol.seg_only
        if not self.has_loc and (protocol.loc_refine or protocol.force_loc_token):
            raise ConfigError(
                "--use_loc_refine and --force_loc_token need a [LOC] head, which this model does not have "
                f"(loc_mode {config.loc_mode!r}); use --seg_only, or a model trained with --loc_mode"
            )
        self.model, self.tokenizer, self.protocol = model, tokenizer, protocol
        tokens = (config.seg_token, config.loc_token) if self.has_loc else (config.seg_token,)
        require_rows([tokenizer.id_of(token) for token in tokens], config.text_config.vocab_size)
        self.template = template or config.template
        self._device = next(model.parameters()).device
        self._clip = Preprocessor(config.pixel_rule)
        self._sam = Preprocessor(model.sam.pixel_rule)

    def prepare(self, video_id: str, frames: Sequence[np.ndarray], times: Sequence[float]) -> PreparedVideo:
        """Resize a video's frames; any number of threads may at once.

        Args:
            video_id: seeds the frame control "shuffle", so that a video is always shuffled in the same way.
            frames: uint8 RGB [H, W, 3] each, of one size, in time order.
            times: their seconds in the clip; under a frame control those of the places that are filled.
        """
        seen = control_order(self.protocol.frame_control, len(frames), video_id)
        clip, sam = self._clip.resize(frames)[torch.from_numpy(seen)], self._sam.resize(frames)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # or this thread would open a context on the first GPU
            clip, sam = clip.pin_memory(), sam.pin_memory()
        return PreparedVideo(clip, sam, frames[0].shape[:2], times)

    def describe_cost(self, video: VideoRecord) -> str | None:
        """What the frames of a video cost the language model, as a line; None where no frame keeps its shape, so that
        every one costs the same, or where the first cannot be read."""
        rule, marks = self.model.config.pixel_rule, self.model.config.frame_marks
        shown = len(np.unique(self.protocol.sample(len(video.frame_paths))))
        with suppress(DataError):
            if rule.resize == "area":
                size = frame_size(video.frame_paths[0])
                return f"video {one_line(video.video_id)}: {describe_cost(*size, rule, marks, (shown,))}"
        return None

    @torch.inference_mode()
    def encode(self, prepared: PreparedVideo, frames_per_pass: int | None = None) -> answering.VideoContext:
        """Encode a video once, at most so many frames at a time."""
        dtype = next(self.model.parameters()).dtype
        clip, sam = (part.to(self._device, non_blocking=True) for part in (prepared.clip, prepared.sam))
        context = answering.encode(
            self.model,
            self._clip.normalise(clip).to(dtype),
            self._sam.normalise(sam).to(dtype),
            tuple(sam.shape[2:]),
            prepared.original_size,
            frames_per_pass,
        )
        context.times = prepared.times
        return context

    @torch.inference_mode()
    def answer(
        self, context: answering.VideoContext, questions: Sequence[Question], frames_per_pass: int | None = None
    ) -> list[Prediction]:
        """Answer questions about an encoded video, at most so many masks at a time.

        Raises:
            DataError: a question cannot be written as tokens.
            TokenizerError: a token has no embedding, or the model wrote one that the tokenizer lacks.
            NumericalError: an answer comes from values that are not finite.
        """
        for query in questions:
            _check_text(query)
        ask = referring_question if self.protocol.prompt == "referring" else groundmore_question
        messages = [ask(query.text, f"question {query.query_id}") for query in questions]
        prompts, forced = self._prompts(messages, Shown(context.times, self.model.config.frame_marks))
        request = answering.Request(
            forced=forced,
            max_new_tokens=self.protocol.max_new_tokens,
            force_seg_token=self.protocol.force_seg_token,
            force_loc_token=self.protocol.force_loc_token,
            eos_token_id=self.tokenizer.eos_id,
            mask_threshold=self.protocol.mask_threshold,
            frames_per_pass=frames_per_pass,
            use_loc=self.has_loc,
        )
        return [self._prediction(answer) for answer in answering.answer(self.model, context, prompts, request)]

    def _prompts(self, messages: Sequence[str], shown: Shown) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Prompts, and the answers to force if the protocol says so."""
        if self.protocol.answer_mode == "generate":
            return [encode_prompt(message, self.template, self.tokenizer, shown) for message in messages], None
        text = forced_answer(self.has_loc, self.model.config.answer_style)
        pairs = [encode_forced_answer(message, text, self.template, self.tokenizer, shown) for message in messages]
        return [prompt for prompt, _ in pairs], [answer for _, answer in pairs]

    def _prediction(self, answer: answering.Answer) -> Prediction:
        probs = answer.loc_probs
        return Prediction(
            masks=answer.masks.cpu().numpy(),
            has_seg=answer.has_seg.numpy(),
            loc_probs=None if probs is None else probs.float().cpu().numpy(),
            answers=[self.tokenizer.decode(ids) for ids in answer.token_ids],
            forced_seg=answer.forced_seg,
            forced_loc=answer.forced_loc,
        )


def _check_text(query: Question) -> None:
    """Refuse text that no tokenizer takes."""
    try:
        query.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"question {query.query_id}: its text holds half a letter (U+{ord(query.text[error.start]):04X} at "
            f"character {error.start}), which UTF-8 cannot hold; write the letter out in the annotation file"
        ) from None


def control_order(control: str, num_frames: int, video_id: str) -> np.ndarray:
    """int64 [T]: which frame the language model is shown at each time.

    Args:
        control: "none", "repeat_first" or "shuffle" (a fixed permutation per video, never the true order if there are
            two frames or more).
        num_frames: T.
        video_id: seeds the permutation.
    """
    order = np.arange(num_frames)
    if control == "repeat_first":
        return np.zeros_like(order)
    if control == "shuffle" and num_frames > 1:
        rng = np.random.default_rng(zlib.crc32(video_id.encode("utf-8", "surrogatepass")))
        shuffled = rng.permutation(num_frames)
        while np.array_equal(shuffled, order):
            shuffled = rng.permutation(num_frames)
        return shuffled
    return order
