"""Two runs side by side: differences by hand, what is refused, and the program from the command line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from evaluation.benchmark import OVERALL, find_benchmark
from evaluation.compare import format_comparison, main
from evaluation.comparison import compare, differing_settings, read_scored_run
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run
from evaluation.report.text import write_results
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from tests.targets import read_target
from utils.errors import ConfigError, DataError
from utils.files import write_json

MEASURES = {measure.key: measure.meaning for measure in find_benchmark().measures}
ROWS = find_benchmark().rows

KINDS = ("Causal", "Sequential")


def score(video, query, model, kind="Causal") -> dict:
    """A scored question; the model's measures are all ``model``, those of the other rows 0.25."""
    rows = {name: dict.fromkeys(MEASURES, 0.25) for name in ROWS}
    rows["model"] = dict.fromkeys(MEASURES, model)
    return {
        "video_id": video, "query_id": query, "q_type": kind, "question": f"why {video} {query}?", "answer": "it",
        "status": "ok", "reason": None, "rows": rows,
    }  # fmt: skip


def write_run(folder, scores, **protocol):
    """A folder with scores.json and the part of summary.json that counts here."""
    write_json(folder / "scores.json", scores)
    write_json(folder / "summary.json", {"protocol": make_protocol(**protocol).as_dict()})
    return read_scored_run(folder)


BEFORE = {("v1", "0"): 0.5, ("v1", "1"): 0.5, ("v2", "0"): 0.25, ("v3", "0"): 0.75}
AFTER = {("v1", "0"): 0.75, ("v1", "1"): 0.5, ("v2", "0"): 0.75, ("v3", "0"): 0.5}


def scores_of(values) -> list[dict]:
    return [score(video, query, value, KINDS[video == "v3"]) for (video, query), value in values.items()]


@pytest.fixture
def runs(tmp_path):
    """Two runs of four questions about three videos."""
    return write_run(tmp_path / "a", scores_of(BEFORE)), write_run(tmp_path / "b", scores_of(AFTER))


def test_differences_by_hand(runs):
    result = compare(*runs)
    cell = result["table"]["JF"][OVERALL]
    # Differences 0.25, 0, 0.5, -0.25. Draws of three videos: only v3 -0.25, only v2 0.5.
    assert (cell["N"], cell["a"], cell["b"], cell["mean"]) == (4, 0.5, 0.625, 0.125)
    assert (cell["better"], cell["same"], cell["worse"]) == (2, 1, 1)
    assert (cell["low"], cell["high"]) == (-0.25, 0.5)
    by_video = (0.25, 0.5, -0.25)
    signs = [np.sign(sum(draw)) for draw in itertools.product(by_video, repeat=3)]
    assert cell["share_above_zero"] == pytest.approx((np.mean(signs) + 1) / 2, abs=0.02)
    flipped = [abs(np.dot(pattern, by_video)) for pattern in itertools.product((-1, 1), repeat=3)]
    assert cell["p"] == pytest.approx(np.mean(np.array(flipped) >= 0.5), abs=0.02)
    assert result["table"]["JF"]["Sequential"] == {
        "N": 1, "a": 0.75, "b": 0.5, "mean": -0.25, "stderr": None, "low": None, "high": None,
        "share_above_zero": None, "p": None, "better": 0, "same": 0, "worse": 1,
    }  # fmt: skip
    assert result["table"]["JF"]["Descriptive"] is None
    assert (result["questions"], result["videos"]) == (4, 3)


def test_fewer_false_positives_are_better(runs):
    cell = compare(*runs)["table"]["false_positive_rate"][OVERALL]
    assert cell["mean"] == 0.125 and (cell["better"], cell["same"], cell["worse"]) == (1, 1, 2)


def test_changes_are_sorted_and_named(runs):
    changes = compare(*runs)["changes"]["JF"]
    moved = [(change["video_id"], change["difference"]) for change in changes]
    assert moved == [("v2", 0.5), ("v1", 0.25), ("v3", -0.25)]
    assert changes[0]["question"] == "why v2 0?" and (changes[0]["a"], changes[0]["b"]) == (0.25, 0.75)
    text = format_comparison(compare(*runs), "JF", top=1)
    assert "+0.5000  0.2500 -> 0.7500  v2, 0: why v2 0?" in text and "-0.2500  0.7500 -> 0.5000  v3, 0" in text
    assert "+0.2500  0.5000" not in text and "2/1/1" in text
    assert "Largest" not in format_comparison(compare(*runs), "JF", top=0)
    falls = format_comparison(compare(*reversed(runs)), "JF", top=1).split("Largest falls")[1]
    assert "-0.5000  0.7500 -> 0.2500  v2, 0" in falls and "v1" not in falls


def test_exchanging_the_runs_turns_the_sign(runs):
    first, second = compare(*runs)["table"], compare(*reversed(runs))["table"]
    for split in (OVERALL, "Causal"):
        one, two = first["JF"][split], second["JF"][split]
        assert (one["mean"], one["better"], one["p"]) == (-two["mean"], two["worse"], two["p"])
        assert one["low"] == pytest.approx(-two["high"]) and one["high"] == pytest.approx(-two["low"])
        assert one["share_above_zero"] == pytest.approx(1 - two["share_above_zero"])


def test_equal_runs_differ_by_nothing(tmp_path, runs):
    same = write_run(tmp_path / "same", scores_of(BEFORE))
    cell = compare(runs[0], same)["table"]["JF"][OVERALL]
    assert (cell["mean"], cell["low"], cell["high"], cell["share_above_zero"], cell["p"]) == (0, 0, 0, 0.5, 1)
    assert compare(runs[0], same)["changes"]["JF"] == []
    assert "Largest rises of JF: none" in format_comparison(compare(runs[0], same))


def test_order_does_not_matter_and_repeating_gives_the_same(tmp_path, runs):
    turned = write_run(tmp_path / "turned" / "b", scores_of(AFTER)[::-1])
    first, second = compare(*runs), compare(runs[0], turned)
    assert first["table"] == second["table"] and first["changes"] == second["changes"]
    assert compare(*runs) == first


def test_questions_of_one_run_only_are_listed_and_left_out(tmp_path, runs):
    more = write_run(tmp_path / "more", [*scores_of(AFTER)[1:], score("v4", "x", 1.0)])
    result = compare(runs[0], more)
    assert result["only_in_a"] == [["v1", "0"]] and result["only_in_b"] == [["v4", "x"]]
    assert result["table"]["JF"][OVERALL]["N"] == 3
    text = format_comparison(result)
    assert "left out: 1 questions only in A (v1, 0)" in text and "left out: 1 questions only in B (v4, x)" in text
    stranger = write_run(tmp_path / "stranger", [score("v4", "x", 1.0)])
    with pytest.raises(DataError, match="no question in common"):
        compare(runs[0], stranger)


def test_a_measure_that_one_side_lacks_is_left_out(tmp_path, runs):
    scores = scores_of(AFTER)
    scores[0]["rows"]["model"]["window_J"] = None
    result = compare(runs[0], write_run(tmp_path / "lacking", scores))
    cell = result["table"]["window_J"][OVERALL]
    assert cell["N"] == 3 and cell["mean"] == pytest.approx(0.25 / 3) and cell["a"] == 0.5
    assert len(result["changes"]["window_J"]) == 2
    assert "object_chance" not in result["table"]


def test_failed_questions_count_and_are_mentioned(tmp_path, runs):
    scores = scores_of(AFTER)
    scores[0].update(status="failed", reason="out of memory")
    scores[0]["rows"]["model"]["JF"] = 0.0
    result = compare(runs[0], write_run(tmp_path / "failed", scores))
    assert result["table"]["JF"][OVERALL]["mean"] == -0.0625
    assert "4 questions, 1 failed (each counts as 0)" in format_comparison(result)


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 8},
        {"force_seg_token": True},
        {"answer_mode": "forced"},
        {"name": "groundmore_2025", "window": "unclipped"},
    ],
)
def test_protocols_that_change_the_meaning_are_refused(tmp_path, runs, change):
    other = write_run(tmp_path / "other", scores_of(AFTER), **change)
    field = list(change)[-1]
    with pytest.raises(ConfigError, match="do not measure the same thing") as error:
        compare(runs[0], other)
    assert f"  - {field}: " in str(error.value) and f" -> {change[field]}" in str(error.value)
    assert "name:" not in str(error.value)
    result = compare(runs[0], other, allow_different_protocols=True)
    assert result["table"]["JF"] == compare(*runs)["table"]["JF"]
    assert f"NOT COMPARABLE, {field}: " in format_comparison(result)


def test_methods_may_differ_and_are_named(tmp_path, runs):
    refined = write_run(tmp_path / "refined", scores_of(AFTER), loc_refine=True, force_loc_token=True)
    result = compare(runs[0], refined)
    assert result["settings"] == {
        "not_comparable": [],
        "compared": ["force_loc_token: False -> True", "loc_refine: False -> True"],
    }
    assert "differs: loc_refine: False -> True" in format_comparison(result)
    assert "the protocols are equal" in format_comparison(compare(*runs))


def test_a_protocol_that_states_less_is_read_with_todays_defaults(tmp_path, runs):
    write_run(tmp_path / "old", scores_of(AFTER))
    write_json(tmp_path / "old" / "summary.json", {"protocol": {"name": "groundmore", "num_frames": 20}})
    assert differing_settings(runs[0], read_scored_run(tmp_path / "old")) == ([], [])


def test_other_questions_or_another_truth_under_the_same_ids_are_refused(tmp_path, runs):
    scores = scores_of(AFTER)
    scores[1]["question"] = "another question?"
    scores[2]["rows"]["whole_frame"]["J"] = 0.3
    with pytest.raises(ConfigError) as error:
        compare(runs[0], write_run(tmp_path / "other", scores))
    assert "2 problems" in str(error.value)
    assert "text or type of the question: not the same for 1 questions, first v1, 1" in str(error.value)
    assert "ground truth or frames: not the same for 1 questions, first v2, 0" in str(error.value)


def test_scores_without_a_summary_have_no_known_protocol(tmp_path, runs):
    write_json(tmp_path / "bare" / "scores.json", scores_of(AFTER))
    with pytest.raises(ConfigError, match="no summary.json beside it"):
        compare(runs[0], read_scored_run(tmp_path / "bare" / "scores.json"))


def test_rows_of_one_run(runs):
    result = compare(runs[0], runs[0], "all_empty", "model")
    assert result["table"]["JF"][OVERALL]["mean"] == 0.25 and result["a"]["kind"] == "baseline"
    with pytest.raises(ConfigError, match="compared with itself"):
        compare(runs[0], runs[0])
    scores = copy.deepcopy(runs[1].scores)
    for each in scores.values():
        del each["rows"]["no_refinement"]
    old = dataclasses.replace(runs[1], scores=scores)
    with pytest.raises(DataError, match="has no row no_refinement; rows are model, all_empty"):
        compare(runs[0], old, "no_refinement", "no_refinement")


def test_wrong_paths_are_all_told_at_once(tmp_path, capsys):
    (tmp_path / "outer").mkdir()
    write_run(tmp_path / "outer" / "inner", scores_of(BEFORE))
    (tmp_path / "predicted" / "records").mkdir(parents=True)
    assert main([str(tmp_path / "outer"), str(tmp_path / "gone")]) == 2
    message = capsys.readouterr().err
    assert "2 problems" in message and f"did you mean {tmp_path / 'outer' / 'inner'}?" in message
    assert "gone: no such folder or file" in message
    assert main([str(tmp_path / "predicted"), str(tmp_path / "outer/inner")]) == 2
    assert "--score_only" in capsys.readouterr().err
    for content, complaint in (
        ([], "no question was scored"),
        ({"rows": {}}, "not the scores of an evaluation"),
        ([{"video_id": "v1"}], "not the scores of an evaluation"),
        (scores_of(BEFORE) * 2, "4 questions stand in it twice"),
    ):
        write_json(tmp_path / "x.json", content)
        assert main([str(tmp_path / "x.json"), "--row_a", "all_empty"]) == 2
        assert complaint in capsys.readouterr().err
    write_json(tmp_path / "outer/inner/summary.json", [])
    assert main([str(tmp_path / "outer/inner"), "--row_a", "all_empty"]) == 2
    assert "summary.json: not the summary" in capsys.readouterr().err


def test_wrong_flags_are_all_told_at_once(capsys):
    assert main(["a", "b", "--measure", "IoU", "--row_b", "oracle", "--top", "-1"]) == 2
    message = capsys.readouterr().err
    for part in ("3 problems", "--measure IoU: choose one of JF, J, F", "row oracle: choose one of model", "--top: -1"):
        assert part in message


def test_from_predictions_to_the_comparison(project_root, corpus, dummy_predictor, tmp_path):
    def on_time(video, query, index):
        return read_target(video, query, index)

    def always_in_beta(video, query, index):
        whole = video.video_id.startswith("beta")
        rule = video.read_object_mask if whole else functools.partial(read_target, video)
        return rule(query, index)

    for name, rule in (("late", always_in_beta), ("right", on_time)):
        folder, protocol = tmp_path / name, make_protocol(num_frames=8)
        mark = open_run(folder, protocol.prediction_settings())
        predict_corpus(corpus, dummy_predictor(corpus, protocol, rule), folder, protocol, mark)
        scores = score_corpus(corpus, folder, protocol, mark)
        write_results(folder, folder / "result.txt", scores, summarise(scores, protocol, {}), protocol)
    flags = [str(tmp_path / "late"), str(tmp_path / "right" / "scores.json"), "--json", str(tmp_path / "out.json")]
    command = [sys.executable, "-m", "evaluation.compare", *flags]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Question a: 5 of 8 frames right, then all; frame 0 of its clip has no mask file. The other three are the same.
    assert "+0.3750  0.6250 -> 1.0000  beta_0110_0114, a: Which two leave?" in done.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["table"]["J"][OVERALL]["mean"] == 0.375 / 4 and result["table"]["J"]["Descriptive"]["mean"] == 0.375
    assert result["table"]["window_J"][OVERALL]["mean"] == 0
    assert result["table"]["false_positive_rate"]["Descriptive"]["mean"] == -0.75
    assert result["table"]["false_positive_rate"]["Descriptive"]["better"] == 1
    assert max(map(len, done.stdout.splitlines()[1:])) <= max(120, len(str(tmp_path)) + 60)


def test_help_has_examples(project_root):
    command = [sys.executable, "-m", "evaluation.compare", "--help"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert done.returncode == 0 and "python -m evaluation.compare outputs/baseline outputs/mora" in done.stdout
