"""The flags of ``evaluate_groundmore.py``: what they mean, and every mistake in them listed at once."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.engine.shards import find_shard
from evaluation.outputs import FILES, note_foreign_file, note_foreign_folder, note_own_place, reading_results
from evaluation.protocol import CHOICES, PRESETS, Protocol, make_protocol
from evaluation.records import read_run
from evaluation.report.page import LIMIT as PICTURES
from model.checkpoints.sources import is_hub_name
from utils.errors import ConfigError, DataError, Problems
from utils.files import unusable_folder
from utils.paths import note_inputs_overwritten, user_path
from utils.processes.distributed import cores_per_process

DESCRIPTION = """\
Evaluate MoRA on GroundMoRe: predict masks for every question, then score them with J and F.

A released or exported model on the test set, 20 frames per clip, masks refined by [LOC]:
  python evaluate_groundmore.py --version checkpoints/mora-ft-lisa7b --vision_pretrained sam_vit_h_4b8939.pth \\
    --conv_type llava_llama_2 --video_root groundmore_videos --meta_file groundmore_test.json \\
    --output_dir outputs/mora --result_file results/mora-f20.txt --num_frames 20 \\
    --force_seg_token --force_loc_token --use_loc_refine --loc_threshold 0.5

A run that was killed goes on where it stopped when started again, with any number of processes. Every question has
its record in OUTPUT_DIR/records, every video its scores in OUTPUT_DIR/scores; nothing is predicted or scored twice.
Questions or videos added to the annotation file are predicted, the others are kept.

Several GPUs, on one machine or many; whole videos are divided, and whoever ends last writes the result:
  torchrun --nproc_per_node 8 evaluate_groundmore.py ...        (also deepspeed, accelerate launch, srun)
  sbatch --array=0-15 job.sh                                    (each task of a Slurm array is a shard)
  python evaluate_groundmore.py ... --num_shards 4 --shard_id 2 (by hand; wins over the other two)

A quick look, at two clips or at one question:
  python evaluate_groundmore.py ... --limit 2
  python evaluate_groundmore.py ... --video cups_0000_0010 --question 3

Other thresholds need no new prediction:
  python evaluate_groundmore.py --score_only --output_dir outputs/mora --video_root ... --meta_file ... \\
    --use_loc_refine --loc_threshold 0.3

Every choice that changes a number is explained in docs/evaluation.md, printed with the result and stored in
OUTPUT_DIR/summary.json.

Exit code: 0; 1 if some questions failed (each counts as 0, and is tried again by the next run) or some answers had no
[SEG] (scored as empty masks; --force_seg_token appends it); 2 if the run could not go on; 130 or 143 if it was ended by
Ctrl-C or SIGTERM.
"""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

INPUTS = ("version", "vision_pretrained", "vision_tower", "meta_file", "video_root")
"""Flags that name what is read."""

FLAG_OF_FIELD = {"loc_refine": "use_loc_refine"}
"""Fields of the protocol whose flag has another name."""


def _switch(group: argparse._ArgumentGroup, name: str, help: str, default: bool | None = False) -> None:
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=help)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model (not needed with --score_only)")
    group.add_argument(
        "--version", type=user_path, metavar="PATH", help="exported model, LISA/MoRA folder, or Hugging Face id"
    )
    group.add_argument("--vision_pretrained", type=user_path, metavar="FILE",
                       help="SAM weights, only for what the model lacks")  # fmt: skip
    group.add_argument("--vision-tower", "--vision_tower", dest="vision_tower", type=user_path, metavar="PATH",
                       help="CLIP vision tower, if not the one the model names")  # fmt: skip
    group.add_argument("--allow_unexpected", action="append", default=[], metavar="PATTERN",
                       help="tensors of the model that may be left out, such as '*loc*' of a head in another layout; "
                       "may be repeated")  # fmt: skip
    group.add_argument("--conv_type", choices=("llava_v1", "llava_llama_2", "plain"),
                       help="conversation template (default: the one the model was trained with)")  # fmt: skip
    group.add_argument("--precision", choices=tuple(PRECISIONS), help="default: bf16 on a GPU, fp32 without")
    group.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto",
                       help="auto: the GPU if there is one")  # fmt: skip
    _switch(group, "--compile", "compile SAM's layers: faster per frame after a minute's compilation, for long runs")


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--meta_file", type=user_path, default="groundmore_test.json", metavar="FILE",
                       help="questions (%(default)s)")  # fmt: skip
    group.add_argument("--video_root", type=user_path, default="groundmore_videos", metavar="DIR",
                       help="one folder per clip with images/ and masks/ (%(default)s)")  # fmt: skip
    group.add_argument("--output_dir", type=user_path, default="output", metavar="DIR",
                       help="records, scores, summary.json, scores.json, report.html (%(default)s)")  # fmt: skip
    group.add_argument("--result_file", type=user_path, metavar="FILE",
                       help="text result (default: OUTPUT_DIR/result.txt)")  # fmt: skip
    group.add_argument("--video", action="append", metavar="ID", help="only this clip; may be repeated")
    group.add_argument("--question", action="append", metavar="ID",
                       help="only questions of this id, in all clips or those of --video; may be repeated")  # fmt: skip
    group.add_argument("--limit", type=int, metavar="N", help="only the first N clips")


def _add_protocol_flags(parser: argparse.ArgumentParser) -> None:
    defaults = Protocol()
    group = parser.add_argument_group("protocol (docs/evaluation.md)")
    group.add_argument("--protocol", choices=tuple(PRESETS), default="groundmore",
                       help="starting point; groundmore_2025 is the original's arithmetic (%(default)s)")  # fmt: skip
    group.add_argument("--num_frames", type=int, help=f"frames per clip ({defaults.num_frames})")
    group.add_argument("--frame_sampling", choices=CHOICES["frame_sampling"], help="how they are spread over the clip")
    group.add_argument("--prompt", choices=CHOICES["prompt"],
                       help="the texts are questions, or expressions that name an object (groundmore)")  # fmt: skip
    group.add_argument("--answer_mode", choices=CHOICES["answer_mode"],
                       help="the model writes its answer, or a fixed one is put in its mouth (generate)")  # fmt: skip
    group.add_argument("--max_new_tokens", type=int, help=f"longest answer in tokens ({defaults.max_new_tokens})")
    _switch(group, "--force_seg_token", "append [SEG] to an answer without one", None)
    _switch(group, "--force_loc_token", "append [LOC] to an answer without one", None)
    _switch(group, "--seg_only", "do not use the [LOC] head", None)
    _switch(group, "--use_loc_refine", "empty the masks of frames whose [LOC] probability is low", None)
    group.add_argument("--loc_threshold", type=float, help=f"what is low ({defaults.loc_threshold})")
    group.add_argument("--aggregation", choices=CHOICES["aggregation"],
                       help="a cell is the mean over questions, or over the videos' means (questions)")  # fmt: skip
    group.add_argument("--frame_control", choices=CHOICES["frame_control"],
                       help="disturb what the language model sees; the mask decoder sees the true frames")  # fmt: skip


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    _switch(group, "--predict_only", "write the records and stop")
    _switch(group, "--score_only", "score the records of an earlier run")
    _switch(group, "--overwrite", "delete the records in OUTPUT_DIR first")
    group.add_argument("--questions_per_batch", type=int, default=0, metavar="N",
                       help="questions answered together; 0: all of a clip (%(default)s)")  # fmt: skip
    group.add_argument("--decode_workers", type=int, metavar="N",
                       help="threads that read and resize frames ahead of the model; 0: none (up to 3)")  # fmt: skip
    group.add_argument("--workers", type=int, metavar="N",
                       help="processes that score behind the model; 0: none (up to 8)")  # fmt: skip
    group.add_argument("--num_shards", type=int, metavar="N",
                       help="divide the clips among N processes; 1: do not (default: as launched)")  # fmt: skip
    group.add_argument("--shard_id", type=int, metavar="K", help="which of them this is, from 0")
    group.add_argument("--pictures", type=int, default=PICTURES, metavar="N",
                       help="questions shown with frames in report.html; 0: no such page (%(default)s)")  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``evaluate_groundmore.py``."""
    parser = argparse.ArgumentParser(
        description=textwrap.dedent(DESCRIPTION), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for add in (_add_model_flags, _add_data_flags, _add_protocol_flags, _add_run_flags):
        add(parser)
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Namespace; ``device`` is "cpu" or "cuda", ``shard`` this process's share; ``precision``, ``result_file`` and the
        numbers of workers are set.

    Raises:
        ConfigError: with every mistake that can be found before anything is loaded.
        SystemExit: from argparse, on an unknown flag.
    """
    args = build_parser().parse_args(argv)
    problems = Problems()
    if args.score_only and args.predict_only:
        problems.add("--score_only", "leaves nothing to do together with --predict_only; give one of the two")
    for name in (*INPUTS, "output_dir", "result_file"):
        if getattr(args, name) == "":
            problems.add(f"--{name}", "is empty; is a shell variable not set?")
    problems.raise_if_any(ConfigError, "evaluate_groundmore.py cannot start")
    if not Path(args.meta_file).is_file():
        problems.add("--meta_file", f"{args.meta_file}: no such file; download test_v2.json of GroundMoRe")
    if not Path(args.video_root).is_dir():
        problems.add("--video_root", f"{args.video_root}: no such folder; extract the frames of GroundMoRe there")
    _check_outputs(args, problems)
    at_least = {"workers": 0, "decode_workers": 0, "pictures": 0, "questions_per_batch": 0, "limit": 1, "num_shards": 1}
    for name, smallest in at_least.items():
        value = getattr(args, name)
        if value is not None and value < smallest:
            problems.add(f"--{name}", f"{value} is too small; at least {smallest}")
    _settle_shard(args, problems)
    if not args.score_only:
        _check_model(args, problems)
    problems.raise_if_any(ConfigError, "evaluate_groundmore.py cannot start")
    args.result_file = args.result_file or str(Path(args.output_dir) / "result.txt")
    return args


def _check_outputs(args: argparse.Namespace, problems: Problems) -> None:
    """Note outputs that cannot be written, or that would replace an input or what somebody else wrote."""
    folder, result = args.output_dir, args.result_file
    inputs = {f"--{name}": getattr(args, name) for name in INPUTS}
    for name, path in (("output_dir", folder), ("result_file", Path(result or "x").parent)):
        if problem := unusable_folder(path):
            problems.add(f"--{name}", f"{problem}; choose another place")
            return
    note_inputs_overwritten(problems, ("--output_dir", folder), inputs)
    if (Path(folder) / "run.json").exists():
        try:
            read_run(folder)
        except DataError as error:
            problems.add("--output_dir", str(error))
    written = {"summary.json", "scores.json", "digests.json"} | ({"report.html"} if args.pictures > 0 else set())
    note_foreign_folder(
        problems, "--output_dir", folder, sorted(written | ({"result.txt"} if result is None else set()))
    )
    if result is None:
        return
    if Path(result).is_dir():
        problems.add("--result_file", f"{result} is a folder; name a file in it")
        return
    before = len(problems)
    note_inputs_overwritten(problems, ("--result_file", result), inputs)
    note_own_place(problems, "--result_file", result, folder)
    if len(problems) == before:
        note_foreign_file(problems, "--result_file", result, FILES["result.txt"])


def _settle_shard(args: argparse.Namespace, problems: Problems) -> None:
    """Find this process's share, and set the numbers of workers to what its cores allow."""
    if args.num_shards is not None and args.num_shards < 1:
        return
    try:
        args.shard = find_shard(args.num_shards, args.shard_id)
    except ConfigError as error:
        problems.add("sharding", str(error))
        return
    cores = cores_per_process(args.shard.launch.size)
    args.workers = min(8, cores) if args.workers is None else args.workers
    args.decode_workers = min(3, cores) if args.decode_workers is None else args.decode_workers


def _check_model(args: argparse.Namespace, problems: Problems) -> None:
    """Note mistakes among the model flags; settle device and precision."""
    if args.version is None:
        problems.add("--version", "which model? Give a folder or a Hugging Face id (or --score_only)")
    if args.vision_pretrained is not None and not Path(args.vision_pretrained).exists():
        problems.add("--vision_pretrained", f"{args.vision_pretrained}: no such file; download sam_vit_h_4b8939.pth")
    tower = args.vision_tower
    beside = [Path(), *([] if args.version is None else [Path(args.version), Path(args.version).parent])]
    if tower is not None and not is_hub_name(tower) and not any((base / tower).is_dir() for base in beside):
        problems.add("--vision-tower", f"{tower}: no such folder, and not a Hugging Face id; leave it out to use the "
                     "one that the model brings or names")  # fmt: skip
    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        problems.add("--device", "cuda is asked for, but torch sees no GPU; use --device cpu")
    if args.device == "auto":
        args.device = "cuda" if has_gpu else "cpu"
    if args.precision == "fp16" and args.device == "cpu":
        problems.add("--precision", "fp16 needs a GPU; use fp32 or bf16")
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")


def protocol_of(args: argparse.Namespace) -> Protocol:
    """The protocol that the flags ask for.

    With ``--score_only`` the fields that a prediction depends on are those of the run in ``output_dir``.

    Raises:
        ConfigError: values that cannot be used, or flags that contradict the run to be scored.
        DataError: ``--score_only`` and nothing was predicted in ``output_dir``.
    """
    given = {
        field.name: getattr(args, FLAG_OF_FIELD.get(field.name, field.name), None)
        for field in dataclasses.fields(Protocol)
        if field.name != "name"
    }
    if not args.score_only:
        return make_protocol(args.protocol, **given)
    done = read_run(args.output_dir)["settings"].get("protocol")
    known = {field.name for field in dataclasses.fields(Protocol)}
    if not isinstance(done, dict) or not set(done) <= known:
        raise DataError(f"{Path(args.output_dir) / 'run.json'}: its protocol is not one of this version; predict again")
    with reading_results(Path(args.output_dir) / "run.json"):
        make_protocol(**done)
    problems = Problems()
    for name, value in done.items():
        if given.get(name) not in (None, value):
            problems.add(f"--{FLAG_OF_FIELD.get(name, name)}", f"{given[name]}, but the records were made with {value}")
    problems.raise_if_any(ConfigError, f"{args.output_dir} cannot be scored so; leave the flags out or predict again")
    return make_protocol(args.protocol, **{**given, **done})
