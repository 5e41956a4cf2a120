"""Convert a training checkpoint to one file of float32 weights, without running any code that it carries."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from model.checkpoints import read_state_dict
from training.checkpoints import is_checkpoint, read_weights
from utils.errors import CheckpointError, ConfigError, MoraError
from utils.files import atomic_write
from utils.paths import user_path
from utils.processes import hold
from utils.tensors import tensors_digest

DESCRIPTION = """\
Join the weights that a DeepSpeed checkpoint keeps in partitions: one file, float32: .safetensors, or .pt as
published.

  python -m training.convert runs/stage2/ckpt_model_epoch_020 stage2_fp32.safetensors

The checkpoint's own zero_to_fp32.py does the same, but unpickles whatever the files hold; use it only on checkpoints
of your own. merge_lora_weights_and_save_hf_model.py and --init_from need neither: they take the checkpoint folder.
"""


PATIENCE = 3600.0
"""Seconds to wait for another conversion to the same file."""


def convert(checkpoint: Path, target: Path, reuse: bool = False) -> None:
    """Write the trained weights of a checkpoint, and how they were trained, into one file.

    Args:
        checkpoint: a folder that training wrote.
        target: NAME.safetensors or NAME.pt.
        reuse: leave a file as it is that holds exactly these weights, and replace one that holds others.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one that holds more than tensors.
        ConfigError: the target cannot be written, or is there already.
        LockedError: another conversion to the same file does not end.
    """
    if not is_checkpoint(checkpoint):
        raise CheckpointError(f"{checkpoint}: no DeepSpeed checkpoint (no 'latest' in it); give one such as ckpt_model")
    if target.suffix not in (".safetensors", ".pt"):
        raise ConfigError(f"{target}: give a name that ends with .safetensors or .pt")
    if target.exists() and not reuse:
        raise ConfigError(f"{target}: exists already; choose another name, or delete it")
    state = {name: tensor.contiguous() for name, tensor in read_weights(checkpoint).items()}
    with (
        hold(target.with_name(f".{target.name}.lock"), f"the file {target}", PATIENCE)
        if reuse
        else contextlib.nullcontext()
    ):
        if reuse and target.exists() and _holds(target, state):
            print(f"kept: {target} holds exactly these weights")
            return
        with atomic_write(target) as stream:
            if target.suffix == ".pt":
                torch.save(state, stream)
            else:
                stream.write(save(state, {"format": "pt"}))
    print(f"saved: {target} ({len(state)} tensors)")


def _holds(target: Path, state: dict[str, Tensor]) -> bool:
    """Whether a file holds exactly these tensors; not if it cannot be read."""
    try:
        return tensors_digest(read_state_dict(target)) == tensors_digest(state)
    except CheckpointError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m training.convert", description=textwrap.dedent(DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("checkpoint", type=user_path, metavar="CHECKPOINT", help="folder that training wrote")
    parser.add_argument("target", type=user_path, metavar="FILE", help="new file, NAME.safetensors or NAME.pt")
    parser.add_argument(
        "--reuse", action="store_true", help="keep FILE if it holds exactly these weights, else replace it"
    )
    args = parser.parse_args(argv)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns otherwise where there is no GPU
    try:
        convert(Path(args.checkpoint), Path(args.target), args.reuse)
    except (MoraError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
