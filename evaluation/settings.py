"""The flags of ``python -m evaluation``: what they mean, and every mistake in them listed at once."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from evaluation.benchmark import BENCHMARKS, DEFAULT, find_benchmark
from evaluation.outputs import FILES, note_foreign_file, note_foreign_folder, note_own_place, reading_results
from evaluation.protocol import CHOICES, PRESETS, Protocol, make_protocol
from evaluation.records import read_run
from evaluation.report import LIMIT as PICTURES
from evaluation.shards import Shard, find_shard
from model.backbones import BACKBONES
from model.config import CHOICES as NETWORK
from model.settings import ComputeSettings, ModelSettings, QwenSettings
from utils.errors import ConfigError, DataError, Problems
from utils.files import unusable_folder
from utils.flags import flag, inputs_of, make_parser, note_mistakes, parse
from utils.hub import is_hub_name
from utils.paths import note_inputs_overwritten
from utils.processes import cores_per_process

DESCRIPTION = """\
Evaluate MoRA on GroundMoRe: predict masks for every question, then score them with J and F.

A released or exported model on the test set, 20 frames per clip, masks refined by [LOC]:
  python evaluate_groundmore.py --version checkpoints/mora-ft-lisa7b --vision_pretrained sam_vit_h_4b8939.pth \\
    --conv_type llava_llama_2 --video_root groundmore_videos --meta_file groundmore_test.json \\
    --output_dir outputs/mora --result_file results/mora-f20.txt --num_frames 20 \\
    --force_seg_token --force_loc_token --use_loc_refine --loc_threshold 0.5

Trained weights on the base that they were trained on, such as the released MoRA-Qwen:
  python evaluate_groundmore_qwen.py --version Qwen/Qwen3-VL-8B-Instruct --weight checkpoints/mora-ft-qwen3-vl-8b \\
    --vision_pretrained sam_vit_h_4b8939.pth --video_root groundmore_videos --meta_file groundmore_test.json \\
    --output_dir outputs/mora-qwen --result_file results/mora-qwen-f20.txt --num_frames 20 --loc_mode global

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

Another benchmark, by the same flags:
  python -m evaluation --benchmark mevis_valid_u --video_root MeViSv2 --version ... --output_dir outputs/mevis

Other thresholds need no new prediction:
  python evaluate_groundmore.py --score_only --output_dir outputs/mora --video_root ... --meta_file ... \\
    --use_loc_refine --loc_threshold 0.3

Every choice that changes a number is explained in docs/evaluation.md, printed with the result and stored in
OUTPUT_DIR/summary.json.

Exit code: 0; 1 if some questions failed (each counts as 0, and is tried again by the next run) or some answers had no
[SEG] (scored as empty masks; --force_seg_token appends it); 2 if the run could not go on; 130 or 143 if it was ended by
Ctrl-C or SIGTERM.
"""


# fmt: off
@dataclass
class EvaluatedModel(QwenSettings, ModelSettings):
    """Which model answers; not needed to score what is recorded."""

    title: ClassVar[str] = "model (not needed with --score_only)"

    weight: str | None = flag(None, path=True, metavar="PATH", help="trained weights to lay over --version: a folder "
                              "with pytorch_model.bin.index.json and its shards, or a file, as zero_to_fp32.py or "
                              "python -m training.convert writes them. What they say about their training counts; of "
                              "weights that say nothing, the flags below do")
    lora_alpha: float | None = flag(None, above=0, help="scale of LoRA matrices in --weight that nobody merged and "
                                    "that do not say it")
    backbone: str | None = flag(None, choices=tuple(BACKBONES), help="the backbone that the model must have; another "
                                "one is an error")
    loc_mode: str | None = flag(None, choices=("global", "frame"), network="loc_mode",
                                help="[LOC] head (default: the one that the model has)")
    visual_mode: str | None = flag(None, choices=NETWORK["visual_mode"], network="visual_mode",
                                   help="one LLM row per frame, one pooled row, or one row with all frames (default: "
                                   "as trained; else the backbone's)")
    answer_style: str | None = flag(None, choices=NETWORK["answer_style"], network="answer_style",
                                    help="what --answer_mode forced puts in the model's mouth: a sentence, one with "
                                    "the object's name, or '[SEG], [LOC]' (default: as trained; else the backbone's)")
    compile: bool = flag(False, help="compile SAM's layers: faster per frame after a minute's compilation, for long "
                         "runs")

    def check(self, problems: Problems) -> None:
        """Note what is not there."""
        if self.version is None:
            problems.add("--version", "which model? Give a folder or a Hugging Face id (or --score_only)")
        if self.weight is not None and not Path(self.weight).exists() and not is_hub_name(self.weight):
            problems.add("--weight", f"{self.weight}: no such file or folder, and not a Hugging Face id (owner/name)")
        if self.lora_alpha is not None and self.weight is None:
            problems.add("--lora_alpha", "is for unmerged LoRA matrices in --weight; leave it out")
        super().check(problems)


@dataclass
class DataSettings:
    """What is read and written."""

    title: ClassVar[str] = "data"

    benchmark: str = flag(DEFAULT, metavar="NAME", help=f"what is asked: {', '.join(BENCHMARKS)} (%(default)s)")
    meta_file: str | None = flag(None, path=True, metavar="FILE",
                                 help="questions, if the benchmark has them in a file of their own "
                                 "(groundmore_test.json)")
    video_root: str | None = flag(None, path=True, metavar="DIR",
                                  help="one folder per clip with images/ and masks/ (groundmore_videos); of another "
                                  "benchmark the folder of its corpus")
    output_dir: str = flag("output", path=True, written=True, metavar="DIR",
                           help="records, scores, summary.json, scores.json, report.html (%(default)s)")
    result_file: str | None = flag(None, path=True, written=True, metavar="FILE",
                                   help="text result (default: OUTPUT_DIR/result.txt)")
    video: list[str] | None = flag(None, metavar="ID", help="only this clip; may be repeated")
    question: list[str] | None = flag(None, metavar="ID",
                                      help="only questions of this id, in all clips or those of --video; may be "
                                      "repeated")
    limit: int | None = flag(None, at_least=1, metavar="N", help="only the first N clips")

    def check(self, problems: Problems) -> None:
        """Fill in the benchmark's own places; note inputs that are not there."""
        try:
            benchmark = find_benchmark(self.benchmark)
        except ConfigError as error:
            problems.messages.append(str(error))
            return
        for name in ("meta_file", "video_root"):
            if name not in benchmark.inputs and getattr(self, name) is not None:
                problems.add(f"--{name}", f"{self.benchmark} has no such file; leave the flag out")
        for name, place in benchmark.places(meta_file=self.meta_file, video_root=self.video_root).items():
            setattr(self, name, place)
            there, what = (Path(place).is_file(), "file") if name == "meta_file" else (Path(place).is_dir(), "folder")
            if not there:
                problems.add(f"--{name}", f"{place}: no such {what}; {benchmark.inputs[name][1]}")


@dataclass
class ProtocolSettings:
    """Fields of the protocol that may be chosen; None leaves the preset's value."""

    title: ClassVar[str] = "protocol (docs/evaluation.md)"

    protocol: str | None = flag(None, choices=tuple(PRESETS),
                                help="starting point (the benchmark's own); groundmore_2025 is the arithmetic of "
                                "GroundMoRe's original evaluator")
    num_frames: int | None = flag(None, help=f"frames per clip ({Protocol.num_frames})")
    frame_sampling: str | None = flag(None, choices=CHOICES["frame_sampling"],
                                      help="how they are spread over the clip")
    prompt: str | None = flag(None, choices=CHOICES["prompt"],
                              help="the texts are questions, or expressions that name an object (groundmore)")
    answer_mode: str | None = flag(None, choices=CHOICES["answer_mode"],
                                   help="the model writes its answer, or a fixed one is put in its mouth (generate)")
    max_new_tokens: int | None = flag(None, help=f"longest answer in tokens ({Protocol.max_new_tokens})")
    force_seg_token: bool | None = flag(None, help="append [SEG] to an answer without one")
    force_loc_token: bool | None = flag(None, help="append [LOC] to an answer without one")
    seg_only: bool | None = flag(None, help="do not use the [LOC] head")
    loc_refine: bool | None = flag(None, names=("--use_loc_refine",),
                                   help="empty the masks of frames whose [LOC] probability is low")
    loc_threshold: float | None = flag(None, help=f"what is low ({Protocol.loc_threshold})")
    aggregation: str | None = flag(None, choices=CHOICES["aggregation"],
                                   help="a cell is the mean over questions, or over the videos' means (questions)")
    frame_control: str | None = flag(None, choices=CHOICES["frame_control"],
                                     help="disturb what the language model sees; the mask decoder sees the true frames")


@dataclass
class RunSettings:
    """What is done, and by how many."""

    title: ClassVar[str] = "run"

    predict_only: bool = flag(False, help="write the records and stop")
    score_only: bool = flag(False, help="score the records of an earlier run")
    overwrite: bool = flag(False, help="delete the records in OUTPUT_DIR first")
    questions_per_batch: int = flag(0, at_least=0, metavar="N",
                                    help="questions answered together; 0: all of a clip (%(default)s)")
    decode_workers: int | None = flag(None, at_least=0, metavar="N",
                                      help="threads that read and resize frames ahead of the model; 0: none (up to 3)")
    workers: int | None = flag(None, at_least=0, metavar="N",
                               help="processes that score behind the model; 0: none (up to 8)")
    num_shards: int | None = flag(None, at_least=1, metavar="N",
                                  help="divide the clips among N processes; 1: do not (default: as launched)")
    shard_id: int | None = flag(None, metavar="K", help="which of them this is, from 0")
    pictures: int = flag(PICTURES, at_least=0, metavar="N",
                         help="questions shown with frames in report.html; 0: no such page (%(default)s)")

    def check(self, problems: Problems) -> None:
        """Note contradictions."""
        if self.score_only and self.predict_only:
            problems.add("--score_only", "leaves nothing to do together with --predict_only; give one of the two")

    def find_shard(self, problems: Problems) -> Shard:
        """This process's share; sets the numbers of workers to what its cores allow."""
        shard = Shard()
        try:
            shard = find_shard(self.num_shards, self.shard_id)
        except ConfigError as error:
            problems.add("sharding", str(error))
        cores = cores_per_process(shard.launch.size)
        self.workers = min(8, cores) if self.workers is None else self.workers
        self.decode_workers = min(3, cores) if self.decode_workers is None else self.decode_workers
        return shard


# fmt: on
@dataclass
class EvaluationSettings:
    """Everything that the flags of ``evaluate_groundmore.py`` say; ``shard`` is this process's share."""

    model: EvaluatedModel
    compute: ComputeSettings
    data: DataSettings
    protocol: ProtocolSettings
    run: RunSettings
    shard: Shard = field(init=False, default_factory=Shard)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``evaluate_groundmore.py``."""
    return make_parser(EvaluationSettings, DESCRIPTION)


def parse_arguments(argv: Sequence[str] | None = None) -> EvaluationSettings:
    """Parse and check.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Settings; device and precision, ``result_file`` and the numbers of workers are set.

    Raises:
        ConfigError: with every mistake that can be found before anything is loaded.
        SystemExit: from argparse, on an unknown flag.
    """
    headline = "evaluate_groundmore.py cannot start"
    settings = parse(EvaluationSettings, build_parser(), headline, argv)
    problems = Problems()
    passed_over = ("model", "compute") if settings.run.score_only else ()
    note_mistakes(settings, problems, without=("protocol", *passed_over))  # the protocol looks at its own fields
    _note_wrong_outputs(settings, problems)
    settings.shard = settings.run.find_shard(problems)
    problems.raise_if_any(ConfigError, headline)
    settings.compute.settle()
    settings.data.result_file = settings.data.result_file or str(Path(settings.data.output_dir) / "result.txt")
    return settings


def _note_wrong_outputs(settings: EvaluationSettings, problems: Problems) -> None:
    """Note outputs that cannot be written, or that would replace an input or what somebody else wrote."""
    folder, result = settings.data.output_dir, settings.data.result_file
    inputs = inputs_of(settings)
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
    written = {"summary.json", "scores.json", "digests.json"}
    written |= ({"report.html"} if settings.run.pictures > 0 else set()) | ({"result.txt"} if result is None else set())
    note_foreign_folder(problems, "--output_dir", folder, sorted(written))
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


def protocol_of(settings: EvaluationSettings) -> Protocol:
    """The protocol that the flags ask for.

    With ``--score_only`` the fields that a prediction depends on are those of the run in ``output_dir``.

    Raises:
        ConfigError: values that cannot be used, or flags that contradict the run to be scored.
        DataError: ``--score_only`` and nothing was predicted in ``output_dir``.
    """
    given = dataclasses.asdict(settings.protocol)
    benchmark, output_dir = settings.data.benchmark, settings.data.output_dir
    preset = given.pop("protocol") or find_benchmark(benchmark).protocol
    if not settings.run.score_only:
        return make_protocol(preset, **given)
    recorded = read_run(output_dir)["settings"]
    done, asked = recorded.get("protocol"), recorded.get("benchmark", DEFAULT)
    if asked != benchmark:
        raise ConfigError(f"--benchmark {benchmark}: the records in {output_dir} were made for {asked}")
    known = {field.name for field in dataclasses.fields(Protocol)}
    if not isinstance(done, dict) or not set(done) <= known:
        raise DataError(f"{Path(output_dir) / 'run.json'}: its protocol is not one of this version; predict again")
    with reading_results(Path(output_dir) / "run.json"):
        make_protocol(**done)
    problems = Problems()
    for name, value in done.items():
        if given.get(name) not in (None, value):
            problems.add(f"--{name}", f"{given[name]}, but the records were made with {value}")
    problems.raise_if_any(ConfigError, f"{output_dir} cannot be scored so; leave the flags out or predict again")
    return make_protocol(preset, **{**given, **done})
