"""A finished evaluation, opened again: what was scored and the ground truth that it was scored against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.sample import VideoRecord
from evaluation.benchmark import benchmark_of
from evaluation.outputs import SCORE_AGAIN, read_whole, reading_results
from evaluation.protocol import Protocol
from evaluation.scoring import SUMMARY_FORMAT
from utils.errors import DataError
from utils.flags import flag


@dataclass
class RunFlags:
    """Which evaluation, and which ground truth."""

    output_dir: str = flag(path=True, metavar="DIR", help="the evaluation's folder")
    meta_file: str | None = flag(None, path=True, metavar="FILE", help="questions (groundmore_test.json)")
    video_root: str | None = flag(
        None, path=True, metavar="DIR", help="the corpus, for groundmore one folder per clip (groundmore_videos)"
    )


def read_evaluation(args: RunFlags) -> tuple[Sequence[VideoRecord], dict, list[dict], Protocol]:
    """(videos, summary, scores, protocol) of the evaluation that the flags name.

    Raises:
        DataError: a file is missing, damaged, or was written by another version of the program.
    """
    folder = Path(args.output_dir)
    summary, scores = read_whole(folder / "summary.json"), read_whole(folder / "scores.json")
    if not isinstance(summary, dict) or summary.get("format") != SUMMARY_FORMAT:
        raise DataError(f"{folder / 'summary.json'}: not a summary of format {SUMMARY_FORMAT}; {SCORE_AGAIN}")
    with reading_results(folder / "summary.json"):
        protocol, benchmark = Protocol(**summary["protocol"]), benchmark_of(summary)
    needed = {"frames", "objects"} if "perfect_timing" in benchmark.rows else set()
    if not isinstance(scores, list) or not all(isinstance(score, dict) and needed <= set(score) for score in scores):
        raise DataError(f"{folder / 'scores.json'}: no 'frames' or 'objects' of a question; {SCORE_AGAIN}")
    places = benchmark.places(meta_file=args.meta_file, video_root=args.video_root)
    return benchmark.videos(places, protocol), summary, scores, protocol
