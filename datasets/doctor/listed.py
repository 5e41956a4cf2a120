"""What Refer-YouTube-VOS and MeViS share: an annotation file that lists each video's frames by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.corpora.base import files_by_stem, find_named, get_field, ordered_frame_names
from datasets.doctor.annotations import Examination, note_numbering, shown
from datasets.doctor.files import folders_in, images_in
from utils.errors import ConfigError, Problems
from utils.video import frame_number

PUBLISHED = ("%05d",)
"""How both corpora name frames."""


@dataclass(frozen=True)
class ListedVideo:
    """A video's entry, as far as it can be used.

    Attributes:
        names: frames in time order; empty if unusable.
        kept: which of them have an image.
        frames: those images.
        expressions: raw entries by id.
    """

    names: tuple[str, ...]
    kept: tuple[int, ...]
    frames: tuple[Path, ...]
    expressions: dict[str, Any]


class ListedExamination(Examination):
    """Base of the two examinations.

    Attributes:
        root: the corpus's folder.
    """

    unit = "expressions"
    folders: tuple[str, ...]
    """Names that the corpus's folder may have inside a folder of all corpora."""

    def find_root(self, marks: Iterable[str]) -> Path:
        """The corpus's folder: DIR, or the one in it that has one of ``folders`` as its name.

        Args:
            marks: glob patterns, one of which must match something in it.

        Raises:
            ConfigError: nothing matches.
        """
        marks = list(marks)
        for place in (self.folder, *(self.folder / name for name in self.folders)):
            if any(next(place.glob(mark), None) is not None for mark in marks):
                return place
        raise ConfigError(
            f"{self.folder}: none of {', '.join(marks)} here or in {' or '.join(self.folders)}/; give the folder that "
            "holds them"
        )

    def require(self, split: str, path: Path, what: str) -> bool:
        """Whether a file or folder exists; noted if not."""
        if path.exists():
            return True
        self.findings.add("layout-missing", f"{path}: missing; it should hold {what}", [path], split=split)
        return False

    def open_video(
        self, split: str, video_id: str, video: Any, images: Path, counts: Counter[str]
    ) -> ListedVideo | None:
        """List a video's frames, find them, and note what is wrong with them; None if the entry is unusable."""
        where, place = f"video {video_id}", dict(split=split, video=video_id)
        problems = Problems()
        if not isinstance(video, dict):
            problems.add(where, f"must be an object with 'frames' and 'expressions', not {type(video).__name__}")
            self.noted("video-malformed", problems, where, **place)
            return None
        names = ordered_frame_names(video, where, problems)
        expressions = get_field(video, "expressions", dict, where, problems) or {}
        self.noted("video-malformed", problems, where, **place)
        if names is None:
            return ListedVideo((), (), (), expressions)
        problems = Problems()
        files = self.files(images, ".jpg", where, **place)
        find_named(names, files, images, "frame", where, problems)
        missing = [images / f"{name}.jpg" for name in names if name not in files]
        kind = "frame-missing" if files else "video-without-folder"
        self.noted(kind, problems, where, files=missing[:5], count=max(1, len(missing)), **place)
        kept = tuple(index for index, name in enumerate(names) if name in files)
        frames = tuple(files[names[index]] for index in kept)
        self._note_names(names, frames, files, counts, place)
        self.note_strays(images, **place)
        counts["frames"] += len(frames)
        return ListedVideo(tuple(names), kept, frames, expressions)

    def files(self, folder: Path, suffix: str, where: str, **place: Any) -> dict[str, Path]:
        """A folder's images by stem; what is wrong with their names is noted."""
        problems = Problems()
        files = files_by_stem(folder, suffix, where, problems)
        if problems and not files:  # told by note_strays and find_named, unless there is no reading the folder
            return {path.stem: path for path in images_in(folder) if path.suffix.lower() == suffix}
        self.noted("frame-number-repeated", problems, where, **place)
        return files

    def _note_names(
        self, names: list[str], frames: tuple[Path, ...], files: dict[str, Path], counts: Counter[str], place: dict
    ) -> None:
        note_numbering(frames, self.findings, counts, PUBLISHED, **place)
        extra = sorted(set(files) - set(names))
        if extra:
            message = f"frame files that the annotation does not list: {shown(extra)}"
            self.findings.add("frame-unlisted", message, [files[n] for n in extra[:5]], count=len(extra), **place)
        numbers = [frame_number(name) for name in names]
        if len(numbers) > 2 and None not in numbers:
            steps = Counter(after - before for before, after in zip(numbers, numbers[1:]))
            usual = steps.most_common(1)[0][0]
            odd = [k for k in range(1, len(numbers)) if numbers[k] - numbers[k - 1] != usual]
            if odd:
                message = f"frames are {usual} apart, but not {shown(f'{names[k - 1]} and {names[k]}' for k in odd)}"
                self.findings.add("frame-step-irregular", message, count=len(odd), **place)

    def note_unclaimed(self, split: str, folder: Path, videos: dict[str, Any]) -> None:
        """Note folders of videos that the annotation does not name."""
        for name in self.unclaimed(n for n in folders_in(folder) if n not in videos):
            message = f"{folder / name}: the annotation of {split} does not name this video"
            self.findings.add("folder-without-annotation", message, [folder / name], split=split, video=name)
