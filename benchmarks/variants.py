"""What three settings of the Qwen3-VL route change: small controlled runs on the motion world, with intervals.

    python -m benchmarks.variants --out runs/variants             about 25 minutes on 2 cores
    python -m benchmarks.variants --out runs/variants_quick --quick     the same path in 2 minutes; too short to learn

Frames as video pairs against separate images, times written against not, the read-out at [SEG] and [LOC] against before
them. Each run differs from the reference in one setting and shares base, data, order, seed and steps with it; all go
through train_qwen_ds.py, the merge and the evaluation, and are compared question by question on videos that none has
seen. What is done already is kept, and a killed run goes on, when the command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.comparison import ScoredRun, compare, read_scored_run
from utils.errors import ConfigError, MoraError
from utils.files import write_json
from utils.paths import user_path

REFERENCE = {"--frames_as": "images", "--timestamps": "no", "--readout": "before"}

VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "reference": ("images, no times, read out before the token", {}),
    "video": ("video pairs instead of images", {"--frames_as": "video"}),
    "stamps": ("times written", {"--timestamps": "yes"}),
    "at": ("read out at the token", {"--readout": "at"}),
}
"""Name of a run -> what it changes, in words and in flags."""

MEASURES = (
    ("J&F", "model", "JF"),
    ("J&F without [LOC]", "no_refinement", "JF"),
    ("temporal IoU", "model", "temporal_iou"),
)
"""(title, row of the evaluation, measure)."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        videos, referring: training videos with questions, and with expressions.
        test: unseen videos.
        steps, warmup, batch: optimizer steps of each run, and videos of a step.
    """

    videos: int = 1200
    referring: int = 150
    test: int = 120
    steps: int = 600
    warmup: int = 30
    batch: int = 8


MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
    "TOKENIZERS_PARALLELISM": "false",
}
"""For the programs, as in scripts/environment.sh: glibc gives large temporaries back at every step otherwise."""

QUICK = Size(videos=24, referring=8, test=6, steps=2, warmup=1, batch=2)


def settings_of(name: str) -> list[str]:
    """The flags in which runs differ, all of them, so that a base's own choices do not count."""
    flags: list[str] = []
    for flag, value in {**REFERENCE, **VARIANTS[name][1]}.items():
        flags += [flag.replace("--", "--no-" if value == "no" else "--")] + [value] * (value not in ("yes", "no"))
    return flags


def corpora(out: Path, size: Size) -> list[list[str]]:
    """Commands that write what is trained on and what is asked."""
    make = ["-m", "datasets.synthetic", "--level", "easy"]
    return [
        [*make, "--out", f"{out}/data", "--seed", "1", "--num_videos", str(size.videos), "--num_refytvos",
         str(size.referring), "--corpora", "groundmore,refytvos"],
        [*make, "--out", f"{out}/data_test", "--seed", "1001", "--num_videos", str(size.test), "--split", "test",
         "--corpora", "groundmore"],
    ]  # fmt: skip


def steps_of(name: str, seed: int, args: argparse.Namespace) -> list[list[str]]:
    """Commands that train, merge and evaluate one run."""
    size, run, out = args.size, f"{name}_{seed}", args.out
    train = [
        "train_qwen_ds.py", "--version", str(args.base), "--dataset_dir", f"{out}/data", "--log_base_dir",
        f"{out}/runs", "--exp_name", run, "--auto_resume", "--dataset", "groundmore||refer_video_seg",
        "--sample_rates", "8,1", "--loc_mode", "global", "--precision", args.precision, "--seed", str(seed),
        "--batch_size", str(size.batch), "--grad_accumulation_steps", "1", "--epochs", "1", "--steps_per_epoch",
        str(size.steps), "--warmup_steps", str(size.warmup), "--lr", "1e-3", "--lr_schedule", "cosine",
        "--min_lr_ratio", "0.03", "--beta2", "0.98", "--weight_decay", "0.02", "--dice_loss_weight", "1.0",
        "--lora_r", "0", "--trainable", "language_model.*||text_hidden_fcs.*||sam.mask_decoder.*||loc_head.*",
        "--num_frames", "8", "--frame_sampling", "jitter", "--mask_frames", "1", "--outside_window", "ignore",
        "--max_questions", "8", "--workers", "1", "--no-gradient_checkpointing", "--save_every_steps", "100",
        "--picture_freq", "0", "--print_freq", "20", *settings_of(name),
    ]  # fmt: skip
    merge = [
        "merge_lora_weights_and_save_hf_model.py", "--version", str(args.base), "--weight",
        f"{out}/runs/{run}/ckpt_model", "--save_path", f"{out}/models/{run}", "--reuse",
    ]  # fmt: skip
    test = f"{out}/data_test/GroundMoRe"
    evaluate = [
        "evaluate_groundmore.py", "--version", f"{out}/models/{run}", "--video_root", f"{test}/groundmore_videos",
        "--meta_file", f"{test}/groundmore_test.json", "--output_dir", f"{out}/eval/{run}", "--num_frames", "8",
        "--force_seg_token", "--force_loc_token", "--use_loc_refine", "--max_new_tokens", "12", "--pictures", "0",
    ]  # fmt: skip
    return [train, merge, evaluate]


def run(command: Sequence[str], log: Path, threads: int) -> None:
    """Run a program of the project, its output at the end of a file.

    Raises:
        MoraError: it failed; with the last lines that it wrote.
    """
    environment = {**MEMORY, **os.environ, "OMP_NUM_THREADS": str(threads)}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    print(f"+ python {shlex.join(command)}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        status = subprocess.run([sys.executable, *command], stdout=file, stderr=file, env=environment).returncode
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise MoraError(f"{command[0]} ended with {status}; see {log}:\n{tail}")


def run_all(args: argparse.Namespace) -> None:
    """Make the corpora, then all runs, ``args.jobs`` at a time.

    Raises:
        MoraError: runs failed; the others were finished first.
    """
    for command in corpora(args.out, args.size):
        run(command, args.out / "logs" / "corpora.txt", os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)

    def one(name: str, seed: int) -> str | None:
        started = time.monotonic()
        try:
            for command in steps_of(name, seed, args):
                run(command, args.out / "logs" / f"{name}_{seed}.txt", threads)
        except MoraError as error:
            return f"{name}, seed {seed}: {error}"
        print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
        return None

    with ThreadPoolExecutor(args.jobs) as pool:
        pairs = [(name, seed) for seed in args.seeds for name in args.variants]
        failed = [message for message in pool.map(one, *zip(*pairs)) if message]
    if failed:
        raise MoraError("\n".join(failed))


def all_seeds(runs: Sequence[ScoredRun], name: str) -> ScoredRun:
    """Runs of several seeds as one: each question counts once per seed, and a video's stay together when videos are
    drawn."""
    scores = {
        (video, f"{query}, seed {seed}"): score
        for seed, run in enumerate(runs)
        for (video, query), score in run.scores.items()
    }
    return dataclasses.replace(runs[0], path=runs[0].path.with_name(name), scores=scores)


def compare_all(args: argparse.Namespace) -> list[dict]:
    """Every variant against the reference: its cell of :func:`evaluation.comparison.compare`, of all seeds
    together, with "variant", "title" and "seeds", the difference of each seed alone."""
    rows = []
    for name in [name for name in args.variants if name != "reference"]:
        pairs = [
            tuple(read_scored_run(args.out / "eval" / f"{which}_{seed}") for which in ("reference", name))
            for seed in args.seeds
        ]
        whole = tuple(all_seeds(runs, which) for runs, which in zip(zip(*pairs), ("reference", name)))
        for title, row, measure in MEASURES:
            cell = compare(*whole, row, row)["table"][measure]["Overall"]
            alone = [compare(*pair, row, row)["table"][measure]["Overall"]["mean"] for pair in pairs]
            rows.append({"variant": name, "title": title, **cell, "seeds": alone})
    return rows


def format_rows(rows: Sequence[dict], args: argparse.Namespace) -> str:
    """The comparison as Markdown."""
    size, seeds = args.size, ", ".join(map(str, args.seeds))
    lines = [
        f"{size.steps} steps of {size.batch} videos from {args.base}, seeds {seeds}; {size.test} unseen videos of seed "
        f"1001. Differences to: {VARIANTS['reference'][0]}. Intervals of 95 % are paired, over videos, and know "
        "nothing of other seeds.",
        "",
        "| change | measure | reference | changed | difference | 95 % interval | p | each seed |",
        f"|{'---|' * 8}",
    ]
    for row in rows:
        each = ", ".join(f"{value:+.4f}" for value in row["seeds"])
        interval = "-" if row["low"] is None else f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        chance = "-" if row["p"] is None else f"{row['p']:.4f}"
        lines.append(
            f"| {VARIANTS[row['variant']][0]} | {row['title']} | {row['a']:.4f} | "
            f"{row['b']:.4f} | {row['mean']:+.4f} | {interval} | {chance} | {each} |"
        )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        ConfigError: with every mistake that is found.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=user_path, required=True, metavar="DIR", help="corpora, runs, models, scores, logs")
    add("--base", type=user_path, default="assets/tiny_qwen_base", metavar="DIR", help="(%(default)s)")
    add("--variants", nargs="+", choices=tuple(VARIANTS)[1:], default=list(VARIANTS)[1:], help="(default: all)")
    add("--seeds", type=int, nargs="+", default=[7], help="of order and dropout; each adds the same time (%(default)s)")
    add("--steps", type=int, help=f"of each run ({Size.steps}; with --quick {QUICK.steps})")
    add("--jobs", type=int, help="runs at a time (default: 1 on a GPU, else as many as there are cores, at most 4)")
    add("--quick", action="store_true", help="a few steps, to see that it works")
    args = parser.parse_args(argv)
    args.out, args.base, args.variants = Path(args.out), Path(args.base), ["reference", *dict.fromkeys(args.variants)]
    args.size = QUICK if args.quick else Size()
    if args.steps is not None:
        args.size = dataclasses.replace(args.size, steps=args.steps, warmup=max(1, min(args.size.warmup, args.steps)))
    gpu = torch.cuda.is_available()
    args.precision = "bf16" if gpu else "fp32"
    args.jobs = (1 if gpu else min(4, os.cpu_count() or 1)) if args.jobs is None else args.jobs
    if args.size.steps < 1 or args.jobs < 1 or len(set(args.seeds)) < len(args.seeds):
        raise ConfigError("--steps and --jobs must be at least 1, and --seeds different")
    if not args.base.is_dir():
        raise ConfigError(
            f"--base {args.base}: no such folder; make it by scripts/make_tiny_base.py --backbone qwen3_vl"
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        args = parse_arguments(argv)
        run_all(args)
        rows = compare_all(args)
        print(f"\n{format_rows(rows, args)}")
        write_json(args.out / "variants.json", rows)
    except MoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
