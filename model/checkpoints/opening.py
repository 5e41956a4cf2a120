"""Open a model folder of any layout: read it, build a model around its tensors, leave nothing out silently."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model.backbones import backbone_class
from model.checkpoints.card import read_card, require_undamaged
from model.checkpoints.files import read_config
from model.checkpoints.layout import Reading, Request
from model.checkpoints.report import LoadReport, shapes_of
from model.checkpoints.trained import Trained, lay_over
from model.fields import building, shown
from model.mora import MoraModel
from utils.errors import CheckpointError
from utils.hub import require_local, resolve_folder
from utils.tensors import require_finite

LAYOUTS = {
    "mora": "model.checkpoints.own",
    **dict.fromkeys(("llava", "llava_llama", "lisa", "mora_llava"), "model.checkpoints.lisa"),
    "qwen3_vl": "model.checkpoints.qwen3_vl",
}
"""``model_type`` of a folder's ``config.json`` to the module whose ``read`` reads it."""


def load_any(
    version: str | Path,
    vision_pretrained: str | Path | None = None,
    vision_tower: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    digest: bool = False,
    trained: Trained | None = None,
    **overrides: Any,
) -> tuple[MoraModel, LoadReport]:
    """Open a model folder of any layout. What it brings is never replaced.

    Args:
        version: a folder, or "owner/name" on the Hugging Face hub. ``config.json`` tells the layout: ``model_type``
            "mora" is our own, "llava" the published one of LISA, MoRA and LLaVA v1, "qwen3_vl" that of Qwen3-VL.
        vision_pretrained: a SAM file or folder, for parts of SAM that the folder lacks altogether.
        vision_tower: a CLIP folder or hub name, if the folder has no tower; default: what its ``config.json`` says,
            relative to the working directory, to the folder or to its parent.
        device: where the model goes.
        dtype: of the weights; default: as the word embeddings are stored.
        attn_implementation: of the language model ("sdpa", "eager", "flash_attention_2"), and of a vision tower that
            is part of it.
        seed: for modules that no source has (a new [LOC] head; the read-out of a LLaVA base).
        allow_missing: patterns (``fnmatch``) of tensors that may be absent; they are newly initialised.
        allow_unexpected: patterns of tensors that may be left out.
        digest: fill in ``report.digests``.
        trained: weights to lay over those of the folder.
        overrides: fields of :class:`model.config.MoraConfig`; of what the published layout does not say, the defaults
            are the backbone's, of LLaVA ``visual_mode="frame"``, ``loc_mode="none"``, ``template="llava_llama_2"``,
            ``tokenization="legacy"``.

    Returns:
        The model in eval mode, and what the load did.

    Raises:
        CheckpointError: files missing or damaged, an unknown layout, a path that does not exist or leads to something
            else (even one that is not needed), weights that do not fit or are not finite (all named).
        ConfigError: an override that is no field, values that cannot be used or contradict each other.
    """
    folder = resolve_folder(version)
    reading, report = _read(folder, vision_pretrained, vision_tower, overrides)
    if attn_implementation is not None:
        for part in backbone_class(reading.config.backbone).attentive:
            getattr(reading.config, part)._attn_implementation = attn_implementation
    card = read_card(folder)
    if digest or card:
        report.digests = reading.digests()
    if trained is not None:
        lay_over(reading, trained, report)
    model = _assemble(reading, report, device, dtype, seed, [*allow_missing, *reading.fresh], allow_unexpected)
    if card:
        require_undamaged(folder, card["digests"], report)
    return model, report


def digest_base(
    version: str | Path,
    vision_pretrained: str | Path | None = None,
    vision_tower: str | Path | None = None,
    **overrides: Any,
) -> dict[str, str]:
    """What ``report.digests`` of :func:`load_any` would be, without making a model; the weights are read, mapped.

    Arguments and errors are those of :func:`load_any`.
    """
    return _read(resolve_folder(version), vision_pretrained, vision_tower, overrides)[0].digests()


def _read(
    folder: Path,
    vision_pretrained: str | Path | None,
    vision_tower: str | Path | None,
    overrides: dict[str, Any],
) -> tuple[Reading, LoadReport]:
    """Read a folder by the rules of its layout."""
    require_local(vision_tower, folder, "--vision-tower")
    require_local(vision_pretrained, None, "--vision_pretrained")
    stored = read_config(folder)
    kind = stored.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        qwen = isinstance(kind, str) and kind.startswith("qwen")
        why = ". Of the Qwen family Qwen3-VL is known, such as Qwen/Qwen3-VL-8B-Instruct: no other generation, no " \
            "mixture of experts, and nothing that cannot see" if qwen else ""  # fmt: skip
        known = ", ".join(LAYOUTS)
        raise CheckpointError(f"{folder}/config.json: model_type is {shown(kind)}; known are {known}{why}")
    report = LoadReport(str(folder))
    request = Request(folder, stored, vision_pretrained, vision_tower, overrides, report)
    return importlib.import_module(LAYOUTS[kind]).read(request), report


def _assemble(
    reading: Reading,
    report: LoadReport,
    device: torch.device | str,
    dtype: torch.dtype | None,
    seed: int,
    allow_missing: Sequence[str],
    allow_unexpected: Sequence[str],
) -> MoraModel:
    """Build the model around the tensors, which are taken out one by one, so that memory is not needed twice."""
    tensors = reading.tensors
    words, head = (f"{part}.weight" for part in backbone_class(reading.config.backbone).vocabulary_parts)
    embeddings = tensors.get(words)
    dtype = dtype or (torch.float32 if embeddings is None else embeddings.dtype)
    with building("the model"), init_empty_weights(include_buffers=False):
        model = MoraModel(reading.config)
    tied = reading.config.text_config.tie_word_embeddings
    if tied and head in tensors and embeddings is not None:
        if not torch.equal(tensors[head].to(embeddings.dtype), embeddings):
            raise CheckpointError(
                f"{report.source}: {head} differs from the word embeddings, though config.json says that they are one "
                "(tie_word_embeddings); set it to false there, or use the config.json saved with these weights"
            )
    _compare(model, tensors, report, {head} if tied else set())
    report.raise_if_bad(allow_missing, allow_unexpected)
    fitting = [name for name in tensors if name not in report.unexpected]
    cast: dict[str, Tensor] = {}

    def casts() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name in fitting:
            stored = tensors.pop(name)
            # A copy even where nothing changes: the source may be a view of a file that is mapped, not read.
            cast[name] = stored.to(device=device, dtype=dtype, copy=True)
            yield name, stored, cast[name]

    require_finite(casts(), report.source)
    model.load_state_dict(cast, strict=False, assign=True)
    report.loaded = len(cast)
    if tied:
        embedding_module, head_module = model.backbone.vocabulary
        head_module.weight = embedding_module.weight
    _initialise_missing(model, report, dtype, seed)
    model.config.dtype = dtype
    return model.to(device).eval()


def _compare(model: nn.Module, tensors: dict[str, Tensor], report: LoadReport, optional: set[str]) -> None:
    """Note in ``report`` which names and shapes do not fit."""
    wanted, found = shapes_of(model.state_dict()), shapes_of(tensors)
    report.unexpected = {name: shape for name, shape in found.items() if name not in wanted}
    report.missing = {name: shape for name, shape in wanted.items() if name not in found and name not in optional}
    both = [name for name in found if name in wanted and found[name] != wanted[name]]
    report.mismatched = {name: (found[name], wanted[name]) for name in both}


def _initialise_missing(model: MoraModel, report: LoadReport, dtype: torch.dtype, seed: int) -> None:
    """Give what is still without values those of a new model, in float32 first; the global generator is left as it
    was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            fresh = [name for name, value in own.items() if value.is_meta]
            if not fresh:
                continue
            report.initialised.append(path)
            kept = {name: value.detach().clone() for name, value in own.items() if name not in fresh}
            for name in fresh:
                new = nn.Parameter(torch.zeros(own[name].shape), requires_grad=own[name].requires_grad)
                module.register_parameter(name, new)
            model._init_weights(module)
            for name, value in kept.items():
                module.get_parameter(name).data.copy_(value)
            for name in fresh:
                module.get_parameter(name).data = module.get_parameter(name).data.to(dtype)
