"""Scores of predictions whose scores are known: perfect, empty, whole frame, wrong object, wrong time, failed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from datasets.corpora.groundmore import GroundMoRe
from evaluation.benchmark import OVERALL, find_benchmark
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run, record_path
from evaluation.report.text import format_report, result_lines, write_results
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import best_baseline, summarise
from tests.targets import read_target

MEASURES = {measure.key: measure.meaning for measure in find_benchmark().measures}
ROWS = find_benchmark().rows

# 8 frames of 24: 0 3 7 10 13 16 20 23. Windows: 0-11, 6-17, 12-23 and the whole clip, where frame 0 has no mask file.
EMPTY_SHARE = {"0": 0.5, "1": 0.5, "a": 0.5, "b": 1 / 8}


def object_everywhere(video, query, index):
    return video.read_object_mask(query, index)


def target(video, query, index):
    return read_target(video, query, index)


def evaluate(corpus, dummy_predictor, folder, rule, loc=None, **fields):
    protocol = make_protocol(**{"num_frames": 8, **fields})
    mark = open_run(folder, protocol.prediction_settings())
    predict_corpus(corpus, dummy_predictor(corpus, protocol, rule, loc), folder, protocol, mark)
    scores = score_corpus(corpus, folder, protocol, mark)
    return scores, summarise(scores, protocol, {}), protocol


def by_query(scores, row="model"):
    return {score["query_id"]: score["rows"][row] for score in scores}


def test_perfect_predictions_score_one(corpus, dummy_predictor, tmp_path):
    scores, summary, _ = evaluate(corpus, dummy_predictor, tmp_path, target)
    for row in by_query(scores).values():
        assert (row["J"], row["F"], row["JF"], row["window_J"], row["window_F"]) == (1, 1, 1, 1, 1)
        assert row["object_accuracy"] == 1 and row["object_chance"] in (0.5, 1.0)
    rows = by_query(scores)
    assert [rows[q]["temporal_iou"] for q in "01a"] == [1, 1, 1] and rows["b"]["temporal_iou"] == 7 / 8
    assert [rows[q]["false_positive_rate"] for q in "01ab"] == [0, 0, 0, None]
    assert rows["a"]["object_chance"] == 1.0  # both visible objects are answers
    table = summary["rows"]["model"]["table"]
    cell = table[OVERALL]["JF"]
    assert (cell["mean"], cell["stderr"], cell["N"]) == (1.0, 0.0, 4)
    assert {name: table[name]["N"] for name in table} == {
        OVERALL: 4,
        "Causal": 1,
        "Sequential": 1,
        "Counterfactual": 1,
        "Descriptive": 1,
    }


def test_silence_scores_the_share_of_empty_frames(corpus, dummy_predictor, tmp_path):
    scores, summary, _ = evaluate(corpus, dummy_predictor, tmp_path, lambda *_: None)
    assert {q: row["J"] for q, row in by_query(scores).items()} == EMPTY_SHARE
    for name in ("J", "F", "JF", "window_J", "temporal_iou"):
        assert by_query(scores)["a"][name] == by_query(scores, "all_empty")["a"][name]
    for row in by_query(scores).values():
        assert row["window_J"] == row["object_accuracy"] == row["temporal_iou"] == 0
    assert summary["rows"]["model"]["table"][OVERALL]["JF"]["mean"] == sum(EMPTY_SHARE.values()) / 4
    assert summary["counts"]["questions_without_seg"] == 4
    assert summary["counts"]["listed_frames_with_empty_truth"] == 13
    assert summary["counts"]["window_frames_without_mask_file"] == 1
    assert best_baseline(summary)[0] == "all_empty"


def test_the_whole_frame(corpus, dummy_predictor, tmp_path):
    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path, lambda v, q, i: np.ones((24, 32), dtype=bool))
    for query, row in by_query(scores).items():
        assert row == {**by_query(scores, "whole_frame")[query], **{k: row[k] for k in row if "object" in k}}
        assert row["F"] == EMPTY_SHARE[query]  # a full mask has no boundary
    assert by_query(scores)["1"]["J"] == pytest.approx(0.5 * 40 / 768)
    assert by_query(scores)["1"]["window_J"] == pytest.approx(40 / 768)
    assert by_query(scores)["1"]["temporal_iou"] == 0.5 and by_query(scores)["1"]["false_positive_rate"] == 1.0


def test_masks_that_ignore_time_score_the_complement_and_refinement_repairs_them(corpus, dummy_predictor, tmp_path):
    def clock(video, query, index):
        return 0.9 if query.window[0] <= index <= query.window[1] else 0.1

    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path / "plain", object_everywhere, clock)
    for row in ("model", "no_refinement", "untimed_truth"):
        # Clip beta has no mask file for frame 0, so nothing can be shown there.
        assert [by_query(scores, row)[q]["J"] for q in "01ab"] == [0.5, 0.5, 5 / 8, 1.0]
        assert [by_query(scores, row)[q]["temporal_iou"] for q in "01a"] == [0.5, 0.5, 4 / 7]
        assert [by_query(scores, row)[q]["false_positive_rate"] for q in "01ab"] == [1.0, 1.0, 3 / 4, None]
    assert all(row["JF"] == 1 for row in by_query(scores, "perfect_timing").values())
    refined, _, _ = evaluate(
        corpus, dummy_predictor, tmp_path / "refined", object_everywhere, clock, loc_refine=True, loc_threshold=0.9
    )
    assert all(row["JF"] == row["temporal_iou"] == 1 for row in by_query(refined).values())
    assert [row["JF"] for row in by_query(refined, "no_refinement").values()] == [0.5, 0.5, 5 / 8, 1.0]
    strict, _, _ = evaluate(
        corpus, dummy_predictor, tmp_path / "strict", object_everywhere, clock, loc_refine=True, loc_threshold=0.91
    )
    assert {q: row["J"] for q, row in by_query(strict).items()} == EMPTY_SHARE
    # The object was right all along: it is judged before refinement.
    assert all(row["object_accuracy"] == 1 for row in by_query(strict).values())


def test_a_frame_kept_without_a_mask_is_active_but_no_false_positive(corpus, dummy_predictor, tmp_path):
    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path, target, lambda *_: 0.8, loc_refine=True)
    rows = by_query(scores)
    assert [rows[q]["JF"] for q in "01ab"] == [1.0] * 4
    assert [rows[q]["temporal_iou"] for q in "01ab"] == [0.5, 0.5, 0.5, 1.0]
    assert [rows[q]["false_positive_rate"] for q in "01ab"] == [0.0, 0.0, 0.0, None]


def test_an_answer_without_loc_is_not_refined(corpus, dummy_predictor, tmp_path):
    scores, summary, _ = evaluate(corpus, dummy_predictor, tmp_path, target, None, loc_refine=True)
    assert all(row["JF"] == 1 for row in by_query(scores).values())
    assert summary["counts"]["questions_without_loc"] == 4


def test_the_wrong_object(corpus, dummy_predictor, tmp_path):
    def other(video, query, index):
        wrong = 2 if query.object_ids == (1,) else 1
        return video.read_object_mask(dataclasses.replace(query, object_ids=(wrong,)), index)

    scores, summary, _ = evaluate(corpus, dummy_predictor, tmp_path, other)
    rows = by_query(scores)
    assert [rows[q]["object_accuracy"] for q in "01ab"] == [0, 0, 1, 0]
    assert [rows[q]["object_chance"] for q in "01ab"] == [0.5, 0.5, 1.0, 0.5]
    assert rows["0"]["window_J"] == 0.0
    assert summary["rows"]["model"]["table"][OVERALL]["object_accuracy"]["mean"] == 0.25


def test_a_frame_listed_twice_counts_twice(corpus, dummy_predictor, tmp_path):
    def last_frame_only(video, query, index):
        return target(video, query, index) if index == 23 else None

    scores, _, protocol = evaluate(corpus, dummy_predictor, tmp_path, last_frame_only, num_frames=40)
    listed = protocol.sample(24)
    assert by_query(scores)["b"]["J"] == ((listed == 0).sum() + (listed == 23).sum()) / 40


def test_failures_count_as_zero_and_are_listed(corpus, dummy_predictor, tmp_path):
    def rule(video, query, index):
        if query.query_id in ("1", "b"):
            raise RuntimeError("out of memory")
        return target(video, query, index)

    scores, summary, protocol = evaluate(corpus, dummy_predictor, tmp_path, rule)
    for query in ("1", "b"):
        row = by_query(scores)[query]
        for name in ("J", "F", "JF", "window_J", "temporal_iou", "object_accuracy"):
            assert row[name] == 0
        assert by_query(scores, "perfect_timing")[query]["JF"] == 0
    assert by_query(scores, "all_empty")["1"]["J"] == 0.5
    assert summary["rows"]["model"]["table"][OVERALL]["JF"]["mean"] == 0.5
    assert summary["counts"]["questions_failed"] == 2
    assert summary["failures"][0] == {
        "video_id": "alpha_0000_0004",
        "query_id": "1",
        "reason": "RuntimeError: out of memory",
    }
    text = format_report(summary, protocol)
    assert "FAILED: 2 questions" in text and "alpha_0000_0004, 1: RuntimeError: out of memory" in text


def test_a_missing_or_foreign_record_is_a_failure_with_a_reason(corpus, dummy_predictor, tmp_path):
    _, _, protocol = evaluate(corpus, dummy_predictor, tmp_path, target)
    record_path(tmp_path, "alpha_0000_0004", "0").unlink()
    scores = score_corpus(corpus, tmp_path, protocol, None)
    assert [score["status"] for score in scores] == ["failed", "ok", "ok", "ok"]
    assert "no prediction" in scores[0]["reason"]
    scores = score_corpus(corpus, tmp_path, protocol, "another")
    assert all(score["status"] == "failed" for score in scores) and "other settings" in scores[1]["reason"]
    scores = score_corpus(corpus, tmp_path, make_protocol(num_frames=7), None)
    assert "other frames" in scores[1]["reason"]


def test_unreadable_ground_truth_is_a_failure_of_its_questions(corpus, dummy_predictor, corpus_paths, tmp_path):
    _, _, protocol = evaluate(corpus, dummy_predictor, tmp_path, target)
    video = GroundMoRe(*corpus_paths)[0]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    video.read_object_mask.mask_paths = [broken] * 24
    scores = score_corpus([video], tmp_path, protocol)
    assert [score["status"] for score in scores] == ["failed", "failed"]
    assert "broken.png" in scores[0]["reason"]
    assert scores[0]["rows"]["model"]["JF"] == 0 and scores[0]["rows"]["all_empty"]["JF"] == 0
    summarise(scores, protocol, {})


def test_an_unclipped_window_outside_the_clip_has_an_empty_truth(corpus_paths, dummy_predictor, tmp_path):
    annotation = json.loads(corpus_paths[0].read_text())
    questions = annotation["videos"]["alpha_0000_0004"]["questions"]
    questions["0"].update(action_start="00:07", action_end="00:09")
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps(annotation))
    corpus = GroundMoRe(meta, corpus_paths[1], empty_windows="keep")
    scores, summary, _ = evaluate(corpus, dummy_predictor, tmp_path / "out", lambda *_: None, name="groundmore_2025")
    row = by_query(scores)["0"]
    assert row["JF"] == 1 and row["window_J"] is None and row["object_accuracy"] is None
    assert summary["counts"]["questions_without_frame_in_window"] == 1


def test_details_of_every_frame(corpus, dummy_predictor, tmp_path):
    def clock(video, query, index):
        return 0.9 if index > 3 else 0.1

    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path, object_everywhere, clock, loc_refine=True)
    frames = {score["query_id"]: score["frames"] for score in scores}
    assert all({len(values) for values in each.values()} == {8} for each in frames.values())
    assert frames["0"] == {
        "index": [0, 3, 7, 10, 13, 16, 20, 23],
        "times": [1] * 8,
        "in_window": [True] * 4 + [False] * 4,
        "visible": [True] * 8,
        "J": [0.0] * 2 + [1.0] * 2 + [0.0] * 4,
        "F": [0.0] * 2 + [1.0] * 2 + [0.0] * 4,
        "raw_J": [1.0] * 4 + [0.0] * 4,
        "raw_F": [1.0] * 4 + [0.0] * 4,
        "shown": [True] * 8,
        "kept": [False] * 2 + [True] * 6,
        "object_J": [1.0] * 8,
        "loc": [0.1] * 2 + [0.9] * 6,
    }
    # Clip beta has no mask file for frame 0: nothing is visible, nothing shown, and that agrees.
    assert frames["b"]["visible"] == frames["b"]["shown"] == [False] + [True] * 7
    assert frames["b"]["object_J"] == [1.0] * 8
    for score in scores:
        times = np.array(score["frames"]["times"])
        for measure, row in (("J", "model"), ("F", "model"), ("raw_J", "no_refinement"), ("raw_F", "no_refinement")):
            mean = (np.array(score["frames"][measure]) * times).sum() / times.sum()
            assert mean == pytest.approx(score["rows"][row][measure[-1]])
    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path / "repeats", target, num_frames=40)
    frames = scores[0]["frames"]
    assert sum(frames["times"]) == 40 and max(frames["times"]) == 2 and frames["loc"] is None


def test_details_of_the_objects(corpus, dummy_predictor, tmp_path):
    def box(video, query, index):
        mask = np.zeros((24, 32), dtype=bool)
        if query.query_id == "1":
            mask[12:20, 20:25] = True  # object 2
            mask[:2, :] = True
        elif query.query_id == "0":
            mask[12:20, 20:25] = True  # another object than the answer
        return mask

    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path, box)
    objects = {score["query_id"]: score["objects"] for score in scores}
    assert objects["1"] == {"answer": [2], "visible": [1, 2], "best": 2, "best_iou": 40 / 104, "answer_iou": 40 / 104}
    assert objects["0"] == {"answer": [1], "visible": [1, 2], "best": 2, "best_iou": 1.0, "answer_iou": 0.0}
    assert objects["a"] == {"answer": [1, 2], "visible": [1, 2], "best": None, "best_iou": None, "answer_iou": 0.0}
    assert [row["object_accuracy"] for row in by_query(scores).values()] == [0, 1, 0, 0]


def test_failed_questions_have_no_details(corpus, dummy_predictor, tmp_path):
    def rule(video, query, index):
        if query.query_id == "1":
            raise RuntimeError("no")
        return target(video, query, index)

    scores, _, _ = evaluate(corpus, dummy_predictor, tmp_path, rule)
    assert [score["frames"] is None and score["objects"] is None for score in scores] == [False, True, False, False]


def test_the_pool_gives_the_same_scores(corpus, dummy_predictor, tmp_path, monkeypatch):
    scores, _, protocol = evaluate(corpus, dummy_predictor, tmp_path, object_everywhere)
    monkeypatch.setattr("evaluation.scoring.score.POOL_PIXELS", 0)
    assert score_corpus(corpus, tmp_path, protocol, workers=2) == scores


def test_written_files(corpus, dummy_predictor, tmp_path):
    scores, summary, protocol = evaluate(corpus, dummy_predictor, tmp_path / "run", target)
    result = tmp_path / "results" / "name.txt"
    write_results(tmp_path / "run", result, scores, summary, protocol)
    lines = result.read_text().splitlines()
    assert lines[0] == "# protocol groundmore" and "#   num_frames = 8" in lines
    body = [line for line in lines if not line.startswith("#")]
    assert body[0] == "alpha_0000_0004, 0, 1.0000, 1.0000, 1.0000"
    assert body[4:10] == [
        "Final J (Jaccard Index): 1.0000",
        "Final F (F-measure): 1.0000",
        "Final JF (Average of J and F): 1.0000",
        "Final Causal J: 1.0000",
        "Final Causal F: 1.0000",
        "Final Causal JF (Average of Causal J and F): 1.0000",
    ]
    assert len(body) == 4 + 15
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == scores
    assert summary["protocol"] == protocol.as_dict() and set(summary["rows"]) == set(ROWS)
    assert all(set(score["rows"][row]) == set(MEASURES) for score in scores for row in ROWS)
    assert result_lines(scores, summary, protocol) == lines


def test_report_shows_the_contract_both_sides_and_the_reference_rows(corpus, dummy_predictor, tmp_path):
    _, summary, protocol = evaluate(corpus, dummy_predictor, tmp_path, target)
    text = format_report(summary, protocol)
    for word in ("num_frames = 8", "J&F", "Counterfactual", "in-window J", "temporal IoU", "chance", *ROWS):
        assert word in text
    assert "J&F is +0.5938 against the best baseline (all_empty)" in text


def test_types_without_questions_have_no_mean(corpus, dummy_predictor, tmp_path):
    _, summary, protocol = evaluate([corpus[0]], dummy_predictor, tmp_path, target)
    table = summary["rows"]["model"]["table"]
    assert table["Descriptive"] == {"N": 0, **dict.fromkeys(MEASURES)}
    assert "Final Descriptive J: -" in result_lines([], summary, protocol)
    assert format_report(summary, protocol)
