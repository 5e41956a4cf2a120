"""utils/video.py and utils/drawing.py: frames, video files, pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tests.utils.clips import write_clip
from utils.drawing import COLOURS, contact_sheet, draw_overlay, fit_mask, text_strip, time_curve
from utils.errors import DataError
from utils.video import frame_number, frame_size, read_frame, read_video


@pytest.mark.parametrize(
    "name, number",
    [("frame_000012.jpg", 12), ("0000012.png", 12), ("7.jpeg", 7), ("a2_b30c.jpg", 30), ("cover.jpg", None)],
)
def test_frame_number(name, number):
    assert frame_number(name) == number


def test_read_frame_gives_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_frame(tmp_path / "a.png"), picture)
    assert frame_size(tmp_path / "a.png") == (5, 7)
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    assert read_frame(tmp_path / "grey.png").shape == (5, 7, 3)


def test_bad_frames_are_named(tmp_path):
    good = tmp_path / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(good)
    cases = {"empty.jpg": b"", "cut.jpg": good.read_bytes()[:900], "text.jpg": b"hello, this is no picture"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_frame(tmp_path / name)
    with pytest.raises(DataError, match="is empty"):
        frame_size(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match="no such frame"):
        read_frame(tmp_path / "gone.jpg")


def grey_levels(count, height=48, width=64):
    return [np.full((height, width, 3), 10 + 20 * k, dtype=np.uint8) for k in range(count)]


def test_every_frame_of_a_video(tmp_path):
    path = tmp_path / "clips" / "a.mp4"
    write_clip(path, grey_levels(10), fps=6)
    frames, fps = read_video(path)
    assert frames.shape == (10, 48, 64, 3) and frames.dtype == np.uint8 and fps == pytest.approx(6)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [10 + 20 * k for k in range(10)], atol=4)


def test_video_at_another_rate(tmp_path):
    write_clip(tmp_path / "a.mp4", grey_levels(12), fps=12)
    slow, fps = read_video(tmp_path / "a.mp4", fps=4)
    assert fps == 4 and slow.shape[0] == 4
    np.testing.assert_allclose(slow.mean((1, 2, 3)), [10, 70, 130, 190], atol=4)
    fast, _ = read_video(tmp_path / "a.mp4", fps=24)
    assert fast.shape[0] == 24


def test_colours_are_red_green_blue(tmp_path):
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    frame[..., 0] = 200
    write_clip(tmp_path / "red.mp4", [frame] * 3, fps=5)
    frames, _ = read_video(tmp_path / "red.mp4")
    assert frames[..., 0].mean() > 150 > 60 > frames[..., 2].mean()


def test_bad_videos_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such video"):
        read_video(tmp_path / "gone.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 50)
    with pytest.raises(DataError, match=r"bad\.mp4: cannot decode"):
        read_video(tmp_path / "bad.mp4")
    with pytest.raises(ValueError, match="positive"):
        read_video(tmp_path / "bad.mp4", fps=0)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(DataError, match="pip install decord"):
        read_video(tmp_path / "bad.mp4")


def test_overlay_fills_and_outlines():
    frame = np.full((200, 200, 3), 100, dtype=np.uint8)
    mask = np.zeros((200, 200), dtype=bool)
    mask[20:60, 20:60] = True
    truth = np.zeros((200, 200), dtype=np.uint8)
    truth[100:150, 100:150] = 1
    picture = draw_overlay(frame, [mask], colours=[(200, 0, 0)], alpha=0.5, truth=[truth])
    assert (frame == 100).all()  # the frame itself is not painted on
    assert picture[40, 40].tolist() == [150, 50, 50] and picture[10, 10].tolist() == [100, 100, 100]
    assert picture[100, 120].tolist() == [255, 255, 255] and picture[125, 125].tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match="does not fit"):
        draw_overlay(frame, [mask[:50]])


def test_small_frames_are_enlarged_whole():
    frame = np.arange(64 * 80 * 3, dtype=np.uint8).reshape(64, 80, 3)
    picture = draw_overlay(frame, [])
    assert picture.shape == (192, 240, 3)
    np.testing.assert_array_equal(picture[::3, ::3], frame)


def test_contact_sheet_has_every_picture():
    red, blue = np.zeros((30, 40, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 250, 250
    sheet = contact_sheet(
        [[red, red, red], [blue]],
        row_captions=["What moves “left” — and why? " * 5, ""],
        frame_captions=[["0", "1", "2"], ["frame 7"]],
        title="A title",
        frame_width=80,
        marks=[[True, False, True]],
    )
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 3 * 84 + 4
    assert (sheet == [250, 0, 0]).all(-1).sum() == 3 * 80 * 60
    assert (sheet == [0, 0, 250]).all(-1).sum() == 80 * 120
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([[], []])


def test_text_wraps():
    assert text_strip("word " * 40, 120).shape[0] > 3 * text_strip("word", 120).shape[0]
    assert text_strip("", 50).shape[1] == 50


def test_a_curve_over_time():
    values = np.array([0.0, np.nan, 1.0, 1.0])
    plain = time_curve(values, np.array([False, False, True, False]), 0.5, 408)
    assert plain.shape == (70, 408, 3) and plain[64, 53].tolist() == plain[6, 253].tolist() == list(COLOURS[0])
    assert plain[50, 253].tolist() == [214, 238, 220] != plain[50, 353].tolist()
    moved = np.flatnonzero((time_curve(values, np.zeros(4, bool), 0.5, 408, cursor=1)[0] == [20, 20, 20]).all(-1))
    assert moved.tolist() == [153, 154]
    assert time_curve(np.full(4, np.nan), np.zeros(4, bool), 0.5, 408).max() == 255  # nothing to draw


def test_masks_take_the_nearest_pixel():
    mask = np.array([[1, 2], [3, 4]])
    assert fit_mask(mask, (3, 4)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]
    assert fit_mask(mask[..., None].repeat(3, axis=2), (1, 1)).tolist() == [[[1, 1, 1]]]
