"""Prediction: records at once, resume, other settings, failures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from evaluation.engine.predict import predict_corpus
from evaluation.protocol import make_protocol
from evaluation.records import Record, fingerprint, open_run, read_record, record_path, write_record
from evaluation.shards import select
from tests.targets import read_target
from utils.errors import ConfigError, DataError
from utils.masks import decode_rle
from utils.tensors import tensors_digest

PROTOCOL = make_protocol(num_frames=8)


def perfect(video, query, index):
    return read_target(video, query, index)


def run(corpus, predictor, folder, protocol=PROTOCOL, **options):
    mark = open_run(folder, {"protocol": protocol.prediction_settings()}, options.pop("overwrite", False))
    return predict_corpus(corpus, predictor, folder, protocol, mark, **options)


def test_a_record_per_question_and_each_video_is_encoded_once(corpus, dummy_predictor, tmp_path):
    predictor = dummy_predictor(corpus, PROTOCOL, perfect, loc=lambda *_: 0.25)
    summary = run(corpus, predictor, tmp_path)
    assert (summary.written, summary.reused, summary.failures) == (4, 0, [])
    assert predictor.encoded == ["alpha_0000_0004", "beta_0110_0114"]
    assert predictor.asked == [["0", "1"], ["a", "b"]]
    record = read_record(tmp_path, "alpha_0000_0004", "0")
    assert record.frame_indices == record.listed_frames == [0, 3, 7, 10, 13, 16, 20, 23]
    assert record.size == [24, 32] and record.loc_probs == [0.25] * 8 and record.answers == ["It is [SEG]."]
    video = corpus[0]
    for index, rle in zip(record.frame_indices, record.masks):
        assert np.array_equal(decode_rle(rle), read_target(video, video.questions[0], index))


def test_a_frame_without_seg_has_no_mask_in_the_record(corpus, dummy_predictor, tmp_path):
    predictor = dummy_predictor(corpus, PROTOCOL, lambda v, q, i: None if i < 10 else perfect(v, q, i))
    run(corpus, predictor, tmp_path)
    masks = read_record(tmp_path, "alpha_0000_0004", "1").masks
    assert [mask is None for mask in masks] == [True] * 3 + [False] * 5


def test_an_answer_without_a_token_says_so_in_its_record(corpus, dummy_predictor, tmp_path):
    run(
        corpus,
        dummy_predictor(corpus, PROTOCOL, lambda v, q, i: None if q.query_id == "1" else perfect(v, q, i)),
        tmp_path,
    )
    records = [read_record(tmp_path, "alpha_0000_0004", query) for query in "01"]
    assert [record.status for record in records] == ["ok", "ok"]
    assert [record.reason for record in records] == [None, "the answer has no [SEG]; its masks are empty"]


def test_a_listed_frame_of_a_short_clip_is_predicted_once(corpus, dummy_predictor, tmp_path):
    protocol = make_protocol(num_frames=40)
    run(corpus, dummy_predictor(corpus, protocol, perfect), tmp_path, protocol)
    record = read_record(tmp_path, "beta_0110_0114", "b")
    assert record.frame_indices == list(range(24)) and len(record.listed_frames) == 40
    assert record.frame_indices == sorted(set(record.listed_frames))


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def test_a_killed_run_continues_and_ends_with_the_same_files(corpus, dummy_predictor, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), whole)
    for stop_after in (1, 0, 1):  # each attempt writes so many records and dies while writing the next
        count = 0

        def dying_write(*arguments, stop_after=stop_after):
            nonlocal count
            count += 1
            if count > stop_after:
                raise Killed
            write_record(*arguments)

        monkeypatch.setattr("evaluation.engine.predict.write_record", dying_write)
        with pytest.raises(Killed):
            run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), parts)
    monkeypatch.undo()
    predictor = dummy_predictor(corpus, PROTOCOL, perfect)
    summary = run(corpus, predictor, parts)
    assert (summary.written, summary.reused) == (2, 2)
    assert predictor.encoded == ["beta_0110_0114"]
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.json"))
    assert files == sorted(path.relative_to(parts) for path in parts.rglob("*.json")) and len(files) == 5
    assert all((whole / name).read_bytes() == (parts / name).read_bytes() for name in files)
    assert not [path for path in parts.rglob("*") if path.name.endswith(".tmp")]


def test_what_is_asked_together_does_not_depend_on_what_is_recorded(corpus, dummy_predictor, tmp_path):
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path)
    record_path(tmp_path, "beta_0110_0114", "b").unlink()
    predictor = dummy_predictor(corpus, PROTOCOL, perfect)
    assert run(corpus, predictor, tmp_path).written == 1
    assert predictor.asked == [["a", "b"]]
    record_path(tmp_path, "beta_0110_0114", "b").unlink()
    predictor = dummy_predictor(corpus, PROTOCOL, perfect)
    run(corpus, predictor, tmp_path, questions_per_batch=1)
    assert predictor.asked == [["b"]]


def test_other_settings_are_refused_with_what_differs_or_overwritten(corpus, dummy_predictor, tmp_path):
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path)
    other = make_protocol(num_frames=5)
    with pytest.raises(ConfigError, match=r"(?s)protocol.num_frames: 8 -> 5.*--overwrite"):
        run(corpus, dummy_predictor(corpus, other, perfect), tmp_path, other)
    summary = run(corpus, dummy_predictor(corpus, other, perfect), tmp_path, other, overwrite=True)
    assert (summary.written, summary.reused) == (4, 0)


def test_records_of_another_run_or_question_are_not_reused(corpus, dummy_predictor, tmp_path):
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path)
    record = read_record(tmp_path, "alpha_0000_0004", "0")
    write_record(tmp_path, dataclasses.replace(record, fingerprint="other"))
    write_record(tmp_path, dataclasses.replace(read_record(tmp_path, "alpha_0000_0004", "1"), question="Who?"))
    record_path(tmp_path, "beta_0110_0114", "a").write_text('{"format": "mora-rec')
    assert run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path).written == 3
    assert read_record(tmp_path, "alpha_0000_0004", "0") == record


def test_one_bad_question_does_not_fail_the_others_and_is_tried_again(corpus, dummy_predictor, tmp_path):
    def rule(video, query, index):
        if query.query_id == "1":
            raise RuntimeError("CUDA out of memory")
        return perfect(video, query, index)

    summary = run(corpus, dummy_predictor(corpus, PROTOCOL, rule), tmp_path)
    assert summary.written == 3
    assert summary.failures == [("alpha_0000_0004", "1", "RuntimeError: CUDA out of memory")]
    record = read_record(tmp_path, "alpha_0000_0004", "1")
    assert record.status == "failed" and record.reason == "RuntimeError: CUDA out of memory" and not record.ok
    # Question 0 was asked alone then, so it is recorded again as well, in the company that it has without a failure.
    summary = run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path)
    assert (summary.written, summary.reused) == (2, 2)
    assert read_record(tmp_path, "alpha_0000_0004", "1").ok


def test_what_failed_is_written_last_so_that_a_kill_leaves_a_sign(corpus, dummy_predictor, tmp_path, monkeypatch):
    def rule(video, query, index):
        if query.query_id == "0":
            raise RuntimeError("no")
        return perfect(video, query, index)

    run(corpus, dummy_predictor(corpus, PROTOCOL, rule), tmp_path)
    written = []
    monkeypatch.setattr(
        "evaluation.engine.predict.write_record", lambda folder, record: written.append(record.query_id)
    )
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path)
    assert written == ["1", "0"]


def test_an_unreadable_frame_fails_its_video_only(corpus, dummy_predictor, tmp_path):
    broken = tmp_path / "frame_000007.jpg"
    broken.write_bytes(b"")
    paths = list(corpus[0].frame_paths)
    paths[7] = broken
    videos = [dataclasses.replace(corpus[0], frame_paths=tuple(paths)), corpus[1]]
    summary = run(videos, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path / "out")
    assert summary.written == 2 and len(summary.failures) == 2
    assert all("frame_000007.jpg" in reason for _, _, reason in summary.failures)


def test_a_programming_error_is_not_swallowed(corpus, dummy_predictor, tmp_path):
    def rule(*_):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run(corpus, dummy_predictor(corpus, PROTOCOL, rule), tmp_path)


def test_what_changed_is_said_and_only_that_is_predicted_again(corpus, dummy_predictor, tmp_path, caplog):
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path / "out")
    alpha, beta = corpus
    asked_anew = dataclasses.replace(beta.questions[0], text="Who?")
    added = dataclasses.replace(beta.questions[0], query_id="c")
    frame = tmp_path / alpha.frame_paths[3].name
    frame.write_bytes(alpha.frame_paths[3].read_bytes() + b"0")
    videos = [
        dataclasses.replace(alpha, frame_paths=(*alpha.frame_paths[:3], frame, *alpha.frame_paths[4:])),
        dataclasses.replace(beta, questions=(asked_anew, beta.questions[1], added)),
        dataclasses.replace(beta, video_id="gamma"),
    ]
    predictor = dummy_predictor(videos, PROTOCOL, perfect)
    summary = run(videos, predictor, tmp_path / "out")
    assert (summary.written, summary.reused) == (2 + 2 + 2, 1)
    assert "3 records here cannot be used and are made again: 1 of another question text, 2 of other frame files" in (
        caplog.text
    )
    # An unlisted frame does not matter, nor does a window or an answer, which no prediction depends on.
    assert 4 not in PROTOCOL.sample(24)
    videos[0] = dataclasses.replace(videos[0], frame_paths=(*videos[0].frame_paths[:4], frame, *alpha.frame_paths[5:]))
    videos[1] = dataclasses.replace(
        videos[1], questions=(*videos[1].questions[:2], dataclasses.replace(added, answer="?"))
    )
    caplog.clear()
    assert run(videos, predictor, tmp_path / "out").written == 0 and not caplog.text


def test_processes_may_open_a_folder_at_once_and_overwrite_their_own_videos(corpus, dummy_predictor, tmp_path):
    run(corpus, dummy_predictor(corpus, PROTOCOL, perfect), tmp_path)
    before = (tmp_path / "run.json").stat().st_mtime_ns
    settings = {"protocol": PROTOCOL.prediction_settings()}
    open_run(tmp_path, settings)
    assert (tmp_path / "run.json").stat().st_mtime_ns == before
    open_run(tmp_path, settings, overwrite=True, overwrite_videos=["alpha_0000_0004"])
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["beta_0110_0114"]
    open_run(tmp_path, settings, overwrite=True)
    assert not (tmp_path / "records").exists()


def test_selecting_videos_and_questions(corpus):
    def chosen(*arguments):
        return [(each.video.video_id[:5], *each.questions) for each in select(corpus, *arguments)]

    assert chosen() == [("alpha", "0", "1"), ("beta_", "a", "b")]
    assert chosen(["beta_0110_0114"]) == [("beta_", "a", "b")]
    assert chosen(None, None, 1) == [("alpha", "0", "1")]
    assert chosen(None, ["1", "b", "1"]) == [("alpha", "1"), ("beta_", "b")]
    assert chosen(None, ["b"], 1) == [("beta_", "b")]  # the first video that has the question
    assert chosen(["beta_0110_0114"], ["b"]) == [("beta_", "b")]
    assert [len(each.video.questions) for each in select(corpus, None, ["b"])] == [2]
    assert [query.query_id for query in select(corpus, None, ["b"])[0].scored.questions] == ["b"]
    for arguments, word in (
        ((["gamma"],), "--video gamma"),
        ((None, None, 0), "at least 1"),
        ((None, ["c", "0"]), "--question c: not in any video"),
        ((["beta_0110_0114"], ["0"]), "--question 0: not in the videos named"),
    ):
        with pytest.raises(ConfigError, match=word):
            select(corpus, *arguments)


def test_ids_with_slashes_and_dots_stay_inside_the_run_folder(tmp_path):
    for video_id in ("../evil", "..", "a/b", "", ".hidden", "naïve clip_0000_0010"):
        path = record_path(tmp_path, video_id, "0").resolve()
        assert path.parent.parent == (tmp_path / "records").resolve()
    assert record_path(tmp_path, "a/b", "0") != record_path(tmp_path, "a_b", "0")
    assert record_path(tmp_path, "cups_0000_0010", "3").parts[-2:] == ("cups_0000_0010", "3.json")


def test_a_damaged_record_names_its_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_record(tmp_path, "v", "0")
    path = record_path(tmp_path, "v", "0")
    path.parent.mkdir(parents=True)
    for content in ("[]", '{"format": "other"}', '{"format": "mora-record-2", "video_id": "v"}'):
        path.write_text(content)
        with pytest.raises(DataError, match="predict again") as caught:
            read_record(tmp_path, "v", "0")
        assert str(path) in str(caught.value)
    record = Record("v", "0", "?", "ok", "f", 3, [0, 1], frame_indices=[0, 1], size=[2, 2], masks=[None])
    write_record(tmp_path, record)
    with pytest.raises(DataError, match="2 frames but 1 masks"):
        read_record(tmp_path, "v", "0")
    masks = [{"size": [2, 2], "counts": "04"}, {"size": [2, 3], "counts": "06"}]
    write_record(tmp_path, dataclasses.replace(record, masks=masks))
    with pytest.raises(DataError, match=r"a mask of \[2, 3\] among masks of \[2, 2\]"):
        read_record(tmp_path, "v", "0")
    write_record(tmp_path, dataclasses.replace(record, masks=[masks[0], None]))
    assert read_record(tmp_path, "v", "0").masks == [masks[0], None]
    path.write_text(path.read_text().replace('"04"', '"13"'))
    with pytest.raises(DataError, match="damaged"):
        read_record(tmp_path, "v", "0")


def test_fingerprints():
    import torch

    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 2, "b": [2]})
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before = tensors_digest(model.state_dict())
    assert tensors_digest(model.state_dict()) == before
    assert tensors_digest(model.to(torch.bfloat16).state_dict()) != before
    model = model.float()
    with torch.no_grad():
        changed = tensors_digest(model.state_dict())
        model.weight[0, 0] += 1e-6
    assert tensors_digest(model.state_dict()) != changed
