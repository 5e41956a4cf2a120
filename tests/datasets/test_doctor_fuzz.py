"""Annotations with any value anywhere: the doctor goes through, and blames what the readers refuse."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from datasets.corpora.groundmore import GroundMoRe
from datasets.corpora.mevis import MeViS
from datasets.corpora.refer_youtube_vos import ReferYoutubeVos
from datasets.doctor.examination import Options
from datasets.doctor.run import examine_corpus
from datasets.synthetic import CorpusPlan, WorldSettings, write_corpora
from utils.errors import DataError

ODD = (None, True, 0, -1, 7, 1.5, "", " ", "x", "1, 2", "99:99", [], ["x"], [1], [[]], {}, {"x": 1}, {"0": {}})
"""What a node of an annotation is replaced by."""

CORPORA = {
    "groundmore": (
        "GroundMoRe",
        ["trainval_v2.json"],
        lambda root: GroundMoRe(root / "trainval_v2.json", root / "groundmore_videos"),
    ),
    "refer_youtube_vos": (
        "refytvos",
        ["meta_expressions/train/meta_expressions.json", "train/meta.json"],
        ReferYoutubeVos,
    ),
    "mevis": ("MeViSv2", ["train/meta_expressions.json", "train/mask_dict.json"], MeViS),
}
"""Corpus -> its folder, its annotation files, its reader."""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    settings = WorldSettings(height=32, width=32, num_frames=24)
    write_corpora(root, [CorpusPlan(name, "train", 5, 1, settings) for name in ("groundmore", "refytvos", "mevis")])
    return root


def nodes(value, path=()):
    """Paths to every node below the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from nodes(child, (*path, key))


def replaced(value, path, new):
    """A copy of a JSON value with one node replaced."""
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return copy


@pytest.mark.parametrize("corpus", CORPORA)
def test_any_value_anywhere(healthy, tmp_path, corpus):
    folder, names, reader = CORPORA[corpus]
    root = shutil.copytree(healthy / folder, tmp_path / folder)
    dice = random.Random(corpus)
    refusals = 0
    for name in names:
        path = root / name
        value = json.loads(path.read_text())
        by_depth: dict[int, list] = {}
        for place in nodes(value):
            by_depth.setdefault(len(place), []).append(place)
        for _ in range(40 // len(names)):
            place = dice.choice(by_depth[dice.choice(list(by_depth))])
            odd = dice.choice(ODD)
            path.write_text(json.dumps(replaced(value, place, odd)))
            findings = examine_corpus(corpus, root, Options(fast=True)).findings
            context = f"{name} {place} = {odd!r}: {list(findings)}"
            assert not findings.of("examination-failed") and not findings.of("reader-refuses"), context
            try:
                reader(root)
            except DataError:
                refusals += 1
                assert findings.count("error"), context
        path.write_text(json.dumps(value))
    assert refusals > 10
