"""Open checkpoints: this project's own folders, the published LISA / MoRA layout, and SAM's files.

Every load says what did not fit, by name and shape, and fails unless told otherwise. docs/checkpoints.md describes the
layouts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.assemble import assemble
from model.checkpoints.export_card import exported_digests, require_undamaged, stored_digests
from model.checkpoints.finite import note_non_finite, raise_non_finite, require_weights
from model.checkpoints.key_maps import rename_clip, strip_prefix, strip_wrappers
from model.checkpoints.published import (
    HEAD_PREFIX,
    LLAVA_TYPES,
    clip_config,
    find_token_id,
    llama_config,
    projector_kind,
    read_config,
    rename_published,
)
from model.checkpoints.report import LoadReport, shapes_of
from model.checkpoints.shapes import require_sizes, sam_config_of
from model.checkpoints.sources import (
    examine_tower,
    fill_sam,
    fill_tower,
    is_hub_name,
    read_sam,
    require_local,
    resolve_folder,
)
from model.checkpoints.state_files import read_state_dict
from model.config import MoraConfig, stored_config
from model.fields import shown
from model.mora import MoraModel
from model.segmenters.sam import SamSegmenter
from utils.errors import CheckpointError, ConfigError, Problems

__all__ = ["LoadReport", "load_any", "load_lisa", "load_own", "load_sam_checkpoint", "read_state_dict"]


def load_any(
    version: str | Path,
    vision_pretrained: str | Path | None = None,
    vision_tower: str | Path | None = None,
    **options: Any,
) -> tuple[MoraModel, LoadReport]:
    """Open a model folder of either layout.

    Args:
        version: a folder, or "owner/name" on the Hugging Face hub. ``config.json`` tells the layout: ``model_type``
            "mora" is our own, "llava" the published one.
        vision_pretrained: a SAM checkpoint for the parts of SAM that the folder lacks.
        vision_tower: a CLIP folder, if the folder has no tower and names none that can be found. If it has one, the
            report says that this one was not used; a path that does not exist is an error all the same.
        options: as for :func:`load_lisa`: ``device``, ``dtype``, ``attn_implementation``, ``seed``,
            ``allow_missing``, ``allow_unexpected``, and any field of :class:`model.config.MoraConfig`.

    Returns:
        The model in eval mode on ``device``, and what the load did.

    Raises:
        CheckpointError: no folder, no ``config.json``, an unknown ``model_type``, or weights that do not fit.
        ConfigError: an option that does not exist or values that contradict each other.
    """
    folder = resolve_folder(version)
    return _load(_reader_of(folder), folder, vision_pretrained, vision_tower, **options)


def digest_base(
    version: str | Path,
    vision_pretrained: str | Path | None = None,
    vision_tower: str | Path | None = None,
    **overrides: Any,
) -> dict[str, str]:
    """What ``report.digests`` of :func:`load_any` would be, without making a model; the weights are read, mapped.

    Args:
        version, vision_pretrained, vision_tower: as for :func:`load_any`.
        overrides: fields of :class:`model.config.MoraConfig`.

    Raises:
        CheckpointError: see :func:`load_any`.
        ConfigError: see :func:`load_any`.
    """
    folder = resolve_folder(version)
    report = LoadReport(str(folder))
    stored = read_config(folder)
    request = _Request(folder, stored, vision_pretrained, vision_tower, None, overrides, report)
    return stored_digests(_reader_of(folder)(request)[1])


def _reader_of(folder: Path) -> Callable[[_Request], _Reading]:
    """The reader of a folder's layout.

    Raises:
        CheckpointError: no ``config.json``, or a layout that is not known.
    """
    kind = read_config(folder).get("model_type")
    if kind == MoraConfig.model_type:
        return _own
    if kind in LLAVA_TYPES:
        return _published
    raise CheckpointError(
        f"{folder}/config.json: model_type is {shown(kind)}; known are {MoraConfig.model_type!r} (written here) and "
        f"{', '.join(map(repr, LLAVA_TYPES))} (LLaVA v1, LISA, MoRA)"
    )


def load_lisa(
    folder: str | Path,
    vision_pretrained: str | Path | None = None,
    vision_tower: str | Path | None = None,
    **options: Any,
) -> tuple[MoraModel, LoadReport]:
    """Open a published LISA or MoRA folder, or a LLaVA v1 base to train from.

    Sizes are read off the tensors and ``config.json``; nothing is assumed. What the checkpoint brings is never
    replaced: ``vision_pretrained`` fills only parts of SAM that are absent altogether.

    Args:
        folder: local folder or hub name.
        vision_pretrained: SAM file or folder.
        vision_tower: CLIP folder or hub name; default: what ``config.json`` says, relative to the working directory,
            to the folder or to its parent.
        options: ``device``: where the model goes (CPU). ``dtype``: of the weights; default: as the word embeddings are
            stored. ``attn_implementation``: of the language model ("sdpa", "eager", "flash_attention_2"). ``seed``: for
            modules that no source has (a new [LOC] head; the read-out of a LLaVA base). ``allow_missing``: patterns of
            tensors that may be absent; they are newly initialised. ``allow_unexpected``: patterns of tensors in the
            checkpoint that may be left out. ``digest``: fill in ``report.digests``. Any other is a field of
            :class:`model.config.MoraConfig`; defaults here: ``visual_mode="frame"``, ``loc_mode="none"``,
            ``template="llava_llama_2"``, ``tokenization="legacy"``.

    Returns:
        The model in eval mode, and what the load did.

    Raises:
        CheckpointError: files missing or damaged, a path that does not exist or leads to something else (even one that
            is not needed), weights that do not fit or are not finite (all named).
        ConfigError: an override that is no field, values that cannot be used or contradict each other.
    """
    return _load(_published, folder, vision_pretrained, vision_tower, **options)


def load_own(
    folder: str | Path,
    vision_pretrained: str | Path | None = None,
    vision_tower: str | Path | None = None,
    **options: Any,
) -> tuple[MoraModel, LoadReport]:
    """Open a folder that ``MoraModel.save_pretrained`` wrote.

    The arguments, results and errors are those of :func:`load_lisa`; ``config.json`` gives every default. Vision tower
    and SAM are only looked for elsewhere if the folder was saved without them. Parts that an override adds (a [LOC]
    head, the embedding of time) are newly initialised.
    """
    return _load(_own, folder, vision_pretrained, vision_tower, **options)


@dataclass
class _Request:
    """What a layout's reader is told, and where it notes what it did."""

    folder: Path
    stored: dict[str, Any]
    vision_pretrained: str | Path | None
    vision_tower: str | Path | None
    attn_implementation: str | None
    overrides: dict[str, Any]
    report: LoadReport


_Reading = tuple[MoraConfig, dict[str, Tensor], list[str]]
"""The configuration, the tensors by the model's names, and patterns of tensors that are to be new."""


def _load(
    read: Callable[[_Request], _Reading],
    folder: str | Path,
    vision_pretrained: str | Path | None,
    vision_tower: str | Path | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    digest: bool = False,
    **config_overrides: Any,
) -> tuple[MoraModel, LoadReport]:
    """Open a folder whose layout ``read`` knows; arguments and errors as for :func:`load_lisa`."""
    vision_pretrained = config_overrides.pop("sam_checkpoint", vision_pretrained)  # its name in earlier versions
    folder = resolve_folder(folder)
    require_local(vision_tower, folder, "--vision-tower")
    require_local(vision_pretrained, None, "--vision_pretrained")
    report = LoadReport(str(folder))
    request = _Request(
        folder, read_config(folder), vision_pretrained, vision_tower, attn_implementation, config_overrides, report
    )
    config, tensors, fresh = read(request)
    exported = exported_digests(folder)
    if digest or exported:
        report.digests = stored_digests(tensors)
    model = assemble(config, tensors, report, device, dtype, seed, [*allow_missing, *fresh], allow_unexpected)
    if exported:
        require_undamaged(folder, exported, report)
    return model, report


def _published(request: _Request) -> _Reading:
    """Read the published layout."""
    folder, published, report = request.folder, request.stored, request.report
    state = strip_wrappers(read_state_dict(folder))
    text_config, projector = llama_config(published, state, folder / "config.json"), projector_kind(state)
    tensors, unknown, ignored = rename_published(state)
    del state
    report.unexpected.update(shapes_of(unknown))
    report.ignored.update(shapes_of(ignored))
    fill_sam(tensors, request.vision_pretrained, report)
    tower = _tower_folder(published, request.vision_tower, folder)
    vision_config = clip_config(tower)
    fill_tower(tensors, tower, report)
    sam = sam_config_of(strip_prefix(tensors, "sam."))
    fields: dict[str, Any] = {
        "text_config": text_config,
        "vision_config": vision_config,
        "sam_config": sam,
        "vision_select_layer": published.get("mm_vision_select_layer", -2),
        "projector": projector,
        "out_dim": sam.prompt_encoder_config.hidden_size,
        "seg_token_id": _token_id(folder, request.overrides.get("seg_token", "[SEG]"), text_config.vocab_size),
        "loc_token_id": _token_id(folder, request.overrides.get("loc_token", "[LOC]"), text_config.vocab_size),
    }
    try:
        build_config(fields, {})
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.json: {error}") from None
    config = build_config(fields, request.overrides, request.attn_implementation)
    require_sizes(config, tensors, {"text_config": folder / "config.json", "vision_config": tower / "config.json"})
    fresh = []
    if not any(name.startswith("loc_head.") for name in tensors):
        fresh.append("loc_head.*")
    if not published.get("train_mask_decoder") and not any(f"model.{n}".startswith(HEAD_PREFIX) for n in tensors):
        fresh.append("text_hidden_fcs.*")  # a LLaVA base never had a read-out; a LISA checkpoint must have one
    return config, tensors, fresh + _new_parts(MoraConfig(), config)


def _own(request: _Request) -> _Reading:
    """Read what ``save_pretrained`` wrote."""
    folder, saved, report = request.folder, request.stored, request.report
    if saved.get("model_type") != MoraConfig.model_type:
        raise CheckpointError(f"{folder}/config.json: model_type is {shown(saved.get('model_type'))}, not 'mora'")
    before = stored_config(saved, folder / "config.json")
    tensors = strip_wrappers(read_state_dict(folder))
    tower = {name: tensors.pop(name) for name in list(tensors) if name.startswith("vision_tower.")}
    clip, _ = rename_clip(strip_prefix(tower, "vision_tower."))
    tensors.update({f"vision_tower.{name}": tensor for name, tensor in clip.items()})
    if request.vision_tower is not None and clip:
        if os.path.isdir(request.vision_tower) or not is_hub_name(request.vision_tower):  # else it is not fetched
            examine_tower(resolve_folder(request.vision_tower, beside=folder))
        report.notes.append(f"{request.vision_tower} NOT USED: the checkpoint brings its vision tower")
    elif request.vision_tower is not None:
        fill_tower(tensors, resolve_folder(request.vision_tower, beside=folder), report)
    if before.segmenter == "sam":
        fill_sam(tensors, request.vision_pretrained, report)
    elif request.vision_pretrained is not None:
        raise CheckpointError(
            f"{request.vision_pretrained}: not needed, the checkpoint brings its segmenter {before.segmenter!r}; leave "
            "it out (--vision_pretrained)"
        )
    require_sizes(before, tensors, {"": folder / "config.json"})
    config = build_config(before.to_dict(), request.overrides, request.attn_implementation)
    if config.loc_mode != before.loc_mode:
        _change_head(before.loc_mode, config.loc_mode, tensors, report)
    return config, tensors, _new_parts(before, config)


def load_sam_checkpoint(model: MoraModel | SamSegmenter, path: str | Path) -> LoadReport:
    """Replace all of a model's SAM by a SAM checkpoint, strictly.

    Args:
        model: a MoRA model or its SAM; changed in place, dtype and device kept.
        path: a file or folder in the original layout (594 tensors for ViT-H) or that of ``transformers.SamModel``.

    Returns:
        What the load did.

    Raises:
        CheckpointError: unreadable, or a tensor is missing, unexpected, of another shape or not finite. The model is
            unchanged.
    """
    sam = model if isinstance(model, SamSegmenter) else model.sam
    tensors, unknown = read_sam(path)
    report = LoadReport(str(path), unexpected=shapes_of(unknown))
    own = sam.state_dict()
    wanted = shapes_of(own)
    report.missing = {name: shape for name, shape in wanted.items() if name not in tensors}
    for name, shape in shapes_of(tensors).items():
        if name not in wanted:
            report.unexpected[name] = shape
        elif shape != wanted[name]:
            report.mismatched[name] = (shape, wanted[name])
    report.raise_if_bad()
    require_weights(tensors, str(path))
    problems = Problems()
    for name, tensor in tensors.items():
        note_non_finite(name, tensor, tensor.to(own[name].dtype), problems)
    raise_non_finite(problems, str(path))
    sam.load_state_dict(tensors, strict=True)
    report.loaded = len(tensors)
    return report


def build_config(
    fields: Mapping[str, Any], overrides: Mapping[str, Any], attn_implementation: str | None = None
) -> MoraConfig:
    """A configuration from stored fields and overrides.

    Args:
        fields: what the checkpoint says.
        overrides: what the caller says instead; None values count.
        attn_implementation: of the language model.

    Raises:
        ConfigError: overrides that are no fields of :class:`model.config.MoraConfig`.
    """
    known = MoraConfig().to_dict().keys()
    strange = sorted(overrides.keys() - known)
    if strange:
        raise ConfigError(f"{', '.join(strange)}: not a field of MoraConfig; its fields are in model/config.py")
    config = MoraConfig(**{**fields, **overrides})
    if attn_implementation is not None:
        config.text_config._attn_implementation = attn_implementation
    return config


def _tower_folder(published: Mapping[str, Any], vision_tower: str | Path | None, folder: Path) -> Path:
    """The CLIP folder that the caller or ``config.json`` names."""
    name = vision_tower or published.get("vision_tower") or published.get("mm_vision_tower")
    if not isinstance(name, (str, Path)):
        raise CheckpointError(f"{folder}/config.json: names no vision_tower; give a CLIP folder (--vision-tower)")
    return resolve_folder(name, beside=folder)


def _token_id(folder: Path, token: str, vocabulary: int) -> int | None:
    """Id of a token by the folder's tokenizer files, or None; it must have a row in the embeddings."""
    found = find_token_id(folder, token)
    if found is not None and found >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer gives {token} the id {found}, but the embeddings have {vocabulary} rows; the "
            "tokenizer and the weights are not of the same checkpoint"
        )
    return found


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


def _new_parts(before: MoraConfig, config: MoraConfig) -> list[str]:
    """Patterns of tensors that ``config`` has and a model of ``before`` could not have."""
    parts = []
    if before.loc_mode == "none" and config.loc_mode != "none":
        parts.append("loc_head.*")
    if config.frame_time_embedding and not before.frame_time_embedding:
        parts.append("projector.frame_time.*")
    return parts
