"""What frames cost a row, and how much smaller they become where it has no room for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from datasets.pixels import area_size
from datasets.room import describe_change, describe_cost, fitted_rule, frame_tokens
from utils.batch import FrameMarks, PixelRule
from utils.errors import DataError

HALF = (0.5, 0.5, 0.5)
QWEN = PixelRule(32, "area", HALF, HALF, 200_704, 802_816)
LOW = dataclasses.replace(QWEN, max_pixels=200_704)


@pytest.mark.parametrize(
    ("frame", "resized", "tokens", "images", "video", "low", "low_tokens"),
    [
        ((720, 1280), (672, 1184), 777, (3885, 15540), (2331, 7770), (320, 576), 180),
        ((360, 640), (352, 640), 220, (1100, 4400), (660, 2200), (320, 576), 180),
        ((480, 854), (480, 864), 405, (2025, 8100), (1215, 4050), (320, 576), 180),
        ((480, 640), (480, 640), 300, (1500, 6000), (900, 3000), (384, 512), 192),
    ],
)
def test_costs_of_usual_frames(frame, resized, tokens, images, video, low, low_tokens):
    assert (area_size(*frame, QWEN), frame_tokens(*frame, QWEN)) == (resized, tokens)
    assert (area_size(*frame, LOW), frame_tokens(*frame, LOW)) == (low, low_tokens)
    for group, (five, twenty) in ((1, images), (2, video)):
        told = describe_cost(*frame, QWEN, FrameMarks(group))
        assert told.endswith(f"in a row: 5 frames {five:,}, 20 frames {twenty:,}") and f": {tokens} visual" in told
    assert describe_cost(*frame, QWEN, FrameMarks()).endswith(f"5 frames {tokens:,}, 20 frames {tokens:,}")


@pytest.mark.parametrize(
    "frame", [(720, 1280), (360, 640), (480, 854), (480, 640), (90, 160), (1280, 720), (301, 1999)]
)
@pytest.mark.parametrize(("images", "text"), [(5, 200), (20, 140), (20, 260), (10, 140), (20, 1500)])
def test_the_largest_frames_that_fit(frame, images, text):
    fitted = fitted_rule(*frame, QWEN, images, text, 4096)
    used = images * frame_tokens(*frame, fitted) + text
    assert used <= 4096
    if images * frame_tokens(*frame, QWEN) + text <= 4096:
        assert fitted is QWEN
        return
    above = fitted.max_pixels + 1  # one more pixel would not fit
    more = dataclasses.replace(fitted, min_pixels=min(QWEN.min_pixels, above), max_pixels=above)
    assert images * frame_tokens(*frame, more) + text > 4096
    assert fitted.min_pixels == min(QWEN.min_pixels, fitted.max_pixels)


def test_the_statements_of_the_published_defaults():
    """Five frames at full size, or twenty at the floor, fill 4096 tokens but for 176."""
    square = (896, 896)
    assert frame_tokens(*square, QWEN) == 784 and fitted_rule(*square, QWEN, 5, 176, 4096) is QWEN
    assert fitted_rule(*square, QWEN, 5, 177, 4096).max_pixels < QWEN.max_pixels
    assert frame_tokens(448, 448, LOW) == 196 and fitted_rule(448, 448, LOW, 20, 176, 4096) is LOW


def test_a_change_is_told():
    fitted = fitted_rule(720, 1280, QWEN, 20, 140, 4096)
    assert describe_change(720, 1280, QWEN, fitted) == (
        "frames of 720 x 1280 (height x width) are shown at 320 x 608, 190 tokens each, instead of 672 x 1184, "
        "777 tokens, so that a row fits --model_max_length"
    )


@pytest.mark.parametrize(("images", "text", "most"), [(20, 140, 1300), (20, 4100, 4096), (5, 300, 300), (64, 90, 4096)])
def test_frames_too_small_to_see_are_refused(images, text, most):
    with pytest.raises(DataError, match=f"^{images} x 220 visual .*{text} of text.* into {most}.*"
                                        "--model_max_length.*--num_frames.*--frames_as video"):  # fmt: skip
        fitted_rule(360, 640, QWEN, images, text, most)


def test_frames_of_few_tokens_are_not_made_smaller():
    tiny = PixelRule(16, "area", HALF, HALF, 4096, 4096)
    assert fitted_rule(64, 64, tiny, 5, 40, 120) is tiny
    with pytest.raises(DataError, match="5 x 16 visual tokens and 41 of text"):
        fitted_rule(64, 64, tiny, 5, 41, 120)


def test_any_frame_fits_what_is_found():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width, images = (int(number) for number in rng.integers((8, 8, 1), (1500, 1500, 30)))
        try:
            fitted = fitted_rule(height, width, QWEN, images, 100, 4096)
        except DataError:
            assert images * frame_tokens(height, width, QWEN) > 3996
            continue
        assert images * frame_tokens(height, width, fitted) <= 3996


def test_a_frame_of_extreme_shape_is_refused():
    with pytest.raises(DataError, match="more than 200 times"):
        frame_tokens(10, 2001, QWEN)
    assert frame_tokens(10, 2000, QWEN) > 0
