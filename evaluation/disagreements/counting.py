"""Cases in which two scripts have the same masks and count them differently."""

from __future__ import annotations

import numpy as np

from evaluation.disagreements.world import case, disc, during, jf, jf_frames, moving_disc, shifted
from evaluation.metrics import region_similarity


def _ten_questions() -> list[float]:
    """J&F of ten questions about a disc that is asked for in the first half of its clip; each mask a bit more off."""
    truth = during(moving_disc(), 0, 9)
    return [jf(truth, shifted(truth, error // 2, error)) for error in range(10)]


@case("drops the question from the mean", "counts it as 0", 2, "missing_prediction", "failed_question")
def missing_prediction() -> tuple[float, float]:
    """Ten questions; one of them has no prediction, because a worker died or a file was not written.

    The mean over what is there is higher than the mean over what was asked. It also rewards failing: losing the
    hardest questions raises the score. Here every question of the annotation file is counted; one without a prediction
    is a failure with a reason, scores 0 and makes the program end with an error.
    """
    scores = _ten_questions()[:9]
    return float(np.mean(scores)), sum(scores) / 10


@case("writes an empty mask and goes on", "counts the question as 0", 2, "failed_question")
def failed_inference() -> tuple[float, float]:
    """Ten questions; one of them raises an error, out of memory for instance.

    An empty mask is an answer: on every frame outside the action it is right and scores 1. So a crash scores half
    of what a perfect answer does here, and nobody is told.
    """
    truth = during(moving_disc(), 0, 9)
    scores = _ten_questions()[:9]
    return float(np.mean([*scores, jf(truth, np.zeros_like(truth))])), sum(scores) / 10


@case("leaves such frames out (nan, nanmean)", "gives 1", 2, "both_empty")
def both_empty_left_out() -> tuple[float, float]:
    """The object is asked for in the first half of the clip, and the prediction is silent in the second half.

    J of an empty mask against an empty ground truth is 0/0. Left at nan and skipped by the mean, knowing when to be
    silent is worth nothing; at 1 it is worth half of this clip. DAVIS defines 1.
    """
    truth = during(moving_disc(), 0, 9)
    predicted = shifted(truth, 1, 2)
    visible = truth.any(axis=(1, 2))
    return float(jf_frames(truth, predicted)[visible].mean()), jf(truth, predicted)


@case("gives 0", "gives 1", 2, "both_empty")
def both_empty_zero() -> tuple[float, float]:
    """The same masks as in `both_empty_left_out`, scored with a J that returns 0 for an empty union.

    Libraries for boxes and instances do that, COCO's IoU among them. Being right about silence then costs as much as
    being wrong.
    """
    truth = during(moving_disc(), 0, 9)
    predicted = shifted(truth, 1, 2)
    visible = truth.any(axis=(1, 2))
    return float(np.where(visible, jf_frames(truth, predicted), 0.0).mean()), jf(truth, predicted)


@case("averages over videos", "averages over questions", 2, "aggregation")
def mean_over_videos() -> tuple[float, float]:
    """Two videos: eight questions about the first, answered well, and two about the second, answered badly.

    The mean of the videos' means weighs a question by how few others its clip has.
    """
    truth = during(moving_disc(), 0, 9)
    first = [jf(truth, shifted(truth, 0, 1))] * 8
    second = [jf(truth, shifted(truth, 12, 0))] * 2
    return float(np.mean([np.mean(first), np.mean(second)])), float(np.mean(first + second))


@case("averages over all frames of all questions", "averages per question first", 2, "aggregation")
def mean_over_frames() -> tuple[float, float]:
    """Two questions, all frames scored: a good answer about a clip of 60 frames, a bad one about a clip of 10.

    Pooling the frames weighs a question by the length of its clip.
    """
    long, short = moving_disc(60), moving_disc(10)
    good, bad = jf_frames(long, shifted(long, 0, 1)), jf_frames(short, shifted(short, 10, 0))
    return float(np.concatenate([good, bad]).mean()), float((good.mean() + bad.mean()) / 2)


@case("averages the means of the question types", "averages over questions", 2, "aggregation")
def mean_over_types() -> tuple[float, float]:
    """Eight questions of one type, answered well, and two of another, answered badly.

    A mean of the types' means weighs a question by how rare its type is. Here every type has its own line, and the
    line Overall is the mean over all questions.
    """
    truth = during(moving_disc(), 0, 14)
    many, few = [jf(truth, shifted(truth, 0, 1))] * 8, [jf(truth, shifted(truth, 12, 0))] * 2
    return float((np.mean(many) + np.mean(few)) / 2), float(np.mean(many + few))


@case("divides summed areas (cumulative IoU)", "averages J over frames", 2, "aggregation", measure="J")
def cumulative_iou() -> tuple[float, float]:
    """An object that comes closer: small and missed in the first half of the clip, large and found in the second.

    Sums of intersections over sums of unions weigh a frame by the size of its object.
    """
    truth = np.stack([disc(24, 32, 3 if frame < 10 else 15) for frame in range(20)])
    predicted = truth.copy()
    predicted[:10] = shifted(truth[:10], 0, 20)
    cumulative = (truth & predicted).sum() / (truth | predicted).sum()
    return float(cumulative), float(region_similarity(truth, predicted).mean())


def _silence(last: int) -> tuple[float, float]:
    """J&F of an all-empty answer and of perfect masks without timing; the action fills frames 0 to ``last`` of 20."""
    everywhere = moving_disc()
    truth = during(everywhere, 0, last)
    return jf(truth, np.zeros_like(truth)), jf(truth, everywhere)


@case("is given empty masks only", "is given perfect masks on every frame", None)
def silence_short_action() -> tuple[float, float]:
    """Two answers, one script: the action fills a quarter of the clip, and the ground truth is empty outside it.

    An answer that says nothing scores the share of frames outside the action, 0.75, and the right object without its
    time the complement, 0.25. A J&F of 0.5 means nothing until it stands beside these: they are the rows `all_empty`
    and `untimed_truth` of every report, and in-window J and temporal IoU tell the two sides apart.
    """
    return _silence(4)


@case("is given empty masks only", "is given perfect masks on every frame", None)
def silence_long_action() -> tuple[float, float]:
    """As `silence_short_action`, but the action fills three quarters of the clip; now silence is the worse answer."""
    return _silence(14)


@case("takes the mask of the first [SEG]", "unites the masks of all", 2, "several_seg")
def several_seg() -> tuple[float, float]:
    """The question asks for two objects, and the answer says [SEG] twice, once for each."""
    one, other = moving_disc(row=14, radius=6), moving_disc(row=34, radius=9)
    return jf(one | other, one), jf(one | other, one | other)


@case("puts [SEG] into every answer (teacher forcing)", "lets the model write its answer", 2, "answer_mode")
def forced_seg() -> tuple[float, float]:
    """Ten questions to a stand-in for a model whose masks are good, but which forgets to say [SEG] in three answers.

    With the token forced, the decoder is asked ten times and the score shows the masks alone; without, the three
    answers are empty masks. Published figures mix the two. Here the answer is free unless `answer_mode` is `forced`;
    `force_seg_token` appends a token that was forgotten, and how often that happened is printed.
    """
    truth = during(moving_disc(), 0, 14)
    mask = shifted(truth, 1, 2)
    says_seg = [True, True, False, True, True, True, False, True, True, False]
    free = [jf(truth, mask if said else np.zeros_like(mask)) for said in says_seg]
    return jf(truth, mask), float(np.mean(free))


def _robustness(truth: np.ndarray, predicted: np.ndarray, objects: np.ndarray) -> float:
    """Robustness R of referring video segmentation, per frame 1 - |predicted outside the truth| / |all objects|, at
    least 0; computed on uint8 [T, H, W] as they come."""
    outside = ((1 - truth) * predicted).sum(axis=(1, 2))
    pixels = objects.sum(axis=(1, 2))
    return float(np.maximum(1 - outside / (pixels + 1e-6), 0).mean())


@case("stores masks as 0 and 255", "stores masks as 0 and 1", 2, measure="R")
def png_values() -> tuple[float, float]:
    """The robustness R of referring video segmentation, on the same masks in two encodings.

    R is 1 - (predicted pixels outside the truth) / (pixels of all annotated objects), often computed as a product of
    uint8 arrays. A prediction stored as 0 and 255 counts every wrong pixel 255 times. J and F do not notice. Here a
    mask is boolean from the moment it is read; the metrics refuse anything else.
    """
    truth, other = moving_disc(row=14, radius=8), moving_disc(row=36, radius=9)
    predicted = shifted(truth, 0, 1)
    arrays = [mask.astype(np.uint8) for mask in (truth, truth | other)]
    return (
        _robustness(arrays[0], predicted.astype(np.uint8) * 255, arrays[1]),
        _robustness(arrays[0], predicted.astype(np.uint8), arrays[1]),
    )


@case("adds the objects' masks in uint8", "unites them", 2, "truth_objects", measure="R")
def overlapping_objects() -> tuple[float, float]:
    """R of a perfect prediction for two objects that overlap.

    Where they do, the sum is 2, 1 - 2 wraps to 255 in uint8, and every such pixel counts as 255 wrong ones.
    """
    one, other = moving_disc(row=20, radius=8), moving_disc(row=28, radius=8)
    united = (one | other).astype(np.uint8)
    return (
        _robustness(one.astype(np.uint8) + other.astype(np.uint8), united, united),
        _robustness(united, united, united),
    )


CASES = (
    missing_prediction,
    failed_inference,
    forced_seg,
    several_seg,
    silence_short_action,
    silence_long_action,
    both_empty_left_out,
    both_empty_zero,
    mean_over_videos,
    mean_over_frames,
    mean_over_types,
    cumulative_iou,
    png_values,
    overlapping_objects,
)
"""In the order of the page."""
