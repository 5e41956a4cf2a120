"""What a video of the motion world is made of: objects, the event log, questions, expressions, the video itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from datasets.synthetic.settings import WorldSettings


@dataclass(frozen=True)
class WorldObject:
    """One object: its id (1..K, also its place in the drawing order) and its looks."""

    object_id: int
    colour: str
    shape: str

    @property
    def name(self) -> str:
        """For example "red circle"; unique in its video."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Event:
    """One line of the event log.

    Attributes:
        object_id: who does it (or whom it happens to, for "pushed" and "blocked").
        kind: "move" (straight), "turn", "zigzag", "grow", "shrink", "hide", "push", "pushed", "chase", "chased",
            "block" (standing in the way) or "blocked". Everything that travels has "move" or "zigzag" events.
        start, end: first and last frame, inclusive. For "move" and "zigzag" these are exactly the frames whose
            position differs from the frame before.
        direction: "left", "right", "up", "down"; "horizontal" or "vertical" for "zigzag"; else None.
        partner: the other object of "push", "pushed", "chase", "chased", "block", "blocked".
    """

    object_id: int
    kind: str
    start: int
    end: int
    direction: str | None = None
    partner: int | None = None


@dataclass(frozen=True)
class WorldQuestion:
    """A question with its answer, true by the event log.

    Attributes:
        text: for example "What does the red square push?".
        q_type: "Causal", "Sequential", "Counterfactual" or "Descriptive".
        answer_ids: one object id (two for the few questions that ask for two objects).
        answer: "the red circle".
        window: inclusive (first, last) frame of the answer's relevant activity.
        key: which template, see phrases.PHRASES.
    """

    text: str
    q_type: str
    answer_ids: tuple[int, ...]
    answer: str
    window: tuple[int, int]
    key: str


@dataclass(frozen=True)
class WorldExpression:
    """A referring expression over the whole clip.

    Attributes:
        text: for example "the circle that moves left".
        object_ids: what it means; may be several.
        kind: "plain" (looks), "motion" or "multi" (several objects).
    """

    text: str
    object_ids: tuple[int, ...]
    kind: str


@dataclass
class MotionVideo:
    """A simulated clip; :class:`datasets.synthetic.render.Renderer` draws it.

    Attributes:
        settings: of the world it was made in.
        key: integers that seed its pixels.
        num_frames: T.
        objects: ids 1..K in order.
        centres: float64 [K, T, 2], x and y in world units.
        radii: float64 [K, T] in world units.
        screen: (x0, y0, x1, y1) of an opaque panel in front of all objects, in world units, or None.
        events, questions, expressions: see the classes.
    """

    settings: WorldSettings
    key: tuple[int, ...]
    num_frames: int
    objects: list[WorldObject]
    centres: np.ndarray
    radii: np.ndarray
    screen: tuple[float, float, float, float] | None = None
    events: list[Event] = field(default_factory=list)
    questions: list[WorldQuestion] = field(default_factory=list)
    expressions: list[WorldExpression] = field(default_factory=list)
    scattered: bool = False

    def name_of(self, object_id: int) -> str:
        """Name of an object without article."""
        return self.objects[object_id - 1].name
