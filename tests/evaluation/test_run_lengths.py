"""Ground truth and the choice of the object from run lengths are those from pixels, whatever the masks look like."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.sample import Question
from evaluation.benchmarks.groundmore import object_details
from evaluation.metrics import run_lengths
from evaluation.scoring.truth import Pieces, Truth
from utils.masks import encode_rle


def pixel_details(masks, id_maps, in_window, answer):
    """The same counted on pixels, frame by frame."""
    overlap, area, predicted = np.zeros(256, int), np.zeros(256, int), 0
    for mask, ids, inside in zip(masks, id_maps, in_window):
        if inside:
            overlap += np.bincount(ids[mask], minlength=256)
            area += np.bincount(ids.ravel(), minlength=256)
            predicted += int(mask.sum())
    visible = np.flatnonzero(area[1:]) + 1
    iou = {int(each): overlap[each] / (area[each] + predicted - overlap[each]) for each in visible}
    best = max(iou, key=iou.get, default=None)
    hit = best is not None and iou[best] > 0
    shown = [each for each in answer if area[each]]
    shared = overlap[shown].sum()
    return {
        "answer": sorted(answer),
        "visible": visible.tolist(),
        "best": best if hit else None,
        "best_iou": iou[best] if hit else None,
        "answer_iou": shared / (area[shown].sum() + predicted - shared) if shown else None,
    }


@pytest.mark.parametrize("seed", range(40))
def test_runs_count_as_pixels_do(seed):
    rng = np.random.default_rng(seed)
    frames, height, width = 4, int(rng.integers(1, 9)), int(rng.integers(1, 9))
    blocks = rng.choice([0, 1, 2, 7, 255], size=(frames, height, width))
    id_maps = (blocks if seed % 2 else np.maximum.accumulate(blocks, axis=seed % 3)).astype(np.uint8)
    masks = rng.random((frames, height, width)) < rng.choice([0.0, 0.3, 1.0])
    in_window, answer = rng.random(frames) < 0.7, (7, 1)
    pieces = [Pieces.of(ids) for ids in id_maps]
    truth = Truth((height, width), [each.mask(answer) for each in pieces], in_window, np.ones(frames, bool), pieces)
    assert np.array_equal(truth.masks(), np.isin(id_maps, answer))
    assert truth.visible.tolist() == [bool(np.isin(ids, answer).any()) for ids in id_maps]
    runs = run_lengths([encode_rle(mask) for mask in masks])
    question = Question("0", "what?", True, object_ids=answer)
    assert object_details(runs, truth, question) == pixel_details(masks, id_maps, in_window, answer)
