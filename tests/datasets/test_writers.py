"""Corpora written from plain data are what the readers read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datasets.corpora import corpus_named
from datasets.corpora.groundmore import GroundMoRe
from datasets.corpora.writers import GroundMoReWriter, MeViSWriter, ReferYoutubeVosWriter
from datasets.doctor import Options, examine_corpus
from datasets.sample import Question

NUM_FRAMES = 13
"""Of a clip: its last second has one frame."""


@pytest.fixture(scope="module")
def clip():
    """Frames uint8 [T, H, W, 3] and id maps [T, H, W]: object 1 moves, object 3 comes on frame 6."""
    frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 20, 28, 3)).astype(np.uint8)
    ids = np.zeros((NUM_FRAMES, 20, 28), dtype=np.uint8)
    for index in range(NUM_FRAMES):
        ids[index, 2:6, index : index + 5] = 1
    ids[6:, 12:17, 3:9] = 3
    return frames, ids


def opened(root, corpus, split=None):
    """The corpus as its reader gives it; the doctor must have nothing against it."""
    examined = examine_corpus(corpus, root, Options())
    assert not examined.findings.count("error") and not examined.findings.count("warning"), list(examined.findings)
    return corpus_named(corpus).open(root, split)


def masks_of(record, question):
    return np.stack([record.read_object_mask(question, index) for index in range(NUM_FRAMES)])


def test_groundmore(clip, tmp_path):
    frames, ids = clip
    questions = [
        Question("a", "What moves?", True, "the box", (1,), "Causal", (0, 5)),
        Question("b", "What are they?", True, "both", (1, 3), "Descriptive", (6, 11)),
    ]
    plain = Question("c", "the box", True, "the box", (1,), "Descriptive", (0, NUM_FRAMES - 1))
    names = [f"frame_{index:06d}" for index in range(NUM_FRAMES)]
    with_mask = np.arange(NUM_FRAMES) != 4
    for split, referring in (("train", ()), ("test", [plain])):
        writer = GroundMoReWriter(tmp_path, split)
        part = writer.write_video(split, 754, names, frames, ids, with_mask, questions, referring)
        assert part["video_id"] == f"{split}_1234_1237"
        writer.write_annotations([json.loads(json.dumps(part))])
    (record,) = opened(tmp_path, "groundmore")
    assert record.video_id == "train_1234_1237" and [path.stem for path in record.frame_paths] == names
    for read, written in zip(record.questions, questions, strict=True):
        assert (read.query_id, read.text, read.answer, read.object_ids, read.q_type, read.window) == (
            written.query_id, written.text, written.answer, written.object_ids, written.q_type, written.window
        )  # fmt: skip
        expected = np.isin(ids, written.object_ids) & with_mask[:, None, None]
        np.testing.assert_array_equal(masks_of(record, read), expected)
    folder = tmp_path / "GroundMoRe"
    (referred,) = GroundMoRe(folder / "referring_test.json", folder / "groundmore_videos")
    assert [(q.query_id, q.window) for q in referred.questions] == [("c", (0, NUM_FRAMES - 1))]


def test_refer_youtube_vos(clip, tmp_path):
    frames, ids = clip
    names = [f"{5 * index:05d}" for index in range(NUM_FRAMES)]
    said = [Question(str(k), text, False, object_ids=(n,)) for k, (text, n) in enumerate([("the box", 1), ("it", 3)])]
    writer = ReferYoutubeVosWriter(tmp_path, "train")
    writer.write_annotations([writer.write_video("v", names, frames, ids, {1: "box", 3: "thing"}, said)])
    for record, number, answer in zip(opened(tmp_path, "refytvos"), (1, 3), ("the box", "the thing"), strict=True):
        (question,) = record.questions
        assert question.object_ids == (number,) and question.answer == answer
        np.testing.assert_array_equal(masks_of(record, question), ids == number)
    meta = json.loads((tmp_path / "refytvos" / "train" / "meta.json").read_text())
    assert meta["videos"]["v"]["objects"]["3"]["frames"] == names[6:]


@pytest.mark.parametrize("split", ["train", "test"])
def test_mevis(clip, tmp_path, split):
    frames, ids = clip
    names = [f"{index:05d}" for index in range(NUM_FRAMES)]
    targets = [(1,), (3, 1), ()]
    said = [Question(str(order), f"text {order}", False, object_ids=target) for order, target in enumerate(targets)]
    writer = MeViSWriter(tmp_path, split)
    parts = [writer.write_video(name, names, frames, ids, {1: first, 3: first + 1}, said)
             for name, first in (("v", 40), ("w", 60))]  # fmt: skip
    writer.write_annotations(parts)
    records = opened(tmp_path, "mevis", "train" if split == "train" else "valid_u")
    assert [record.video_id for record in records] == ["v", "w"]
    assert [entry["obj_id"] for entry in parts[0]["expressions"].values()] == [[0], [2, 0], []]
    for record, first in zip(records, (40, 60)):
        assert [question.object_ids for question in record.questions] == [(first,), (first + 1, first), ()]
        for question, target in zip(record.questions, targets):
            np.testing.assert_array_equal(masks_of(record, question), np.isin(ids, target))


def test_a_video_that_cannot_be_written_leaves_no_folder(clip, tmp_path):
    frames, ids = clip
    writer = MeViSWriter(tmp_path, "train")
    with pytest.raises(TypeError):
        writer.write_video("v", ["00000"], frames.astype(np.complex64), ids, {}, [])
    assert not any(writer.image_folders[0].iterdir())
