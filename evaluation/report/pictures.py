"""A question as one picture: frames, ground truth, prediction, and the [LOC] curve."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.sample import Question, VideoRecord
from evaluation.outputs import PICTURE_MARK
from evaluation.protocol import Protocol
from evaluation.records import Record
from evaluation.scoring.truth import question_window, read_truth
from utils.drawing import contact_sheet, draw_overlay
from utils.files import atomic_write
from utils.masks import decode_rle
from utils.video import read_frame

MAX_COLUMNS = 8
"""Frames on a picture; more would be too small to see."""

FRAME_WIDTH = 160
PREDICTION_FILL = (230, 60, 60)


def question_picture(video: VideoRecord, query: Question, record: Record, protocol: Protocol) -> np.ndarray:
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
        probs: float [T] in [0, 1], or NaN for a frame without one.
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
    points = [((edges[i] + edges[i + 1]) // 2, y_of(p)) for i, p in enumerate(probs) if not np.isnan(p)]
    if points:
        cv2.polylines(picture, [np.array(points, dtype=np.int32)], False, PREDICTION_FILL, 2, cv2.LINE_AA)
    for point in points:
        cv2.circle(picture, (int(point[0]), point[1]), 3, PREDICTION_FILL, -1, cv2.LINE_AA)
    return picture


def _grey(frame: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] without its colours."""
    return cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, uint8 RGB [h, w, 3], atomically; it says which program drew it.

    Raises:
        OSError: it cannot be written.
    """
    info = PngInfo()
    info.add_text("Software", PICTURE_MARK)
    with atomic_write(path) as stream:
        Image.fromarray(picture).save(stream, "PNG", pnginfo=info)
