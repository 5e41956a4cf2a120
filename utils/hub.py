"""Where a model is: a folder here, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from utils.errors import CheckpointError

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def is_hub_name(name: str | Path) -> bool:
    """Whether a name that is no folder here may be one on the hub ("owner/name")."""
    return bool(_HUB_NAME.match(str(name))) and not str(name).startswith(".")


def _bases(beside: Path | None) -> list[Path]:
    """Where a relative name is looked for: here, within a checkpoint folder and next to it."""
    return [Path()] if beside is None else [Path(), beside, beside.parent]


def resolve_folder(name: str | Path, beside: Path | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: a folder, or "owner/name" on the Hugging Face hub (downloaded into its cache).
        beside: a checkpoint folder; a relative ``name`` is looked for here, within it and next to it.

    Raises:
        CheckpointError: neither a folder nor a model that the hub or its cache can give.
    """
    for base in _bases(beside):
        if os.path.isdir(base / name):  # unlike Path.is_dir, False for a name that no file system takes
            return base / name
    where = " or ".join(str(base.resolve()) for base in _bases(beside))
    if not is_hub_name(name):
        raise CheckpointError(f"{name}: no such folder (looked in {where}); check the path")
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=["*.json", "*.model", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(str(name), allow_patterns=["pytorch_model*.bin"])
    except _HUB_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{name}: no such folder (looked in {where}), and the Hugging Face hub did not give it ({reason}); "
            "download it and pass its path"
        ) from None
    return folder


def require_local(name: str | Path | None, beside: Path | None, flag: str) -> None:
    """Refuse a path that leads nowhere, before it is known whether it will be needed.

    Args:
        name: file, folder or hub name; None and hub names pass.
        beside: see :func:`resolve_folder`.
        flag: the command line's name for it, for the message.

    Raises:
        CheckpointError: there is nothing under that name.
    """
    if name is None or is_hub_name(name):
        return
    if not any(os.path.exists(base / name) for base in _bases(beside)):
        raise CheckpointError(f"{flag} {name}: no such file or folder; correct the path or leave it out")
