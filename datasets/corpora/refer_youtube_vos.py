"""Refer-YouTube-VOS: one record per object of a video, with every expression of that object.

Layout (as published)::

    ROOT/train/JPEGImages/VIDEO/FRAME.jpg
    ROOT/train/Annotations/VIDEO/FRAME.png          palette PNG, pixel = object id
    ROOT/meta_expressions/train/meta_expressions.json
        {"videos": {VIDEO: {"frames": [FRAME, ...], "expressions": {ID: {"exp": str, "obj_id": str}}}}}

``ROOT/train/meta.json`` (``{"videos": {VIDEO: {"objects": {ID: {"category": str}}}}}``) is read if it is there: the
category then names the answer object, for models that are trained to name it. Nothing else needs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets.corpora.base import (
    IdMasks,
    Reader,
    caption,
    check_headers,
    get_field,
    is_object,
    listed_files,
    object_number,
    read_listed_video,
    read_videos,
)
from datasets.names import shown
from datasets.sample import Question, VideoRecord
from utils.errors import Problems, one_line
from utils.masks import IdMaskCache


class ReferYoutubeVos(Reader):
    """Refer-YouTube-VOS.

    Args:
        root: the folder that holds ``train/`` and ``meta_expressions/``.
        split: "train" (other splits are published without masks).
        on_problem: "raise" or "skip"; see :class:`datasets.corpora.base.Reader`.

    Raises:
        DataError: the annotation file is missing or malformed, or (with "raise") there is any mistake; all are listed.
    """

    name = "refer_video_seg"

    def __init__(self, root: str | Path, split: str = "train", on_problem: str = "raise"):
        root = Path(root)
        source = root / "meta_expressions" / split / "meta_expressions.json"
        problems, records, cache = Problems(), [], IdMaskCache()
        videos = read_videos(source, problems)
        categories = read_categories(root / split / "meta.json", problems)
        for video_id, video in videos.items():
            records += _read_video(root / split, video_id, video, categories.get(video_id, {}), cache, problems)
        super().__init__(source, records, problems, on_problem)


def read_categories(path: Path, problems: Problems) -> dict[str, dict[int, str]]:
    """Category of each object of each video; empty without the file."""
    if not os.path.lexists(path):
        return {}
    categories: dict[str, dict[int, str]] = {}
    for video_id, video in read_videos(path, problems).items():
        objects = video.get("objects") if isinstance(video, dict) else None
        if not isinstance(objects, dict):
            problems.add(f"{path}, video {video_id}", "must be an object with 'objects'", kind="annotation-unreadable")
            continue
        for number, entry in objects.items():
            where = f"{path}, video {video_id}, object {one_line(number[:40])}"
            category = None
            if isinstance(entry, dict):
                category = get_field(entry, "category", str, where, problems, "annotation-unreadable")
            if object_number(number) is None or not isinstance(entry, dict):
                message = "needs a number from 1 to 255 as its id, and a 'category'"
                problems.add(where, message, kind="annotation-unreadable")
            elif category is not None:
                categories.setdefault(video_id, {})[int(number)] = caption(category.replace("_", " "))
    return categories


def _read_video(
    folder: Path, video_id: str, video: Any, categories: dict[int, str], cache: IdMaskCache, problems: Problems
) -> list[VideoRecord]:
    """The records of one video; empty if it cannot be used at all."""
    where = f"video {video_id}"
    names, expressions = read_listed_video(video, where, problems)
    by_object = expressions_by_object(expressions, categories, where, problems)
    if not names:
        return []
    before = len(problems)
    frames = listed_files(names, folder / "JPEGImages" / video_id, ".jpg", where, problems)
    masks = listed_files(names, folder / "Annotations" / video_id, ".png", where, problems)
    if len(problems) == before:
        check_headers(frames, masks, where, problems)
    if len(problems) > before:
        return []
    read = IdMasks(video_id, frames, masks, cache)
    return [
        VideoRecord(ReferYoutubeVos.name, video_id, frames, tuple(questions), read) for questions in by_object.values()
    ]


def expressions_by_object(
    expressions: dict[str, Any], categories: dict[int, str], where: str, problems: Problems
) -> dict[int, list[Question]]:
    """Questions by object id, objects in order of first mention."""
    by_object: dict[int, list[Question]] = {}
    for query_id, entry in expressions.items():
        place = f"{where}, expression {query_id}"
        if not is_object(entry, "'exp' and 'obj_id'", place, problems):
            continue
        text = get_field(entry, "exp", str, place, problems)
        written = get_field(entry, "obj_id", str, place, problems, "bad-object-id")
        number = None if written is None else object_number(written)
        if written is not None and number is None:
            message = f"'obj_id' must be a number from 1 to 255 in quotes, not {shown(written, 40)}"
            problems.add(place, message, kind="bad-object-id")
        if text is not None and number is not None:
            category = categories.get(number)
            answer = f"the {category}" if category else None
            question = Question(query_id, caption(text), is_question=False, answer=answer, object_ids=(number,))
            by_object.setdefault(number, []).append(question)
    return by_object
