"""Find the folders a checkpoint needs, and fill the modules it does not bring itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from model.checkpoints.key_maps import SAM_PARTS, rename_clip, rename_sam
from model.checkpoints.published import clip_config
from model.checkpoints.report import LoadReport, shapes_of
from model.checkpoints.shapes import sam_config_of
from model.checkpoints.state_files import SUFFIXES, read_state_dict
from utils.errors import CheckpointError

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


def resolve_folder(name: str | Path, beside: Path | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: a folder, or "owner/name" on the Hugging Face hub (downloaded into its cache).
        beside: a checkpoint folder; a relative ``name`` is looked for here, within it and next to it.

    Raises:
        CheckpointError: neither a folder nor a model that the hub or its cache can give.
    """
    bases = [Path()] if beside is None else [Path(), beside, beside.parent]
    for base in bases:
        if os.path.isdir(base / name):  # unlike Path.is_dir, False for a name that no file system takes
            return base / name
    where = " or ".join(str(base.resolve()) for base in bases)
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


def is_hub_name(name: str | Path) -> bool:
    """Whether a name that is no folder here may be one on the hub ("owner/name")."""
    return bool(_HUB_NAME.match(str(name))) and not str(name).startswith(".")


def require_local(name: str | Path | None, beside: Path | None, flag: str) -> None:
    """Refuse a path that leads nowhere, before it is known whether it will be needed.

    Args:
        name: file, folder or hub name; None and hub names pass.
        beside: a checkpoint folder; a relative ``name`` may also be within it or next to it.
        flag: the command line's name for it, for the message.

    Raises:
        CheckpointError: there is nothing under that name.
    """
    if name is None or is_hub_name(name):
        return
    bases = [Path()] if beside is None else [Path(), beside, beside.parent]
    if not any(os.path.exists(base / name) for base in bases):
        raise CheckpointError(f"{flag} {name}: no such file or folder; correct the path or leave it out")


def read_sam(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read a SAM checkpoint of the original or the transformers layout.

    Args:
        path: ``sam_vit_h_4b8939.pth`` or the like, or a folder of ``transformers.SamModel``.

    Returns:
        (tensors named as in :class:`model.segmenters.sam.SamSegmenter`, tensors of unknown name).

    Raises:
        CheckpointError: unreadable, or nothing in it belongs to SAM.
    """
    renamed, unknown = rename_sam(read_state_dict(path))
    if not renamed:
        raise CheckpointError(f"{path}: no tensor of SAM in it; expected sam_vit_h_4b8939.pth or a SamModel folder")
    return renamed, unknown


def fill_sam(tensors: dict[str, Tensor], vision_pretrained: str | Path | None, report: LoadReport) -> None:
    """Add those parts of SAM that ``tensors`` lacks altogether; a trained part is never overwritten.

    Args:
        tensors: named as in :class:`model.mora.MoraModel`; changed in place.
        vision_pretrained: where missing parts come from.
        report: gets a note per part.

    Raises:
        CheckpointError: a part is missing and there is no SAM checkpoint, or that has not got it either.
    """
    lacking = {
        part: tuple(f"sam.{prefix}" for prefix in prefixes)
        for part, prefixes in SAM_PARTS.items()
        if not any(name.startswith(tuple(f"sam.{prefix}" for prefix in prefixes)) for name in tensors)
    }
    if not lacking:
        if vision_pretrained is not None:
            examine_sam(vision_pretrained)
            report.notes.append(f"{vision_pretrained} NOT USED: the checkpoint brings all of SAM, trained")
        return
    if vision_pretrained is None:
        raise CheckpointError(
            f"{report.source}: has no SAM {', '.join(lacking)}; give a SAM checkpoint (--vision_pretrained)"
        )
    source, unknown = read_sam(vision_pretrained)
    report.unexpected.update(shapes_of(unknown))
    for part, prefixes in lacking.items():
        found = {f"sam.{name}": tensor for name, tensor in source.items() if f"sam.{name}".startswith(prefixes)}
        if not found:
            raise CheckpointError(f"{vision_pretrained}: has no {part} either, which {report.source} lacks")
        tensors.update(found)
        report.notes.append(f"SAM {part} from {vision_pretrained}")


def examine_sam(path: str | Path) -> None:
    """Make sure that a file which is not needed is a SAM all the same: a wrong path should not wait to be noticed.

    Files are mapped, so little more than their lists of tensors is read.

    Raises:
        CheckpointError: it is something else, or cannot be read.
    """
    tensors, unknown = read_sam(path)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} of its tensors have no place in SAM ({', '.join(list(unknown)[:3])} …); give "
            "sam_vit_h_4b8939.pth or a SamModel folder (--vision_pretrained), or leave it out: it is not needed here"
        )
    if any(name.startswith("vision_encoder.") for name in tensors):
        try:
            sam_config_of(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: not a SAM that is known here: {error}") from None


def examine_tower(folder: Path) -> None:
    """As :func:`examine_sam`, for a folder with a CLIP vision tower that is not needed.

    Raises:
        CheckpointError: it is something else, or cannot be read.
    """
    clip_config(folder)
    tower, _ = rename_clip(read_state_dict(folder))
    if not any(name.endswith("embeddings.patch_embedding.weight") for name in tower):
        raise CheckpointError(
            f"{folder}: no CLIP vision tower in its weights; give a folder of CLIPModel or CLIPVisionModel "
            "(--vision-tower), or leave it out: it is not needed here"
        )


def fill_tower(tensors: dict[str, Tensor], folder: Path, report: LoadReport) -> None:
    """Add the vision tower of ``folder`` unless ``tensors`` brings one; changed in place.

    Raises:
        CheckpointError: the folder's weights cannot be read, or (even if they are not needed) are no vision tower's.
    """
    if any(name.startswith("vision_tower.") for name in tensors):
        if any(file.suffix in SUFFIXES for file in folder.iterdir()):
            examine_tower(folder)
        report.notes.append(f"vision tower from the checkpoint itself; the weights in {folder} are NOT USED")
        return
    tower, ignored = rename_clip(read_state_dict(folder))
    tensors.update({f"vision_tower.{name}": tensor for name, tensor in tower.items()})
    report.ignored.update(shapes_of(ignored))
    report.notes.append(f"vision tower from {folder}")
