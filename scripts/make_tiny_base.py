"""Make assets/tiny_base again: a very small MoRA that sees, names and segments, and has never seen anything move.

python -m scripts.make_tiny_base --out assets/tiny_base
python -m scripts.make_tiny_base --backbone qwen3_vl --tokenizer assets/tiny_qwen_tokenizer --out assets/tiny_qwen_base

Its weights, tokenizer and a card (recipe, time, figures on unseen still pictures) are written at once when all is done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.tiny_base import BaseRecipe, make_tiny_base
from utils.errors import MoraError


def main() -> None:
    """Read the flags and hand over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/tiny_base"), help="folder to write (replaced)")
    parser.add_argument("--tokenizer", type=Path, default=Path("assets/tiny_tokenizer"), help="its tokenizer")
    parser.add_argument("--backbone", choices=("llava", "qwen3_vl"), default="llava", help="(%(default)s)")
    parser.add_argument("--shorten", type=float, default=1.0, help="factor on all steps, for a trial (0.01: a minute)")
    parser.add_argument("--seed", type=int, default=BaseRecipe().seed, help="of weights and data")
    parser.add_argument("--test_videos", type=int, default=60, help="unseen still videos for the card's figures")
    args = parser.parse_args()
    recipe = BaseRecipe(seed=args.seed).shortened(args.shorten)
    try:
        make_tiny_base(args.out.expanduser(), args.tokenizer.expanduser(), recipe, args.test_videos, args.backbone)
    except MoraError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
