"""The benchmark's socket: stand-ins of texts and of points go from the engine to the page, named in one table."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.benchmark import BENCHMARKS, OVERALL, Measure, find_benchmark
from evaluation.compare import main as compare_runs
from evaluation.engine.jobs import Prediction
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record, record_path, write_record
from evaluation.report.text import format_report
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from utils.errors import ConfigError, DataError

STAND_INS = {name: f"tests.evaluation.stand_ins.{name}:BENCHMARK" for name in ("exact_answers", "point_in_mask")}
PROTOCOL = make_protocol(num_frames=8)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The two lines that make them benchmarks."""
    for name, module in STAND_INS.items():
        monkeypatch.setitem(BENCHMARKS, name, module)


class Speaker:
    """Says the right answer, or points at the object's first pixel, but for the question named in ``wrong``."""

    def __init__(self, name, corpus, wrong="1", killed_at=None, failing=None):
        self.videos = {video.video_id: video for video in corpus}
        self.name, self.wrong, self.killed_at, self.failing = name, wrong, killed_at, failing

    def prepare(self, video_id, frames, times):
        return video_id

    def encode(self, prepared, frames_per_pass=None):
        if prepared == self.killed_at:
            raise KeyboardInterrupt
        return self.videos[prepared]

    def answer(self, context, questions, frames_per_pass=None):
        return [self._one(context, question) for question in questions]

    def _one(self, video, question):
        if question.query_id == self.failing:
            raise DataError("no voice")
        if self.name == "exact_answers":
            return Prediction(answers=["something else" if question.query_id == self.wrong else question.answer])
        points = []
        for index in np.unique(PROTOCOL.sample(len(video.frame_paths))):
            places = np.argwhere(video.read_object_mask(question, int(index)))
            away = question.query_id == self.wrong or not len(places)
            points.append(np.array([[0.5, 0.5]]) if away else places[:1, ::-1] + 0.25)
        return Prediction(points=points, answers=["there"])


def predict(name, corpus, folder, **speaker):
    settings = {"protocol": PROTOCOL.prediction_settings(), "benchmark": name}
    mark = open_run(folder, settings, about={"version": "a speaker"})
    return mark, predict_corpus(corpus, Speaker(name, corpus, **speaker), folder, PROTOCOL, mark)


def score(name, corpus, folder, mark):
    scores = score_corpus(corpus, folder, PROTOCOL, mark, benchmark=find_benchmark(name))
    return scores, summarise(scores, PROTOCOL, {}, find_benchmark(name))


def records(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("records/*/*")}


@pytest.mark.parametrize("name", STAND_INS)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(name, corpus, tmp_path):
    predict(name, corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        predict(name, corpus, tmp_path / "killed", killed_at="beta_0110_0114")
    assert len(records(tmp_path / "killed")) == 2
    torn = record_path(tmp_path / "killed", "alpha_0000_0004", "1")
    torn.write_bytes(torn.read_bytes()[:-20])
    _, done = predict(name, corpus, tmp_path / "killed")
    assert (done.reused, done.written) == (1, 3)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    record = read_record(tmp_path / "whole", "beta_0110_0114", "a")
    assert record.kind == {"exact_answers": "text", "point_in_mask": "points"}[name] and record.masks == []


def test_texts_are_scored_by_their_own_measure(corpus, tmp_path):
    mark, _ = predict("exact_answers", corpus, tmp_path, failing="b")
    scores, summary = score("exact_answers", corpus, tmp_path, mark)
    assert [each["rows"]["model"]["exact"] for each in scores] == [1.0, 0.0, 1.0, 0.0]
    assert [each["status"] for each in scores] == ["ok", "ok", "ok", "failed"]
    table = summary["rows"]["model"]["table"]
    assert table[OVERALL]["exact"]["mean"] == 0.5 and table["Causal"]["exact"]["mean"] == 0.0
    assert summary["benchmark"] == "exact_answers" and set(summary["measures"]) == {"exact"}
    assert summary["counts"]["questions_failed"] == 1 and "listed_frames" not in summary["counts"]
    text = format_report(summary, PROTOCOL)
    assert "exact match" in text and "Causal" in text and "silence" in text and "[SEG]" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_points_are_scored_against_masks_and_a_failure_is_zero(corpus, tmp_path):
    mark, _ = predict("point_in_mask", corpus, tmp_path, failing="b")
    scores, summary = score("point_in_mask", corpus, tmp_path, mark)
    assert [each["rows"]["model"]["inside"] for each in scores] == [1.0, 0.0, 1.0, 0.0]
    assert scores[3]["rows"]["model"]["distance"] is None  # what a row leaves out is None
    corner = np.hypot(22 - 0.5, 15.5 - 0.5)  # from (0.5, 0.5) to the middle of the still box
    assert scores[1]["rows"]["model"]["distance"] == pytest.approx(corner)
    cells = summary["rows"]["model"]["table"][OVERALL]
    assert (cells["inside"]["mean"], cells["distance"]["N"]) == (0.5, 3)
    assert "on the object" in format_report(summary, PROTOCOL)


def test_a_truth_that_cannot_be_read_scores_zero_in_every_row(corpus, tmp_path, monkeypatch):
    mark, _ = predict("point_in_mask", corpus, tmp_path)

    def torn(self, question):
        raise DataError("torn")

    monkeypatch.setattr("evaluation.scoring.truth.ClipTruth.__call__", torn)
    scores, _ = score("point_in_mask", corpus, tmp_path, mark)
    assert {each["reason"] for each in scores} == {"the ground truth cannot be read: torn"}
    assert scores[0]["rows"] == {name: {"inside": 0.0, "distance": None} for name in ("model", "middle")}


@pytest.mark.parametrize("name", STAND_INS)
def test_from_the_records_to_the_page_by_the_program(name, corpus, corpus_paths, tmp_path, capsys):
    predict(name, corpus, tmp_path)
    flags = ["--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]), "--output_dir", str(tmp_path)]
    assert main(["--benchmark", name, *flags, "--score_only", "--num_frames", "8"]) == 0
    assert find_benchmark(name).measures[0].label in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert find_benchmark(name).measures[0].meaning in page and "a speaker" in page
    first = (tmp_path / "summary.json").read_bytes()
    assert main(["--benchmark", name, *flags, "--score_only", "--num_frames", "8"]) == 0
    assert (tmp_path / "summary.json").read_bytes() == first
    constant = find_benchmark(name).constant[0]
    assert compare_runs([str(tmp_path), "--row_a", constant, "--row_b", "model"]) == 0
    assert compare_runs([str(tmp_path), "--row_a", "all_empty"]) == 2
    assert main([*flags, "--score_only"]) == 2 and f"were made for {name}" in capsys.readouterr().err


def test_mora_is_not_asked_for_what_it_does_not_say(corpus_paths, tmp_path, capsys):
    flags = ["--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]), "--output_dir", str(tmp_path)]
    assert main(["--benchmark", "exact_answers", *flags, "--version", "nobody/model"]) == 2
    assert "asks for text, and MoRA answers with masks" in capsys.readouterr().err


def test_a_record_of_another_kind_is_a_failure(corpus, tmp_path):
    mark, _ = predict("exact_answers", corpus, tmp_path)
    scores, _ = score("point_in_mask", corpus, tmp_path, mark)
    assert {each["reason"] for each in scores} == {"the record holds text, point_in_mask asks for points"}
    assert [each["rows"]["model"]["inside"] for each in scores] == [0.0] * 4


@pytest.mark.parametrize("points", [[[1.0, 2.0]], [[[1.0]]], [[["1", 2.0]]]])
def test_a_record_of_damaged_points_is_refused(points, corpus, tmp_path):
    predict("point_in_mask", corpus, tmp_path)
    record = read_record(tmp_path, "alpha_0000_0004", "0")
    write_record(tmp_path, replace(record, points=points * 8))
    with pytest.raises(DataError, match="no record holds such values: points"):
        read_record(tmp_path, "alpha_0000_0004", "0")
    write_record(tmp_path, replace(record, points=record.points[1:]))
    with pytest.raises(DataError, match="8 frames but 7 points"):
        read_record(tmp_path, "alpha_0000_0004", "0")


def test_a_point_that_is_nowhere_fails_its_question(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Speaker, "_one", lambda self, video, question: Prediction(points=[np.array([[np.nan, 1]])] * 8))
    _, done = predict("point_in_mask", corpus, tmp_path)
    assert [reason for *_, reason in done.failures] == ["NumericalError: not finite: points"] * 4


def test_masks_are_recorded_as_before_there_were_other_kinds(corpus, dummy_predictor, tmp_path):
    predictor = dummy_predictor(corpus, PROTOCOL, lambda video, question, index: None)
    predict_corpus(corpus, predictor, tmp_path, PROTOCOL, open_run(tmp_path, {}))
    content = json.loads(record_path(tmp_path, "alpha_0000_0004", "0").read_text())
    assert not {"kind", "points"} & set(content)


def test_a_scorers_source_is_in_the_key_wherever_it_lies(corpus, tmp_path, monkeypatch):
    """A benchmark of somebody's own, outside the project: editing it scores again."""
    source = Path(find_benchmark("exact_answers").score.__code__.co_filename).read_text()
    file = tmp_path / "own_benchmark.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BENCHMARKS, "exact_answers", "own_benchmark.row:BENCHMARK")
    (tmp_path / "own_benchmark").mkdir()
    (tmp_path / "own_benchmark" / "__init__.py").write_text("")
    file = tmp_path / "own_benchmark" / "row.py"
    file.write_text(source)
    mark, _ = predict("exact_answers", corpus, tmp_path)

    def keys():
        from evaluation.scoring import score as module

        module._sources_of.cache_clear()
        found = score_corpus(corpus, tmp_path, PROTOCOL, mark, benchmark=find_benchmark("exact_answers"))
        entries = [json.loads(path.read_text())["questions"] for path in sorted(tmp_path.glob("scores/*"))]
        return found, [entry["key"] for questions in entries for entry in questions.values()]

    scores, before = keys()
    assert keys() == (scores, before)
    file.write_text(source + "# another\n")
    _, after = keys()
    assert not set(before) & set(after)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_row_is_whole(name):
    row = find_benchmark(name)
    assert row.name == name and next(iter(row.rows)) == "model" and set(row.constant) <= set(row.rows)
    assert {kind for kind, _ in row.rows.values()} <= {"result", "baseline", "ablation", "oracle"}
    keys = [measure.key for measure in row.measures]
    assert len(keys) == len(set(keys)) and set(row.zero) <= set(keys) and row.measures[0].better
    places = {*row.tables, "reference", "detail", "tile", "demo"}
    assert all(isinstance(measure, Measure) and set(measure.where) <= places for measure in row.measures)
    assert row.columns("reference")[0] == row.measures[0]
    assert all(row.columns(place) for place in row.tables) and "video_root" in row.inputs
    assert pickle.loads(pickle.dumps(row)) == row  # it travels to the processes that score
    make_protocol(row.protocol)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(ConfigError, match="--benchmark nothing: unknown; choose one of groundmore, mevis_valid_u"):
        find_benchmark("nothing")
