"""A hand-made GroundMoRe corpus of two clips, and a predictor that says what a test wants."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from evaluation.engine.predict import Prediction
from utils.masks import write_id_mask

HEIGHT, WIDTH, FRAMES = 24, 32, 24

QUESTIONS = {
    "alpha_0000_0004": {
        # object 1, frames 0..11
        "0": ("What moves first?", "the red square", "1", "Sequential", "00:00", "00:02"),
        # object 2, frames 6..17
        "1": ("Why does the ball roll?", "the hand", "2", "Causal", "00:01", "00:03"),
    },
    "beta_0110_0114": {
        # both objects, frames 12..23
        "a": ("Which two leave?", "the red square and the ball", "1, 2", "Descriptive", "01:12", "01:14"),
        # object 1, whole clip
        "b": ("What would stay without the wind?", "the red square", "1", "Counterfactual", "01:10", "01:14"),
    },
}


def id_map(frame: int) -> np.ndarray:
    """Object 1 is a 6 x 6 square that moves to the right, object 2 a still 8 x 5 box."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    ids[2:8, frame : frame + 6] = 1
    ids[12:20, 20:25] = 2
    return ids


def write_corpus(root: Path) -> tuple[Path, Path]:
    """Write the two clips under ``root``; return (meta_file, video_root)."""
    videos = {}
    for video_id, questions in QUESTIONS.items():
        pattern = "frame_{:06d}" if video_id.startswith("alpha") else "{:07d}"
        folder = root / "groundmore_videos" / video_id
        (folder / "images").mkdir(parents=True)
        for frame in range(FRAMES):
            ids = id_map(frame)
            colour = np.stack([ids * 100, ids * 50 + frame, np.full_like(ids, 30)], axis=-1)
            Image.fromarray(colour).save(folder / "images" / f"{pattern.format(frame)}.jpg", quality=95)
            if not (video_id.startswith("beta") and frame == 0):  # one in-window frame without a mask file
                write_id_mask(folder / "masks" / f"{pattern.format(frame)}.png", ids)
        keys = ("question", "answer", "obj_id", "q_type", "action_start", "action_end")
        videos[video_id] = {"questions": {qid: dict(zip(keys, values)) for qid, values in questions.items()}}
    meta = root / "groundmore_test.json"
    meta.write_text(json.dumps({"videos": videos}))
    return meta, root / "groundmore_videos"


class DummyPredictor:
    """Answers with masks computed by ``rule(video, query, frame index) -> bool [H, W] or None`` (None: no [SEG]).

    Attributes:
        encoded: video ids in the order they were encoded.
        asked: lists of question ids in the order they were asked.
    """

    def __init__(self, corpus, protocol, rule, loc=None):
        self.videos = {video.video_id: video for video in corpus}
        self.protocol, self.rule, self.loc = protocol, rule, loc
        self.encoded, self.asked = [], []

    def prepare(self, video_id, frames, times):
        assert all(frame.shape == (HEIGHT, WIDTH, 3) for frame in frames)
        return video_id, len(frames)

    def encode(self, prepared, frames_per_pass=None):
        self.encoded.append(prepared[0])
        return prepared

    def answer(self, context, questions, frames_per_pass=None):
        video = self.videos[context[0]]
        self.asked.append([query.query_id for query in questions])
        frames = np.unique(self.protocol.sample(len(video.frame_paths)))
        assert len(frames) == context[1]
        predictions = []
        for query in questions:
            masks = [self.rule(video, query, int(index)) for index in frames]
            predictions.append(
                Prediction(
                    masks=np.stack([np.zeros((HEIGHT, WIDTH), dtype=bool) if m is None else m for m in masks]),
                    has_seg=np.array([m is not None for m in masks]),
                    loc_probs=None if self.loc is None else np.array([self.loc(video, query, int(i)) for i in frames]),
                    answers=["It is [SEG]."],
                )
            )
        return predictions


@pytest.fixture(scope="session")
def corpus_paths(tmp_path_factory) -> tuple[Path, Path]:
    """(meta_file, video_root) of the two clips; read only."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def corpus(corpus_paths) -> GroundMoRe:
    """The two clips, four questions."""
    return GroundMoRe(*corpus_paths)


@pytest.fixture
def dummy_predictor():
    """The class; tests choose the rule."""
    return DummyPredictor
