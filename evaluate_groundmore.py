"""Predict and score GroundMoRe with MoRA: ``python -m evaluation`` with the benchmark's name filled in."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evaluation.__main__ import main as evaluate_benchmark


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; see :func:`evaluation.__main__.main`."""
    return evaluate_benchmark(["--benchmark", "groundmore", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
