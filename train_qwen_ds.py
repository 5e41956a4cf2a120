"""Train MoRA on Qwen3-VL: ``python train_qwen_ds.py --help``."""

from __future__ import annotations

import sys

from train_ds import main

if __name__ == "__main__":
    sys.exit(main("qwen3_vl"))
