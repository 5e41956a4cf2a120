"""From trained weights and the base they were trained on to one folder that any of the programs opens."""

from __future__ import annotations

import argparse
import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.adapters import merge_lora
from model.checkpoints import CARD, CARD_FORMAT, LoadReport, digest_base, read_card, read_state_dict
from model.localization import build_loc_head
from training.assembly import Parts, base_loc_mode, build_parts, config_overrides
from training.checkpoints.provenance import Provenance, differences
from training.checkpoints.store import RUN_CARD, read_run_card
from training.checkpoints.weights import (
    adapter_rank,
    adapter_targets,
    fit_weights,
    is_checkpoint,
    plain_name,
    read_weights,
    take_provenance,
)
from training.engine import DTYPES
from training.settings import PRECISIONS, add_model_flags, check_model_flags
from utils.digests import digests_by_part, tensors_digest
from utils.errors import CheckpointError, ConfigError, Problems
from utils.files import atomic_directory, unusable_folder, write_json
from utils.hub import resolve_folder
from utils.paths import note_inputs_overwritten, require_own, user_path
from utils.processes.locks import hold

DESCRIPTION = """\
Merge what a run trained into the base it was trained on, and save the result as one model folder.

  python merge_lora_weights_and_save_hf_model.py --version xinlai/LISA-7B-v1 \\
    --vision_pretrained sam_vit_h_4b8939.pth --weight runs/stage1/ckpt_model_epoch_020 \\
    --save_path exported/stage1

--weight also takes what was converted from a checkpoint: by python -m training.convert, or as published by

  python ckpt_model_epoch_020/zero_to_fp32.py ckpt_model_epoch_020 fp32_model_state.pt

How the weights were trained (network, template, adapters' scale, base) is written in them. A flag that contradicts it,
or another base, is an error. Weights of other programs do not say it: then the flags must.
"""

PATHS_OF_THE_RUN = ("vision_pretrained", "vision_tower", "allow_missing", "allow_unexpected", "seed")
"""Flags whose default is what the checkpoint's run.json says."""

SETTINGS = ("conv_type", "visual_mode", "answer_style", "seg_only", "loc_mode", "lora_r", "lora_alpha",
            "lora_target_modules", "trainable", "allow_missing", "allow_unexpected", "precision")  # fmt: skip
"""Flags that the exported bytes depend on, besides the weights and the base."""

PATIENCE = 3600.0
"""Seconds to wait for another export to the same folder."""

PUBLISHED = "--lora_alpha 16 --visual_mode frame --conv_type llava_llama_2 --answer_style fixed"
"""What MoRA's published training used; shown where it has to be said."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``merge_lora_weights_and_save_hf_model.py``."""
    parser = argparse.ArgumentParser(
        description=textwrap.dedent(DESCRIPTION), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    group = parser.add_argument_group("export")
    group.add_argument("--weight", required=True, type=user_path, metavar="PATH", help="the checkpoint folder, or what "
                       "was converted from it (a file, or a folder with pytorch_model.bin or its shards)")  # fmt: skip
    group.add_argument("--save_path", required=True, type=user_path, metavar="DIR",
                       help="new folder; an earlier export there is replaced, anything else refused")  # fmt: skip
    group.add_argument("--reuse", action=argparse.BooleanOptionalAction, default=False, help="leave an export as it is "
                       "that was made of exactly these weights, base and settings (compared by content)")  # fmt: skip
    group.add_argument("--precision", choices=PRECISIONS, default=None, help="of the saved weights (default: that of "
                       "the training, else bf16); merging itself is done in float32")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="as in training; matters for nothing that was trained")
    # None: as the weights say.
    parser.set_defaults(lora_r=None, lora_alpha=None, lora_target_modules=None, trainable=None, seg_only=None)
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check; what is said about the network and not given is left to the weights.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        ConfigError: with every mistake that is found.
        CheckpointError: ``--weight`` is a checkpoint folder that is not whole.
    """
    parser = build_parser()
    weight = Path(vars(parser.parse_args(argv))["weight"])
    if is_checkpoint(weight) and (weight / RUN_CARD).is_file():
        stored = read_run_card(weight).get("args", {})
        parser.set_defaults(**{name: stored[name] for name in PATHS_OF_THE_RUN if name in stored})
    args = parser.parse_args(argv)
    problems = Problems()
    check_model_flags(args, problems)
    if not weight.exists():
        problems.add("--weight", f"{weight}: no such file or folder; give a checkpoint folder of a run")
    if problem := unusable_folder(args.save_path):
        problems.add("--save_path", f"{problem}; give a folder")
    inputs = {f"--{name}": getattr(args, name) for name in ("version", "weight", "vision_pretrained", "vision_tower")}
    note_inputs_overwritten(problems, ("--save_path", args.save_path), inputs, whole=True)
    problems.raise_if_any(ConfigError, "the export cannot start")
    require_own_folder(Path(args.save_path))
    return args


def require_own_folder(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but an earlier export.

    Raises:
        ConfigError: naming what is there.
    """
    try:
        card = read_card(folder)
    except CheckpointError:
        card = None
    require_own(folder, [] if card is None else [CARD, *card["files"]], "--save_path")


def head_mode(state: Mapping[str, Tensor]) -> str | None:
    """The ``loc_mode`` whose head has the names found in a state, or None if it holds no head."""
    names = {name.removeprefix("loc_head.") for name in state if name.startswith("loc_head.")}
    return next((mode for mode in ("global", "frame") if names == set(build_loc_head(mode, 8, 8).state_dict())), None)


def settle(args: argparse.Namespace, state: Mapping[str, Tensor], trained: Provenance | None) -> None:
    """Fill in how the weights were trained, from what they say about it; without that, ask.

    Args:
        args: changed in place.
        state: the weights, by plain names.
        trained: their provenance.

    Raises:
        ConfigError: a flag contradicts the weights, or is needed because they do not say.
    """
    problems = Problems()
    if trained is None:
        _ask(args, state, problems)
    else:
        adapters = trained.adapters
        stored = {
            "conv_type": trained.network["template"],
            "visual_mode": trained.network["visual_mode"],
            "answer_style": trained.network["answer_style"],
            "lora_r": adapters.r if adapters else 0,
            "lora_alpha": adapters.alpha if adapters else None,
            "lora_target_modules": ",".join(adapters.targets) if adapters else None,
            "trainable": trained.trainable,
        }
        given = {**vars(args), "lora_target_modules": _in_order(args.lora_target_modules)}
        for name, value in stored.items():
            if given[name] is not None and value is not None and given[name] != value:
                problems.add(f"--{name}", f"{given[name]}, but the weights were trained with {value}; leave it out")
            setattr(args, name, value)
        mode = trained.network["loc_mode"]
        wanted = "none" if args.seg_only else args.loc_mode
        if (wanted or mode) != mode or (args.seg_only is False and mode == "none"):
            flag = "--seg_only" if args.seg_only else "--no-seg_only" if args.loc_mode is None else "--loc_mode"
            said = "with --seg_only" if mode == "none" else f"with --loc_mode {mode}"
            problems.add(flag, f"the weights were trained {said}; leave it out")
        args.seg_only, args.loc_mode = mode == "none", None if mode == "none" else mode
    args.precision = args.precision or (trained.precision if trained else "") or "bf16"
    problems.raise_if_any(ConfigError, f"{args.weight} cannot be merged so")


def _in_order(targets: str | None) -> str | None:
    return None if targets is None else ",".join(sorted(part.strip() for part in targets.split(",")))


def _ask(args: argparse.Namespace, state: Mapping[str, Tensor], problems: Problems) -> None:
    """Settle what the tensors show; note what they cannot show and nobody said."""
    rank = adapter_rank(state)
    if args.lora_r not in (None, rank):
        problems.add("--lora_r", f"{args.lora_r}, but the adapters in the weights have rank {rank}")
    args.lora_r = rank
    args.lora_target_modules = args.lora_target_modules or ",".join(adapter_targets(state))
    args.trainable = args.trainable or "default"
    needed = ("visual_mode", "conv_type", "answer_style", *(["lora_alpha"] if rank else []))
    unknown = [f"--{name}" for name in needed if getattr(args, name) is None]
    if unknown:
        problems.add(", ".join(unknown), f"the weights do not say what they were trained with; you must (as published: "
                     f"{PUBLISHED})")  # fmt: skip
    if args.loc_mode is None and args.seg_only is None and base_loc_mode(resolve_folder(args.version)) == "none":
        args.loc_mode = head_mode(state)
        args.seg_only = args.loc_mode is None
    args.seg_only = bool(args.seg_only)


def fill_in(parts: Parts, state: dict[str, Tensor], trained: Provenance | None, args: argparse.Namespace) -> LoadReport:
    """Put the trained weights into the base's model.

    Raises:
        CheckpointError: a trained tensor is absent from the weights, one has no place, shapes differ, or the weights
            belong to another network or base.
    """
    report = fit_weights(parts.model, state, str(args.weight))
    lines = [] if trained is None else differences(trained, parts.provenance, needs_base=bool(report.missing))
    if lines:
        raise CheckpointError(
            f"{args.weight}: does not belong to this base or network:\n  - " + "\n  - ".join(lines)
            + "\ngive the base that it was trained on as --version"
        )  # fmt: skip
    learned = {plain_name(name) for name in parts.trained}
    report.raise_if_bad(allow_missing=sorted(set(report.missing) - learned))
    if trained is None or not trained.base:
        print(f"NOT CHECKED: {args.weight} does not say on which base it was trained; --version is taken on trust")
    return report


def export(args: argparse.Namespace) -> Path:
    """Merge and save.

    Args:
        args: from :func:`parse_arguments`.

    Returns:
        The folder, with ``config.json``, ``model.safetensors`` (or shards), the tokenizer's files and ``export.json``.

    Raises:
        CheckpointError: see :func:`fill_in`; or the folder cannot be written.
        ConfigError: see :func:`settle` and :func:`require_own_folder`.
        LockedError: another export to the same folder does not end.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns otherwise when peft asks for it
    state = read_weights(args.weight)
    carried = tensors_digest(state)
    trained = take_provenance(args.weight, state)
    settle(args, state, trained)
    base = resolve_folder(args.version)
    digests = digest_base(base, args.vision_pretrained, args.vision_tower, **config_overrides(args, base))
    settings = {name: getattr(args, name) for name in SETTINGS}
    made_from = {"weights": carried, "base": digests, "settings": settings}
    folder = Path(args.save_path)
    if args.reuse and _is_made_from(folder, made_from):
        return folder
    with hold(folder.with_name(f".{folder.name}.lock"), f"the export folder {folder}", PATIENCE):
        if args.reuse and _is_made_from(folder, made_from):  # by now, by another process
            return folder
        require_own_folder(folder)
        parts = build_parts(args, DTYPES["fp32"], digest=False)
        parts.provenance = dataclasses.replace(parts.provenance, base=digests)
        print(parts.report)
        report = fill_in(parts, state, trained, args)
        del state
        merged = merge_lora(parts.model)
        kept = f"{len(report.missing)} kept from the base"
        print(f"{args.weight}: {report.loaded} tensors loaded, {kept}; {merged} merged")
        round_weights(parts, args.precision)
        require_own_folder(folder)
        _save(parts, folder, made_from)
    print(f"saved: {folder}")
    return folder


def _is_made_from(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether an export is there that was made of exactly this; says so."""
    card = read_card(folder) if folder.is_dir() else None
    same = card is not None and card["made_from"] == made_from
    if same:
        print(f"kept: {folder} was made of exactly these weights, base and settings")
    return same


def round_weights(parts: Parts, precision: str) -> None:
    """Cast the merged weights, and say what that does to them.

    Raises:
        CheckpointError: values are too large for ``precision``; their tensors are named.
    """
    dtype = DTYPES[precision]
    changed = total = 0.0
    overflown = []
    for name, parameter in parts.model.named_parameters():
        exact = parameter.detach()
        rounded = exact.to(dtype).float()
        if not torch.isfinite(rounded.sum()) and not torch.isfinite(rounded).all():
            overflown.append(name)
        changed += float((rounded - exact).double().square().sum())
        total += float(exact.double().square().sum())
    if overflown:
        raise CheckpointError(f"not finite in {precision}: {', '.join(overflown)}; use --precision bf16 or fp32")
    parts.model = parts.model.to(dtype)
    if changed:
        print(
            f"saved as {precision}: rounding changes the merged weights by {(changed / total) ** 0.5:.1e} of their "
            "size, and answers with them; --precision fp32 keeps them"
        )


def _save(parts: Parts, folder: Path, made_from: dict[str, Any]) -> None:
    """Write the folder, its card last."""
    try:
        with atomic_directory(folder) as temporary:
            parts.model.save_pretrained(temporary)
            parts.tokenizer.save(temporary)
            digests = digests_by_part(read_state_dict(temporary))
            files = sorted(path.name for path in temporary.iterdir())
            card = {"files": files, "digests": digests, "tokenizer": parts.tokenizer.digest(), "made_from": made_from}
            write_json(temporary / CARD, {"format": CARD_FORMAT, **card})
            for path in temporary.iterdir():
                path.chmod(0o644)  # safetensors writes files that only their owner may read
    except (OSError, SafetensorError) as error:  # a full disk is either, depending on the file
        raise CheckpointError(
            f"{folder}: writing the model failed ({error}); what was there before is untouched. Make room and try again"
        ) from error
