"""The summary of scores made by hand: cells, splits, differences, token statistics, and the report a person reads."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from datasets.sample import QUESTION_TYPES
from evaluation.benchmark import OVERALL, find_benchmark
from evaluation.protocol import make_protocol
from evaluation.report.text import format_report, result_lines
from evaluation.scoring.summary import SUMMARY_FORMAT, summarise
from utils.files import write_json

MEASURES = {measure.key: measure.meaning for measure in find_benchmark().measures}
ROWS = find_benchmark().rows
TOKENS = {token.key: token.meaning for token in find_benchmark().kind.tokens}

PROTOCOL = make_protocol(num_frames=4)
CELL = ["mean", "stderr", "low", "high", "N"]


def score(video, query, kind, model, baseline=0.25, **changes) -> dict:
    """A scored question; every measure of a row is the same number, except those that only the model has."""
    shared = [measure for measure in MEASURES if not measure.startswith("object")]
    rows = {name: {**dict.fromkeys(MEASURES), **dict.fromkeys(shared, baseline)} for name in ROWS}
    rows["model"] |= {**dict.fromkeys(shared, model), "object_accuracy": float(model > 0.5), "object_chance": 0.5}
    return {
        "video_id": video, "query_id": query, "q_type": kind, "question": f"question {query}?", "answer": "it",
        "status": "ok", "reason": None, "rows": rows, "listed_frames": 4, "window_frames": 2, "empty_truth_frames": 2,
        "window_frames_without_mask_file": 0, "seg_frames": 3, "has_loc": True, "forced_seg": False,
        "forced_loc": False,
        "frames": {"times": [1, 2, 1], "shown": [True, True, False], "kept": [True, False, True]},
        **changes,
    }  # fmt: skip


@pytest.fixture
def scores() -> list[dict]:
    """Three videos, five questions."""
    return [
        score("v1", "0", "Causal", 0.5),
        score("v1", "1", "Causal", 0.75),
        score("v2", "0", "Causal", 1.0, forced_seg=True, has_loc=False),
        score("v2", "1", "Sequential", 0.25, seg_frames=0, has_loc=False),
        score("v3", "0", "no such type", 0.0, forced_loc=True),
    ]


def random_scores(questions: int = 120, videos: int = 30) -> list[dict]:
    """Questions that are hard or easy for the model and the baselines alike, by video."""
    rng = np.random.default_rng(0)
    effects = rng.uniform(0.2, 0.8, videos)
    made = []
    for index in range(questions):
        level = effects[index % videos]
        model, baseline = (float(np.clip(level + rng.normal(shift, 0.05), 0, 1)) for shift in (0.05, 0.0))
        made.append(score(f"v{index % videos:02d}", str(index), QUESTION_TYPES[index % 4], model, baseline))
    return made


def test_cells_by_hand(scores):
    summary = summarise(scores, PROTOCOL, {"x": 1})
    assert summary["format"] == SUMMARY_FORMAT == "mora-summary-2" and summary["run"] == {"x": 1}
    table = summary["rows"]["model"]["table"]
    assert {name: table[name]["N"] for name in table} == {
        OVERALL: 5,
        "Causal": 3,
        "Sequential": 1,
        "Counterfactual": 0,
        "Descriptive": 0,
    }
    cell = table[OVERALL]["JF"]
    # Residuals by video: v1 0.25, v2 0.25, v3 -0.5; sqrt(3 / 2 * 0.375) / 5.
    assert list(cell) == CELL and cell["N"] == 5
    assert cell["mean"] == 0.5 and cell["stderr"] == pytest.approx(0.15)
    # Only v3 drawn: 0 (1 of 27 draws, more than 2.5%); v1, v2 alike: 0.625, so nothing is above.
    assert (cell["low"], cell["high"]) == (0.0, 0.625)
    assert table["Causal"]["JF"]["mean"] == 0.75
    # v1: 0.625, v2: 1, every mix between; both ends are drawn often.
    assert (table["Causal"]["JF"]["low"], table["Causal"]["JF"]["high"]) == (0.625, 1.0)
    assert table["Sequential"]["JF"] == {"mean": 0.25, "stderr": None, "low": None, "high": None, "N": 1}
    assert table["Counterfactual"] == {"N": 0, **dict.fromkeys(MEASURES)}
    assert summary["rows"]["all_empty"]["table"][OVERALL]["object_accuracy"] is None
    assert summary["interval"] == {
        "method": "percentile bootstrap clustered by video",
        "level": 0.95,
        "draws": 10_000,
        "seed": 20_251_118,
    }


def test_a_measure_without_a_value_is_left_out_of_its_mean_alone(scores):
    scores[2]["rows"]["model"]["window_J"] = None
    table = summarise(scores, PROTOCOL, {})["rows"]["model"]["table"]
    assert table["Causal"]["window_J"]["N"] == 2 and table["Causal"]["window_J"]["mean"] == 0.625
    assert table["Causal"]["window_J"]["low"] is None  # only v1 is left
    assert table["Causal"]["JF"]["N"] == table["Causal"]["N"] == 3


def test_differences_are_paired(scores):
    scores[0]["rows"]["all_empty"]["window_J"] = None
    differences = summarise(scores, PROTOCOL, {})["differences"]
    assert set(differences) == set(ROWS) - {"model"}
    table = differences["all_empty"]["table"]
    assert table[OVERALL]["JF"]["mean"] == 0.25 and table[OVERALL]["JF"]["N"] == 5
    assert (table[OVERALL]["JF"]["low"], table[OVERALL]["JF"]["high"]) == (-0.25, 0.375)
    # Without the first question: 0.5, 0.75, 0, -0.25 above 0.25.
    assert table[OVERALL]["window_J"]["N"] == 4 and table[OVERALL]["window_J"]["mean"] == 0.25
    assert table[OVERALL]["object_accuracy"] is None


def test_what_is_hard_for_both_rows_does_not_widen_their_difference():
    summary = summarise(random_scores(), PROTOCOL, {})

    def width(cell):
        return cell["high"] - cell["low"]

    for split in (OVERALL, *QUESTION_TYPES):
        paired = summary["differences"]["all_empty"]["table"][split]["JF"]
        alone = [summary["rows"][row]["table"][split]["JF"] for row in ("model", "all_empty")]
        assert width(paired) < 0.5 * min(map(width, alone))
        assert paired["mean"] == pytest.approx(alone[0]["mean"] - alone[1]["mean"])


def test_token_statistics_by_hand(scores):
    scores[0].update(status="failed", reason="no frame", seg_frames=0, has_loc=False, frames=None)
    tokens = summarise(scores, PROTOCOL, {})["tokens"]
    assert tokens["measures"] == TOKENS
    table = tokens["table"]
    assert {name: table[name]["N"] for name in table} == {
        OVERALL: 4,
        "Causal": 2,
        "Sequential": 1,
        "Counterfactual": 0,
        "Descriptive": 0,
    }
    means = {key: table[OVERALL][key]["mean"] for key in TOKENS}
    assert means == {
        "seg": 0.75, "forced_seg": 0.25, "loc": 0.5, "forced_loc": 0.25,
        "mask_frames": 0.75,  # the middle frame is listed twice
        "kept_frames": 0.25,
        "truth_frames": 0.5,
    }  # fmt: skip
    assert table["Sequential"]["seg"]["mean"] == 0.0
    assert list(table["Causal"]["seg"]) == CELL


def test_the_order_of_the_scores_does_not_matter():
    scores = random_scores()
    shuffled = [scores[index] for index in np.random.default_rng(1).permutation(len(scores))]
    text = json.dumps(summarise(scores, PROTOCOL, {}))
    assert json.dumps(summarise(shuffled, PROTOCOL, {})) == text
    renamed = copy.deepcopy(scores)
    for each in renamed:
        each["video_id"] = f"renamed_{each['video_id']}"
    assert json.dumps(summarise(renamed, PROTOCOL, {})) == text


def test_a_summary_is_json_and_of_nothing_too(tmp_path):
    summary = summarise([], PROTOCOL, {})
    assert summary["rows"]["model"]["table"][OVERALL] == {"N": 0, **dict.fromkeys(MEASURES)}
    write_json(tmp_path / "summary.json", summary)
    assert "NaN" not in json.dumps(summarise(random_scores(), PROTOCOL, {}), allow_nan=False)
    assert "no question failed" in format_report(summary, PROTOCOL)


def test_the_report_fits_and_shows_intervals(scores):
    text = format_report(summarise(scores, PROTOCOL, {}), PROTOCOL)
    assert max(map(len, text.splitlines())) <= 120
    assert "0.5000 [0.0000, 0.6250]" in text and "1 questions of no known type" in text
    assert "J&F is +0.2500 against the best baseline (all_empty), paired 95% interval -0.2500 to +0.3750" in text
    assert "Sequential      1                   0.2500" in text  # one video, no interval
    lines = text.splitlines()
    tokens = next(index for index, line in enumerate(lines) if line.startswith("Answers"))
    assert lines[tokens + 2].split() == ["Overall", "5", "80.0%", "20.0%", "60.0%", "20.0%", "75.0%", "25.0%", "50.0%"]
    reference = next(line for line in lines if line.startswith("whole_frame"))
    assert reference.split("  ")[-1].strip() == "0.2500" and "+0.2500 [-0.2500, +0.3750]" in reference
    assert "[low, high]: 95% interval (percentile bootstrap clustered by video, 10000 draws)" in text


def test_the_result_file_has_intervals_in_its_comments_alone(scores):
    lines = result_lines(scores, summarise(scores, PROTOCOL, {}), PROTOCOL)
    assert "#   Overall 0.5000 [0.0000, 0.6250]" in lines and "#   Counterfactual -" in lines
    assert lines[-15] == "Final J (Jaccard Index): 0.5000"
    assert not any("[" in line for line in lines if not line.startswith("#"))


def test_the_report_says_how_failures_were_counted(scores):
    for index in range(25):
        failed = score("v9", f"f{index}", "Causal", 0.0, status="failed", reason="out of memory", frames=None)
        scores.append(failed)
    text = format_report(summarise(scores, PROTOCOL, {}), PROTOCOL)
    assert "FAILED: 25 questions; each counts as 0 in J, F and J&F" in text
    assert "v9, f19: out of memory" in text and "v9, f20" not in text and "… and 5 more in summary.json" in text
    assert max(map(len, text.splitlines())) <= 120
