"""Weights that were trained here or elsewhere, fitted by name into a model: for ``--init_from`` and for export.

The same tensor has had several names: peft before 0.7 kept ``q_proj.weight`` beside its ``lora_A``, later versions call
it ``q_proj.base_layer.weight``; wrappers put ``module.`` or ``base_model.model.`` in front; LISA's and MoRA's first
code has names of its own. All of them are brought to one plain form and compared there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.adapters import ROWS, TokenRows
from model.checkpoints import (
    PROVENANCE,
    Adapters,
    LoadReport,
    Provenance,
    differences,
    network_of,
    read_config,
    read_state_dict,
    rename_published,
    strip_wrappers,
)
from model.config import MoraConfig
from model.mora import MoraModel
from training.checkpoints.digests import check_digests
from training.checkpoints.files import check_states, read_run_card, tag_folder
from utils.errors import CheckpointError
from utils.tensors import require_finite

_ADAPTER = re.compile(r"\.(lora_[AB])(?:\.\w+)?\.weight$")
"""Adapter matrices, with or without the adapter's name (``lora_A.default.weight``, ``lora_A.weight``)."""


def plain_name(name: str) -> str:
    """One spelling for a tensor of a wrapped model."""
    (stripped,) = strip_wrappers({name: None})
    return _ADAPTER.sub(r".\1.weight", stripped)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under plain names of :class:`model.mora.MoraModel`, whatever wrote them.

    Args:
        state: names as a training program, peft or a published folder wrote them.

    Returns:
        The same tensors; frozen CLIP towers and constants of the published layout are left out, names of that layout
        that are not known keep their own.
    """
    plain = {_ADAPTER.sub(r".\1.weight", name): value for name, value in strip_wrappers(state).items()}
    if any(name.startswith("language_model.") for name in plain):
        return plain
    if not any(name.startswith("model.") for name in plain):
        return plain
    return rename_published(plain)[0]


def adapter_rank(state: Mapping[str, Tensor]) -> int:
    """LoRA's rank in a state with plain names; 0 without adapters."""
    return next((tensor.shape[0] for name, tensor in state.items() if name.endswith(".lora_A.weight")), 0)


def adapter_targets(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Last names of the layers that have adapters in a state with plain names, sorted."""
    return tuple(sorted({name.split(".")[-3] for name in state if name.endswith(".lora_A.weight")}))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read trained weights, under plain names.

    Args:
        path: a checkpoint folder of ``train_ds.py``, the file or folder that a converter wrote of it, or the folder of
            an exported model.

    Raises:
        CheckpointError: nothing readable there.
    """
    path = Path(path)
    return plain_names(_join_partitions(path) if is_checkpoint(path) else read_state_dict(path))


def take_provenance(path: str | Path, state: dict[str, Tensor]) -> Provenance | None:
    """What some weights belong to.

    Args:
        path: where they were read.
        state: what :func:`read_weights` gave; the tensor that tells is taken out.

    Returns:
        What that tensor says, or else what config.json and run.json beside it say; None if nothing does.

    Raises:
        CheckpointError: it is there and cannot be read.
    """
    tensor = state.pop(PROVENANCE, None)
    if tensor is not None:
        return Provenance.from_tensor(tensor, str(path))
    path = Path(path)
    return _told_beside(path) if path.is_dir() and (path / "config.json").is_file() else None


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is a DeepSpeed checkpoint folder, as training writes it; it may hold a config.json, too."""
    path = Path(path)
    return path.is_dir() and ((path / "latest").exists() or any(path.glob("global_step*")))


def _told_beside(folder: Path) -> Provenance | None:
    """What config.json and run.json beside some weights tell: of an exported model, or of a checkpoint that an earlier
    version of this program wrote. Neither says which base; None for a model of another layout."""
    stored = read_config(folder)
    if stored.get("model_type") != MoraConfig.model_type:
        return None
    args = read_run_card(folder).get("args", {}) if is_checkpoint(folder) else {}
    adapters = None
    if args.get("lora_r"):
        adapters = Adapters.of_flags(args["lora_r"], args["lora_alpha"], args["lora_target_modules"])
    network = network_of(MoraConfig.from_dict(stored))
    return Provenance(network, adapters, args.get("trainable", "all"), precision=args.get("precision", ""))


def _join_partitions(folder: Path) -> dict[str, Tensor]:
    """Full float32 weights of a DeepSpeed checkpoint, after checking that opening it runs no foreign code."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    inner = tag_folder(folder)
    check_digests(folder, within=inner.name)
    for file in sorted(inner.glob("*_states.pt")):
        check_states(file)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=inner.name))
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            raise CheckpointError(f"{folder}: cannot be joined to full weights ({error})") from error


def fit_weights(
    model: MoraModel, state: Mapping[str, Tensor], source: str, allow_fewer_rows: bool = False
) -> LoadReport:
    """Copy every tensor that has a place in the model; nothing is decided about the rest.

    Args:
        model: with or without adapters; changed in place.
        state: plain names, see :func:`plain_names`.
        source: for messages.
        allow_fewer_rows: fill the first rows of token matrices that have grown since.

    Returns:
        What was loaded, missing, unexpected and of another shape (by the model's plain names).

    Raises:
        CheckpointError: a tensor that has a place is not finite, or not in the model's precision.
    """
    own = {plain_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    parts = model.backbone.vocabulary_parts if allow_fewer_rows else ()
    growing = [part + end for part in parts for end in (".weight", ROWS)]
    for name, module in model.named_modules():  # rows that learn apart are those of a matrix that has them
        if isinstance(module, TokenRows) and f"{name}.weight" in state and name + ROWS not in state:
            known = module.ids[module.ids < len(state[f"{name}.weight"])].cpu()
            state = {**state, name + ROWS: state[f"{name}.weight"][known]}
    report = LoadReport(source)
    report.unexpected = {name: tuple(value.shape) for name, value in state.items() if name not in own}
    report.missing = {name: tuple(value.shape) for name, value in own.items() if name not in state}
    fitting = {name: value for name, value in state.items() if name in own and own[name].is_floating_point()}
    dtype = next(model.parameters()).dtype
    require_finite(((name, value, value.to(dtype)) for name, value in fitting.items()), source)
    with torch.no_grad():
        for name, target in own.items():
            if name not in state:
                continue
            value = state[name]
            rows = value.shape[0] if value.dim() else 0
            if value.shape == target.shape:
                target.copy_(value)
            elif name in growing and value.shape[1:] == target.shape[1:] and rows < len(target):
                target[:rows].copy_(value)
                report.notes.append(f"{name}: {len(target) - rows} rows of newer tokens keep the base's values")
            else:
                report.mismatched[name] = (tuple(value.shape), tuple(target.shape))
                continue
            report.loaded += 1
    return report


def initialise_from(model: MoraModel, path: str | Path, here: Provenance) -> LoadReport:
    """``--init_from``: take the weights that are there; whatever is absent keeps the base's.

    Adapters and a [LOC] head may be absent (they start fresh), and a [LOC] head may be left over (a ``--seg_only`` run
    has no use for it); both are in the report, which the caller prints.

    Args:
        model: changed in place.
        path: see :func:`read_weights`.
        here: what this run's own weights belong to.

    Raises:
        CheckpointError: nothing fits, a tensor has no place, shapes differ, one would change that this run does not
            train, or the weights were trained in another network, in another text, at another scale or on another base.
    """
    state = read_weights(path)
    trained = take_provenance(path, state)
    has_adapters = adapter_rank(state) > 0
    changed = _frozen_changes(model, state)
    report = fit_weights(model, state, str(path), allow_fewer_rows=True)
    if not report.loaded:
        raise CheckpointError(f"{path}: none of its tensors fits this model; is it a checkpoint of another program?")
    if any(".lora_" in name for name in report.unexpected):
        raise CheckpointError(
            f"{path}: has LoRA adapters and this run has none (--lora_r 0), or other ones; use the same "
            "--lora_target_modules, or export it first (merge_lora_weights_and_save_hf_model.py)"
        )
    if any(name.endswith(ROWS) for name in report.unexpected):
        raise CheckpointError(
            f"{path}: was trained with --token_rows new, and this run trains whole matrices; use --token_rows new, or "
            "export it first (merge_lora_weights_and_save_hf_model.py)"
        )
    if trained is None:
        report.notes.append("carries no word about its base, its network and its text; see that they are this run's")
    else:
        # A [LOC] head may come or go, and its token with it; adapters may start fresh.
        besides = ["loc_mode", "loc_token_id", "token_rows", *([] if has_adapters else ["adapters"])]
        if trained.network.get("loc_token_id") != here.network.get("loc_token_id"):
            besides.append("tokenizer")
        grown = _without_vocabulary(trained), _without_vocabulary(here)
        fresh = [name for name in report.missing if not name.startswith("loc_head.") and ".lora_" not in name]
        lines = differences(*grown, besides, needs_base=bool(fresh))
        if lines:
            raise CheckpointError(
                f"--init_from {path}: was trained otherwise than this run is going to:\n  - " + "\n  - ".join(lines)
                + "\ngive this run the same flags and base; or export it first "
                "(merge_lora_weights_and_save_hf_model.py) and start from the export with --version"
            )  # fmt: skip
    report.raise_if_bad(allow_missing=["*"], allow_unexpected=["loc_head.*"])
    if changed:
        raise CheckpointError(
            f"{path}: {len(changed)} of its tensors differ from the base's, and this run does not train them, so its "
            f"checkpoints would be without them ({', '.join(changed[:4])}, ...); export it, if it is no exported model "
            "yet (merge_lora_weights_and_save_hf_model.py), and give that as --version"
        )
    return report


def _frozen_changes(model: MoraModel, state: Mapping[str, Tensor]) -> list[str]:
    """Plain names of tensors that are not trained and have other values in a state; rows of new words count."""
    frozen = ((plain_name(name), own) for name, own in model.named_parameters() if not own.requires_grad)
    pairs = ((name, own, state[name]) for name, own in frozen if name in state)
    return [
        name
        for name, own, value in pairs
        if own.shape[1:] == value.shape[1:] and not torch.equal(own[: len(value)], value[: len(own)].to(own))
    ]


def _without_vocabulary(provenance: Provenance) -> Provenance:
    """A vocabulary may have grown by [LOC]; the rows that both have are compared by the tokenizer."""
    text = {key: value for key, value in provenance.network.get("text_config", {}).items() if key != "vocab_size"}
    return dataclasses.replace(provenance, network={**provenance.network, "text_config": text})
