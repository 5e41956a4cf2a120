"""What the three corpora's examinations share: raw annotation files, names of frames, texts said twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.corpora.base import videos_of
from datasets.doctor.clip import ClipTask
from datasets.doctor.files import convention, impostors_in, strays_in
from datasets.doctor.findings import Findings
from datasets.sample import Question
from utils.errors import ConfigError, DataError, Problems
from utils.files import not_a_file, read_json
from utils.video import frame_number


@dataclass(frozen=True)
class Options:
    """What part of a corpus is examined, and how deeply.

    Attributes:
        splits: names, or None for all that are found.
        videos: ids, or None for all.
        limit: at most this many videos of each split, or None.
        fast: headers and names only.
    """

    splits: tuple[str, ...] | None = None
    videos: tuple[str, ...] | None = None
    limit: int | None = None
    fast: bool = False

    @property
    def partial(self) -> bool:
        """Whether some videos are left out."""
        return self.videos is not None or self.limit is not None

    def choose(self, names: Iterable[str]) -> list[str]:
        """The videos to examine, in order."""
        chosen = [name for name in names if self.videos is None or name in self.videos]
        return chosen[: self.limit]


class Examination(ABC):
    """One corpus: finds its files, checks its annotation, and names the clips whose files are to be examined.

    Args:
        folder: that of the corpus, or the one that holds it.
        options: what to look at.
        findings: where mistakes go.

    Attributes:
        counts: per split, what was counted.
        splits: those examined.
        expected: videos chosen so far; grows as splits are opened.
        met: ids asked for (``options.videos``) that some annotation or folder has.

    Raises:
        ConfigError: the folder does not look like this corpus at all, or lacks a split that was asked for.
    """

    name: str
    unit: str
    """What is asked about a video: "questions" or "expressions"."""

    def __init__(self, folder: Path, options: Options, findings: Findings):
        self.folder, self.options, self.findings = folder, options, findings
        self.counts: dict[str, Counter[str]] = {}
        self.expected = 0
        self.met: set[str] = set()
        found = self.find_splits()
        for split in options.splits or ():
            if split not in found:
                raise ConfigError(f"--split {split}: {folder} has no such split; found {', '.join(found) or 'none'}")
        self.splits = [split for split in found if options.splits is None or split in options.splits]

    @abstractmethod
    def find_splits(self) -> list[str]:
        """Names of the splits that are there; notes files that are missing or cannot be read."""

    @abstractmethod
    def clips(self, split: str) -> Iterator[ClipTask]:
        """Check the annotation of a split video by video; give the files of each to examine."""

    @abstractmethod
    def open_reader(self, split: str) -> None:
        """Open the split with the project's reader.

        Raises:
            DataError: the reader refuses it.
        """

    def finish(self) -> None:
        """Checks over all splits together, after every clip; by default none."""
        return

    def chosen(self, videos: Iterable[str]) -> list[str]:
        """The videos of a split to examine, in order; adds them to ``expected``."""
        names = self.options.choose(videos)
        self.expected += len(names)
        self.met.update(names)
        return names

    def attempt(
        self, check: Callable[..., ClipTask | None], split: str, video: str, *details: Any
    ) -> tuple[ClipTask, ...]:
        """What ``check(split, video, *details)`` gives, if anything; an entry that breaks it is itself a finding."""
        try:
            task = check(split, video, *details)
        except Exception as error:  # one entry, however odd, must not end the examination of the others
            message = f"its annotation stopped the examination by {type(error).__name__}: {error}; look at it by hand"
            self.findings.add("examination-failed", message, split=split, video=video)
            return ()
        return () if task is None else (task,)

    def unclaimed(self, folders: Iterable[str]) -> list[str]:
        """Those of some folders without annotation that are to be reported, in order."""
        names = self.options.choose(folders)
        self.met.update(names)
        return names

    def noted(self, kind: str, problems: Problems, where: str, **place: Any) -> bool:
        """Turn what a reader's function noted into findings of one kind; whether there were any."""
        for message in problems.messages:
            text = message.removeprefix(f"{where}: ")
            self.findings.add(kind, text, **place)
        return bool(problems)

    def note_strays(self, folder: Path, **place: Any) -> None:
        """Note what lies in a clip's folder and is no image."""
        impostors = impostors_in(folder)
        if impostors:
            message = f"{folder}: {shown(f'{p.name} {not_a_file(p)}' for p in impostors)}; remove it"
            self.findings.add("not-a-file", message, impostors[:5], count=len(impostors), **place)
        strays = strays_in(folder)
        if strays:
            message = f"{folder} holds files that are no images: {shown(p.name for p in strays)}"
            self.findings.add("stray-file", message, strays[:5], count=len(strays), **place)


def read_annotation(path: Path, findings: Findings, split: str) -> dict[str, Any] | None:
    """The ``videos`` of an annotation file; None if unusable. Notes keys given twice, which JSON readers hide."""
    twice: list[str] = []
    problems = Problems()
    try:
        videos = videos_of(read_json(path, twice), path, problems)
    except DataError as error:
        findings.add("annotation-unreadable", str(error), [path], split=split)
        return None
    for message in problems.messages:
        findings.add("bad-name", message, [path], split=split)
    note_repeated_keys(path, twice, findings, split)
    return videos


def note_repeated_keys(path: Path, twice: list[str], findings: Findings, split: str) -> None:
    """Note keys that an object of a JSON file has twice."""
    if twice:
        message = (
            f"{path}: {len(twice)} keys are given twice in one object, so all but the last of their values are lost: "
            f"{shown(twice)}"
        )
        findings.add("duplicate-key", message, [path], split=split, count=len(twice))


def shown(names: Iterable[Any], most: int = 5) -> str:
    """The first few of some names."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" … ({len(names)} in all)" if len(names) > most else "")


def note_texts_said_twice(questions: Iterable[Question], findings: Findings, split: str, video: str) -> None:
    """Note questions of one video with the same text (case and white space apart)."""
    by_text: dict[str, list[Question]] = defaultdict(list)
    for query in questions:
        by_text[" ".join(query.text.lower().split())].append(query)
    for same in by_text.values():
        if len(same) < 2:
            continue
        meanings = {_meaning(query) for query in same}
        others = f"the same text as {shown(query.query_id for query in same[:-1])}: {same[0].text[:80]!r}"
        kind = "duplicate-text" if len(meanings) == 1 else "contradicting-text"
        if kind == "contradicting-text":
            details = "; ".join(f"{q.query_id}: objects {list(q.object_ids)}{_extra(q)}" for q in same[:4])
            others += f", but they differ ({details}); make one of them say what tells them apart"
        findings.add(kind, others, split=split, video=video, query=same[-1].query_id, count=len(same))


def _meaning(query: Question) -> tuple[Any, ...]:
    answer = " ".join((query.answer or "").lower().split())
    return frozenset(query.object_ids), answer if query.is_question else "", query.raw_window


def _extra(query: Question) -> str:
    return f", answer {query.answer!r}, frames {query.raw_window}" if query.is_question else ""


def note_numbering(
    frames: Iterable[Path], findings: Findings, counts: Counter[str], published: tuple[str, ...], **place: Any
) -> None:
    """Note names without a number, names of several or unknown conventions; count the conventions."""
    frames = list(frames)
    if not frames:
        return
    bare = [path for path in frames if frame_number(path) is None]
    if bare:
        message = f"no number in {shown(path.name for path in bare)}; such frames are sorted last"
        findings.add("frame-without-number", message, bare[:5], count=len(bare), **place)
    names = Counter(convention(path) for path in frames)
    for name in names:
        counts[f"clips named {name}"] += 1
    if len(names) > 1:
        firsts = [next(path for path in frames if convention(path) == name) for name in names]
        message = f"{', '.join(f'{n} x {name}' for name, n in names.most_common())}; were two extractions mixed?"
        findings.add("naming-mixed", message, firsts, count=len(frames) - names.most_common(1)[0][1], **place)
    unknown = [path for path in frames if convention(path) not in published]
    if unknown and not bare:
        message = f"{unknown[0].name}: neither {' nor '.join(published)}; the last digits are taken as the number"
        findings.add("naming-unknown", message, unknown[:5], count=len(unknown), **place)
