"""The GroundMoRe reader: window arithmetic, naming conventions, missing masks, and every mistake it must name."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe, action_window, open_clip, parse_clip_times, parse_time
from tests.targets import read_everything, read_target
from utils.errors import DataError, Problems
from utils.masks import write_id_mask

HEIGHT, WIDTH, NUM_FRAMES = 10, 14, 18
VIDEO = "cups_0130_0133"  # 3 seconds from 1:30 on


def question(**changes):
    entry = {
        "question": "What is pushed by the Red Ball?",
        "answer": "the cup",
        "obj_id": "1",
        "q_type": "Causal",
        "action_start": "01:31",
        "action_end": "01:32",
    }
    entry.update(changes)
    return {key: value for key, value in entry.items() if value is not ...}


def write_clip(root, video=VIDEO, image="frame_{:06d}.jpg", mask="frame_{:06d}.png", without_mask=(3, 8)):
    """Object 1 is on every frame, at column = frame number mod 10; object 2 on frames from 6 on."""
    (root / video / "images").mkdir(parents=True)
    for number in range(NUM_FRAMES):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 50, np.uint8)).save(root / video / "images" / image.format(number))
        if number in without_mask:
            continue
        ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        ids[2:5, number % 10 : number % 10 + 2] = 1
        if number >= 6:
            ids[7:9, 0:3] = 2
        write_id_mask(root / video / "masks" / mask.format(number), ids)


@pytest.fixture
def corpus_at(tmp_path):
    """Writes questions for the clip (made once) and opens the corpus."""
    root = tmp_path / "groundmore_videos"
    write_clip(root)

    def make(questions, video=VIDEO, **options):
        meta = {"videos": {video: {"questions": {str(k): entry for k, entry in enumerate(questions)}}}}
        (tmp_path / "trainval_v2.json").write_text(json.dumps(meta))
        return GroundMoRe(tmp_path / "trainval_v2.json", root, **options)

    make.root = root
    return make


def test_a_hole_in_the_frames_is_named(corpus_at):
    """Windows count frames: after a missing one every window would be early."""
    (corpus_at.root / VIDEO / "images" / "frame_000004.jpg").unlink()
    with pytest.raises(DataError, match="frame_000003.jpg is followed by frame_000005.jpg"):
        corpus_at([question()])


def frames_of(folder, *names):
    """What is found of a clip whose images have these names."""
    (folder / "images").mkdir(parents=True)
    for name in names:
        (folder / "images" / name).write_bytes(b"x")
    problems = Problems()
    return [path.name for path in open_clip(folder, VIDEO, problems).frame_paths], "; ".join(problems.messages)


def test_frames_come_in_time_order_in_either_convention(tmp_path):
    mixed = ("frame_000010.jpg", "frame_000009.jpg", "0000011.JPG", "8.png", "cover.jpg", "notes.txt", "._2.png")
    frames, _ = frames_of(tmp_path / "clip", *mixed)
    assert frames == ["8.png", "frame_000009.jpg", "frame_000010.jpg", "0000011.JPG", "cover.jpg"]


def test_two_frames_of_one_number_and_what_is_no_file_are_named(tmp_path, corpus_at):
    _, told = frames_of(tmp_path / "clip", "frame_000001.jpg", "0000001.jpg")
    assert "0000001.jpg and frame_000001.jpg are both frame 1" in told
    (corpus_at.root / VIDEO / "images" / "frame_000018.jpg").mkdir()
    with pytest.raises(DataError, match="frame_000018.jpg is a folder"):
        corpus_at([question()])


def without_mask(record):
    return [frame for frame, path in enumerate(record.read_object_mask.mask_paths) if path is None]


def test_a_question_and_its_target(corpus_at):
    corpus = corpus_at([question()])
    record = corpus[0]
    query = record.questions[0]
    assert (record.corpus, record.video_id, len(record.frame_paths)) == ("groundmore", VIDEO, NUM_FRAMES)
    assert query.text == "What is pushed by the Red Ball?" and query.answer == "the cup" and query.is_question
    assert query.window == query.raw_window == (6, 11)
    assert query.in_window(np.array([0, 5, 6, 11, 12])).tolist() == [False, False, True, True, False]
    seen = [bool(read_target(record, query, k).any()) for k in range(NUM_FRAMES)]
    assert seen == [6 <= k <= 11 and k != 8 for k in range(NUM_FRAMES)]
    assert record.read_object_mask(query, 0)[2:5, 0:2].all()  # outside the window the object is still there
    assert not record.read_object_mask(query, 3).any() and record.read_object_mask(query, 3).shape == (HEIGHT, WIDTH)
    assert without_mask(record) == [3, 8]
    read_everything(corpus)


@pytest.mark.parametrize(
    "text, seconds", [("5", 5), ("00:05", 5), ("01:30", 90), ("1:02:03", 3723), ("00:60", 60), (" 00:07 ", 7)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "one", "1:2:3:4", "00:05.5", "-1", "00:-5", "0:100", ":5"])
def test_what_is_no_time(text):
    with pytest.raises(DataError, match="is not a time"):
        parse_time(text)


@pytest.mark.parametrize(
    "video_id, times",
    [
        ("cups_0000_0010", (0, 10)),
        ("a-b_C1130_1145", (690, 705)),
        ("x_1234_0005_0006_9959_10009", (5999, 6009)),
        ("x_10000_10010", (6000, 6010)),
        ("0100_0130", (60, 90)),
    ],
)
def test_clip_times(video_id, times):
    assert parse_clip_times(video_id) == times


@pytest.mark.parametrize("video_id", ["cups", "cups_000_0010", "cups_0000-0010", "cups_0000_0010b", "cups_0010_0010"])
def test_ids_without_clip_times(video_id):
    with pytest.raises(DataError, match="MMSS_MMSS"):
        parse_clip_times(video_id)


def test_window_arithmetic():
    assert action_window(90, 93, 90) == (0, 17)
    assert action_window(88, 91, 90) == (-12, 5)
    assert action_window(91, 91, 90) == (6, 5)


def test_windows_are_clipped_and_kept_raw(corpus_at):
    questions = corpus_at([question(action_start="01:29", action_end="02:00"), question(action_start="91")])[
        0
    ].questions
    assert [(q.window, q.raw_window) for q in questions] == [((0, 17), (-6, 179)), ((6, 11), (6, 11))]


def test_types_are_read_in_any_case(corpus_at):
    questions = corpus_at([question(q_type="causal"), question(q_type=" DESCRIPTIVE ")])[0].questions
    assert [q.q_type for q in questions] == ["Causal", "Descriptive"]


@pytest.mark.parametrize("obj_id", ["1, 2", "2,1", "1 ,2,2"])
def test_comma_lists_are_unions(corpus_at, obj_id):
    record = corpus_at([question(obj_id=obj_id)])[0]
    assert sorted(record.questions[0].object_ids) == [1, 2]
    mask = read_target(record, record.questions[0], 7)
    assert mask[2:5, 7:9].all() and mask[7:9, 0:3].all() and mask.sum() == 12


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{:07d}.jpg", "{:07d}.png"),
        ("{:07d}.jpg", "frame_{:06d}.png"),
        ("frame_{:06d}.jpg", "{:07d}.png"),
        ("frame_{:06d}.JPG", "frame_{:06d}.png"),
    ],
)
def test_both_naming_conventions(corpus_at, image, mask):
    video = "other_0130_0133"
    write_clip(corpus_at.root, video, image, mask)
    corpus = corpus_at([question()], video)
    record = corpus[0]
    assert without_mask(record) == [3, 8]
    for number in (0, 7, 17):
        assert record.read_object_mask(record.questions[0], number)[3, number % 10]


def test_the_mask_of_the_same_stem_comes_first(corpus_at):
    write_id_mask(corpus_at.root / VIDEO / "masks" / "0000007.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    record = corpus_at([question()])[0]
    assert read_target(record, record.questions[0], 7).any()


MISTAKES = [
    (dict(question=...), "has no 'question'"),
    (dict(question=5), "'question' must be a string, not int (5)"),
    (dict(question="  "), "'question' is empty"),
    (dict(answer=...), "has no 'answer'"),
    (dict(obj_id=...), "has no 'obj_id'"),
    (dict(obj_id=None), "'obj_id' must be a string, not NoneType"),
    (dict(obj_id="cup"), "'obj_id' must be numbers from 1 to 255"),
    (dict(obj_id="1,"), "'obj_id' must be numbers from 1 to 255"),
    (dict(obj_id="0"), "'obj_id' must be numbers from 1 to 255"),
    (dict(q_type="Casual"), "unknown q_type 'Casual'; it must be one of Causal, Sequential, Counterfactual, Descr"),
    (dict(q_type=...), "has no 'q_type'"),
    (dict(action_start=...), "has no 'action_start'"),
    (dict(action_end="soon"), "'action_end': 'soon' is not a time; write MM:SS"),
    (dict(action_end=92), "'action_end' must be a string, not int"),
    (dict(action_end="01:31"), "window is empty"),
    (dict(action_end="01:30"), "window is empty"),
    (dict(action_start="01:33", action_end="01:35"), "frames 18 to 29, lies outside the clip, which has"),
    (dict(action_start="00:01", action_end="00:02"), "lies outside the clip"),
]


@pytest.mark.parametrize("changes, message", MISTAKES)
def test_each_mistake_is_named(corpus_at, changes, message):
    with pytest.raises(DataError) as caught:
        corpus_at([question(), question(**changes)])
    assert f"video {VIDEO}, question 1: " in str(caught.value) and message in str(caught.value)
    assert "(1 problem)" in str(caught.value)


def test_all_mistakes_of_a_file_are_listed_at_once(corpus_at):
    with pytest.raises(DataError) as caught:
        corpus_at([question(**changes) for changes, _ in MISTAKES])
    text = str(caught.value)
    assert "trainval_v2.json" in text and f"({len(MISTAKES)} problems)" in text
    for number, (_, message) in enumerate(MISTAKES):
        assert f"question {number}: " in text and message in text


def test_one_question_may_have_several_mistakes(corpus_at):
    with pytest.raises(DataError, match=r"\(4 problems\)"):
        corpus_at([question(answer=..., obj_id="x", q_type="Why", action_start="?")])


def test_bad_questions_are_skipped_loudly(corpus_at, caplog):
    with caplog.at_level(logging.WARNING):
        corpus = corpus_at([question(**changes) for changes, _ in MISTAKES] + [question()], on_problem="skip")
    assert len(corpus) == len(corpus[0].questions) == 1 and corpus[0].questions[0].query_id == str(len(MISTAKES))
    assert len([r for r in caplog.records if "left out" in r.message]) == len(MISTAKES)


def test_videos_that_cannot_be_used(tmp_path, corpus_at):
    root = corpus_at.root
    (root / "empty_0000_0010" / "images").mkdir(parents=True)
    (root / "nomask_0130_0133" / "masks").mkdir(parents=True)
    (root / "nomask_0130_0133" / "images").symlink_to(root / VIDEO / "images")
    write_clip(root, "noid")
    entry = {"questions": {"0": question()}}
    videos = dict.fromkeys([VIDEO, "gone_0000_0010", "empty_0000_0010", "nomask_0130_0133", "noid"], entry)
    videos |= {"blank_0000_0010": {}, "list_0000_0010": [1], "null_0000_0010": {"questions": {"a": None}}}
    meta = tmp_path / "test.json"
    meta.write_text(json.dumps({"videos": videos}))
    with pytest.raises(DataError) as caught:
        GroundMoRe(meta, root)
    for part in [
        "video gone_0000_0010: ",
        "cannot list this folder",
        "images: no frame (.jpg, .jpeg, .png) in this folder",
        "masks: no mask (.png) for any of the 18 frames",
        "video noid: the id must end with the clip's start and end as MMSS_MMSS",
        "video blank_0000_0010: has no 'questions'",
        "video list_0000_0010: must be an object with 'questions'",
        "video null_0000_0010, question a: must be an object",
    ]:
        assert part in str(caught.value), part
    assert [record.video_id for record in GroundMoRe(meta, root, on_problem="skip")] == [VIDEO]
    with pytest.raises(DataError, match="nowhere: no such folder"):
        GroundMoRe(meta, tmp_path / "nowhere")


def test_object_absent_from_every_mask(corpus_at):
    corpus = corpus_at([question(), question(obj_id="2, 7")])
    record = corpus[0]
    message = rf"video {VIDEO}: object id 7 of query 1 is in none of the clip's masks, which hold \[1, 2\]"
    with pytest.raises(DataError, match=message):
        read_target(record, record.questions[1], 7)
    with pytest.raises(DataError, match=message):
        read_everything(corpus)


def test_mask_and_frame_must_agree_in_size(corpus_at):
    write_id_mask(corpus_at.root / VIDEO / "masks" / "frame_000007.png", np.ones((HEIGHT, WIDTH * 2), np.uint8))
    corpus = corpus_at([question()])
    with pytest.raises(DataError, match=r"frame_000007\.png: this mask is 10 x 28 .* is 10 x 14"):
        read_target(corpus[0], corpus[0].questions[0], 7)
    with pytest.raises(DataError, match=r"frame_000007\.png"):
        read_everything(corpus)


def test_unusable_windows_can_be_kept(corpus_at):
    entries = [question(action_end="01:31"), question(action_start="01:40", action_end="01:41"), question()]
    record = corpus_at(entries, empty_windows="keep")[0]
    assert [q.raw_window for q in record.questions] == [(6, 5), (60, 65), (6, 11)]
    for query in record.questions[:2]:
        assert not query.in_window(np.arange(-20, 80)).any()
        assert not any(read_target(record, query, k).any() for k in range(NUM_FRAMES))
    with pytest.raises(ValueError, match="empty_windows"):
        corpus_at(entries, empty_windows="drop")


def test_a_real_clip(shared_data):
    folder = shared_data / "groundmore_real_mini"
    corpus = GroundMoRe(folder / "groundmore_test.json", folder / "groundmore_videos")
    read_everything(corpus)
    record = corpus[0]
    assert len(record.frame_paths) == 60 and len(record.questions) == 4 and without_mask(record) == []
    assert [q.window for q in record.questions] == [(0, 5), (12, 53), (0, 5), (12, 53)]
    assert {q.q_type for q in record.questions} == {"Causal", "Sequential", "Counterfactual", "Descriptive"}
    target = read_target(record, record.questions[1], 30)
    assert target.shape == (360, 640) and target.any() and not read_target(record, record.questions[1], 54).any()
