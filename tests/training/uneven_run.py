"""Two processes train with ZeRO-2 and ZeRO-3, and at some steps one of them has no masks, no [LOC] and no picture.

    torchrun --nproc_per_node 2 tests/training/uneven_run.py BASE CORPUS FOLDER

The runs are called ``zero2``, ``zero3``, and ``parts``, which is ``zero3`` stopped after its first step and gone on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import training.engine
import training.run
from training.program import run_program
from training.run import train
from training.settings import parse_arguments
from utils.batch import MoraBatch

STEPS = 3


def blank(video, words: set[int]) -> None:
    """Leave nothing of a video's questions but plain words."""
    for question in video.questions:
        kept = [i for i, token in enumerate(question.input_ids.tolist()) if token >= 0 and token not in words]
        question.input_ids, question.labels = question.input_ids[kept], question.labels[kept]
        question.mask_frames, question.masks = question.mask_frames[:0], question.masks[:0, :0]
        question.in_window = None


def main() -> int:
    base, corpus, folder = sys.argv[1:]
    configure = training.engine.deepspeed_config

    def dividing(*args) -> dict:
        config = configure(*args)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # else so small a model stays whole
        return config

    training.engine.deepspeed_config = dividing
    seen = {"batches": 0}
    collate = training.run.collate

    def uneven(samples) -> MoraBatch:
        batch, number = collate(samples), seen["batches"] % STEPS
        seen["batches"] += 1
        if os.environ["RANK"] == "1" and number < 2:
            for video in batch.videos[number:]:
                blank(video, {3, 4})
        return batch

    training.run.collate = uneven

    def settings_of(name: str, stage: str):
        return parse_arguments(
            ["--version", base, "--dataset_dir", corpus, "--dataset", "groundmore", "--precision", "fp32", "--device",
             "cpu", "--epochs", "1", "--steps_per_epoch", str(STEPS), "--warmup_steps", "1", "--batch_size", "2",
             "--grad_accumulation_steps", "1", "--num_frames", "2", "--workers", "0", "--picture_freq", "0", "--lr",
             "1e-3", "--lora_dropout", "0", "--token_rows", "new", "--log_base_dir", folder, "--exp_name", name,
             "--zero_stage", stage, "--save_every_steps", "1"], "qwen3_vl",
        )  # fmt: skip

    def work(_) -> None:
        train(settings_of("zero2", "2"))
        train(settings_of("zero3", "3"))
        parts = settings_of("parts", "3")
        parts.run.max_minutes = 1e-9
        assert train(parts) == 1
        seen["batches"], parts.run.max_minutes = 1, 0.0
        assert train(parts) == STEPS

    return run_program(lambda: Path(folder), work)


if __name__ == "__main__":
    sys.exit(main())
