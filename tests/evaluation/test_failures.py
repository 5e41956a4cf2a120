"""evaluation/report/failures.py: hand-made scores, one for every name, and the arithmetic of what was lost."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.benchmark import find_benchmark
from evaluation.report.failures import NAMES, breakdown, judge


def question(raw, window=range(4, 16), kept=None, best=1, status="ok", seg=True, visible=None):
    """A score of 20 frames whose in-window frames show object 1; ``raw``: J = F of the masks there, -1: no mask.

    Outside the window there is always a mask, so that keeping it costs the whole frame.
    """
    inside = np.isin(np.arange(20), list(window))
    visible = np.ones(20, dtype=bool) if visible is None else np.asarray(visible, dtype=bool)
    kept = inside if kept is None else np.isin(np.arange(20), list(kept))
    iou = np.zeros(20)
    iou[inside] = raw
    shown = np.where(inside, iou > -1, True) & seg
    wanted = inside & visible
    raw_j = np.where(wanted, np.maximum(iou, 0), 0.0)
    after = np.where(kept & shown, raw_j, np.where(wanted, 0.0, 1.0))
    timed = np.where(inside, np.where(shown, raw_j, ~wanted), 1.0)

    def row(values):
        window_j = float(values[wanted].mean()) if wanted.any() else None
        return {"JF": float(values.mean()), "window_J": window_j, "window_F": window_j}

    frames = {
        "in_window": inside.tolist(), "visible": visible.tolist(), "shown": shown.tolist(), "kept": kept.tolist(),
        "object_J": np.maximum(iou, 0).tolist(),
    }  # fmt: skip
    objects = {"answer": [1], "visible": [1, 2], "best": best, "best_iou": 0.6, "answer_iou": 0.1}
    failed = status != "ok"
    return {
        "status": status, "reason": "OutOfMemoryError: no memory" if failed else None, "seg_frames": 20 * seg,
        "frames": None if failed else frames, "objects": None if failed else objects,
        "rows": {"model": row(np.zeros(20) if failed else after), "perfect_timing": row(timed)},
    }  # fmt: skip


FULL = np.full(12, 0.9)
CASES = {
    "failed": question(FULL, status="failed"),
    "no token": question(np.full(12, -1.0), seg=False),
    "no mask": question(np.full(12, -1.0)),
    "wrong object": question(np.full(12, 0.05), best=2),
    "good": question(FULL),
    "wrong time": question(FULL, kept=range(0, 8)),
    "drift": question(np.linspace(0.9, 0.1, 12)),
    "partial mask": question(np.full(12, 0.4)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_name_has_its_case(name):
    verdict = judge(CASES[name])
    assert verdict.name == name, verdict
    assert verdict.why and verdict.loss == pytest.approx(1 - CASES[name]["rows"]["model"]["JF"])


def test_the_cases_cover_the_names():
    assert list(CASES) == list(NAMES)


def test_loss_is_timing_plus_masks():
    verdict = judge(CASES["wrong time"])
    # 12 window frames of quality 0.9: 8 of them emptied, 4 kept outside although nothing is there.
    assert verdict.timing_loss == pytest.approx((8 * 0.9 + 4) / 20)
    assert verdict.mask_loss == pytest.approx(12 * 0.1 / 20)
    assert "timing costs 0.56, masks 0.06" == verdict.why


def test_silence_about_a_short_action_is_not_good():
    silent = question(np.full(2, 0.9), window=[9, 10], kept=[])
    assert judge(silent).loss == pytest.approx(0.1)
    assert judge(silent).name == "wrong time"
    assert judge(question(np.full(2, 0.9), window=[9, 10])).name == "good"


def test_a_wrong_object_on_a_short_action_is_not_good():
    assert judge(question(np.full(2, 0.0), window=[9, 10], best=2)).name == "wrong object"


def test_masks_on_no_object_are_on_a_wrong_one():
    score = question(np.full(12, 0.02))
    score["objects"] |= {"best": None, "best_iou": None, "answer_iou": 0.0}
    assert judge(score).name == "wrong object" and "no object" in judge(score).why


def test_a_mask_that_ends_on_another_object_has_drifted():
    swapped = question(np.r_[np.full(4, 0.9), np.zeros(8)], best=2)
    assert judge(swapped).name == "drift"
    assert "0.90 to 0.00" in judge(swapped).why


@pytest.mark.parametrize(
    ("iou", "name"),
    [
        ([0.5] * 4 + [0.2] * 8, "drift"),  # exactly firm, falls exactly enough
        ([0.49] * 4 + [0.1] * 8, "partial mask"),  # never firm
        ([0.7] * 4 + [0.45] * 8, "partial mask"),  # falls too little
        ([0.2] * 8 + [0.9] * 4, "partial mask"),  # gets better
    ],
)
def test_what_counts_as_drift(iou, name):
    assert judge(question(np.asarray(iou))).name == name


def test_a_question_with_nothing_to_see_inside_its_window():
    nothing = question(np.full(12, 0.0), visible=np.zeros(20), kept=range(20))
    assert judge(nothing).name == "wrong time"
    assert judge(question(np.full(12, 0.0), visible=np.zeros(20), kept=[])).name == "good"


def test_the_breakdown_adds_up():
    scores = [*CASES.values(), CASES["good"]]
    table = breakdown(scores, find_benchmark("groundmore"))
    assert [line["name"] for line in table] == list(NAMES)
    assert sum(line["questions"] for line in table) == 9
    mean = np.mean([score["rows"]["model"]["JF"] for score in scores])
    assert sum(line["lost"] for line in table) == pytest.approx(1 - mean)
    for line in table[1:]:
        assert line["timing"] + line["masks"] == pytest.approx(line["lost"])
    assert breakdown([], find_benchmark("groundmore"))[0]["questions"] == 0
