"""The doctor on Refer-YouTube-VOS and MeViS, whose annotations list frames by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.corpora.mevis import MeViS
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos
from datasets.doctor.examination import Options
from datasets.doctor.findings import KINDS
from datasets.doctor.run import examine_corpus
from datasets.synthetic import CorpusPlan, WorldSettings, write_corpora
from tests.targets import read_everything
from utils.errors import DataError
from utils.masks import decode_rle, encode_rle, read_id_mask, write_id_mask


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Two videos of 24 frames, 48 x 64, in each layout."""
    root = tmp_path_factory.mktemp("listed")
    settings = WorldSettings(height=48, width=64, num_frames=24)
    write_corpora(root, [CorpusPlan(name, "train", 5, 2, settings) for name in ("refytvos", "mevis")])
    return root


class Damaged:
    """A corpus to damage, and its first video's handles."""

    def __init__(self, root: Path, corpus: str, meta: Path, images: Path, reader):
        self.root, self.corpus, self.meta, self.reader = root, corpus, meta, reader
        self.video = next(iter(json.loads(meta.read_text())["videos"]))
        self.images = images / self.video

    def edit(self, change, path=None):
        """Apply ``change(entry of the first video, whole file)`` and write it back."""
        path = path or self.meta
        value = json.loads(path.read_text())
        change(value["videos"][self.video] if "videos" in value else value, value)
        path.write_text(json.dumps(value))

    def frame(self, index):
        return sorted(self.images.iterdir())[index]

    def examine(self, **options):
        return examine_corpus(self.corpus, self.root, Options(**options))

    def refused(self):
        try:
            read_everything(self.reader(self.root))
        except DataError:
            return True
        return False

    def only(self, kind, **options):
        examined = self.examine(**options)
        found = examined.findings.of(kind)
        assert found, f"no {kind}, but {dict(examined.findings.totals)}"
        if KINDS[kind].severity == "error":
            assert examined.exit_code(strict=False) == 1
        return found


@pytest.fixture
def ytvos(healthy, tmp_path):
    root = Path(shutil.copytree(healthy / "refytvos", tmp_path / "refytvos"))
    meta = root / "meta_expressions" / "train" / "meta_expressions.json"
    corpus = Damaged(root, "refer_youtube_vos", meta, root / "train" / "JPEGImages", ReferYoutubeVos)
    corpus.masks = root / "train" / "Annotations" / corpus.video
    return corpus


@pytest.fixture
def mevis(healthy, tmp_path):
    root = Path(shutil.copytree(healthy / "MeViSv2", tmp_path / "MeViSv2"))
    corpus = Damaged(root, "mevis", root / "train" / "meta_expressions.json", root / "train" / "JPEGImages", MeViS)
    corpus.tubes = root / "train" / "mask_dict.json"
    return corpus


@pytest.fixture(params=["ytvos", "mevis"])
def either(request):
    return request.getfixturevalue(request.param)


def test_healthy_corpora_are_clean(healthy):
    for corpus in ("refer_youtube_vos", "mevis"):
        examined = examine_corpus(corpus, healthy, Options())  # the folder of all corpora is accepted
        assert not examined.findings.totals and examined.exit_code(strict=True) == 0
        counts = examined.counts["train"]
        assert counts["videos"] == 2 and counts["frames"] == 48 and counts["expressions"] > 4


def test_frames_that_are_missing_or_unlisted(either):
    removed = either.frame(4)
    removed.unlink()
    found = either.only("frame-missing")[0]
    assert found.video == either.video and found.files == (str(removed),) and either.refused()
    (either.images / "99990.jpg").write_bytes(either.frame(0).read_bytes())
    assert either.only("frame-unlisted")[0].files[0].endswith("99990.jpg")
    shutil.rmtree(either.images)
    assert either.only("video-without-folder")[0].video == either.video


def test_unreadable_frames(either):
    either.frame(2).write_bytes(b"")
    data = either.frame(3).read_bytes()
    either.frame(3).write_bytes(data[: len(data) // 2])
    found = either.only("frame-unreadable")[0]
    assert found.count == 2 and found.files == (str(either.frame(2)), str(either.frame(3)))
    assert either.only("frame-unreadable", fast=True)[0].count == 1


def test_folders_without_annotation(either):
    shutil.copytree(either.images, either.images.with_name("stranger"))
    assert either.only("folder-without-annotation")[0].video == "stranger"
    assert either.only("folder-without-annotation", videos=("stranger",))[0].video == "stranger"


def test_expressions(either):
    def change(video, _):
        first = video["expressions"]["0"]
        others = [e for e in video["expressions"].values() if e["obj_id"] != first["obj_id"] and e["obj_id"]]
        video["expressions"] |= {
            "again": {**first, "exp": first["exp"].upper()},
            "void": {**first, "exp": ""},
            "text": "the red car",
            "ids": {"exp": "the red car", "obj_id": "x", "anno_id": "x"},
            "other": {**others[0], "exp": "one text"},
            "another": {**first, "exp": "one text"},
        }

    either.edit(change)
    examined = either.examine()
    placed = {(finding.kind, finding.query) for finding in examined.findings}
    assert {
        ("duplicate-text", "again"),
        ("entry-malformed", "void"),
        ("entry-malformed", "text"),
        ("bad-object-id", "ids"),
        ("contradicting-text", "another"),
    } <= placed
    assert either.refused()


def test_lists_of_frames(either):
    either.edit(lambda video, _: video["frames"].append(video["frames"][0]))
    assert "names a frame twice" in either.only("video-malformed")[0].message and either.refused()

    def thin_out(video, _):
        video["frames"].pop()
        del video["frames"][7]

    either.edit(thin_out)
    assert either.only("frame-step-irregular")[0].severity == "note"


def test_parts_that_are_missing(either):
    either.images.parent.rename(either.images.parent.with_name("Pictures"))
    assert either.only("layout-missing")[0].files == (str(either.images.parent),)
    either.meta.write_text("{")
    assert either.only("annotation-unreadable")[0].files == (str(either.meta),)
    either.meta.unlink()
    assert {str(either.meta), str(either.images.parent)} == {f.files[0] for f in either.only("layout-missing")}


def test_a_split_published_without_masks(either):
    """Its expressions name no object; frames and texts are examined all the same."""

    def strip(_, value):
        for video in value["videos"].values():
            video["expressions"] = {key: {"exp": entry["exp"]} for key, entry in video["expressions"].items()}

    either.edit(strip)
    shutil.copytree(either.root / "train", either.root / "valid")
    if either.corpus == "refer_youtube_vos":
        shutil.copytree(either.meta.parent, either.meta.parent.with_name("valid"))
        for path in (either.root / "valid" / "Annotations" / either.video).glob("*0[1-9]*"):
            path.unlink()  # masks of first frames belong to another task
    else:
        (either.root / "valid" / "mask_dict.json").unlink()
    examined = either.examine(splits=("valid",))
    assert not examined.findings.count("error") and not examined.findings.count("warning")
    assert examined.counts["valid"]["frames"] == 48
    (either.root / "valid" / "JPEGImages" / either.video / either.frame(1).name).write_bytes(b"")
    assert either.only("frame-unreadable", splits=("valid",))[0].split == "valid"


def test_id_masks_of_refer_youtube_vos(ytvos):
    mask = sorted(ytvos.masks.iterdir())
    write_id_mask(mask[0], read_id_mask(mask[0])[:, :-2])
    assert ytvos.only("mask-size")[0].files == (str(mask[0]),) and ytvos.refused()
    Image.open(mask[0]).convert("RGBA").save(mask[0])
    assert ytvos.only("mask-mode")[0].files == (str(mask[0]),) and ytvos.refused()
    mask[0].write_bytes(mask[1].read_bytes()[:100])
    assert ytvos.only("mask-unreadable")[0].files == (str(mask[0]),) and ytvos.refused()
    mask[0].rename(mask[0].with_stem("77777"))
    assert ytvos.only("mask-missing")[0].files == (str(mask[0]),) and ytvos.refused()
    assert ytvos.only("mask-orphan")[0].files[0].endswith("77777.png")
    shutil.copytree(ytvos.masks, ytvos.masks.with_name("ghost"))
    assert "ghost" in {finding.video for finding in ytvos.only("mask-orphan")}


def test_ids_of_refer_youtube_vos(ytvos):
    def change(video, _):
        video["expressions"]["0"]["obj_id"] = "77"
        video["expressions"]["1"]["obj_id"] = 1

    ytvos.edit(change)
    absent = ytvos.only("object-absent")[0]
    assert absent.query == "0" and "object 77" in absent.message and ytvos.refused()
    assert ytvos.only("bad-object-id")[0].query == "1"


def test_categories_of_refer_youtube_vos(ytvos):
    path = ytvos.root / "train" / "meta.json"
    path.write_text(json.dumps({"videos": {ytvos.video: {"objects": {"1": {}}}}}))
    assert ytvos.only("annotation-unreadable")[0].files == (str(path),) and ytvos.refused()


def first_tube(mevis):
    """A number of an annotation of the first video and a frame on which it has a mask."""
    entry = json.loads(mevis.meta.read_text())["videos"][mevis.video]
    number = next(str(e["anno_id"][0]) for e in entry["expressions"].values() if e["anno_id"])
    tube = json.loads(mevis.tubes.read_text())[number]
    return number, next(index for index, rle in enumerate(tube) if rle is not None)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("tube-missing", lambda tubes, n, t: tubes.pop(n)),
        ("tube-length", lambda tubes, n, t: tubes[n].pop()),
        ("tube-length", lambda tubes, n, t: tubes.update({n: "none"})),
        ("object-absent", lambda tubes, n, t: tubes.update({n: [None] * 24})),
        ("rle-damaged", lambda tubes, n, t: tubes[n][t].update(counts=tubes[n][t]["counts"][:-2])),
        ("rle-damaged", lambda tubes, n, t: tubes[n][t].pop("size")),
        ("mask-size", lambda tubes, n, t: tubes[n].__setitem__(t, encode_rle(decode_rle(tubes[n][t])[:-3]))),
    ],
)
def test_run_length_masks_of_mevis(mevis, kind, damage):
    number, index = first_tube(mevis)
    mevis.edit(lambda tubes, _: damage(tubes, number, index), mevis.tubes)
    found = mevis.only(kind)
    assert {finding.video for finding in found} == {mevis.video} and mevis.refused()
    if kind in ("rle-damaged", "mask-size"):
        assert found[0].count == 1 and found[0].files == (str(mevis.frame(index)),)
    else:
        assert f"annotation {number} " in found[0].message and len(found) == 1


def test_annotations_of_mevis(mevis):
    number, _ = first_tube(mevis)

    def change(video, value):
        other = next(v for key, v in value["videos"].items() if key != mevis.video)
        other["expressions"]["borrowed"] = {"exp": "one that is elsewhere", "obj_id": [0, 1], "anno_id": [int(number)]}

    mevis.edit(change)
    mevis.edit(lambda tubes, _: tubes.update({"999": [None]}), mevis.tubes)
    assert "annotation " + number in mevis.only("tube-shared")[0].message
    assert mevis.only("ids-not-parallel")[0].query == "borrowed"
    assert "999" in mevis.only("tube-unused")[0].message


def test_masks_file_of_mevis(mevis):
    mevis.tubes.write_text("[]")
    assert mevis.only("annotation-unreadable")[0].files == (str(mevis.tubes),)
    mevis.tubes.unlink()
    assert mevis.only("layout-missing")[0].files == (str(mevis.tubes),)


def test_missing_frames_keep_the_other_masks_in_place(mevis):
    """Masks go by position in the list; with a frame gone, the ones after it must not move."""
    mevis.frame(5).unlink()
    examined = mevis.examine()
    assert [finding.kind for finding in examined.findings] == ["frame-missing"]
    assert all(row["status"] != "suspect" for row in examined.drifts)
    assert np.isfinite([row["edges"]["gain"] for row in examined.drifts if row["edges"]]).all()
