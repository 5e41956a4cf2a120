"""From trained weights and the base they were trained on to one folder that any of the programs opens."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.convert.sources import resolve_folder
from model.localization import build_loc_head
from model.trainable import merge_lora
from training.arguments import PRECISIONS, add_model_flags, check_model_flags
from training.assembly import base_loc_mode, build_parts
from training.checkpointing import RUN_CARD, read_run_card
from training.engine import DTYPES
from training.weights import adapter_rank, fit_weights, plain_name, read_weights
from utils.errors import CheckpointError, ConfigError, Problems
from utils.files import atomic_directory, unusable_folder

DESCRIPTION = """\
Merge what a run trained into the base it was trained on, and save the result as one model folder.

  python ckpt_model_epoch_020/zero_to_fp32.py ckpt_model_epoch_020 fp32_model_state.pt
  python merge_lora_weights_and_save_hf_model.py --version xinlai/LISA-7B-v1 \\
    --vision_pretrained sam_vit_h_4b8939.pth --weight fp32_model_state.pt \\
    --save_path exported/stage1 --conv_type llava_llama_2 --seg_only

--weight also takes the checkpoint folder itself; then flags that are not given are those of the run.
"""

FROM_THE_RUN = (
    "vision_pretrained", "vision_tower", "conv_type", "visual_mode", "answer_style", "seg_only", "loc_mode", "lora_r",
    "lora_alpha", "lora_target_modules", "trainable", "seed", "allow_missing", "allow_unexpected",
)  # fmt: skip
"""Flags whose default is what the checkpoint's run.json says."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``merge_lora_weights_and_save_hf_model.py``."""
    parser = argparse.ArgumentParser(
        description=textwrap.dedent(DESCRIPTION), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    group = parser.add_argument_group("export")
    group.add_argument("--weight", required=True, metavar="PATH", help="what zero_to_fp32.py wrote (a file, or a "
                       "folder with pytorch_model.bin or its shards), or the checkpoint folder")  # fmt: skip
    group.add_argument("--save_path", required=True, metavar="DIR", help="new folder, replaced as a whole")
    group.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the saved weights (%(default)s); "
                       "merging itself is done in float32")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="as in training; matters for nothing that was trained")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check; flags that are not given come from the run, if ``--weight`` is its checkpoint folder.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Raises:
        ConfigError: with every mistake that is found.
        CheckpointError: ``--weight`` is a checkpoint folder that is not whole.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    parser.set_defaults(lora_r=None)  # then the rank is that of the weights
    weight = Path(given["weight"])
    if (weight / RUN_CARD).is_file():
        stored = read_run_card(weight).get("args", {})
        parser.set_defaults(**{name: stored[name] for name in FROM_THE_RUN if name in stored})
    args = parser.parse_args(argv)
    problems = Problems()
    check_model_flags(args, problems)
    if not weight.exists():
        problems.add("--weight", f"{weight}: no such file or folder; run the checkpoint's zero_to_fp32.py first")
    if problem := unusable_folder(args.save_path):
        problems.add("--save_path", f"{problem}; give a folder")
    problems.raise_if_any(ConfigError, "the export cannot start")
    return args


def head_mode(state: Mapping[str, Tensor]) -> str | None:
    """The ``loc_mode`` whose head has the names found in a state, or None if it holds no head."""
    names = {name.removeprefix("loc_head.") for name in state if name.startswith("loc_head.")}
    return next((mode for mode in ("global", "frame") if names == set(build_loc_head(mode, 8, 8).state_dict())), None)


def export(args: argparse.Namespace) -> Path:
    """Merge and save.

    Args:
        args: from :func:`parse_arguments`.

    Returns:
        The folder, with ``config.json``, ``model.safetensors`` (or shards) and the tokenizer's files.

    Raises:
        CheckpointError: a trained tensor is absent from the weights, one has no place, or shapes differ.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns otherwise when peft asks for it
    state = read_weights(args.weight)
    rank = adapter_rank(state)
    if args.lora_r is None:
        args.lora_r = rank
    elif args.lora_r != rank:
        raise ConfigError(f"--lora_r {args.lora_r}, but the adapters in {args.weight} have rank {rank} (0: none)")
    if args.loc_mode is None and not args.seg_only and base_loc_mode(resolve_folder(args.version)) == "none":
        args.loc_mode = head_mode(state)
        args.seg_only = args.loc_mode is None
    parts = build_parts(args, DTYPES["fp32"])
    print(parts.report)
    report = fit_weights(parts.model, state, str(args.weight))
    trained = {plain_name(name) for name in parts.trained}
    report.raise_if_bad(allow_missing=sorted(set(report.missing) - trained))
    del state
    merged = merge_lora(parts.model)
    print(f"{args.weight}: {report.loaded} tensors loaded, {len(report.missing)} kept from the base; {merged} merged")
    model = parts.model.to(DTYPES[args.precision])
    folder = Path(args.save_path)
    try:
        with atomic_directory(folder) as temporary:
            model.save_pretrained(temporary)
            parts.tokenizer.save(temporary)
            for path in temporary.iterdir():
                path.chmod(0o644)  # safetensors writes files that only their owner may read
    except (OSError, SafetensorError) as error:  # a full disk is either, depending on the file
        raise CheckpointError(
            f"{folder}: writing the model failed ({error}); what was there before is untouched. Make room and try again"
        ) from error
    print(f"saved: {folder}")
    return folder
