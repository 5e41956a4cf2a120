"""Making videos: cast the objects, run the scripts, find room for them, and ask what can be asked."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np

from datasets.synthetic.events import EDGE, PAIRS, SINGLES, Actor, Script, Stage, still
from datasets.synthetic.placement import Placement
from datasets.synthetic.questions import EventLog, ask, describe
from datasets.synthetic.scene import Event, MotionVideo, WorldExpression, WorldObject
from datasets.synthetic.settings import COLOURS, SHAPES, WorldSettings
from datasets.synthetic.shapes import outer_radius
from utils.errors import ConfigError

SPLITS = {"train": 0, "test": 1, "valid": 2}
"""Splits never share a video: each has its own random streams."""

_STILL_STREAM = 9
_ATTEMPTS = 60
_SCRIPT_TRIES = 6
_GROW_LIMIT = 0.6
"""What grows (shrinks) starts in the lower (upper) part of the range of radii."""


def make_video(seed: int, index: int, settings: WorldSettings, split: str = "train") -> MotionVideo:
    """Simulate one video. The result depends on the arguments alone.

    Args:
        seed: of the corpus, non-negative.
        index: of the video in the corpus, non-negative.
        settings: the world.
        split: one of SPLITS.

    Raises:
        ConfigError: unknown split, or the settings leave no room (too many or too large objects).
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    for attempt in range(_ATTEMPTS):
        key = (seed, index, SPLITS[split], attempt)
        rng = np.random.default_rng(key)
        video = _simulate(key, settings, rng)
        if video is None:
            continue
        log = EventLog(video.events, video.num_frames, settings.fps)
        two_answers = split == "train" and rng.random() < settings.multi_answer_rate
        video.questions = ask(video, log, rng, two_answers)
        if len(video.questions) < settings.min_questions:
            continue
        video.expressions = describe(video, log, rng)
        return video
    raise ConfigError(
        f"no video of {settings.min_objects}..{settings.max_objects} objects of radius {settings.radius} with "
        f"{settings.min_questions} questions came out in {_ATTEMPTS} attempts; use fewer or smaller objects"
    )


def make_still_video(seed: int, index: int, settings: WorldSettings, num_frames: int) -> MotionVideo:
    """The same objects scattered anew on every frame: they can be seen and named, but nothing moves.

    Args:
        seed, index: as in make_video; the streams are different ones.
        settings: the world; its events are not used.
        num_frames: independent frames to make.

    Returns:
        A video with plain expressions and neither events nor questions. Objects may partly overlap.
    """
    key = (seed, index, _STILL_STREAM, 0)
    rng = np.random.default_rng(key)
    objects = _cast(settings, rng)
    outer = np.array([outer_radius(target.shape) for target in objects])
    low, high = settings.radius[0] * 0.6, settings.radius[1] * 1.3
    centres = np.empty((len(objects), num_frames, 2))
    radii = np.empty((len(objects), num_frames))
    for frame in range(num_frames):
        radii[:, frame] = rng.uniform(*settings.radius, size=len(objects))
        odd = rng.random(len(objects)) < 0.25
        radii[odd, frame] = rng.uniform(low, high, size=int(odd.sum()))
        centres[:, frame] = _scatter(settings, radii[:, frame] * outer, rng)
    video = MotionVideo(settings, key, num_frames, objects, centres, radii, scattered=True)
    video.expressions = [WorldExpression(f"the {target.name}", (target.object_id,), "plain") for target in objects]
    return video


def _scatter(settings: WorldSettings, outer: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 [K, 2]: positions drawn in turn, each the least crowded of a few."""
    placed = np.empty((0, 2))
    for number, radius in enumerate(outer):
        tried = rng.uniform(radius + EDGE, settings.canvas - radius - EDGE, size=(6, 2))
        distance = np.linalg.norm(tried[:, None] - placed[None], axis=-1) - (outer[:number] + radius)
        crowding = np.minimum(distance, 0.0).min(axis=1, initial=0.0)
        placed = np.concatenate([placed, tried[crowding.argmax()][None]])
    return placed


def _cast(settings: WorldSettings, rng: np.random.Generator) -> list[WorldObject]:
    """Draw how many objects there are and what they look like; names are unique."""
    count = int(rng.integers(settings.min_objects, settings.max_objects + 1))
    colours = list(COLOURS)[: settings.num_colours]
    shapes = list(SHAPES)[: settings.num_shapes]
    if settings.palette:
        some = rng.permutation(len(colours))[: settings.palette]
        others = rng.permutation(len(shapes))[: settings.palette]
        looks = [(colours[i], shapes[j]) for i, j in product(some, others)]
        chosen = [looks[item] for item in rng.permutation(len(looks))[:count]]
    else:
        chosen = [(colours[item], shapes[rng.integers(len(shapes))]) for item in rng.permutation(len(colours))[:count]]
    return [WorldObject(number + 1, colour, shape) for number, (colour, shape) in enumerate(chosen)]


def _draw_radii(settings: WorldSettings, count: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [count]: mostly in the range of the settings, some as large or small as grown or shrunken objects."""
    radii = rng.uniform(*settings.radius, size=count)
    low, high = settings.radius
    large, small = rng.uniform(high, high * 1.25, size=count), rng.uniform(low * 0.7, low, size=count)
    kind = rng.random(count) / max(settings.odd_size_rate, 1e-9)
    return np.where(kind < 0.5, large, np.where(kind < 1.0, small, radii))


def _simulate(key: tuple[int, ...], settings: WorldSettings, rng: np.random.Generator) -> MotionVideo | None:
    """One attempt at a video without questions; None if an object found no room."""
    jitter = int(rng.integers(-settings.length_jitter, settings.length_jitter + 1))
    num_frames = settings.num_frames + jitter * settings.fps
    objects = _cast(settings, rng)
    radii = _draw_radii(settings, len(objects), rng)
    stage = Stage(settings, num_frames, rng)
    placement = Placement(settings.canvas, num_frames, settings.overlap, rng)
    slots = list(rng.permutation(len(objects)))
    order: list[int] = []
    events: list[Event] = []

    def run(kinds: list[str], scripts: dict, count: int) -> bool:
        """Try kinds in turn until one is placed with the next ``count`` free objects."""
        if len(slots) < count:
            return False
        for kind in kinds:
            actors = _choose_actors(kind, slots, count, radii, settings, rng)
            roles = [Actor(objects[slot].shape, radii[slot]) for slot in actors]
            script = scripts[kind](stage, roles)
            if script is None:
                continue
            beside = kind == "still" and order and rng.random() < settings.neighbour_rate
            if not (beside and placement.add_neighbour(script, roles[0], [objects[slot].shape for slot in order])):
                if not placement.add(script, roles):
                    continue
            for slot in actors:
                slots.remove(slot)
            order.extend(actors)
            events.extend(_with_ids(script, actors))
            return True
        return False

    for chosen, count in _plan(settings, len(objects), rng):
        run(chosen, PAIRS if count == 2 else SINGLES, count)
    while slots:
        if not any(run(["still"], {"still": still}, 1) for _ in range(3)):
            return None
    if placement.screen is None and rng.random() < settings.screen_rate:
        placement.add_empty_screen(*rng.uniform(6.5, 10.5, size=2))
    places = np.argsort(order)
    centres, sizes = np.stack(placement.paths)[places], np.stack(placement.radii)[places]
    events.sort(key=lambda event: (event.start, event.end, event.object_id, event.kind))
    return MotionVideo(settings, key, num_frames, objects, centres, sizes, placement.screen, events)


def _plan(settings: WorldSettings, num_objects: int, rng: np.random.Generator) -> list[tuple[list[str], int]]:
    """What should happen: (kinds to try in turn, actors needed), leaving at least one object that does nothing."""
    weights = settings.event_weights
    pairs = _draw((*PAIRS, "alone"), weights, 1 + settings.max_second_pairs, rng)
    plan: list[tuple[list[str], int]] = [([kind] * _SCRIPT_TRIES, 2) for kind in pairs if kind != "alone"]
    free = num_objects - 1 - 2 * len(plan)
    most = min(free, 3 if settings.max_objects > 5 else 2 if plan else 3)
    singles = int(rng.integers(min(1 if plan else 2, most), most + 1))
    for _ in range(singles):
        (first,) = _draw(tuple(SINGLES), weights, 1, rng)
        (second,) = _draw(tuple(SINGLES), weights, 1, rng)
        plan.append(([first] * _SCRIPT_TRIES + [second] * _SCRIPT_TRIES + ["move"] * _SCRIPT_TRIES, 1))
    return plan


def _draw(kinds: tuple[str, ...], weights: dict[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` different kinds by weight."""
    shares = np.array([max(0.0, weights.get(kind, 0.0)) for kind in kinds])
    if not shares.any():
        raise ConfigError(f"event_weights: one of {', '.join(kinds)} needs a weight above 0")
    count = min(count, int((shares > 0).sum()))
    return [str(kind) for kind in rng.choice(kinds, size=count, replace=False, p=shares / shares.sum())]


def _choose_actors(
    kind: str, slots: list[int], count: int, radii: np.ndarray, settings: WorldSettings, rng: np.random.Generator
) -> list[int]:
    """The next free objects in a random order; what grows must be smallish and what shrinks largish to begin with."""
    actors = [int(slots[item]) for item in rng.permutation(len(slots))[:count]]
    low, high = settings.radius
    if kind == "grow":
        radii[actors[0]] = rng.uniform(low, low + (high - low) * _GROW_LIMIT)
    if kind == "shrink":
        radii[actors[0]] = rng.uniform(high - (high - low) * _GROW_LIMIT, high)
    return actors


def _with_ids(script: Script, actors: list[int]) -> list[Event]:
    """The script's events with object ids in place of actor positions."""
    return [
        dataclasses.replace(
            event,
            object_id=actors[event.object_id] + 1,
            partner=None if event.partner is None else actors[event.partner] + 1,
        )
        for event in script.events
    ]
