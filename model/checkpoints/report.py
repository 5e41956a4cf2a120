"""What a load did: every tensor that did not fit, by name and shape."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from utils.errors import CheckpointError, Problems

Shape = tuple[int, ...]


@dataclass
class LoadReport:
    """Outcome of a load; printing it gives the summary, :meth:`raise_if_bad` makes it strict.

    Attributes:
        source: file or folder.
        loaded: number of tensors that found their place.
        missing: tensors of the model that the source lacks, with the model's shape.
        unexpected: tensors of the source that the model lacks, with the source's shape.
        mismatched: (shape in the source, shape in the model) of tensors that fit by name only.
        initialised: modules that no source has and that were newly initialised on purpose.
        ignored: tensors left out knowingly (rotary tables, CLIP's text tower), as name to shape.
        notes: remarks on where things were found.
        digests: of each part of the model as its source stores it, if that was asked for; see
            :func:`utils.tensors.digests_by_part`.
    """

    source: str
    loaded: int = 0
    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    mismatched: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)
    ignored: dict[str, Shape] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def localization_keys(self) -> list[str]:
        """Unexpected tensors that look like a localization or temporal head of another layout."""
        return [name for name in self.unexpected if looks_temporal(name)]

    def raise_if_bad(self, allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = ()) -> None:
        """Fail on any tensor that did not fit.

        Args:
            allow_missing: patterns (``fnmatch``) of names that may be missing.
            allow_unexpected: patterns of names that may be unexpected.

        Raises:
            CheckpointError: with every name and shape.
        """
        problems = Problems(limit=100)
        for name, (stored, wanted) in self.mismatched.items():
            problems.add(name, f"shape {list(stored)} in the checkpoint, {list(wanted)} in the model")
        for name, shape in self.missing.items():
            if not matches(name, allow_missing):
                problems.add(name, f"missing from the checkpoint; the model wants {list(shape)}")
        for name, shape in self.unexpected.items():
            if matches(name, allow_unexpected):
                continue
            problems.add(name, f"{list(shape)} in the checkpoint has no place in the model ({_guess(name)})")
        problems.raise_if_any(
            CheckpointError,
            f"{self.source}: weights and model do not fit; use the right checkpoint or configuration, or allow the "
            f"names by pattern (--allow_missing, --allow_unexpected){self._about_heads(allow_unexpected)}",
        )

    def _about_heads(self, allow_unexpected: Sequence[str]) -> str:
        """What to do about localization or temporal heads that have no place in the model; else nothing."""
        heads = [name for name in self.localization_keys if not matches(name, allow_unexpected)]
        if not heads:
            return ""
        groups = dict.fromkeys(_up_to_head(name) + "*" for name in heads)
        flags = " ".join(f"--allow_unexpected '{group}'" for group in groups)
        return (
            f". {len(heads)} of these tensors are a localization or temporal head in a layout that is not known here "
            f"and cannot be used. To load everything else, add {flags} --seg_only: masks work, times are not predicted"
        )

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  newly initialised: {name}" for name in self.initialised]
        if self.localization_keys:
            lines.append(f"  LOOKS LIKE A LOCALIZATION HEAD, NOT LOADED: {', '.join(self.localization_keys)}")
        lines += [f"  missing: {name} {list(shape)}" for name, shape in self.missing.items()]
        lines += [f"  unexpected: {name} {list(shape)}" for name, shape in self.unexpected.items()]
        lines += [
            f"  mismatched: {name} {list(stored)} in the checkpoint, {list(wanted)} in the model"
            for name, (stored, wanted) in self.mismatched.items()
        ]
        if self.ignored:
            lines.append(f"  ignored on purpose: {len(self.ignored)} tensors ({', '.join(list(self.ignored)[:3])} …)")
        return "\n".join(lines)


def looks_temporal(name: str) -> bool:
    """Whether a tensor's name suggests a localization or temporal head (``loc``, ``temporal`` as words)."""
    words = name.lower().replace(".", "_").split("_")
    return any(word.startswith("temporal") or word in ("loc", "localization", "localisation") for word in words)


def _up_to_head(name: str) -> str:
    """A name as far as the module that makes it look temporal: ``model.loc_head.0.weight`` to ``model.loc_head``."""
    parts = name.split(".")
    last = next(index for index, part in enumerate(parts) if looks_temporal(part))
    return ".".join(parts[: last + 1])


def _guess(name: str) -> str:
    """What an unexpected tensor probably is."""
    if "lora_" in name:
        return "an unmerged LoRA matrix: merge it with merge_lora_weights_and_save_hf_model.py"
    if looks_temporal(name):
        return "a localization or temporal head of another layout"
    return "unknown"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any ``fnmatch`` pattern fits the name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name to shape."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
