"""The evaluation contract: every choice that changes a number is a named field, printed and stored with the result.

What each field means, and what each choice is worth, is told in docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasets.sampling import linspace_truncated, uniform_frames
from utils.errors import ConfigError, Problems

_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


SCORED = {"scored": True}
"""Of a field that changes scores but not predictions: records made under another value of it can be scored again."""


def _chosen(default: str | float, *others: str, **about: bool) -> Any:
    """A field that is a choice; without others it is stated, not selectable."""
    return field(default=default, metadata={"choices": (default, *others), **about})


_scored = functools.partial(_chosen, **SCORED)


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate. Two results are comparable when their protocols are equal.

    The fields stand in the order in which they act: frames, question and answer, masks, ground truth, J and F, means.

    Attributes:
        name: the preset it was made from.
        num_frames: frames listed per clip; all of them count in the mean.
        frame_order: frames are put in order by the integer in their file names, before anything is listed.
        frame_sampling: "uniform" rounds n evenly spaced positions from the first to the last frame, repeats only in
            clips shorter than n; "linspace_truncated" cuts their decimals off, as the original evaluator does; "every"
            lists all frames of a clip, whatever ``num_frames`` says.
        repeated_frames: a frame listed twice is predicted once and counted twice.
        frame_control: "none"; or what the language model sees is disturbed, the mask decoder always sees the true
            frames: "repeat_first" shows it the first frame T times, "shuffle" the frames in a random order.
        prompt: "groundmore": the texts are questions and asked as such; "referring": they are expressions that name an
            object ("the red car"), and the model is asked to segment it.
        answer_mode: "generate": the model writes its answer freely; "forced": a fixed answer with the tokens is
            appended to the prompt.
        decoding: a generated answer takes the most probable token each time; nothing is drawn.
        max_new_tokens: limit on a generated answer.
        force_seg_token, force_loc_token: a token missing from the generated answer is appended to it.
        seg_only: the model is asked for masks only, its [LOC] head is not used.
        mask_resize: logits are resized bilinearly to the frame's original size, then compared with the threshold.
        mask_threshold: a pixel is foreground if its logit is above this.
        several_seg: the masks of several [SEG] tokens of one answer are united.
        missing_mask: a frame for which the model gave no [SEG] has an empty mask.
        loc_refine: masks on frames whose [LOC] probability is below ``loc_threshold`` are emptied before scoring.
        loc_threshold: see ``loc_refine``.
        missing_loc: masks of an answer without [LOC] are scored as they are.
        window: "clipped": the action window is cut to the clip, and one that leaves nothing is an error of the
            data; "unclipped": taken as written, an impossible one makes every frame's ground truth empty.
        truth_objects: the ground truth of a question with several object ids is their union.
        truth_ids: object ids are the stored pixel values of a palette or grey PNG; other modes are an error.
        missing_mask_file: the ground truth of a frame without a mask file is empty; in-window ones are counted.
        absent_object: a question about an object that no mask of its clip holds is a failed question.
        void_pixels: every pixel counts, none is void.
        mask_size: masks are compared in the size of the ground truth; a prediction of another size is a failure.
        boundary_tolerance: radius within which boundary pixels match, as a share of the image diagonal, rounded up to
            whole pixels.
        boundary_match: the shape of that neighbourhood.
        both_empty: J and F of an empty prediction against an empty ground truth.
        failed_question: a question that raised an error scores 0 in every measure; it is counted, listed with its
            reason, and the program ends non-zero.
        missing_prediction: a question without a record is such a failure.
        aggregation: a question scores the mean over its listed frames; "questions": a cell is the mean over questions;
            "videos": the mean over videos of the mean over each one's questions (of the cell's type).
    """

    name: str = field(default="groundmore", metadata=SCORED)
    num_frames: int = 20
    frame_order: str = _chosen("numeric")
    frame_sampling: str = _chosen("uniform", "linspace_truncated", "every")
    repeated_frames: str = _scored("counted")
    frame_control: str = _chosen("none", "repeat_first", "shuffle")
    prompt: str = _chosen("groundmore", "referring")
    answer_mode: str = _chosen("generate", "forced")
    decoding: str = _chosen("greedy")
    max_new_tokens: int = 32
    force_seg_token: bool = False
    force_loc_token: bool = False
    seg_only: bool = False
    mask_resize: str = _chosen("bilinear_logits")
    mask_threshold: float = 0.0
    several_seg: str = _chosen("union")
    missing_mask: str = _chosen("empty")
    loc_refine: bool = field(default=False, metadata=SCORED)
    loc_threshold: float = field(default=0.5, metadata=SCORED)
    missing_loc: str = _scored("unrefined")
    window: str = _scored("clipped", "unclipped")
    truth_objects: str = _scored("union")
    truth_ids: str = _scored("raw")
    missing_mask_file: str = _scored("empty")
    absent_object: str = _scored("failed")
    void_pixels: str = _scored("none")
    mask_size: str = _scored("original")
    boundary_tolerance: float = _scored(0.008)
    boundary_match: str = _scored("euclidean_disk")
    both_empty: str = _scored("one")
    failed_question: str = _scored("zero")
    missing_prediction: str = _scored("failed")
    aggregation: str = _scored("questions", "videos")

    def __post_init__(self) -> None:
        problems = Problems()
        for each in dataclasses.fields(self):
            value, kind = getattr(self, each.name), type(each.default)
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits:
                problems.add(each.name, f"{value!r} is not a {_KINDS[kind]}")
        problems.raise_if_any(ConfigError, "the evaluation protocol cannot be used")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                problems.add(name, f"{getattr(self, name)!r} is not one of {', '.join(map(str, allowed))}")
        for name in ("num_frames", "max_new_tokens"):
            if getattr(self, name) < 1:
                problems.add(name, f"must be at least 1, got {getattr(self, name)}")
        if not math.isfinite(self.mask_threshold):
            problems.add("mask_threshold", f"a finite number is needed, got {self.mask_threshold}")
        if not 0.0 <= self.loc_threshold <= 1.0:
            problems.add("loc_threshold", f"a probability from 0 to 1 is needed, got {self.loc_threshold}")
        if self.seg_only and (self.loc_refine or self.force_loc_token):
            problems.add("seg_only", "excludes loc_refine and force_loc_token: there is no [LOC] to use; drop one side")
        problems.raise_if_any(ConfigError, "the evaluation protocol cannot be used")

    def prediction_settings(self) -> dict:
        """The fields that a prediction depends on; records made with other values must not be reused."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in SCORING_FIELDS}

    def as_dict(self) -> dict:
        """Every field, JSON-able."""
        return dataclasses.asdict(self)

    def sample(self, num_clip_frames: int) -> np.ndarray:
        """int64 [n], not decreasing: the listed frames of a clip of ``num_clip_frames`` frames; n is ``num_frames``, or
        the clip's length if every frame is listed.

        Raises:
            ValueError: the clip has no frame.
        """
        if self.frame_sampling == "every":
            return uniform_frames(num_clip_frames, num_clip_frames)
        sampler = linspace_truncated if self.frame_sampling == "linspace_truncated" else uniform_frames
        return sampler(num_clip_frames, self.num_frames)

    def describe(self) -> list[str]:
        """One line per choice, for the head of a result."""
        lines = [f"protocol {self.name}"]
        lines += [f"  {key} = {value}" for key, value in self.as_dict().items() if key != "name"]
        return lines


CHOICES: dict[str, tuple[str | float, ...]] = {
    each.name: each.metadata["choices"] for each in dataclasses.fields(Protocol) if "choices" in each.metadata
}
"""Allowed values of the fields that are choices."""

SCORING_FIELDS = tuple(each.name for each in dataclasses.fields(Protocol) if "scored" in each.metadata)

PRESETS: dict[str, dict] = {
    "groundmore": {},
    "groundmore_2025": {"frame_sampling": "linspace_truncated", "window": "unclipped"},
    "mevis": {"frame_sampling": "every", "prompt": "referring"},
}
"""Named starting points: the corrected protocol, the arithmetic of the evaluator published in 2025, MeViS."""


def make_protocol(name: str = "groundmore", **overrides) -> Protocol:
    """A preset with some fields replaced.

    Args:
        name: a key of PRESETS.
        overrides: fields of :class:`Protocol`; None leaves the preset's value.

    Raises:
        ConfigError: unknown preset, or values that :class:`Protocol` refuses (all of them listed).
    """
    if name not in PRESETS:
        raise ConfigError(f"--protocol {name}: unknown; choose one of {', '.join(PRESETS)}")
    chosen = {key: value for key, value in overrides.items() if value is not None}
    return Protocol(**{"name": name, **PRESETS[name], **chosen})
