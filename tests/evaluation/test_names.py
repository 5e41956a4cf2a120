"""Names from data: each id has its file, and no id or text forges a line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from evaluation.engine.predict import Options, predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record, record_path, scores_path
from evaluation.report.text import format_report, result_lines
from evaluation.scoring.score import score_corpus
from evaluation.scoring.statistics import VideoBootstrap
from evaluation.scoring.summary import summarise
from tests.targets import read_target
from utils.errors import DataError, one_line
from utils.files import read_json, write_json

PROTOCOL = make_protocol(num_frames=3)
ODD = [
    "", "\0", "\0\0", "%", "%00", "%25", ".", "..", "%2E", ".a", "%2Ea", "a/b", "a%2Fb", "a b", "a\nb", "A", "a", "-",
    "é", "e\u0301", "杯子", "\ud800", "\ue000", "x" * 300, "x" * 301, "x" * 200, "x" * 201, "杯" * 90, "杯" * 91, " ",
    "~", "a ",
]  # fmt: skip


def test_every_id_has_a_file_of_its_own_that_a_file_system_takes(tmp_path):
    paths = [record_path(tmp_path, name, name) for name in ODD]
    assert len({path.parent for path in paths}) == len({path.name for path in paths}) == len(ODD)
    for name, path in zip(ODD, paths):
        write_json(path, {"id": name})
        write_json(scores_path(tmp_path, name), {"id": name})
        assert path.parent.parent == tmp_path / "records"
    assert [read_json(path)["id"] for path in paths] == ODD
    assert [read_json(scores_path(tmp_path, name))["id"] for name in ODD] == ODD


def test_ordinary_ids_keep_their_names(tmp_path):
    for name in ("cups_0000_0010", "3", "a-b.c~d", "x" * 200):
        assert record_path(tmp_path, name, name).parts[-2:] == (name, f"{name}.json")
    assert record_path(tmp_path, "a b", ".x").parts[-2:] == ("a%20b", "%2Ex.json")


def test_a_record_of_another_question_is_not_taken(corpus, dummy_predictor, tmp_path):
    """As on a file system that takes capitals for small letters."""
    folder = run(corpus, dummy_predictor, tmp_path)
    path = record_path(folder, corpus[0].video_id, "0")
    record_path(folder, corpus[0].video_id, "1").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="capitals"):
        read_record(folder, corpus[0].video_id, "1")


def run(videos, dummy_predictor, folder):
    predictor = dummy_predictor(videos, PROTOCOL, lambda v, q, i: read_target(v, q, i))
    mark = open_run(folder, PROTOCOL.prediction_settings())
    predict_corpus(videos, predictor, folder, PROTOCOL, mark, options=Options(0, quiet=True))
    return folder


FORGED = "x_0000_0004\nFinal JF (Average of J and F): 1.0000\r\x1b[2K\u2028\u202e"


def test_ids_that_numpy_takes_for_equal_are_two_videos():
    assert VideoBootstrap(["a", "a\0", "a"]).video_of.tolist() == [0, 1, 0]


def test_no_id_or_text_forges_a_line(corpus, dummy_predictor, tmp_path, capsys, caplog):
    questions = tuple(dataclasses.replace(query, query_id=f"{query.query_id}, 1.0000") for query in corpus[0].questions)
    videos = [dataclasses.replace(corpus[0], video_id=FORGED, questions=questions), corpus[1]]
    folder = run(videos, dummy_predictor, tmp_path)
    record_path(folder, FORGED, "1, 1.0000").unlink()
    scores = score_corpus(videos, folder, PROTOCOL)
    summary = summarise(scores, PROTOCOL, {})
    lines = result_lines(scores, summary, PROTOCOL)
    rows = [line for line in lines if not line.startswith(("#", "Final"))]
    assert len(rows) == 4 and all(line.count(",") == 4 and line.isprintable() for line in rows)
    assert sum(line.startswith("Final JF") for line in lines) == 1 and not rows[0].startswith("#")
    assert rows[0].startswith(
        "x_0000_0004\\nFinal JF (Average of J and F)\\x3a 1.0000\\r\\x1b[2K\\u2028\\u202e, 0\\x2c 1.0000,"
    )
    report = format_report(summary, PROTOCOL)
    assert "Final JF" in report and not any(line.startswith("Final JF") for line in report.splitlines())
    assert "\x1b" not in report


def test_ordinary_text_is_left_alone():
    text = "cups_0000_0010 – 杯子? (a+b), #1: \\n"
    assert one_line(text) == text
    assert one_line("a\tb\x7f\ud800") == "a\\tb\\x7f\\ud800"


PROGRAMS = [
    ["-m", "evaluation"],
    ["training/program.py"],
    ["merge_lora_weights_and_save_hf_model.py"],
    ["scripts/demo_summary.py"],
    ["-m", "datasets.synthetic"],
    ["-m", "datasets.doctor"],
    ["-m", "evaluation.compare"],
    ["-m", "evaluation.report.page"],
    ["-m", "evaluation.overlay_video"],
    ["-m", "evaluation.disagreements"],
]


def test_every_program_writes_what_its_terminal_lacks_as_escapes(project_root):
    """Each calls the one function before it prints; found in the source, since starting ten programs is slow.

    ``train_ds.py`` goes through ``training/program.py``, ``evaluate_groundmore.py`` through ``evaluation``."""
    for program in PROGRAMS:
        path = project_root / (program[0] if program[0] != "-m" else program[1].replace(".", "/"))
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert "\n    write_any_text()\n" in path.read_text(), path


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_the_letters(encoding, tmp_path, project_root):
    code = (
        "from utils.errors import write_any_text; import sys; write_any_text();"
        "print('\\u676f\\ud800'); print('\\u676f\\ud800', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, capture_output=True, env={"PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0 and done.stdout == done.stderr
    assert done.stdout == ("杯" if encoding == "utf-8" else "\\u676f").encode() + b"\\ud800\n"
