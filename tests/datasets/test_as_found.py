"""What is found on disk and in annotation files fits, or is refused when a corpus is opened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from datasets.corpora.mevis import MeViS
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos
from datasets.doctor.__main__ import main as doctor
from tests.targets import read_everything
from utils.errors import DataError
from utils.files import read_json
from utils.masks import write_id_mask

VIDEO = "a_0000_0002"


def write_clip(root, frames, masks, frame="frame_{:06d}.jpg", mask="frame_{:06d}.png"):
    for kind in ("images", "masks"):
        (root / VIDEO / kind).mkdir(parents=True)
    ids = np.zeros((16, 20), np.uint8)
    ids[4:8, 4:8] = 1
    for number in frames:
        Image.fromarray(np.full((16, 20, 3), 90, np.uint8)).save(root / VIDEO / "images" / frame.format(number))
    for number in masks:
        write_id_mask(root / VIDEO / "masks" / mask.format(number), ids)


def write_questions(path, **videos):
    entry = {"question": "what moves?", "answer": "it", "obj_id": "1", "q_type": "Causal", "action_start": "00:00",
             "action_end": "00:01"}  # fmt: skip
    path.write_text(json.dumps({"videos": {name: {"questions": {"0": entry}} for name in videos or [VIDEO]}}))
    return path


def open_clip(tmp_path):
    return GroundMoRe(write_questions(tmp_path / "trainval_v2.json"), tmp_path / "groundmore_videos")


NUMBERINGS = {
    "frames from 1, masks from 0": (range(1, 13), range(12)),
    "frames from 0, masks from 1": (range(12), range(1, 13)),
    "every fifth frame, masks counted": (range(0, 60, 5), range(0, 12)),
    "frames counted, every fifth mask": (range(12), range(0, 60, 5)),
    "masks of another clip's numbers": (range(12), range(11, 23)),
}


@pytest.mark.parametrize("name", NUMBERINGS)
def test_masks_numbered_otherwise_are_refused_by_reader_and_doctor(tmp_path, name, capsys):
    write_clip(tmp_path / "groundmore_videos", *NUMBERINGS[name])
    with pytest.raises(DataError, match=f"video {VIDEO}: .*mask"):
        open_clip(tmp_path)
    assert doctor(["groundmore", str(tmp_path), "--no-sheet", "--workers", "1"]) == 1
    assert "mask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("frames", "masks", "mask"),
    [
        (range(12), range(12), "frame_{:06d}.png"),
        (range(1, 13), range(1, 13), "frame_{:06d}.png"),
        (range(12), range(3, 9), "frame_{:06d}.png"),  # the object is seen in the middle only
        (range(12), range(12), "{:07d}.png"),  # the other convention
        (range(1, 13), range(4, 13), "{:05d}.png"),
        (range(12), range(14), "frame_{:06d}.png"),  # the clip was cut, its masks were not
    ],
)
def test_masks_that_fit_are_accepted(tmp_path, frames, masks, mask):
    write_clip(tmp_path / "groundmore_videos", frames, masks, mask=mask)
    (record,) = open_clip(tmp_path)
    for index, number in enumerate(frames):
        assert record.read_object_mask(record.questions[0], index).any() == (number in masks)


def test_modes_are_looked_at_on_opening(tmp_path):
    """A clip whose both ends do not fit is refused at once; a single file is found by check() and when it is read."""
    write_clip(tmp_path / "groundmore_videos", range(12), range(12))
    folder = tmp_path / "groundmore_videos" / VIDEO

    def spoil(number):
        Image.new("RGB", (20, 16)).save(folder / "masks" / f"frame_{number:06d}.png")
        Image.fromarray(np.zeros((16, 20), np.float32)).save(folder / "a.tiff")
        os.rename(folder / "a.tiff", folder / "images" / f"frame_{number:06d}.jpg")

    spoil(0)
    corpus = open_clip(tmp_path)
    with pytest.raises(DataError, match="frame_000000.jpg: .*mode F"):
        read_everything(corpus)
    with pytest.raises(DataError, match="frame_000000"):
        corpus[0].read_object_mask(corpus[0].questions[0], 0)
    spoil(11)
    with pytest.raises(DataError) as caught:
        open_clip(tmp_path)
    assert "mode F" in str(caught.value) and "mode RGB" in str(caught.value), "all at once"


@pytest.mark.parametrize(
    "name", ["", "..", "../a_0000_0002", "/tmp/a_0000_0002", "a\n_0000_0002", "a\x00_0000_0002", "x" * 300, "a\u2028b"]
)
def test_names_that_no_folder_or_table_carries_are_refused(tmp_path, name):
    write_clip(tmp_path / "groundmore_videos", range(12), range(12))
    meta = write_questions(tmp_path / "trainval_v2.json", **{VIDEO: 0, name: 0})
    with pytest.raises(DataError) as caught:
        GroundMoRe(meta, tmp_path / "groundmore_videos")
    assert "its id " in str(caught.value) and "\n_" not in str(caught.value)
    content = json.loads(write_questions(meta).read_text())
    entry = content["videos"][VIDEO]["questions"].pop("0")
    if "/" not in name and name not in ("..", "x" * 300):
        content["videos"][VIDEO]["questions"] = {name: entry}
        meta.write_text(json.dumps(content))
        with pytest.raises(DataError, match="question .*its id"):
            GroundMoRe(meta, tmp_path / "groundmore_videos")


def test_half_a_letter_is_refused(tmp_path):
    write_clip(tmp_path / "groundmore_videos", range(12), range(12))
    meta = write_questions(tmp_path / "trainval_v2.json")
    meta.write_text(meta.read_text().replace("what moves?", "what \\ud800 moves?"))
    with pytest.raises(DataError, match="lone surrogate"):
        GroundMoRe(meta, tmp_path / "groundmore_videos")


def test_a_name_that_is_not_utf8_does_not_end_anything(tmp_path):
    write_clip(tmp_path / "groundmore_videos", range(12), range(12))
    folder = os.fsencode(tmp_path / "groundmore_videos" / VIDEO / "images")
    shutil.copy(folder + b"/frame_000000.jpg", folder + b"/\xe9_000012.jpg")
    try:
        assert len(open_clip(tmp_path)[0].frame_paths) == 13
    except DataError as error:
        str(error).encode()


def test_names_in_the_other_corpora(tmp_path):
    expressions = {"0": {"exp": "the red one", "obj_id": "1"}}
    for reader, place in ((ReferYoutubeVos, "meta_expressions/train/meta_expressions.json"),
                          (MeViS, "train/meta_expressions.json")):  # fmt: skip
        root = tmp_path / reader.__name__
        (root / place).parent.mkdir(parents=True)
        (root / "train" / "JPEGImages").mkdir(parents=True, exist_ok=True)
        (root / "train" / "mask_dict.json").write_text("{}")
        video = {"frames": ["../00000"], "expressions": expressions}
        (root / place).write_text(json.dumps({"videos": {"../../etc": video, "b\n": video}}))
        with pytest.raises(DataError) as caught:
            reader(root)
        text = str(caught.value)
        assert "'../../etc': its id is a path" in text and "its id holds a line break" in text


def test_a_pipe_as_annotation_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "trainval_v2.json")
    with pytest.raises(DataError, match="trainval_v2.json"):
        read_json(tmp_path / "trainval_v2.json")


def test_a_key_given_twice_is_a_mistake(tmp_path):
    write_clip(tmp_path / "groundmore_videos", range(12), range(12))
    meta = write_questions(tmp_path / "trainval_v2.json")
    inner = json.dumps(json.loads(meta.read_text())["videos"][VIDEO])
    meta.write_text(f'{{"videos": {{"{VIDEO}": {inner}, "{VIDEO}": {inner}}}}}')
    with pytest.raises(DataError, match=VIDEO):
        GroundMoRe(meta, tmp_path / "groundmore_videos")


@pytest.mark.slow
def test_a_killed_worker_ends_the_motion_world_and_a_second_run_goes_on(tmp_path, project_root):
    command = [sys.executable, "-m", "datasets.synthetic", "--out", str(tmp_path), "--seed", "3", "--num_videos", "40",
               "--corpora", "groundmore", "--workers", "2"]  # fmt: skip
    job = subprocess.Popen(command, cwd=project_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children = []
    end = time.monotonic() + 60
    while not children and job.poll() is None and time.monotonic() < end:
        listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(job.pid)], capture_output=True, text=True)
        children = [line.split()[0] for line in listed.stdout.splitlines() if "tracker" not in line]
        time.sleep(0.05)
    os.kill(int(children[-1]), signal.SIGKILL)
    output, _ = job.communicate(timeout=60)
    assert job.returncode not in (0, None) and "Traceback" not in output and "killed" in output, output[-2000:]
    again = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr[-2000:]
