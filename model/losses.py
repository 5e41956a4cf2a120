"""Losses of MoRA: language, masks, localization. Everything is computed in float32.

Masks are supervised as in LISA (Lai et al. 2024): per-mask Dice with the probabilities divided by 1000, which makes the
epsilon worth a thousandth of a pixel, and per-mask mean binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.batch import IGNORE_INDEX

DICE_SCALE = 1000.0
DICE_EPS = 1e-6
COUNT_EPS = 1e-8


@dataclass(frozen=True)
class LossWeights:
    """Factors of the four losses in their sum.

    Attributes:
        ce: language, on the answer's tokens.
        bce: binary cross-entropy of the masks.
        dice: Dice of the masks.
        loc: localization in time.
    """

    ce: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    loc: float = 1.0


def dice_per_mask(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask.

    Args:
        logits: float [N, H, W].
        targets: [N, H, W] of 0 and 1.

    Returns:
        float32 [N], from 0 (equal) to 1; about 1 for an empty target unless hardly any probability is spent.
    """
    scaled = logits.float().flatten(1).sigmoid() / DICE_SCALE
    targets = targets.float().flatten(1)
    overlap = 2 * (scaled * targets).sum(-1)
    total = scaled.sum(-1) + (targets / DICE_SCALE).sum(-1)
    return 1 - (overlap + DICE_EPS) / (total + DICE_EPS)


def bce_per_mask(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, mean over its pixels.

    Args:
        logits: float [N, H, W].
        targets: [N, H, W] of 0 and 1.

    Returns:
        float32 [N].
    """
    pixels = F.binary_cross_entropy_with_logits(logits.float().flatten(1), targets.float().flatten(1), reduction="none")
    return pixels.mean(-1)


def mask_losses(videos: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Unweighted mask losses of a batch.

    Each video's losses are averaged over its N masks and weigh N, so every mask counts the same.

    Args:
        videos: (logits, targets) per video, both [N, H, W]; N may be 0 and sizes may differ between videos.
        device: where the result lives when there is no mask at all.

    Returns:
        (bce, dice), 0-dim float32; zero without masks.
    """
    bce = torch.zeros((), device=device)
    dice = torch.zeros((), device=device)
    total = 0
    for logits, targets in videos:
        count = logits.shape[0]
        if not count:
            continue
        share = count / (count + COUNT_EPS)
        bce = bce + bce_per_mask(logits, targets).sum() * share
        dice = dice + dice_per_mask(logits, targets).sum() * share
        total += count
    return bce / (total + COUNT_EPS), dice / (total + COUNT_EPS)


def language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of next-token predictions.

    Args:
        logits: float [M, V], at the positions that predict a target.
        targets: int64 [M]; ``IGNORE_INDEX`` is skipped.

    Returns:
        0-dim float32; zero (with a gradient of zero) when nothing is supervised.
    """
    supervised = targets != IGNORE_INDEX
    total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / supervised.sum().clamp(min=1)


def localization_loss(predictions: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Mean over questions of the binary cross-entropy over frames.

    Args:
        predictions: (logits [T], in_window [T] of 0 and 1) per question; T may differ.
        device: where the result lives when there is no question.

    Returns:
        0-dim float32; zero without questions.
    """
    if not predictions:
        return torch.zeros((), device=device)
    losses = [F.binary_cross_entropy_with_logits(logits.float(), window.float()) for logits, window in predictions]
    return torch.stack(losses).mean()
