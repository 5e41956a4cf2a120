"""The doctor on GroundMoRe: each damage is found, named and placed; a healthy corpus is left in peace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.groundmore import GroundMoRe
from datasets.doctor.__main__ import main
from datasets.doctor.examination import Options
from datasets.doctor.findings import KINDS
from datasets.doctor.run import examine_corpus
from datasets.synthetic import CorpusPlan, WorldSettings, write_corpora
from tests.targets import read_everything
from utils.errors import DataError
from utils.masks import read_id_mask, write_id_mask


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Two clips of 24 frames, 48 x 64, and their questions."""
    root = tmp_path_factory.mktemp("groundmore")
    settings = WorldSettings(height=48, width=64, num_frames=24)
    write_corpora(root, [CorpusPlan("groundmore", "train", 5, 2, settings)])
    return root / "GroundMoRe"


@pytest.fixture
def corpus(healthy, tmp_path):
    """A copy to damage."""
    return Damaged(Path(shutil.copytree(healthy, tmp_path / "GroundMoRe")))


class Damaged:
    """A corpus, and its first video's handles."""

    def __init__(self, root: Path):
        self.root, self.meta = root, root / "trainval_v2.json"
        self.video = next(iter(self.read()["videos"]))
        self.images, self.masks = (root / "groundmore_videos" / self.video / name for name in ("images", "masks"))

    def read(self):
        return json.loads(self.meta.read_text())

    def edit(self, change):
        """Apply ``change(questions of the first video, whole annotation)`` and write it back."""
        value = self.read()
        change(value["videos"][self.video]["questions"], value)
        self.meta.write_text(json.dumps(value))

    def frame(self, index):
        return sorted(self.images.iterdir())[index]

    def mask(self, index):
        return sorted(self.masks.iterdir())[index]

    def examine(self, **options):
        return examine_corpus("groundmore", self.root, Options(**options))

    def refused(self):
        """Whether the reader refuses it, on opening or in its check of every mask."""
        try:
            read_everything(GroundMoRe(self.meta, self.root / "groundmore_videos"))
        except DataError:
            return True
        return False


def only(examined, kind):
    """The findings of one kind."""
    found = examined.findings.of(kind)
    assert found, f"no {kind}, but {dict(examined.findings.totals)}"
    return found


def test_a_healthy_corpus_is_clean(healthy, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["groundmore", str(healthy), "--workers", "1", "--strict", "--sheet", str(sheet)]) == 0
    told = capsys.readouterr().out
    assert "Found: 0 errors, 0 warnings, 0 notes." in told and "2 videos" in told
    assert not sheet.exists()
    videos = json.loads((healthy / "trainval_v2.json").read_text())["videos"].values()
    assert f"{sum(len(video['questions']) for video in videos)} questions" in told


def truncate(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def save(path, mode=None, size=None, format=None):
    """Write an image again in another mode, size or format, under its old name."""
    with Image.open(path) as image:
        changed = image.convert(mode or image.mode)
    (changed.resize(size) if size else changed).save(path, format=format)


def set_first(**values):
    """Change the first question's fields; None removes one."""

    def damage(corpus):
        def change(questions, _):
            entry = next(iter(questions.values()))
            for key, value in values.items():
                entry.pop(key) if value is None else entry.update({key: value})

        corpus.edit(change)

    return damage


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("entry-malformed", dict(question=None)),
        ("entry-malformed", dict(question=7)),
        ("entry-malformed", dict(q_type=None)),
        ("answer-missing", dict(answer=None)),
        ("answer-missing", dict(answer=" ")),
        ("unknown-type", dict(q_type="Temporal")),
        ("bad-object-id", dict(obj_id="one")),
        ("bad-object-id", dict(obj_id="1, 300")),
        ("object-absent", dict(obj_id="250")),
        ("bad-time", dict(action_start="soon")),
        ("bad-time", dict(action_end=None)),
        ("window-empty", dict(action_start="13:00", action_end="12:00")),
        ("window-outside", dict(action_start="58:00", action_end="58:02")),
    ],
)
def test_mistakes_in_a_question(corpus, kind, values):
    set_first(**values)(corpus)
    examined = corpus.examine()
    found = only(examined, kind)[0]
    assert (found.split, found.video, found.query) == ("trainval_v2", corpus.video, "0")
    assert KINDS[kind].severity == "error" and examined.exit_code(strict=False) == 1
    assert examined.findings.count("error") == 1, list(examined.findings)
    assert corpus.refused()


FILE_DAMAGES = {  # name -> (kind, file, damage, whether the reader's check refuses it: it does not decode frames)
    "empty frame": ("frame-unreadable", lambda c: c.frame(3), lambda path: path.write_bytes(b""), True),
    "no image": ("frame-unreadable", lambda c: c.frame(3), lambda path: path.write_text("<html>"), True),
    "truncated frame": ("frame-unreadable", lambda c: c.frame(3), truncate, False),
    "small frame": ("frame-size-mixed", lambda c: c.frame(4), lambda path: save(path, size=(32, 24)), True),
    "empty mask": ("mask-unreadable", lambda c: c.mask(2), lambda path: path.write_bytes(b""), True),
    "truncated mask": ("mask-unreadable", lambda c: c.mask(2), truncate, True),
    "JPEG mask": ("mask-unreadable", lambda c: c.mask(2), lambda path: save(path, mode="L", format="JPEG"), True),
    "colours": ("mask-mode", lambda c: c.mask(2), lambda path: save(path, mode="RGB"), True),
    "small mask": ("mask-size", lambda c: c.mask(2), lambda path: write_id_mask(path, read_id_mask(path)[:-1]), True),
}


@pytest.mark.parametrize("name", FILE_DAMAGES)
def test_damaged_files(corpus, name):
    kind, choose, damage, refused = FILE_DAMAGES[name]
    path = choose(corpus)
    damage(path)
    found = only(corpus.examine(), kind)[0]
    assert found.video == corpus.video and found.files == (str(path),) and found.count == 1
    assert KINDS[kind].severity == "error" and corpus.refused() == refused


def test_every_bad_file_of_a_clip_is_counted(corpus):
    for index in range(7):
        corpus.frame(index).write_bytes(b"")
    found = only(corpus.examine(), "frame-unreadable")
    assert len(found) == 1 and found[0].count == 7 and "6 more" in found[0].message
    assert found[0].files == tuple(str(corpus.frame(index)) for index in range(5))


def test_fast_reads_headers_only(corpus):
    corpus.frame(1).write_bytes(b"")
    truncate(corpus.frame(3), keep=0.9)
    set_first(obj_id="250")(corpus)
    Image.open(corpus.mask(2)).convert("RGB").save(corpus.mask(2))
    examined = corpus.examine(fast=True)
    assert only(examined, "frame-unreadable")[0].count == 1
    only(examined, "mask-mode")
    assert not examined.findings.of("object-absent") and not examined.drifts


def rename(corpus, folder, new_name):
    for path in sorted(folder.iterdir()):
        path.rename(folder / (new_name(int(path.stem.split("_")[-1])) + path.suffix))


def test_names_of_frames(corpus):
    rename(corpus, corpus.images, "frame_{:06d}".format)
    rename(corpus, corpus.masks, "{:07d}".format)
    examined = corpus.examine()
    assert only(examined, "naming-differs")[0].video == corpus.video and not examined.findings.count("error")
    corpus.frame(5).rename(corpus.images / "0000005.jpg")
    assert only(corpus.examine(), "naming-mixed")[0].count == 1
    (corpus.images / "0000009.jpg").write_bytes((corpus.images / "frame_000009.jpg").read_bytes())
    assert "are both frame 9" in only(corpus.examine(), "frame-number-repeated")[0].message
    assert corpus.refused()


def test_a_hole_in_frame_numbers(corpus):
    removed = corpus.frame(9)
    removed.unlink()
    examined = corpus.examine()
    found = only(examined, "frame-number-hole")[0]
    assert "frame_000008.jpg is followed by frame_000010.jpg" in found.message and found.count == 1 and corpus.refused()
    assert only(examined, "mask-orphan")[0].files[0].endswith(f"{removed.stem}.png")


def test_frames_without_number_and_with_unknown_names(corpus):
    corpus.frame(23).rename(corpus.images / "last.jpg")
    assert only(corpus.examine(), "frame-without-number")[0].files[0].endswith("last.jpg")
    rename_all = [path for path in sorted(corpus.images.iterdir()) if path.stem != "last"]
    for path in rename_all:
        path.rename(path.with_name(f"shot-{path.stem}.jpg"))
    (corpus.images / "last.jpg").unlink()
    only(corpus.examine(), "naming-unknown")


def test_folders_and_masks(corpus):
    other = list(corpus.read()["videos"])[1]
    (corpus.images.parent.parent / other / "images").rename(corpus.images.parent.parent / other / "pictures")
    shutil.rmtree(corpus.masks)
    shutil.copytree(corpus.images.parent, corpus.images.parent.parent / "extra_0000_0004")
    (corpus.images / "Thumbs.db").write_text("x")
    examined = corpus.examine()
    assert only(examined, "video-without-folder")[0].video == other
    assert only(examined, "mask-missing")[0].video == corpus.video
    assert only(examined, "folder-without-annotation")[0].video == "extra_0000_0004"
    assert only(examined, "stray-file")[0].files == (str(corpus.images / "Thumbs.db"),)
    assert corpus.refused()


def test_clip_times(corpus):
    def change(_, value):
        videos = value["videos"]
        videos["cups"] = videos.pop(corpus.video)

    corpus.edit(change)
    corpus.images.parent.rename(corpus.images.parent.parent / "cups")
    assert only(corpus.examine(), "bad-video-id")[0].video == "cups" and corpus.refused()


def test_a_clip_longer_than_its_id_says(corpus):
    last = max(int(path.stem.split("_")[-1]) for path in corpus.images.iterdir())
    first = corpus.frame(0)
    for number in range(last + 1, last + 9):
        name = first.stem.replace(first.stem[-5:], f"{number:05d}")
        (corpus.images / f"{name}.jpg").write_bytes(first.read_bytes())
    found = only(corpus.examine(), "clip-length")[0]
    assert found.video == corpus.video and "32 frames" in found.message and found.severity == "warning"


def test_a_window_beyond_the_clip(corpus):
    start = int(corpus.video.split("_")[-2][:2]) * 60 + int(corpus.video.split("_")[-2][2:])
    late = f"{(start + 30) // 60:02d}:{(start + 30) % 60:02d}"
    set_first(action_end=late)(corpus)
    found = only(corpus.examine(), "window-clipped")[0]
    assert found.query == "0" and "frames 0 to 23" in found.message


def test_masks_and_windows(corpus):
    question = next(iter(corpus.read()["videos"][corpus.video]["questions"].values()))
    reader = GroundMoRe(corpus.meta, corpus.root / "groundmore_videos")
    first, last = reader[0].questions[0].window
    hidden = int(question["obj_id"].split(",")[0])
    for index in range(first, last + 1):  # the answer vanishes from its window
        ids = read_id_mask(corpus.mask(index)).copy()
        ids[ids == hidden] = 0
        ids[0, 0] = 200
        write_id_mask(corpus.mask(index), ids)
    if "," not in question["obj_id"]:
        assert only(corpus.examine(), "object-outside-window")[0].query == "0"
    masks = [corpus.mask(index) for index in range(first, last + 1)]
    masks[0].unlink()
    assert only(corpus.examine(), "window-mask-gaps")[0].severity == "note"
    for path in masks[1:]:
        path.unlink()
    assert only(corpus.examine(), "window-without-mask")[0].query == "0"


def test_smoothed_masks(corpus):
    rng = np.random.default_rng(0)
    write_id_mask(corpus.mask(0), rng.integers(0, 256, (48, 64)))
    assert only(corpus.examine(), "mask-many-ids")[0].video == corpus.video
    image = Image.open(corpus.mask(1))
    Image.fromarray(np.array(image)).save(corpus.mask(1))
    assert "mode L" in only(corpus.examine(), "mask-mode-mixed")[0].message


def test_questions_asked_twice(corpus):
    def change(questions, _):
        first = questions["0"]
        questions["same"] = {**first, "question": f" {first['question'].upper()} "}

    corpus.edit(change)
    found = only(corpus.examine(), "duplicate-text")[0]
    assert (found.query, found.count, found.severity) == ("same", 2, "note")

    corpus.edit(lambda questions, _: questions["same"].update(answer="something else"))
    examined = corpus.examine()
    assert only(examined, "contradicting-text")[0].query == "same" and not examined.findings.of("duplicate-text")


def test_keys_given_twice(corpus):
    text = corpus.meta.read_text()
    corpus.meta.write_text(text.replace('"1": {', '"0": {', 1))
    found = only(corpus.examine(), "duplicate-key")[0]
    assert found.files == (str(corpus.meta),) and "lost: '0'" in found.message


def test_annotation_files(corpus):
    (corpus.root / "notes.json").write_text("[1]")
    shutil.copy(corpus.meta, corpus.root / "groundmore_test.json")
    examined = corpus.examine()
    only(examined, "other-json")
    found = only(examined, "video-in-several-files")[0]
    assert found.count == 2 and "trainval_v2.json" in found.message
    assert set(examined.counts) == {"trainval_v2", "groundmore_test"}
    truncate(corpus.root / "groundmore_test.json")
    found = only(corpus.examine(), "annotation-unreadable")[0]
    assert found.split == "groundmore_test" and "not valid JSON" in found.message
    assert set(corpus.examine(splits=("trainval_v2",)).counts) == {"trainval_v2"}


def test_entries_of_another_type(corpus):
    def change(questions, value):
        questions["9"] = "why?"
        value["videos"]["other_0000_0004"] = ["?"]

    corpus.edit(change)
    examined = corpus.examine()
    assert only(examined, "entry-malformed")[0].query == "9"
    assert only(examined, "video-malformed")[0].video == "other_0000_0004" and corpus.refused()


def test_missing_parts(corpus):
    (corpus.root / "groundmore_videos").rename(corpus.root / "clips")
    assert only(corpus.examine(), "layout-missing")[0].files[0].endswith("groundmore_videos")
    (corpus.root / "clips").rename(corpus.root / "annotations")  # as in the published archive
    assert not corpus.examine().findings.totals
    corpus.meta.unlink()
    assert "no annotation file" in only(corpus.examine(), "layout-missing")[0].message


def test_a_real_clip(shared_data):
    folder = shared_data / "groundmore_real_mini"
    examined = examine_corpus("groundmore", folder, Options())
    assert not examined.findings.totals
    assert examined.counts["groundmore_test"]["frames"] == 60
    assert [row["status"] for row in examined.drifts] == ["aligned"]
