"""The files of a training checkpoint, read without trust: run.json, ``latest``, DeepSpeed's states."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError, DataError, Problems
from utils.files import read_json

RUN_CARD = "run.json"
FORMAT = 1

UNRECORDED = "unrecorded"
"""The run of checkpoints from before runs had names."""

HARMLESS_NAMES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Classes that DeepSpeed puts into its files beside tensors; nothing else is ever unpickled."""


def _harmless_types() -> list[Any]:
    """The classes of HARMLESS_NAMES."""
    parts = [name.rpartition(".") for name in sorted(HARMLESS_NAMES)]
    return [getattr(importlib.import_module(module), name) for module, _, name in parts]


def check_states(path: str | Path) -> None:
    """Look into one file of a DeepSpeed checkpoint, without opening it, for anything that would run code.

    Raises:
        CheckpointError: missing, truncated, or holds objects other than tensors, plain values and DeepSpeed's own.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete, take an earlier one")
    try:
        foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - HARMLESS_NAMES
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read, probably truncated ({path.stat().st_size:,} bytes; {str(error)[:200]}); take an "
            "earlier checkpoint"
        ) from error
    if foreign:
        raise CheckpointError(
            f"{path}: refused, opening it would run {', '.join(sorted(foreign))}; use only checkpoints written by this "
            "program"
        )


def load_states(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read one file of a DeepSpeed checkpoint without running code from it.

    Args:
        path: a ``*_states.pt`` file.
        map_location: as in ``torch.load``.

    Raises:
        CheckpointError: see :func:`check_states`.
    """
    check_states(path)
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error)[:200]}); take an earlier checkpoint") from error


def read_run_card(folder: str | Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint, after checking that the folder is a whole one.

    Returns:
        dict with ``step``, ``epoch``, ``world_size``, ``args`` and what the run put there.

    Raises:
        CheckpointError: no such folder, no ``latest``, no ``run.json``, or an unknown format.
    """
    folder = Path(folder)
    _require_folder(folder)
    tag_folder(folder)
    path = folder / RUN_CARD
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {RUN_CARD}; it was not written by this program, or is incomplete")
    try:
        card = read_json(path)
    except DataError as error:
        raise CheckpointError(f"{error}; or take an earlier checkpoint") from None
    found = card.get("format") if isinstance(card, dict) else None
    if type(found) is not int or found != FORMAT:
        raise CheckpointError(f"{path}: format {found!r}, this program reads {FORMAT}")
    missing = {"step", "epoch", "world_size"} - set(card)
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(sorted(missing))}; take an earlier checkpoint")
    problems = Problems()
    for name, least in (("step", 0), ("epoch", 0), ("world_size", 1)):
        if type(card[name]) is not int or card[name] < least:
            problems.add(name, f"{card[name]!r} is no whole number from {least} on")
    for name, kind, words in (("args", dict, "an object"), ("run_id", str, "a text")):
        if not isinstance(card.get(name, kind()), kind):
            problems.add(name, f"{card[name]!r} is not {words}")
    problems.raise_if_any(CheckpointError, f"{path}: damaged, take an earlier checkpoint")
    return card


def _require_folder(folder: Path) -> None:
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder")
        next(folder.iterdir(), None)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the checkpoint folder cannot be read ({error})") from None


def tag_folder(folder: str | Path) -> Path:
    """The folder inside a DeepSpeed checkpoint that its file ``latest`` names.

    Raises:
        CheckpointError: ``latest`` is absent, or names what is not there.
    """
    folder = Path(folder)
    latest = folder / "latest"
    if not latest.is_file():
        found = sorted(path.name for path in folder.glob("global_step*"))
        hint = f"write '{found[-1]}' into it if that folder is complete" if found else "there is no global_step* in it"
        raise CheckpointError(f"{folder}: checkpoint without a file 'latest'; {hint}, or take another checkpoint")
    try:
        tag = latest.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{latest}: cannot be read ({error}); take another checkpoint") from None
    if not tag or tag in (".", "..") or not tag.isprintable() or "/" in tag or len(tag.encode()) > 255:
        raise CheckpointError(f"{latest}: names {tag[:80]!r}, which is no folder beside it; take another checkpoint")
    if not (folder / tag).is_dir():
        raise CheckpointError(f"{latest}: names '{tag}', which is not there; take another checkpoint")
    return folder / tag
