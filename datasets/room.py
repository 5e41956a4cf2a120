"""How many tokens frames of kept shape cost, and how much smaller they must be where a row has no room for them."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from datasets.pixels import area_size
from utils.batch import FrameMarks, PixelRule
from utils.errors import DataError

FEWEST = 64
"""Tokens of a frame below which it is not made smaller: 256 x 256 pixels of Qwen3-VL, where little can be seen."""


def frame_tokens(height: int, width: int, rule: PixelRule) -> int:
    """Visual tokens of a frame of that size, or of two neighbours that share them; ``rule`` is of kind "area".

    Raises:
        DataError: see :func:`datasets.pixels.area_size`.
    """
    h, w = area_size(height, width, rule)
    return h * w // rule.size**2


def fitted_rule(height: int, width: int, rule: PixelRule, images: int, text: int, most: int) -> PixelRule:
    """``rule`` with the largest ``max_pixels`` under which a row has room for its frames; ``min_pixels`` goes down with
    it where it must.

    Args:
        height, width: of the frames.
        rule: of kind "area".
        images: how often a frame, or two that share their tokens, stands in the row; at least 1.
        text: tokens of the row that are not visual: text, times, marks.
        most: tokens of the whole row.

    Returns:
        ``rule`` itself if all fits.

    Raises:
        DataError: there is no room even at FEWEST tokens a frame.
    """
    full, room = frame_tokens(height, width, rule), (most - text) // images
    if full <= room:
        return rule

    def lowered(pixels: int) -> PixelRule:
        return dataclasses.replace(rule, min_pixels=min(rule.min_pixels, pixels), max_pixels=pixels)

    sizes = range(rule.size**2, rule.max_pixels + 1)
    # Tokens grow with the bound, so that the last one that fits can be searched for. (Not always for frames narrower
    # than one token and 20 times as long; there it may be a lower one.)
    fitting = bisect.bisect_right(sizes, room, key=lambda pixels: frame_tokens(height, width, lowered(pixels)))
    if not fitting or frame_tokens(height, width, found := lowered(sizes[fitting - 1])) < FEWEST:
        raise DataError(
            f"{images} x {full} visual tokens and {text} of text do not fit into {most}, nor do frames of any "
            f"smaller size that has {FEWEST} tokens or more; raise --model_max_length, lower --num_frames, or use "
            "--frames_as video"
        )
    return found


def describe_change(height: int, width: int, rule: PixelRule, fitted: PixelRule) -> str:
    """What :func:`fitted_rule` did to frames of one size, as a sentence."""
    (h, w), (low_h, low_w) = area_size(height, width, rule), area_size(height, width, fitted)
    return (
        f"frames of {height} x {width} (height x width) are shown at {low_h} x {low_w}, "
        f"{frame_tokens(height, width, fitted)} tokens each, instead of {h} x {w}, "
        f"{frame_tokens(height, width, rule)} tokens, so that a row fits --model_max_length"
    )


def describe_cost(height: int, width: int, rule: PixelRule, marks: FrameMarks, counts: Sequence[int] = (5, 20)) -> str:
    """What frames of one size cost a row of the language model, as a line.

    Args:
        height, width: of the frames.
        rule: of kind "area".
        marks: where a prompt shows them; with 0 frames behind a mark every frame has a row of its own.
        counts: numbers of frames to tell it for.
    """
    h, w = area_size(height, width, rule)
    each = frame_tokens(height, width, rule)
    told = ", ".join(f"{count} frames {-(-count // (marks.frames or count)) * each:,}" for count in counts)
    by = f"every {marks.frames} frames" if marks.frames > 1 else "a frame"
    size = f"frames of {height} x {width} (height x width) are shown at {h} x {w}"
    return f"{size}: {each} visual tokens for {by}; in a row: {told}"
