"""What the cases of :mod:`evaluation.disagreements` are made of: their form, and small masks that need no data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import score_clip

HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True)
class Case:
    """One choice on which two evaluation scripts disagree, although their J and F are the same functions.

    Attributes:
        name: how it is asked for.
        measure: what the two numbers are ("J&F", "F", ...), from 0 to 1.
        first, second: what either script does, as the end of "a script that ...".
        ours: which of the two this project does, 1 or 2; None if it reports both.
        fields: names of the protocol's fields that state the choice.
        explanation: one paragraph or more.
        run: computes (first number, second number).
    """

    name: str
    measure: str
    first: str
    second: str
    ours: int | None
    fields: tuple[str, ...]
    explanation: str
    run: Callable[[], tuple[float, float]]

    @property
    def here(self) -> str:
        """Which side this project is on, and the field of the protocol that says so."""
        side = {1: "the first", 2: "the second", None: "prints both"}[self.ours]
        return ", ".join([side, *(f"`{name}`" for name in self.fields)])


def case(
    first: str, second: str, ours: int | None, *fields: str, measure: str = "J&F"
) -> Callable[[Callable[[], tuple[float, float]]], Case]:
    """Make a :class:`Case` of a function: its name, its docstring (the explanation) and its two numbers."""

    def make(function: Callable[[], tuple[float, float]]) -> Case:
        text = inspect.cleandoc(function.__doc__ or "")
        return Case(function.__name__, measure, first, second, ours, fields, text, function)

    return make


def disc(row: float, column: float, radius: float, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """bool [height, width]: a filled disc."""
    rows, columns = np.ogrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def moving_disc(frames: int = 20, row: float = 24, radius: float = 8) -> np.ndarray:
    """bool [frames, HEIGHT, WIDTH]: a disc that crosses the image from left to right."""
    return np.stack([disc(row, column, radius) for column in np.linspace(10, WIDTH - 11, frames)])


def shifted(masks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The same masks [..., H, W] moved down and to the right; what leaves the image is lost."""
    height, width = masks.shape[-2:]
    moved = np.zeros_like(masks)
    moved[..., max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)] = masks[
        ..., max(-rows, 0) : height + min(-rows, 0), max(-columns, 0) : width + min(-columns, 0)
    ]
    return moved


def during(masks: np.ndarray, first: int, last: int) -> np.ndarray:
    """Masks [T, H, W] emptied outside the frames ``first`` to ``last``."""
    inside = (np.arange(len(masks)) >= first) & (np.arange(len(masks)) <= last)
    return masks & inside[:, None, None]


def jf_frames(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean of J and F of every frame, float64 [T]."""
    j, f = score_clip(truth, predicted)
    return (j + f) / 2


def jf(truth: np.ndarray, predicted: np.ndarray) -> float:
    """J&F of a clip: the mean over its frames."""
    return float(jf_frames(truth, predicted).mean())
