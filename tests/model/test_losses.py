"""Mask, language and localization losses in closed form."""

import math

import pytest
import torch

from model.losses import (
    LossWeights,
    bce_per_mask,
    dice_per_mask,
    language_loss,
    localization_loss,
    mask_losses,
)
from utils.batch import IGNORE_INDEX

CPU = torch.device("cpu")


def full(value, *shape):
    return torch.full(shape, float(value))


def test_default_weights():
    assert LossWeights() == LossWeights(ce=1.0, bce=2.0, dice=0.5, loc=1.0)


@pytest.mark.parametrize("pixels", [1, 12, 400])
def test_dice_of_a_coin(pixels):
    """p = 1/2 everywhere against a full target: overlap is half of 1.5 pixels' worth."""
    wanted = 1 - (2 * 0.5 * pixels / 1000 + 1e-6) / (1.5 * pixels / 1000 + 1e-6)
    assert dice_per_mask(full(0, 1, 1, pixels), full(1, 1, 1, pixels)).item() == pytest.approx(wanted, abs=1e-6)


def test_dice_extremes():
    sure = full(100, 1, 4, 4)
    assert dice_per_mask(sure, full(1, 1, 4, 4)).item() == pytest.approx(0, abs=1e-6)
    assert dice_per_mask(sure, full(0, 1, 4, 4)).item() == pytest.approx(1, abs=1e-4)
    assert dice_per_mask(-sure, full(0, 1, 4, 4)).item() == pytest.approx(0, abs=1e-6), "silence about nothing"
    # The epsilon is worth a thousandth of a pixel: a probability mass of that size on an empty target costs a half.
    faint = torch.logit(torch.tensor(1e-3 / 16)).expand(1, 4, 4)
    assert dice_per_mask(faint, full(0, 1, 4, 4)).item() == pytest.approx(0.5, abs=1e-3)


def test_bce_in_closed_form():
    logits = torch.tensor([[[0.0, math.log(3)]]])
    wanted = -(math.log(0.5) + math.log(1 - 0.75)) / 2
    assert bce_per_mask(logits, torch.tensor([[[1, 0]]])).item() == pytest.approx(wanted, abs=1e-6)


def test_every_mask_of_a_batch_counts_the_same():
    generator = torch.Generator().manual_seed(0)
    videos = []
    for count, size in ((3, (4, 5)), (0, (4, 4)), (1, (7, 2))):
        logits = torch.randn(count, *size, generator=generator)
        videos.append((logits, torch.randint(0, 2, (count, *size), generator=generator, dtype=torch.uint8)))
    bce, dice = mask_losses(videos, CPU)
    each = torch.cat([bce_per_mask(*video) for video in videos if len(video[0])])
    torch.testing.assert_close(bce, each.mean())
    torch.testing.assert_close(dice, torch.cat([dice_per_mask(*v) for v in videos if len(v[0])]).mean())
    assert mask_losses([], CPU) == (0, 0)


def test_low_precision_is_computed_in_float32():
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.ones(2, 3, 3, dtype=torch.uint8)
    assert dice_per_mask(logits, target).dtype == bce_per_mask(logits, target).dtype == torch.float32
    torch.testing.assert_close(bce_per_mask(logits, target), bce_per_mask(logits.float(), target))


def test_language_loss():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [9.0, 9.0]], requires_grad=True)
    loss = language_loss(logits, torch.tensor([0, 0, IGNORE_INDEX]))
    assert loss.item() == pytest.approx((math.log(2) - math.log(0.75)) / 2, abs=1e-6)
    nothing = language_loss(logits, torch.full((3,), IGNORE_INDEX))
    nothing.backward()
    assert nothing == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
    assert language_loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)) == 0


def test_localization_loss_weighs_questions_not_frames():
    long, short = (full(0, 8), full(1, 8)), (full(math.log(3), 2), full(1, 2))
    wanted = (math.log(2) - math.log(0.75)) / 2
    assert localization_loss([long, short], CPU).item() == pytest.approx(wanted, abs=1e-6)
    assert localization_loss([], CPU) == 0
