"""Train MoRA on LISA/LLaVA: ``python train_ds.py --help``."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial


def main(backbone: str = "llava") -> int:
    """Parse the flags and train.

    Args:
        backbone: whose flags.

    Returns:
        Exit code: 0; 1 with a message; 2 for a flag that does not exist; 130, 143 if it was ended.
    """
    # What a shell starts in the background ignores Ctrl-C, and Python then leaves it so; whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Else torch's sockets print stacks of C++ frames whenever another process ends; what happened is said in words.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from training.program import run_program
        from training.run import train
        from training.settings import parse_arguments
    except KeyboardInterrupt:
        return 130
    return run_program(partial(parse_arguments, backbone=backbone), train)


if __name__ == "__main__":
    sys.exit(main())
