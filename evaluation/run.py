"""One evaluation from flags to files: load, predict, score, report."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from pathlib import Path

import torch

from datasets.tokenization import MoraTokenizer
from evaluation.benchmark import DEFAULT, Benchmark, find_benchmark
from evaluation.engine import MoraPredictor, Options, forget_failures, load_model, predict_corpus, question_states
from evaluation.protocol import Protocol
from evaluation.records import open_run, read_run
from evaluation.report import format_report, write_report_page, write_results
from evaluation.scoring import POOL_PIXELS, ScoringPool, pixels_to_score, score_corpus, score_video, summarise
from evaluation.settings import EvaluationSettings, RunSettings, protocol_of
from evaluation.shards import Selected, select, share_of
from model.mora import MoraModel
from utils.errors import ConfigError
from utils.processes import ending_on_sigterm, gpu_of, share_threads
from utils.tensors import tensors_digest


def evaluate(settings: EvaluationSettings) -> int:
    """Run what the flags ask for.

    Args:
        settings: from ``evaluation.settings.parse_arguments``.

    Returns:
        0, or 1 if some question failed.

    Raises:
        MoraError: nothing could be done; the message says what to change.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what is on disk is whole.
    """
    protocol, shard, run, data = protocol_of(settings), settings.shard, settings.run, settings.data
    benchmark = find_benchmark(data.benchmark)
    places = {name: getattr(data, name) for name in benchmark.inputs}
    selected = select(benchmark.videos(places, protocol), data.video, data.question, data.limit)
    if run.score_only and shard.index > 0:
        print(f"{shard}: shard 0 scores everything; nothing to do here")
        return 0
    with ending_on_sigterm():
        if run.score_only:
            return _report(settings, benchmark, protocol, selected)
        share = share_of(selected, shard, protocol)
        if not share:
            print(f"{shard}: no video is left for this one")
            return 0
        if shard.count > 1:
            forget_failures(share, data.output_dir)
        with _scoring_pool(run, protocol, share) as pool:
            failures, mark = _predict(settings, benchmark, protocol, share, pool)
            mine = {each.video.video_id for each in share}
            others = [each for each in selected if each.video.video_id not in mine]
            states = question_states(others, data.output_dir, protocol, mark)
            failed, missing = states["failed"], sum(states.values()) - states["ok"] - states["failed"]
            if missing:
                print(f"{shard}: done. {missing} questions of other shards are missing; the last one writes the result")
                # A launcher would end the other processes if one failed; the last one tells it.
                return int(failures > 0 and shard.launch.size == 1)
            if run.predict_only:
                failures += failed
                print(f"{failures} questions failed" if failures else "all questions are predicted")
                return int(failures > 0)
            return _report(settings, benchmark, protocol, selected, pool)


def run_settings(
    settings: EvaluationSettings, protocol: Protocol, model: MoraModel, tokenizer: MoraTokenizer, template: str
) -> dict:
    """Everything a prediction depends on; equal settings may share records."""
    return {
        "protocol": protocol.prediction_settings(),
        "weights": tensors_digest(model.state_dict()),
        "network": hashlib.sha256(_config_text(model).encode()).hexdigest()[:16],
        "precision": settings.compute.precision,
        "device": settings.compute.device,
        "compile": settings.model.compile,
        "template": template,
        "tokenization": tokenizer.rule,
        "vocabulary": len(tokenizer),
        "questions_per_batch": settings.run.questions_per_batch,
        **({} if settings.data.benchmark == DEFAULT else {"benchmark": settings.data.benchmark}),
    }


def _config_text(model: MoraModel) -> str:
    """The configuration without the versions of the libraries that wrote it. A field that came later is left out at
    the value that stands for what was before, so that older records are continued."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("transformers_version", None)
    for name, before in (("segmenter", "sam"), ("readout", "before")):
        if config[name] == before:
            del config[name]
    return json.dumps(config, sort_keys=True)


def _scoring_pool(run: RunSettings, protocol: Protocol, share: Sequence[Selected]):
    """Processes that score while the model works; none for a small job, which is scored at the end."""
    large = pixels_to_score([each.scored for each in share], protocol) >= POOL_PIXELS
    return ScoringPool(run.workers) if run.workers > 0 and large and not run.predict_only else nullcontext()


def _predict(
    settings: EvaluationSettings,
    benchmark: Benchmark,
    protocol: Protocol,
    share: Sequence[Selected],
    pool: ScoringPool | None,
) -> tuple[int, str]:
    """Predict and record; the number of failures, and the fingerprint of the run."""
    shard, run, data = settings.shard, settings.run, settings.data
    if benchmark.kind.name != "masks":
        raise ConfigError(f"--benchmark {benchmark.name}: asks for {benchmark.kind.name}, and MoRA answers with masks")
    if settings.compute.device == "cuda":
        torch.cuda.set_device(gpu_of(shard.launch.local_rank, torch.cuda.device_count()))
    elif shard.launch.size > 1:
        share_threads(shard.launch.size)
    model, tokenizer = load_model(settings.model, settings.compute)
    predictor = MoraPredictor(model, tokenizer, protocol, settings.model.conv_type)
    depends_on = run_settings(settings, protocol, model, tokenizer, predictor.template)
    about = {
        "version": settings.model.version,
        **({} if settings.model.weight is None else {"weight": settings.model.weight}),
        **benchmark.places(meta_file=data.meta_file, video_root=data.video_root),
    }
    names = None if shard.count == 1 else [each.video.video_id for each in share]
    mark = open_run(data.output_dir, depends_on, run.overwrite, about, names)
    score = functools.partial(
        score_video, output_dir=data.output_dir, protocol=protocol, fingerprint=mark, benchmark=benchmark
    )
    scoring: list[Future] = []

    def start(questions: int, recorded: int) -> None:
        print(f"{shard}: {questions} questions about {len(share)} videos, {recorded} recorded already", flush=True)
        if cost := predictor.describe_cost(share[0].video):
            print(cost, flush=True)

    done = predict_corpus(
        share,
        predictor,
        data.output_dir,
        protocol,
        mark,
        run.questions_per_batch,
        Options(
            run.decode_workers, f"shard {shard.index}" if shard.count > 1 else "predict", shard.launch.local_rank > 0
        ),
        on_start=start,
        on_video=None if pool is None else lambda video: scoring.append(pool.submit(score, video)),
    )
    wait(scoring)
    print(f"predicted {done.written} questions, kept {done.reused} recorded earlier, {len(done.failures)} failed")
    return len(done.failures), mark


def _report(
    settings: EvaluationSettings,
    benchmark: Benchmark,
    protocol: Protocol,
    selected: Sequence[Selected],
    pool: ScoringPool | None = None,
) -> int:
    """Score what is not scored yet, write every result file, report; 1 if a question failed or has no [SEG]."""
    data, pictures = settings.data, settings.run.pictures
    run = read_run(data.output_dir)
    videos = [each.scored for each in selected]
    scores = score_corpus(
        videos, data.output_dir, protocol, run["fingerprint"], settings.run.workers, pool=pool, benchmark=benchmark
    )
    selection = {"limit": data.limit, "video": data.video, "question": data.question}
    about = {key: run[key] for key in ("fingerprint", "settings", "about")}
    summary = summarise(scores, protocol, {**about, "selection": selection}, benchmark)
    write_results(data.output_dir, data.result_file, scores, summary, protocol)
    print(f"\n{format_report(summary, protocol)}\n")
    page = None
    if pictures > 0:
        page = write_report_page(videos, data.output_dir, scores, summary, protocol, pictures)
    for path in (data.result_file, Path(data.output_dir) / "summary.json", page):
        if path is not None:
            print(f"written: {path}")
    counts = summary["counts"]
    return int(counts["questions_failed"] + counts.get("questions_without_seg", 0) > 0)
