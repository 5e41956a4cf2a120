"""What the examinations of all corpora share: which videos are chosen, where mistakes go, names, texts said twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.corpora import Corpus, images_in, load
from datasets.doctor.clip import ClipTask
from datasets.doctor.files import convention
from datasets.doctor.findings import Finding, Findings
from datasets.sample import Question
from utils.errors import ConfigError, DataError, Problems
from utils.video import FRAME_SUFFIXES, frame_number

_ONCE = ("tube-missing", "tube-length", "object-absent")
"""Mistakes of an annotation; told once, however many expressions name it."""


@dataclass(frozen=True)
class Options:
    """What part of a corpus is examined, and how deeply.

    Attributes:
        splits: names, or None for all that are found.
        videos: ids, or None for all.
        limit: at most this many videos of each split, or None.
        fast: headers and names only.
    """

    splits: Sequence[str] | None = None
    videos: Sequence[str] | None = None
    limit: int | None = None
    fast: bool = False

    @property
    def partial(self) -> bool:
        """Whether some videos are left out."""
        return self.videos is not None or self.limit is not None


class Notes(Problems):
    """Makes findings of what the readers' functions note, and of what an examination finds beyond that.

    Args:
        findings: where they go.
        split, video: that they are about; "" where it does not apply.
        files: named by findings that name none of their own.

    Attributes:
        passed_over: kinds that are no mistakes here; the readers' functions may note them.
    """

    def __init__(self, findings: Findings, split: str = "", video: str = "", files: Sequence[Path] = ()):
        super().__init__()
        self.findings, self.split, self.video, self.files = findings, split, video, files
        self.passed_over: Collection[str] = ()
        self._told: set[str] = set()

    def add(
        self, where: str, message: str, kind: str = "entry-malformed", files: Sequence[Path] = (), count: int = 1
    ) -> None:
        super().add(where, message)
        if kind in self.passed_over or message in self._told:
            return
        if kind in _ONCE:
            self._told.add(message)
        inside = where.removeprefix(f"video {self.video}")
        if not self.video or inside == where:
            self.find(kind, f"{where}: {message}", files, count=count)
        else:
            self.find(kind, message, files, inside.partition(" ")[2].partition(" ")[2], count)

    def find(self, kind: str, message: str, files: Sequence[Path] = (), query: str = "", count: int = 1) -> None:
        """Add a finding."""
        named = tuple(map(str, (files or self.files)[:5]))
        self.findings.put(Finding(kind, message, self.split, self.video, query, named, count))


class Examination(ABC):
    """One corpus: finds its files, checks its annotation, and names the clips whose files are to be examined.

    Args:
        row: of the corpus.
        folder: that of the corpus, or the one that holds it.
        options: what to look at.
        findings: where mistakes go.

    Attributes:
        root: the corpus's folder.
        counts: per split, what was counted.
        splits: those examined.
        expected: videos chosen so far; grows as splits are opened.
        met: ids asked for (``options.videos``) that some annotation or folder has.

    Raises:
        ConfigError: the folder does not look like this corpus at all, or lacks a split that was asked for.
    """

    name = ""
    """Of the corpus, in the report, where it is not the row's."""

    marks: tuple[str, ...]
    """Patterns of files and folders, one of which must be in the corpus's folder; the first decide."""

    def __init__(self, row: Corpus, folder: Path, options: Options, findings: Findings):
        self.row, self.options, self.findings = row, options, findings
        self.counts: dict[str, Counter[str]] = {}
        self.expected = 0
        self.met: set[str] = set()
        places = [folder, *(folder / name for name in row.folders)]
        roots = (place for mark in self.marks for place in places if next(place.glob(mark), None) is not None)
        self.root = next(roots, None)
        if self.root is None:
            raise ConfigError(
                f"{folder}: none of {', '.join(self.marks)} here or in {' or '.join(row.folders)}/; give the folder "
                "that holds them"
            )
        found = self.find_splits()
        for split in options.splits or ():
            if split not in found:
                raise ConfigError(f"--split {split}: {folder} has no such split; found {', '.join(found) or 'none'}")
        self.splits = [split for split in found if options.splits is None or split in options.splits]

    @abstractmethod
    def find_splits(self) -> list[str]:
        """Names of the splits that are there; notes files that are missing or cannot be read."""

    @abstractmethod
    def open_split(self, split: str) -> dict[str, Any]:
        """Entries of a split's videos, by id; empty, and noted, if it cannot be examined."""

    @abstractmethod
    def look_at(self, entry: Any, notes: Notes, counts: Counter[str]) -> ClipTask | None:
        """Check a video's entry and names; give its files to examine, if there are any."""

    def close_split(self, split: str, videos: dict[str, Any]) -> None:
        """Checks over all videos of a split, after every clip; by default none."""
        return

    def finish(self) -> None:
        """Checks over all splits together, after every clip; by default none."""
        return

    def open_reader(self, split: str) -> None:
        """Open the split with the project's reader, if it is published with masks.

        Raises:
            DataError: the reader refuses it.
        """
        if split in self.row.splits:
            load(self.row.reader).open(self.root, split, "raise")

    def clips(self, split: str) -> Iterator[ClipTask]:
        """Check the annotation of a split video by video; give the files of each to examine."""
        counts = self.counts.setdefault(split, Counter())
        videos = self.open_split(split)
        chosen = self.chosen(videos)
        self.expected += len(chosen)
        for video_id in chosen:
            counts["videos"] += 1
            notes = Notes(self.findings, split, video_id)
            try:
                task = self.look_at(videos[video_id], notes, counts)
            except Exception as error:  # one entry, however odd, must not end the examination of the others
                told = f"{type(error).__name__}: {error}; look at it by hand"
                notes.find("examination-failed", f"its annotation stopped the examination by {told}")
                continue
            if task is not None:
                yield task
        if videos:
            self.close_split(split, videos)

    def chosen(self, videos: Iterable[str]) -> list[str]:
        """Those of some videos that are to be examined, in order."""
        names = [name for name in videos if self.options.videos is None or name in self.options.videos]
        names = names[: self.options.limit]
        self.met.update(names)
        return names

    def load(self, read: Callable[[Path, Problems], dict[str, Any]], path: Path, split: str) -> dict[str, Any] | None:
        """What a reader's function makes of an annotation file; None, and noted, if it refuses it."""
        notes = Notes(self.findings, split, files=[path])
        try:
            return read(path, notes)
        except DataError as error:
            notes.find("annotation-unreadable", str(error))
            return None

    def task(
        self, notes: Notes, frames: Sequence[Path], questions: Iterable[Question], **masks: Any
    ) -> ClipTask | None:
        """The files of a clip to examine; None without a frame."""
        if not frames:
            return None
        place = dict(split=notes.split, video=notes.video, fast=self.options.fast)
        return ClipTask(frames=tuple(frames), questions=tuple(questions), **masks, **place)


def shown(names: Iterable[Any], most: int = 5) -> str:
    """The first few of some names."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" … ({len(names)} in all)" if len(names) > most else "")


def folders_in(folder: Path) -> list[str]:
    """Names of a folder's folders, sorted, without hidden ones; empty if it cannot be listed."""
    return [path.name for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def note_others(kind: str, message: str, folder: Path, known: Iterable[Path | None], notes: Notes) -> None:
    """Note a folder's images that are none of the known ones, and its files that are no images at all."""
    others = sorted(set(images_in(folder, "", Problems(), kind)) - set(known))
    if others:
        notes.find(kind, f"{message}: {shown(path.name for path in others)}", others, count=len(others))
    strays = [path for path in _entries(folder) if not path.name.lower().endswith(FRAME_SUFFIXES)]
    if strays:
        told = f"{folder} holds files that are no images: {shown(path.name for path in strays)}"
        notes.find("stray-file", told, strays, count=len(strays))


def note_texts_said_twice(questions: Iterable[Question], notes: Notes) -> None:
    """Note questions of one video with the same text (case and white space apart)."""
    by_text: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_text[plain(question.text)].append(question)
    for same in by_text.values():
        if len(same) < 2:
            continue
        kind = "duplicate-text" if len({_meaning(question) for question in same}) == 1 else "contradicting-text"
        others = f"the same text as {shown(question.query_id for question in same[:-1])}: {same[0].text[:80]!r}"
        if kind == "contradicting-text":
            details = "; ".join(f"{q.query_id}: objects {list(q.object_ids)}{_extra(q)}" for q in same[:4])
            others += f", but they differ ({details}); make one of them say what tells them apart"
        notes.find(kind, others, query=same[-1].query_id, count=len(same))


def plain(text: str) -> str:
    """A text in lower case with single spaces."""
    return " ".join(text.lower().split())


def _meaning(question: Question) -> tuple[Any, ...]:
    answer = plain(question.answer or "") if question.is_question else ""
    return frozenset(question.object_ids), answer, question.raw_window


def _extra(question: Question) -> str:
    return f", answer {question.answer!r}, frames {question.raw_window}" if question.is_question else ""


def note_naming(frames: Sequence[Path], notes: Notes, counts: Counter[str], published: tuple[str, ...]) -> None:
    """Note names without a number, names of several or unknown conventions; count the conventions."""
    bare = [path for path in frames if frame_number(path) is None]
    if bare:
        message = f"no number in {shown(path.name for path in bare)}; such frames are sorted last"
        notes.find("frame-without-number", message, bare, count=len(bare))
    names = Counter(convention(path) for path in frames)
    counts.update(f"clips named {name}" for name in names)
    if len(names) > 1:
        firsts = [next(path for path in frames if convention(path) == name) for name in names]
        message = f"{', '.join(f'{n} x {name}' for name, n in names.most_common())}; were two extractions mixed?"
        notes.find("naming-mixed", message, firsts, count=len(frames) - names.most_common(1)[0][1])
    unknown = [path for path in frames if convention(path) not in published]
    if unknown and not bare:
        message = f"{unknown[0].name}: neither {' nor '.join(published)}; the last digits are taken as the number"
        notes.find("naming-unknown", message, unknown, count=len(unknown))
