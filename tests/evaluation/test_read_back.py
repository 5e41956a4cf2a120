"""What is read back from an output folder: values of other kinds are named errors or made again, never tracebacks."""

from __future__ import annotations

import dataclasses
import json

import pytest

from evaluate_groundmore import main
from evaluation.engine.predict import Options, predict_corpus
from evaluation.protocol import Protocol, make_protocol
from evaluation.records import fingerprint, open_run, read_record, read_run, record_path, write_record
from evaluation.scoring.score import score_corpus
from evaluation.shards import find_shard
from tests.targets import read_target
from utils.errors import ConfigError, DataError
from utils.files import read_json, write_json

PROTOCOL = make_protocol(num_frames=3)
ALPHA = "alpha_0000_0004"


@pytest.fixture
def folder(corpus, dummy_predictor, tmp_path):
    """A run folder with records of perfect masks, as the program leaves it after --predict_only."""
    predictor = dummy_predictor(corpus, PROTOCOL, lambda v, q, i: read_target(v, q, i), lambda *_: 0.7)
    mark = open_run(tmp_path, {"protocol": PROTOCOL.prediction_settings()}, about={"version": "x"})
    predict_corpus(corpus, predictor, tmp_path, PROTOCOL, mark, options=Options(0, quiet=True))
    return tmp_path


RECORDS = [
    {"masks": 3}, {"masks": [3] * 3}, {"masks": [{}] * 3}, {"masks": [{"size": [24, 32], "counts": [1]}] * 3},
    {"masks": [{"size": "ab", "counts": "04"}] * 3}, {"status": ["ok"]}, {"status": "fine"}, {"listed_frames": "abc"},
    {"listed_frames": [0.5, 1, 2]}, {"frame_indices": [1, 2, 3]}, {"frame_indices": [True, 1, 2]}, {"answers": [1]},
    {"answers": None}, {"loc_probs": ["a", "b", "c"]}, {"loc_probs": [2.0, 0.0, 0.0]}, {"loc_probs": 0.5},
    {"size": [24, "32"]}, {"size": 24}, {"reason": [1]}, {"question": 3}, {"num_clip_frames": "24"}, {"frames": None},
    {"forced_seg": 1}, {"fingerprint": 3}, {"video_id": "another"}, {"query_id": 0}, {"video_id": [1]},
]  # fmt: skip


@pytest.mark.parametrize("change", RECORDS, ids=str)
def test_a_record_with_values_of_another_kind(corpus, dummy_predictor, folder, change):
    before = read_record(folder, ALPHA, "0")
    path = record_path(folder, ALPHA, "0")
    content = {**dataclasses.asdict(before), **change}
    write_json(path, {"format": "mora-record-2", "digest": fingerprint(content), **content})
    with pytest.raises(DataError, match="predict again") as caught:
        read_record(folder, ALPHA, "0")
    assert str(path) in str(caught.value)
    scores = score_corpus(list(corpus), folder, PROTOCOL)
    assert [score["status"] for score in scores] == ["failed", "ok", "ok", "ok"]
    predictor = dummy_predictor(corpus, PROTOCOL, lambda v, q, i: read_target(v, q, i), lambda *_: 0.7)
    summary = predict_corpus(corpus, predictor, folder, PROTOCOL, before.fingerprint, options=Options(0, quiet=True))
    assert summary.written == 1 and read_record(folder, ALPHA, "0") == before


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '{"a": NaN}', "[" * 100_000, "9" * 5000, "\udcff"])
def test_a_file_that_is_no_record(corpus, folder, content):
    record_path(folder, ALPHA, "0").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="0.json"):
        read_record(folder, ALPHA, "0")
    assert [score["status"] for score in score_corpus(list(corpus), folder, PROTOCOL)][0] == "failed"


def test_a_folder_in_the_place_of_a_record(corpus, folder):
    record_path(folder, ALPHA, "0").unlink()
    record_path(folder, ALPHA, "0").mkdir()
    with pytest.raises(DataError, match="0.json"):
        read_record(folder, ALPHA, "0")
    assert score_corpus(list(corpus), folder, PROTOCOL)[0]["status"] == "failed"


def test_a_record_never_holds_nan(folder):
    record = read_record(folder, ALPHA, "0")
    whole = record_path(folder, ALPHA, "0").read_bytes()
    with pytest.raises(DataError, match="NaN or infinite"):
        write_record(folder, dataclasses.replace(record, loc_probs=[float("nan"), 0.0, float("inf")]))
    assert record_path(folder, ALPHA, "0").read_bytes() == whole


RUNS = [
    lambda run: run.update(settings="x"),
    lambda run: run.pop("settings"),
    lambda run: run.pop("fingerprint"),
    lambda run: run.update(fingerprint=3),
    lambda run: run.update(about=[1]),
    lambda run: run.update(format="mora-run-0"),
    lambda run: run["settings"].update(weights="another"),
]
PROTOCOLS = [
    "x", None, {"num_frames": "8"}, {"num_frames": 2.5}, {"num_frames": True}, {"unheard_of": 1}, {"prompt": []},
    {"mask_threshold": "a"}, {"force_seg_token": 1},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RUNS) + len(PROTOCOLS)))
def test_a_run_file_with_values_of_another_kind(folder, corpus_paths, capsys, number):
    run = read_run(folder)
    if number < len(RUNS):
        RUNS[number](run)
    else:
        change = PROTOCOLS[number - len(RUNS)]
        whole = PROTOCOL.prediction_settings()
        run["settings"]["protocol"] = {**whole, **change} if isinstance(change, dict) else change
        run["fingerprint"] = fingerprint(run["settings"])
    write_json(folder / "run.json", run)
    flags = ["--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]), "--output_dir", str(folder)]
    assert main([*flags, "--score_only", "--workers", "0"]) == 2
    assert str(folder / "run.json") in capsys.readouterr().err
    if number < len(RUNS):
        with pytest.raises(DataError, match="run.json"):
            open_run(folder, {"protocol": PROTOCOL.prediction_settings()})


@pytest.mark.parametrize(
    "fields",
    [
        {"num_frames": "8"}, {"num_frames": 8.0}, {"num_frames": True}, {"seg_only": 1}, {"loc_threshold": "a"},
        {"loc_threshold": float("nan")}, {"mask_threshold": float("inf")}, {"name": 3}, {"window": ["clipped"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_protocol_holds_values_of_its_kinds(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Protocol(**fields)
    assert Protocol(mask_threshold=1).mask_threshold == 1


def test_flags_without_a_value(capsys):
    names = ("--version", "--meta_file", "--video_root", "--output_dir", "--result_file", "--vision_pretrained")
    assert main([f"{name}=" for name in names]) == 2
    error = capsys.readouterr().err
    assert all(f"{name}: is empty" in error for name in names)


def test_an_array_without_tasks():
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_COUNT=0"):
        find_shard(environment={"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "0"})


def test_json_holds_half_letters_and_no_nan(tmp_path):
    value = {"a\udce9": ["\ud800", "杯"]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value and json.loads((tmp_path / "x.json").read_bytes()) == value
    assert "杯" in (tmp_path / "x.json").read_text(encoding="utf-8")
    for number in (float("nan"), float("inf")):
        with pytest.raises(DataError, match=r"y\.json"):
            write_json(tmp_path / "y.json", [number])
    assert not (tmp_path / "y.json").exists()
