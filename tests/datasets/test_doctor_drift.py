"""Masks that run ahead of or behind their frames are found; those that fit, or tell nothing, are left in peace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.drift_trial import main as trial
from benchmarks.drift_trial import wobble
from datasets.doctor import drift
from datasets.doctor.drift import DriftProbe, outline
from datasets.doctor.examination import Options
from datasets.doctor.run import examine_corpus
from datasets.synthetic import CorpusPlan, WorldSettings, write_corpora
from utils.masks import decode_rle, read_id_mask
from utils.video import read_frame

SETTINGS = dict(height=96, width=128, num_frames=36)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("drift")
    settings = WorldSettings(**SETTINGS)
    wanted = (("groundmore", 5), ("mevis", 2))
    write_corpora(root, [CorpusPlan(name, "train", 7, count, settings) for name, count in wanted])
    return root


@pytest.fixture(scope="module")
def clips(corpora):
    """(frames, masks) of each clip."""
    loaded = []
    for folder in sorted((corpora / "GroundMoRe" / "groundmore_videos").iterdir()):
        frames = sorted((folder / "images").iterdir())
        masks = [folder / "masks" / f"{path.stem}.png" for path in frames]
        loaded.append(([read_frame(path) for path in frames], [read_id_mask(p) if p.exists() else None for p in masks]))
    return loaded


def judge(frames, masks, offset=0, every=1):
    """Verdict when the mask filed under frame t is that of frame t + offset, and every n-th has one at all."""
    probe = DriftProbe()
    for index, frame in enumerate(frames):
        there = 0 <= index + offset < len(masks) and index % every == 0
        probe.push(frame, masks[index + offset] if there else None)
    return probe.verdict()


@pytest.mark.parametrize("offset", [-3, -1, 1, 2])
def test_shifted_masks_are_found_with_their_shift(clips, offset):
    """The mask that fits frame t is filed under t - offset."""
    verdicts = [judge(*clip, offset) for clip in clips]
    assert all(verdict.status != "aligned" for verdict in verdicts)
    suspects = [verdict for verdict in verdicts if verdict.status == "suspect"]
    assert len(suspects) >= 4 and {verdict.shift for verdict in suspects} == {-offset}


def test_masks_in_place_raise_no_alarm(clips):
    verdicts = [judge(*clip) for clip in clips]
    assert all(verdict.status != "suspect" and verdict.shift == 0 for verdict in verdicts)
    assert sum(verdict.status == "aligned" for verdict in verdicts) >= 4


def test_imprecise_masks_raise_no_alarm(clips):
    rng = np.random.default_rng(0)
    for frames, masks in clips:
        moved = [np.roll(m, rng.integers(-2, 3, 2), (0, 1)) if m is not None else None for m in masks]
        assert judge(frames, moved).status != "suspect"


def test_masks_on_every_third_frame(clips):
    """No two neighbouring masks: edges are the only clue."""
    verdicts = [judge(*clip, offset=2, every=3) for clip in clips]
    assert all(v.motion is None for v in verdicts) and any(v.status == "suspect" for v in verdicts)
    assert all(v.shift in (0, -2) for v in verdicts)


def curves(shift, height=0.5, count=12):
    """Rows of a clue that peaks at a shift on every frame, with a little noise."""
    rng = np.random.default_rng(0)
    rows = 1 + 0.05 * rng.random((count, 2 * drift.MAX_SHIFT + 1))
    rows[:, shift + drift.MAX_SHIFT] += height
    return list(enumerate(rows))


@pytest.mark.parametrize(
    ("edges", "motion", "verdict"),
    [
        (curves(2), curves(2), ("suspect", 2)),
        (curves(0), curves(0), ("aligned", 0)),
        (curves(2), curves(1), ("undecided", 0)),
        (curves(2), curves(0), ("undecided", 0)),
        (curves(-3), [], ("suspect", -3)),
        (curves(-3), curves(-3, count=7), ("suspect", -3)),  # too few pairs to speak
        (curves(2), curves(2, height=0.02), ("undecided", 0)),
        (curves(2, height=0.03), curves(2), ("undecided", 0)),
        (curves(2, count=7), curves(2), ("undecided", 0)),
    ],
)
def test_both_clues_must_agree(edges, motion, verdict):
    judged = drift.judge(edges, motion)
    assert (judged.status, judged.shift) == verdict


def test_nothing_is_concluded_from_nothing(clips):
    frames, masks = clips[0]
    first = next(mask for mask in masks if mask is not None)
    assert judge(frames[:1] * 30, [first] * 30).status == "undecided"  # nothing moves
    assert judge(frames, [None] * len(frames)).edges is None
    assert judge(frames[:10], masks[:10], 1).status == "undecided"  # too short
    noise = np.random.default_rng(0)
    random = [noise.integers(0, 256, frames[0].shape, dtype=np.uint8) for _ in frames]
    assert judge(random, masks, 2).status == "undecided"  # frames of another video altogether


def test_unreadable_frames_and_sizes_that_differ_are_passed_over(clips):
    frames, masks = clips[0]
    damaged = [None if k in (5, 20) else frame for k, frame in enumerate(frames)]
    damaged[12] = cv2.resize(frames[12], (64, 48))
    assert judge(damaged, masks, 1).shift in (0, -1)
    assert judge(damaged, masks, 0).status != "suspect"


def test_outline_is_both_sides_of_every_border():
    ids = np.zeros((5, 6), dtype=np.uint8)
    ids[2, 2:4] = 1
    expected = np.zeros((5, 6), dtype=bool)
    expected[2, 1:5] = expected[1, 2:4] = expected[3, 2:4] = True
    assert (outline(ids) == expected).all()


def test_a_shifted_clip_in_a_corpus(corpora, tmp_path):
    root = Path(shutil.copytree(corpora / "GroundMoRe", tmp_path / "GroundMoRe"))
    video = sorted(path.name for path in (root / "groundmore_videos").iterdir())[1]
    masks = sorted((root / "groundmore_videos" / video / "masks").iterdir())
    data = [path.read_bytes() for path in masks]
    for path, content in zip(masks[2:], data):
        path.write_bytes(content)
    examined = examine_corpus("groundmore", root, Options())
    (found,) = examined.findings.of("drift-suspect")
    assert found.video == video and "masks come 2 frames late" in found.message
    assert examined.exit_code(strict=False) == 0 and examined.exit_code(strict=True) == 1
    assert {row["video"]: row["shift"] for row in examined.drifts if row["shift"]} == {video: 2}
    for picture in found.pictures:  # the picture beside it shows the mask that belongs to the frame
        number = [path.stem for path in masks].index(picture.mask.stem)
        assert picture.frame.stem == picture.mask.stem and picture.fitting == masks[number + 2]


def test_shifted_run_length_masks(corpora, tmp_path):
    root = Path(shutil.copytree(corpora / "MeViSv2", tmp_path / "MeViSv2"))
    path = root / "train" / "mask_dict.json"
    tubes = json.loads(path.read_text())
    path.write_text(json.dumps({number: [*tube[1:], tube[-1]] for number, tube in tubes.items()}))
    examined = examine_corpus("mevis", root, Options())
    found = examined.findings.of("drift-suspect")
    assert found and all("masks come 1 frame early" in finding.message for finding in found)
    assert all(decode_rle(next(r for r in p.fitting if r)).any() for f in found for p in f.pictures)


def test_a_real_clip_shifted(shared_data):
    folder = shared_data / "groundmore_real_mini" / "groundmore_videos" / "cups_0000_0010"
    frames = [read_frame(path) for path in sorted((folder / "images").iterdir())][:36]
    masks = [read_id_mask(path) for path in sorted((folder / "masks").iterdir())][:36]
    assert judge(frames, masks).status == "aligned"
    for offset in (1, -2):
        verdict = judge(frames, masks, offset)
        assert (verdict.status, verdict.shift) == ("suspect", -offset)


def test_the_trial_counts_what_is_found(corpora, capsys):
    assert trial(["groundmore", str(corpora), "--limit", "2", "--wobble", "0"]) == 0
    head, _, row = capsys.readouterr().out.strip().splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | ")))
    assert cells["masks"] == "exact" and cells["in place"] == "0 false alarms in 2" and cells["2 off"] == "4/4"
    assert trial(["mevis", "nowhere"]) == 2


def test_wobbling_masks_move_and_keep_their_ids():
    ids = np.zeros((30, 30), dtype=np.uint8)
    ids[10:20, 12:22] = 7
    wobbled = wobble([ids, None] * 20, 2, np.random.default_rng(1))
    assert wobbled[1] is None and set(np.unique(np.stack(wobbled[::2]))) == {0, 7}
    areas = [int((mask > 0).sum()) for mask in wobbled[::2]]
    assert min(areas) == 6 * 6 and max(areas) == 14 * 14
    assert wobble([ids], 0, np.random.default_rng(1))[0] is ids
