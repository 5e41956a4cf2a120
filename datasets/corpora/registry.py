"""Every corpus in one table: what it is called, where it lies, and which module reads it.

Training's mixture, the data doctor, the motion world and the benchmarks take a corpus from here. A reader is a leaf: it
is imported when its corpus is opened. A new corpus is its file and its row.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.sample import VideoRecord
from utils.errors import ConfigError


@dataclass(frozen=True)
class Corpus:
    """One row.

    Attributes:
        name: its key in ``--dataset``, and ``VideoRecord.corpus``.
        folders: below the folder of all corpora; the first that exists is taken.
        reader: "module:class" of a :class:`datasets.corpora.base.Reader`.
        splits: those published with masks; the first is trained on.
        kind: "video", or "image": a clip of a single frame.
        aliases: other names of it.
        examination: "module:class" of the doctor's, if it has one.
        layout: "module:class" by which the motion world writes it, if it does.
    """

    name: str
    folders: tuple[str, ...]
    reader: str
    splits: tuple[str, ...]
    kind: str = "video"
    aliases: tuple[str, ...] = ()
    examination: str | None = None
    layout: str | None = None

    def frames_per_sample(self, num_frames: int) -> int:
        """Frames that a training sample takes, where ``num_frames`` are asked for of a video."""
        return 1 if self.kind == "image" else num_frames

    def folder_in(self, dataset_dir: str | Path) -> Path:
        """Where it lies below the folder of all corpora; nothing needs to be there."""
        places = [Path(dataset_dir) / folder for folder in self.folders]
        return next((place for place in places if place.is_dir()), places[0])

    def open(
        self, dataset_dir: str | Path, split: str | None = None, on_problem: str = "raise"
    ) -> Sequence[VideoRecord]:
        """Read a split, by default the one that is trained on.

        Raises:
            DataError: it is missing or has mistakes; all of them are listed.
        """
        return load(self.reader).open(self.folder_in(dataset_dir), split or self.splits[0], on_problem)


def load(place: str) -> Any:
    """What ``module:name`` stands for; imports the module."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


CORPORA = {
    row.name: row
    for row in (
        Corpus(
            "refer_video_seg",
            folders=("refytvos",),
            reader="datasets.corpora.refer_youtube_vos:ReferYoutubeVos",
            splits=("train",),
            aliases=("refer_youtube_vos", "refytvos"),
            examination="datasets.doctor.listed:ReferYoutubeVosExamination",
            layout="datasets.synthetic.layouts:ReferYoutubeVosLayout",
        ),
        Corpus(
            "mevis",
            folders=("MeViSv2", "mevis"),
            reader="datasets.corpora.mevis:MeViS",
            splits=("train", "valid_u"),
            examination="datasets.doctor.listed:MeViSExamination",
            layout="datasets.synthetic.layouts:MeViSLayout",
        ),
        Corpus(
            "groundmore",
            folders=("GroundMoRe",),
            reader="datasets.corpora.groundmore:GroundMoRe",
            splits=("trainval_v2", "groundmore_test"),
            examination="datasets.doctor.groundmore:GroundMoReExamination",
            layout="datasets.synthetic.layouts:GroundMoReLayout",
        ),
        Corpus(
            "reason_seg",
            folders=("reason_seg/ReasonSeg", "ReasonSeg"),
            reader="datasets.corpora.images.reason_seg:ReasonSeg",
            splits=("train", "val", "test"),
            kind="image",
            examination="datasets.doctor.images:ImageExamination",
        ),
        Corpus(
            "refcoco",
            folders=("refer_seg/refcoco",),
            reader="datasets.corpora.images.refer_seg:RefCOCO",
            splits=("train", "val", "testA", "testB"),
            kind="image",
            examination="datasets.doctor.images:ImageExamination",
        ),
        Corpus(
            "refcoco+",
            folders=("refer_seg/refcoco+",),
            reader="datasets.corpora.images.refer_seg:RefCOCOPlus",
            splits=("train", "val", "testA", "testB"),
            kind="image",
            examination="datasets.doctor.images:ImageExamination",
        ),
        Corpus(
            "refcocog",
            folders=("refer_seg/refcocog",),
            reader="datasets.corpora.images.refer_seg:RefCOCOg",
            splits=("train", "val", "test"),
            kind="image",
            examination="datasets.doctor.images:ImageExamination",
        ),
    )
}
"""By name."""

SPELLINGS = {spelling: row for row in CORPORA.values() for spelling in (row.name, *row.aliases)}
"""By name and alias."""


def corpus_named(name: str) -> Corpus:
    """The row of that name or alias.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    if name not in SPELLINGS:
        raise ConfigError(f"unknown corpus {name}; known: {', '.join(CORPORA)}")
    return SPELLINGS[name]
