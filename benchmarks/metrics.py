"""How long J and F take: the official algorithm against this project's, on the same masks, in one run and one thread.

    python -m benchmarks.metrics

prints milliseconds per frame for J and F together and, behind it, how many times faster than the official algorithm
that is. Run lengths are compared with decoding them (pycocotools) and scoring the pixels by the official algorithm. All
ways take turns, so that a busy machine is unfair to none; the time is the thread's processor time, the median of the
repeats. Every result is compared with the official one; a difference in the last bit ends the run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from pycocotools import mask as coco

from benchmarks.official_davis import official_clip, official_radius
from evaluation.metrics import BACKEND_VARIABLE, score_clip, score_clip_rle

SIZES = {"480p": (480, 854), "720p": (720, 1280), "1080p": (1080, 1920), "2160p": (2160, 3840)}
Clip = np.ndarray
Scores = tuple[np.ndarray, np.ndarray]


def moving_blobs(rng: np.random.Generator, frames: int, height: int, width: int, count: int) -> tuple[Clip, Clip]:
    """Objects with wiggly borders that wander through the clip, and a prediction that is off by a few pixels.

    Args:
        rng: decides everything.
        frames, height, width: size of the clip.
        count: objects, each 8% to 20% of the frame's height in radius.

    Returns:
        (ground truth, prediction), bool [frames, height, width].
    """
    gt, pred = np.zeros((2, frames, height, width), dtype=np.uint8)
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    waves = np.arange(2, 12)
    for _ in range(count):
        radius = rng.uniform(0.08, 0.2) * height
        centre = rng.uniform(0.2, 0.8, size=2) * (width, height)
        velocity = rng.uniform(-0.01, 0.01, size=2) * height
        phase, wiggle = rng.uniform(0, 2 * np.pi, len(waves)), rng.uniform(0, 0.3, len(waves)) / waves
        miss_phase, miss = rng.uniform(0, 2 * np.pi, len(waves)), rng.uniform(0, 0.1, len(waves)) / waves
        for t in range(frames):
            turn = waves * (angle[:, None] + 0.05 * t)
            shape = 1 + (np.sin(turn + phase) * wiggle).sum(axis=1)
            missed = shape + (np.sin(turn + miss_phase) * miss).sum(axis=1)
            for mask, reach, shift in ((gt, shape, 0.0), (pred, missed, 0.004 * height)):
                x = centre[0] + velocity[0] * t + shift + radius * reach * np.cos(angle)
                y = centre[1] + velocity[1] * t - shift + radius * reach * np.sin(angle)
                cv2.fillPoly(mask[t], [np.stack([x, y], axis=1).round().astype(np.int32)], 1)
    return gt.view(bool), pred.view(bool)


def adversarial(frames: int, height: int, width: int) -> dict[str, Callable[[np.random.Generator], tuple[Clip, Clip]]]:
    """Masks made to be slow: dense, or with contours everywhere and never near each other."""
    shape = (frames, height, width)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    radius = official_radius(height, width)

    def clip(frame: np.ndarray) -> Clip:
        return np.ascontiguousarray(np.broadcast_to(frame, shape))

    def noise(share: float):
        return lambda rng: (rng.random(shape) < share, rng.random(shape) < share)

    def stripes(axis: np.ndarray):
        period, offset = 3 * radius, radius + radius // 2
        return lambda rng: (clip(axis % period == 0), clip(axis % period == offset))

    return {
        "noise 50%": noise(0.5),
        "noise 1%": noise(0.01),
        "noise 0.05%": noise(0.0005),
        "stripes, crossed": lambda rng: (clip(y % 2 == 0), clip(x % 2 == 0)),
        "stripes, far, upright": stripes(x),
        "stripes, far, level": stripes(y),
        "checkerboard, inverse": lambda rng: (clip((x + y) % 2 == 0), clip((x + y) % 2 == 1)),
        "checkerboard, pixel": lambda rng: (clip((x + y) % 2 == 0), clip((x + y) == 9)),
    }


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Let :mod:`evaluation.metrics` count with ``name`` for a while."""
    before = os.environ.get(BACKEND_VARIABLE)
    os.environ[BACKEND_VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(BACKEND_VARIABLE)
        if before is not None:
            os.environ[BACKEND_VARIABLE] = before


def with_backend(name: str, score: Callable[..., Scores], gt, pred) -> Callable[[], Scores]:
    """``score(gt, pred)`` as a call without arguments, counted by one backend."""

    def run() -> Scores:
        with backend(name):
            return score(gt, pred)

    return run


def decode_and_score(gt: list[dict], pred: list[dict]) -> Scores:
    """What one does with run lengths without a way to score them."""
    return official_clip(*(np.stack([coco.decode(rle).view(bool) for rle in side]) for side in (gt, pred)))


def measure(gt: Clip, pred: Clip, official_frames: int, repeats: int) -> dict[str, float]:
    """Milliseconds per frame of every way, after one round that does not count.

    Raises:
        SystemExit: a result differs from the official one.
    """
    rle = [[coco.encode(np.asfortranarray(mask.view(np.uint8))) for mask in side] for side in (gt, pred)]
    few = slice(0, official_frames)
    ways: dict[str, tuple[Callable[[], Scores], int]] = {
        "official": (lambda: official_clip(gt[few], pred[few]), official_frames),
        "decode": (lambda: decode_and_score(rle[0][few], rle[1][few]), official_frames),
    }
    for name in ("numba", "numpy"):
        ways[name] = (with_backend(name, score_clip, gt, pred), len(gt))
        ways[f"{name} rle"] = (with_backend(name, score_clip_rle, *rle), len(gt))
    times: dict[str, list[float]] = {name: [] for name in ways}
    reference = None
    for _ in range(repeats + 1):
        for name, (way, frames) in ways.items():
            start = time.thread_time()
            scores = way()
            times[name].append((time.thread_time() - start) * 1e3 / frames)
            reference = scores if reference is None else reference
            if any((one[few] != other).any() for one, other in zip(scores, reference)):
                raise SystemExit(f"{name}: differs from the official result")
    return {name: float(np.median(taken[1:])) for name, taken in times.items()}


def table(size: str, args: argparse.Namespace) -> None:
    """Print one size's rows."""
    height, width = SIZES[size]
    kinds = {
        f"{count} object{'s' * (count > 1)}": lambda rng, count=count: moving_blobs(
            rng, args.frames, height, width, count
        )
        for count in (1, 2, 5)
    } | adversarial(args.frames, height, width)
    for index, (kind, make) in enumerate(kinds.items()):
        took = measure(*make(np.random.default_rng(index)), min(args.official_frames, args.frames), args.repeats)
        row = f"{size:>6} {kind:<22} {took['official']:>9.3f}"
        for name, against in (
            ("numba", "official"), ("numpy", "official"), ("numba rle", "decode"), ("numpy rle", "decode")
        ):  # fmt: skip
            if name == "numba rle":
                row += f"  {took['decode']:>9.3f}"
            row += f"  {took[name]:>8.4f} {took[against] / took[name]:>6.1f}x"
        print(row, flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Milliseconds per frame for J and F, and the speed-up over the official algorithm.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["480p", "720p", "1080p"], help="frame sizes")
    parser.add_argument("--frames", type=int, default=20, help="frames per clip")
    parser.add_argument(
        "--official_frames", type=int, default=5, help="frames of it that the official algorithm is timed on"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; the median counts")
    args = parser.parse_args(argv)
    if min(args.frames, args.official_frames, args.repeats) < 1:
        parser.error("--frames, --official_frames and --repeats must be at least 1")
    cv2.setNumThreads(1)
    heads = ("numba", "numpy", "decode+off.", "RLE, numba", "RLE, numpy")
    print(f"{'':>6} {'masks':<22} {'official':>9}", end="")
    print(f"  {heads[0]:>16}  {heads[1]:>16}  {heads[2]:>9}  {heads[3]:>14}  {heads[4]:>16}")
    for size in args.sizes:
        table(size, args)


if __name__ == "__main__":
    main()
