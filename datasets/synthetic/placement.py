"""Where things stand: paths are shifted so that everything stays on the canvas and meets only as scripted."""

from __future__ import annotations

import numpy as np

from datasets.synthetic.events import EDGE, Actor, Script
from datasets.synthetic.shapes import DIRECTIONS, contact_distance, outer_radius

MARGIN = 1.2
"""Unrelated objects keep this many world units between their outlines."""

Box = tuple[float, float, float, float]


class Placement:
    """The objects placed so far and the search for room for the next.

    Args:
        canvas: [2] width and height in world units.
        num_frames: T.
        overlap: see WorldSettings.overlap.
        rng: dice.
        tries: positions tried per script.
    """

    def __init__(self, canvas: np.ndarray, num_frames: int, overlap: float, rng: np.random.Generator, tries: int = 32):
        self.canvas, self.overlap, self.rng, self.tries = canvas, overlap, rng, tries
        self._check = np.unique(np.append(np.arange(0, num_frames, 2), num_frames - 1))
        self.paths: list[np.ndarray] = []
        self.radii: list[np.ndarray] = []
        self._outer: list[np.ndarray] = []
        self.screen: Box | None = None

    def add(self, script: Script, actors: list[Actor]) -> bool:
        """Find room for a script's actors (and screen); False and no change if there is none.

        Returns:
            True if the paths were placed; they are appended to ``paths`` and ``radii`` in the order of the actors.
        """
        if script.screen is not None and self.screen is not None:
            return False
        outer = script.radii * np.array([outer_radius(actor.shape) for actor in actors])[:, None]  # [g, T]
        origins = self._origins(script, outer)
        if origins is None:
            return False
        checked = script.paths[:, self._check][None] + origins[:, None, None]  # [n, g, t, 2]
        free = self._clear_of_objects(checked, outer[:, self._check])
        if self.screen is not None:
            free &= _clear_of_box(checked, outer[:, self._check], np.array(self.screen)[None])
        if script.screen is not None and self.paths:
            boxes = np.array(script.screen)[None] + np.tile(origins, 2)  # [n, 4]
            placed = np.stack(self.paths)[:, self._check]
            placed_outer = np.stack(self._outer)[:, self._check]
            free &= _clear_of_box(placed[None], placed_outer, boxes)
        choices = np.flatnonzero(free)
        if not len(choices):
            return False
        origin = origins[choices[0]]
        self._keep(script, outer, origin)
        if script.screen is not None:
            self.screen = tuple(float(edge) for edge in np.array(script.screen) + np.tile(origin, 2))
        return True

    def add_neighbour(self, script: Script, actor: Actor, shapes: list[str]) -> bool:
        """Put a resting object right beside a placed one (where that one starts or ends), never in its way.

        Args:
            script: one actor that does not move.
            actor: its shape and radius.
            shapes: of the placed objects, in the order of ``paths``.

        Returns:
            False and no change if no such place was found.
        """
        outer = script.radii * outer_radius(actor.shape)
        for _ in range(self.tries // 4):
            host = int(self.rng.integers(len(self.paths)))
            path, radii = self.paths[host], self.radii[host]
            frame = 0 if self.rng.random() < 0.5 else -1
            travelled = np.abs(path[-1] - path[0]) + np.abs(path - path[0]).max(axis=0)
            sides = [name for name, unit in DIRECTIONS.items() if not np.abs(np.array(unit)) @ travelled > 0]
            if not sides or radii[0] != radii[-1]:
                continue
            side = sides[int(self.rng.integers(len(sides)))]
            sideways = self.rng.uniform(-2.0, 2.0)
            gap = contact_distance(shapes[host], radii[0], actor.shape, actor.radius, side, sideways) + 0.2
            along = np.array(DIRECTIONS[side])
            origin = path[frame] + along * gap + np.abs(along[::-1]) * sideways
            inside = (origin - outer[0, 0] >= EDGE).all() and (origin + outer[0, 0] <= self.canvas - EDGE).all()
            checked = (script.paths + origin)[None, :, self._check]
            if not inside or not self._clear_of_objects(checked, outer[:, self._check], skip=host)[0]:
                continue
            if self.screen is not None:
                if not _clear_of_box(checked, outer[:, self._check], np.array(self.screen)[None])[0]:
                    continue
            self._keep(script, outer, origin)
            return True
        return False

    def _keep(self, script: Script, outer: np.ndarray, origin: np.ndarray) -> None:
        self.paths.extend(script.paths + origin)
        self.radii.extend(script.radii)
        self._outer.extend(outer)

    def add_empty_screen(self, half_width: float, half_height: float) -> bool:
        """Put a screen behind which nothing hides, clear of all objects; False if there is no room."""
        half = np.array([half_width, half_height])
        low, high = half * 0.5, self.canvas - half * 0.5
        centres = self.rng.uniform(low, high, size=(self.tries, 2))
        boxes = np.concatenate([centres - half, centres + half], axis=1)
        placed, outer = np.stack(self.paths)[:, self._check], np.stack(self._outer)[:, self._check]
        choices = np.flatnonzero(_clear_of_box(placed[None], outer, boxes))
        if not len(choices):
            return False
        self.screen = tuple(float(edge) for edge in boxes[choices[0]])
        return True

    def _origins(self, script: Script, outer: np.ndarray) -> np.ndarray | None:
        """float64 [tries, 2]: origins that keep the whole script on the canvas; None if it is too large."""
        low = -(script.paths - outer[..., None]).min(axis=(0, 1)) + EDGE
        high = self.canvas - (script.paths + outer[..., None]).max(axis=(0, 1)) - EDGE
        if (low > high).any():
            return None
        return self.rng.uniform(low, high, size=(self.tries, 2))

    def _clear_of_objects(self, checked: np.ndarray, outer: np.ndarray, skip: int | None = None) -> np.ndarray:
        """bool [n]: which candidates keep their distance to every placed object (but ``skip``) at every frame."""
        others = [number for number in range(len(self.paths)) if number != skip]
        if not others:
            return np.ones(len(checked), dtype=bool)
        placed = np.stack([self.paths[number][self._check] for number in others])  # [k, t, 2]
        placed_outer = np.stack([self._outer[number][self._check] for number in others])
        offsets = checked[:, :, None] - placed[None, None]  # [n, g, k, t, 2]
        distance = (offsets[..., 0] ** 2 + offsets[..., 1] ** 2) ** 0.5
        needed = (outer[:, None] + placed_outer[None]) * (1.0 - self.overlap) + (0.0 if self.overlap else MARGIN)
        return (distance >= needed[None]).all(axis=(1, 2, 3))


def _clear_of_box(paths: np.ndarray, outer: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """bool [n]: no object comes within MARGIN of its box.

    Args:
        paths: [n or 1, g, t, 2]; outer: [g, t]; boxes: [n or 1, 4].
    """
    low, high = boxes[:, None, None, :2], boxes[:, None, None, 2:]
    gap = np.maximum(np.maximum(low - paths, paths - high), 0.0)
    distance = (gap[..., 0] ** 2 + gap[..., 1] ** 2) ** 0.5
    return (distance >= outer[None] + MARGIN).all(axis=(1, 2))
