"""The readers of Refer-YouTube-VOS and MeViS, and what all readers share, on corpora written here by hand."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.mevis import MeViS
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos
from tests.targets import read_everything, read_target
from utils.errors import DataError
from utils.masks import encode_rle, write_id_mask

HEIGHT, WIDTH = 12, 16


def write_frame(path, size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path)


def box(top, left, ids=1, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[top : top + 3, left : left + 3] = ids
    return mask


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


YTVOS_FRAMES = ["00000", "00005", "00010"]


@pytest.fixture
def ytvos(tmp_path):
    """Two videos; object 1 moves right, object 2 shows on the last frame of the first video only."""
    root = tmp_path / "refytvos"
    expressions = {
        "0": {"exp": "A Dog  running\tLEFT ", "obj_id": "1"},
        "1": {"exp": "the dog", "obj_id": "1"},
        "2": {"exp": "a red ball", "obj_id": "2"},
    }
    videos = {
        "vid_a": {"frames": YTVOS_FRAMES[::-1], "expressions": expressions},
        "vid_b": {"frames": YTVOS_FRAMES, "expressions": {"0": {"exp": "a cat", "obj_id": "1"}}},
    }
    for video in videos:
        for number, name in enumerate(YTVOS_FRAMES):
            write_frame(root / "train/JPEGImages" / video / f"{name}.jpg")
            ids = box(1, 2 * number)
            if video == "vid_a" and number == 2:
                ids |= box(8, 10, ids=2)
            write_id_mask(root / "train/Annotations" / video / f"{name}.png", ids)
    write_json(root / "meta_expressions/train/meta_expressions.json", {"videos": videos})
    return root


def edit(path, change):
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def ytvos_meta(root):
    return root / "meta_expressions/train/meta_expressions.json"


def test_ytvos_has_one_record_per_object(ytvos):
    corpus = ReferYoutubeVos(ytvos)
    assert [(r.video_id, r.questions[0].object_ids) for r in corpus] == [
        ("vid_a", (1,)),
        ("vid_a", (2,)),
        ("vid_b", (1,)),
    ]
    assert len(corpus) == 3 and sum(len(record.questions) for record in corpus) == 4
    dog = corpus[0]
    assert dog.corpus == "refer_video_seg"
    assert [q.text for q in dog.questions] == ["a dog running left", "the dog"]
    assert not dog.questions[0].is_question and dog.questions[0].window is None
    assert [p.stem for p in dog.frame_paths] == YTVOS_FRAMES  # the file lists them backwards
    for number in range(3):
        mask = dog.read_object_mask(dog.questions[0], number)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, box(1, 2 * number) == 1)
    ball = corpus[1]
    assert [bool(read_target(ball, ball.questions[0], k).any()) for k in range(3)] == [False, False, True]
    read_everything(corpus)


def test_ytvos_category_names_the_answer(ytvos):
    objects = {"1": {"category": "Giant_Dog", "frames": []}, "2": {"category": "ball", "frames": []}}
    write_json(ytvos / "train/meta.json", {"videos": {"vid_a": {"objects": objects}}})
    answers = [[query.answer for query in record.questions] for record in ReferYoutubeVos(ytvos)]
    assert answers == [["the giant dog", "the giant dog"], ["the ball"], [None]]


def test_ytvos_lists_mistakes_of_meta_json(ytvos):
    videos = {"vid_a": {"objects": {"1": {}, "x": {"category": "dog"}}}, "vid_b": []}
    write_json(ytvos / "train/meta.json", {"videos": videos})
    with pytest.raises(DataError) as caught:
        ReferYoutubeVos(ytvos)
    for place in ("vid_a, object 1", "vid_a, object x", "vid_b"):
        assert f"meta.json, video {place}" in str(caught.value)


def test_records_can_be_sent_to_another_process(ytvos):
    record = pickle.loads(pickle.dumps(ReferYoutubeVos(ytvos)[0]))
    assert record.read_object_mask(record.questions[0], 1).sum() == 9


def test_ytvos_lists_every_mistake_at_once(ytvos):
    def change(meta):
        a = meta["videos"]["vid_a"]
        a["expressions"]["0"] = {"obj_id": "1"}
        a["expressions"]["1"]["obj_id"] = 1
        a["expressions"]["2"]["obj_id"] = "two"
        a["expressions"]["3"] = "a dog"
        meta["videos"]["vid_b"]["frames"] = "00000"
        meta["videos"]["vid_c"] = {"frames": YTVOS_FRAMES, "expressions": {"0": {"exp": " ", "obj_id": "1"}}}
        meta["videos"]["vid_d"] = []
        meta["videos"]["vid_e"] = {"frames": ["00000", "00000"], "expressions": {}}

    edit(ytvos_meta(ytvos), change)
    with pytest.raises(DataError) as caught:
        ReferYoutubeVos(ytvos)
    for part in [
        "meta_expressions.json",
        "video vid_a, expression 0: has no 'exp'",
        "video vid_a, expression 1: 'obj_id' must be a string, not int (1)",
        "video vid_a, expression 2: 'obj_id' must be a number from 1 to 255 in quotes, not 'two'",
        "video vid_a, expression 3: must be an object",
        "video vid_b: 'frames' must be a list, not str",
        "video vid_c, expression 0: 'exp' is empty",
        "video vid_c: has no frame file",
        "video vid_d: must be an object",
        "video vid_e: 'frames' names a frame twice",
        "video vid_e: 'expressions' is empty",
    ]:
        assert part in str(caught.value), part


def test_ytvos_names_missing_files(ytvos):
    (ytvos / "train/JPEGImages/vid_a/00005.jpg").unlink()
    (ytvos / "train/Annotations/vid_b/00010.png").unlink()
    with pytest.raises(DataError) as caught:
        ReferYoutubeVos(ytvos)
    assert "vid_a: 1 of 3 frame files are missing" in str(caught.value) and ": 00005" in str(caught.value)
    assert "vid_b: 1 of 3 mask files are missing" in str(caught.value) and ": 00010" in str(caught.value)


def test_skipping_is_loud(ytvos, caplog):
    def change(meta):
        meta["videos"]["vid_a"]["expressions"]["0"] = {"obj_id": "1"}

    edit(ytvos_meta(ytvos), change)
    (ytvos / "train/JPEGImages/vid_b/00005.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        corpus = ReferYoutubeVos(ytvos, on_problem="skip")
    assert [[q.query_id for q in r.questions] for r in corpus] == [["1"], ["2"]]
    assert "vid_a, expression 0: has no 'exp'" in caplog.text and "vid_b" in caplog.text
    assert "2 mistakes; 2 records are left" in caplog.text


def test_skipping_everything_is_an_error(ytvos):
    edit(ytvos_meta(ytvos), lambda meta: [meta["videos"].pop("vid_a"), meta["videos"]["vid_b"].pop("frames")])
    with pytest.raises(DataError, match="no usable entry"):
        ReferYoutubeVos(ytvos, on_problem="skip")
    with pytest.raises(ValueError, match="on_problem"):
        ReferYoutubeVos(ytvos, on_problem="ignore")


def test_frame_names_must_have_one_order(ytvos):
    edit(ytvos_meta(ytvos), lambda meta: meta["videos"]["vid_a"].update(frames=["9", "10", "11"]))
    with pytest.raises(DataError, match="vid_a: 'frames' sort differently"):
        ReferYoutubeVos(ytvos)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"videos": {', r"meta_expressions\.json: not valid JSON at line 1"),
        ("[]", "expected"),
        ('{"videos": {}}', "at least one video"),
    ],
)
def test_files_that_are_no_annotation(ytvos, content, message):
    ytvos_meta(ytvos).write_text(content)
    with pytest.raises(DataError, match=message):
        ReferYoutubeVos(ytvos)


def test_missing_annotation_file(tmp_path):
    with pytest.raises(DataError, match=r"meta_expressions\.json: no such file"):
        ReferYoutubeVos(tmp_path)
    with pytest.raises(DataError, match=r"meta_expressions\.json: no such file"):
        MeViS(tmp_path)


def test_object_absent_from_every_mask(ytvos):
    extra = {"7": {"exp": "x", "obj_id": "9"}}
    edit(ytvos_meta(ytvos), lambda meta: meta["videos"]["vid_a"]["expressions"].update(extra))
    corpus = ReferYoutubeVos(ytvos)
    message = r"video vid_a: object id 9 of query 7 is in none of the clip's masks, which hold \[1, 2\]"
    with pytest.raises(DataError, match=message):
        corpus[2].read_object_mask(corpus[2].questions[0], 0)
    with pytest.raises(DataError, match=message):
        read_everything(corpus)


def test_bad_files_of_all_videos(ytvos):
    write_id_mask(ytvos / "train/Annotations/vid_a/00005.png", box(1, 2, size=(HEIGHT, WIDTH + 1)))
    Image.new("RGB", (WIDTH, HEIGHT)).save(ytvos / "train/Annotations/vid_b/00000.png")
    (ytvos / "train/JPEGImages/vid_b/00005.jpg").write_bytes(b"")
    corpus = ReferYoutubeVos(ytvos)
    with pytest.raises(DataError) as caught:
        read_everything(corpus)
    text = str(caught.value)
    assert "00005.png: this mask is 12 x 17 (height x width)" in text and "is 12 x 16" in text
    assert "00000.png: a mask must be a PNG in mode P or L" in text and "mode RGB" in text
    assert "00005.jpg: cannot read this frame (the file is empty)" in text


MEVIS_FRAMES = ["00000", "00001", "00002"]


@pytest.fixture
def mevis(tmp_path):
    """Annotation 11 is seen on frames 0 and 1, 12 on all and overlapping it."""
    root = tmp_path / "MeViSv2"
    expressions = {
        "0": {"exp": "The bird  flying", "obj_id": [0], "anno_id": [11]},
        "1": {"exp": "birds moving", "obj_id": [0, 1], "anno_id": [11, 12]},
        "2": {"exp": "nothing of the kind", "obj_id": [], "anno_id": []},
    }
    write_json(
        root / "train/meta_expressions.json", {"videos": {"v0": {"frames": MEVIS_FRAMES, "expressions": expressions}}}
    )
    masks = {"11": [encode_rle(box(0, 0)), encode_rle(box(0, 3)), None], "12": [encode_rle(box(1, 1))] * 3}
    write_json(root / "train/mask_dict.json", masks)
    for name in MEVIS_FRAMES:
        write_frame(root / "train/JPEGImages/v0" / f"{name}.jpg")
    return root


def test_mevis_reads_unions_by_position(mevis):
    corpus = MeViS(mevis)
    assert len(corpus) == 1 and corpus[0].corpus == "mevis"
    record = corpus[0]
    single, both, none = record.questions
    assert single.text == "the bird flying" and single.object_ids == (11,) and both.object_ids == (11, 12)
    np.testing.assert_array_equal(record.read_object_mask(single, 1), box(0, 3) == 1)
    assert not record.read_object_mask(single, 2).any()
    joined = record.read_object_mask(both, 0)
    assert joined.dtype == bool
    np.testing.assert_array_equal(joined, (box(0, 0) | box(1, 1)) == 1)
    assert record.read_object_mask(none, 0).shape == (HEIGHT, WIDTH) and not record.read_object_mask(none, 0).any()
    read_everything(corpus)
    pickle.loads(pickle.dumps(record))


def test_mevis_masks_go_by_sorted_frames(mevis):
    edit(mevis / "train/meta_expressions.json", lambda meta: meta["videos"]["v0"].update(frames=MEVIS_FRAMES[::-1]))
    record = MeViS(mevis)[0]
    assert [p.stem for p in record.frame_paths] == MEVIS_FRAMES
    assert not record.read_object_mask(record.questions[0], 2).any()


def test_mevis_lists_every_mistake_at_once(mevis):
    def change(meta):
        meta["videos"]["v0"]["expressions"].update(
            {
                "3": {"exp": "x", "anno_id": [99]},
                "4": {"exp": "x", "anno_id": "11"},
                "5": {"exp": "x", "anno_id": [13]},
                "6": {"exp": "x", "anno_id": [14]},
                "7": {"anno_id": [11]},
                "8": {"exp": "x", "anno_id": [True]},
                "9": {"exp": "x"},
            }
        )

    edit(mevis / "train/meta_expressions.json", change)
    edit(mevis / "train/mask_dict.json", lambda masks: masks.update({"13": [None] * 3, "14": masks["12"][:2]}))
    with pytest.raises(DataError) as caught:
        MeViS(mevis)
    for part in [
        "expression 3: annotation 99 is not in mask_dict.json",
        "expression 4: 'anno_id' must be a list of integers",
        "expression 5: annotation 13 has no mask on any frame",
        "expression 6: annotation 14 has 2 masks in mask_dict.json, the video 3 frames",
        "expression 7: has no 'exp'",
        "expression 8: 'anno_id' must be a list of integers",
        "expression 9: 'anno_id' must be a list of integers",
        "(7 problems)",
    ]:
        assert part in str(caught.value), part


def test_mevis_names_bad_masks(mevis):
    def change(masks):
        masks["11"][0] = encode_rle(box(0, 0, size=(HEIGHT, 20)))
        masks["12"][1] = {"size": [HEIGHT, WIDTH], "counts": masks["12"][1]["counts"][:3]}

    edit(mevis / "train/mask_dict.json", change)
    with pytest.raises(DataError) as caught:
        read_everything(MeViS(mevis))
    assert "annotation 11, frame 0 of video v0: this mask is 12 x 20" in str(caught.value)
    assert "annotation 12, frame 1 of video v0: run-length 'counts' do not fill" in str(caught.value)
    (mevis / "train/mask_dict.json").write_text("[]")
    with pytest.raises(DataError, match="mask_dict.json: expected"):
        MeViS(mevis)
