"""GroundMoRe's masks: which file belongs to which frame, and whether the two are numbered alike."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import DataError
from utils.video import frame_number

_MASK_NAME = re.compile(r"(?:frame_)?[0-9]+")
"""Both published conventions, padded with any number of zeros."""


@dataclass(frozen=True)
class MaskMatch:
    """Which mask files belong to the frames of a clip.

    Attributes:
        paths: one per frame; None where there is no file.
        orphans: mask files that belong to no frame.
        fault: why the numbers of frames and masks do not fit, so that masks may lie under wrong frames; else None.
        beyond: what to say if every frame has its mask while masks go on behind the last frame; else None.
    """

    paths: tuple[Path | None, ...]
    orphans: tuple[Path, ...]
    fault: str | None = None
    beyond: str | None = None


def match_masks(frames: Sequence[Path], files: Iterable[Path]) -> MaskMatch:
    """For each frame the mask of the same stem, else the one of the same number in another convention.

    Args:
        frames: of a clip, in time order.
        files: images of its folder of masks; those that are no PNG are passed over.

    Raises:
        DataError: no mask of any of these frames, or two of one frame.
    """
    by_stem = {path.stem: path for path in sorted(files) if path.suffix.lower() == ".png"}
    by_number: dict[int | None, list[Path]] = defaultdict(list)
    for stem, path in by_stem.items():
        if _MASK_NAME.fullmatch(stem):
            by_number[frame_number(path)].append(path)
    paths = []
    for frame in frames:
        same = by_number.get(frame_number(frame), [])
        if frame.stem not in by_stem and len(same) > 1:
            raise DataError(f"{same[0].name} and {same[1].name} are both masks of {frame.name}; keep one")
        paths.append(by_stem.get(frame.stem) or next(iter(same), None))
    if frames and not any(paths):
        raise DataError(f"no mask (.png) for any of the {len(frames)} frames; names must be those of the frames")
    orphans = tuple(sorted(set(by_stem.values()) - set(paths)))
    return MaskMatch(tuple(paths), orphans, *(_numbering(frames, paths, orphans) if orphans else (None, None)))


def _numbering(
    frames: Sequence[Path], paths: Sequence[Path | None], orphans: Sequence[Path]
) -> tuple[str | None, str | None]:
    """``fault`` and ``beyond`` of :class:`MaskMatch`.

    Frames without a mask are as they should be. A mask without a frame is not: numbered from another start, or in other
    steps, than the frames, every mask lies under a wrong frame, and none is missed but the last. Within the frames'
    numbers only a missing frame leaves a mask alone, which is a mistake of its own.
    """
    lacking = {frame_number(frame): frame for frame, path in zip(frames, paths) if path is None}
    numbers = [number for number in map(frame_number, frames) if number is not None]
    numbered = [(number, path) for path in orphans if (number := frame_number(path)) is not None]
    lost = [path for number, path in numbered if number in lacking]
    if lost:
        frame = lacking[frame_number(lost[0])]
        return f"{lost[0].name} has the number of {frame.name}, which has no mask, but not its name; rename it", None
    outside = [path for number, path in numbered if numbers and not min(numbers) <= number <= max(numbers)]
    if not outside:
        return None, None
    message = (
        f"{len(outside)} masks ({outside[0].name}{' …' if len(outside) > 1 else ''}) have no frame; frames "
        f"are numbered {min(numbers)} to {max(numbers)}"
    )
    if not lacking and all(frame_number(path) > max(numbers) for path in outside):
        return None, f"{message}; passed over, as every frame has its mask"
    return (
        f"{message}, and {len(lacking)} have no mask. Do frames and masks count from the same start, in the same "
        "steps? If not, every mask lies under a wrong frame: number both alike. If so, remove masks without a frame",
        None,
    )
