"""Flags that every program with a model shares: which one is opened, and where and how it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from model.config import CHOICES
from utils.errors import Problems
from utils.flags import flag
from utils.hub import is_hub_name

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# fmt: off
@dataclass
class ModelSettings:
    """Which model is opened."""

    title: ClassVar[str] = "model"

    version: str | None = flag(None, path=True, course=False, metavar="PATH", help="a model folder saved by this "
                               "project, a LISA/MoRA folder in the published layout, or the Hugging Face id of one")
    vision_pretrained: str | None = flag(None, path=True, course=False, metavar="FILE", help="SAM weights "
        "(sam_vit_h_4b8939.pth); fill only what the model lacks, so a trained mask decoder is never overwritten")
    vision_tower: str | None = flag(None, names=("--vision-tower", "--vision_tower"), path=True, course=False,
        metavar="PATH", help="CLIP vision tower, if not the one the model names; a model that brings its own keeps "
        "it, and the log says so")
    allow_unexpected: list[str] = flag([], course=False, network=True, metavar="PATTERN", help="tensors of the model "
        "that may be left out, such as the '*loc*' of a head in another layout. May be repeated")
    conv_type: str | None = flag(None, choices=CHOICES["template"], network="template", help="conversation template "
        "(default: the one the model was trained with)")

    def check(self, problems: Problems) -> None:
        """Note what is not there."""
        if self.vision_pretrained is not None and not Path(self.vision_pretrained).exists():
            problems.add("--vision_pretrained",
                         f"{self.vision_pretrained}: no such file; download sam_vit_h_4b8939.pth")
        tower = self.vision_tower
        beside = [Path(), *([] if self.version is None else [Path(self.version), Path(self.version).parent])]
        if tower is not None and not is_hub_name(tower) and not any((base / tower).is_dir() for base in beside):
            problems.add("--vision-tower", f"{tower}: no such folder, and not a Hugging Face id; leave it out to use "
                         "the one that the model brings or names")


@dataclass
class QwenSettings:
    """How a Qwen3-VL is shown frames, and where its answer is read out; None: as the model was trained, or the base."""

    readout: str | None = flag(None, choices=CHOICES["readout"], network="readout", help="which state stands for [SEG] "
                               "and [LOC]: before: the one that predicts the token, as MoRA on LISA; at: the one at "
                               "the token (default: the model's, of Qwen3-VL itself 'before')")
    frames_as: str | None = flag(None, choices=("images", "video"), network="frames_as", help="Qwen3-VL: each frame as "
                                 "an image of its own, or as a video, whose neighbours share their tokens two by two "
                                 "(default: the model's, of Qwen3-VL itself 'images')")
    timestamps: bool | None = flag(None, network="timestamps", help="Qwen3-VL: write the time before each frame or "
                                   "pair (default: the model's, of Qwen3-VL itself not)")
    min_pixels: int | None = flag(None, names=("--min_pixels", "--qwen_min_pixels"), at_least=1, network="min_pixels",
                                  help="Qwen3-VL: least pixels of a resized frame, also in a video; 32 x 32 are one "
                                  "token; evaluation may say another than training (default: the model's, of Qwen3-VL "
                                  "itself 200704)")
    max_pixels: int | None = flag(None, names=("--max_pixels", "--qwen_max_pixels"), at_least=1, network="max_pixels",
                                  help="Qwen3-VL: most pixels, likewise (default: the model's, of Qwen3-VL itself "
                                  "802816)")

    def check(self, problems: Problems) -> None:
        """Note bounds that leave nothing between them."""
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            problems.add("--min_pixels", f"{self.min_pixels} is more than --max_pixels {self.max_pixels}")
        super().check(problems)


@dataclass
class ComputeSettings:
    """Where and in which precision a model computes."""

    title: ClassVar[str] = "computation"

    precision: str | None = flag(None, choices=tuple(PRECISIONS), network=True,
                                 help="default: bf16 on a GPU, fp32 without")
    device: str = flag("auto", choices=("auto", "cuda", "cpu"), course=False, help="auto: the GPU if there is one")

    def check(self, problems: Problems) -> None:
        """Note what needs a GPU where there is none."""
        has_gpu = torch.cuda.is_available()
        if self.device == "cuda" and not has_gpu:
            problems.add("--device", "cuda is asked for, but torch sees no GPU; use --device cpu with --precision fp32")
        if self.precision == "fp16" and (self.device == "cpu" or not has_gpu):
            problems.add("--precision", "fp16 needs a GPU; use fp32 or bf16")

    def settle(self) -> None:
        """Choose where nothing was asked for."""
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = self.precision or ("bf16" if self.device == "cuda" else "fp32")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return PRECISIONS[self.precision]
