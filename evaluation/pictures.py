"""Pictures of some questions, and one page to look at them: frames, ground truth, prediction, and the [LOC] curve."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.sample import Query, VideoRecord
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record
from evaluation.score import question_window, read_truth
from utils.files import atomic_write
from utils.masks import decode_rle
from utils.overlay import contact_sheet, draw_overlay
from utils.video import read_frame

MAX_COLUMNS = 8
"""Frames on a picture; more would be too small to see."""

FRAME_WIDTH = 160
PREDICTION_FILL = (230, 60, 60)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; color: #222; }}
pre {{ background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px; }}
figure {{ margin: 0 0 2.5em; border-top: 1px solid #ccc; padding-top: 1em; }}
figcaption b {{ font-size: 17px; }} img {{ max-width: 100%; margin-top: .5em; }} .facts {{ color: #666; }}
</style></head><body><h1>{title}</h1>
<p>White outline: ground truth. Red: prediction, after refinement. A green bar under a frame: it lies in the
action's window. Curve: [LOC] probability per frame, window shaded.</p>
<pre>{report}</pre>
{figures}
</body></html>
"""

FIGURE = """<figure><figcaption><b>{question}</b><br>
<span class="facts">{group} · {q_type} · J&amp;F {jf} · in-window J {window_j} · temporal IoU {tiou} ·
answer: {answer} · model says: {said} · {where}</span></figcaption>
<img src="{file}" alt="{question}" loading="lazy"></figure>
"""


def choose_questions(scores: Sequence[dict], per_group: int, seed: int = 0) -> list[tuple[str, dict]]:
    """Some of the best, the worst and some random questions by J&F, each once.

    Args:
        scores: per question.
        per_group: at most this many per group.
        seed: of the random group.

    Returns:
        (group, score) pairs; failed questions are left out, as there is nothing to see.
    """
    ranked = sorted((s for s in scores if s["status"] == "ok"), key=lambda s: -s["rows"]["model"]["JF"])
    best, rest = ranked[:per_group], ranked[per_group:]
    worst = rest[::-1][:per_group]
    rest = rest[: len(rest) - len(worst)]
    drawn = np.random.default_rng(seed).permutation(len(rest))[:per_group]
    groups = [("random", [rest[index] for index in sorted(drawn)]), ("best", best), ("worst", worst)]
    return [(group, score) for group, members in groups for score in members]


def write_gallery(
    videos: Sequence[VideoRecord],
    output_dir: str | Path,
    scores: Sequence[dict],
    protocol: Protocol,
    report: str,
    per_group: int = 4,
) -> Path | None:
    """Write ``pictures/*.png`` and ``pictures/index.html``, which opens in a browser without a server.

    Args:
        videos: the ground truth.
        output_dir: run folder with the records.
        scores: per question.
        protocol: refinement and threshold.
        report: text shown at the top of the page.
        per_group: pictures per group (random, best, worst); 0 writes nothing.

    Returns:
        The page, or None if there was nothing to show.
    """
    chosen = choose_questions(scores, per_group)
    if not chosen:
        return None
    by_id = {video.video_id: video for video in videos}
    folder = Path(output_dir) / "pictures"
    figures = []
    for number, (group, score) in enumerate(chosen):
        video = by_id[score["video_id"]]
        query = next(query for query in video.queries if query.query_id == score["query_id"])
        record = read_record(output_dir, video.video_id, query.query_id)
        file = f"{number:02d}_{group}.png"
        _write_png(folder / file, question_picture(video, query, record, protocol))
        figures.append(_figure(group, score, record, file))
    title = f"MoRA on {len(scores)} questions: {len(chosen)} of them"
    page = PAGE.format(title=title, report=html.escape(report), figures="\n".join(figures))
    with atomic_write(folder / "index.html", "w") as stream:
        stream.write(page)
    return folder / "index.html"


def question_picture(video: VideoRecord, query: Query, record: Record, protocol: Protocol) -> np.ndarray:
    """One question as a sheet: ground truth above, prediction below, and the [LOC] curve if there is one.

    Args:
        video, query: what was asked.
        record: a prediction (not a failure).
        protocol: refinement and threshold.

    Returns:
        uint8 RGB [h, w, 3].

    Raises:
        DataError: a frame or mask cannot be read.
    """
    count = len(record.frame_indices)
    shown = np.unique(np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int))
    indices = np.asarray(record.frame_indices)[shown]
    truth = read_truth(video, query, indices, protocol)
    refine = protocol.loc_refine and record.loc_probs is not None
    above, below, notes = [], [], []
    for column, position in enumerate(shown):
        frame = read_frame(video.frame_paths[int(indices[column])])
        rle = record.masks[position]
        kept = not refine or record.loc_probs[position] >= protocol.loc_threshold
        pred = decode_rle(rle) if rle is not None and kept else np.zeros(frame.shape[:2], dtype=bool)
        # The prediction lies on a grey frame: a red fill on a coloured object could not be told from the object.
        above.append(draw_overlay(frame, [], truth=[truth.target[column]]))
        below.append(draw_overlay(_grey(frame), [pred], [PREDICTION_FILL], 0.7, [truth.target[column]]))
        note = f"frame {indices[column]}"
        notes.append(note if record.loc_probs is None else f"{note}  LOC {record.loc_probs[position]:.2f}")
    marks = [truth.in_window.tolist()] * 2
    captions = (f"ground truth: {query.answer or 'object ' + ', '.join(map(str, query.object_ids))}", "prediction")
    sheet = contact_sheet([above, below], captions, ([], notes), query.text, FRAME_WIDTH, marks)
    if record.loc_probs is None:
        return sheet
    window = question_window(query, np.asarray(record.frame_indices), protocol)
    curve = loc_curve(np.asarray(record.loc_probs), window, protocol.loc_threshold, sheet.shape[1])
    return np.concatenate([sheet, curve], axis=0)


def loc_curve(probs: np.ndarray, in_window: np.ndarray, threshold: float, width: int, height: int = 70) -> np.ndarray:
    """Probability per frame as a curve over the true window.

    Args:
        probs: float [T] in [0, 1].
        in_window: bool [T]; shaded.
        threshold: drawn as a dashed line.
        width, height: of the picture in pixels.

    Returns:
        uint8 RGB [height, width, 3].
    """
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    edges = np.linspace(4, width - 4, len(probs) + 1).round().astype(int)
    top, bottom = 6, height - 6

    def y_of(prob: float) -> int:
        return round(bottom - (bottom - top) * float(prob))

    for index in np.flatnonzero(in_window):
        picture[top : bottom + 1, edges[index] : edges[index + 1]] = (214, 238, 220)
    picture[[top, bottom], 4:-4] = (200, 200, 200)
    for x in range(4, width - 4, 12):
        picture[y_of(threshold), x : x + 6] = (120, 120, 120)
    points = [((edges[i] + edges[i + 1]) // 2, y_of(p)) for i, p in enumerate(probs)]
    cv2.polylines(picture, [np.array(points, dtype=np.int32)], False, PREDICTION_FILL, 2, cv2.LINE_AA)
    for point in points:
        cv2.circle(picture, (int(point[0]), point[1]), 3, PREDICTION_FILL, -1, cv2.LINE_AA)
    return picture


def _grey(frame: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] without its colours."""
    return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _figure(group: str, score: dict, record: Record, file: str) -> str:
    row = score["rows"]["model"]
    said = " / ".join(dict.fromkeys(answer.strip() for answer in record.answers)) or "nothing"
    values = {
        "group": group,
        "question": score["question"],
        "q_type": score["q_type"] or "no type",
        "jf": f"{row['JF']:.3f}",
        "window_j": "-" if row["window_J"] is None else f"{row['window_J']:.3f}",
        "tiou": f"{row['temporal_iou']:.3f}",
        "answer": score["answer"] or "unnamed",
        "said": "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in said[:300]),
        "where": f"{score['video_id']}, question {score['query_id']}",
        "file": file,
    }
    return FIGURE.format(**{key: html.escape(value) for key, value in values.items()})


def _write_png(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: the picture cannot be encoded as PNG")
    with atomic_write(path) as stream:
        stream.write(data.tobytes())
