"""The flags of the training programs: what they mean, and every mistake in them listed at once."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from datasets.corpora import CORPORA, ON_PROBLEM
from datasets.mixture import read_shares
from model import settings as shared
from model.config import CHOICES
from model.losses import LossWeights
from utils.errors import ConfigError, Problems
from utils.files import unusable_folder
from utils.flags import flag, make_parser, note_mistakes, parse
from utils.hub import is_hub_name

DESCRIPTION = """\
Train MoRA on referring and motion-grounded video corpora, under DeepSpeed ZeRO.

Two stages, as published:
  1. segmentation only, on Refer-YouTube-VOS and MeViS (no [LOC] token and head):
       deepspeed --num_gpus=2 train_ds.py --version xinlai/LISA-7B-v1 --vision_pretrained sam_vit_h_4b8939.pth \\
         --dataset_dir ./dataset --dataset "refer_video_seg||mevis" --sample_rates "1,1" \\
         --conv_type llava_llama_2 --num_frames 5 --steps_per_epoch 500 --epochs 20 --seg_only --exp_name stage1
  2. with temporal localisation, on GroundMoRe, from the exported stage 1:
       deepspeed --num_gpus=2 train_ds.py --version exported/stage1 --dataset groundmore --sample_rates 1 \\
         --loc_mode global --loc_loss_weight 1.0 --keep_ckpt_every 5 --exp_name stage2

One process needs no launcher (python train_ds.py ...); torchrun and srun work too. Without a GPU add
--precision fp32. A killed run goes on where its last checkpoint is when started again with --auto_resume.
"""

QWEN_DESCRIPTION = """\
Train MoRA on Qwen3-VL, under DeepSpeed ZeRO.

Two stages, as published (the README of 2026 calls this program train_qwen3_ds.py):
  1. on Refer-YouTube-VOS and MeViS:
       deepspeed --num_gpus=4 train_qwen_ds.py --version Qwen/Qwen3-VL-8B-Instruct \\
         --vision_pretrained sam_vit_h_4b8939.pth --dataset_dir ./dataset --dataset "refer_video_seg||mevis" \\
         --sample_rates "1,1" --num_frames 5 --loc_mode global --exp_name stage1
  2. on GroundMoRe, from a checkpoint of stage 1:
       deepspeed --num_gpus=2 train_qwen_ds.py --version Qwen/Qwen3-VL-8B-Instruct \\
         --vision_pretrained sam_vit_h_4b8939.pth --dataset groundmore --sample_rates 1 --steps_per_epoch 500 \\
         --loc_mode global --init_from runs/stage1/ckpt_model_epoch_005 --exp_name stage2

One process needs no launcher (python train_qwen_ds.py ...); torchrun and srun work too. Without a GPU add
--precision fp32. A killed run goes on where its last checkpoint is when started again with --auto_resume.
"""


# fmt: off
@dataclass
class ModelSettings(shared.ModelSettings):
    """Which network is built, on which base; for training and export.

    Attributes:
        backbone: the base must have it; None: any.
    """

    backbone: ClassVar[str | None] = "llava"

    version: str = flag(path=True, course=False, metavar="PATH", help="base model: a folder saved by this project, a "
                        "LISA/MoRA folder in the published layout, or the Hugging Face id of one")
    allow_missing: list[str] = flag([], course=False, network=True, metavar="PATTERN", help="tensors that the base "
                                    "may lack, such as 'text_hidden_fcs.*'; they start with fresh weights, which the "
                                    "log names. May be repeated")
    visual_mode: str | None = flag(None, choices=CHOICES["visual_mode"], network="visual_mode", help="one LLM row per "
                                   "frame, one pooled row, or one row with all frames (default: the base's)")
    answer_style: str | None = flag(None, choices=CHOICES["answer_style"], network="answer_style", help="fixed: "
                                    "'Sure, [SEG].'; name: the answer object is named before [SEG] (default: the "
                                    "base's)")
    seg_only: bool = flag(False, network=True, help="segmentation only: no [LOC] token, no localisation head")
    loc_mode: str | None = flag(None, choices=("global", "frame"), network=True, help="[LOC] head: one video-level "
                                "state matched against every frame, or one logit from each frame's own state "
                                "(default: the base's, else global)")

    def check(self, problems: Problems) -> None:
        """Note contradictions and missing files."""
        if self.seg_only and self.loc_mode is not None:
            problems.add("--seg_only", f"leaves no [LOC] head for --loc_mode {self.loc_mode}; give one of the two")
        if self.loc_mode == "frame" and self.visual_mode not in (None, "frame"):
            problems.add("--loc_mode", f"'frame' needs --visual_mode frame, not {self.visual_mode!r}; use 'global'")
        if not Path(self.version).exists() and not is_hub_name(self.version):
            problems.add("--version", f"{self.version}: no such folder, and not a Hugging Face id (owner/name)")
        super().check(problems)


@dataclass
class QwenModelSettings(shared.QwenSettings, ModelSettings):
    """:class:`ModelSettings` with what Qwen3-VL has beside it."""

    backbone: ClassVar[str | None] = "qwen3_vl"

    def check(self, problems: Problems) -> None:
        """Note contradictions and missing files."""
        if self.backbone and self.visual_mode == "pooled":
            problems.add("--visual_mode", "'pooled' does not go with Qwen3-VL; use 'video' or 'frame'")
        if self.backbone and self.conv_type not in (None, "qwen3_vl"):
            problems.add("--conv_type", f"{self.conv_type} is not Qwen3-VL's; leave it out")
        super().check(problems)


@dataclass
class AnyModelSettings(QwenModelSettings):
    """Whichever backbone the base has."""

    backbone: ClassVar[str | None] = None


@dataclass
class TrainableSettings:
    """What is trained; for training and export."""

    title: ClassVar[str] = "what is trained"

    lora_r: int = flag(8, at_least=0, network=True, help="rank of the LoRA adapters; 0 trains without (%(default)s)")
    lora_alpha: int = flag(16, network=True, help="scale of LoRA is alpha / r (%(default)s)")
    lora_dropout: float = flag(0.05, at_least=0, below=1, help="dropout before LoRA's A (%(default)s)")
    lora_target_modules: str = flag("q_proj,v_proj", network=True, help="modules of the language model that get "
                                    "adapters, separated by commas (%(default)s)")
    token_rows: str = flag("all", choices=("all", "new"), network=True, help="what learns of word embeddings and "
                           "language head: all: both matrices, as published; new: the rows of [SEG] and [LOC] alone, "
                           "which takes a fraction of the memory (%(default)s)")
    trainable: str = flag("default", network=True, metavar="SPEC", help="default: LoRA, embed_tokens, lm_head, SAM's "
                          "mask decoder, text_hidden_fcs and the [LOC] head, as published; all: everything; or "
                          "patterns of parameter names separated by ||, such as 'projector.*||sam.mask_decoder.*'")

    def check(self, problems: Problems) -> None:
        """Note adapters that would do nothing."""
        if self.lora_r != 0 and self.lora_alpha is not None and not self.lora_alpha > 0:
            problems.add("--lora_alpha", f"{self.lora_alpha} would scale every adapter to nothing; use at least 1, or "
                         "--lora_r 0 to train without adapters")


@dataclass
class DataSettings:
    """What is seen; ``sample_rates`` has one rate per corpus after construction."""

    title: ClassVar[str] = "data"

    dataset_dir: str = flag("./dataset", path=True, course=False, metavar="DIR",
                            help="holds refytvos/, MeViSv2/, GroundMoRe/")
    dataset: str = flag("refer_video_seg||mevis", help=f"corpora separated by ||: {', '.join(CORPORA)} (%(default)s)")
    sample_rates: str | None = flag(None, metavar="R,R", help="how often each corpus is drawn (default: equal)")
    num_frames: int = flag(5, at_least=1, help="frames per sample (%(default)s)")
    frame_sampling: str = flag("anchor", choices=("anchor", "uniform", "jitter"), help="a random frame with its "
                               "neighbours and some far ones; evenly spread; or one at random in each of n equal parts")
    max_questions: int = flag(3, at_least=1, help="questions drawn per sample; they share the encoding of the video "
                              "(%(default)s)")
    mask_frames: int = flag(0, at_least=0, help="frames per question whose mask is supervised; 0: all")
    outside_window: str = flag("zero", choices=("zero", "ignore"), help="mask target on frames outside the question's "
                               "window: an empty mask, or none")
    loc_for_referring: bool = flag(False, help="ask for [LOC] also where a corpus has no windows (all frames inside)")
    model_max_length: int = flag(512, at_least=8, help="longest conversation in TEXT tokens; the visual ones come on "
                                 "top (%(default)s)")
    on_problem: str = flag("raise", choices=ON_PROBLEM, help="mistakes found when a corpus is opened: raise: stop and "
                           "list all of them; skip: leave out the videos and questions concerned, naming each and "
                           "saying how many are left. A file that proves unreadable later stops the run either way "
                           "(%(default)s)")
    workers: int = flag(4, at_least=0, course=False, help="processes that read and prepare samples (%(default)s)")

    def __post_init__(self) -> None:
        if self.sample_rates is None:
            self.sample_rates = ",".join("1" for name in self.dataset.split("||") if name.strip())

    def check(self, problems: Problems) -> None:
        """Note corpora that are not known or not there, and rates that do not fit them."""
        read_shares(self.dataset, self.sample_rates, problems)
        if not Path(self.dataset_dir).is_dir():
            problems.add("--dataset_dir", f"{self.dataset_dir}: no such folder; docs/data.md shows the layout")


@dataclass
class QwenDataSettings(DataSettings):
    """:class:`DataSettings` with Qwen3-VL's way to count."""

    model_max_length: int = flag(4096, at_least=8, help="longest conversation in tokens, the visual ones included; "
                                 "frames that do not fit are made smaller, which is said (%(default)s)")


@dataclass
class OptimizerSettings:
    """Steps, rates and losses."""

    title: ClassVar[str] = "optimisation"

    epochs: int = flag(20, at_least=1, help="(%(default)s)")
    steps_per_epoch: int = flag(500, at_least=1, help="optimizer steps per epoch (%(default)s)")
    batch_size: int = flag(1, at_least=1, help="videos per process and micro-batch (%(default)s)")
    grad_accumulation_steps: int = flag(10, at_least=1, help="micro-batches per step (%(default)s)")
    lr: float = flag(3e-4, above=0, help="peak learning rate (%(default)s)")
    beta1: float = flag(0.9, at_least=0, below=1, help="AdamW (%(default)s)")
    beta2: float = flag(0.95, at_least=0, below=1, help="AdamW (%(default)s)")
    weight_decay: float = flag(0.0, at_least=0, help="AdamW (%(default)s)")
    warmup_steps: int = flag(100, at_least=1, help="linear from 0 to --lr (%(default)s)")
    lr_schedule: str = flag("linear", choices=("linear", "cosine"),
                            help="how the rate falls after the warm-up (%(default)s, to 0)")
    min_lr_ratio: float = flag(0.0, at_least=0, below=1, help="where a cosine ends, as a share of --lr")
    grad_clip: float = flag(1.0, above=0, help="largest norm of the gradient (%(default)s)")
    ce_loss_weight: float = flag(1.0, at_least=0, help="text (%(default)s)")
    bce_loss_weight: float = flag(2.0, at_least=0, help="masks, per pixel (%(default)s)")
    dice_loss_weight: float = flag(0.5, at_least=0, help="masks, overlap (%(default)s)")
    loc_loss_weight: float = flag(1.0, at_least=0, help="[LOC], per frame (%(default)s)")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def loss_weights(self) -> LossWeights:
        """Factors of the four losses."""
        return LossWeights(self.ce_loss_weight, self.bce_loss_weight, self.dice_loss_weight, self.loc_loss_weight)

    def check(self, problems: Problems) -> None:
        """Note a warm-up that does not end."""
        if self.warmup_steps > self.total_steps:
            problems.add("--warmup_steps", f"{self.warmup_steps} is more than all {self.total_steps} steps (epochs x "
                         "steps_per_epoch)")


@dataclass
class QwenOptimizerSettings(OptimizerSettings):
    """:class:`OptimizerSettings` with the length of the published first stage."""

    steps_per_epoch: int = flag(1000, at_least=1, help="optimizer steps per epoch (%(default)s)")


@dataclass
class ComputeSettings(shared.ComputeSettings):
    """Where, how precisely and how sparingly a run computes."""

    precision: str = flag("bf16", choices=tuple(shared.PRECISIONS), network=True,
                          help="(%(default)s); without a GPU: fp32 or bf16")
    attn_implementation: str = flag("auto", choices=("auto", "sdpa", "eager", "flash_attention_2"), help="auto: "
                                    "flash-attn if it is installed and the run is on a GPU in half precision, else "
                                    "SDPA")
    zero_stage: int = flag(2, choices=(1, 2, 3), help="what DeepSpeed divides among processes: optimizer states; "
                           "gradients, too; weights, too (%(default)s)")
    gradient_checkpointing: bool = flag(True, course=False,
                                        help="recompute activations in the backward pass: less memory")

    def check(self, problems: Problems) -> None:
        """Note what is not installed, or needs a GPU where there is none."""
        super().check(problems)
        if self.attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            problems.add("--attn_implementation", "flash-attn is not installed; pip install flash-attn, or use auto")


@dataclass
class RunSettings:
    """Where a run is kept, what it says, and where it goes on from."""

    title: ClassVar[str] = "run"

    log_base_dir: str = flag("./runs", path=True, course=False, metavar="DIR", help="(%(default)s)")
    exp_name: str = flag("mora", course=False, help="everything goes to LOG_BASE_DIR/EXP_NAME (%(default)s)")
    seed: int = flag(0, at_least=0, below=2**63, help="data order, initial weights and dropout (%(default)s)")
    print_freq: int = flag(1, at_least=1, course=False, help="steps between log lines (%(default)s)")
    picture_freq: int = flag(500, at_least=0, course=False, help="steps between pictures in TensorBoard; 0: none")
    keep_ckpt_every: int = flag(5, at_least=0, course=False, help="every so many epochs the rolling checkpoint "
                                "ckpt_model is also kept as ckpt_model_epoch_XXX; 0: never (%(default)s)")
    save_every_steps: int = flag(0, at_least=0, course=False, help="rolling checkpoints inside an epoch; 0: none")
    auto_resume: bool = flag(True, course=False, help="go on from LOG_BASE_DIR/EXP_NAME/ckpt_model if it exists")
    resume: str | None = flag(None, path=True, course=False, metavar="DIR",
                              help="go on from this checkpoint instead")
    init_from: str | None = flag(None, path=True, course=False, metavar="PATH", help="take weights only, on the first "
                                 "launch: from a checkpoint folder, what was converted from it, or an exported model "
                                 "(--auto_resume wins)")
    max_minutes: float = flag(0.0, at_least=0, course=False, help="save and stop after so long; 0: never")
    local_rank: int = flag(0, names=("--local_rank", "--local-rank"), course=False, help="set by launchers")

    @property
    def folder(self) -> Path:
        """Holds everything that the run writes."""
        return Path(self.log_base_dir) / self.exp_name

    def check(self, problems: Problems) -> None:
        """Note folders that cannot be used."""
        if problem := unusable_folder(self.folder):
            problems.add("--log_base_dir", f"{problem}; choose another --log_base_dir or --exp_name")
        for name, path in (("resume", self.resume), ("init_from", self.init_from)):
            if path is not None and not Path(path).exists():
                problems.add(f"--{name}", f"{path}: no such file or folder")


# fmt: on
@dataclass
class TrainingSettings:
    """Everything that the flags of a training program say; here those of ``train_ds.py``."""

    program: ClassVar[str] = "train_ds.py"
    description: ClassVar[str] = DESCRIPTION

    model: ModelSettings
    trainable: TrainableSettings
    data: DataSettings
    optimizer: OptimizerSettings
    compute: ComputeSettings
    run: RunSettings


@dataclass
class QwenTrainingSettings(TrainingSettings):
    """Everything that the flags of ``train_qwen_ds.py`` say."""

    program: ClassVar[str] = "train_qwen_ds.py"
    description: ClassVar[str] = QWEN_DESCRIPTION

    model: QwenModelSettings
    data: QwenDataSettings
    optimizer: QwenOptimizerSettings


PROGRAMS: dict[str, type[TrainingSettings]] = {"llava": TrainingSettings, "qwen3_vl": QwenTrainingSettings}
"""Settings of the program that trains on a backbone."""


def build_parser(backbone: str = "llava") -> argparse.ArgumentParser:
    """The parser of a training program; ``--help`` shows the two stages and every flag by group."""
    return make_parser(PROGRAMS[backbone], PROGRAMS[backbone].description)


def parse_arguments(argv: Sequence[str] | None = None, backbone: str = "llava") -> TrainingSettings:
    """Parse and check.

    Args:
        argv: arguments without the program's name; None takes those of the process.
        backbone: one of :data:`PROGRAMS`.

    Raises:
        ConfigError: with every mistake that is found.
        SystemExit: from argparse, on an unknown flag.
    """
    kind, problems = PROGRAMS[backbone], Problems()
    headline = f"{kind.program} cannot start"
    settings = parse(kind, build_parser(backbone), headline, argv)
    note_mistakes(settings, problems)
    problems.raise_if_any(ConfigError, headline)
    return settings
