"""The cases: every number follows from its story, our side is this project's own code, and the page shows them."""

from __future__ import annotations

import dataclasses
import os

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from evaluation.disagreements import __main__ as disagreements
from evaluation.disagreements import masks as disagreements_masks
from evaluation.disagreements.__main__ import all_cases, main, page
from evaluation.disagreements.world import during, moving_disc, shifted
from evaluation.metrics import contour_accuracy, region_similarity, score_clip
from evaluation.protocol import Protocol
from utils.masks import palette

BEGIN, END = "<!-- cases begin -->\n", "<!-- cases end -->"


@pytest.fixture(scope="module")
def numbers():
    return {name: case.run() for name, case in all_cases().items()}


def test_every_case_disagrees_by_more_than_rounding(numbers):
    assert len(numbers) >= 30
    for name, (first, second) in numbers.items():
        assert 0 <= first <= 1 and 0 <= second <= 1, name
        assert abs(first - second) >= 0.015, name


def test_every_case_is_told_and_names_fields_of_the_protocol():
    fields = {field.name for field in dataclasses.fields(Protocol)}
    for name, case in all_cases().items():
        assert case.name == name and case.explanation and case.measure in ("J&F", "J", "F", "R")
        assert case.ours in (1, 2, None) and set(case.fields) <= fields, name


def test_names_are_used_once():
    assert len(all_cases()) == sum(len(cases) for cases in disagreements.GROUPS.values())


def test_dropped_and_silent_failures(numbers):
    dropped, zero = numbers["missing_prediction"]
    assert zero == pytest.approx(0.9 * dropped)
    silent, failed = numbers["failed_inference"]
    assert failed == zero and silent == pytest.approx(zero + 0.5 / 10)  # silence is right on half of the frames


def test_silence_scores_the_empty_share_and_untimed_masks_the_complement(numbers):
    assert numbers["silence_short_action"] == (0.75, 0.25)
    assert numbers["silence_long_action"] == (0.25, 0.75)


def test_empty_against_empty(numbers):
    left_out, one = numbers["both_empty_left_out"]
    zero, same = numbers["both_empty_zero"]
    assert same == one == pytest.approx((left_out + 1) / 2) and zero == pytest.approx(left_out / 2)
    empty = np.zeros((9, 9), dtype=np.uint8, order="F")
    encoded = coco.encode(empty)
    assert coco.iou([encoded], [encoded], [0])[0, 0] == 0  # what the explanation says of COCO
    assert region_similarity(empty > 0, empty > 0)[0] == 1


def good_and_bad(frames, last, bad_rows):
    """J&F of the right disc one pixel off, and of one that is far off, by frame."""
    truth = during(moving_disc(frames), 0, last)
    pairs = [score_clip(truth, shifted(truth, *move)) for move in ((0, 1), (bad_rows, 0))]
    return [(j + f) / 2 for j, f in pairs]


def test_means(numbers):
    for name, last in (("mean_over_videos", 9), ("mean_over_types", 14)):
        good, bad = (values.mean() for values in good_and_bad(20, last, 12))
        assert numbers[name] == (pytest.approx((good + bad) / 2), pytest.approx((8 * good + 2 * bad) / 10))
    good, bad = good_and_bad(60, 59, 10)[0].mean(), good_and_bad(10, 9, 10)[1].mean()
    assert numbers["mean_over_frames"] == (pytest.approx((6 * good + bad) / 7), pytest.approx((good + bad) / 2))
    small, large = np.pi * 3**2, np.pi * 15**2
    assert numbers["cumulative_iou"] == (pytest.approx(large / (large + 2 * small), abs=0.01), 0.5)


def test_tokens(numbers):
    forced, free = numbers["forced_seg"]
    assert free == pytest.approx(0.7 * forced + 0.3 * 0.25)  # silence is right on a quarter of the frames
    assert numbers["several_seg"][1] == numbers["several_ids"][1] == 1


def test_robustness_in_two_encodings(numbers):
    assert numbers["png_values"][0] == 0 and 0.9 < numbers["png_values"][1] < 1
    assert numbers["overlapping_objects"] == (0, 1)


def test_frames(numbers):
    assert numbers["text_order"] == (0.1, 1.0)  # of 20 frames only 0 and 1 stay where they are
    assert 0 < numbers["folder_order"][0] < 0.5 and numbers["folder_order"][1] == 1
    exact = np.linspace(0, 49, 20)
    inside = [np.isin(frames, range(21, 32)).sum() for frames in (np.trunc(exact), np.rint(exact))]
    assert numbers["truncated_linspace"] == (inside[0] / 20, inside[1] / 20) == (4 / 20, 5 / 20)
    assert numbers["short_clip"] == (3 / 7, 8 / 20)
    assert numbers["mask_names"] == (0.5, 1.0)
    assert numbers["annotated_frames"][1] == pytest.approx(numbers["annotated_frames"][0] / 4)


def exact_disk(edge, radius):
    offsets = np.arange(-radius, radius + 1)
    disk = offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2
    return cv2.dilate(edge.astype(np.uint8), disk.astype(np.uint8)).astype(bool)


@pytest.mark.parametrize("rows, columns", [(7, 4), (8, 4), (7, 7), (0, 3)])
def test_variants_of_f_differ_from_ours_in_the_neighbourhood_only(rows, columns):
    truth, predicted = disagreements_masks.flock(rows, columns)
    assert disagreements_masks.f_of(exact_disk, truth, predicted) == contour_accuracy(truth, predicted)[0]


def test_the_ellipse_has_the_size_that_is_told():
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))
    offsets = np.arange(-8, 9)
    disk = offsets[:, None] ** 2 + offsets[None] ** 2 <= 64
    assert (int(kernel.sum()), int(disk.sum())) == (213, 197)


def test_masks_that_are_handled_well_are_perfect(numbers):
    for name in ("rgb_palette", "foreground", "several_ids"):
        assert numbers[name][1] == 1, name
    assert numbers["rgb_palette"][0] == 0
    colours = Image.fromarray(palette()[np.array([[0, 1, 2, 3]])])
    assert np.array(colours.convert("P")).tolist() == [[0, 13, 28, 25]]
    for name in ("mask_resize", "padding"):
        assert numbers[name][1] > 0.99, name


def test_j_and_f_of_a_case_are_those_of_the_metrics():
    truth, predicted = disagreements_masks.flock(3, 3)
    j, f = score_clip(truth, predicted)
    assert disagreements_masks.jf(truth[None], predicted[None]) == (j[0] + f[0]) / 2


def test_the_program_prints_the_table_and_one_case(capsys, numbers):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, case in all_cases().items():
        line = next(line for line in printed.splitlines() if line.startswith(f"| `{name}` "))
        first, second = numbers[name]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [
            case.measure, case.first, f"{first:.3f}", case.second, f"{second:.3f}", f"{first - second:+.3f}", case.here
        ]  # fmt: skip
    assert main(["--case", "several_seg"]) == 0
    printed = capsys.readouterr().out
    assert "1.0000  a script that unites the masks of all" in printed and "the second, `several_seg`" in printed
    with pytest.raises(SystemExit):
        main(["--case", "nothing"])


def test_the_page_holds_what_the_program_prints(project_root, capsys):
    path = project_root / "docs" / "disagreements.md"
    text = path.read_text()
    if os.environ.get("UPDATE_DOCS"):
        start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
        path.write_text(text[:start] + "\n" + page() + "\n" + text[stop:])
        text = path.read_text()
    assert f"{BEGIN}\n{page()}\n{END}" in text, "run this test with UPDATE_DOCS=1 and look at the difference"
    main([])
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert tables == [line for line in text.splitlines() if line.startswith("|")]
