"""The layout of this project: what ``MoraModel.save_pretrained`` writes."""

from __future__ import annotations

import os

from torch import Tensor

from model.checkpoints.clip import fill_tower
from model.checkpoints.files import read_state_dict, strip_wrappers
from model.checkpoints.layout import Reading, Request, build_config, new_parts, refuse_tower, require_sizes
from model.checkpoints.report import LoadReport
from model.checkpoints.sam import fill_sam
from model.config import stored_config
from utils.errors import CheckpointError, ConfigError
from utils.hub import is_hub_name, resolve_folder


def read(request: Request) -> Reading:
    """Read a folder; ``config.json`` gives every default. Vision tower and SAM are only looked for elsewhere if it was
    saved without them. Parts that an override adds (a [LOC] head, the embedding of time) are to be new."""
    folder, tower, report = request.folder, request.vision_tower, request.report
    before = stored_config(request.stored, folder / "config.json")
    refuse_tower(request, before.backbone)
    tensors = strip_wrappers(read_state_dict(folder))
    # The first exports were written with transformers 4, whose tower has one more level of names.
    tensors = {name.replace("vision_tower.vision_model.", "vision_tower.", 1): t for name, t in tensors.items()}
    if tower is not None:
        brought = any(name.startswith("vision_tower.") for name in tensors)
        if brought and is_hub_name(tower) and not os.path.isdir(tower):  # it is not fetched for nothing
            report.notes.append(f"{tower} NOT USED: the checkpoint brings its vision tower")
        else:
            fill_tower(tensors, resolve_folder(tower, beside=folder), report)
    if before.segmenter == "sam":
        fill_sam(tensors, request.vision_pretrained, report)
    elif request.vision_pretrained is not None:
        raise CheckpointError(
            f"{request.vision_pretrained}: not needed, the checkpoint brings its segmenter {before.segmenter!r}; leave "
            "it out (--vision_pretrained)"
        )
    require_sizes(before, tensors, {"": folder / "config.json"})
    config = build_config(before.to_dict(), request.overrides)
    if config.loc_mode != before.loc_mode:
        _change_head(before.loc_mode, config.loc_mode, tensors, report)
    return Reading(config, tensors, new_parts(before, config))


def _change_head(saved: str, asked: str, tensors: dict[str, Tensor], report: LoadReport) -> None:
    """Drop a saved [LOC] head that is not wanted; refuse to replace it by an untrained one of another kind."""
    if saved == "none":
        return
    if asked != "none":
        raise ConfigError(
            f"loc_mode: {report.source} holds a [LOC] head for {saved!r}, and a head for {asked!r} is another network; "
            f"use {saved!r}, or export the model without its head (loc_mode 'none') and train the other"
        )
    for name in [name for name in tensors if name.startswith("loc_head.")]:
        report.ignored[name] = tuple(tensors.pop(name).shape)
    report.notes.append("its [LOC] head is left out (loc_mode 'none')")
