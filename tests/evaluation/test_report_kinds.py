"""The report page of benchmarks whose answers are points or texts, and whose questions have no types."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation import benchmark as registry
from evaluation.benchmark import Benchmark, Kind, Measure
from evaluation.overlay_video import PREDICTION_COLOUR, overlay_frames, question_picture
from evaluation.protocol import Protocol
from evaluation.records import Record, frames_digest, open_run, read_record, read_run, write_record
from evaluation.report import format_report, write_report_page, write_results
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from evaluation.scoring.truth import ClipTruth
from tests.evaluation.report_run import HOSTILE, data_of
from tests.evaluation.test_report_page_browser import Page, chrome  # noqa: F401 - a fixture

PROTOCOL = Protocol(num_frames=3)
POINT = [4.5, 5.0]  # inside object 1 on frame 0


def share_inside(truth, record, question, listed, protocol):
    """Share of the points that lie on an answer object."""
    if truth is None or record is None:
        return {"rows": {"model": {"score": 0.0}}}
    inside = [mask[int(y), int(x)] for mask, points in zip(truth.masks(), record.points) for x, y in points or ()]
    return {"rows": {"model": {"score": float(np.mean(inside))}}}


def same_text(truth, record, question, listed, protocol):
    """Whether the answer is the true one, beside an answer that is always "nothing"."""
    right = record is not None and record.answers == [question.answer]
    return {"rows": {"model": {"score": float(right)}, "silence": {"score": 0.0}}}


def stand_in(name, score, truths, rows):
    return Benchmark(
        name=name, corpus="groundmore", kind=Kind(name, truths), score=score, groups=(),
        measures=(Measure("score", f"{name} <right>", "share that is right", ("main", "reference", "detail")),),
        rows=rows, constant=(), tables={"main": "Result"}, zero=("score",), protocol="groundmore", inputs={},
    )  # fmt: skip


MODEL = {"model": ("result", "as scored")}
STAND_INS = {
    "points": stand_in("points", share_inside, ClipTruth, MODEL),
    "text": stand_in(
        "text", same_text, lambda *_: lambda question: question.answer, {**MODEL, "silence": ("baseline", "no answer")}
    ),
}


@pytest.fixture
def page_of(corpus, tmp_path, monkeypatch):
    """Makes the page of a stand-in whose first question is answered well, the second badly; the third failed."""

    def make(name):
        benchmark, videos = STAND_INS[name], [corpus[index] for index in range(len(corpus))]
        monkeypatch.setitem(registry.BENCHMARKS, name, f"own_{name}:BENCHMARK")
        monkeypatch.setitem(sys.modules, f"own_{name}", SimpleNamespace(BENCHMARK=benchmark))
        mark, place = open_run(tmp_path, {"weights": "w"}), 0
        for video in videos:
            listed = PROTOCOL.sample(len(video.frame_paths))
            for question in video.questions:
                about = dict(
                    video_id=video.video_id, query_id=question.query_id, question=question.text, fingerprint=mark,
                    num_clip_frames=len(video.frame_paths), listed_frames=listed.tolist(), kind=name,
                    frames=frames_digest(video, listed),
                )  # fmt: skip
                if place == 2:
                    record = Record(status="failed", reason="no memory", **about)
                else:
                    points = [[POINT], None, []] if place == 0 else [[[30.0, 1.0]], None, []]
                    record = Record(
                        status="ok", frame_indices=listed.tolist(), points=points if name == "points" else [],
                        answers=[question.answer if place == 0 else HOSTILE], **about,
                    )  # fmt: skip
                write_record(tmp_path, record)
                place += 1
        scores = score_corpus(videos, tmp_path, PROTOCOL, mark, benchmark=benchmark)
        summary = summarise(scores, PROTOCOL, {**read_run(tmp_path), "selection": {}}, benchmark)
        write_results(tmp_path, tmp_path / "result.txt", scores, summary, PROTOCOL)
        return write_report_page(videos, tmp_path, scores, summary, PROTOCOL), format_report(summary, PROTOCOL)

    return make


@pytest.mark.parametrize("name", ["points", "text"])
def test_tables_have_no_types_and_no_timing(page_of, name):
    page, terminal = page_of(name)
    shown = page.read_text(encoding="utf-8")
    assert f"{name} &lt;right&gt;" in shown and f"{name} <right>" in terminal
    assert "FAILED: 1 questions; each counts as 0:" in terminal and "[SEG]" not in terminal
    outside = shown[: shown.index('<script type="application/json"')]
    assert "Causal" not in outside and "in-window J" not in outside and "Timing is" not in outside
    assert ("against silence" in outside) is (name == "text")
    names = {(question["video"][0], question["id"]): question["name"] for question in data_of(page)["questions"]}
    assert names == {("a", "0"): "good", ("a", "1"): "poor", ("b", "a"): "failed", ("b", "b"): "poor"}


def test_points_are_drawn_on_their_frames(page_of, request):
    page, _ = page_of("points")
    question = next(q for q in data_of(page)["questions"] if q["name"] == "good")
    assert question["picture"]["points"] == [[POINT], [], []] and question["picture"]["masks"] is None
    assert question["picture"]["truth"][0]  # the object that should be pointed at
    view = Page(request.getfixturevalue("chrome"), page).open(f"#{question['video']}/{question['id']}")
    place = "(c => [c.getAttribute('cx'), c.getAttribute('cy')])(document.querySelector('#detail .cell .point'))"
    assert np.allclose([float(value) / 16 for value in view.script(place)], POINT)
    assert len(view.find("#detail .point")) == 1


@pytest.mark.parametrize("name", ["points", "text"])
def test_pictures_of_other_kinds(page_of, corpus, name):
    run = page_of(name)[0].parent
    video, question = corpus[0], corpus[0].questions[0]
    record, truths = read_record(run, video.video_id, question.query_id), STAND_INS[name].kind.truths
    frames = list(overlay_frames(video, question, record, PROTOCOL, False, truths))
    pink = [bool((np.abs(frame.astype(int) - PREDICTION_COLOUR).sum(axis=-1) < 200).any()) for frame in frames]
    assert pink == [name == "points", False, False]
    assert question_picture(video, question, record, PROTOCOL, truths).shape[2] == 3


def test_a_text_stands_beside_the_truth(page_of, request):
    page, _ = page_of("text")
    wrong = next(q for q in data_of(page)["questions"] if q["name"] == "poor")
    assert wrong["picture"]["points"] is wrong["picture"]["masks"] is wrong["picture"]["truth"] is None
    view = Page(request.getfixturevalue("chrome"), page).open(f"#{wrong['video']}/{wrong['id']}")
    told = view.one("#detail .dialogue").text
    assert wrong["answer"] in told and HOSTILE in told and view.script("window.hacked") is None
    assert len(view.find("#detail .cell")) == 3 and "text <right>" in view.one("#detail .scores").text
