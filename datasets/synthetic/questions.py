"""From the event log to words: what is true of a video, which questions are asked, which expressions refer to its
objects. A fact has exactly one answer, or it is not stated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets.synthetic import phrases
from datasets.synthetic.scene import Event, MotionVideo, WorldExpression, WorldQuestion
from datasets.synthetic.settings import WorldSettings, sampled_frame_indices
from datasets.synthetic.shapes import DIRECTIONS

_MOST_PER_TYPE = 3
_OF_ALL = {"first_start", "last_start"}

Window = tuple[int, int]


@dataclass(frozen=True)
class Fact:
    """A template key of phrases.PHRASES (or PAIR_PHRASES) that holds.

    Attributes:
        key: template.
        answer_ids: the objects that answer it.
        window: inclusive frames in which the answer does what is asked.
        about: object named in the question, or None.
        direction: direction asked for, or None.
    """

    key: str
    answer_ids: tuple[int, ...]
    window: Window
    about: int | None = None
    direction: str | None = None


class EventLog:
    """Answers questions about a list of events.

    Args:
        events: the log.
        num_frames: T.
        gap: two starts (or stops) at least this many frames apart count as one after the other.
    """

    def __init__(self, events: list[Event], num_frames: int, gap: int):
        self.events, self.num_frames, self.gap = events, num_frames, gap
        self.travels: dict[int, Window] = {}
        for event in self.of("move", "zigzag"):
            first, last = self.travels.get(event.object_id, (event.start, event.end))
            self.travels[event.object_id] = (min(first, event.start), max(last, event.end))

    def of(self, *kinds: str) -> list[Event]:
        """All events of these kinds."""
        return [event for event in self.events if event.kind in kinds]

    def moving(self, direction: str) -> dict[int, Window] | None:
        """Object id -> when it moves that way; None if a zigzag along that axis makes "moves left" unclear."""
        axis = "horizontal" if DIRECTIONS[direction][0] else "vertical"
        if any(event.direction == axis for event in self.of("zigzag")):
            return None
        found: dict[int, Window] = {}
        for event in self.of("move"):
            if event.direction == direction:
                first, last = found.get(event.object_id, (event.start, event.end))
                found[event.object_id] = (min(first, event.start), max(last, event.end))
        return found

    def facts(self) -> list[Fact]:
        """Every fact with one answer."""
        return [*self._descriptive(), *self._sequential(), *self._pairs()]

    def pair_facts(self) -> list[Fact]:
        """Facts whose answer is exactly two objects; the window spans both."""
        found = []
        if len(self.travels) == 2:
            found.append(_joint("both_move", self.travels))
        for direction in DIRECTIONS:
            movers = self.moving(direction)
            if movers is not None and len(movers) == 2:
                found.append(_joint("both_direction", movers, direction))
        contacts = self.of("push", "blocked")
        if len(contacts) == 1:
            event = contacts[0]
            mover = self.travels[event.object_id]
            other = self.travels.get(event.partner, mover)
            found.append(_joint("touch", {event.object_id: mover, event.partner: other}))
        return found

    def _descriptive(self) -> Iterator[Fact]:
        for direction in DIRECTIONS:
            movers = self.moving(direction)
            if movers is not None and len(movers) == 1:
                ((answer, window),) = movers.items()
                yield Fact("moves", (answer,), window, direction=direction)
        keys = {"grow": "grows", "shrink": "shrinks", "hide": "hides", "zigzag": "zigzags"}
        keys |= {"chased": "is_chased", "chase": "chases"}
        if not self.of("zigzag"):
            keys["turn"] = "turns"
        for kind, key in keys.items():
            found = self.of(kind)
            if len(found) == 1:
                yield Fact(key, (found[0].object_id,), (found[0].start, found[0].end))

    def _sequential(self) -> Iterator[Fact]:
        travels = self.travels
        if len(travels) < 2:
            return
        by_start = sorted(travels, key=lambda item: travels[item][0])
        by_stop = sorted(travels, key=lambda item: travels[item][1])
        starts = [travels[item][0] for item in by_start]
        stops = [travels[item][1] for item in by_stop]
        if starts[1] - starts[0] >= self.gap:
            yield Fact("first_start", (by_start[0],), travels[by_start[0]])
        if starts[-1] - starts[-2] >= self.gap:
            yield Fact("last_start", (by_start[-1],), travels[by_start[-1]])
        if stops[1] - stops[0] >= self.gap:
            yield Fact("first_stop", (by_stop[0],), travels[by_stop[0]])
        if stops[-1] - stops[-2] >= self.gap and stops[-1] < self.num_frames - 1:
            yield Fact("last_stop", (by_stop[-1],), travels[by_stop[-1]])
        for about, (start, stop) in travels.items():
            later = [item for item in travels if travels[item][0] >= start + self.gap]
            earlier = [item for item in travels if travels[item][0] <= start - self.gap]
            afterwards = [item for item in travels if travels[item][0] > stop]
            for key, found in (("after_start", later), ("before_start", earlier), ("after_stop", afterwards)):
                if len(found) == 1:
                    yield Fact(key, (found[0],), travels[found[0]], about)

    def _pairs(self) -> Iterator[Fact]:
        for event in self.of("push"):
            pusher, pushed = event.object_id, event.partner
            for key in ("push_object", "hit_object", "cf_still"):
                yield Fact(key, (pushed,), self.travels[pushed], pusher)
            for key in ("pusher", "cf_pusher"):
                yield Fact(key, (pusher,), self.travels[pusher], pushed)
            others = [item for item in self.travels if item not in (pusher, pushed)]
            if len(others) == 1:
                yield Fact("cf_others", (others[0],), self.travels[others[0]], pusher)
        for event in self.of("blocked"):
            mover, blocker, window = event.object_id, event.partner, (event.start, event.end)
            for key in ("blocker", "cf_blocker"):
                yield Fact(key, (blocker,), window, mover)
            for key in ("blocked", "cf_blocked"):
                yield Fact(key, (mover,), window, blocker)
        for event in self.of("chase"):
            chaser, leader = event.object_id, event.partner
            for key in ("leader", "cf_leader"):
                yield Fact(key, (leader,), self.travels[leader], chaser)
            yield Fact("cf_chaser", (chaser,), self.travels[chaser], leader)


def _joint(key: str, windows: dict[int, Window], direction: str | None = None) -> Fact:
    span = (min(first for first, _ in windows.values()), max(last for _, last in windows.values()))
    return Fact(key, tuple(sorted(windows)), span, direction=direction)


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _say(phrase: str, fact: Fact, video: MotionVideo, rng: np.random.Generator, noun: str = "object") -> str:
    values = {"noun": noun}
    if fact.about is not None:
        values["x"] = f"the {video.name_of(fact.about)}"
    if fact.direction is not None:
        values["d"] = _pick(phrases.DIRECTION_WORDS[fact.direction], rng)
    return phrase.format(**values)


def _long_enough(fact: Fact, video: MotionVideo) -> bool:
    sampled = sampled_frame_indices(video.num_frames)
    inside = (sampled >= fact.window[0]) & (sampled <= fact.window[1])
    return int(inside.sum()) >= video.settings.min_window_frames


def _as_question(fact: Fact, video: MotionVideo, rng: np.random.Generator) -> WorldQuestion:
    q_type, wordings = {**phrases.PHRASES, **phrases.PAIR_PHRASES}[fact.key]
    answer = " and ".join(f"the {video.name_of(item)}" for item in fact.answer_ids)
    return WorldQuestion(
        _say(_pick(wordings, rng), fact, video, rng), q_type, fact.answer_ids, answer, fact.window, fact.key
    )


def _order(facts: list[Fact], settings: WorldSettings, rng: np.random.Generator) -> list[Fact]:
    """A weighted shuffle; facts of weight 0 are dropped."""
    weights = np.array([settings.question_weights.get(fact.key, 1.0) for fact in facts])
    keys = rng.exponential(size=len(facts)) / np.maximum(weights, 1e-9)
    return [facts[item] for item in np.argsort(keys) if weights[item] > 0]


def ask(video: MotionVideo, log: EventLog, rng: np.random.Generator, two_answers: bool) -> list[WorldQuestion]:
    """Choose questions, balanced over the types and, where possible, with different answers and windows.

    Args:
        video: its objects and settings; the questions are returned, not stored.
        log: the video's events.
        rng: dice.
        two_answers: also ask for two objects once, if the video allows.

    Returns:
        At most ``settings.max_questions``; fewer than ``settings.min_questions`` if the video yields no more.
    """
    by_type: dict[str, list[Fact]] = {"Causal": [], "Counterfactual": [], "Sequential": [], "Descriptive": []}
    for fact in log.facts():
        if _long_enough(fact, video):
            by_type[phrases.PHRASES[fact.key][0]].append(fact)
    queues = [_order(facts, video.settings, rng) for facts in by_type.values()]
    chosen: list[Fact] = []
    for _ in range(_MOST_PER_TYPE):
        for queue in queues:
            if not queue or len(chosen) >= video.settings.max_questions:
                continue
            used = [(fact.answer_ids, fact.window) for fact in chosen]
            fresh = [fact for fact in queue if fact.key not in {other.key for other in chosen}] or queue
            best = min(fresh, key=lambda fact: used.count((fact.answer_ids, fact.window)))
            queue.remove(best)
            chosen.append(best)
    asked = [_as_question(fact, video, rng) for fact in chosen]
    if two_answers:
        pairs = [fact for fact in log.pair_facts() if _long_enough(fact, video)]
        if pairs:
            asked.append(_as_question(_pick(pairs, rng), video, rng))
    return asked


def describe(video: MotionVideo, log: EventLog, rng: np.random.Generator) -> list[WorldExpression]:
    """Referring expressions: one or two plain ones per object, motion ones from the facts, some for several objects."""
    found = [expression for target in video.objects for expression in _plain(video, target.object_id, rng)]
    for fact in log.facts():
        if fact.key not in phrases.MOTION_PHRASES:
            continue
        answer = video.objects[fact.answer_ids[0] - 1]
        noun = _pick(("object", "object", answer.shape), rng)
        if fact.key in _OF_ALL:
            noun = "object"  # the first of all to move need not be the first circle that was meant
        text = _say(_pick(phrases.MOTION_PHRASES[fact.key], rng), fact, video, rng, noun)
        found.append(WorldExpression(text, fact.answer_ids, "motion"))
    return found + _several(video, log, rng)


def _plain(video: MotionVideo, object_id: int, rng: np.random.Generator) -> list[WorldExpression]:
    """The object by its looks: its name, and one more where colour, shape or size alone tell it apart."""
    target = video.objects[object_id - 1]
    texts = [_pick(phrases.PLAIN_PHRASES, rng).format(name=target.name)]
    others = [other for other in video.objects if other is not target]
    extra = []
    if all(other.colour != target.colour for other in others):
        extra.append(f"the {target.colour} one")
    if all(other.shape != target.shape for other in others):
        extra.append(f"the only {target.shape}")
    radii = video.radii
    rest = np.delete(radii, object_id - 1, axis=0)
    if radii[object_id - 1].min() > 1.15 * rest.max():
        extra.append(f"the big {target.name}")
    if radii[object_id - 1].max() < rest.min() / 1.15:
        extra.append(f"the small {target.name}")
    if extra:
        texts.append(_pick(extra, rng))
    return [WorldExpression(text, (object_id,), "plain") for text in texts]


def _several(video: MotionVideo, log: EventLog, rng: np.random.Generator) -> list[WorldExpression]:
    """Expressions for groups of two or more."""
    everyone = tuple(target.object_id for target in video.objects)
    resized = {event.object_id for event in log.of("grow", "shrink")}
    groups: list[tuple[str, tuple[int, ...], dict[str, str]]] = [
        ("movers", tuple(sorted(log.travels)), {}),
        ("stills", tuple(item for item in everyone if item not in log.travels and item not in resized), {}),
    ]
    for direction, words in phrases.DIRECTION_WORDS.items():
        movers = log.moving(direction)
        if movers:
            groups.append(("direction", tuple(sorted(movers)), {"d": _pick(words, rng)}))
    for shape in sorted({target.shape for target in video.objects}):
        same = tuple(target.object_id for target in video.objects if target.shape == shape)
        groups.append(("shape", same, {"nouns": shape + ("es" if shape.endswith("s") else "s")}))
    return [
        WorldExpression(_pick(phrases.MULTI_PHRASES[key], rng).format(**values), ids, "multi")
        for key, ids, values in groups
        if len(ids) >= 2
    ]
