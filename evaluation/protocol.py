"""The evaluation contract: every choice that changes a number is a named field, printed and stored with the result.

What each field means, and what each choice is worth, is told in docs/evaluation.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from datasets.sampling import linspace_truncated, uniform_frames
from utils.errors import ConfigError, Problems

CHOICES: dict[str, tuple[str | float, ...]] = {
    "frame_order": ("numeric",),
    "frame_sampling": ("uniform", "linspace_truncated", "every"),
    "repeated_frames": ("counted",),
    "frame_control": ("none", "repeat_first", "shuffle"),
    "prompt": ("groundmore", "referring"),
    "answer_mode": ("generate", "forced"),
    "decoding": ("greedy",),
    "mask_resize": ("bilinear_logits",),
    "several_seg": ("union",),
    "missing_mask": ("empty",),
    "missing_loc": ("unrefined",),
    "window": ("clipped", "unclipped"),
    "truth_objects": ("union",),
    "truth_ids": ("raw",),
    "missing_mask_file": ("empty",),
    "absent_object": ("failed",),
    "void_pixels": ("none",),
    "mask_size": ("original",),
    "boundary_tolerance": (0.008,),
    "boundary_match": ("euclidean_disk",),
    "both_empty": ("one",),
    "failed_question": ("zero",),
    "missing_prediction": ("failed",),
    "aggregation": ("questions", "videos"),
}
"""Allowed values of the fields of :class:`Protocol` that are choices. One value: stated, not selectable."""

_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}

SCORING_FIELDS = (
    "name",
    "repeated_frames",
    "loc_refine",
    "loc_threshold",
    "missing_loc",
    "window",
    "truth_objects",
    "truth_ids",
    "missing_mask_file",
    "absent_object",
    "void_pixels",
    "mask_size",
    "boundary_tolerance",
    "boundary_match",
    "both_empty",
    "failed_question",
    "missing_prediction",
    "aggregation",
)
"""Fields that change scores but not predictions: records made under other values of these can be scored again."""


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

    name: str = "groundmore"
    num_frames: int = 20
    frame_order: str = "numeric"
    frame_sampling: str = "uniform"
    repeated_frames: str = "counted"
    frame_control: str = "none"
    prompt: str = "groundmore"
    answer_mode: str = "generate"
    decoding: str = "greedy"
    max_new_tokens: int = 32
    force_seg_token: bool = False
    force_loc_token: bool = False
    seg_only: bool = False
    mask_resize: str = "bilinear_logits"
    mask_threshold: float = 0.0
    several_seg: str = "union"
    missing_mask: str = "empty"
    loc_refine: bool = False
    loc_threshold: float = 0.5
    missing_loc: str = "unrefined"
    window: str = "clipped"
    truth_objects: str = "union"
    truth_ids: str = "raw"
    missing_mask_file: str = "empty"
    absent_object: str = "failed"
    void_pixels: str = "none"
    mask_size: str = "original"
    boundary_tolerance: float = 0.008
    boundary_match: str = "euclidean_disk"
    both_empty: str = "one"
    failed_question: str = "zero"
    missing_prediction: str = "failed"
    aggregation: str = "questions"

    def __post_init__(self) -> None:
        problems = Problems()
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits:
                problems.add(field.name, f"{value!r} is not a {_KINDS[kind]}")
        problems.raise_if_any(ConfigError, "the evaluation protocol cannot be used")
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                problems.add(field, f"{getattr(self, field)!r} is not one of {', '.join(map(str, allowed))}")
        for field in ("num_frames", "max_new_tokens"):
            if getattr(self, field) < 1:
                problems.add(field, f"must be at least 1, got {getattr(self, field)}")
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


PRESETS: dict[str, dict] = {
    "groundmore": {},
    "groundmore_2025": {"frame_sampling": "linspace_truncated", "window": "unclipped"},
    "mevis": {"frame_sampling": "every", "prompt": "referring"},
}
"""Named starting points: the corrected protocol, and the arithmetic of the evaluator published in 2025."""


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
