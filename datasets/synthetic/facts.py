"""What is true of a video, read off its event log: each fact has exactly one answer, or it is not stated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from datasets.synthetic.scene import Event
from datasets.synthetic.shapes import DIRECTIONS

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
