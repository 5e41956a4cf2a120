"""What of a video goes into each corpus, under which name; ``datasets.corpora.writers`` knows the formats.

Index ranges of the three corpora do not meet, so no two corpora of one seed share a video.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.corpora.writers import GroundMoReWriter, MeViSWriter, ReferYoutubeVosWriter, Writer
from datasets.sample import Question
from datasets.synthetic.render import Renderer
from datasets.synthetic.scene import MotionVideo, WorldExpression
from datasets.synthetic.world import SPLITS
from utils.errors import ConfigError

MOST_VIDEOS = 1_000_000
"""Of a corpus: beyond it names of videos would need another digit, and corpora would come to share videos."""

_LAYOUT_STREAM = 21
_SPARSE_RATE, _SPARSE_QUESTIONS = 0.15, 2
_NO_TARGET_RATE = 0.05
_LATEST_CLIP_START = 12 * 60


class Layout(ABC):
    """One corpus, one split, under one root folder.

    Args:
        root: folder that holds all corpora.
        split: "train" or "test".

    Raises:
        ConfigError: the corpus has no such split with masks.
    """

    name: ClassVar[str]
    first_index: ClassVar[int]
    make_writer: ClassVar[type[Writer]]

    def __init__(self, root: str | Path, split: str):
        self.split = split
        self.writer = self.make_writer(Path(root), split)

    @abstractmethod
    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        """Write a video's frames and masks.

        Args:
            video: from ``make_video(seed, first_index + number, ...)``.
            number: of the video in this corpus, from 0.

        Returns:
            What the writer's ``write_annotations`` needs to know of it; JSON can hold it.
        """

    @abstractmethod
    def names_video(self, name: str) -> bool:
        """Whether a folder's name is one that this layout gives to a video."""

    def owned(self) -> list[Path]:
        """Every file and video folder there that has the name of one that a run of this layout writes."""
        folders = [path for folder in self.writer.image_folders for path in sorted(folder.glob("*"))]
        files = [path for path in self.writer.annotation_files if os.path.lexists(path)]
        return files + [path for path in folders if self.names_video(path.name)]

    def _names_index(self, name: str, digits: int) -> bool:
        """Whether a name is the index of a video of this corpus as so many hexadecimal digits."""
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", name):
            return False
        return self.first_index <= int(name, 16) < self.first_index + MOST_VIDEOS

    def leftovers(self) -> list[Path]:
        """Half-written video folders of a run that was killed."""
        prefix = f"{self.split}_" if self.name == "groundmore" else ""
        return [path for folder in self.writer.image_folders for path in folder.glob(f".{prefix}*.tmp")]

    def dice(self, seed: int, number: int) -> np.random.Generator:
        """Random choices of the layout, apart from those of the video."""
        return np.random.default_rng([seed, self.first_index + number, SPLITS[self.split], _LAYOUT_STREAM])


class GroundMoReLayout(Layout):
    """As in the published corpus, ids end with the clip's place in a source video, times are those of the source, two
    conventions of file names occur, and frames without an annotated object have no mask file. In training videos only
    the answers are annotated; some have few questions and masks only while an action lasts. In ``referring_test.json``
    each object is asked for by its looks over the whole clip.
    """

    name = "groundmore"
    first_index = 0
    make_writer = GroundMoReWriter

    def names_video(self, name: str) -> bool:
        return re.fullmatch(rf"{self.split}_\d{{6}}_\d{{4}}_\d{{4}}", name) is not None

    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        rng = self.dice(seed, number)
        clip_start = int(rng.integers(_LATEST_CLIP_START))
        pattern = "frame_{:06d}" if rng.random() < 0.5 else "{:07d}"
        sparse = self.split == "train" and rng.random() < _SPARSE_RATE
        frames, id_maps = Renderer(video).render(range(video.num_frames))
        asked = video.questions
        if sparse:
            asked = [asked[item] for item in sorted(rng.permutation(len(asked))[:_SPARSE_QUESTIONS])]
        annotated = {item for question in asked for item in question.answer_ids}
        if self.split != "train":
            annotated = {target.object_id for target in video.objects}
        id_maps = np.where(np.isin(id_maps, sorted(annotated)), id_maps, 0).astype(np.uint8)
        with_mask = id_maps.any(axis=(1, 2))
        if sparse:
            active = np.zeros(video.num_frames, dtype=bool)
            for question in asked:
                active[question.window[0] : question.window[1] + 1] = True
            with_mask &= active
        questions = [
            Question(str(order), q.text, True, q.answer, q.answer_ids, q.q_type, q.window)
            for order, q in enumerate(asked)
        ]
        whole = (0, video.num_frames - 1)
        referring = [
            Question(str(order), t.name, True, f"the {t.name}", (t.object_id,), "Descriptive", whole)
            for order, t in enumerate(video.objects)
        ]
        source, names = f"{self.split}_{number:06d}", [pattern.format(index) for index in range(video.num_frames)]
        return self.writer.write_video(
            source, clip_start, names, frames, id_maps, with_mask, questions, referring if self.split != "train" else ()
        )


class ReferYoutubeVosLayout(Layout):
    """Expressions that mean one object; every fifth frame of a source has a name."""

    name = "refytvos"
    first_index = 10_000_000
    make_writer = ReferYoutubeVosWriter

    def __init__(self, root: str | Path, split: str):
        super().__init__(root, split)
        if split != "train":
            raise ConfigError(
                f"refytvos with --split {split}: the corpus publishes masks for its training split alone; leave it out "
                "of --corpora, or write a second training corpus with another --seed and --out"
            )

    def names_video(self, name: str) -> bool:
        return self._names_index(name, 10)

    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        names = [f"{5 * index:05d}" for index in range(video.num_frames)]
        frames, id_maps = Renderer(video).render(range(video.num_frames))
        said = _as_questions([expression for expression in video.expressions if len(expression.object_ids) == 1])
        categories = {target.object_id: target.name for target in video.objects}
        video_id = f"{self.first_index + number:010x}"
        return self.writer.write_video(video_id, names, frames, id_maps, categories, said)


class MeViSLayout(Layout):
    """Expressions are mostly about motion, may mean several objects, and a few mean none."""

    name = "mevis"
    first_index = 20_000_000
    make_writer = MeViSWriter
    most_objects = 16

    def names_video(self, name: str) -> bool:
        return self._names_index(name, 12)

    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        rng = self.dice(seed, number)
        names = [f"{index:05d}" for index in range(video.num_frames)]
        frames, id_maps = Renderer(video).render(range(video.num_frames))
        plain = [expression for expression in video.expressions if expression.kind == "plain"]
        said = [expression for expression in video.expressions if expression.kind != "plain"]
        said += [plain[int(item)] for item in rng.permutation(len(plain))[:2]]
        if rng.random() < _NO_TARGET_RATE:
            said.append(WorldExpression("the object that bursts", (), "multi"))
        first = number * self.most_objects
        annotations = {target.object_id: first + target.object_id - 1 for target in video.objects}
        video_id = f"{self.first_index + number:012x}"
        return self.writer.write_video(video_id, names, frames, id_maps, annotations, _as_questions(said))


def _as_questions(expressions: Sequence[WorldExpression]) -> list[Question]:
    return [
        Question(str(order), expression.text, is_question=False, object_ids=expression.object_ids)
        for order, expression in enumerate(expressions)
    ]
