"""One evaluation from flags to files: load, predict, score, report."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from datasets.groundmore import GroundMoRe
from datasets.sample import VideoRecord
from datasets.tokenization import MoraTokenizer, load_tokenizer
from evaluation.arguments import PRECISIONS, protocol_of
from evaluation.pictures import write_gallery
from evaluation.predict import predict_corpus, select_videos
from evaluation.predictor import MoraPredictor
from evaluation.protocol import Protocol
from evaluation.records import open_run, read_run, weights_fingerprint
from evaluation.report import format_report, write_results
from evaluation.score import score_corpus
from evaluation.summary import summarise
from model.checkpoints import load_any
from model.convert.sources import resolve_folder
from model.mora import MoraModel
from utils.errors import CheckpointError, TokenizerError

logger = logging.getLogger(__name__)


def evaluate(args: argparse.Namespace) -> int:
    """Run what the flags ask for.

    Args:
        args: from ``evaluation.arguments.parse_arguments``.

    Returns:
        0, or 1 if some question failed.

    Raises:
        MoraError: nothing could be done; the message says what to change.
    """
    protocol = protocol_of(args)
    corpus = GroundMoRe(
        args.meta_file, args.video_root, empty_windows="keep" if protocol.window == "unclipped" else "error"
    )
    videos = [corpus[index] for index in select_videos(corpus, args.video, args.limit)]
    if not args.score_only:
        failures = _predict(args, protocol, videos)
        if args.predict_only:
            print(f"{failures} questions failed" if failures else "all questions are predicted")
            return int(failures > 0)
    return _score(args, protocol, videos)


def load_model(args: argparse.Namespace) -> tuple[MoraModel, MoraTokenizer]:
    """The model that the flags name, in eval mode on its device, and its tokenizer.

    Raises:
        CheckpointError: the model cannot be opened.
        TokenizerError: there is no tokenizer, or it does not belong to the weights.
    """
    model, report = load_any(
        args.version, args.vision_pretrained, args.vision_tower, device=args.device, dtype=PRECISIONS[args.precision]
    )
    logger.info("%s", report)
    if report.initialised:
        raise CheckpointError(
            f"{args.version}: no weights for {', '.join(report.initialised)}; an untrained part would make every "
            "number meaningless. Give the file that has them (--vision_pretrained, --vision-tower) or an exported model"
        )
    tokenizer = load_tokenizer(resolve_folder(args.version), model.config.tokenization)
    attach_tokens(model, tokenizer)
    return model.eval(), tokenizer


def attach_tokens(model: MoraModel, tokenizer: MoraTokenizer) -> None:
    """Let the model know the ids of its tokens, or check those it was saved with.

    Raises:
        TokenizerError: a token is missing, or has another id than the weights were trained with.
    """
    config = model.config
    names = ["seg_token", "loc_token"] if config.loc_mode != "none" else ["seg_token"]
    for name in names:
        found, stored = tokenizer.id_of(getattr(config, name)), getattr(config, f"{name}_id")
        if stored is None:
            setattr(config, f"{name}_id", found)
        elif stored != found:
            raise TokenizerError(
                f"{getattr(config, name)} has id {found} in the tokenizer but {stored} in the model's config.json; "
                "use the tokenizer that was saved with the weights"
            )


def run_settings(
    args: argparse.Namespace, protocol: Protocol, model: MoraModel, tokenizer: MoraTokenizer, template: str
) -> dict:
    """Everything a prediction depends on; equal settings may share records."""
    return {
        "protocol": protocol.prediction_settings(),
        "weights": weights_fingerprint(model),
        "network": hashlib.sha256(_config_text(model).encode()).hexdigest()[:16],
        "questions": hashlib.sha256(Path(args.meta_file).read_bytes()).hexdigest()[:16],
        "precision": args.precision,
        "device": args.device,
        "template": template,
        "tokenization": tokenizer.rule,
        "vocabulary": len(tokenizer),
        "questions_per_batch": args.questions_per_batch,
    }


def _config_text(model: MoraModel) -> str:
    """The configuration without the versions of the libraries that wrote it."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("transformers_version", None)
    return json.dumps(config, sort_keys=True)


def _predict(args: argparse.Namespace, protocol: Protocol, videos: Sequence[VideoRecord]) -> int:
    """Predict and record; the number of failures."""
    model, tokenizer = load_model(args)
    predictor = MoraPredictor(model, tokenizer, protocol, args.conv_type)
    settings = run_settings(args, protocol, model, tokenizer, predictor.template)
    about = {"version": str(args.version), "meta_file": str(args.meta_file), "video_root": str(args.video_root)}
    mark = open_run(args.output_dir, settings, args.overwrite, about)
    done = predict_corpus(videos, predictor, args.output_dir, protocol, mark, args.questions_per_batch)
    print(f"predicted {done.written} questions, kept {done.reused} recorded earlier, {len(done.failures)} failed")
    return len(done.failures)


def _score(args: argparse.Namespace, protocol: Protocol, videos: Sequence[VideoRecord]) -> int:
    """Score the records, write every result file, print the report; 1 if a question failed."""
    run = read_run(args.output_dir)
    scores = score_corpus(videos, args.output_dir, protocol, run["fingerprint"], args.workers)
    selection = {"limit": args.limit, "video": args.video}
    about = {key: run[key] for key in ("fingerprint", "settings", "about")}
    summary = summarise(scores, protocol, {**about, "selection": selection})
    write_results(args.output_dir, args.result_file, scores, summary, protocol)
    report = format_report(summary, protocol)
    print(f"\n{report}\n")
    page = write_gallery(videos, args.output_dir, scores, protocol, report, args.pictures)
    for path in (args.result_file, Path(args.output_dir) / "summary.json", page):
        if path is not None:
            print(f"written: {path}")
    return int(summary["counts"]["questions_failed"] > 0)
