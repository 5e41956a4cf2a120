"""An mp4 of one question: frames with the ground truth's outline and the prediction, the window, [LOC], and captions.

    python -m evaluation.overlay_video --output_dir outputs/mora --video_root groundmore_videos \\
      --meta_file groundmore_test.json --video cups_0000_0010 --question 3

A white outline is the ground truth inside the action window, a grey one the answer outside it. A pink fill is the
prediction as scored. Between predicted frames (``--all_frames``) the last prediction is held as a pink outline: it was
not predicted there. H.264 in yuv420p, which browsers play.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import uuid
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from datasets.sample import Question, VideoRecord
from evaluation.outputs import PICTURE_MARK, note_foreign_file
from evaluation.protocol import Protocol
from evaluation.records import Record, read_record, record_path
from evaluation.report.page import add_run_flags, read_evaluation
from evaluation.report.pictures import loc_curve, question_picture, write_png
from evaluation.scoring.truth import question_window, read_truth
from utils.drawing import draw_overlay, text_strip
from utils.errors import ConfigError, DataError, MoraError, Problems
from utils.masks import decode_rle
from utils.paths import user_path
from utils.terminal import write_any_text
from utils.video import read_frame

MIN_WIDTH = 640
"""Smaller frames are enlarged by a whole number, so that captions can be read."""

PREDICTION_COLOUR, OUTSIDE_COLOUR = (255, 31, 156), (130, 130, 130)
CURVE_HEIGHT = 70


def overlay_frames(
    video: VideoRecord, query: Question, record: Record, protocol: Protocol, all_frames: bool = True
) -> Iterator[np.ndarray]:
    """The pictures of one question in time order.

    Args:
        video, query: what was asked.
        record: a prediction (not a failure).
        protocol: refinement and threshold.
        all_frames: every frame of the clip; otherwise the predicted ones only.

    Yields:
        uint8 RGB [H, W, 3], all of one size with even sides.

    Raises:
        DataError: a frame or mask cannot be read.
    """
    predicted = np.asarray(record.frame_indices)
    shown = np.arange(len(video.frame_paths)) if all_frames else predicted
    strip, head = _time_strip(record, query, protocol, shown), None
    held = np.searchsorted(predicted, shown, side="right") - 1  # -1: before the first predicted frame
    for place, index in enumerate(shown.tolist()):
        frame = read_frame(video.frame_paths[index])
        truth = read_truth(video, query, np.array([index]), protocol).objects[0]
        mask, kept, probability = _prediction(record, int(held[place]), frame.shape[:2], protocol)
        exact = bool(held[place] >= 0 and predicted[held[place]] == index)
        inside = bool(strip[1][place])
        picture = draw_overlay(
            frame,
            [mask] if exact and kept else [],
            [PREDICTION_COLOUR],
            0.6,
            truth=[truth],
            truth_colour=(255, 255, 255) if inside else OUTSIDE_COLOUR,
            min_side=_min_side(frame),
        )
        if kept and not exact and mask.any():
            picture = _held_outline(picture, mask)
        width = picture.shape[1]
        if head is None:
            head = _head(query, record, width)
        note = _note(index, inside, exact, kept, probability)
        bar = _with_cursor(strip, place, len(shown), width)
        yield _even(np.concatenate([head, picture, bar, _fixed_strip(note, width)], axis=0))


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
                    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                    stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
                    # One thread: the bytes do not depend on the machine's number of cores.
                    stream.options = {"crf": "20", "threads": "1"}
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


def _min_side(frame: np.ndarray) -> int:
    """What ``draw_overlay`` takes so that the enlarged frame is at least MIN_WIDTH wide."""
    height, width = frame.shape[:2]
    return min(height, width) * max(1, -(-MIN_WIDTH // width))


def _prediction(
    record: Record, place: int, shape: tuple[int, int], protocol: Protocol
) -> tuple[np.ndarray, bool, float | None]:
    """(mask before refinement, whether it is kept, [LOC] probability) of a predicted frame; empty before the first."""
    if place < 0:
        return np.zeros(shape, dtype=bool), False, None
    rle = record.masks[place]
    mask = np.zeros(shape, dtype=bool) if rle is None else decode_rle(rle)
    probability = None if record.loc_probs is None else record.loc_probs[place]
    kept = not protocol.loc_refine or probability is None or probability >= protocol.loc_threshold
    return mask, kept, probability


def _held_outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask's outline on a picture that is a whole multiple of its size."""
    factor = picture.shape[0] // mask.shape[0]
    large = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    return draw_overlay(picture, [], truth=[large], truth_colour=PREDICTION_COLOUR, min_side=1)


def _time_strip(
    record: Record, query: Question, protocol: Protocol, shown: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """What ``loc_curve`` takes: [LOC] per shown frame (NaN where nothing was predicted), window, threshold."""
    probabilities = np.full(len(shown), np.nan)
    if record.loc_probs is not None:
        probabilities[np.isin(shown, record.frame_indices)] = record.loc_probs
    return probabilities, question_window(query, shown, protocol), protocol.loc_threshold


def _with_cursor(strip: tuple[np.ndarray, np.ndarray, float], place: int, count: int, width: int) -> np.ndarray:
    """The bar under a frame: window, [LOC] curve, and where in time the frame lies."""
    bar = loc_curve(*strip, width, CURVE_HEIGHT)
    edges = np.linspace(4, width - 4, count + 1).round().astype(int)
    middle = (edges[place] + edges[place + 1]) // 2
    bar[:, middle - 1 : middle + 1] = (20, 20, 20)
    return bar


def _head(query: Question, record: Record, width: int) -> np.ndarray:
    """Question, answer and what the model said."""
    said = " / ".join(dict.fromkeys(text.strip() for text in record.answers)) or "(nothing)"
    answer = query.answer or "object " + ", ".join(map(str, query.object_ids))
    said = "".join(letter if letter.isprintable() else "?" for letter in textwrap.shorten(said, 300))
    lines = text_strip(f"answer: {answer}\nmodel: {said}", width)
    return np.concatenate([text_strip(query.text, width, size=18), lines], axis=0)


def _note(index: int, inside: bool, exact: bool, kept: bool, probability: float | None) -> str:
    parts = [f"frame {index}", "in the action's window" if inside else "outside the window"]
    if exact:
        parts.append("predicted" if kept else "predicted, emptied by [LOC]")
    else:
        parts.append("not predicted" + (": the last prediction is held" if kept else ""))
    if exact and probability is not None:
        parts.append(f"[LOC] {probability:.2f}")
    return ", ".join(parts)


def _fixed_strip(text: str, width: int) -> np.ndarray:
    """One line of text in a strip whose height does not depend on the text."""
    strip = text_strip(text, width)
    height = text_strip("x", width).shape[0]
    return strip[:height]


def _even(picture: np.ndarray) -> np.ndarray:
    """H.264 in yuv420p needs even sides; a missing row or column is white."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m evaluation.overlay_video``."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.overlay_video", description="Write an mp4 (or one sheet) of a question."
    )
    add_run_flags(parser)
    parser.add_argument("--video", required=True, metavar="ID", help="the clip")
    parser.add_argument("--question", required=True, metavar="ID", help="the question's id inside the clip")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="default: OUTPUT_DIR/overlays/VIDEO/QUESTION.mp4 or .png"
    )
    parser.add_argument("--fps", type=float, default=6.0, help="frames per second (%(default)s)")
    parser.add_argument("--all_frames", action=argparse.BooleanOptionalAction, default=True,
                        help="every frame of the clip, not the predicted ones only (default: on)")  # fmt: skip
    parser.add_argument("--sheet", action=argparse.BooleanOptionalAction, default=False,
                        help="a PNG with eight frames instead of the video (default: off)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns:
        Exit code: 0, or 2 if nothing could be written.
    """
    write_any_text()
    args = build_parser().parse_args(argv)
    try:
        if not 0 < args.fps <= 120:
            raise ConfigError(f"--fps: {args.fps} must lie above 0 and not above 120")
        path = _write(args)
    except (MoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {path}")
    return 0


def _write(args: argparse.Namespace) -> Path:
    """Write what the flags ask for."""
    corpus, _, _, protocol = read_evaluation(args)
    videos = (corpus[index] for index in range(len(corpus)))
    video = next((video for video in videos if video.video_id == args.video), None)
    if video is None:
        raise ConfigError(f"--video {args.video}: not in {args.meta_file}")
    query = next((query for query in video.questions if query.query_id == args.question), None)
    if query is None:
        known = ", ".join(query.query_id for query in video.questions)
        raise ConfigError(f"--question {args.question}: {args.video} has only {known}")
    record = read_record(args.output_dir, video.video_id, query.query_id)
    if not record.ok:
        raise DataError(f"{args.video}, {args.question}: no prediction to show; the question failed: {record.reason}")
    record_file = record_path(args.output_dir, video.video_id, query.query_id)  # its ids are escaped for file names
    default = Path(args.output_dir) / "overlays" / record_file.parent.name / record_file.stem
    path = Path(args.out or f"{default}{'.png' if args.sheet else '.mp4'}")
    if args.out is not None:
        problems = Problems()
        note_foreign_file(problems, "--out", path, PICTURE_MARK.encode())
        problems.raise_if_any(ConfigError, "the picture cannot be written there")
    if args.sheet:
        write_png(path, question_picture(video, query, record, protocol))
    else:
        write_h264(path, overlay_frames(video, query, record, protocol, args.all_frames), args.fps)
    return path


if __name__ == "__main__":
    sys.exit(main())
