"""evaluation/report/page.py: the file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil

import cv2
import numpy as np
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from evaluation.report import page as report_page
from evaluation.report.data import choose
from evaluation.report.html import embedded_json, write_report_page
from evaluation.report.media import MAX_PATH, outline, outline_grid, thumbnail
from tests.evaluation.report_run import (
    ALPHA,
    BETA,
    HOSTILE,
    NAMES,
    PROTOCOL,
    data_of,
    evaluated_run,  # noqa: F401 - a fixture
)


def test_the_failures_are_named(run):
    data = data_of(run.page)
    assert {(q["video"], q["id"]): q["name"] for q in data["questions"]} == NAMES
    losses = [q["loss"] for q in data["questions"]]
    assert losses == sorted(losses, reverse=True)


def test_equal_inputs_give_equal_bytes(run):
    before = run.page.read_bytes()
    write_report_page(run.videos, run.output, run.scores, run.summary, PROTOCOL)
    assert run.page.read_bytes() == before
    assert len(before) < 400_000


def test_nothing_is_loaded_from_outside(run):
    text = run.page.read_text(encoding="utf-8")
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert set(re.findall(r"https?://[^\"'\s)]+", outside)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=[\"'](?!data:,)", outside)
    assert "@import" not in outside and "url(" not in outside


def test_the_policy_allows_the_pages_own_sources_only(run):
    text = run.page.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text).group(1)
    assert policy.startswith("default-src 'none'")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy


def test_hostile_texts_are_text(run):
    text = run.page.read_text(encoding="utf-8")
    assert "<script>window" not in text and "<img" not in text
    assert "&lt;script&gt;window.hacked" in text  # the reason in the table of failures
    assert any(q["text"] == HOSTILE for q in data_of(run.page)["questions"])
    assert json.loads(embedded_json({"x": "</script><!--\u2028\ud800&"})) == {"x": "</script><!--\u2028\ud800&"}
    assert not set("<>&\u2028") & set(embedded_json("</script><!--\u2028\ud800&"))


def test_frames_of_a_video_are_stored_once(run):
    data = data_of(run.page)
    assert sorted(data["videos"]) == [ALPHA, BETA]
    images = data["videos"][ALPHA]["images"]
    assert len(images) == 6
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(images[2]))).convert("RGB"))
    source = np.array(Image.open(run.videos[0].frame_paths[data["videos"][ALPHA]["index"][2]]))
    assert np.array_equal(picture, source)  # small frames are kept without loss


def test_limit_and_choice(run, tmp_path):
    shutil.copytree(run.output / "records", tmp_path / "records")
    limited = write_report_page(run.videos, tmp_path, run.scores, run.summary, PROTOCOL, limit=2)
    data = data_of(limited)
    assert len(data["questions"]) == 5
    assert ["picture" in question for question in data["questions"]] == [True, False, False, False, True]
    chosen = write_report_page(run.videos, tmp_path, run.scores, run.summary, PROTOCOL, only={(ALPHA, "1")})
    assert [q["id"] for q in data_of(chosen)["questions"] if "picture" in q] == ["1"]
    assert write_report_page(run.videos, tmp_path, run.scores, run.summary, PROTOCOL, limit=0) is None
    assert choose(10, 4) == [0, 1, 2, 9] and choose(3, 4) == [0, 1, 2] and choose(9, 1) == [0]


def test_a_frame_or_truth_that_cannot_be_read_leaves_a_page(run, tmp_path):
    shutil.copytree(run.root, tmp_path / "videos")
    shutil.copytree(run.output / "records", tmp_path / "records")
    (tmp_path / "videos" / BETA / "images" / "0000000.jpg").write_bytes(b"no picture")
    next((tmp_path / "videos" / BETA / "masks").iterdir()).write_bytes(b"no mask")
    corpus = GroundMoRe(run.meta, tmp_path / "videos")
    data = data_of(write_report_page([corpus[0], corpus[1]], tmp_path, run.scores, run.summary, PROTOCOL))
    assert data["videos"][BETA]["images"][0] is None and data["videos"][BETA]["images"][1]


def test_the_program_makes_the_same_page_again(run, capsys):
    before = run.page.read_bytes()
    flags = ["--output_dir", str(run.output), "--meta_file", str(run.meta), "--video_root", str(run.root)]
    assert report_page.main(flags) == 0
    assert run.page.read_bytes() == before and "report.html" in capsys.readouterr().out
    assert report_page.main([*flags, "--video", ALPHA, "--question", "1", "--question", "b"]) == 0
    assert [q["id"] for q in data_of(run.page)["questions"] if "picture" in q] == ["1"]
    assert report_page.main(flags) == 0
    capsys.readouterr()
    for wrong, message in (
        (["--question", "none"], "no such question was scored"),
        (["--limit", "0"], "at least 1"),
        (["--output_dir", str(run.output / "records")], "no such file"),
    ):
        assert report_page.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_results_of_an_older_version_are_refused(run, tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path), "--meta_file", str(run.meta), "--video_root", str(run.root)]
    shutil.copy(run.output / "summary.json", tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps([{"video_id": ALPHA, "query_id": "0"}]))
    assert report_page.main(flags) == 2 and "no 'frames' or 'objects'" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text(json.dumps({**run.summary, "format": "mora-summary-1"}))
    assert report_page.main(flags) == 2 and "--score_only" in capsys.readouterr().err


def area_of(path, width, height):
    """Pixels that an outline encloses, by the even-odd rule, as a browser would fill it."""
    filled = np.zeros((height, width), dtype=np.uint8)
    for part in path.split("M")[1:]:
        start, steps = part.rstrip("z").split("l")
        moves = np.array(steps.split(), dtype=int).reshape(-1, 2)
        points = np.cumsum(np.concatenate([np.array([start.split()], dtype=int), moves]), axis=0)
        ring = np.zeros_like(filled)
        cv2.fillPoly(ring, [points.astype(np.int32)], 1)
        filled ^= ring
    return filled.astype(bool)


def test_outlines_enclose_their_masks():
    mask = np.zeros((24, 32), dtype=bool)
    mask[4:20, 6:26] = True
    mask[9:14, 12:18] = False
    width, height = outline_grid(24, 32)
    assert (width, height) == (512, 384)
    large = mask.repeat(16, axis=0).repeat(16, axis=1)
    drawn = area_of(outline(mask), width, height)
    assert (drawn & large).sum() / (drawn | large).sum() > 0.97
    assert outline(np.zeros((24, 32), dtype=bool)) == ""


def test_outlines_of_tiny_and_ragged_masks():
    speck = np.zeros((2160, 3840), dtype=bool)
    speck[700, 900] = True
    assert outline_grid(2160, 3840) == (512, 288)
    assert outline(speck).startswith("M120 93")
    assert 0 < len(outline(np.random.default_rng(0).random((480, 640)) > 0.5)) <= MAX_PATH


def test_large_frames_fit_their_share(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(noise).save(tmp_path / "frame.jpg", quality=90)
    assert len(base64.b64decode(thumbnail(tmp_path / "frame.jpg", 8000))) <= 8000
    assert thumbnail(tmp_path / "none.jpg", 8000) is None
