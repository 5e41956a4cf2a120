"""Corpora of the motion world on disk: layouts, quirks, and the same bytes whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from datasets.corpora.mevis import MeViS
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos
from datasets.synthetic import WorldSettings, corpora, make_video
from datasets.synthetic.__main__ import SyntheticFlags, main, plans_from
from datasets.synthetic.corpora import CorpusPlan, write_corpora
from datasets.synthetic.layouts import GroundMoReLayout, MeViSLayout, ReferYoutubeVosLayout
from tests.datasets.motion_worlds import id_maps
from tests.targets import read_target
from utils.errors import ConfigError
from utils.flags import parse_small

SETTINGS = WorldSettings(height=40, width=48, num_frames=30, length_jitter=1, multi_answer_rate=0.7)


def plan(name="groundmore", split="train", seed=3, num_videos=10, settings=SETTINGS):
    return CorpusPlan(name, split, seed, num_videos, settings)


def contents(root):
    """Relative path -> digest of every file."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    write_corpora(root, [plan("groundmore"), plan("refytvos"), plan("mevis"), plan("groundmore", "test", 4, 4)])
    return root


@pytest.fixture(scope="module")
def trainval(corpus):
    return json.loads((corpus / "GroundMoRe" / "trainval_v2.json").read_text())["videos"]


def groundmore_videos(num_videos=10, seed=3, split="train"):
    return [make_video(seed, GroundMoReLayout.first_index + n, SETTINGS, split) for n in range(num_videos)]


def test_same_seed_same_bytes_with_any_number_of_processes(corpus, tmp_path):
    plans = [plan("groundmore"), plan("refytvos"), plan("mevis"), plan("groundmore", "test", 4, 4)]
    write_corpora(tmp_path, plans, workers=2)
    assert contents(tmp_path) == contents(corpus)
    assert not [path for path in corpus.rglob(".*")], "nothing temporary stays"


def test_another_seed_gives_other_bytes(corpus, tmp_path):
    write_corpora(tmp_path, [plan(seed=5, num_videos=1)])
    assert set(contents(tmp_path).values()).isdisjoint(contents(corpus).values())


def test_groundmore_reads_back_as_the_log_has_it(corpus):
    reader = GroundMoRe(corpus / "GroundMoRe/trainval_v2.json", corpus / "GroundMoRe/groundmore_videos")
    assert len(reader) == 10
    for number, video in enumerate(groundmore_videos()):
        record = reader[number]
        assert len(record.frame_paths) == video.num_frames
        by_text, drawn = {question.text: question for question in video.questions}, id_maps(video)
        assert len(record.questions) in (2, len(video.questions))
        for query in record.questions:
            question = by_text[query.text]
            assert (query.answer, query.q_type) == (question.answer, question.q_type)
            assert query.window == query.raw_window == question.window
            assert query.object_ids == question.answer_ids
            for frame in (*question.window, question.window[0] - 1):
                if frame >= 0:
                    expected = np.isin(drawn[frame], question.answer_ids)
                    inside = question.window[0] <= frame <= question.window[1]
                    np.testing.assert_array_equal(read_target(record, query, frame), expected & inside)


def test_groundmore_has_the_quirks_of_the_published_corpus(corpus, trainval):
    folder = corpus / "GroundMoRe" / "groundmore_videos"
    assert all(re.fullmatch(r"train_\d{6}_\d{4}_\d{4}", name) for name in trainval)
    assert len({name[-9:-5] for name in trainval}) > 5, "clips start at various times of their source videos"
    names = {path.name for video in trainval for path in (folder / video / "images").iterdir()}
    assert "frame_000000.jpg" in names and "0000000.jpg" in names
    questions = [q for video in trainval.values() for q in video["questions"].values()]
    assert {"question", "answer", "obj_id", "q_type", "action_start", "action_end"} == set(questions[0])
    assert any(re.fullmatch(r"\d, \d", q["obj_id"]) for q in questions)
    assert all(re.fullmatch(r"\d\d:\d\d", q["action_start"]) for q in questions)
    lengths = {len(list((folder / video / "images").iterdir())) for video in trainval}
    assert len(lengths) > 1
    without = [
        len(list((folder / v / "images").iterdir())) - len(list((folder / v / "masks").iterdir())) for v in trainval
    ]
    assert max(without) > 0 and min(without) == 0, "some videos have frames without a mask file"


def test_frames_and_masks_have_the_published_formats(corpus, trainval):
    video = corpus / "GroundMoRe" / "groundmore_videos" / next(iter(trainval))
    with Image.open(next((video / "images").iterdir())) as frame:
        assert frame.format == "JPEG" and frame.mode == "RGB" and frame.size == (48, 40)
        assert frame.layer[0][1:3] == (1, 1) and frame.layer[1][1:3] == (1, 1), "4:4:4"
    with Image.open(next((video / "masks").iterdir())) as mask:
        assert mask.format == "PNG" and mask.mode == "P" and mask.size == (48, 40)
        assert np.array(mask).max() <= SETTINGS.max_objects


def test_the_test_split_comes_with_plain_referring_questions(corpus):
    folder = corpus / "GroundMoRe"
    reader = GroundMoRe(folder / "referring_test.json", folder / "groundmore_videos")
    motion = GroundMoRe(folder / "groundmore_test.json", folder / "groundmore_videos")
    assert [record.video_id for record in reader] == [record.video_id for record in motion]
    for number, video in enumerate(groundmore_videos(4, 4, "test")):
        assert len(reader[number].questions) == len(video.objects)
        for query, target in zip(reader[number].questions, video.objects):
            assert target.name in query.text and query.answer == f"the {target.name}"
            assert query.window == (0, video.num_frames - 1)
            expected = id_maps(video, [5])[0] == target.object_id
            np.testing.assert_array_equal(read_target(reader[number], query, 5), expected)
        assert all(len(query.object_ids) == 1 for query in motion[number].questions)


def test_refer_youtube_vos_reads_back(corpus):
    reader = ReferYoutubeVos(corpus / "refytvos")
    assert len(reader) >= 10
    videos = {
        f"{ReferYoutubeVosLayout.first_index + n:010x}": make_video(3, ReferYoutubeVosLayout.first_index + n, SETTINGS)
        for n in range(10)
    }
    for record in reader:
        video = videos[record.video_id]
        said = {(e.text.lower(), e.object_ids) for e in video.expressions if len(e.object_ids) == 1}
        assert {(query.text, query.object_ids) for query in record.questions} <= said
        query = record.questions[0]
        expected = id_maps(video, [video.num_frames - 1])[0] == query.object_ids[0]
        np.testing.assert_array_equal(read_target(record, query, video.num_frames - 1), expected)
    meta = json.loads((corpus / "refytvos/train/meta.json").read_text())["videos"]
    assert meta[reader[0].video_id]["objects"]["1"]["category"] == videos[reader[0].video_id].objects[0].name


def test_mevis_reads_back_with_several_objects(corpus):
    reader = MeViS(corpus / "MeViSv2")
    assert len(reader) == 10
    several = 0
    for number, record in enumerate(reader):
        video = make_video(3, MeViSLayout.first_index + number, SETTINGS)
        by_text = {expression.text.lower(): expression.object_ids for expression in video.expressions}
        for query in record.questions:
            ids = by_text.get(query.text, ())
            several += len(ids) > 1
            expected = np.isin(id_maps(video, [7])[0], ids)
            np.testing.assert_array_equal(read_target(record, query, 7), expected)
    assert several > 10


def test_corpora_of_one_seed_share_no_video(corpus):
    frames = {}
    for path in corpus.rglob("*.jpg"):
        frames.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), set()).add(path.parts[len(corpus.parts)])
    assert all(len(roots) == 1 for roots in frames.values())


def test_an_interrupted_run_continues_where_it_was(corpus, tmp_path, monkeypatch):
    written = []

    def dying(task, die_at):
        if len(written) == die_at:
            raise KeyboardInterrupt
        written.append(task[2])
        return real(task)

    real = corpora._write_chunk
    plans = [plan("groundmore"), plan("refytvos"), plan("mevis"), plan("groundmore", "test", 4, 4)]
    monkeypatch.setattr(corpora, "_write_chunk", lambda task: dying(task, 1))
    with pytest.raises(KeyboardInterrupt):
        write_corpora(tmp_path, plans)
    half = tmp_path / "GroundMoRe" / "groundmore_videos" / ".train_000008_0000_0001.tmp"
    half.mkdir()
    (half / "torn").write_text("x")
    monkeypatch.setattr(corpora, "_write_chunk", lambda task: dying(task, None))
    write_corpora(tmp_path, plans)
    assert written.count(0) == 4 and written.count(8) == 3, "the first chunk of the first corpus is made once"
    assert contents(tmp_path) == contents(corpus)


def test_a_finished_corpus_is_left_alone(corpus, monkeypatch):
    monkeypatch.setattr(corpora, "_write_chunk", lambda task: pytest.fail("writes again"))
    write_corpora(corpus, [plan("groundmore"), plan("mevis")])


def test_other_settings_in_the_same_folder_are_refused(corpus, tmp_path):
    before = contents(corpus)
    for other in (plan(seed=9), plan(num_videos=11), plan(settings=WorldSettings())):
        with pytest.raises(ConfigError, match=f"{re.escape(str(corpus))}.*--overwrite"):
            write_corpora(corpus, [other])
    with pytest.raises(ConfigError, match="seed 3 there, 9 now"):
        write_corpora(corpus, [plan(seed=9)])
    assert contents(corpus) == before


def test_overwrite_replaces_that_corpus_and_no_other(tmp_path):
    write_corpora(tmp_path, [plan(num_videos=3), plan(split="test", num_videos=2)])
    before = contents(tmp_path)
    write_corpora(tmp_path, [plan(num_videos=2, seed=8)], overwrite=True)
    after = contents(tmp_path)
    kept = {name for name in before if "/test_" in name or name.endswith("_test.json")}
    assert kept and all(after[name] == before[name] for name in kept)
    fresh = tmp_path / "fresh"
    write_corpora(fresh, [plan(num_videos=2, seed=8), plan(split="test", num_videos=2)])
    assert {n: d for n, d in after.items()} == contents(fresh)


def test_files_of_unknown_origin_are_not_overwritten_unasked(tmp_path):
    (tmp_path / "GroundMoRe").mkdir()
    (tmp_path / "GroundMoRe" / "trainval_v2.json").write_text("{}")
    with pytest.raises(ConfigError, match="trainval_v2.json is there already"):
        write_corpora(tmp_path, [plan(num_videos=1)])
    assert (tmp_path / "GroundMoRe" / "trainval_v2.json").read_text() == "{}"


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--corpora", "groundmore,davis"], "davis"),
        (["--split", "test", "--corpora", "refytvos"], "training split"),
        (["--num_frames", "12"], "4 seconds"),
        (["--num_mevis", "0"], "leave the corpus out"),
        (["--seed", "-1"], "negative"),
    ],
)
def test_the_command_line_explains_what_cannot_be(tmp_path, capsys, flags, word):
    assert main(["--out", str(tmp_path / "x"), "--num_videos", "1", *flags]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_command_line_sets_counts_per_corpus():
    argv = ["--out", "x", "--num_videos", "30", "--num_mevis", "5", "--level", "hard"]
    plans = plans_from(parse_small(SyntheticFlags, "", argv))
    assert [(p.name, p.num_videos) for p in plans] == [("groundmore", 30), ("refytvos", 30), ("mevis", 5)]
    assert plans[0].settings.level == "hard" and plans[0].settings.length_jitter == 1


def test_a_720p_clip_is_written_and_read(tmp_path):
    flags = ["--seed", "1", "--num_videos", "1", "--corpora", "groundmore", "--num_frames", "24"]
    assert main(["--out", str(tmp_path), *flags, "--height", "720", "--width", "1280", "--workers", "1"]) == 0
    reader = GroundMoRe(tmp_path / "GroundMoRe/trainval_v2.json", tmp_path / "GroundMoRe/groundmore_videos")
    query = reader[0].questions[0]
    mask = read_target(reader[0], query, query.window[0])
    assert mask.shape == (720, 1280) and mask.any()


def test_a_full_disk_is_reported_with_the_remedy(tmp_path, capsys, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    flags = ["--num_videos", "1", "--corpora", "groundmore", "--num_frames", "24", "--workers", "1"]
    assert main(["--out", str(tmp_path), *flags]) == 1
    message = capsys.readouterr().err
    assert "No space left" in message and str(tmp_path) in message and "continue" in message
    assert not (tmp_path / "GroundMoRe" / "trainval_v2.json").exists()
    monkeypatch.undo()
    assert main(["--out", str(tmp_path), *flags]) == 0
