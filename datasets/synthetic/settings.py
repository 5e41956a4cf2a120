"""What kind of world is made: sizes, timing, difficulty, and how often each event and question occurs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from utils.errors import ConfigError

UNITS = 64.0
"""The shorter side of every canvas measures this many world units; the simulation knows no pixels."""

SAMPLED_FRAMES = 8
"""A model of this world is expected to see about this many evenly spaced frames; speeds and windows are set for it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 48, 44),
    "green": (48, 168, 58),
    "blue": (52, 84, 218),
    "yellow": (226, 206, 50),
    "purple": (152, 58, 188),
    "white": (236, 236, 236),
    "orange": (238, 132, 34),
    "cyan": (60, 200, 216),
}
"""RGB of every colour word. The first six are used at every level."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
"""Shape words; the first three are used at every level."""

EASY_EVENTS = {
    "push": 5.0,
    "block": 2.5,
    "chase": 1.2,
    "alone": 0.6,
    "move": 3.0,
    "turn": 0.8,
    "zigzag": 0.7,
    "grow": 0.8,
    "shrink": 0.8,
    "hide": 0.9,
}
"""Relative frequencies: push/block/chase/alone are drawn against each other (the pair), the rest against each other."""


@dataclass(frozen=True)
class WorldSettings:
    """Everything that decides a world besides its seed.

    Attributes:
        height, width: canvas in pixels; any size of at least 32.
        num_frames: frames per clip, at least 4 seconds' worth.
        fps: frames per second; every event starts and ends on a whole second.
        length_jitter: clips are longer or shorter by up to this many seconds.
        level: "easy" (colours distinct) or "hard" (distractors of the same colour and of the same shape).
        min_objects, max_objects: objects per video, inclusive.
        radius: range of object radii in world units (the canvas is 64 units high or wide).
        odd_size_rate: share of objects that are larger or smaller than that, so that size alone tells no growth.
        neighbour_rate: share of resting objects put right beside another, so that contact alone tells no push.
        speed: range of displacement in world units per eighth of a clip.
        num_colours, num_shapes: how many of COLOURS and SHAPES may occur.
        palette: a hard video uses at most this many colours and as many shapes; 0: no such limit.
        overlap: share of the summed radii by which unrelated objects may pass over each other; 0: never.
        drift_rate, drift: share of videos whose background moves, and its speed in units per eighth of a clip.
        clutter: number of background blobs and lines.
        screen_rate: share of videos without a hiding object that show a screen all the same.
        event_weights: see EASY_EVENTS.
        question_weights: question key -> weight (default 1); 0 switches a question off. Keys: phrases.PHRASES.
        max_second_pairs: 1 allows a second pair script (push, block, chase) in videos with room for it.
        min_questions, max_questions: per video, inclusive.
        min_window_frames: a question's window holds at least this many of SAMPLED_FRAMES evenly spaced frames.
        multi_answer_rate: share of training videos with a question whose answer is two objects.
    """

    height: int = 64
    width: int = 64
    num_frames: int = 48
    fps: int = 6
    length_jitter: int = 0
    level: str = "easy"
    min_objects: int = 4
    max_objects: int = 5
    radius: tuple[float, float] = (5.2, 8.2)
    odd_size_rate: float = 0.15
    neighbour_rate: float = 0.5
    speed: tuple[float, float] = (4.2, 7.0)
    num_colours: int = 6
    num_shapes: int = 3
    palette: int = 0
    overlap: float = 0.0
    drift_rate: float = 0.35
    drift: float = 1.5
    clutter: int = 6
    screen_rate: float = 0.2
    event_weights: dict[str, float] = field(default_factory=lambda: dict(EASY_EVENTS))
    question_weights: dict[str, float] = field(default_factory=dict)
    max_second_pairs: int = 0
    min_questions: int = 5
    max_questions: int = 9
    min_window_frames: int = 3
    multi_answer_rate: float = 0.1

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32:
            raise ConfigError(f"world of {self.height}x{self.width} pixels: both sides must be at least 32")
        if self.length_jitter < 0:
            raise ConfigError(f"length_jitter {self.length_jitter}: must not be negative")
        if self.num_frames - self.length_jitter * self.fps < 4 * self.fps:
            raise ConfigError(
                f"num_frames {self.num_frames} at fps {self.fps} with length_jitter {self.length_jitter}: a clip must "
                f"last at least 4 seconds ({4 * self.fps} frames), because events start and stop on whole seconds"
            )
        if self.level not in ("easy", "hard"):
            raise ConfigError(f"level {self.level!r}: choose easy or hard")
        if not 2 <= self.min_objects <= self.max_objects:
            raise ConfigError(f"objects {self.min_objects}..{self.max_objects}: need 2 <= min_objects <= max_objects")
        names = self.palette**2 if self.palette else self.num_colours
        if self.max_objects > names:
            raise ConfigError(f"max_objects {self.max_objects}: only {names} objects can be told apart by name")

    @classmethod
    def hard(cls, **overrides) -> WorldSettings:
        """Five to seven objects in three colours and three shapes, overlaps, more clutter, up to two pair scripts."""
        values = dict(
            level="hard",
            min_objects=5,
            max_objects=7,
            radius=(4.2, 6.6),
            num_colours=8,
            num_shapes=6,
            palette=3,
            overlap=0.6,
            drift_rate=0.6,
            drift=3.0,
            clutter=16,
            screen_rate=0.4,
            max_second_pairs=1,
            max_questions=10,
        )
        return cls(**{**values, **overrides})

    @property
    def scale(self) -> float:
        """Pixels per world unit."""
        return min(self.height, self.width) / UNITS

    @property
    def canvas(self) -> np.ndarray:
        """float64 [2]: width and height of the canvas in world units."""
        return np.array([self.width, self.height], dtype=np.float64) / self.scale


def sampled_frame_indices(num_frames: int) -> np.ndarray:
    """int64 [8]: evenly spaced frame indices from the first to the last, as a model would see them."""
    return np.round(np.linspace(0, num_frames - 1, SAMPLED_FRAMES)).astype(np.int64)
