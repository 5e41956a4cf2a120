"""evaluation/overlay_video.py: what is drawn on which frame, and an mp4 that browsers play."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from evaluation import overlay_video
from evaluation.overlay_video import OUTSIDE_COLOUR, PREDICTION_COLOUR, overlay_frames, write_h264
from evaluation.protocol import Protocol
from evaluation.records import Record, frames_digest, open_run, read_run, write_record
from evaluation.report.text import write_results
from evaluation.scoring.score import score_corpus
from evaluation.scoring.summary import summarise
from utils.errors import ConfigError
from utils.masks import encode_rle

PROTOCOL = Protocol(num_frames=4, loc_refine=True)  # frames 0, 8, 15, 23
WHITE, SCALE = (255, 255, 255), 20  # 32 pixels wide, shown at least 640 wide
AREA = 36 / (24 * 32)  # share of the frame that the object takes


def record_of(video, query, **changed):
    """A prediction with the object's own mask; frames 0 and 8 of the window 0..11 are kept, the others emptied."""
    indices = np.unique(PROTOCOL.sample(len(video.frame_paths)))
    values = dict(
        video_id=video.video_id, query_id=query.query_id, question=query.text, status="ok", fingerprint="f",
        num_clip_frames=len(video.frame_paths), listed_frames=indices.tolist(), frame_indices=indices.tolist(),
        frames=frames_digest(video, indices), size=[24, 32],
        masks=[encode_rle(video.read_object_mask(query, int(index))) for index in indices],
        loc_probs=[0.9, 0.8, 0.1, 0.2], answers=["It is [SEG]."],
    )  # fmt: skip
    return Record(**values | changed)


@pytest.fixture
def clip(corpus):
    """The first clip, its question about frames 0..11, and a record."""
    video = corpus[0]
    return video, video.questions[0], record_of(video, video.questions[0])


def picture_part(frame):
    """The 480 x 640 rows of the video frame between head and time bar: the head is white text on three lines."""
    colourful = np.flatnonzero((np.ptp(frame.astype(int), axis=2) > 25).mean(axis=1) > 0.6)
    top = colourful[0]
    return frame[top : top + 24 * SCALE]


def has(part, colour):
    return bool((part == colour).all(axis=-1).any())


def pinkness(part):
    """Share of the pixels that are closer to the prediction's colour than to the dark frame."""
    return (np.abs(part.astype(int) - PREDICTION_COLOUR).sum(axis=-1) < 200).mean()


def test_layers_per_frame(clip):
    frames = [picture_part(frame) for frame in overlay_frames(*clip, PROTOCOL)]
    assert len(frames) == 24
    pink = [pinkness(part) for part in frames]
    # Predicted and kept: filled. Between: an outline is held. From frame 15 on: emptied by [LOC].
    assert all(pink[index] > 0.6 * AREA for index in (0, 8)), pink
    assert all(0 < pink[index] < 0.6 * AREA for index in (1, 7, 9, 14)), pink
    assert all(pink[index] == 0 for index in range(15, 24)), pink
    assert all(has(frames[index], WHITE) for index in range(0, 12))
    assert all(has(frames[index], OUTSIDE_COLOUR) and not has(frames[index], WHITE) for index in range(15, 24))


def test_predicted_frames_only(clip):
    frames = list(overlay_frames(*clip, PROTOCOL, all_frames=False))
    assert len(frames) == 4 and len({frame.shape for frame in frames}) == 1
    assert all(side % 2 == 0 for side in frames[0].shape[:2])


def test_without_loc_nothing_is_emptied(clip):
    video, query, _ = clip
    record = record_of(video, query, loc_probs=None)
    frames = [picture_part(frame) for frame in overlay_frames(video, query, record, PROTOCOL, all_frames=False)]
    assert all(pinkness(frame) > 0.6 * AREA for frame in frames)
    without_seg = record_of(video, query, masks=[None] * 4)
    assert len(list(overlay_frames(video, query, without_seg, PROTOCOL))) == 24


def decoded(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, stream.codec_context.pix_fmt, float(stream.average_rate), frames


def test_the_file_plays_in_browsers(tmp_path):
    pytest.importorskip("av")
    shades = [np.full((48, 64, 3), value, dtype=np.uint8) for value in (20, 120, 220)]
    write_h264(tmp_path / "new" / "a.mp4", shades, fps=7.5)
    write_h264(tmp_path / "b.mp4", iter(shades), fps=7.5)
    codec, pixels, rate, frames = decoded(tmp_path / "new" / "a.mp4")
    assert (codec, pixels, rate) == ("h264", "yuv420p", 7.5)
    assert [abs(int(frame.mean()) - int(shade.mean())) <= 3 for frame, shade in zip(frames, shades)] == [True] * 3
    content = (tmp_path / "new" / "a.mp4").read_bytes()
    assert content == (tmp_path / "b.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # a browser can start before it has everything


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path):
    pytest.importorskip("av")
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    for frames in ([], [frame, frame[:24]]):
        with pytest.raises(ValueError, match="frame"):
            write_h264(tmp_path / "a.mp4", frames, 6)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(ValueError, match="frame"):
        write_h264(tmp_path / "a.mp4", [], 6)
    assert (tmp_path / "a.mp4").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_without_pyav_there_is_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ConfigError, match="pip install av"):
        write_h264(tmp_path / "a.mp4", [], 6)


@pytest.fixture
def flags(corpus, corpus_paths, tmp_path):
    """Flags of a scored run of the first clip, in which question 1 failed."""
    video = corpus[0]
    mark = open_run(tmp_path, {"weights": "w"})
    write_record(tmp_path, record_of(video, video.questions[0], fingerprint=mark))
    failed = record_of(
        video, video.questions[1], fingerprint=mark, status="failed", reason="no memory", masks=[], frame_indices=[],
        loc_probs=None,
    )  # fmt: skip
    write_record(tmp_path, failed)
    scores = score_corpus([video], tmp_path, PROTOCOL, mark)
    summary = summarise(scores, PROTOCOL, {**read_run(tmp_path), "selection": {}})
    write_results(tmp_path, tmp_path / "result.txt", scores, summary, PROTOCOL)
    meta_file, root = map(str, corpus_paths)
    return [
        "--output_dir", str(tmp_path), "--meta_file", meta_file, "--video_root", root, "--video", video.video_id,
        "--question",
    ]  # fmt: skip


def test_the_program(flags, tmp_path, capsys):
    assert overlay_video.main([*flags, "0", "--fps", "12"]) == 0
    path = tmp_path / "overlays" / "alpha_0000_0004" / "0.mp4"
    assert str(path) in capsys.readouterr().out
    assert decoded(path)[2] == 12 and len(decoded(path)[3]) == 24
    assert overlay_video.main([*flags, "0", "--no-all_frames", "--out", str(tmp_path / "few.mp4")]) == 0
    assert len(decoded(tmp_path / "few.mp4")[3]) == 4
    assert overlay_video.main([*flags, "0", "--sheet"]) == 0
    assert Image.open(io.BytesIO(path.with_suffix(".png").read_bytes())).width > 600


def test_mistakes_are_named(flags, capsys):
    for wrong, message in (
        (["1"], "the question failed: no memory"),
        (["7"], "alpha_0000_0004 has only 0, 1"),
        (["0", "--fps", "0"], "--fps: 0.0"),
        (["0", "--video", "gamma"], "--video gamma: not in"),
    ):
        assert overlay_video.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err
