"""Predict and score a benchmark with MoRA; ``--help`` shows the flags, docs/evaluation.md the contract."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from utils.errors import MoraError, write_any_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit code: 0; 1 if some questions failed or lack [SEG]; 2 if the run could not go on; 130, 143 if it was ended.
    """
    write_any_text()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        from evaluation.settings import parse_arguments  # late: scoring processes import this file, and need no model

        settings = parse_arguments(argv)
        from evaluation.run import evaluate

        return evaluate(settings)
    except KeyboardInterrupt as ending:
        print("ended; what is recorded is whole, and the same command goes on with the rest", file=sys.stderr)
        return getattr(ending, "exit_code", 130)
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
