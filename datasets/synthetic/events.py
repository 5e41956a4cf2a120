"""What the actors do: each script lays down relative paths and the log of what happens, aligned to whole seconds.

A script knows shapes and radii of its actors, not where on the canvas they will stand; ``placement`` decides that.
Paths are sums of velocities: the velocity of frame f is the step from frame f - 1 to f, so an event with the window
[start, end] moves its object in exactly these frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from datasets.synthetic.scene import Event
from datasets.synthetic.settings import WorldSettings
from datasets.synthetic.shapes import DIRECTIONS, OPPOSITE, contact_distance, extent, outer_radius

MIN_SPEED = 3.4
"""World units per eighth of a clip; slower motion is not shown."""

EDGE = 0.5
"""Objects keep this far from the border of the canvas."""


@dataclass
class Actor:
    """An object in a role: its shape and its radius when the clip starts."""

    shape: str
    radius: float


@dataclass
class Script:
    """Paths of one to two actors relative to a common origin that is still to be chosen.

    Attributes:
        paths: float64 [g, T, 2].
        radii: float64 [g, T].
        events: ``object_id`` and ``partner`` are actor positions 0..g-1 for now.
        screen: (x0, y0, x1, y1) relative to the origin, or None.
    """

    paths: np.ndarray
    radii: np.ndarray
    events: list[Event] = field(default_factory=list)
    screen: tuple[float, float, float, float] | None = None


@dataclass
class Stage:
    """What a script may draw on: the canvas, the clock and the dice."""

    settings: WorldSettings
    num_frames: int
    rng: np.random.Generator

    @property
    def seconds(self) -> int:
        """Whole seconds in the clip."""
        return self.num_frames // self.settings.fps

    def lasting(self, low: float, high: float) -> int:
        """A random number of whole seconds between two shares of the clip, at least 1."""
        low_seconds = max(1, round(low * self.seconds))
        return int(self.rng.integers(low_seconds, max(low_seconds, round(high * self.seconds)) + 1))

    def starting(self, lasting: int) -> int | None:
        """A random first second for something of that length; None if it does not fit."""
        if lasting > self.seconds:
            return None
        return int(self.rng.integers(0, self.seconds - lasting + 1))

    def frames_of(self, start: int, lasting: int) -> tuple[int, int]:
        """Inclusive frames of the seconds [start, start + lasting)."""
        return start * self.settings.fps, (start + lasting) * self.settings.fps - 1

    def direction(self) -> str:
        """One of the four, uniformly."""
        return tuple(DIRECTIONS)[self.rng.integers(4)]

    def speed(self, direction: str, room_needed: float, lasting: float) -> float | None:
        """A speed in units per frame such that ``lasting`` seconds of it and ``room_needed`` fit on the canvas."""
        low, high = self.settings.speed
        per_frame = 8.0 / self.num_frames
        axis = 0 if DIRECTIONS[direction][0] else 1
        room = self.settings.canvas[axis] - 2 * EDGE - room_needed - 0.5
        fastest = min(high, room / max(lasting * self.settings.fps * per_frame, 1e-6))
        if fastest < MIN_SPEED:
            return None
        return float(self.rng.uniform(min(low, fastest), fastest)) * per_frame

    def still(self, actors: list[Actor]) -> Script:
        """A script in which nothing happens yet."""
        radii = np.array([actor.radius for actor in actors])[:, None] * np.ones(self.num_frames)
        return Script(np.zeros((len(actors), self.num_frames, 2)), radii)


def _travel(script: Script, actor: int, window: tuple[int, int], direction: str, speed: float) -> None:
    """Add uniform motion to an actor's path and a "move" event to the log."""
    step = np.zeros(script.paths.shape[1])
    step[window[0] : window[1] + 1] = speed
    script.paths[actor] += np.cumsum(step)[:, None] * np.array(DIRECTIONS[direction])
    script.events.append(Event(actor, "move", *window, direction))


def _shift(script: Script, actor: int, direction: str, distance: float, sideways: float = 0.0) -> None:
    """Move an actor's whole path."""
    along = np.array(DIRECTIONS[direction])
    across = np.array([0.0, 1.0]) if along[0] else np.array([1.0, 0.0])
    script.paths[actor] += along * distance + across * sideways


def still(stage: Stage, actors: list[Actor]) -> Script:
    """Does nothing."""
    return stage.still(actors)


def move(stage: Stage, actors: list[Actor]) -> Script | None:
    """Travels straight for a good third to three quarters of the clip."""
    lasting, direction = stage.lasting(0.4, 0.72), stage.direction()
    start = stage.starting(lasting)
    speed = stage.speed(direction, 2 * actors[0].radius * outer_radius(actors[0].shape), lasting)
    if start is None or speed is None:
        return None
    script = stage.still(actors)
    _travel(script, 0, stage.frames_of(start, lasting), direction, speed)
    return script


def turn(stage: Stage, actors: list[Actor]) -> Script | None:
    """Travels, then turns by 90 degrees and travels on."""
    first, second = stage.lasting(0.3, 0.5), stage.lasting(0.25, 0.4)
    start = stage.starting(first + second)
    before = stage.direction()
    across = ("up", "down") if before in ("left", "right") else ("left", "right")
    after = across[stage.rng.integers(2)]
    speed = stage.speed(before, 2 * actors[0].radius * outer_radius(actors[0].shape), max(first, second))
    if start is None or speed is None:
        return None
    script = stage.still(actors)
    _travel(script, 0, stage.frames_of(start, first), before, speed)
    _travel(script, 0, stage.frames_of(start + first, second), after, speed)
    script.events.append(Event(0, "turn", *stage.frames_of(start, first + second)))
    return script


def zigzag(stage: Stage, actors: list[Actor]) -> Script | None:
    """Goes there, back and there again; each leg lasts more than a sampled frame."""
    lasting = stage.lasting(0.7, 0.78)
    start = stage.starting(lasting)
    forth = stage.direction()
    speed = stage.speed(forth, 2 * actors[0].radius * outer_radius(actors[0].shape), lasting / 3)
    if start is None or speed is None:
        return None
    script = stage.still(actors)
    first, last = stage.frames_of(start, lasting)
    legs = np.array_split(np.arange(first, last + 1), 3)
    steps = np.zeros(stage.num_frames)
    for sign, leg in zip((1, -1, 1), legs):
        steps[leg] = sign * speed
    script.paths[0] += np.cumsum(steps)[:, None] * np.array(DIRECTIONS[forth])
    axis = "horizontal" if DIRECTIONS[forth][0] else "vertical"
    script.events.append(Event(0, "zigzag", first, last, axis))
    return script


def _resize(stage: Stage, actors: list[Actor], kind: str, factor: float) -> Script | None:
    lasting = stage.lasting(0.4, 0.72)
    start = stage.starting(lasting)
    if start is None:
        return None
    script = stage.still(actors)
    first, last = stage.frames_of(start, lasting)
    progress = np.clip((np.arange(stage.num_frames) - first + 1) / (last - first + 1), 0.0, 1.0)
    script.radii[0] *= 1.0 + (factor - 1.0) * progress
    script.events.append(Event(0, kind, first, last))
    return script


def grow(stage: Stage, actors: list[Actor]) -> Script | None:
    """Gets half as big again."""
    return _resize(stage, actors, "grow", stage.rng.uniform(1.4, 1.65))


def shrink(stage: Stage, actors: list[Actor]) -> Script | None:
    """Loses a third of its size or more."""
    return _resize(stage, actors, "shrink", stage.rng.uniform(0.56, 0.68))


def hide(stage: Stage, actors: list[Actor]) -> Script | None:
    """Goes behind a screen, rests there unseen, and comes out on the other side."""
    actor = actors[0]
    lasting, direction = stage.lasting(0.63, 0.78), stage.direction()
    start = stage.starting(lasting)
    if start is None:
        return None
    along = actor.radius * max(extent(actor.shape, direction), extent(actor.shape, OPPOSITE[direction])) + 1.0
    reach = actor.radius * outer_radius(actor.shape)
    distance = along + reach + stage.rng.uniform(0.6, 2.0)
    first, last = stage.frames_of(start, lasting)
    rest = max(2, round(stage.num_frames / 8))
    inward = (last - first + 1 - rest) // 2
    script = stage.still(actors)
    _travel(script, 0, (first, first + inward - 1), direction, distance / inward)
    outward = last - (first + inward + rest) + 1
    _travel(script, 0, (first + inward + rest, last), direction, distance / outward)
    _shift(script, 0, direction, -distance)
    script.events.append(Event(0, "hide", first, last))
    across = reach + 1.0
    half = (along, across) if DIRECTIONS[direction][0] else (across, along)
    script.screen = (-half[0], -half[1], half[0], half[1])
    return script


def push(stage: Stage, actors: list[Actor]) -> Script | None:
    """a runs into b, then b moves; a stops at the contact or keeps pushing."""
    pusher, pushed = actors
    keeps_on = stage.rng.random() < 0.3
    run = stage.lasting(0.25, 0.38) if keeps_on else stage.lasting(0.36, 0.5)
    carry = stage.lasting(0.5, 0.63)
    start = stage.starting(run + carry)
    direction = stage.direction()
    sideways = stage.rng.uniform(-1.5, 1.5)
    gap = contact_distance(pusher.shape, pusher.radius, pushed.shape, pushed.radius, direction, sideways)
    ends = pusher.radius * outer_radius(pusher.shape) + pushed.radius * outer_radius(pushed.shape)
    speed = stage.speed(direction, gap + ends, run + carry)
    if start is None or speed is None:
        return None
    script = stage.still(actors)
    contact, last = (start + run) * stage.settings.fps, (start + run + carry) * stage.settings.fps - 1
    _travel(script, 0, (start * stage.settings.fps, last if keeps_on else contact - 1), direction, speed)
    _travel(script, 1, (contact, last), direction, speed)
    _shift(script, 1, direction, gap + run * stage.settings.fps * speed, sideways)
    script.events.append(Event(0, "push", contact, last if keeps_on else contact, direction, 1))
    script.events.append(Event(1, "pushed", contact, last, direction, 0))
    return script


def block(stage: Stage, actors: list[Actor]) -> Script | None:
    """a travels until it meets b, which stands in its way; both rest then."""
    mover, blocker = actors
    lasting, direction = stage.lasting(0.5, 0.7), stage.direction()
    rest = max(1, round(stage.seconds / 6))
    start = int(stage.rng.integers(0, max(1, stage.seconds - lasting - rest + 1)))
    if start + lasting >= stage.seconds:
        return None
    sideways = stage.rng.uniform(-1.5, 1.5)
    gap = contact_distance(mover.shape, mover.radius, blocker.shape, blocker.radius, direction, sideways)
    ends = mover.radius * outer_radius(mover.shape) + blocker.radius * outer_radius(blocker.shape)
    speed = stage.speed(direction, gap + ends, lasting)
    if speed is None:
        return None
    script = stage.still(actors)
    window = stage.frames_of(start, lasting)
    _travel(script, 0, window, direction, speed)
    _shift(script, 1, direction, gap + lasting * stage.settings.fps * speed, sideways)
    script.events.append(Event(0, "blocked", *window, direction, 1))
    script.events.append(Event(1, "block", *window, direction, 0))
    return script


def chase(stage: Stage, actors: list[Actor]) -> Script | None:
    """a follows b at the same speed and starts and stops one second later."""
    chaser, leader = actors
    lasting, direction = stage.lasting(0.45, 0.65), stage.direction()
    start = stage.starting(lasting + 1)
    sideways = stage.rng.uniform(-1.0, 1.0)
    gap = contact_distance(chaser.shape, chaser.radius, leader.shape, leader.radius, direction, sideways)
    gap += stage.rng.uniform(1.0, 2.5)
    ends = chaser.radius * outer_radius(chaser.shape) + leader.radius * outer_radius(leader.shape)
    speed = stage.speed(direction, gap + ends, lasting)
    if start is None or speed is None:
        return None
    script = stage.still(actors)
    _travel(script, 1, stage.frames_of(start, lasting), direction, speed)
    _travel(script, 0, stage.frames_of(start + 1, lasting), direction, speed)
    _shift(script, 1, direction, gap, sideways)
    script.events.append(Event(0, "chase", *stage.frames_of(start + 1, lasting), direction, 1))
    script.events.append(Event(1, "chased", *stage.frames_of(start, lasting), direction, 0))
    return script


PAIRS: dict[str, Callable[[Stage, list[Actor]], Script | None]] = {"push": push, "block": block, "chase": chase}
SINGLES: dict[str, Callable[[Stage, list[Actor]], Script | None]] = {
    "move": move,
    "turn": turn,
    "zigzag": zigzag,
    "grow": grow,
    "shrink": shrink,
    "hide": hide,
}
