"""Scores are made once: what they depend on, and nothing else, makes them anew."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.corpora.groundmore import GroundMoRe
from evaluation.benchmark import BENCHMARKS
from evaluation.benchmarks import groundmore
from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import open_run, read_record, scores_path, write_record
from evaluation.scoring import score as module
from evaluation.scoring.pool import ScoringPool
from evaluation.scoring.score import score_corpus
from evaluation.shards import select
from evaluation.sources import source_files, sources_digest
from tests.targets import read_target

PROTOCOL = make_protocol(num_frames=8)
ALPHA, BETA = "alpha_0000_0004", "beta_0110_0114"


@pytest.fixture
def data(corpus_paths, tmp_path):
    """A copy of the corpus that a test may change: (meta_file, video_root)."""
    shutil.copytree(corpus_paths[0].parent, tmp_path / "data")
    return tmp_path / "data" / corpus_paths[0].name, tmp_path / "data" / corpus_paths[1].name


@pytest.fixture
def folder(data, dummy_predictor, tmp_path):
    """A run folder with records of perfect masks."""
    corpus = GroundMoRe(*data)
    predictor = dummy_predictor(corpus, PROTOCOL, lambda v, q, i: read_target(v, q, i), lambda *_: 0.7)
    mark = open_run(tmp_path / "out", PROTOCOL.prediction_settings())
    predict_corpus(corpus, predictor, tmp_path / "out", PROTOCOL, mark)
    return tmp_path / "out"


@pytest.fixture
def made(monkeypatch):
    """Ids of the questions that are scored, not read."""
    ids, score = [], groundmore.BENCHMARK.score

    @functools.wraps(score)  # with its module, whose source is in the key
    def counted(truth, record, query, *rest):
        ids.append(query.query_id)
        return score(truth, record, query, *rest)

    monkeypatch.setattr(groundmore, "BENCHMARK", dataclasses.replace(groundmore.BENCHMARK, score=counted))
    return ids


def scored(made, data, folder, protocol=PROTOCOL, **options):
    """(ids scored anew, scores)."""
    made.clear()
    scores = score_corpus(list(GroundMoRe(*data)), folder, protocol, **options)
    return "".join(made), scores


def test_nothing_is_scored_twice(made, data, folder):
    ids, first = scored(made, data, folder)
    assert ids == "01ab"
    assert scored(made, data, folder) == ("", first)
    scores_path(folder, ALPHA).write_text("{")
    assert scored(made, data, folder) == ("01", first)
    content = json.loads(scores_path(folder, ALPHA).read_text())
    content["questions"]["1"]["key"] = "another"
    scores_path(folder, ALPHA).write_text(json.dumps(content))
    assert scored(made, data, folder) == ("1", first)


def test_what_a_score_depends_on(made, data, folder, monkeypatch):
    scored(made, data, folder)
    record = read_record(folder, BETA, "a")
    write_record(folder, dataclasses.replace(record, masks=[None] * 8))
    ids, scores = scored(made, data, folder)
    assert ids == "a" and scores[2]["rows"]["model"]["window_J"] == 0
    annotation = json.loads(data[0].read_text())
    annotation["videos"][ALPHA]["questions"]["0"]["action_end"] = "00:03"
    data[0].write_text(json.dumps(annotation))
    assert scored(made, data, folder)[0] == "0"
    assert scored(made, data, folder, make_protocol(num_frames=8, loc_refine=True))[0] == "01ab"
    mask = data[1] / ALPHA / "masks" / "frame_000005.png"  # not listed, but it may hold an object looked for
    os.utime(mask, ns=(1, 1))
    assert scored(made, data, folder, make_protocol(num_frames=8, loc_refine=True))[0] == "01"
    assert scored(made, data, folder, fingerprint="another")[0] == "01ab"
    module.code_digest.cache_clear()
    monkeypatch.setattr(module, "code_digest", lambda: "newer")
    assert scored(made, data, folder, fingerprint="another")[0] == "01ab"


DAMAGES = {
    "one digit": lambda text: text.replace('"JF": 1.0', '"JF": 1.1', 1),
    "a wrong key": lambda text: text.replace('"key": "', '"key": "0', 1),
    "a wrong digest": lambda text: text.replace('"digest": "', '"digest": "0', 1),
    "cut off": lambda text: text[:-40],
    "not UTF-8": lambda text: text.replace("first", "f\udcff", 1),
    "NaN": lambda text: text.replace("1.0", "NaN", 1),
    "no JSON": lambda text: "nonsense",
    "empty": lambda text: "",
    "another kind": lambda text: "[1]",
}
ENTRIES = [3, [], None, "x", {}, {"key": 3}, {"key": [], "score": {}}, {"key": "a", "digest": "b", "score": []}]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_score_does_not_enter_the_summary(made, data, folder, damage, caplog):
    _, first = scored(made, data, folder)
    path = scores_path(folder, ALPHA)
    text = DAMAGES[damage](path.read_text())
    assert text != path.read_text()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    ids, scores = scored(made, data, folder)
    assert ids in ("0", "01") and scores == first
    assert str(path) in caplog.text and "scored again" in caplog.text
    caplog.clear()
    assert scored(made, data, folder) == ("", first) and not caplog.text


@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
def test_an_entry_of_another_kind_is_made_again(made, data, folder, entry, caplog):
    _, first = scored(made, data, folder)
    path = scores_path(folder, ALPHA)
    content = json.loads(path.read_text())
    content["questions"]["1"] = entry
    path.write_text(json.dumps(content))
    assert scored(made, data, folder) == ("1", first) and "entries 1" in caplog.text
    content["questions"] = entry
    path.write_text(json.dumps(content))
    assert scored(made, data, folder) == ("01", first)


def test_scores_of_an_older_version_are_made_again_without_a_word(made, data, folder, caplog):
    _, first = scored(made, data, folder)
    path = scores_path(folder, ALPHA)
    content = json.loads(path.read_text())
    old = {name: {"key": entry["key"], "score": entry["score"]} for name, entry in content["questions"].items()}
    path.write_text(json.dumps({"format": "mora-scores-1", "questions": old}))
    assert scored(made, data, folder) == ("01", first) and not caplog.text


def test_a_question_that_cannot_be_scored_is_its_own_failure_and_tried_again(made, data, folder, monkeypatch):
    score = groundmore.BENCHMARK.score

    @functools.wraps(score)
    def failing(truth, record, query, *rest):
        if query.query_id == "1" and record is not None:
            raise IndexError("a bug")
        measured = score(truth, record, query, *rest)
        if query.query_id == "a" and record is not None:
            measured["rows"]["model"]["JF"] = float("nan")
        return measured

    with monkeypatch.context() as patched:
        patched.setattr(groundmore, "BENCHMARK", dataclasses.replace(groundmore.BENCHMARK, score=failing))
        _, scores = scored(made, data, folder)
        json.dumps(scores, allow_nan=False)
    assert [each["status"] for each in scores] == ["ok", "failed", "failed", "ok"]
    assert "IndexError: a bug" in scores[1]["reason"] and "not finite" in scores[2]["reason"]
    ids, scores = scored(made, data, folder)
    assert ids == "1a" and all(each["status"] == "ok" for each in scores)


@pytest.mark.parametrize("benchmark", sorted(BENCHMARKS))
def test_every_source_that_scores_is_in_the_key(benchmark, project_root, tmp_path):
    """What a fresh interpreter loads to score is what the key covers; editing any of it changes the key."""
    parts = ("evaluation.scoring.score", BENCHMARKS[benchmark].split(":")[0])
    code = (
        f"import sys, {', '.join(parts)}, evaluation.metrics.with_numpy, evaluation.metrics.compiled as c;"
        "c.load_kernels();"
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    rooms = [project_root / room for room in ("utils", "datasets", "model", "evaluation")]
    loaded = {path for path in map(Path, done.stdout.split()) if any(room in path.parents for room in rooms)}
    covered = sorted({path for part in parts for path in source_files(part)})
    assert loaded == set(covered)
    names = [path.relative_to(project_root) for path in covered]
    assert {
        Path("evaluation/scoring/masks.py"),
        Path("evaluation/metrics/with_numba.py"),
        Path("utils/masks.py"),
    } <= set(names)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project_root / name, tmp_path / name)
    before = [sources_digest(part, tmp_path) for part in parts]
    assert before[0] == module.code_digest()
    for name in names:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole + b"#")
        assert [sources_digest(part, tmp_path) for part in parts] != before, name
        (tmp_path / name).write_bytes(whole)


def test_the_reader_of_the_masks_is_in_the_key(made, data, folder, monkeypatch):
    scored(made, data, folder)
    monkeypatch.setattr(module, "_sources_of", lambda name: f"another {name}")
    assert scored(made, data, folder)[0] == "01ab"
    assert sources_digest("datasets.corpora.base") != sources_digest("nowhere.corpus") == sources_digest("builtins")


def test_a_part_does_not_throw_away_the_rest(made, data, folder):
    _, scores = scored(made, data, folder)
    some = select(list(GroundMoRe(*data)), questions=["b"])
    assert score_corpus([each.scored for each in some], folder, PROTOCOL) == [scores[3]]
    write_record(folder, dataclasses.replace(read_record(folder, BETA, "b"), masks=[None] * 8))
    made.clear()
    score_corpus([each.scored for each in some], folder, PROTOCOL)
    assert made == ["b"] and scored(made, data, folder)[0] == ""  # those of the others were kept


def test_reasons_do_not_tell_where_the_folder_lies(data, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    for place in (folder, tmp_path / "moved"):
        (place / "records" / ALPHA / "0.json").unlink()
        (place / "records" / ALPHA / "1.json").write_text("{")
    here, moved = (score_corpus(list(GroundMoRe(*data)), place, PROTOCOL) for place in (folder, tmp_path / "moved"))
    assert here == moved
    assert here[0]["reason"].startswith("no prediction: records/alpha_0000_0004/0.json: no such file")
    assert "1.json: not valid JSON" in here[1]["reason"]


def test_a_mask_that_cannot_be_decoded_fails_its_question(data, folder):
    record = read_record(folder, ALPHA, "0")
    masks = [{"size": [24, 32], "counts": "04"}, *record.masks[1:]]
    write_record(folder, dataclasses.replace(record, masks=masks))
    scores = score_corpus(list(GroundMoRe(*data)), folder, PROTOCOL)
    assert [score["status"] for score in scores] == ["failed", "ok", "ok", "ok"]
    assert "the record is damaged" in scores[0]["reason"] and scores[0]["rows"]["model"]["JF"] == 0


def test_scores_are_made_here_if_the_pool_has_died(data, folder):
    with ScoringPool(1) as pool:
        assert pool.submit(os._exit, 1).exception(timeout=60) is not None
        scores = score_corpus(list(GroundMoRe(*data)), folder, PROTOCOL, pool=pool)
    assert [score["status"] for score in scores] == ["ok"] * 4
