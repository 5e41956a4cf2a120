"""The contract: presets, refusals, sampling, and that what is only stated is what the code does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from evaluation.metrics import boundary_radius
from evaluation.protocol import CHOICES, SCORING_FIELDS, Protocol, make_protocol
from evaluation.records import Record, frames_digest, write_record
from evaluation.scoring.score import score_corpus
from tests.targets import read_target
from utils.errors import ConfigError
from utils.masks import encode_rle


def test_presets_differ_only_in_the_arithmetic_of_the_frames_and_windows():
    new, old = make_protocol("groundmore").as_dict(), make_protocol("groundmore_2025").as_dict()
    assert {key for key in new if new[key] != old[key]} == {"name", "frame_sampling", "window"}
    assert make_protocol("groundmore_2025", num_frames=5, window=None).window == "unclipped"


def test_sampling():
    assert make_protocol("groundmore_2025").sample(58).tolist() == np.linspace(0, 57, 20, dtype=int).tolist()
    assert make_protocol(num_frames=8).sample(24).tolist() == [0, 3, 7, 10, 13, 16, 20, 23]
    assert make_protocol("groundmore_2025", num_frames=8).sample(24).tolist() == [0, 3, 6, 9, 13, 16, 19, 23]
    assert make_protocol(frame_sampling="every").sample(58).tolist() == list(range(58))
    assert make_protocol(frame_sampling="every").sample(1).tolist() == [0]
    short = make_protocol(num_frames=5).sample(2)
    assert short.tolist() == sorted(short.tolist()) and set(short.tolist()) == {0, 1} and len(short) == 5


def test_every_choice_is_described_and_stored():
    protocol = make_protocol(loc_refine=True)
    text = "\n".join(protocol.describe())
    for field in dataclasses.fields(Protocol):
        assert field.name in protocol.as_dict()
        assert field.name == "name" or f"{field.name} = {protocol.as_dict()[field.name]}" in text
    assert set(CHOICES) <= set(protocol.as_dict())


def test_scoring_fields_do_not_touch_the_predictions():
    base = make_protocol()
    other = make_protocol("groundmore_2025", frame_sampling="uniform", loc_refine=True, loc_threshold=0.9)
    assert base.prediction_settings() == other.prediction_settings()
    assert not set(SCORING_FIELDS) & set(base.prediction_settings())
    for changed in ({"force_seg_token": True}, {"frame_sampling": "every"}, {"mask_threshold": 1.0}):
        assert base.prediction_settings() != make_protocol(**changed).prediction_settings()
    assert set(SCORING_FIELDS) <= set(base.as_dict())


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        make_protocol(frame_sampling="random", num_frames=0, loc_threshold=1.5, seg_only=True, loc_refine=True)
    for word in ("frame_sampling", "num_frames", "loc_threshold", "seg_only", "4 problems"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        make_protocol(failed_question="drop", boundary_tolerance=0.01, both_empty="nan")
    for words in ("'drop' is not one of zero", "0.01 is not one of 0.008", "'nan' is not one of one", "3 problems"):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="groundmore_2025"):
        make_protocol("davis")


def scored(videos, folder, protocol, mask_of, size=(24, 32)):
    """Score perfect or other masks, ``mask_of(video, query, index) -> bool [H, W]``, under a protocol."""
    for video in videos:
        listed = protocol.sample(len(video.frame_paths))
        frames = np.unique(listed).tolist()
        for query in video.questions:
            record = Record(
                video_id=video.video_id,
                query_id=query.query_id,
                question=query.text,
                status="ok",
                fingerprint="mark",
                num_clip_frames=len(video.frame_paths),
                listed_frames=listed.tolist(),
                frames=frames_digest(video, frames),
                frame_indices=frames,
                size=list(size),
                masks=[encode_rle(mask_of(video, query, index)) for index in frames],
            )
            write_record(folder, record)
    return score_corpus(videos, folder, protocol, "mark")


def test_every_frame_counts_once(corpus, tmp_path):
    protocol = make_protocol(frame_sampling="every")

    def first_ten(video, query, index):
        return read_target(video, query, index) & (index < 10)

    scores = scored(list(corpus), tmp_path, protocol, first_ten)
    # Windows 0-11, 6-17, 12-23 and the whole clip of 24 frames; frame 0 of the second clip has no mask file.
    expected = {"0": 22, "1": 24 - 8, "a": 12, "b": 10}
    assert {score["query_id"]: score["rows"]["model"]["J"] for score in scores} == {
        query: count / 24 for query, count in expected.items()
    }
    assert all(score["listed_frames"] == 24 for score in scores)


def test_the_tolerance_is_that_of_the_metric():
    for height, width in ((24, 32), (480, 854), (720, 1280), (1080, 1920)):
        exact = Protocol().boundary_tolerance * np.hypot(height, width)
        assert boundary_radius(height, width) == int(np.ceil(exact))


def test_a_prediction_of_another_size_and_an_absent_object_are_failures(corpus, tmp_path):
    protocol = make_protocol(num_frames=4)
    video = corpus[0]
    small = scored([video], tmp_path / "small", protocol, lambda *_: np.ones((12, 16), dtype=bool), (12, 16))
    assert [score["status"] for score in small] == ["failed", "failed"] and "12, 16" in small[0]["reason"]
    questions = (dataclasses.replace(video.questions[0], object_ids=(9,)), video.questions[1])
    absent = dataclasses.replace(video, questions=questions)
    scores = scored([absent], tmp_path / "absent", protocol, lambda *_: np.zeros((24, 32), dtype=bool))
    assert [score["status"] for score in scores] == ["failed", "ok"] and "object id 9" in scores[0]["reason"]
    assert scores[0]["rows"]["model"]["JF"] == 0
