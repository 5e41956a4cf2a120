"""An mp4 of one question: frames with the ground truth's outline and the prediction, the window, [LOC], and captions.

    python -m evaluation.overlay_video --output_dir outputs/mora --video_root groundmore_videos \\
      --meta_file groundmore_test.json --video cups_0000_0010 --question 3

A white outline is the ground truth inside the action window, a grey one the answer outside it. A pink fill is the
prediction as scored. Between predicted frames (``--all_frames``) the last prediction is held as a pink outline: it was
not predicted there. H.264 in yuv420p, which browsers play.
"""

from __future__ import annotations

import os
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.sample import Question, VideoRecord
from evaluation.benchmark import benchmark_of
from evaluation.outputs import PICTURE_MARK, note_foreign_file
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record, record_path
from evaluation.report import RunFlags, read_evaluation
from evaluation.scoring import ClipTruth, Truth, question_window
from utils.drawing import TRUTH_COLOUR, contact_sheet, draw_overlay, grey, text_strip, time_curve, write_png
from utils.errors import ConfigError, DataError, MoraError, Problems, write_any_text
from utils.flags import flag, parse_small
from utils.masks import decode_rle
from utils.video import read_frame

MIN_WIDTH = 640
"""Smaller frames are enlarged by a whole number, so that captions can be read."""

PREDICTION_COLOUR, OUTSIDE_COLOUR = (255, 31, 156), (130, 130, 130)
MAX_COLUMNS = 8
"""Frames on a sheet; more would be too small to see."""


def overlay_frames(
    video: VideoRecord,
    question: Question,
    record: Record,
    protocol: Protocol,
    all_frames: bool = True,
    truths: Callable = ClipTruth,
) -> Iterator[np.ndarray]:
    """The pictures of one question in time order.

    Args:
        video, question: what was args.
        record: a prediction (not a failure).
        protocol: refinement and threshold.
        all_frames: every frame of the clip; otherwise the predicted ones only.
        truths: reads the ground truth, see ``Kind`` of the benchmarks; drawn if it is masks.

    Yields:
        uint8 RGB [H, W, 3], all of one size with even sides.

    Raises:
        DataError: a frame or mask cannot be read.
    """
    predicted = np.asarray(record.frame_indices)
    shown = np.arange(len(video.frame_paths)) if all_frames else predicted
    window = question_window(question, shown, protocol)
    curve = np.full(len(shown), np.nan)
    if record.loc_probs is not None:
        curve[np.isin(shown, predicted)] = record.loc_probs
    held = np.searchsorted(predicted, shown, side="right") - 1  # -1: before the first predicted frame
    for place, (index, last, inside) in enumerate(zip(shown.tolist(), held.tolist(), window.tolist())):
        frame = read_frame(video.frame_paths[index])
        objects = [masks[0] for masks in _objects(truths(video, np.array([index]), protocol)(question))]
        mask, kept = _prediction(record, last, frame.shape[:2], protocol)
        exact = last >= 0 and predicted[last] == index
        picture = draw_overlay(
            frame,
            [mask] if exact and kept else [],
            [PREDICTION_COLOUR],
            0.6,
            truth=[*objects, mask] if kept and not exact else objects,
            truth_colours=[*([TRUTH_COLOUR if inside else OUTSIDE_COLOUR] * len(objects)), PREDICTION_COLOUR],
            min_side=min(frame.shape[:2]) * max(1, -(-MIN_WIDTH // frame.shape[1])),
        )
        width = picture.shape[1]
        bar = time_curve(curve, window, protocol.loc_threshold, width, cursor=place)
        note = text_strip(_note(index, inside, exact, kept, curve[place]), width)
        line = text_strip("", width).shape[0]  # one line, however long the note: all pictures have one size
        whole = np.concatenate([_head(question, record, width), picture, bar, note[:line]], axis=0)
        # H.264 in yuv420p needs even sides; a missing row or column is white.
        yield np.pad(whole, ((0, len(whole) % 2), (0, width % 2), (0, 0)), constant_values=255)


def question_picture(
    video: VideoRecord, question: Question, record: Record, protocol: Protocol, truths: Callable = ClipTruth
) -> np.ndarray:
    """One question as a sheet: ground truth above, prediction below, and the [LOC] curve if there is one.

    Args and errors as for :func:`overlay_frames`.

    Returns:
        uint8 RGB [h, w, 3].
    """
    count = len(record.frame_indices)
    places = np.unique(np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int)).tolist()
    indices = np.asarray(record.frame_indices)
    objects = _objects(truths(video, indices[places], protocol)(question))
    window = question_window(question, indices, protocol)
    above, below, notes = [], [], []
    for number, place in enumerate(places):
        frame = read_frame(video.frame_paths[indices[place]])
        mask, kept = _prediction(record, place, frame.shape[:2], protocol)
        # The prediction lies on a grey frame: a red fill on a coloured object could not be told from the object.
        targets = [masks[number] for masks in objects if window[place]]
        above.append(draw_overlay(frame, [], truth=targets))
        below.append(draw_overlay(grey(frame), [mask] if kept else [], alpha=0.7, truth=targets))
        loc = "" if record.loc_probs is None else f"  LOC {record.loc_probs[place]:.2f}"
        notes.append(f"frame {indices[place]}{loc}")
    marks = [window[places].tolist()] * 2
    sheet = contact_sheet(
        [above, below], (f"ground truth: {_answer(question)}", "prediction"), ([], notes), question.text, marks=marks
    )
    if record.loc_probs is None:
        return sheet
    curve = time_curve(np.asarray(record.loc_probs), window, protocol.loc_threshold, sheet.shape[1])
    return np.concatenate([sheet, curve], axis=0)


def write_h264(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an mp4 that browsers play (H.264, yuv420p, index at the front), atomically.

    Args:
        path: file to write; its folder is made if missing.
        frames: uint8 RGB [H, W, 3] each, of one size with even sides; at least one. Consumed one by one.
        fps: frames per second.

    Raises:
        ConfigError: PyAV is not installed, or has no H.264 encoder.
        ValueError: no frame, or frames of different sizes.
        OSError: the file cannot be written.
    """
    try:
        import av
    except ImportError:
        raise ConfigError(f"{path}: writing mp4 files needs PyAV; pip install av") from None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp.mp4")
    stream, size = None, None
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["comment"] = PICTURE_MARK
            for frame in frames:
                if stream is None:
                    size = frame.shape
                    # One thread: the bytes do not depend on the machine's number of cores.
                    stream = container.add_stream(
                        "libx264", Fraction(fps).limit_denominator(1000), {"crf": "20", "threads": "1"},
                        height=size[0], width=size[1], pix_fmt="yuv420p",
                    )  # fmt: skip
                if frame.shape != size:
                    raise ValueError(f"{path}: frames must have one size; got {size} and then {frame.shape}")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            if stream is None:
                raise ValueError(f"{path}: no frame to write")
            container.mux(stream.encode(None))
        os.replace(temporary, path)
    except av.codec.codec.UnknownCodecError:
        raise ConfigError(f"{path}: this PyAV has no H.264 encoder; install its wheel from PyPI") from None
    finally:
        temporary.unlink(missing_ok=True)


def _prediction(record: Record, place: int, shape: tuple[int, int], protocol: Protocol) -> tuple[np.ndarray, bool]:
    """(mask before refinement or discs at the points, whether it is kept) of a predicted frame; empty before the first
    (place -1)."""
    if place < 0:
        return np.zeros(shape, dtype=bool), False
    refined = protocol.loc_refine and record.loc_probs is not None
    mask = np.zeros(shape, dtype=np.uint8)
    if record.kind == "masks" and record.masks[place] is not None:
        mask = decode_rle(record.masks[place])
    elif record.kind == "points":
        for x, y in record.points[place] or ():
            cv2.circle(mask, (int(x), int(y)), max(1, min(shape) // 60), 1, -1)
    return mask != 0, not refined or record.loc_probs[place] >= protocol.loc_threshold


def _objects(truth: Any) -> list[np.ndarray]:
    """The ground truth's masks, bool [U, H, W], in a list; an empty one where the truth is something else."""
    return [truth.masks()] if isinstance(truth, Truth) else []


def _answer(question: Question) -> str:
    return question.answer or "object " + ", ".join(map(str, question.object_ids))


def _head(question: Question, record: Record, width: int) -> np.ndarray:
    """Question, answer and what the model said."""
    said = " / ".join(dict.fromkeys(text.strip() for text in record.answers)) or "(nothing)"
    said = "".join(letter if letter.isprintable() else "?" for letter in textwrap.shorten(said, 300))
    lines = text_strip(f"answer: {_answer(question)}\nmodel: {said}", width)
    return np.concatenate([text_strip(question.text, width, size=18), lines], axis=0)


def _note(index: int, inside: bool, exact: bool, kept: bool, probability: float) -> str:
    parts = [f"frame {index}", "in the action's window" if inside else "outside the window"]
    if exact:
        parts.append("predicted" if kept else "predicted, emptied by [LOC]")
    else:
        parts.append("not predicted" + (": the last prediction is held" if kept else ""))
    if not np.isnan(probability):
        parts.append(f"[LOC] {probability:.2f}")
    return ", ".join(parts)


@dataclass
class OverlayFlags(RunFlags):
    """Which question of which evaluation, and how it is shown."""

    video: str = flag(metavar="ID", help="the clip")
    question: str = flag(metavar="ID", help="the question's id inside the clip")
    out: str | None = flag(None, path=True, written=True, metavar="FILE",
                           help="default: OUTPUT_DIR/overlays/VIDEO/QUESTION.mp4 or .png")  # fmt: skip
    fps: float = flag(6.0, above=0, below=121, help="frames per second (%(default)s)")
    all_frames: bool = flag(True, help="every frame of the clip, not the predicted ones only (default: on)")
    sheet: bool = flag(False, help="a PNG with eight frames instead of the video (default: off)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns:
        Exit code: 0, or 2 if nothing could be written.
    """
    write_any_text()
    description, program = "Write an mp4 (or one sheet) of a question.", "python -m evaluation.overlay_video"
    try:
        path = _write(parse_small(OverlayFlags, description, argv, prog=program))
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {path}")
    return 0


def _write(args: OverlayFlags) -> Path:
    """Write what the flags ask for."""
    videos, summary, _, protocol = read_evaluation(args)
    truths = benchmark_of(summary).kind.truths
    video = next((video for video in videos if video.video_id == args.video), None)
    if video is None:
        raise ConfigError(f"--video {args.video}: not in the corpus, which has {len(videos)} videos")
    question = next((one for one in video.questions if one.query_id == args.question), None)
    if question is None:
        known = ", ".join(one.query_id for one in video.questions)
        raise ConfigError(f"--question {args.question}: {args.video} has only {known}")
    record = read_record(args.output_dir, video.video_id, question.query_id)
    if not record.ok:
        raise DataError(f"{args.video}, {args.question}: no prediction to show; the question failed: {record.reason}")
    record_file = record_path(args.output_dir, video.video_id, question.query_id)  # its ids are escaped for file names
    default = Path(args.output_dir) / "overlays" / record_file.parent.name / record_file.stem
    path = Path(args.out or f"{default}{'.png' if args.sheet else '.mp4'}")
    if args.out is not None:
        problems = Problems()
        note_foreign_file(problems, "--out", path, PICTURE_MARK.encode())
        problems.raise_if_any(ConfigError, "the picture cannot be written there")
    if args.sheet:
        write_png(path, question_picture(video, question, record, protocol, truths), PICTURE_MARK)
    else:
        write_h264(path, overlay_frames(video, question, record, protocol, args.all_frames, truths), args.fps)
    return path


if __name__ == "__main__":
    sys.exit(main())
