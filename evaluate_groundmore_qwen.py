"""Predict and score GroundMoRe with MoRA on Qwen3-VL: ``evaluate_groundmore.py`` with the published choices filled in.

The answer ``[SEG], [LOC]`` is given to the model (``--answer_mode generate`` lets it write one), and masks of frames
whose [LOC] probability is below 0.5 are emptied (``--no-use_loc_refine`` or ``--seg_only`` keeps them). The
command line wins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evaluate_groundmore import main as evaluate_groundmore

PUBLISHED = ("--backbone", "qwen3_vl", "--answer_mode", "forced", "--use_loc_refine", "--loc_threshold", "0.5")
"""Said before the flags of the command line, which win."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; see :func:`evaluation.__main__.main`."""
    given = sys.argv[1:] if argv is None else argv
    # Without the [LOC] head there is nothing to refine by.
    published = [word for word in PUBLISHED if word != "--use_loc_refine" or "--seg_only" not in given]
    return evaluate_groundmore([*published, *given])


if __name__ == "__main__":
    sys.exit(main())
