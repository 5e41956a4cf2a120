"""Writing corpora in the published layouts: plain data in, files out.

A writer stands for one corpus and split. Videos come first, one by one: images at once, and what the annotation files
need to know of them is given back as a value that JSON can hold. The annotation files come last.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from datasets.corpora.groundmore import FRAMES_PER_SECOND
from datasets.sample import Question
from utils.files import write_json
from utils.masks import encode_rle, palette


class Writer(ABC):
    """One corpus, one split.

    Args:
        root: the folder that holds all corpora.
        split: "train" or "test".

    Attributes:
        image_folders: in each of them every video has a folder of its own.
        annotation_files: what :meth:`write_annotations` writes.
    """

    indent: ClassVar[int | None] = None
    """Of the annotation files."""

    image_folders: list[Path]
    annotation_files: list[Path]

    @abstractmethod
    def annotations(self, parts: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The content of each annotation file, from what ``write_video`` gave for every video, in order."""

    def write_annotations(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Write the annotation files; ``parts`` is what ``write_video`` gave for every video, in order."""
        for path, value in zip(self.annotation_files, self.annotations(parts)):
            write_json(path, value, indent=self.indent)


class GroundMoReWriter(Writer):
    """``GroundMoRe/{trainval_v2,groundmore_test}.json`` and ``groundmore_videos/VIDEO/{images,masks}``.

    The test split also gets ``referring_test.json``: the same videos with other questions.
    """

    indent = 1

    def __init__(self, root: Path, split: str):
        folder = root / "GroundMoRe"
        names = ["trainval_v2.json"] if split == "train" else ["groundmore_test.json", "referring_test.json"]
        self.image_folders = [folder / "groundmore_videos"]
        self.annotation_files = [folder / name for name in names]

    def write_video(
        self,
        source: str,
        start: int,
        names: Sequence[str],
        frames: np.ndarray,
        id_maps: np.ndarray,
        with_mask: np.ndarray,
        questions: Sequence[Question],
        referring: Sequence[Question] = (),
    ) -> dict[str, Any]:
        """Write a clip.

        Args:
            source: name of its source video.
            start: where the clip starts in it, in seconds.
            names: T stems of files.
            frames: uint8 RGB [T, H, W, 3], six a second.
            id_maps: uint8 [T, H, W].
            with_mask: bool [T]: which frames get a mask file.
            questions: their windows begin and end on whole seconds.
            referring: those of ``referring_test.json``.
        """
        end = start + -(-len(names) // FRAMES_PER_SECOND)
        video_id = f"{source}_{_clock(start, '')}_{_clock(end, '')}"
        with _fresh_folder(self.image_folders[0] / video_id) as folder:
            _write_frames(folder / "images", names, frames)
            _write_masks(folder / "masks", names, id_maps, with_mask)
        asked = {"questions": questions, "referring": referring}
        entries = {key: {q.query_id: _question_entry(q, start) for q in same} for key, same in asked.items()}
        return {"video_id": video_id, **entries}

    def annotations(self, parts: Sequence[Mapping[str, Any]]) -> list[Any]:
        keys = ("questions", "referring")
        return [{"videos": {part["video_id"]: {"questions": part[key]} for part in parts}} for key in keys]


def _question_entry(question: Question, start: int) -> dict[str, str]:
    first, last = question.window
    return {
        "question": question.text,
        "answer": question.answer,
        "obj_id": ", ".join(map(str, question.object_ids)),
        "q_type": question.q_type,
        "action_start": _clock(start + first // FRAMES_PER_SECOND),
        "action_end": _clock(start + -(-(last + 1) // FRAMES_PER_SECOND)),
    }


def _clock(seconds: int, separator: str = ":") -> str:
    return f"{seconds // 60:02d}{separator}{seconds % 60:02d}"


class ReferYoutubeVosWriter(Writer):
    """``refytvos/SPLIT/{JPEGImages,Annotations}``, ``SPLIT/meta.json`` and ``meta_expressions/SPLIT``."""

    def __init__(self, root: Path, split: str):
        folder = root / "refytvos"
        self.image_folders = [folder / split / name for name in ("JPEGImages", "Annotations")]
        expressions = folder / "meta_expressions" / split / "meta_expressions.json"
        self.annotation_files = [folder / split / "meta.json", expressions]

    def write_video(
        self,
        video_id: str,
        names: Sequence[str],
        frames: np.ndarray,
        id_maps: np.ndarray,
        categories: Mapping[int, str],
        expressions: Sequence[Question],
    ) -> dict[str, Any]:
        """Write a video.

        Args:
            video_id: name of its folders.
            names: T stems of files, in the order of time and of text.
            frames: uint8 RGB [T, H, W, 3].
            id_maps: uint8 [T, H, W].
            categories: of every object id.
            expressions: each means one object.
        """
        images, masks = (folder / video_id for folder in self.image_folders)
        with _fresh_folder(images) as folder:
            _write_frames(folder, names, frames)
        with _fresh_folder(masks) as folder:
            _write_masks(folder, names, id_maps, np.ones(len(names), dtype=bool))
        objects = {}
        for number, category in categories.items():
            seen = (id_maps == number).any(axis=(1, 2))
            objects[str(number)] = {"category": category, "frames": [n for n, there in zip(names, seen) if there]}
        said = {e.query_id: {"exp": e.text, "obj_id": str(e.object_ids[0])} for e in expressions}
        return {"video_id": video_id, "frames": list(names), "expressions": said, "objects": objects}

    def annotations(self, parts: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [{"videos": {part["video_id"]: {"objects": part["objects"]} for part in parts}}, _listed(parts)]


class MeViSWriter(Writer):
    """``MeViSv2/{train,valid_u}`` with ``JPEGImages``, ``meta_expressions.json`` and ``mask_dict.json`` (COCO RLE)."""

    def __init__(self, root: Path, split: str):
        folder = root / "MeViSv2" / ("train" if split == "train" else "valid_u")
        self.image_folders = [folder / "JPEGImages"]
        self.annotation_files = [folder / "mask_dict.json", folder / "meta_expressions.json"]

    def write_video(
        self,
        video_id: str,
        names: Sequence[str],
        frames: np.ndarray,
        id_maps: np.ndarray,
        annotations: Mapping[int, int],
        expressions: Sequence[Question],
    ) -> dict[str, Any]:
        """Write a video.

        Args:
            video_id: name of its folder.
            names: T stems of files, in the order of time and of text.
            frames: uint8 RGB [T, H, W, 3].
            id_maps: uint8 [T, H, W].
            annotations: number, in the whole corpus, of every object id from 1 on.
            expressions: each means any number of objects.
        """
        with _fresh_folder(self.image_folders[0] / video_id) as folder:
            _write_frames(folder, names, frames)
        said = {
            e.query_id: {
                "exp": e.text,
                "obj_id": [number - 1 for number in e.object_ids],
                "anno_id": [annotations[number] for number in e.object_ids],
            }
            for e in expressions
        }
        tubes = {
            str(annotation): [encode_rle(mask) if mask.any() else None for mask in id_maps == number]
            for number, annotation in annotations.items()
        }
        return {"video_id": video_id, "frames": list(names), "expressions": said, "tubes": tubes}

    def annotations(self, parts: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [{number: tube for part in parts for number, tube in part["tubes"].items()}, _listed(parts)]


def _listed(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"videos": {part["video_id"]: {key: part[key] for key in ("frames", "expressions")} for part in parts}}


@contextmanager
def _fresh_folder(path: Path) -> Iterator[Path]:
    """A folder filled under a temporary name; takes its own name, replacing any older one, when all went well."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(path)
    os.rename(temporary, path)


def _write_frames(folder: Path, names: Sequence[str], frames: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, frames):
        Image.fromarray(frame).save(folder / f"{name}.jpg", quality=95, subsampling=0)


def _write_masks(folder: Path, names: Sequence[str], id_maps: np.ndarray, wanted: np.ndarray) -> None:
    """Palette PNGs; not synced one by one, because the whole folder is named only when it is complete."""
    folder.mkdir(exist_ok=True)
    colours = palette().tobytes()
    for name, ids, write in zip(names, id_maps, wanted):
        if write:
            image = Image.fromarray(ids)
            image.putpalette(colours)
            image.save(folder / f"{name}.png", compress_level=3)
