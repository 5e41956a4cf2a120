"""The data of the report page's gallery: every question with its scores, some of them with frames and outlines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from datasets.sample import Question, VideoRecord
from evaluation.benchmark import Benchmark
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record
from evaluation.report.failures import Verdict, judge, names
from evaluation.report.media import SMALL_SIDE, frame_share, outline, outline_grid, thumbnail
from evaluation.scoring import Truth, question_window
from utils.errors import DataError
from utils.masks import decode_rle
from utils.video import frame_size

MAX_FRAMES = 20
"""Frames shown per question; of more, as many are taken evenly."""

MAX_SAID = 6
MAX_TEXT = 600


def gallery_data(
    videos: Sequence[VideoRecord],
    output_dir: str,
    scores: Sequence[dict],
    benchmark: Benchmark,
    protocol: Protocol,
    limit: int,
    only: set[tuple[str, str]] | None = None,
) -> dict:
    """Everything that the page's scripts need, JSON-able.

    Args:
        videos: the ground truth.
        output_dir: run folder with the records.
        scores: per question.
        benchmark: theirs.
        protocol: as scored.
        limit: questions shown with frames.
        only: (video id, question id) of the questions that may be shown with frames; None: all.

    Returns:
        {"names", "questions", "videos", ...}: questions in order of loss; those chosen have a key "picture", and
        their videos are in "videos".

    Raises:
        DataError: a record of a scored question is missing or damaged, or a video is not in the corpus.
    """
    headline = benchmark.measures[0].key
    ranked = sorted(((score, judge(score, headline)) for score in scores), key=lambda pair: -pair[1].loss)
    by_id = {video.video_id: video for video in videos}
    candidates = [k for k, (score, _) in enumerate(ranked) if only is None or _key(score) in only]
    chosen = {candidates[k] for k in choose(len(candidates), limit)}
    questions, wanted = [], {}
    for position, (score, verdict) in enumerate(ranked):
        entry = _question(score, verdict)
        questions.append(entry)
        if position in chosen:
            wanted.setdefault(score["video_id"], []).append((score, entry))
    missing = sorted(set(wanted) - set(by_id))
    if missing:
        raise DataError(f"{output_dir}: scored videos are not in this corpus: {', '.join(missing)}; check --meta_file")
    indices = {name: _frames_shown(by_id[name], protocol) for name in wanted}
    share = frame_share(sum(map(len, indices.values())))

    def build(name: str) -> dict:
        video, frames = by_id[name], indices[name]
        truths = benchmark.kind.truths(video, frames, protocol)
        return _video(video, wanted[name], frames, output_dir, truths, protocol, share)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        built = dict(zip(wanted, pool.map(build, wanted)))
    return {
        "names": list(names(benchmark.rows)),
        "timed": "perfect_timing" in benchmark.rows,
        "measures": [[measure.key, measure.label, measure.format] for measure in benchmark.columns("detail")],
        "refined": protocol.loc_refine,
        "threshold": protocol.loc_threshold,
        "questions": questions,
        "videos": built,
    }


def choose(count: int, limit: int) -> list[int]:
    """Places in a ranking: half of the limit from its head, the other half evenly over the rest, increasing."""
    if count <= limit:
        return list(range(count))
    head = -(-limit // 2)
    rest = np.linspace(count - 1, head, limit - head).round().astype(int)
    return [*range(head), *rest[::-1].tolist()]


def _key(score: dict) -> tuple[str, str]:
    return score["video_id"], score["query_id"]


def _frames_shown(video: VideoRecord, protocol: Protocol) -> np.ndarray:
    """int [<= MAX_FRAMES]: clip frame indices of the thumbnails; increasing."""
    distinct = np.unique(protocol.sample(len(video.frame_paths)))
    places = np.linspace(0, len(distinct) - 1, min(len(distinct), MAX_FRAMES)).round().astype(int)
    return distinct[places]


def _question(score: dict, verdict: Verdict) -> dict:
    """What the list, the filters and the head of the details need."""
    entry = {
        "video": score["video_id"],
        "id": score["query_id"],
        "type": score["q_type"] or "no type",
        "text": _plain(score["question"]),
        "answer": _plain(score["answer"] or ""),
        "name": verdict.name,
        "why": _plain(verdict.why),
        "loss": _round(verdict.loss),
        "timing": _round(verdict.timing_loss),
        "masks": _round(verdict.mask_loss),
        "scores": {key: _round(value) for key, value in score["rows"]["model"].items()},
        "forced": [token for token in ("seg", "loc") if score.get(f"forced_{token}")],
    }
    frames = score.get("frames")
    if frames is not None:
        flags = {"window": "in_window", "visible": "visible", "shown": "shown", "kept": "kept"}
        entry["frames"] = {
            "index": frames["index"],
            **{name: _bits(frames[key]) for name, key in flags.items()},
            "J": [_round(value) for value in frames["J"]],
            "loc": None if frames["loc"] is None else [_round(value) for value in frames["loc"]],
        }
    return entry


def _video(
    video: VideoRecord,
    wanted: Sequence[tuple[dict, dict]],
    indices: np.ndarray,
    output_dir: str,
    truths: Callable[[Question], Any],
    protocol: Protocol,
    share: int,
) -> dict:
    """Thumbnails of one video; adds to each of its wanted questions what was said, the outlines and the points."""
    questions = {question.query_id: question for question in video.questions}
    images = [thumbnail(video.frame_paths[index], share) for index in indices]
    size, outlines = _size(video), {}
    for score, entry in wanted:
        question = questions[score["query_id"]]
        try:
            truth = truths(question)
        except DataError:
            truth = None  # the score says so, and the page shows the frames alone
        shown = entry["picture"] = {"window": [0] * len(indices), "truth": None, "masks": None, "points": None}
        entry["span"] = list(question.window) if question.window is not None else None
        if truth is not None:
            shown["window"] = _bits(question_window(question, indices, protocol))
        if isinstance(truth, Truth):
            size = truth.size
            if question.object_ids not in outlines:
                outlines[question.object_ids] = [outline(mask) for mask in truth.masks()]
            shown["truth"] = outlines[question.object_ids]
        if score["status"] != "ok":
            continue
        record = read_record(output_dir, *_key(score))
        entry["said"] = _said(record)
        places = np.searchsorted(np.asarray(record.frame_indices), indices)
        if record.kind == "masks":
            size = tuple(record.size)
            masks = [record.masks[place] for place in places]
            # Before refinement: what it empties is drawn as emptied.
            shown["masks"] = ["" if rle is None else outline(decode_rle(rle)) for rle in masks]
        elif record.kind == "points":
            shown["points"] = [record.points[place] or [] for place in places]
    grid = outline_grid(*size) if size is not None else (16, 9)
    return {
        "total": len(video.frame_paths),
        "index": indices.tolist(),
        "images": images,
        "grid": list(grid),
        "size": list(size or grid[::-1]),
        "sharp": size is not None and max(size) <= SMALL_SIDE,
    }


def _size(video: VideoRecord) -> tuple[int, int] | None:
    """(H, W) of the frames, or None if the first cannot be read."""
    try:
        return frame_size(video.frame_paths[0])
    except DataError:
        return None


def _said(record: Record) -> list[str]:
    """What the model wrote, each text once, with how often where that is more than once."""
    counts: dict[str, int] = {}
    for answer in record.answers:
        text = _plain(answer.strip()) or "(nothing)"
        counts[text] = counts.get(text, 0) + 1
    said = [text if times == 1 else f"{text} ({times} times)" for text, times in counts.items()]
    return said if len(said) <= MAX_SAID else [*said[:MAX_SAID], f"… and {len(said) - MAX_SAID} other texts"]


def _plain(text: str) -> str:
    """Text of bearable length without characters that do not print."""
    words = " ".join(text[: 2 * MAX_TEXT].split())
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words[:MAX_TEXT])
    return shown + "…" if len(words) > MAX_TEXT else shown


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _bits(flags: Sequence[bool]) -> list[int]:
    return [int(flag) for flag in flags]
