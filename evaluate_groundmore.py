"""Predict and score GroundMoRe with MoRA; ``--help`` shows the flags, docs/evaluation.md the contract."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from evaluation.arguments import parse_arguments
from utils.errors import MoraError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit code: 0; 1 if some questions failed; 2 if nothing could be done.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        args = parse_arguments(argv)
        # Not at the top: the scoring processes import this file again, and they need no model.
        from evaluation.run import evaluate

        return evaluate(args)
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
