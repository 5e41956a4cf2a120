"""datasets/mixture.py: sample i is a function of the seed and i; passes, rates, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora import CORPORA, corpus_named, load
from datasets.mixture import Mixture, build_mixture
from datasets.sample import Question, VideoRecord
from tests.targets import read_target
from utils.errors import ConfigError, DataError
from utils.masks import encode_rle, write_id_mask


def always_seen(query, index):
    return np.ones((2, 2), dtype=bool)


def corpus_of(name, count):
    """Records in memory, named after their place."""
    questions = tuple(Question(str(k), f"thing {k}", is_question=False, object_ids=(1,)) for k in range(3))
    paths = tuple(Path(f"{k}.jpg") for k in range(30))
    return [VideoRecord(name, f"{name}{k}", paths, questions, always_seen) for k in range(count)]


def mixture_of(seed=0, rates=(1, 1, 2), **options):
    corpora = {"a": corpus_of("a", 7), "b": corpus_of("b", 11), "c": corpus_of("c", 5)}
    return Mixture(corpora, rates, seed, **options)


def describe(sample):
    return sample.record.video_id, sample.frame_indices.tolist(), [query.query_id for query in sample.questions]


def test_a_sample_depends_on_seed_and_number_only():
    forward = mixture_of()
    expected = {i: describe(forward[i]) for i in range(60)}
    jumps = mixture_of()
    for i in (59, 3, 12000, 17, 0, 8191, 42):
        jumps[i]
        assert describe(jumps[i]) == expected.get(i, describe(mixture_of()[i]))
    assert [describe(jumps[i]) for i in range(60)] == list(expected.values())
    assert [describe(mixture_of(seed=1)[i]) for i in range(60)] != list(expected.values())


def test_every_record_once_per_pass():
    mixture = mixture_of()
    places = [mixture.locate(i) for i in range(13000)]  # crosses several chunks
    for corpus, size in enumerate((7, 11, 5)):
        visits = [record for which, record in places if which == corpus]
        passes = [visits[k : k + size] for k in range(0, len(visits) - size, size)]
        assert len(passes) > 100
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert len(set(map(tuple, passes))) > 50  # each pass has its own order


def test_rates_are_kept():
    mixture = mixture_of(rates=(1, 0, 3))
    counts = np.bincount([mixture.locate(i)[0] for i in range(8000)], minlength=3) / 8000
    np.testing.assert_allclose(counts, [0.25, 0, 0.75], atol=0.02)


def test_one_corpus_alone_is_its_permutations():
    mixture = Mixture({"a": corpus_of("a", 6)}, [5], seed=2)
    assert sorted(mixture.locate(i)[1] for i in range(6)) == list(range(6))


def test_settings_reach_the_sample():
    sample = mixture_of(num_frames=8, max_questions=2, strategy="uniform")[4]
    assert sample.frame_indices.tolist() == np.rint(np.linspace(0, 29, 8)).astype(int).tolist()
    assert len(sample.questions) == 2
    with pytest.raises(IndexError):
        mixture_of()[-1]


def test_a_bad_sample_is_not_replaced():
    def fail(query, index):
        raise DataError("clip/00003.png: cannot read this mask")

    good = corpus_of("a", 1)[0]
    mixture = Mixture({"a": [VideoRecord("a", "bad", good.frame_paths, good.questions, fail)]}, [1], seed=0)
    with pytest.raises(DataError, match=r"00003\.png"):
        mixture[0]


def test_empty_corpora():
    with pytest.raises(ConfigError, match="corpus a has no record"):
        Mixture({"a": []}, [1], seed=0)


@pytest.mark.parametrize(
    "dataset, rates, message",
    [
        ("refer_video_seg||davis", "1,1", "davis is no corpus; known: refer_video_seg, mevis, groundmore"),
        ("", "1", "nothing is no corpus"),
        ("mevis||mevis", "1,1", "names a corpus twice"),
        ("mevis||groundmore", "1", "1 rates for 2 corpora .mevis..groundmore"),
        ("mevis", "one", "'one' is not a list of numbers"),
        ("mevis", "", "'' is not a list of numbers"),
        ("mevis||groundmore", "1,-1", "none negative"),
        ("mevis||groundmore", "0,0", "one above 0"),
        ("mevis||groundmore", "1,nan", "finite"),
        ("mevis||groundmore", "1,inf", "finite"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, dataset, rates, message):
    with pytest.raises(ConfigError, match=message):
        build_mixture(dataset, rates, tmp_path)


@pytest.fixture
def dataset_dir(tmp_path):
    """All three corpora with one video each, as the original's README lays them out."""
    names = [f"{k:05d}" for k in range(8)]
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[2:4, 3:6] = 1

    def frame(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)

    def annotation(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    for name in names:
        frame(tmp_path / "refytvos/train/JPEGImages/y" / f"{name}.jpg")
        write_id_mask(tmp_path / "refytvos/train/Annotations/y" / f"{name}.png", mask)
        frame(tmp_path / "MeViSv2/train/JPEGImages/m" / f"{name}.jpg")
        frame(tmp_path / "GroundMoRe/groundmore_videos/g_0000_0002/images" / f"frame_0{name}.jpg")
        write_id_mask(tmp_path / "GroundMoRe/groundmore_videos/g_0000_0002/masks" / f"frame_0{name}.png", mask)
    expression = {"exp": "a box", "obj_id": "1"}
    videos = {"videos": {"y": {"frames": names, "expressions": {"0": expression}}}}
    annotation(tmp_path / "refytvos/meta_expressions/train/meta_expressions.json", videos)
    expression = {"exp": "a box", "obj_id": [0], "anno_id": [0]}
    videos = {"videos": {"m": {"frames": names, "expressions": {"0": expression}}}}
    annotation(tmp_path / "MeViSv2/train/meta_expressions.json", videos)
    annotation(tmp_path / "MeViSv2/train/mask_dict.json", {"0": [encode_rle(mask)] * len(names)})
    entry = dict(question="What moves?", answer="a box", obj_id="1", q_type="Causal", action_start="0", action_end="1")
    annotation(tmp_path / "GroundMoRe/trainval_v2.json", {"videos": {"g_0000_0002": {"questions": {"0": entry}}}})
    return tmp_path


def test_the_published_layout(dataset_dir):
    names = ("refer_video_seg", "mevis", "groundmore")
    mixture = build_mixture(" || ".join(names), "1,1,2", dataset_dir, seed=3, num_frames=4)
    assert mixture.names == names
    samples = [mixture[i] for i in range(30)]
    assert {sample.record.corpus for sample in samples} == set(names)
    for sample in samples:
        query = sample.questions[0]
        target = [read_target(sample.record, query, int(k)).sum() for k in sample.frame_indices]
        assert target == [6 if inside else 0 for inside in query.in_window(sample.frame_indices)]


def test_the_older_folder_of_mevis(dataset_dir):
    (dataset_dir / "MeViSv2").rename(dataset_dir / "mevis")
    assert build_mixture("mevis", "1", dataset_dir)[0].record.video_id == "m"
    (dataset_dir / "mevis").rename(dataset_dir / "elsewhere")
    with pytest.raises(DataError, match="MeViSv2"):
        build_mixture("mevis", "1", dataset_dir)


@pytest.mark.parametrize("alias", ["refer_youtube_vos", "refytvos"])
def test_an_alias_is_the_same_corpus(dataset_dir, alias):
    assert build_mixture(alias, "1", dataset_dir).names == ("refer_video_seg",)
    with pytest.raises(ConfigError, match="names a corpus twice"):
        build_mixture(f"refer_video_seg||{alias}", "1,1", dataset_dir)


@pytest.mark.parametrize("name", CORPORA)
def test_a_row_opens_what_it_names(name):
    row = corpus_named(name)
    assert load(row.reader).name == row.name  # what records carry
    assert load(row.examination)
    assert row.layout is None or load(row.layout)


def test_an_image_corpus_gives_one_frame(dataset_dir, monkeypatch):
    image = dataclasses.replace(CORPORA["mevis"], kind="image")
    monkeypatch.setitem(CORPORA, "mevis", image)
    mixture = build_mixture("mevis||groundmore", "1,1", dataset_dir, num_frames=4)
    lengths = {(sample.record.corpus, len(sample.frame_indices)) for sample in map(mixture.__getitem__, range(20))}
    assert lengths == {("mevis", 1), ("groundmore", 4)}


def test_each_visit_of_a_record_is_drawn_anew():
    mixture = Mixture({"a": corpus_of("a", 1)}, [1], seed=0)
    assert len({str(describe(mixture[i])) for i in range(20)}) > 15
