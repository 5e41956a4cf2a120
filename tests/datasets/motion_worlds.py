"""Pictures of the motion world's videos for tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datasets.synthetic import Renderer


def render(video, frames: Iterable[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB [n, H, W, 3] and id maps [n, H, W] of some frames, by default of all."""
    return Renderer(video).render(range(video.num_frames) if frames is None else frames)


def id_maps(video, frames: Iterable[int] | None = None) -> np.ndarray:
    """The id maps alone."""
    return render(video, frames)[1]
