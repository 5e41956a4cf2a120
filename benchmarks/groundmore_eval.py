"""Time an evaluation on GroundMoRe: as it was published, and by this project's engine, on the same weights.

    python -m benchmarks.groundmore_eval --preset tiny
    python -m benchmarks.groundmore_eval --preset lisa_7b --device cuda --precision bf16
    python -m benchmarks.groundmore_eval --preset qwen3_vl_8b

Weights are random, clips synthetic; answers are forced unless --answer_mode generate, so the work is that of a trained
model. (a) reads every frame again for every question, one at a time, without any cache, and scores afterwards with the
metric as it is defined; (b) is evaluate_groundmore.py's own code. Both must give the same masks. The time of the full
test (382 clips, 2,005 questions, 20 frames) is extrapolated from what was measured, and marked so.

Presets on Qwen3-VL are counted first: what a question costs with the frames read once, and without. With frames as
images they are measured on a GPU, tiny_qwen anywhere; their (a) is transformers' own image processor and forward, once
per question.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.compare_routes import compare
from benchmarks.counted import format_counted
from benchmarks.eval_report import format_result
from benchmarks.workload import CLIP_SIZES, QWEN, Bench, make_config, open_tokenizer, random_model, write_clips
from evaluation.protocol import make_protocol
from model import presets
from model.settings import PRECISIONS
from utils.errors import ConfigError, MoraError
from utils.files import write_json

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""Dense half-precision TFLOP/s by the maker's data sheets."""

DEFAULTS = {
    "tiny": {"videos": 4, "published_questions": 4},
    **dict.fromkeys(("lisa_7b", *QWEN), {"videos": 6, "published_questions": 2}),
    "tiny_qwen": {"videos": 4, "published_questions": 4},
}
"""Slices that take about a minute on a CPU (tiny) and a few minutes on one large GPU (lisa_7b)."""

COUNTED = dict.fromkeys(QWEN, ((720, 1280), (480, 854), (360, 640))) | {"tiny_qwen": ((64, 64),)}
"""(height, width) of the frames that are counted by default."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.groundmore_eval", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--preset", choices=tuple(CLIP_SIZES), default="tiny", help="network (%(default)s)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if there is one")
    add("--precision", choices=tuple(PRECISIONS), help="default: bf16 on a GPU, fp32 without")
    add("--visual_mode", choices=("frame", "pooled", "video"), help="LLM rows (frame; of Qwen3-VL video)")
    add("--frames_as", choices=("images", "video"), default="images", help="Qwen3-VL (%(default)s)")
    add("--timestamps", action="store_true", help="Qwen3-VL: the time before each image or pair")
    add("--min_pixels", type=int, help="Qwen3-VL: least of a resized frame (default: the preset's)")
    add("--max_pixels", type=int, help="Qwen3-VL: most of a resized frame (default: the preset's)")
    add("--loc_mode", choices=("none", "global", "frame"), default="global", help="[LOC] head (%(default)s)")
    add("--answer_mode", choices=("forced", "generate"), default="forced",
        help="a fixed answer, or greedy tokens, which random weights choose without sense (%(default)s)")  # fmt: skip
    add("--max_new_tokens", type=int, default=8, help="longest generated answer (%(default)s)")
    add("--videos", type=int, help="clips for (b) (tiny 4, lisa_7b 6)")
    add("--questions_per_video", type=int, default=5, help="the full test has 5.2 (%(default)s)")
    add("--published_questions", type=int, help="questions for (a), all of the first clips (tiny 4, lisa_7b 2)")
    add("--num_frames", type=int, default=20, help="frames per clip (%(default)s)")
    add("--height", type=int, help="of the frames in pixels (tiny 64, lisa_7b 720)")
    add("--width", type=int, help="of the frames in pixels (tiny 64, lisa_7b 1280)")
    add("--workers", type=int, default=8, help="processes that score in (b), if there is enough to do (%(default)s)")
    add("--decode_workers", type=int, default=3, help="threads that prepare frames in (b) (%(default)s)")
    add("--peak", type=float, metavar="TFLOPS", help="of the device, for the share of it that each stage reaches "
        "(default: of an H200, H100 or A100 in half precision, else the share is not shown)")  # fmt: skip
    add("--tokenizer", type=Path, metavar="DIR", help="of a published folder (default: the tiny one)")
    add("--ladder", action=argparse.BooleanOptionalAction, default=True, help="also time the single steps from (a) to "
        "(b): SAM's encoder one frame at a time and in batches, the prefix read once or per question")  # fmt: skip
    add("--seed", type=int, default=0, help="of the weights (%(default)s)")
    add("--work_dir", type=Path, default=Path(tempfile.gettempdir()) / "groundmore_eval", metavar="DIR",
        help="clips and records (%(default)s)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    return parser


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the preset and the machine.

    Raises:
        ConfigError: numbers that cannot be used, or a GPU that is not there.
    """
    for name, value in DEFAULTS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("videos", "questions_per_video", "published_questions", "num_frames", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: must be at least 1")
    args.sizes = ((args.height, args.width),) if args.height and args.width else COUNTED.get(args.preset, ())
    height, width = CLIP_SIZES[args.preset]
    args.height, args.width = args.height or height, args.width or width
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.visual_mode is None:
        args.visual_mode = "video" if args.preset in QWEN else "frame"
    if args.preset in QWEN and args.visual_mode != "video":
        raise ConfigError(f"--visual_mode {args.visual_mode}: of Qwen3-VL only 'video', all frames in one row")
    if args.precision is None:
        args.precision = "bf16" if args.device == "cuda" else "fp32"
    if args.peak is None and args.device == "cuda" and args.precision != "fp32":
        name = torch.cuda.get_device_name()
        args.peak = next((peak for model, peak in PEAKS.items() if model in name), None)
    args.published_questions = min(args.published_questions, args.videos * args.questions_per_video)
    return args


def counted(args: argparse.Namespace) -> str:
    """What can be said of a preset on Qwen3-VL without running it."""
    config = getattr(presets, args.preset)(loc_mode=args.loc_mode, **own_fields(args))
    return format_counted(args.preset, config, args.sizes, args.num_frames)


def own_fields(args: argparse.Namespace) -> dict:
    """Fields of a configuration that only Qwen3-VL has."""
    if args.preset not in QWEN:
        return {}
    names = ("min_pixels", "max_pixels", "frames_as", "timestamps")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def measure(args: argparse.Namespace) -> dict:
    """Run the benchmark; returns its figures, see :func:`benchmarks.compare_routes.compare`."""
    videos = write_clips(args.work_dir, args.videos, args.questions_per_video, args.height, args.width)
    tokenizer, fields = open_tokenizer(args.tokenizer, args.preset), own_fields(args)
    config = make_config(args.preset, tokenizer, visual_mode=args.visual_mode, loc_mode=args.loc_mode, **fields)
    model = random_model(config, torch.device(args.device), PRECISIONS[args.precision], args.seed)
    with_loc = args.loc_mode != "none"
    protocol = make_protocol(
        num_frames=args.num_frames, answer_mode=args.answer_mode, max_new_tokens=args.max_new_tokens,
        force_seg_token=True, force_loc_token=with_loc, seg_only=not with_loc,
    )  # fmt: skip
    bench = Bench(
        model, tokenizer, protocol, videos, args.work_dir / "runs" / args.preset, args.workers, args.decode_workers,
        (args.height, args.width),
    )  # fmt: skip
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {"settings": settings, **compare(bench, args.published_questions, args.ladder)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        args = complete(build_parser().parse_args(argv))
        if args.preset in QWEN:
            print(counted(args))
            if args.frames_as == "video" or (args.device == "cpu" and args.preset != "tiny_qwen"):
                return 0  # (a) reads images only, and nothing of full size is measured without a GPU
        result = measure(args)
    except MoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_result(result))
    if args.out is not None:
        write_json(args.out, result)
        print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
