"""This project's engine under the clock: as evaluate_groundmore.py runs it, and one stage after another."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import nullcontext

from tqdm import tqdm

from benchmarks.costs import images_of
from benchmarks.stages import FrameCounter, Stages, peak_bytes, reset_peak
from benchmarks.workload import Bench
from datasets.sample import VideoRecord
from evaluation.benchmark import find_benchmark
from evaluation.engine import MoraPredictor, Options, VideoJob, predict_corpus
from evaluation.records import open_run, write_record
from evaluation.scoring import POOL_PIXELS, ScoringPool, pixels_to_score, score_corpus, score_video
from model import answering
from utils.batch import IMAGE_TOKEN_INDEX


def run_engine(bench: Bench) -> dict:
    """Once to warm up, once as a whole with encoder calls counted, once stage by stage.

    Returns:
        JSON-able but for "scores"; "seconds" of the whole run are those of prediction, beside which processes score
        where the clips are large enough, and of what was left to score afterwards.
    """
    predictor = MoraPredictor(bench.model, bench.tokenizer, bench.protocol)
    large = bench.workers > 0 and pixels_to_score(bench.videos, bench.protocol) >= POOL_PIXELS
    with ScoringPool(bench.workers) if large else nullcontext() as pool:
        start = time.perf_counter()
        _predict_and_score(bench, predictor, bench.videos[:1], "warm_up", pool)
        if pool is not None:
            # One task each, in folders without records, so that every process has started and compiled.
            folders = [bench.output_dir / "warm_up" / f"process_{number}" for number in range(bench.workers)]
            wait(
                [
                    pool.submit(score_video, bench.videos[0], folder, bench.protocol, None, find_benchmark())
                    for folder in folders
                ]
            )
        warm_up = time.perf_counter() - start
        reset_peak(bench.device)
        with FrameCounter(sam=(bench.model.sam.vision_encoder.neck, 1), tower=bench.tower) as counter:
            before = time.process_time()
            seconds, scores = _predict_and_score(bench, predictor, bench.videos, "engine", pool)
            processor = time.process_time() - before
        peak = peak_bytes(bench.device)
    return {
        "videos": len(bench.videos),
        "questions": bench.questions,
        "frames": sum(len(bench.frames_of(video)) for video in bench.videos),
        "encoded": counter.frames,
        "seconds": seconds,
        "processor_seconds": processor,
        "scoring_processes": bench.workers if large else 0,
        "warm_up_seconds": warm_up,
        "stages": _stage_by_stage(bench, predictor),
        "tflop": _tflop(bench),
        "peak_bytes": peak,
        "failed": [score["reason"] for score in scores if score["status"] != "ok"],
        "scores": scores,
    }


def _predict_and_score(
    bench: Bench, predictor: MoraPredictor, videos: Sequence[VideoRecord], name: str, pool: ScoringPool | None
) -> tuple[dict[str, float], list[dict]]:
    """Predict and score clips as evaluate_groundmore.py does: seconds, and the scores."""
    folder = bench.output_dir / name
    mark = open_run(folder, {"protocol": bench.protocol.prediction_settings()}, overwrite=True)
    score = functools.partial(
        score_video, output_dir=folder, protocol=bench.protocol, fingerprint=mark, benchmark=find_benchmark()
    )
    scoring = []
    start = time.perf_counter()
    predict_corpus(
        videos, predictor, folder, bench.protocol, mark, options=Options(bench.decode_workers, name),
        on_video=None if pool is None else lambda video: scoring.append(pool.submit(score, video)),
    )  # fmt: skip
    between = time.perf_counter()
    wait(scoring)
    scores = score_corpus(videos, folder, bench.protocol, mark, pool=pool)
    return {"predict": between - start, "score": time.perf_counter() - between}, scores


def _stage_by_stage(bench: Bench, predictor: MoraPredictor) -> dict[str, float]:
    """Seconds per stage over all clips, one thing after another in one process, the device waited for."""
    stages, model, folder = Stages(bench.device), bench.model, bench.output_dir / "stages"
    mark = open_run(folder, {"protocol": bench.protocol.prediction_settings()}, overwrite=True)
    inner = (
        (model.sam, "encode", "SAM"),
        (model.backbone, "encode", "tower"),
        (answering, "read_prefix", "LLM prefix"),
        (answering.Session, "read", "LLM suffix"),
        (answering, "generate", "LLM suffix"),
        (model.sam, "decode", "decoder"),
        (model.sam, "to_frames", "decoder"),
    )
    for video in tqdm(bench.videos, desc="stage by stage", unit="video"):
        job = VideoJob(video, bench.protocol, folder, mark)
        with stages.timing(*inner):
            with stages("decode"):
                frames = job.read_frames()
            with stages("resize"):
                prepared = predictor.prepare(video.video_id, frames, video.times(bench.frames_of(video)))
            with stages("device"):
                context = predictor.encode(prepared)
            with stages("masks"):
                predictions = predictor.answer(context, video.questions)
        with stages("records"):
            for query, prediction in zip(video.questions, predictions):
                write_record(folder, job.record(query, prediction))
        with stages("scoring"):
            score_video(video, folder, bench.protocol, mark, find_benchmark())
    return stages.seconds


def _tflop(bench: Bench) -> dict[str, float]:
    """Arithmetic of (b) by stage: every frame once, every prefix once, every question's own tokens once. What the SAM
    encoder leaves out of a padded picture counts as done."""
    costs = bench.costs
    total = dict.fromkeys(("SAM", "tower", "LLM prefix", "LLM suffix", "decoder"), 0.0)
    for video in bench.videos:
        frames = len(bench.frames_of(video))
        rows, visual = bench.rows(frames)
        total["SAM"] += frames * costs.sam_frame
        total["tower"] += images_of(bench.model.config, frames) * costs.tower_image
        for number, query in enumerate(video.questions):
            prompt, forced = bench.prompt(video, query)
            marks = (prompt == IMAGE_TOKEN_INDEX).nonzero().flatten()
            prefix = int(marks[-1]) + 1 - len(marks) + visual
            if number == 0:
                total["LLM prefix"] += costs.llm(rows, prefix)
            answer = bench.protocol.max_new_tokens if forced is None else len(forced)
            total["LLM suffix"] += costs.llm(rows, len(prompt) - int(marks[-1]) - 1 + answer, prefix)
            total["decoder"] += frames * costs.decoder_prompt
    return {name: value / 1e12 for name, value in total.items()}
