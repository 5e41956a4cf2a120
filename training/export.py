"""From trained weights and the base they were trained on to one folder that any of the programs opens."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.adapters import ROWS, merge_adapters
from model.checkpoints import (
    CARD,
    CARD_FORMAT,
    LoadReport,
    Provenance,
    differences,
    digest_base,
    head_mode,
    read_card,
    read_config,
    read_state_dict,
    told_backbone,
)
from model.config import known_fields
from model.settings import PRECISIONS
from training.assembly import Parts, base_loc_mode, build_parts, config_overrides
from training.checkpoints import (
    RUN_CARD,
    adapter_rank,
    adapter_targets,
    fit_weights,
    is_checkpoint,
    plain_name,
    read_run_card,
    read_weights,
    take_provenance,
)
from training.settings import PROGRAMS, AnyModelSettings, TrainableSettings
from utils.errors import CheckpointError, ConfigError, Problems
from utils.files import atomic_directory, unusable_folder, write_json
from utils.flags import each_flag, flag, flags_of, groups_of, inputs_of, make_parser, note_mistakes, parse
from utils.hub import resolve_folder
from utils.paths import note_inputs_overwritten, require_own
from utils.processes import hold
from utils.tensors import digests_by_part, tensors_digest

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

PATIENCE = 3600.0
"""Seconds to wait for another export to the same folder."""

PUBLISHED = {
    "llava": "--lora_alpha 16 --visual_mode frame --conv_type llava_llama_2 --answer_style fixed",
    "qwen3_vl": "--lora_alpha 16 --visual_mode video --conv_type qwen3_vl --answer_style bare --readout before "
    "--frames_as images --no-timestamps --min_pixels 200704 --max_pixels 802816",
}
"""What MoRA's published training used on each backbone; shown where it has to be said."""


@dataclass
class ExportSettings:
    """What is exported, and where to."""

    title: ClassVar[str] = "export"

    # fmt: off
    weight: str = flag(path=True, metavar="PATH", help="the checkpoint folder, or what was converted from it (a file, "
                       "or a folder with pytorch_model.bin or its shards)")
    save_path: str = flag(path=True, written=True, metavar="DIR",
                          help="new folder; an earlier export there is replaced, anything else refused")
    reuse: bool = flag(False, help="leave an export as it is that was made of exactly these weights, base and settings "
                       "(compared by content)")
    precision: str | None = flag(None, choices=tuple(PRECISIONS), network=True, help="of the saved weights (default: "
                                 "that of the training, else bf16); merging itself is done in float32")
    seed: int = flag(0, course=False, help="as in training; matters for nothing that was trained")
    # fmt: on

    def check(self, problems: Problems) -> None:
        """Note what is not there or cannot be written."""
        if not Path(self.weight).exists():
            problems.add("--weight", f"{self.weight}: no such file or folder; give a checkpoint folder of a run")
        if problem := unusable_folder(self.save_path):
            problems.add("--save_path", f"{problem}; give a folder")


@dataclass
class MergeSettings:
    """Everything that the flags of ``merge_lora_weights_and_save_hf_model.py`` say."""

    model: AnyModelSettings
    trainable: TrainableSettings
    export: ExportSettings

    def describe(self) -> dict[str, Any]:
        """What the exported bytes depend on, besides the weights and the base."""
        return {name: value for name, about, value in each_flag(self) if about.network}


def parse_arguments(argv: Sequence[str] | None = None) -> MergeSettings:
    """Parse and check; what is said about the network and not given is None and left to the weights.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        ConfigError: with every mistake that is found.
        CheckpointError: ``--weight`` is a checkpoint folder that is not whole.
    """
    headline, problems, parser = "the export cannot start", Problems(), make_parser(MergeSettings, DESCRIPTION)
    groups = dict(groups_of(MergeSettings))
    told = [name for key in ("model", "trainable") for name, about in flags_of(groups[key]) if about.network]
    parser.set_defaults(**{name: None for name in told if parser.get_default(name) != []})
    weight = Path(vars(parser.parse_args(argv))["weight"])
    if is_checkpoint(weight) and (weight / RUN_CARD).is_file():
        stored = read_run_card(weight).get("args", {})
        flags = (*flags_of(groups["model"]), *flags_of(groups["export"]))
        # What changes no course is not in the weights: where the base's parts lie, what it may lack.
        parser.set_defaults(**{name: stored[name] for name, about in flags if not about.course and name in stored})
    settings = parse(MergeSettings, parser, headline, argv)
    note_mistakes(settings, problems)
    output = "--save_path", settings.export.save_path
    note_inputs_overwritten(problems, output, inputs_of(settings), whole=True)
    problems.raise_if_any(ConfigError, headline)
    require_own_folder(Path(settings.export.save_path))
    return settings


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


def settle(settings: MergeSettings, state: Mapping[str, Tensor], trained: Provenance | None) -> None:
    """Fill in how the weights were trained, from what they say about it; without that, ask.

    Args:
        settings: changed in place.
        state: the weights, by plain names.
        trained: their provenance.

    Raises:
        ConfigError: a flag contradicts the weights, or is needed because they do not say.
    """
    problems = Problems()
    if trained is None:
        _ask(settings, state, problems)
    else:
        _compare(settings, trained, problems)
    settings.export.precision = settings.export.precision or (trained.precision if trained else "") or "bf16"
    problems.raise_if_any(ConfigError, f"{settings.export.weight} cannot be merged so")


def _compare(settings: MergeSettings, trained: Provenance, problems: Problems) -> None:
    """Settle what the weights say; note what was said otherwise."""
    flags, trainable, adapters = settings.model, settings.trainable, trained.adapters
    if trainable.lora_target_modules is not None:
        trainable.lora_target_modules = ",".join(sorted(t.strip() for t in trainable.lora_target_modules.split(",")))
    defaults = {name: default for name, (default, _) in known_fields(trained.network).items()}
    network = {**defaults, **trained.network}  # of a field that is younger than the weights, the default is theirs
    stored = [(flags, n, network.get(about.network)) for n, about in flags_of(flags) if type(about.network) is str]
    stored += [
        (trainable, "lora_r", adapters.r if adapters else 0),
        (trainable, "lora_alpha", adapters.alpha if adapters else None),
        (trainable, "lora_target_modules", ",".join(adapters.targets) if adapters else None),
        (trainable, "token_rows", trained.token_rows),
        (trainable, "trainable", trained.trainable),
    ]
    for group, name, value in stored:
        given = getattr(group, name)
        if given is not None and value is None and group is flags:
            problems.add(f"--{name}", f"is not for weights of the backbone {network['backbone']}; leave it out")
        elif given is not None and value is not None and given != value:
            problems.add(f"--{name}", f"{given}, but the weights were trained with {value}; leave it out")
        setattr(group, name, value)
    mode = trained.network["loc_mode"]
    wanted = "none" if flags.seg_only else flags.loc_mode
    if (wanted or mode) != mode or (flags.seg_only is False and mode == "none"):
        given = "--seg_only" if flags.seg_only else "--no-seg_only" if flags.loc_mode is None else "--loc_mode"
        said = "with --seg_only" if mode == "none" else f"with --loc_mode {mode}"
        problems.add(given, f"the weights were trained {said}; leave it out")
    flags.seg_only, flags.loc_mode = mode == "none", None if mode == "none" else mode


def _ask(settings: MergeSettings, state: Mapping[str, Tensor], problems: Problems) -> None:
    """Settle what the tensors show; note what they cannot show and nobody said."""
    flags, trainable, rank = settings.model, settings.trainable, adapter_rank(state)
    if trainable.lora_r not in (None, rank):
        problems.add("--lora_r", f"{trainable.lora_r}, but the adapters in the weights have rank {rank}")
    trainable.lora_r = rank
    trainable.lora_target_modules = trainable.lora_target_modules or ",".join(adapter_targets(state))
    rows = "new" if any(name.endswith(ROWS) for name in state) else "all"
    if trainable.token_rows not in (None, rows):
        problems.add("--token_rows", f"{trainable.token_rows}, but the weights hold {rows!r}; leave it out")
    trainable.token_rows = rows
    trainable.trainable = trainable.trainable or "default"
    backbone = told_backbone(read_config(resolve_folder(flags.version))) or "llava"
    own = [n for n, about in flags_of(dict(groups_of(PROGRAMS[backbone]))["model"]) if type(about.network) is str]
    unknown = [f"--{n}" for n in own if getattr(flags, n) is None]
    if rank and trainable.lora_alpha is None:
        unknown.append("--lora_alpha")
    if unknown:
        problems.add(", ".join(unknown), f"the weights do not say what they were trained with; you must (as published: "
                     f"{PUBLISHED[backbone]})")  # fmt: skip
    if flags.loc_mode is None and flags.seg_only is None and base_loc_mode(resolve_folder(flags.version)) == "none":
        flags.loc_mode = head_mode(state)
        flags.seg_only = flags.loc_mode is None
    flags.seg_only = bool(flags.seg_only)


def fill_in(parts: Parts, state: dict[str, Tensor], trained: Provenance | None, source: str) -> LoadReport:
    """Put the trained weights into the base's model.

    Raises:
        CheckpointError: a trained tensor is absent from the weights, one has no place, shapes differ, or the weights
            belong to another network or base.
    """
    report = fit_weights(parts.model, state, source)
    lines = [] if trained is None else differences(trained, parts.provenance, needs_base=bool(report.missing))
    if lines:
        raise CheckpointError(
            f"{source}: does not belong to this base or network:\n  - " + "\n  - ".join(lines)
            + "\ngive the base that it was trained on as --version"
        )  # fmt: skip
    learned = {plain_name(name) for name in parts.trained}
    report.raise_if_bad(allow_missing=sorted(set(report.missing) - learned))
    if trained is None or not trained.base:
        print(f"NOT CHECKED: {source} does not say on which base it was trained; --version is taken on trust")
    return report


def export(settings: MergeSettings) -> Path:
    """Merge and save.

    Args:
        settings: from :func:`parse_arguments`.

    Returns:
        The folder, with ``config.json``, ``model.safetensors`` (or shards), the tokenizer's files and ``export.json``.

    Raises:
        CheckpointError: see :func:`fill_in`; or the folder cannot be written.
        ConfigError: see :func:`settle` and :func:`require_own_folder`.
        LockedError: another export to the same folder does not end.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns otherwise when peft asks for it
    flags, chosen = settings.model, settings.export
    state = read_weights(chosen.weight)
    carried = tensors_digest(state)
    trained = take_provenance(chosen.weight, state)
    settle(settings, state, trained)
    base = resolve_folder(flags.version)
    digests = digest_base(base, flags.vision_pretrained, flags.vision_tower, **config_overrides(flags, base))
    made_from = {"weights": carried, "base": digests, "settings": settings.describe()}
    folder = Path(chosen.save_path)
    if chosen.reuse and _is_made_from(folder, made_from):
        return folder
    with hold(folder.with_name(f".{folder.name}.lock"), f"the export folder {folder}", PATIENCE):
        if chosen.reuse and _is_made_from(folder, made_from):  # by now, by another process
            return folder
        require_own_folder(folder)
        parts = build_parts(flags, settings.trainable, chosen.seed, torch.float32, digest=False)
        parts.provenance = dataclasses.replace(parts.provenance, base=digests)
        print(parts.report)
        report = fill_in(parts, state, trained, chosen.weight)
        del state
        merged = merge_adapters(parts.model)
        kept = f"{len(report.missing)} kept from the base"
        print(f"{chosen.weight}: {report.loaded} tensors loaded, {kept}; {merged} merged")
        round_weights(parts, chosen.precision)
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
    dtype = PRECISIONS[precision]
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
