"""Which frames and which questions of a record one training step sees, and which frames an evaluation looks at.

Every random choice comes from the generator that is passed in.
"""

from __future__ import annotations

import numpy as np

from datasets.sample import Question, VideoRecord, VideoSample

STRATEGIES = ("anchor", "uniform", "jitter")

MAX_LOOKS = 64
"""Masks read at most while looking for a frame that shows the object."""


def sample_frames(num_total: int, n: int, rng: np.random.Generator, anchor: int | None = None) -> np.ndarray:
    """A close group of three and the rest from all over the clip (ReferFormer's sampling, without its slips).

    The anchor is uniform over the clip; its neighbours lie 1 to 3 frames before and after it, where the clip has such
    frames; the rest is drawn without replacement from the frames not yet chosen.

    Args:
        num_total: frames of the clip, at least 1.
        n: frames wanted, at least 1.
        rng: source of chance.
        anchor: the anchor, if it is given.

    Returns:
        int64 [n], increasing; distinct whenever ``num_total >= n``, else every frame, cyclically repeated.
    """
    _require_positive(num_total, n)
    if num_total <= n:
        return _repeat(num_total, n)
    if anchor is None:
        anchor = int(rng.integers(num_total))
    steps = rng.integers(1, 4, size=2)
    near = [anchor, anchor + int(steps[0]), anchor - int(steps[1])]
    if rng.integers(2):
        near[1:] = near[:0:-1]  # with n = 2 either neighbour may be the one that is kept
    chosen = [index for index in near if 0 <= index < num_total][:n]
    others = np.setdiff1d(np.arange(num_total), chosen)
    far = rng.choice(others, size=n - len(chosen), replace=False)
    return np.sort(np.concatenate([chosen, far])).astype(np.int64)


def uniform_frames(num_total: int, n: int) -> np.ndarray:
    """Evenly spaced frames from the first to the last: ``round(linspace(0, num_total - 1, n))``.

    Returns:
        int64 [n], increasing; distinct whenever ``num_total >= n``.
    """
    _require_positive(num_total, n)
    return np.rint(np.linspace(0, num_total - 1, n)).astype(np.int64)


def linspace_truncated(num_total: int, n: int) -> np.ndarray:
    """Evenly spaced frames, rounded down: the rule of the first GroundMoRe evaluator.

    Returns:
        int64 [n], non-decreasing; repeats where ``num_total < n``.
    """
    _require_positive(num_total, n)
    return np.linspace(0, num_total - 1, n, dtype=int).astype(np.int64)


def jittered_frames(num_total: int, n: int, rng: np.random.Generator, anchor: int | None = None) -> np.ndarray:
    """One random frame from each of n equal parts of the clip; ``anchor``, if given, is the choice of its part.

    Returns:
        int64 [n], increasing; distinct whenever ``num_total >= n``, else every frame, cyclically repeated.
    """
    _require_positive(num_total, n)
    if num_total <= n:
        return _repeat(num_total, n)
    edges = np.arange(n + 1) * num_total // n
    frames = rng.integers(edges[:-1], edges[1:])
    if anchor is not None:
        frames[np.searchsorted(edges, anchor, side="right") - 1] = anchor
    return frames.astype(np.int64)


def draw_sample(
    record: VideoRecord, num_frames: int, max_questions: int, rng: np.random.Generator, strategy: str = "anchor"
) -> VideoSample:
    """Draw frames and questions of a record for one training step.

    Where the corpus has no windows (referring expressions), "anchor" and "jitter" make sure that the first question
    drawn is visible on at least one frame, if it is visible anywhere among 64 random frames. With windows the whole
    clip is drawn from, so that frames inside and outside the window both occur.

    Args:
        record: the clip.
        num_frames: frames per sample, at least 1.
        max_questions: questions per sample at most; drawn without replacement, kept in the record's order.
        rng: source of chance.
        strategy: "anchor": :func:`sample_frames`; "uniform": :func:`uniform_frames`, always the same frames;
            "jitter": :func:`jittered_frames`.

    Raises:
        DataError: a mask that was looked at cannot be read.
        ValueError: an unknown strategy, or a number below 1.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, not {strategy!r}")
    if max_questions < 1:
        raise ValueError(f"max_questions must be at least 1, not {max_questions}")
    total = len(record.frame_paths)
    chosen = rng.permutation(len(record.questions))[:max_questions]
    if strategy == "uniform":
        frames = uniform_frames(total, num_frames)
    else:
        anchor = _visible_frame(record, record.questions[chosen[0]], rng) if total > num_frames else None
        draw = sample_frames if strategy == "anchor" else jittered_frames
        frames = draw(total, num_frames, rng, anchor)
    return VideoSample(record, frames, tuple(record.questions[index] for index in sorted(chosen)))


def _visible_frame(record: VideoRecord, question: Question, rng: np.random.Generator) -> int | None:
    """A random frame that shows the question's object; None if windows say where it counts, or it was not found."""
    if question.window is not None or not question.object_ids:
        return None
    for index in rng.permutation(len(record.frame_paths))[:MAX_LOOKS]:
        if record.read_object_mask(question, int(index)).any():
            return int(index)
    return None


def _repeat(num_total: int, n: int) -> np.ndarray:
    """Every frame of a short clip, over and over until there are n, in time order."""
    return np.sort(np.arange(n, dtype=np.int64) % num_total)


def _require_positive(num_total: int, n: int) -> None:
    if num_total < 1 or n < 1:
        raise ValueError(f"a clip of {num_total} frames cannot give {n}; both must be at least 1")
