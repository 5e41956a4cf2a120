"""Convert a training checkpoint to one file of float32 weights, without running any code that it carries."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from training.checkpoints import is_checkpoint, read_weights
from utils.errors import CheckpointError, ConfigError, MoraError
from utils.files import atomic_write
from utils.paths import user_path

DESCRIPTION = """\
Join the weights that a DeepSpeed checkpoint keeps in partitions: one .safetensors file, float32.

  python -m training.convert runs/stage2/ckpt_model_epoch_020 stage2_fp32.safetensors

The checkpoint's own zero_to_fp32.py does the same, but unpickles whatever the files hold; use it only on checkpoints
of your own. merge_lora_weights_and_save_hf_model.py and --init_from need neither: they take the checkpoint folder.
"""


def convert(checkpoint: Path, target: Path) -> None:
    """Write the trained weights of a checkpoint, and how they were trained, into one file.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one that holds more than tensors.
        ConfigError: the target cannot be written, or is there already.
    """
    if not is_checkpoint(checkpoint):
        raise CheckpointError(f"{checkpoint}: no DeepSpeed checkpoint (no 'latest' in it); give one such as ckpt_model")
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: give a name that ends with .safetensors")
    if target.exists():
        raise ConfigError(f"{target}: exists already; choose another name, or delete it")
    state = read_weights(checkpoint)
    with atomic_write(target) as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in state.items()}, {"format": "pt"}))
    print(f"saved: {target} ({len(state)} tensors)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 with a message."""
    parser = argparse.ArgumentParser(
        prog="python -m training.convert", description=textwrap.dedent(DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("checkpoint", type=user_path, metavar="CHECKPOINT", help="folder that training wrote")
    parser.add_argument("target", type=user_path, metavar="FILE", help="new file, NAME.safetensors")
    args = parser.parse_args(argv)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns otherwise where there is no GPU
    try:
        convert(Path(args.checkpoint), Path(args.target))
    except (MoraError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
