"""RefCOCO's layout: pickle and COCO file as published; one record per picture; damage is named, nothing runs."""

from __future__ import annotations

import copy
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.corpora import corpus_named
from datasets.corpora.images.refer_seg import PICTURES, RefCOCO
from datasets.doctor import Options, examine_corpus
from tests.targets import read_everything
from utils.errors import DataError
from utils.masks import encode_rle

HEIGHT, WIDTH = 12, 16


def sentence(number, text):
    return {"tokens": text.split(), "raw": text.upper(), "sent_id": number, "sent": text}


def ref(number, annotation, image, split, *sentences):
    """One entry of refs(unc).p as published."""
    return {
        "sent_ids": [one["sent_id"] for one in sentences],
        "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg",
        "ann_id": annotation,
        "ref_id": number,
        "image_id": image,
        "split": split,
        "sentences": list(sentences),
        "category_id": 18,
    }


def annotation(number, image, segmentation):
    return {
        "id": number,
        "image_id": image,
        "category_id": 18,
        "segmentation": segmentation,
        "bbox": [2.0, 3.0, 4.0, 4.0],
        "area": 16.0,
        "iscrowd": int(isinstance(segmentation, dict)),
    }


CROWD = np.zeros((HEIGHT, WIDTH), dtype=bool)
CROWD[1:3, 9:15] = True

REFS = [
    ref(0, 70, 5, "train", sentence(10, "The  left dog"), sentence(11, "brown one")),
    ref(1, 71, 5, "train", sentence(12, "the crowd")),
    ref(2, 72, 6, "train", sentence(13, "a dog lying")),
    ref(3, 73, 6, "testA", sentence(14, "dog at the top")),
]
INSTANCES = {
    "info": {},
    "licenses": [],
    "images": [
        {"id": image, "file_name": f"COCO_train2014_{image:012d}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1}
        for image in (5, 6)
    ],
    "annotations": [
        annotation(70, 5, [[2, 3, 6, 3, 6, 7, 2, 7], [4.0, 5.0, 9.0, 5.0, 9.0, 7.0, 4.0, 7.0]]),
        annotation(71, 5, encode_rle(CROWD)),
        annotation(72, 6, [[0.0, 0.0, 8.0, 0.0, 8.0, 4.0, 0.0, 4.0]]),
        annotation(73, 6, [[1.5, 1.5, 8.0, 0.0, 8.0, 4.0]]),
    ],
    "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
}


@pytest.fixture
def corpus(tmp_path):
    """Writes the corpus; ``damage(refs, instances)`` may change it first."""

    def write(damage=lambda refs, instances: None, name="refcoco", refs="refs(unc).p", protocol=2):
        entries, instances = copy.deepcopy((REFS, INSTANCES))
        damage(entries, instances)
        pictures = tmp_path / "refer_seg" / PICTURES
        pictures.mkdir(parents=True, exist_ok=True)
        for image in (5, 6):
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(
                pictures / f"COCO_train2014_{image:012d}.jpg"
            )
        folder = tmp_path / "refer_seg" / name
        folder.mkdir(exist_ok=True)
        (folder / refs).write_bytes(pickle.dumps(entries, protocol))
        (folder / "instances.json").write_text(json.dumps(instances))
        return folder

    return write


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_picture_with_everything_said_about_it(corpus, tmp_path, protocol):
    corpus(protocol=protocol)
    reader = corpus_named("refcoco").open(tmp_path)
    first, second = pickle.loads(pickle.dumps(list(reader)))
    assert (first.corpus, first.video_id) == ("refcoco", "COCO_train2014_000000000005")
    assert [path.name for path in first.frame_paths] == ["COCO_train2014_000000000005.jpg"]
    assert [(q.query_id, q.text, q.object_ids) for q in first.questions] == [
        ("10", "the left dog", (70,)),
        ("11", "brown one", (70,)),
        ("12", "the crowd", (71,)),
    ]
    assert all(q.answer == "the dog" and q.is_sentence is False and q.window is None for q in first.questions)
    assert [q.query_id for q in second.questions] == ["13"]
    polygons = np.zeros((HEIGHT, WIDTH), dtype=bool)
    polygons[3:7, 2:6] = polygons[5:7, 4:9] = True  # the union, counted once where they overlap
    for question, expected in zip(first.questions, (polygons, polygons, CROWD)):
        mask = first.read_object_mask(question, 0)
        assert mask.dtype == bool and (mask == expected).all()
    assert json.dumps(first.read_object_mask.state()) != json.dumps(second.read_object_mask.state())
    read_everything(reader)


def test_splits_and_the_three_corpora(corpus, tmp_path):
    for name, refs in (("refcoco", "refs(unc).p"), ("refcoco+", "refs(unc).p"), ("refcocog", "refs(umd).p")):
        corpus(name=name, refs=refs)
        records = corpus_named(name).open(tmp_path, "testA")
        assert [(r.corpus, q.query_id) for r in records for q in r.questions] == [(name, "14")]
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: no reference of split 'val'; it has testA, train"):
        RefCOCO(tmp_path / "refer_seg" / "refcoco", "val")


def test_nothing_in_the_pickle_runs(corpus, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    folder = corpus(lambda refs, instances: refs.append(Runs()))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: this pickle asks for \w+\.mkdir, which could run code"):
        RefCOCO(folder)
    assert not (tmp_path / "made").exists()


def segmentation(value, index=0):
    return lambda refs, instances: instances["annotations"][index].update(segmentation=value)


MISTAKES = {
    "no sentence": (lambda r, i: r[0].update(sentences=[]), "ref '0': 'sentences' is empty"),
    "sentence": (lambda r, i: r[0]["sentences"].append("x"), "ref '0': a sentence needs 'sent_id' and 'sent', not 'x'"),
    "empty text": (lambda r, i: r[0]["sentences"][1].update(sent=" "), "ref '0', sentence 11: 'sent' is empty"),
    "no annotation": (lambda r, i: i["annotations"].pop(1), "ref '1': its ann_id '71' is not in instances.json"),
    "no image": (lambda r, i: i["images"].pop(1), "ref '2': its image_id '6' is not in instances.json"),
    "odd id": (lambda r, i: r[0].update(ann_id=[70]), r"its ann_id '\[70\]' is not in"),
    "other image": (lambda r, i: i["annotations"][2].update(image_id=5), "annotation 72: is of image 5, its ref.* 6"),
    "no size": (lambda r, i: i["images"][0].pop("width"), "image 5: needs 'file_name', 'height' and 'width'"),
    "no shape": (segmentation([]), "annotation 70: 'segmentation' must be polygons or run lengths, and not empty"),
    "outside": (segmentation([[20, 2, 25, 2, 25, 5]]), "annotation 70, polygon 0: lies outside its picture of 12 x 16"),
    "odd": (segmentation([[1, 2, 3, 4, 5]]), "annotation 70, polygon 0: must be a polygon of numbers"),
    "two corners": (segmentation([[1, 2, 3, 4]]), "annotation 70: a polygon needs three corners"),
    "huge": (segmentation([[1, 2, 3, 4, 5, 1e12]]), "annotation 70, polygon 0: must be a polygon"),
    "words": (segmentation("abc"), "annotation 70: 'segmentation' must be"),
    "run lengths": (segmentation({"counts": "x"}, 1), "annotation 71: a run-length mask needs 'size'"),
    "mask size": (segmentation({"size": [3, 4], "counts": [12]}, 1), "annotation 71: its mask is 3 x 4 .*12 x 16"),
    "picture": (
        lambda r, i: i["images"][0].update(file_name="a.jpg"),
        "image 5: has no a.jpg in .*train2014; get COCO",
    ),
}


@pytest.mark.parametrize("damage, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_name_the_entry(corpus, damage, message):
    with pytest.raises(DataError, match=message):
        RefCOCO(corpus(damage))


def test_all_mistakes_at_once_and_the_rest_may_be_kept(corpus):
    def damage(refs, instances):
        refs[0]["sentences"][0]["sent"] = 7
        segmentation([[20, 2, 25, 2, 25, 5]], 2)(refs, instances)
        refs.append(ref(9, 72, 6, "train", sentence(20, "again")))  # one bad annotation is one mistake

    folder = corpus(damage)
    with pytest.raises(DataError, match=r"\(2 problems\)(?s:.*)sentence 10(?s:.*)annotation 72, polygon 0"):
        RefCOCO(folder)
    records = RefCOCO(folder, on_problem="skip")
    assert [[q.query_id for q in record.questions] for record in records] == [["11", "12"]]


def test_files_that_are_other_files(corpus, tmp_path):
    folder = corpus()
    picture = tmp_path / "refer_seg" / PICTURES / "COCO_train2014_000000000005.jpg"
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(picture)
    with pytest.raises(DataError, match="is 13 x 16 .*but 12 x 16 by instances.json"):
        read_everything(RefCOCO(folder))
    damaged = corpus(segmentation({"size": [HEIGHT, WIDTH], "counts": [5]}, 1))
    with pytest.raises(DataError, match="instances.json, annotation 71: run-length 'counts' do not fill"):
        read_everything(RefCOCO(damaged))
    (folder / "instances.json").write_text("[]")
    with pytest.raises(DataError, match="instances.json: expected COCO's lists"):
        RefCOCO(folder)
    (folder / "refs(unc).p").write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(DataError, match="expected a list of references"):
        RefCOCO(folder)


def test_the_doctor_reads_every_mask(corpus, tmp_path):
    folder = corpus()
    more = [ref(9, 70, 5, split, sentence(30, "dog")) for split in ("val", "testB")]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS + more, 2))
    assert not examine_corpus("refcoco", tmp_path, Options()).findings.totals
    segmentation({"size": [HEIGHT, WIDTH], "counts": [5]}, 1)(None, damaged := copy.deepcopy(INSTANCES))
    (folder / "instances.json").write_text(json.dumps(damaged))
    examined = examine_corpus("refcoco", folder, Options())
    (found,) = examined.findings.of("mask-unreadable")
    assert (found.split, found.query) == ("train", "12") and "annotation 71" in found.message
    assert not examine_corpus("refcoco", folder, Options(fast=True)).findings.of("mask-unreadable")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "refer_seg" / PICTURES / "COCO_train2014_000000000006.jpg")
    messages = [found.message for found in examine_corpus("refcoco", folder, Options()).findings.of("mask-unreadable")]
    assert any("is 13 x 16 (height x width), but 12 x 16 by instances.json" in message for message in messages)
