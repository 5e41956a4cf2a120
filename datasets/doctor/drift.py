"""Do a clip's masks belong to the frames they are filed under? An estimate of their offset in time.

Two clues are measured for every shift s from -3 to 3 frames, both between frame t and the mask filed under
t + s:

* edges: the image's gradient (over its mean) along the outline of the mask. Outlines of objects lie on edges.
* motion: the difference of two neighbouring frames (over its mean) where the two masks differ. Pixels that an object
  enters or leaves change.

Both are highest where masks and frames belong together. A shift is reported if both (or the edges alone, where masks
are too sparse for motion) peak at it, and do so clearly: on most frames, by a share of the height, and together by
several standard errors. Each half of a clip is judged by itself too, for masks that run away slowly.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

MAX_SHIFT = 3
"""Shifts in frames that are tried, both ways."""

SIDE = 320
"""Frames are reduced to this longer side, in pixels."""

MIN_FRAMES = 8
"""Masks (or pairs of masks) below which nothing is concluded."""

_MIN_GAIN, _MIN_SHARE = 0.05, 0.7
"""A better shift must win by this share of the height, on this share of the frames."""

_EACH_Z, _JOINT_Z, _LONE_Z = 2.5, 4.5, 6.0
"""... and by so many standard errors: by each clue, by both together (Stouffer's sum), or where edges stand alone."""

_CLIP = 8.0
"""Gradients and differences are cut at this multiple of their mean, so that single edges do not decide."""

_SHIFTS = np.arange(-MAX_SHIFT, MAX_SHIFT + 1)


@dataclass(frozen=True)
class Peak:
    """Where one clue is highest.

    Attributes:
        shift: frames.
        gain: relative height of the peak over shift 0 (over the best of the outer shifts, where the peak is at 0).
        z: the same difference in standard errors.
        share: of the frames on which it is so.
        frames: number of masks or pairs measured.
    """

    shift: int
    gain: float
    z: float
    share: float
    frames: int

    def wins(self, z: float) -> bool:
        """Whether all thresholds are passed, that of the standard errors being ``z``."""
        return self.z >= z and self.gain >= _MIN_GAIN and self.share >= _MIN_SHARE


@dataclass(frozen=True)
class Drift:
    """The verdict on a stretch of a clip.

    Attributes:
        status: "aligned", "suspect", or "undecided": nothing moves, too few masks, or the clues disagree.
        shift: frames; the mask filed under frame t + shift fits frame t. 0 unless suspect.
        edges, motion: the clues; None where too little could be measured.
    """

    status: str
    shift: int
    edges: Peak | None
    motion: Peak | None

    @property
    def score(self) -> float:
        """How strongly the better shift wins; 0 unless suspect."""
        return self.edges.gain if self.status == "suspect" and self.edges else 0.0


class DriftProbe:
    """Measures the clues of one clip, frame by frame; holds a few small frames at a time.

    Call :meth:`push` for every frame in time order, then :meth:`verdict`.
    """

    def __init__(self) -> None:
        span = 2 * MAX_SHIFT + 1
        self._gradients: deque[np.ndarray | None] = deque(maxlen=span)
        self._changes: deque[np.ndarray | None] = deque(maxlen=span)
        self._masks: deque[np.ndarray | None] = deque(maxlen=MAX_SHIFT + 2)
        self._image: np.ndarray | None = None
        self._time = -1
        self._edges: list[tuple[int, np.ndarray]] = []
        self._motion: list[tuple[int, np.ndarray]] = []

    def push(self, frame: np.ndarray | None, ids: np.ndarray | None) -> None:
        """Add the next frame.

        Args:
            frame: uint8 RGB [H, W, 3]; None if it cannot be read.
            ids: integers [H, W], the object of each pixel, 0: none; None if there is no usable mask.
        """
        self._time += 1
        image, mask = _reduce(frame, ids)
        unlike = image is None or self._image is None or image.shape != self._image.shape
        self._changes.append(None if unlike else _over_mean(np.abs(image - self._image).sum(axis=2)))
        self._gradients.append(None if image is None else _over_mean(_gradient(image)))
        self._masks.append(mask)
        self._image = image
        self._measure()

    def _measure(self) -> None:
        """The mask of MAX_SHIFT frames ago has all its neighbours now: compare it with each of them."""
        if len(self._gradients) <= 2 * MAX_SHIFT or len(self._masks) < MAX_SHIFT + 1:
            return
        centre = self._time - MAX_SHIFT
        mask = self._masks[-1 - MAX_SHIFT]
        if mask is None:
            return
        _compare(self._gradients, outline(mask), centre, self._edges)
        before = self._masks[-2 - MAX_SHIFT] if len(self._masks) > MAX_SHIFT + 1 else None
        if before is not None and before.shape == mask.shape:
            _compare(self._changes, before != mask, centre, self._motion)

    def verdict(self) -> Drift:
        """What the whole clip says; if it says nothing worrying, what its halves say."""
        whole = judge(self._edges, self._motion)
        if whole.status == "suspect":
            return whole
        middle = self._time / 2
        for early in (True, False):
            parts = [[row for row in rows if (row[0] < middle) == early] for rows in (self._edges, self._motion)]
            half = judge(*parts)
            if half.status == "suspect":
                return half
        return whole


def outline(ids: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels beside a pixel of another object; both sides of every border."""
    border = np.zeros(ids.shape, dtype=bool)
    across = ids[:, 1:] != ids[:, :-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    down = ids[1:] != ids[:-1]
    border[1:] |= down
    border[:-1] |= down
    return border


def _reduce(frame: np.ndarray | None, ids: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Frame as float32 and mask as uint16, reduced to SIDE; a mask of another size than its frame is dropped."""
    if frame is None:
        return None, None
    height, width = frame.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    if ids is None or ids.shape != (height, width):
        return image, None
    return image, cv2.resize(ids.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)


def _gradient(image: np.ndarray) -> np.ndarray:
    """float32 [H, W]: gradient over all channels of a slightly smoothed image."""
    smooth = cv2.GaussianBlur(image, (0, 0), 0.7)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return np.sqrt((across**2 + down**2).sum(axis=2))


def _over_mean(values: np.ndarray) -> np.ndarray | None:
    """Values over their mean, cut at _CLIP; None for a picture that is flat (or did not change)."""
    mean = float(values.mean())
    return np.minimum(values / mean, _CLIP) if mean > 1e-3 else None


def _compare(
    maps: deque[np.ndarray | None], where: np.ndarray, centre: int, rows: list[tuple[int, np.ndarray]]
) -> None:
    """Append (centre, mean of each map where told, by shift). The map MAX_SHIFT later is what shift -MAX_SHIFT sees."""
    if where.sum() < 4 or any(values is None or values.shape != where.shape for values in maps):
        return
    means = [float(values[where].mean()) for values in maps]
    rows.append((centre, np.array(means[::-1])))


def _peak(rows: list[tuple[int, np.ndarray]]) -> Peak | None:
    """Where the mean curve is highest, and how clearly."""
    if len(rows) < MIN_FRAMES:
        return None
    curves = np.stack([curve for _, curve in rows])  # [n, shifts]
    mean = curves.mean(axis=0)
    best = int(mean.argmax())
    rivals = [MAX_SHIFT] if best != MAX_SHIFT else [0, 1, 2 * MAX_SHIFT - 1, 2 * MAX_SHIFT]
    rival = max(rivals, key=lambda index: mean[index])
    wins = curves[:, best] - curves[:, rival]
    error = float(wins.std(ddof=1)) / len(wins) ** 0.5
    z = float(wins.mean()) / max(error, 1e-9)
    gain = float(wins.mean() / max(mean[best], 1e-9))
    return Peak(int(_SHIFTS[best]), gain, z, float((wins > 0).mean()), len(rows))


def judge(edges: list[tuple[int, np.ndarray]], motion: list[tuple[int, np.ndarray]]) -> Drift:
    """Both clues must peak at one shift and be clear together; edges alone must be clearer still."""
    first, second = _peak(edges), _peak(motion)
    if first is None:
        return Drift("undecided", 0, first, second)
    if second is None:
        clear = first.wins(_LONE_Z)
    else:
        both = first.wins(_EACH_Z) and second.wins(_EACH_Z) and first.shift == second.shift
        clear = both and (first.z + second.z) / 2**0.5 >= _JOINT_Z
    if not clear:
        return Drift("undecided", 0, first, second)
    return Drift("aligned" if first.shift == 0 else "suspect", first.shift, first, second)
