"""Drawing: textured objects over a noisy, possibly drifting background, and the id map that says whose pixel it is."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from datasets.synthetic.scene import MotionVideo
from datasets.synthetic.settings import COLOURS
from datasets.synthetic.shapes import draw_alpha, outer_radius

_LOOKS_STREAM, _NOISE_STREAM = 11, 12
_TINT, _GRAIN, _STRIPE, _STRIPE_RATE = 10.0, 12.0, 18.0, 0.4
_PIXEL_NOISE, _SENSOR_NOISE = 7.0, 3.0
_SCREEN_COLOUR = (112.0, 98.0, 84.0)


class Renderer:
    """Draws the frames of one video; built once per video, then reused for any frames.

    Args:
        video: what to draw.
    """

    def __init__(self, video: MotionVideo):
        self.video = video
        settings = video.settings
        self.height, self.width, self.scale = settings.height, settings.width, settings.scale
        rng = np.random.default_rng([*video.key, _LOOKS_STREAM])
        drifts = rng.random() < settings.drift_rate
        angle = rng.uniform(0, 2 * math.pi)
        speed = rng.uniform(0.3, 1.0) * settings.drift * self.scale * 8 / video.num_frames if drifts else 0.0
        self._drift = speed * np.array([math.cos(angle), math.sin(angle)])
        reach = int(math.ceil(speed * video.num_frames)) + 1
        self._reach = reach
        self._wide_background = self._make_background(rng, self.height + 2 * reach, self.width + 2 * reach)
        self._textures = [self._make_texture(rng, index) for index in range(len(video.objects))]
        self._screen_texture = self._grain(rng, self.height, self.width, _GRAIN) + np.array(_SCREEN_COLOUR, np.float32)

    def render(self, frame_indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Draw some frames.

        Args:
            frame_indices: n integers in 0..T-1.

        Returns:
            uint8 [n, H, W, 3] RGB frames and uint8 [n, H, W] id maps (0 background, 1..K objects, after occlusion).
        """
        indices = [int(index) for index in frame_indices]
        frames = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        id_maps = np.zeros((len(indices), self.height, self.width), dtype=np.uint8)
        for position, index in enumerate(indices):
            canvas = self._background(index)
            self._draw_objects(index, id_maps[position], canvas)
            rng = np.random.default_rng([*self.video.key, _NOISE_STREAM, index])
            canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(_SENSOR_NOISE)
            frames[position] = np.clip(canvas, 0, 255, out=canvas)
        return frames, id_maps

    def _grain(self, rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
        """float32 [height, width, 1] noise whose grain is one world unit or one pixel, whichever is larger."""
        rows = max(2, math.ceil(height / max(self.scale, 1.0)))
        columns = max(2, math.ceil(width / max(self.scale, 1.0)))
        noise = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(sigma)
        if (rows, columns) != (height, width):
            noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        return noise[..., None]

    def _make_background(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """float32 [height, width, 3]: a base colour, smooth colour noise, lines and blobs."""
        base = rng.uniform(40, 140, size=3)
        cells = (max(3, round(height / self.scale / 8)), max(3, round(width / self.scale / 8)))
        coarse = rng.standard_normal((*cells, 3), dtype=np.float32) * np.float32(22.0)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + base.astype(np.float32)
        thickness = max(1, round(self.scale))
        for item in range(self.video.settings.clutter):
            colour = (base + rng.normal(0, 32, size=3)).clip(20, 190).tolist()
            start = (int(rng.integers(width)), int(rng.integers(height)))
            end = (int(rng.integers(width)), int(rng.integers(height)))
            blob_radius = max(1, round(rng.uniform(1.0, 2.6) * self.scale))
            if item % 3 == 2:
                cv2.circle(image, start, blob_radius, colour, -1)
            else:
                cv2.line(image, start, end, colour, thickness)
        return image + self._grain(rng, height, width, _PIXEL_NOISE)

    def _make_texture(self, rng: np.random.Generator, index: int) -> np.ndarray:
        """float32 [s, s, 3]: an object's colour with tint, grain and perhaps stripes; moves along with the object."""
        target = self.video.objects[index]
        half = int(math.ceil(self.video.radii[index].max() * outer_radius(target.shape) * self.scale)) + 3
        side = 2 * half
        colour = np.array(COLOURS[target.colour]) + rng.normal(0, _TINT, size=3)
        texture = self._grain(rng, side, side, _GRAIN) + colour.astype(np.float32)
        striped, angle, phase = rng.random() < _STRIPE_RATE, rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
        if striped:
            grid = np.arange(side, dtype=np.float32) / np.float32(self.scale)
            waves = grid[None, :] * math.cos(angle) + grid[:, None] * math.sin(angle)
            texture += (_STRIPE * np.sin(waves * 1.7 + phase)).astype(np.float32)[..., None]
        return texture

    def _background(self, index: int) -> np.ndarray:
        """float32 [H, W, 3]: the part of the background that frame ``index`` shows; a copy."""
        reach = self._reach
        if self.video.scattered:
            rng = np.random.default_rng([*self.video.key, _LOOKS_STREAM, index])
            shift = rng.integers(-reach, reach + 1, size=2)
        else:
            shift = np.round(self._drift * index).astype(int)
        x, y = reach + int(shift[0]), reach + int(shift[1])
        return self._wide_background[y : y + self.height, x : x + self.width].copy()

    def _draw_objects(self, index: int, id_map: np.ndarray, canvas: np.ndarray) -> None:
        """Draw the objects in id order, then the screen, into ``id_map`` and ``canvas``."""
        video = self.video
        for number, target in enumerate(video.objects):
            centre = video.centres[number, index] * self.scale
            radius = float(video.radii[number, index]) * self.scale
            half = int(math.ceil(radius * outer_radius(target.shape))) + 2
            x0, y0 = max(0, int(centre[0]) - half), max(0, int(centre[1]) - half)
            x1, y1 = min(self.width, int(centre[0]) + half), min(self.height, int(centre[1]) + half)
            if x1 <= x0 or y1 <= y0:
                continue
            alpha = draw_alpha(target.shape, centre - (x0, y0), radius, (y1 - y0, x1 - x0))
            id_map[y0:y1, x0:x1][alpha > 127] = target.object_id
            texture = self._textures[number]
            middle = texture.shape[0] // 2
            left, top = middle - int(centre[0]) + x0, middle - int(centre[1]) + y0
            paint = texture[top : top + y1 - y0, left : left + x1 - x0]
            region = canvas[y0:y1, x0:x1]
            region += (paint - region) * (alpha.astype(np.float32) / 255.0)[..., None]
        if video.screen is not None:
            x0, y0, x1, y1 = (int(round(edge * self.scale)) for edge in video.screen)
            x0, y0, x1, y1 = max(0, x0), max(0, y0), min(self.width, x1), min(self.height, y1)
            id_map[y0:y1, x0:x1] = 0
            canvas[y0:y1, x0:x1] = self._screen_texture[y0:y1, x0:x1]
            border = max(1, round(self.scale / 2))
            cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), (70.0, 60.0, 50.0), border)
