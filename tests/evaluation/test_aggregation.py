"""``--aggregation videos``: every video counts alike, in tables, intervals, differences and comparisons."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest

from evaluation.benchmark import OVERALL, find_benchmark
from evaluation.comparison import compare, read_scored_run
from evaluation.protocol import make_protocol
from evaluation.scoring.statistics import VideoBootstrap
from evaluation.scoring.summary import summarise
from utils.errors import ConfigError

MEASURES = {measure.key: measure.meaning for measure in find_benchmark().measures}
ROWS = find_benchmark().rows

TYPES = ("Causal", "Sequential", "Counterfactual", "Descriptive")
QUESTIONS = {"a": [0.9, 0.8, 0.7, 0.8], "b": [0.1], "c": [0.5, 0.3]}


def question(video, number, value, other=0.25):
    """A score as ``evaluation.score`` makes it, reduced to what a summary reads."""
    rows = {name: {**dict.fromkeys(MEASURES), "JF": other, "J": other, "F": other} for name in ROWS}
    rows["model"] |= {"JF": value, "J": value, "F": value, "window_J": None if video == "b" else value}
    return {
        "video_id": video,
        "query_id": str(number),
        "q_type": TYPES[number],
        "question": "What?",
        "answer": "it",
        "status": "ok",
        "reason": None,
        "rows": rows,
        "frames": None,
        "objects": None,
        "listed_frames": 20,
        "window_frames": 10,
        "empty_truth_frames": 10,
        "window_frames_without_mask_file": 0,
        "seg_frames": 20,
        "has_loc": False,
        "forced_seg": False,
        "forced_loc": False,
    }


def scores(shift=0.0):
    return [question(v, n, value + shift) for v, values in QUESTIONS.items() for n, value in enumerate(values)]


def test_every_video_counts_alike():
    table = summarise(scores(), make_protocol(aggregation="videos"), {})["rows"]["model"]["table"]
    means = [statistics.fmean(values) for values in QUESTIONS.values()]
    cell = table[OVERALL]["JF"]
    assert cell["mean"] == pytest.approx(statistics.fmean(means)) and cell["N"] == 3 and table[OVERALL]["N"] == 7
    assert cell["stderr"] == pytest.approx(statistics.stdev(means) / math.sqrt(3))
    assert cell["low"] == pytest.approx(min(means)) and cell["high"] == pytest.approx(max(means))
    assert table["Sequential"]["JF"]["mean"] == pytest.approx((0.8 + 0.3) / 2)
    assert table[OVERALL]["window_J"]["mean"] == pytest.approx((means[0] + means[2]) / 2)  # b has no value
    by_question = summarise(scores(), make_protocol(), {})["rows"]["model"]["table"][OVERALL]["JF"]
    assert by_question["mean"] == pytest.approx(4.1 / 7) and by_question["N"] == 7


def test_a_draw_is_the_mean_of_the_drawn_videos_means():
    videos = [video for video, values in QUESTIONS.items() for _ in values]
    column = np.array([value for values in QUESTIONS.values() for value in values])[:, None]
    bootstrap = VideoBootstrap(videos, draws=200, per_video=True)
    means = np.array([statistics.fmean(values) for values in QUESTIONS.values()])
    assert bootstrap.means(column)[0] == pytest.approx(bootstrap.counts @ means / 3)


def test_differences_and_comparisons_use_it_and_a_mixed_pair_is_refused(tmp_path):
    runs = {}
    for name, shift, aggregation in (("a", 0, "videos"), ("b", 0.1, "videos"), ("c", 0.1, "questions")):
        protocol, made = make_protocol(aggregation=aggregation), scores(shift)
        made[0]["rows"]["model"]["JF"] = 0.9  # the same in every run
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(made))
        summary = summarise(made, protocol, {})
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
        runs[name] = read_scored_run(tmp_path / name)
        margin = summary["differences"]["all_empty"]["table"][OVERALL]["JF"]["mean"]
        assert margin == pytest.approx(summary["rows"]["model"]["table"][OVERALL]["JF"]["mean"] - 0.25)
    cell = compare(runs["a"], runs["b"])["table"]["JF"][OVERALL]
    assert cell["mean"] == pytest.approx((0.075 + 0.1 + 0.1) / 3) and cell["N"] == 3
    assert cell["b"] - cell["a"] == pytest.approx(cell["mean"]) and cell["a"] == pytest.approx((0.8 + 0.1 + 0.4) / 3)
    assert (cell["better"], cell["same"], cell["worse"]) == (6, 1, 0)
    with pytest.raises(ConfigError, match="aggregation: videos -> questions"):
        compare(runs["a"], runs["c"])
