"""ReasonSeg: files as published; how regions are painted; a damaged one is named; training beside videos."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.corpora import corpus_named
from datasets.corpora.images.reason_seg import ReasonSeg
from datasets.doctor import Options, examine_corpus
from tests.targets import read_everything
from utils.errors import DataError

HEIGHT, WIDTH = 12, 16


def shape(label, points):
    """One shape as the published files have it."""
    return {
        "label": label,
        "labels": [label],
        "shape_type": "polygon",
        "image_name": "3.jpg",
        "points": points,
        "group_id": None,
        "group_ids": [None],
        "flags": {},
    }


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


@pytest.fixture
def corpus(tmp_path):
    """Writes a picture and its annotation; gives the folder of the corpus."""

    def write(stem="3", split="train", picture=True, encoding="utf-8", **changes):
        folder = tmp_path / "reason_seg" / "ReasonSeg" / split
        folder.mkdir(parents=True, exist_ok=True)
        if picture:
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / f"{stem}.jpg")
        shapes = [shape("target", box(2.0, 3.0, 5.9, 6.2))]
        entry = {"text": ["What holds  the Tea?"], "is_sentence": True, "shapes": shapes} | changes
        text = json.dumps({key: value for key, value in entry.items() if value is not ...}, ensure_ascii=False)
        (folder / f"{stem}.json").write_bytes(text.encode(encoding))
        return folder.parent

    return write


def mask_of(root):
    record = ReasonSeg(root)[0]
    return record.read_object_mask(record.questions[0], 0)


def test_a_picture_is_a_clip_of_one_frame(corpus):
    root = corpus(text=["the part that cuts", "Blade"], is_sentence=False)
    corpus("4", encoding="cp1252", text=["What does the café’s guest eat with?"])
    reader = corpus_named("reason_seg").open(root.parent.parent)
    first, second = pickle.loads(pickle.dumps(list(reader)))
    assert (first.corpus, first.video_id, [path.name for path in first.frame_paths]) == ("reason_seg", "3", ["3.jpg"])
    assert [(q.text, q.is_sentence, q.is_question, q.window) for q in first.questions] == [
        ("the part that cuts", False, False, None),
        ("Blade", False, False, None),
    ]
    assert second.questions[0].text == "What does the café’s guest eat with?" and second.questions[0].is_sentence
    mask = first.read_object_mask(first.questions[0], 0)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[3:7, 2:6] = True  # coordinates are cut down, and the border belongs to the region
    assert mask.dtype == bool and (mask == expected).all()
    assert json.dumps(first.read_object_mask.state())
    assert first.read_object_mask.state() != ReasonSeg(corpus(shapes=[]))[0].read_object_mask.state()
    assert second.read_object_mask.state() == first.read_object_mask.state()
    read_everything(reader)


def test_small_regions_lie_on_large_ones(corpus):
    inner, outer, hole = box(4, 4, 6, 6), box(2, 2, 10, 9), box(8, 3, 9, 4)
    shapes = [shape("target", inner), shape("Ignore", outer), shape("target", hole), shape("ignore_2", box(5, 5, 5, 5))]
    mask = mask_of(corpus(shapes=shapes))
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[4:7, 4:7] = expected[3:5, 8:10] = True
    expected[5, 5] = False
    assert (mask == expected).all()


def test_flags_and_pictures_without_a_region(corpus):
    assert not mask_of(corpus(shapes=[])).any()
    assert not mask_of(corpus(shapes=[shape("ignore", box(0, 0, 5, 5)), shape("Flag", [[3.0, 3.0]])])).any()
    mask = mask_of(corpus(shapes=[shape("target", box(-4, -3, 1, 2))]))  # drawn over the edge
    assert mask[:3, :2].all() and mask.sum() == 6


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(shapes=[shape("target", box(20, 2, 25, 5))]), "'3', shape 0: lies outside its picture of 12 x 16"),
        (dict(shapes=[shape("target", box(2, -9, 5, -1))]), "lies outside"),
        (dict(shapes=[shape("target", [])]), "must be a polygon of numbers"),
        (dict(shapes=[shape("target", [[1, "x"], [2, 3]])]), "must be a polygon of numbers"),
        (dict(shapes=[shape("target", [[1, 1e9], [2, 3]])]), "must be a polygon of numbers"),
        (dict(shapes=[shape("target", [[1, 2, 3]])]), "must be a polygon of numbers"),
        (dict(shapes=[{"points": box(1, 1, 2, 2)}]), "shape 0: needs a 'label'"),
        (dict(shapes=[7]), "shape 0: needs a 'label'"),
        (dict(shapes=None), "'shapes' must be a list, not NoneType"),
        (dict(text=[]), "'text' is empty"),
        (dict(text="which?"), "'text' must be a list"),
        (dict(text=["a", " "]), "texts that are not empty, not ' '"),
        (dict(text=["a", 3]), "texts that are not empty, not '3'"),
        (dict(is_sentence=1), "'is_sentence' must be true or false, not '1'"),
        (dict(is_sentence=...), "'is_sentence' must be true or false, not 'None'"),
        (dict(picture=False), "picture '3': has no 3.jpg in .*train"),
        (dict(encoding="utf-16"), "3.json: not valid JSON"),
    ],
    ids=str,
)
def test_mistakes_name_the_picture(corpus, changes, message):
    with pytest.raises(DataError, match=message):
        ReasonSeg(corpus(**changes))


def test_a_picture_that_is_stored_turned_is_refused(corpus):
    """LISA paints on the upright picture, and frames are read as stored."""
    root = corpus()
    picture = root / "train" / "3.jpg"
    with Image.open(picture) as image:
        for orientation, turned in ((6, True), (1, False)):
            exif = image.getexif()
            exif[0x0112] = orientation
            image.save(picture.with_name("new.jpg"), exif=exif)
            os.replace(picture.with_name("new.jpg"), picture)
            if turned:
                with pytest.raises(DataError, match="3.jpg is stored turned .EXIF orientation."):
                    ReasonSeg(root)
            else:
                assert len(ReasonSeg(root)) == 1


def test_all_mistakes_at_once_and_the_rest_may_be_kept(corpus):
    corpus("1", text=[], shapes=None)
    corpus("2", picture=False)
    root = corpus("3")
    (root / "train" / "4.jpg").write_bytes((root / "train" / "3.jpg").read_bytes())
    (root / "train" / "5.json").write_text("[]")
    (root / "train" / "5.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        ReasonSeg(root)
    lines = str(caught.value)
    for found in (
        "'1': 'text' is empty",
        "'1': 'shapes' must",
        "'2': has no 2.jpg",
        "4: has no 4.json",
        "5.jpg: cannot",
    ):
        assert found in lines
    assert [record.video_id for record in ReasonSeg(root, on_problem="skip")] == ["3"]
    with pytest.raises(DataError, match="val: no such folder"):
        ReasonSeg(root, "val")


def test_the_doctor_tells_everything(corpus, tmp_path):
    corpus("1", text=[], shapes=None)
    corpus("2", picture=False)
    root = corpus("3", text=["What?", "what? "])
    corpus("4", split="val")
    picture = root / "val" / "4.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:-999])
    examined = examine_corpus("reason_seg", tmp_path, Options())
    assert examined.corpus == "reason_seg" and list(examined.counts) == ["train", "val"]
    assert examined.findings.totals == {"entry-malformed": 3, "duplicate-text": 1, "frame-unreadable": 1}
    assert examined.counts["train"]["expressions"] == 2 and examined.exit_code(strict=False) == 1
