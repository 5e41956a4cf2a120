"""Train MoRA on LISA/LLaVA: ``python train_ds.py --help``."""

from __future__ import annotations

import sys

from training.arguments import parse_arguments
from training.run import train
from utils.distributed import stop_world
from utils.errors import MoraError
from utils.terminal import write_any_text


def main() -> None:
    """Parse the flags and train; mistakes end with a message and status 1."""
    write_any_text()
    try:
        train(parse_arguments())
    except (MoraError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    stop_world()


if __name__ == "__main__":
    main()
