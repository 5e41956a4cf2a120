"""The flags of ``train_ds.py``: what they mean, and every mistake in them listed at once."""

from __future__ import annotations

import argparse
import importlib.util
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets.corpora import CORPORA, ON_PROBLEM, SPELLINGS
from utils.errors import ConfigError, Problems
from utils.files import unusable_folder
from utils.hub import is_hub_name
from utils.paths import user_path

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

PRECISIONS = ("fp32", "bf16", "fp16")


def _flag(group: argparse._ArgumentGroup, *names: str, **options) -> None:
    group.add_argument(*names, **options)


def _switch(group: argparse._ArgumentGroup, name: str, default: bool, help: str) -> None:
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=help)


# fmt: off
def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which network is built; shared by training and export."""
    group = parser.add_argument_group("model")
    _flag(group, "--version", required=True, type=user_path, metavar="PATH", help="base model: a folder saved by this "
          "project, a LISA/MoRA folder in the published layout, or the Hugging Face id of one")
    _flag(group, "--vision_pretrained", type=user_path, metavar="FILE", default=None, help="SAM weights "
          "(sam_vit_h_4b8939.pth); fill only what the base lacks, so a trained mask decoder is never overwritten")
    _flag(group, "--vision-tower", "--vision_tower", dest="vision_tower", type=user_path, metavar="PATH",
          default=None,
          help="CLIP vision tower, if not the one the base names; a base that brings its own keeps it, and the log "
          "says so")
    _flag(group, "--allow_missing", action="append", default=[], metavar="PATTERN", help="tensors that the base may "
          "lack, such as 'text_hidden_fcs.*'; they start with fresh weights, which the log names. May be repeated")
    _flag(group, "--allow_unexpected", action="append", default=[], metavar="PATTERN", help="tensors of the base that "
          "may be left out, such as the '*loc*' of a head in another layout. May be repeated")
    _flag(group, "--conv_type", choices=("llava_v1", "llava_llama_2", "plain"), default=None,
          help="conversation template (default: the one the base was trained with)")
    _flag(group, "--visual_mode", choices=("frame", "pooled", "video"), default=None,
          help="one LLM row per frame, one pooled row, or one row with all frames (default: the base's)")
    _flag(group, "--answer_style", choices=("fixed", "name"), default=None,
          help="fixed: 'Sure, [SEG].'; name: the answer object is named before [SEG] (default: the base's)")
    _switch(group, "--seg_only", False, "segmentation only: no [LOC] token, no localisation head")
    _flag(group, "--loc_mode", choices=("global", "frame"), default=None, help="[LOC] head: one video-level state "
          "matched against every frame, or one logit from each frame's own state (default: the base's, else global)")
    _flag(group, "--lora_r", type=int, default=8, help="rank of the LoRA adapters; 0 trains without (%(default)s)")
    _flag(group, "--lora_alpha", type=int, default=16, help="scale of LoRA is alpha / r (%(default)s)")
    _flag(group, "--lora_dropout", type=float, default=0.05, help="dropout before LoRA's A (%(default)s)")
    _flag(group, "--lora_target_modules", default="q_proj,v_proj", help="modules of the language model that get "
          "adapters, separated by commas (%(default)s)")
    _flag(group, "--trainable", default="default", metavar="SPEC", help="default: LoRA, embed_tokens, lm_head, SAM's "
          "mask decoder, text_hidden_fcs and the [LOC] head, as published; all: everything; or patterns of parameter "
          "names separated by ||, such as 'projector.*||sam.mask_decoder.*'")


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    _flag(group, "--dataset_dir", type=user_path, default="./dataset", metavar="DIR",
          help="holds refytvos/, MeViSv2/, GroundMoRe/")
    _flag(group, "--dataset", default="refer_video_seg||mevis", help=f"corpora separated by ||: {', '.join(CORPORA)} "
          "(%(default)s)")
    _flag(group, "--sample_rates", default=None, metavar="R,R", help="how often each corpus is drawn (default: equal)")
    _flag(group, "--num_frames", type=int, default=5, help="frames per sample (%(default)s)")
    _flag(group, "--frame_sampling", choices=("anchor", "uniform", "jitter"), default="anchor", help="a random frame "
          "with its neighbours and some far ones; evenly spread; or one at random in each of n equal parts")
    _flag(group, "--max_questions", type=int, default=3, help="questions drawn per sample; they share the encoding of "
          "the video (%(default)s)")
    _flag(group, "--mask_frames", type=int, default=0, help="frames per question whose mask is supervised; 0: all")
    _flag(group, "--outside_window", choices=("zero", "ignore"), default="zero", help="mask target on frames outside "
          "the question's window: an empty mask, or none")
    _switch(group, "--loc_for_referring", False, "ask for [LOC] also where a corpus has no windows (all frames inside)")
    _flag(group, "--model_max_length", type=int, default=512, help="longest conversation in TEXT tokens; the "
          "visual ones come on top (%(default)s)")
    _flag(group, "--on_problem", choices=ON_PROBLEM, default="raise", help="mistakes found when a corpus is opened: "
          "raise: stop and list all of them; skip: leave out the videos and questions concerned, naming each and "
          "saying how many are left. A file that proves unreadable later stops the run either way (%(default)s)")
    _flag(group, "--workers", type=int, default=4, help="processes that read and prepare samples (%(default)s)")


def _add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    _flag(group, "--epochs", type=int, default=20, help="(%(default)s)")
    _flag(group, "--steps_per_epoch", type=int, default=500, help="optimizer steps per epoch (%(default)s)")
    _flag(group, "--batch_size", type=int, default=1, help="videos per process and micro-batch (%(default)s)")
    _flag(group, "--grad_accumulation_steps", type=int, default=10, help="micro-batches per step (%(default)s)")
    _flag(group, "--lr", type=float, default=3e-4, help="peak learning rate (%(default)s)")
    _flag(group, "--beta1", type=float, default=0.9, help="AdamW (%(default)s)")
    _flag(group, "--beta2", type=float, default=0.95, help="AdamW (%(default)s)")
    _flag(group, "--weight_decay", type=float, default=0.0, help="AdamW (%(default)s)")
    _flag(group, "--warmup_steps", type=int, default=100, help="linear from 0 to --lr (%(default)s)")
    _flag(group, "--lr_schedule", choices=("linear", "cosine"), default="linear",
          help="how the rate falls after the warm-up (%(default)s, to 0)")
    _flag(group, "--min_lr_ratio", type=float, default=0.0, help="where a cosine ends, as a share of --lr")
    _flag(group, "--grad_clip", type=float, default=1.0, help="largest norm of the gradient (%(default)s)")
    _flag(group, "--ce_loss_weight", type=float, default=1.0, help="text (%(default)s)")
    _flag(group, "--bce_loss_weight", type=float, default=2.0, help="masks, per pixel (%(default)s)")
    _flag(group, "--dice_loss_weight", type=float, default=0.5, help="masks, overlap (%(default)s)")
    _flag(group, "--loc_loss_weight", type=float, default=1.0, help="[LOC], per frame (%(default)s)")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    _flag(group, "--log_base_dir", type=user_path, default="./runs", metavar="DIR", help="(%(default)s)")
    _flag(group, "--exp_name", default="mora", help="everything goes to LOG_BASE_DIR/EXP_NAME (%(default)s)")
    _flag(group, "--precision", choices=PRECISIONS, default="bf16", help="(%(default)s); without a GPU: fp32 or bf16")
    _flag(group, "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one")
    _flag(group, "--attn_implementation", choices=("auto", "sdpa", "eager", "flash_attention_2"), default="auto",
          help="auto: flash-attn if it is installed and the run is on a GPU in half precision, else SDPA")
    _flag(group, "--zero_stage", type=int, choices=(1, 2), default=2, help="what DeepSpeed divides among processes: "
          "optimizer states, or gradients too (%(default)s)")
    _switch(group, "--gradient_checkpointing", True, "recompute activations in the backward pass: less memory")
    _flag(group, "--seed", type=int, default=0, help="data order, initial weights and dropout (%(default)s)")
    _flag(group, "--print_freq", type=int, default=1, help="steps between log lines (%(default)s)")
    _flag(group, "--picture_freq", type=int, default=500, help="steps between pictures in TensorBoard; 0: none")
    _flag(group, "--keep_ckpt_every", type=int, default=5, help="every so many epochs the rolling checkpoint "
          "ckpt_model is also kept as ckpt_model_epoch_XXX; 0: never (%(default)s)")
    _flag(group, "--save_every_steps", type=int, default=0, help="rolling checkpoints inside an epoch; 0: none")
    _switch(group, "--auto_resume", True, "go on from LOG_BASE_DIR/EXP_NAME/ckpt_model if it exists")
    _flag(group, "--resume", type=user_path, default=None, metavar="DIR", help="go on from this checkpoint instead")
    _flag(group, "--init_from", type=user_path, default=None, metavar="PATH", help="take weights only, on the first "
          "launch: from a checkpoint folder, what was converted from it, or an exported model (--auto_resume wins)")
    _flag(group, "--max_minutes", type=float, default=0.0, help="save and stop after so long; 0: never")
    _flag(group, "--local_rank", "--local-rank", type=int, default=0, help="set by launchers")


# fmt: on
def build_parser() -> argparse.ArgumentParser:
    """The parser of ``train_ds.py``; ``--help`` shows the two stages and every flag by group."""
    parser = argparse.ArgumentParser(
        description=textwrap.dedent(DESCRIPTION), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    _add_data_flags(parser)
    _add_optimisation_flags(parser)
    _add_run_flags(parser)
    return parser


AT_LEAST = {
    "lora_r": 0, "num_frames": 1, "max_questions": 1, "mask_frames": 0, "model_max_length": 8, "workers": 0,
    "epochs": 1, "steps_per_epoch": 1, "batch_size": 1, "grad_accumulation_steps": 1, "warmup_steps": 1,
    "print_freq": 1, "picture_freq": 0, "keep_ckpt_every": 0, "save_every_steps": 0, "max_minutes": 0,
    "weight_decay": 0, "ce_loss_weight": 0, "bce_loss_weight": 0, "dice_loss_weight": 0, "loc_loss_weight": 0,
    "seed": 0,
}  # fmt: skip


def check_numbers(args: argparse.Namespace, problems: Problems) -> None:
    """Note every number that is out of its range."""
    for name, smallest in AT_LEAST.items():
        value = getattr(args, name)
        if value < smallest:
            problems.add(f"--{name}", f"{value} is too small; at least {smallest}")
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            problems.add(f"--{name}", f"{value} is no finite number")
    if args.seed >= 2**63:
        problems.add("--seed", f"{args.seed} is too large; below 2**63")
    for name in ("lr", "grad_clip"):
        if not getattr(args, name) > 0:
            problems.add(f"--{name}", f"{getattr(args, name)} must be above 0")
    for name in ("beta1", "beta2", "lora_dropout", "min_lr_ratio"):
        if not 0 <= getattr(args, name) < 1:
            problems.add(f"--{name}", f"{getattr(args, name)} must be in [0, 1)")
    total = args.epochs * args.steps_per_epoch
    if args.warmup_steps > total:
        problems.add("--warmup_steps", f"{args.warmup_steps} is more than all {total} steps (epochs x steps_per_epoch)")


def check_model_flags(args: argparse.Namespace, problems: Problems) -> None:
    """Note contradictions and missing files among the flags of :func:`add_model_flags`."""
    if args.seg_only and args.loc_mode is not None:
        problems.add("--seg_only", f"leaves no [LOC] head for --loc_mode {args.loc_mode}; give one of the two")
    if args.loc_mode == "frame" and args.visual_mode not in (None, "frame"):
        problems.add("--loc_mode", f"'frame' needs --visual_mode frame, not {args.visual_mode!r}; use 'global'")
    if args.vision_pretrained is not None and not Path(args.vision_pretrained).exists():
        problems.add("--vision_pretrained", f"{args.vision_pretrained}: no such file; download sam_vit_h_4b8939.pth")
    if not Path(args.version).exists() and not is_hub_name(args.version):
        problems.add("--version", f"{args.version}: no such folder, and not a Hugging Face id (owner/name)")
    tower = args.vision_tower
    beside = [Path(), Path(args.version), Path(args.version).parent]
    if tower is not None and not is_hub_name(tower) and not any((base / tower).is_dir() for base in beside):
        problems.add("--vision-tower", f"{tower}: no such folder, and not a Hugging Face id; leave it out to use the "
                     "one that the base brings or names")  # fmt: skip
    if args.lora_r != 0 and args.lora_alpha is not None and not args.lora_alpha > 0:
        problems.add("--lora_alpha", f"{args.lora_alpha} would scale every adapter to nothing; use at least 1, or "
                     "--lora_r 0 to train without adapters")  # fmt: skip


def check_arguments(args: argparse.Namespace) -> None:
    """Find every mistake that can be found before anything is loaded.

    Raises:
        ConfigError: with one line per mistake.
    """
    problems = Problems()
    check_numbers(args, problems)
    check_model_flags(args, problems)
    names = [name.strip() for name in args.dataset.split("||") if name.strip()]
    for name in sorted(set(names) - set(SPELLINGS)) or ([] if names else ["nothing"]):
        problems.add("--dataset", f"{name} is no corpus; known: {', '.join(CORPORA)}")
    if len(set(names)) != len(names):
        problems.add("--dataset", f"{args.dataset} names a corpus twice; raise its sample rate instead")
    if args.sample_rates is not None:
        try:
            rates = [float(rate) for rate in args.sample_rates.split(",")]
        except ValueError:
            problems.add("--sample_rates", f"{args.sample_rates!r} is not a list of numbers such as '1,1'")
        else:
            if len(rates) != len(names):
                problems.add("--sample_rates", f"{len(rates)} rates for {len(names)} corpora ({args.dataset})")
            if not all(0 <= rate < math.inf for rate in rates) or sum(rates) <= 0:
                problems.add("--sample_rates", f"{args.sample_rates}: finite, none negative, one above 0")
    if not Path(args.dataset_dir).is_dir():
        problems.add("--dataset_dir", f"{args.dataset_dir}: no such folder; docs/data.md shows the layout")
    if args.device == "cuda" and not torch.cuda.is_available():
        problems.add("--device", "cuda is asked for, but torch sees no GPU; use --device cpu with --precision fp32")
    if args.precision == "fp16" and (args.device == "cpu" or not torch.cuda.is_available()):
        problems.add("--precision", "fp16 needs a GPU; use fp32 or bf16")
    if args.attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        problems.add("--attn_implementation", "flash-attn is not installed; pip install flash-attn, or use auto")
    if problem := unusable_folder(Path(args.log_base_dir) / args.exp_name):
        problems.add("--log_base_dir", f"{problem}; choose another --log_base_dir or --exp_name")
    for name in ("resume", "init_from"):
        path = getattr(args, name)
        if path is not None and not Path(path).exists():
            problems.add(f"--{name}", f"{path}: no such file or folder")
    problems.raise_if_any(ConfigError, "train_ds.py cannot start")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Namespace; ``sample_rates`` is always a string with one rate per corpus.

    Raises:
        ConfigError: with every mistake that is found.
        SystemExit: from argparse, on an unknown flag.
    """
    args = build_parser().parse_args(argv)
    if args.sample_rates is None:
        args.sample_rates = ",".join("1" for name in args.dataset.split("||") if name.strip())
    check_arguments(args)
    return args
