"""Both ways to evaluate, on the same weights and questions: timed, counted, compared."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.as_published import PublishedAnswer, PublishedEvaluation, read_id_mask
from benchmarks.as_stock import StockQwen
from benchmarks.costs import images_of
from benchmarks.engine_route import run_engine
from benchmarks.official_davis import official_clip
from benchmarks.stages import Stages, peak_bytes, reset_peak
from benchmarks.workload import FULL_TEST, Bench
from datasets.sample import Question, VideoRecord
from evaluation.engine import MoraPredictor
from evaluation.records import read_record
from model import answering
from utils.batch import IMAGE_TOKEN_INDEX
from utils.masks import decode_rle
from utils.video import read_frame

BESIDE_THE_MODEL = ("decode", "resize", "records", "scoring")
"""Stages of (b) that threads and processes do while the model works."""


def compare(bench: Bench, published_questions: int, ladder: bool) -> dict:
    """Measure (b), then (a) on some of its questions, and compare what they say.

    Args:
        bench: model, questions, protocol.
        published_questions: how many questions (a) answers: all of the first clips, as far as they reach.
        ladder: also time the single steps between the two.

    Returns:
        JSON-able: "engine", "published", "agreement", "extrapolated", "machine" and, if asked, "ladder".
    """
    engine = run_engine(bench)
    published, answers = run_published(bench, published_questions)
    agreement = compare_answers(bench, answers, engine.pop("scores"))
    result = {"machine": machine(bench.device), "engine": engine, "published": published, "agreement": agreement}
    if ladder:
        result["ladder"] = time_ladder(bench)
    return {**result, "extrapolated": extrapolate(engine, published)}


def machine(device: torch.device) -> dict:
    """What the figures were measured on."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": named, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpu_name() -> str:
    """The processor's model, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def run_published(bench: Bench, count: int) -> tuple[dict, list[tuple[VideoRecord, Question, PublishedAnswer]]]:
    """(a) on the first ``count`` questions, with the metric afterwards."""
    stages = Stages(bench.device)
    route = (PublishedEvaluation if bench.model.config.backbone == "llava" else StockQwen)(bench, stages)
    questions = [(video, query) for video in bench.videos for query in video.questions][:count]
    reset_peak(bench.device)
    answers, tflop, frames = [], {}, 0
    start, before = time.perf_counter(), time.process_time()
    with route.counter:
        for video, query in tqdm(questions, desc="as published", unit="question"):
            paths = [video.frame_paths[index] for index in bench.frames_of(video)]
            prompt, forced = bench.prompt(video, query)
            answer = route.answer(paths, prompt, forced, bench.protocol.max_new_tokens)
            answers.append((video, query, answer))
            frames += len(paths)
            for name, value in _published_tflop(bench, len(paths), prompt, route.passes(answer.tokens)).items():
                tflop[name] = tflop.get(name, 0.0) + value
    for video, query, answer in answers:
        with stages("scoring"):
            official_clip(ground_truth(bench, video, query), answer.masks)
    return {
        "questions": len(questions),
        "frames": frames,
        "encoded": route.counter.frames,
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - before,
        "stages": stages.seconds,
        "tflop": tflop,
        "tokens": answers[0][2].tokens,
        "peak_bytes": peak_bytes(bench.device),
    }, answers


def _published_tflop(bench: Bench, frames: int, prompt: torch.Tensor, passes: Sequence[int]) -> dict[str, float]:
    """Arithmetic of one question of (a): the tower and the whole row again in every pass, which reads so many tokens
    of the answer."""
    costs, (rows, visual) = bench.costs, bench.rows(frames)
    lengths = [int((prompt != IMAGE_TOKEN_INDEX).sum()) + visual + tokens for tokens in passes]
    llm = sum(costs.llm(rows, length) + rows * length * costs.llm_head for length in lengths)
    tower = images_of(bench.model.config, frames) * len(passes) * costs.tower_image
    parts = {"SAM": frames * costs.sam_frame, "tower": tower, "LLM": llm, "decoder": frames * costs.decoder_prompt}
    return {name: value / 1e12 for name, value in parts.items()}


def ground_truth(bench: Bench, video: VideoRecord, query: Question) -> np.ndarray:
    """bool [T, H, W] on the distinct listed frames; read again for every question, as published."""
    truth, paths = [], video.read_object_mask.mask_paths
    for index in bench.frames_of(video):
        ids = read_id_mask(paths[index])
        inside = query.window[0] <= index <= query.window[1]
        truth.append(np.isin(ids, query.object_ids) & inside)
    return np.stack(truth)


def compare_answers(
    bench: Bench, answers: Sequence[tuple[VideoRecord, Question, PublishedAnswer]], scores: Sequence[dict]
) -> dict:
    """How far both routes agree on the questions that both answered."""
    by_question = {(score["video_id"], score["query_id"]): score for score in scores}
    differ, pixels, inside, loc, own_metric, other_metric = 0, 0, 0, [0.0], [], []
    for video, query, answer in answers:
        record = read_record(bench.output_dir / "engine", video.video_id, query.query_id)
        masks = np.stack([np.zeros(record.size, bool) if rle is None else decode_rle(rle) for rle in record.masks])
        differ += int((masks != answer.masks).sum())
        inside += int(masks.sum())
        pixels += masks.size
        if record.loc_probs is not None and answer.loc_probs is not None:
            loc.append(float(np.abs(np.array(record.loc_probs) - answer.loc_probs).max()))
        row = by_question[video.video_id, query.query_id]["rows"]["no_refinement"]
        truth, where = ground_truth(bench, video, query), np.unique(record.listed_frames, return_inverse=True)[1]
        for found, theirs in ((own_metric, masks), (other_metric, answer.masks)):
            means = [float(values[where].mean()) for values in official_clip(truth, theirs)]
            found += [abs(row["J"] - means[0]), abs(row["F"] - means[1])]
    return {
        "questions": len(answers),
        "masks": sum(len(answer.masks) for _, _, answer in answers),
        "pixels_that_differ": differ / pixels,
        "pixels_inside": inside / pixels,
        "largest_loc_difference": max(loc),
        "same_masks_metric_difference": max(own_metric),
        "own_masks_metric_difference": max(other_metric),
    }


def extrapolate(engine: dict, published: dict) -> dict:
    """Seconds of the full test from the measured slice.

    (b) is prediction, scaled by clips, of which the share spent per question (from the stages) is scaled by questions;
    then scoring, scaled by questions: what was left of it after prediction, or, where processes score meanwhile, what
    they could not do in that time; and what came once. (a) is scaled by questions. "tflop" is counted, not timed.
    """
    clips, questions = FULL_TEST["videos"], FULL_TEST["questions"]
    frames = FULL_TEST["frames"] * engine["videos"] / engine["frames"]
    stages, seconds = engine["stages"], engine["seconds"]
    model_time = {name: spent for name, spent in stages.items() if name not in BESIDE_THE_MODEL}
    asked = sum(model_time[name] for name in ("LLM suffix", "decoder", "masks")) / sum(model_time.values())
    density = (questions / clips) / (engine["questions"] / engine["videos"])
    predict = seconds["predict"] * clips / engine["videos"] * (1 - asked + asked * density) * frames
    score = seconds["score"] * questions / engine["questions"] * frames
    if engine["scoring_processes"]:
        beside = stages["scoring"] * questions / engine["questions"] * frames / engine["scoring_processes"]
        score = seconds["score"] + max(0.0, beside - predict)
    once = max(0.0, engine["warm_up_seconds"] - sum(seconds.values()) / engine["videos"])
    slow = published["seconds"] * questions / published["questions"] * frames
    scale = {name: questions / engine["questions"] for name in ("LLM suffix", "decoder")}
    work = sum(tflop * scale.get(name, clips / engine["videos"]) for name, tflop in engine["tflop"].items()) * frames
    slow_work = sum(published["tflop"].values()) * questions / published["questions"] * frames
    return {
        **FULL_TEST,
        "engine": {"predict": predict, "score": score, "once": once, "total": predict + score + once, "tflop": work},
        "published": {"total": slow, "tflop": slow_work},
        "ratio": slow / (predict + score + once),
    }


def time_ladder(bench: Bench) -> list[dict]:
    """Single steps from (a) to (b), each the fastest of three: {"step", "per", "seconds"}."""
    model, video = bench.model, bench.videos[0]
    count = len(bench.frames_of(video))
    side = model.sam.pixel_rule.size
    pixels = torch.randn(count, 3, side, side, device=bench.device)
    slow = PublishedEvaluation(bench, Stages(bench.device))
    predictor = MoraPredictor(model, bench.tokenizer, bench.protocol)
    frames = [read_frame(video.frame_paths[index]) for index in bench.frames_of(video)]
    prepared = predictor.prepare(video.video_id, frames, video.times(bench.frames_of(video)))
    context, inner = predictor.encode(prepared), tuple(prepared.sam.shape[2:])
    prompts, forced = zip(*(bench.prompt(video, query) for query in video.questions))
    request = answering.Request(
        forced=None if forced[0] is None else forced,
        max_new_tokens=bench.protocol.max_new_tokens,
        force_seg_token=True,
        force_loc_token=True,
        eos_token_id=bench.tokenizer.eos_id,
    )

    def read() -> None:
        context.prefixes.clear()
        answering.answer(model, context, prompts, request)

    def read_alone() -> None:
        for number, prompt in enumerate(prompts):
            context.prefixes.clear()
            answer = None if forced[0] is None else forced[number : number + 1]
            answering.answer(model, context, [prompt], dataclasses.replace(request, forced=answer))

    with torch.inference_mode():
        pixels[..., inner[0] :, :], pixels[..., inner[1] :] = 0, 0
        pixels = pixels.to(model.get_input_embeddings().weight.dtype)
        steps = (
            ("SAM, eager, one frame at a time", count, lambda: [slow.encoder(one[None]) for one in pixels]),
            ("SAM, engine, all frames of a clip", count, lambda: model.sam.encode(pixels)),
            ("SAM, engine, padding left out", count, lambda: model.sam.encode(pixels, resized_size=inner)),
            ("read and answer, the prefix read for each question", len(prompts), read_alone),
            ("read and answer, the prefix read once", len(prompts), read),
        )
        return [
            {"step": name, "per": "frame" if "SAM" in name else "question", "seconds": _fastest(run, bench) / units}
            for name, units, run in steps
        ]


def _fastest(run: Callable[[], object], bench: Bench, repeats: int = 3) -> float:
    """Seconds of the fastest of some calls, the device waited for."""
    times = []
    for _ in range(repeats):
        stages = Stages(bench.device)
        with stages("run"):
            run()
        times.append(stages.seconds["run"])
    return min(times)
