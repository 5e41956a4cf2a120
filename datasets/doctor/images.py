"""Examining image corpora: their readers note every mistake of the annotation; here each picture and mask is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from datasets.corpora import load
from datasets.doctor.clip import ClipTask
from datasets.doctor.examination import Examination, Notes, note_texts_said_twice
from datasets.sample import VideoRecord
from utils.errors import DataError


class ImageExamination(Examination):
    """ReasonSeg and the RefCOCOs, as their readers open them."""

    marks = ("refs(*).p", "train/*.json", "val/*.json", "test/*.json")

    def find_splits(self) -> list[str]:
        folders = [split for split in self.row.splits if (self.root / split).is_dir()]
        return folders or list(self.row.splits)

    def open_split(self, split: str) -> dict[str, VideoRecord]:
        reader = load(self.row.reader)
        records = self.load(lambda root, notes: reader.read(root, split, notes), self.root, split) or []
        return {record.video_id: record for record in records}

    def look_at(self, entry: Any, notes: Notes, counts: Counter[str]) -> ClipTask | None:
        counts["frames"] += 1
        counts["expressions"] += len(entry.questions)
        note_texts_said_twice(entry.questions, notes)
        if not self.options.fast:
            for query_id, message in mask_faults(entry):
                notes.find("mask-unreadable", message, query=query_id)
        return self.task(notes, entry.frame_paths, entry.questions)


def mask_faults(record: VideoRecord) -> Iterator[tuple[str, str]]:
    """(question, message) of every mask that cannot be read; objects that several questions share are read once."""
    by_objects = {question.object_ids: question for question in record.questions}
    for question in by_objects.values():
        for index in range(len(record.frame_paths)):
            try:
                record.read_object_mask(question, index)
            except DataError as error:
                yield question.query_id, str(error)
