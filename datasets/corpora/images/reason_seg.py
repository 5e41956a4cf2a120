"""ReasonSeg: one record per picture; what is asked takes reasoning, and one region answers it.

Layout (as published)::

    ROOT/SPLIT/NAME.jpg
    ROOT/SPLIT/NAME.json    {"text": [str, ...], "is_sentence": bool,
                             "shapes": [{"label": str, "points": [[x, y], ...]}, ...]}

The region is painted as the benchmark's own code paints it: polygons with their border, the largest first, so that a
small one stays visible on a large one. A label that contains "ignore" leaves its pixels out (they are no target), and
"flag" marks no region. Some published pictures have no region at all; their mask is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.corpora.base import Reader, files_by_stem, get_field, is_object, read_annotation
from datasets.corpora.images.polygons import read_polygon
from datasets.names import folder_fault, shown, text_fault
from datasets.sample import Question, VideoRecord
from utils.errors import DataError, Problems
from utils.pictures import is_turned
from utils.video import frame_size


class ReasonSeg(Reader):
    """ReasonSeg.

    Args:
        root: the folder that holds ``train/`` and ``val/``.
        split: "train", "val" or "test".
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.

    Raises:
        DataError: there is no such folder, or (with "raise") there is any mistake; all are listed.
    """

    name = "reason_seg"

    def __init__(self, root: str | Path, split: str = "train", on_problem: str = "raise"):
        root, problems = Path(root), Problems()
        super().__init__(root / split, self.read(root, split, problems), problems, on_problem)

    @classmethod
    def read(cls, root: Path, split: str, problems: Problems) -> list[VideoRecord]:
        """The pictures without mistakes; the others are noted.

        Raises:
            DataError: there is no such folder.
        """
        folder = root / split
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; it should hold a .jpg and a .json for each picture")
        pictures = files_by_stem(folder, ".jpg", split, problems)
        entries = {path.stem: path for path in sorted(folder.glob("[!.]*.json"))}
        for stem in sorted(pictures.keys() - entries.keys()):
            problems.add(f"picture {stem}", f"has no {stem}.json in {folder}")
        records = [_read_picture(stem, path, pictures.get(stem), problems) for stem, path in entries.items()]
        return [record for record in records if record is not None]


@dataclass(frozen=True)
class PolygonMask:
    """``read_object_mask`` of a picture: bool [H, W].

    Attributes:
        size: (H, W).
        regions: polygons int32 [n, 2] of (x, y), and whether each is target.
    """

    size: tuple[int, int]
    regions: tuple[tuple[np.ndarray, bool], ...]

    def __call__(self, question: Question, frame_index: int) -> np.ndarray:
        painted = []
        for points, is_target in self.regions:
            mask = np.zeros(self.size, dtype=np.uint8)
            cv2.polylines(mask, [points], True, 1, 1)
            cv2.fillPoly(mask, [points], 1)
            painted.append((mask.view(bool), is_target))
        target = np.zeros(self.size, dtype=bool)
        for index in np.argsort([mask.sum() for mask, _ in painted])[::-1]:
            mask, is_target = painted[index]
            target[mask] = is_target
        return target

    def state(self) -> list:
        """What is painted, JSON-able: what is read depends on nothing else."""
        return [self.size, [(points.tolist(), is_target) for points, is_target in self.regions]]


def _read_picture(stem: str, path: Path, picture: Path | None, problems: Problems) -> VideoRecord | None:
    """One picture's record, or None; every mistake is noted."""
    where, before = f"picture {shown(stem)}", len(problems)
    if picture is None:
        problems.add(where, f"has no {stem}.jpg in {path.parent}")
        return None
    try:
        entry, size = read_annotation(path, problems, fallback="cp1252"), frame_size(picture)
    except DataError as error:
        problems.add(where, str(error))
        return None
    if not is_object(entry, "'text' and 'shapes'", where, problems):
        return None
    if is_turned(picture):
        problems.add(where, f"{picture} is stored turned (EXIF orientation), its polygons are of the upright picture; "
                     "write it upright, without the tag")  # fmt: skip
    if folder_fault(stem) is not None:
        problems.add(where, f"its name {folder_fault(stem)}; rename it")
    texts = get_field(entry, "text", list, where, problems) or []
    for text in texts:
        if not isinstance(text, str) or not text.strip() or text_fault(text):
            problems.add(where, f"'text' must hold texts that are not empty, not {shown(str(text), 40)}")
    if not isinstance(entry.get("is_sentence"), bool):
        problems.add(where, f"'is_sentence' must be true or false, not {shown(str(entry.get('is_sentence')), 40)}")
    regions = _read_shapes(entry.get("shapes"), size, where, problems)
    if len(problems) > before:
        return None
    questions = tuple(
        Question(str(index), " ".join(text.split()), is_question=False, is_sentence=entry["is_sentence"])
        for index, text in enumerate(texts)
    )
    return VideoRecord(ReasonSeg.name, stem, (picture,), questions, PolygonMask(size, regions))


def _read_shapes(
    shapes: Any, size: tuple[int, int], where: str, problems: Problems
) -> tuple[tuple[np.ndarray, bool], ...]:
    """Polygons and whether each is target; those that cannot be used are noted."""
    if not isinstance(shapes, list):
        problems.add(where, f"'shapes' must be a list, not {type(shapes).__name__}")
        return ()
    regions = []
    for number, shape in enumerate(shapes):
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            problems.add(f"{where}, shape {number}", "needs a 'label' and its 'points'")
        elif label.lower() != "flag":
            polygon = read_polygon(shape.get("points"), size, f"{where}, shape {number}", problems)
            if polygon is not None:
                regions.append((polygon.astype(np.int32), "ignore" not in label.lower()))
    return tuple(regions)
