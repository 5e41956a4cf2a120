"""RefCOCO, RefCOCO+ and RefCOCOg: one record per picture, with every sentence about any of its objects.

Layout (as published)::

    refer_seg/NAME/refs(unc).p          a pickle; refs(umd).p for refcocog
        [{"ref_id": int, "ann_id": int, "image_id": int, "split": str, "sentences": [{"sent_id": int, "sent": str}]}]
    refer_seg/NAME/instances.json       COCO's {"images": [...], "annotations": [...], "categories": [...]}
    refer_seg/images/mscoco/images/train2014/COCO_train2014_000000000000.jpg
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from datasets.corpora.base import Reader, caption, files_by_stem, get_field, read_annotation
from datasets.corpora.images.polygons import read_polygon
from datasets.names import shown
from datasets.sample import Question, VideoRecord
from utils.errors import DataError, Problems
from utils.masks import decode_rle, rle_size, union
from utils.pickles import read_plain_pickle
from utils.video import frame_size

PICTURES = Path("images", "mscoco", "images", "train2014")
"""Beside the folders of the corpora."""


class ReferSeg(Reader):
    """One of the three.

    Args:
        root: the folder that holds its refs and instances.
        split: "train", "val", "testA", "testB" (RefCOCO, RefCOCO+), "test" (RefCOCOg).
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.

    Raises:
        DataError: a file is missing or malformed, or (with "raise") there is any mistake; all are listed.
    """

    refs = "refs(unc).p"

    def __init__(self, root: str | Path, split: str = "train", on_problem: str = "raise"):
        root, problems = Path(root), Problems()
        super().__init__(root / self.refs, self.read(root, split, problems), problems, on_problem)

    @classmethod
    def read(cls, root: Path, split: str, problems: Problems) -> list[VideoRecord]:
        """A record for each picture of which something can be used; mistakes are noted.

        Raises:
            DataError: a file is missing or malformed.
        """
        folder = root.parent / PICTURES
        refs = _refs_of(root / cls.refs, split)
        instances = _Instances(root / "instances.json", problems)
        files = files_by_stem(folder, ".jpg", folder.name, problems)
        asked: dict[int, list[Question]] = {}
        shapes: dict[int, dict[int, Any]] = {}
        for ref in refs:
            where = f"ref {shown(str(ref.get('ref_id')), 40)}"
            shape = instances.shape_of(ref, where, problems)
            if shape is None:
                continue
            questions = _questions_of(ref, instances.answer(ref["ann_id"]), where, problems)
            asked.setdefault(ref["image_id"], []).extend(questions)
            shapes.setdefault(ref["image_id"], {})[ref["ann_id"]] = shape
        records = []
        for number, questions in asked.items():
            image = instances.images[number]
            path = files.get(Path(image["file_name"]).stem)
            if path is None:
                problems.add(f"image {number}", f"has no {image['file_name']} in {folder}; get COCO's train2014")
            elif questions:
                masks = ObjectMasks(path, (image["height"], image["width"]), shapes[number])
                records.append(VideoRecord(cls.name, path.stem, (path,), tuple(questions), masks))
        return records


class RefCOCO(ReferSeg):
    """RefCOCO."""

    name = "refcoco"


class RefCOCOPlus(ReferSeg):
    """RefCOCO+, whose sentences do not use places."""

    name = "refcoco+"


class RefCOCOg(ReferSeg):
    """RefCOCOg in the UMD's splits, of which no two share a picture."""

    name, refs = "refcocog", "refs(umd).p"


@dataclass(frozen=True)
class ObjectMasks:
    """``read_object_mask`` of a picture: bool [H, W]; DataError when it has another size, or a mask is damaged.

    Attributes:
        picture: its file.
        size: (H, W) by ``instances.json``.
        shapes: by annotation id, COCO polygons or run lengths.
    """

    picture: Path
    size: tuple[int, int]
    shapes: dict[int, Any]

    def __call__(self, question: Question, frame_index: int) -> np.ndarray:
        size = frame_size(self.picture)
        if size != self.size:
            raise DataError(
                f"{self.picture}: is {size[0]} x {size[1]} (height x width), but {self.size[0]} x {self.size[1]} by "
                "instances.json; get COCO's train2014 as published"
            )
        return union((self._decode(number) for number in question.object_ids), self.size)

    def state(self) -> list:
        """Size and shapes, JSON-able: what is read depends on nothing else."""
        return [self.size, self.shapes]

    def _decode(self, number: int) -> np.ndarray:
        shape = self.shapes[number]
        if isinstance(shape, list):
            return coco.decode(coco.merge(coco.frPyObjects(shape, *self.size))).view(bool)
        try:
            return decode_rle(shape)
        except DataError as error:
            raise DataError(f"instances.json, annotation {number}: {error}") from None


def _refs_of(path: Path, split: str) -> list[dict[str, Any]]:
    """The references of a split.

    Raises:
        DataError: the pickle cannot be read, or has none of that split.
    """
    refs = read_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise DataError(f"{path}: expected a list of references, each a dictionary; is it the right file?")
    chosen = [ref for ref in refs if ref.get("split") == split]
    if not chosen:
        splits = sorted({str(ref.get("split")) for ref in refs})
        raise DataError(f"{path}: no reference of split {split!r}; it has {', '.join(splits[:9]) or 'none'}")
    return chosen


def _questions_of(ref: dict[str, Any], answer: str | None, where: str, problems: Problems) -> list[Question]:
    questions = []
    for sentence in get_field(ref, "sentences", list, where, problems) or []:
        number = sentence.get("sent_id") if isinstance(sentence, dict) else None
        if not isinstance(number, int):
            problems.add(where, f"a sentence needs 'sent_id' and 'sent', not {shown(str(sentence), 40)}")
            continue
        text = get_field(sentence, "sent", str, f"{where}, sentence {number}", problems)
        if text is not None:
            questions.append(Question(str(number), caption(text), False, answer, (ref["ann_id"],), is_sentence=False))
    return questions


class _Instances:
    """``instances.json``: images, annotations and categories by id.

    Raises:
        DataError: it cannot be read, or lacks one of the three.
    """

    def __init__(self, path: Path, problems: Problems):
        content = read_annotation(path, problems)
        keys = ("images", "annotations", "categories")
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
            raise DataError(f"{path}: expected COCO's lists 'images', 'annotations' and 'categories'; wrong file?")
        self.images, self.annotations, self._categories = (_by_id(content[key]) for key in keys)
        self._shapes: dict[int, Any] = {}

    def answer(self, number: int) -> str | None:
        """Name of an annotation's object."""
        category = self.annotations[number].get("category_id")
        name = self._categories.get(category, {}).get("name") if isinstance(category, int) else None
        return f"the {name}" if isinstance(name, str) and name.strip() else None

    def shape_of(self, ref: dict[str, Any], where: str, problems: Problems) -> list[list[float]] | dict | None:
        """Polygons or run lengths of a reference's annotation; None with the mistake noted, once for each."""
        before = len(problems)
        for key, entries in (("image_id", self.images), ("ann_id", self.annotations)):
            number = ref.get(key)
            if not isinstance(number, int) or number not in entries:
                problems.add(where, f"its {key} {shown(str(number), 40)} is not in instances.json")
        if len(problems) > before:
            return None
        number = ref["ann_id"]
        if number not in self._shapes:
            self._shapes[number] = self._read_shape(number, ref["image_id"], problems)
        return self._shapes[number]

    def _read_shape(self, number: int, image_id: int, problems: Problems) -> list[list[float]] | dict | None:
        before, where, annotation = len(problems), f"annotation {number}", self.annotations[number]
        image = self.images[image_id]
        size = image.get("height"), image.get("width")
        if not isinstance(image.get("file_name"), str) or not all(isinstance(side, int) and side > 0 for side in size):
            problems.add(f"image {image_id}", "needs 'file_name', 'height' and 'width' in instances.json")
            return None
        if annotation.get("image_id") != image_id:
            problems.add(where, f"is of image {annotation.get('image_id')}, its reference of image {image_id}")
        shape = annotation.get("segmentation")
        if isinstance(shape, dict):
            _note_run_lengths(shape, size, where, problems)
        elif not isinstance(shape, list) or not shape:
            problems.add(where, "'segmentation' must be polygons or run lengths, and not empty")
        else:
            polygons = [read_polygon(one, size, f"{where}, polygon {k}", problems) for k, one in enumerate(shape)]
            if any(polygon is not None and len(polygon) < 3 for polygon in polygons):
                problems.add(where, "a polygon needs three corners or more")
            shape = [polygon.ravel().tolist() for polygon in polygons if polygon is not None]
        return shape if len(problems) == before else None


def _by_id(entries: Iterable[Any]) -> dict[int, dict[str, Any]]:
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int)}


def _note_run_lengths(shape: dict[str, Any], size: tuple[int, int], where: str, problems: Problems) -> None:
    try:
        own = rle_size(shape)
    except DataError as error:
        problems.add(where, str(error))
        return
    if own != size:
        problems.add(where, f"its mask is {own[0]} x {own[1]} (height x width), its image {size[0]} x {size[1]}")
