"""Cases in which two scripts look at other frames, or read the action window differently."""

from __future__ import annotations

import numpy as np

from evaluation.disagreements.world import case, during, jf, jf_frames, moving_disc, shifted
from evaluation.protocol import make_protocol
from utils.video import frame_number, frame_order


def _wrong_order(names: list[str]) -> float:
    """J&F of perfect masks, one per name as listed, scored against the truth of frame 0, 1, 2, ..."""
    truth = moving_disc(len(names))
    return jf(truth, truth[[frame_number(name) for name in names]])


@case("lists the folder and does not sort", "sorts by the number in the name", 2, "frame_order")
def folder_order() -> tuple[float, float]:
    """Perfect masks of a clip whose frames were read in the order in which the file system lists them.

    `os.listdir` promises no order. If predictions follow it while the ground truth is read by frame number, every mask
    is compared with another moment. Shown with a folder that gives every seventh name; on another disk the number is
    another, and on some it is 1.
    """
    names = [f"frame_{index * 7 % 20:06d}.jpg" for index in range(20)]
    return _wrong_order(names), _wrong_order(sorted(names, key=frame_order))


@case("sorts names as text", "sorts by the number in the name", 2, "frame_order")
def text_order() -> tuple[float, float]:
    """As `folder_order`, with the names sorted, but written without leading zeros: frame_10 comes before frame_2."""
    names = [f"frame_{index}.jpg" for index in range(20)]
    return _wrong_order(sorted(names)), _wrong_order(sorted(names, key=frame_order))


@case("cuts decimals off (linspace, dtype=int)", "rounds", 2, "frame_sampling")
def truncated_linspace() -> tuple[float, float]:
    """Perfect masks without timing on twenty frames of a clip of 50; the action fills frames 21 to 31.

    Most of the evenly spaced positions have decimals. Cut off, many of the frames are one earlier, and other frames
    lie in the window: 4 of 20 instead of 5. `--protocol groundmore_2025` cuts, `groundmore` rounds.
    """
    predicted = moving_disc(50)
    truth = during(predicted, 21, 31)
    frames = [make_protocol(name).sample(50) for name in ("groundmore_2025", "groundmore")]
    return jf(truth[frames[0]], predicted[frames[0]]), jf(truth[frames[1]], predicted[frames[1]])


@case("looks at 5 frames", "looks at 20 frames", 2, "num_frames")
def number_of_frames() -> tuple[float, float]:
    """One prediction for a clip of 58 frames; the action fills frames 12 to 30, the masks are a little off.

    The share of frames on which silence is right depends on which frames are asked.
    """
    objects = moving_disc(58)
    truth = during(objects, 12, 30)
    predicted = shifted(truth, 1, 2)
    frames = [make_protocol(num_frames=count).sample(58) for count in (5, 20)]
    return jf(truth[frames[0]], predicted[frames[0]]), jf(truth[frames[1]], predicted[frames[1]])


@case("scores the frames that show the object", "scores all listed frames", None, "num_frames")
def annotated_frames() -> tuple[float, float]:
    """Good masks that ignore time; the action fills a quarter of the clip.

    A script that goes through the mask files, and skips frames without one, never sees a mask where there should be
    none. J&F here is over all listed frames; in-window J and F stand beside it and are over those that show the object.
    """
    objects = moving_disc()
    truth, predicted = during(objects, 5, 9), shifted(objects, 0, 1)
    visible = truth.any(axis=(1, 2))
    return jf(truth[visible], predicted[visible]), jf(truth, predicted)


@case("counts every distinct frame once", "counts a frame as often as it is listed", 2, "repeated_frames")
def short_clip() -> tuple[float, float]:
    """Twenty frames of a clip of 7: each is listed two to four times. The object is found in the first three frames."""
    truth = moving_disc(7)
    predicted = during(truth, 0, 2)
    per_frame = jf_frames(truth, predicted)
    return float(per_frame.mean()), float(per_frame[make_protocol().sample(7)].mean())


@case("takes the window as written", "has the window corrected first", 2, "window")
def window_outside_clip() -> tuple[float, float]:
    """Four questions; the annotation file puts the last one's action before the clip begins (frames -24 to -13
    instead of 0 to 11). All four answers are the object, where it really acts.

    As written, no frame lies in the window, the ground truth is empty everywhere, and the good answer loses on the
    twelve frames where it shows the object; silence would score 1. `--protocol groundmore` refuses the file and lists
    such windows (one that reaches beyond the clip is cut to it); `groundmore_2025` takes them as written.
    """
    objects = moving_disc(24)
    answer = during(objects, 0, 11)
    good = [jf(answer, shifted(answer, 1, 1))] * 3
    as_written = jf(during(objects, -24, -13), shifted(answer, 1, 1))
    return float(np.mean([*good, as_written])), float(np.mean([*good, good[0]]))


@case("knows one naming convention", "finds masks under both", 2, "missing_mask_file")
def mask_names() -> tuple[float, float]:
    """Perfect masks of a clip whose files are called 0000012.png, read by a script that looks for frame_000012.png.

    A file that is not found is taken as an empty mask, so nothing fails: the truth is silently empty and the right
    answer is wrong on every frame of the action. Here masks are found by the number in the name, a clip without any
    is an error, and in-window frames without a mask file are counted in the report.
    """
    objects = moving_disc()
    answer = during(objects, 0, 9)
    files = {f"{index:07d}.png": index for index in range(20)}
    by_number = {frame_number(name): index for name, index in files.items()}
    truths = []
    for found in ([files.get(f"frame_{index:06d}.png") for index in range(20)], [by_number.get(i) for i in range(20)]):
        truths.append(np.stack([np.zeros_like(objects[0]) if index is None else answer[index] for index in found]))
    return jf(truths[0], answer), jf(truths[1], answer)


CASES = (
    folder_order,
    text_order,
    truncated_linspace,
    number_of_frames,
    annotated_frames,
    short_clip,
    window_outside_clip,
    mask_names,
)
"""In the order of the page."""
