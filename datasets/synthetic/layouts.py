"""How a video is written in each corpus's published layout; the images at once, its part of the annotation later.

Index ranges of the three corpora do not meet, so no two corpora of one seed share a video.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from datasets.synthetic.scene import MotionVideo, WorldExpression
from datasets.synthetic.world import SPLITS
from utils.errors import ConfigError
from utils.files import write_json
from utils.masks import encode_rle, palette

GROUNDMORE_FPS = 6
"""The corpus counts frames at this rate; a clip made for it must too."""

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

    def __init__(self, root: str | Path, split: str):
        self.root, self.split = Path(root), split

    @property
    @abstractmethod
    def image_folders(self) -> list[Path]:
        """Folders in which every video has a folder of its own."""

    @abstractmethod
    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        """Write a video's frames and masks.

        Args:
            video: from ``make_video(seed, first_index + number, ...)``.
            number: of the video in this corpus, from 0.

        Returns:
            What ``write_annotations`` needs to know of it; JSON can hold it.
        """

    @abstractmethod
    def write_annotations(self, parts: list[dict[str, Any]]) -> None:
        """Write the annotation files from the parts of all videos, in order."""

    @property
    @abstractmethod
    def annotation_files(self) -> list[Path]:
        """The files that ``write_annotations`` writes."""

    @abstractmethod
    def names_video(self, name: str) -> bool:
        """Whether a folder's name is one that this layout gives to a video."""

    def owned(self) -> list[Path]:
        """Every file and video folder there that has the name of one that a run of this layout writes."""
        folders = [path for folder in self.image_folders for path in sorted(folder.glob("*"))]
        files = [path for path in self.annotation_files if os.path.lexists(path)]
        return files + [path for path in folders if self.names_video(path.name)]

    def _names_index(self, name: str, digits: int) -> bool:
        """Whether a name is the index of a video of this corpus as so many hexadecimal digits."""
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", name):
            return False
        return self.first_index <= int(name, 16) < self.first_index + MOST_VIDEOS

    def leftovers(self) -> list[Path]:
        """Half-written video folders of a run that was killed."""
        prefix = f"{self.split}_" if self.name == "groundmore" else ""
        return [path for folder in self.image_folders for path in folder.glob(f".{prefix}*.tmp")]

    def dice(self, seed: int, number: int) -> np.random.Generator:
        """Random choices of the layout, apart from those of the video."""
        return np.random.default_rng([seed, self.first_index + number, SPLITS[self.split], _LAYOUT_STREAM])


class GroundMoReLayout(Layout):
    """``GroundMoRe/{trainval_v2,groundmore_test}.json`` and ``groundmore_videos/VIDEO/{images,masks}``.

    As in the published corpus, ids end with the clip's place in a source video, times are those of the source, two
    conventions of file names occur, and frames without an annotated object have no mask file. In training videos only
    the answers are annotated; some have few questions and masks only while an action lasts. The test split also gets
    ``referring_test.json``: the same videos, each object asked for by its looks over the whole clip.
    """

    name = "groundmore"
    first_index = 0

    @property
    def image_folders(self) -> list[Path]:
        return [self.root / "GroundMoRe" / "groundmore_videos"]

    @property
    def annotation_files(self) -> list[Path]:
        names = ["trainval_v2.json"] if self.split == "train" else ["groundmore_test.json", "referring_test.json"]
        return [self.root / "GroundMoRe" / name for name in names]

    def names_video(self, name: str) -> bool:
        return re.fullmatch(rf"{self.split}_\d{{6}}_\d{{4}}_\d{{4}}", name) is not None

    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        rng = self.dice(seed, number)
        clip_start = int(rng.integers(_LATEST_CLIP_START))
        clip_end = clip_start + -(-video.num_frames // GROUNDMORE_FPS)
        pattern = "frame_{:06d}" if rng.random() < 0.5 else "{:07d}"
        sparse = self.split == "train" and rng.random() < _SPARSE_RATE
        video_id = f"{self.split}_{number:06d}_{_mmss(clip_start, '')}_{_mmss(clip_end, '')}"
        frames, id_maps = video.render(range(video.num_frames))
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
        names = [pattern.format(index) for index in range(video.num_frames)]
        with _FreshFolder(self.image_folders[0] / video_id) as folder:
            _write_frames(folder / "images", names, frames)
            _write_masks(folder / "masks", names, id_maps, with_mask)
        questions = {
            str(order): {
                "question": question.text,
                "answer": question.answer,
                "obj_id": ", ".join(str(item) for item in question.answer_ids),
                "q_type": question.q_type,
                "action_start": _mmss(clip_start + question.window[0] // GROUNDMORE_FPS),
                "action_end": _mmss(clip_start + (question.window[1] + 1) // GROUNDMORE_FPS),
            }
            for order, question in enumerate(asked)
        }
        part = {"video_id": video_id, "questions": questions}
        if self.split != "train":
            part["referring"] = _referring_questions(video, _mmss(clip_start), _mmss(clip_end))
        return part

    def write_annotations(self, parts: list[dict[str, Any]]) -> None:
        for path, key in zip(self.annotation_files, ("questions", "referring")):
            write_json(path, {"videos": {part["video_id"]: {"questions": part[key]} for part in parts}}, indent=1)


class ReferYoutubeVosLayout(Layout):
    """``refytvos/train/{JPEGImages,Annotations}``, ``train/meta.json`` and ``meta_expressions/train``."""

    name = "refytvos"
    first_index = 10_000_000

    def __init__(self, root: str | Path, split: str):
        super().__init__(root, split)
        if split != "train":
            raise ConfigError(
                f"refytvos with --split {split}: the corpus publishes masks for its training split alone; leave it out "
                "of --corpora, or write a second training corpus with another --seed and --out"
            )

    @property
    def image_folders(self) -> list[Path]:
        return [self.root / "refytvos" / "train" / name for name in ("JPEGImages", "Annotations")]

    @property
    def annotation_files(self) -> list[Path]:
        base = self.root / "refytvos"
        return [base / "train" / "meta.json", base / "meta_expressions" / "train" / "meta_expressions.json"]

    def names_video(self, name: str) -> bool:
        return self._names_index(name, 10)

    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        video_id = f"{self.first_index + number:010x}"
        names = [f"{5 * index:05d}" for index in range(video.num_frames)]
        frames, id_maps = video.render(range(video.num_frames))
        images, annotations = (folder / video_id for folder in self.image_folders)
        with _FreshFolder(images) as folder:
            _write_frames(folder, names, frames)
        with _FreshFolder(annotations) as folder:
            _write_masks(folder, names, id_maps, np.ones(len(names), dtype=bool))
        said = [expression for expression in video.expressions if len(expression.object_ids) == 1]
        expressions = {
            str(order): {"exp": expression.text, "obj_id": str(expression.object_ids[0])}
            for order, expression in enumerate(said)
        }
        objects = {}
        for target in video.objects:
            seen = (id_maps == target.object_id).any(axis=(1, 2))
            shown = [name for name, visible in zip(names, seen) if visible]
            objects[str(target.object_id)] = {"category": target.name, "frames": shown}
        return {"video_id": video_id, "frames": names, "expressions": expressions, "objects": objects}

    def write_annotations(self, parts: list[dict[str, Any]]) -> None:
        meta, expressions = self.annotation_files
        write_json(meta, {"videos": {part["video_id"]: {"objects": part["objects"]} for part in parts}}, indent=None)
        spoken = {p["video_id"]: {"frames": p["frames"], "expressions": p["expressions"]} for p in parts}
        write_json(expressions, {"videos": spoken}, indent=None)


class MeViSLayout(Layout):
    """``MeViSv2/{train,valid_u}`` with ``JPEGImages``, ``meta_expressions.json`` and ``mask_dict.json`` (COCO RLE).

    Expressions are mostly about motion, may mean several objects, and a few mean none.
    """

    name = "mevis"
    first_index = 20_000_000
    most_objects = 16

    @property
    def _folder(self) -> Path:
        return self.root / "MeViSv2" / ("train" if self.split == "train" else "valid_u")

    @property
    def image_folders(self) -> list[Path]:
        return [self._folder / "JPEGImages"]

    @property
    def annotation_files(self) -> list[Path]:
        return [self._folder / "meta_expressions.json", self._folder / "mask_dict.json"]

    def names_video(self, name: str) -> bool:
        return self._names_index(name, 12)

    def write_video(self, video: MotionVideo, seed: int, number: int) -> dict[str, Any]:
        rng = self.dice(seed, number)
        video_id = f"{self.first_index + number:012x}"
        names = [f"{index:05d}" for index in range(video.num_frames)]
        frames, id_maps = video.render(range(video.num_frames))
        with _FreshFolder(self.image_folders[0] / video_id) as folder:
            _write_frames(folder, names, frames)
        plain = [expression for expression in video.expressions if expression.kind == "plain"]
        said = [expression for expression in video.expressions if expression.kind != "plain"]
        said += [plain[int(item)] for item in rng.permutation(len(plain))[:2]]
        if rng.random() < _NO_TARGET_RATE:
            said.append(WorldExpression("the object that bursts", (), "multi"))
        first_annotation = number * self.most_objects
        expressions = {
            str(order): {
                "exp": expression.text,
                "obj_id": [item - 1 for item in expression.object_ids],
                "anno_id": [first_annotation + item - 1 for item in expression.object_ids],
            }
            for order, expression in enumerate(said)
        }
        tubes = {
            str(first_annotation + target.object_id - 1): _tube(id_maps == target.object_id) for target in video.objects
        }
        return {"video_id": video_id, "frames": names, "expressions": expressions, "tubes": tubes}

    def write_annotations(self, parts: list[dict[str, Any]]) -> None:
        tubes = {number: tube for part in parts for number, tube in part["tubes"].items()}
        expressions, masks = self.annotation_files
        write_json(masks, tubes, indent=None)
        spoken = {p["video_id"]: {"frames": p["frames"], "expressions": p["expressions"]} for p in parts}
        write_json(expressions, {"videos": spoken}, indent=None)


LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout for layout in (GroundMoReLayout, ReferYoutubeVosLayout, MeViSLayout)
}


class _FreshFolder:
    """A folder filled under a temporary name; takes its own name, replacing any older one, when all went well."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            return
        if self.path.exists():
            shutil.rmtree(self.path)
        os.rename(self.temporary, self.path)


def _write_frames(folder: Path, names: list[str], frames: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, frames):
        Image.fromarray(frame).save(folder / f"{name}.jpg", quality=95, subsampling=0)


def _write_masks(folder: Path, names: list[str], id_maps: np.ndarray, wanted: np.ndarray) -> None:
    """Palette PNGs; not synced one by one, because the whole folder is named only when it is complete."""
    folder.mkdir(exist_ok=True)
    colours = palette().tobytes()
    for name, ids, write in zip(names, id_maps, wanted):
        if write:
            image = Image.fromarray(ids)
            image.putpalette(colours)
            image.save(folder / f"{name}.png", compress_level=3)


def _tube(masks: np.ndarray) -> list[dict[str, Any] | None]:
    """COCO RLE per frame; None where the object is not visible."""
    return [encode_rle(mask) if mask.any() else None for mask in masks]


def _mmss(seconds: int, separator: str = ":") -> str:
    return f"{seconds // 60:02d}{separator}{seconds % 60:02d}"


def _referring_questions(video: MotionVideo, start: str, end: str) -> dict[str, dict[str, str]]:
    """Each object asked for by its looks, over the whole clip."""
    return {
        str(order): {
            "question": target.name,
            "answer": f"the {target.name}",
            "obj_id": str(target.object_id),
            "q_type": "Descriptive",
            "action_start": start,
            "action_end": end,
        }
        for order, target in enumerate(video.objects)
    }
