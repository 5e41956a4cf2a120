"""Which shard writes the result: the one that finds every question of every shard recorded, and no earlier."""

from __future__ import annotations

import dataclasses

import pytest

from datasets.tokenization import load_tokenizer
from evaluate_groundmore import main
from evaluation.engine.opening import attach_tokens
from evaluation.engine.opening import load_model as load
from evaluation.records import read_record, record_path, write_record
from model import presets
from utils.errors import CheckpointError

CLIPS = ("alpha_0000_0004", "beta_0110_0114")


@pytest.fixture(scope="module")
def model_folder(project_root, tmp_path_factory):
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    sizes = {"clip_layers": 1, "llm_layers": 1, "sam_layers": 1, "clip_hidden": 32, "llm_hidden": 32, "sam_hidden": 32}
    model = presets.build(presets.tiny(vocab_size=len(tokenizer), **sizes))
    attach_tokens(model, tokenizer)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def shard(model_folder, corpus_paths, tmp_path):
    """Run one of two shards; each has one clip with two questions."""
    flags = [
        "--version", str(model_folder), "--meta_file", str(corpus_paths[0]), "--video_root", str(corpus_paths[1]),
        "--output_dir", str(tmp_path), "--num_frames", "2", "--force_seg_token", "--seg_only", "--workers", "0",
        "--max_new_tokens", "2", "--pictures", "0", "--device", "cpu", "--num_shards", "2", "--shard_id",
    ]  # fmt: skip
    return lambda number, *more: main([*flags, str(number), *more])


RESULTS = ("summary.json", "scores.json", "result.txt", "digests.json")


def written(folder):
    return [name for name in RESULTS if (folder / name).exists()]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("place", [0, 1])
def test_one_question_that_another_shard_lacks_is_waited_for(shard, corpus, tmp_path, capsys, clip, place):
    assert shard(0) == 0 and written(tmp_path) == []
    assert shard(1) == 0 and written(tmp_path) == list(RESULTS)
    for name in RESULTS:
        (tmp_path / name).unlink()
    query = next(video for video in corpus if video.video_id == clip).questions[place]
    record_path(tmp_path, clip, query.query_id).unlink()
    owner = next(number for number in (0, 1) if clip in names_of(shard, number, capsys))
    assert shard(1 - owner) == 0
    assert "1 questions of other shards are missing" in capsys.readouterr().out
    assert written(tmp_path) == []
    assert shard(owner) == 0 and written(tmp_path) == list(RESULTS)


def names_of(shard, number, capsys):
    """Clips of a shard: those that it would load its model for, as their failures are forgotten."""
    from evaluation import run

    seen = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "forget_failures", lambda share, _: seen.extend(each.video.video_id for each in share))
        patched.setattr(run, "load_model", lambda *_: (_ for _ in ()).throw(CheckpointError("no need")))
        assert shard(number) == 2
    capsys.readouterr()
    return seen


@pytest.mark.parametrize("settings", ["the same", "others"])
def test_a_failure_is_forgotten_before_the_model_is_loaded(shard, corpus, tmp_path, monkeypatch, capsys, settings):
    """Or another shard, which ends while this one loads, takes the old failure for the last word."""
    assert shard(0) == shard(1) == 0
    (clip,) = names_of(shard, 0, capsys)
    names = [query.query_id for video in corpus if video.video_id == clip for query in video.questions]
    before = [read_record(tmp_path, clip, name) for name in names]
    failed = dataclasses.replace(before[1], status="failed", reason="RuntimeError: no", masks=[], frame_indices=[])
    write_record(tmp_path, failed if settings == "the same" else dataclasses.replace(failed, fingerprint="other"))
    for name in RESULTS:
        (tmp_path / name).unlink()

    outer = [True]  # shard 0 is loading; the shard 1 that runs meanwhile loads as well

    def loading(*wanted):
        if outer.pop():
            outer.append(False)
            # With the failure went what was answered without it: it is asked again in its company.
            assert not any(record_path(tmp_path, clip, name).exists() for name in names)
            assert shard(1) == 0 and written(tmp_path) == []
        return load(*wanted)

    monkeypatch.setattr("evaluation.run.load_model", loading)
    assert shard(0) == 0 and written(tmp_path) == list(RESULTS)
    assert [read_record(tmp_path, clip, name) for name in names] == before
