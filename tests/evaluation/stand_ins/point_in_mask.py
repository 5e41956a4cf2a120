"""A benchmark of points: do they lie on the object, and how far from its middle?"""

from __future__ import annotations

import numpy as np

from evaluation.benchmark import Benchmark, Kind, Measure
from evaluation.benchmarks.groundmore import BENCHMARK as GROUNDMORE
from evaluation.scoring.masks import mask_state
from evaluation.scoring.truth import ClipTruth


def hit(truth, record, question, listed, protocol):
    """Means over the listed frames that show the object; the other row points at the middle of every frame."""
    if truth is None:
        return {"rows": {}}
    masks, shown = truth.masks(), np.flatnonzero(truth.visible)
    middle = [[[masks.shape[2] / 2, masks.shape[1] / 2]]] * len(masks)

    def measure(points):
        ys_xs = [np.argwhere(masks[frame]).mean(0) for frame in shown]
        first = [points[frame][0] for frame in shown]
        inside = [masks[frame][int(y), int(x)] for frame, (x, y) in zip(shown, first)]
        far = [np.hypot(x - cx, y - cy) for (x, y), (cy, cx) in zip(first, ys_xs)]
        return {"inside": float(np.mean(inside)), "distance": float(np.mean(far))}

    own = {"inside": 0.0} if record is None else measure(record.points)
    return {"rows": {"model": own, "middle": measure(middle)}}


BENCHMARK = Benchmark(
    name="point_in_mask",
    corpus="groundmore",
    open=GROUNDMORE.open,
    inputs=GROUNDMORE.inputs,
    kind=Kind("points", truths=ClipTruth, state=mask_state),
    score=hit,
    groups=(),
    measures=(
        Measure("inside", "on the object", "share of the points inside the mask", ("main", "reference", "detail")),
        Measure("distance", "distance", "pixels from the middle", ("main", "detail"), better="lower"),
    ),
    rows={"model": ("result", "the points"), "middle": ("baseline", "the middle of every frame")},
    constant=("middle",),
    tables={"main": "Points"},
    zero=("inside",),
    protocol="groundmore",
)
