"""A very small base model and a hand-made GroundMoRe corpus."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.tokenization import load_tokenizer
from model.presets import build, tiny, tiny_qwen
from utils.processes import start_world, stop_world

SIZE = 64
FRAMES = 12
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 210)}


def small_config(**overrides):
    """The tiny preset, made smaller still."""
    fields = {"llm_layers": 2, "clip_layers": 1, "sam_layers": 1, "vocab_size": 640, **overrides}
    return tiny(**fields)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, project_root) -> Path:
    """Folder of a base with random weights: the tiny tokenizer, a [LOC] head."""
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_tokenizer")
    config = small_config(
        vocab_size=len(tokenizer), seg_token_id=tokenizer.id_of("[SEG]"), loc_token_id=tokenizer.id_of("[LOC]")
    )
    folder = tmp_path_factory.mktemp("tiny_base")
    build(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def small_qwen(**overrides):
    """The tiny Qwen3-VL, made smaller still."""
    fields = {"llm_layers": 2, "tower_layers": 2, "sam_config": small_config().sam_config, **overrides}
    return tiny_qwen(**fields)


@pytest.fixture(scope="session")
def qwen_base(tmp_path_factory, project_root) -> Path:
    """Folder of a Qwen3-VL base with random weights: its tiny tokenizer, free rows, no [LOC] head."""
    tokenizer = load_tokenizer(project_root / "assets" / "tiny_qwen_tokenizer")
    config = small_qwen(vocab_size=len(tokenizer) + 3, seg_token_id=tokenizer.id_of("[SEG]"), loc_mode="none")
    folder = tmp_path_factory.mktemp("qwen_base")
    build(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def _draw_video(folder: Path, rng: np.random.Generator) -> int:
    """Three squares on noise, one of them moving in the second half; returns the id of the mover."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    mover = int(rng.integers(1, 4))
    ground = rng.integers(60, 120, size=(SIZE, SIZE, 3))
    rows = rng.permutation([6, 24, 42])
    columns = rng.integers(4, 20, size=3)
    for frame in range(FRAMES):
        image = ground + rng.integers(-4, 5, size=ground.shape)
        ids = np.zeros((SIZE, SIZE), dtype=np.uint8)
        for number, colour in enumerate(COLOURS.values(), start=1):
            shift = 4 * max(0, frame - 5) if number == mover else 0
            top, left = rows[number - 1], columns[number - 1] + shift
            image[top : top + 14, left : left + 14] = colour
            ids[top : top + 14, left : left + 14] = number
        picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        picture.save(folder / "images" / f"frame_{frame:06d}.jpg", quality=95)
        mask = Image.fromarray(ids, mode="P")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        mask.save(folder / "masks" / f"frame_{frame:06d}.png")
    return mover


def write_corpus(root: Path, videos: int, seed: int = 0) -> Path:
    """``root/GroundMoRe`` with clips of two seconds; the mover moves in the second one."""
    rng = np.random.default_rng(seed)
    corpus = root / "GroundMoRe"
    listing = {}
    for number in range(videos):
        video_id = f"clip{number:02d}_0000_0002"
        mover = _draw_video(corpus / "groundmore_videos" / video_id, rng)
        window = {"action_start": "00:01", "action_end": "00:02"}
        name = list(COLOURS)[mover - 1]
        listing[video_id] = {
            "questions": {
                "0": {"question": "What moves to the right?", "answer": f"the {name} square", "obj_id": str(mover),
                      "q_type": "Descriptive", **window},
            }
        }  # fmt: skip
    (corpus / "trainval_v2.json").write_text(json.dumps({"videos": listing}))
    return root


@pytest.fixture(scope="session")
def world():
    """This process as a world of one, for tests that make a DeepSpeed engine here."""
    before = dict(os.environ)
    yield start_world(use_cuda=False)
    stop_world()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Value for --dataset_dir, with 8 GroundMoRe clips."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), videos=8)
