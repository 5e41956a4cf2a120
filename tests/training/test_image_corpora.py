"""Training on pictures and videos together: batches mix clips of several frames and of one."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import training.run
from model.checkpoints.opening import load_any
from tests.model.conftest import Worlds
from training.checkpoints.weights import read_weights
from training.run import train
from training.settings import parse_arguments
from utils.batch import MoraBatch

pytestmark = pytest.mark.slow

SIZE = (40, 56)


def write_reason_seg(root):
    folder = root / "reason_seg" / "ReasonSeg" / "train"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((*SIZE, 3), 40 * number, np.uint8)).save(folder / f"{number}.jpg")
        shape = {"label": "target", "points": [[4, 4], [20, 4 + number], [12, 20]]}
        entry = {"text": ["What is moved?", "What may fall?"], "is_sentence": True, "shapes": [shape]}
        (folder / f"{number}.json").write_text(json.dumps(entry))


def write_refcoco(root):
    folder, pictures = root / "refer_seg" / "refcoco", root / "refer_seg/images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True)
    Image.fromarray(np.full((*SIZE, 3), 70, np.uint8)).save(pictures / "COCO_train2014_000000000005.jpg")
    sentences = [{"sent_id": 1, "sent": "the square", "raw": "The square", "tokens": ["the", "square"]}]
    refs = [{"ref_id": 1, "ann_id": 7, "image_id": 5, "split": "train", "sentences": sentences}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    image = {"id": 5, "file_name": "COCO_train2014_000000000005.jpg", "height": SIZE[0], "width": SIZE[1]}
    square = {"id": 7, "image_id": 5, "category_id": 1, "segmentation": [[3, 3, 20, 3, 20, 20, 3, 20]]}
    instances = {"images": [image], "annotations": [square], "categories": [{"id": 1, "name": "square"}]}
    (folder / "instances.json").write_text(json.dumps(instances))


@pytest.fixture
def data(tmp_path, tiny_corpus):
    root = tmp_path / "data"
    shutil.copytree(tiny_corpus, root)
    write_reason_seg(root)
    write_refcoco(root)
    return root


def test_a_batch_mixes_videos_and_pictures(data, tiny_base, tmp_path, world, monkeypatch):
    seen = []
    collate = training.run.collate
    monkeypatch.setattr(training.run, "collate", lambda videos: seen.append(videos) or collate(videos))
    train(
        parse_arguments(
            ["--grad_accumulation_steps", "1", "--version", str(tiny_base),
             "--dataset_dir", str(data), "--dataset", "groundmore||reason_seg||refcoco",
             "--precision", "fp32", "--epochs", "1", "--steps_per_epoch", "3", "--warmup_steps", "1",
             "--batch_size", "4", "--num_frames", "3", "--workers", "0", "--picture_freq", "0",
             "--log_base_dir", str(tmp_path), "--exp_name", "run"]
        )
    )  # fmt: skip
    kinds = [{(video.num_frames, video.original_size == SIZE) for video in batch} for batch in seen]
    assert {(3, False), (1, True)} == set.union(*kinds) and {(3, False), (1, True)} in kinds
    for batch in seen:
        for video in batch:
            still = video.original_size == SIZE
            assert all(question.masks.shape[1] == video.num_frames for question in video.questions)
            assert all((question.in_window is None) == still for question in video.questions)
            assert not still or all(question.masks.any() for question in video.questions)
    assert {video.video_id[:4] for batch in seen for video in batch} >= {"clip", "COCO"}
    before, after = load_any(tiny_base)[0].state_dict(), read_weights(tmp_path / "run" / "ckpt_model")
    learned = [name for name, value in after.items() if name in before and not torch.equal(value, before[name])]
    assert any("mask_decoder" in name for name in learned)
    assert all(value.isfinite().all() for value in after.values() if torch.is_tensor(value))


@pytest.mark.parametrize(
    "visual_mode, loc_mode",
    [("frame", "none"), ("frame", "frame"), ("frame", "global"), ("pooled", "none"), ("pooled", "global"),
     ("video", "none"), ("video", "global")],
)  # fmt: skip
def test_every_mode_learns_from_a_picture_beside_a_video(visual_mode, loc_mode):
    worlds = Worlds()
    model = worlds.model(visual_mode=visual_mode, loc_mode=loc_mode)
    video, picture = (worlds.video(seed, frames, loc=loc_mode != "none") for seed, frames in ((1, 3), (2, 1)))
    picture.questions[0].in_window = None
    loss = model(MoraBatch([video, picture]))["loss"]
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    picture.questions[0].masks = 1 - picture.questions[0].masks
    assert model(MoraBatch([video, picture]))["loss"].item() != pytest.approx(loss.item(), abs=1e-4)
