"""What a run says: a progress bar, TensorBoard curves and a JSON line per print, all from the main process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.files import atomic_write

METRICS_FILE = "metrics.jsonl"


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will take again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # the process was killed while it wrote this line, which is the last
            break
    with atomic_write(path, "w") as stream:
        stream.writelines(line + "\n" for line in kept)


class RunLog:
    """Progress bar, TensorBoard and ``metrics.jsonl``; silent on every process but the main one.

    Args:
        folder: of the run; TensorBoard files go to ``folder/tensorboard``.
        total_steps: optimizer steps of the whole run.
        first_step: steps already taken.
        enabled: False on other processes.
    """

    def __init__(self, folder: str | Path, total_steps: int, first_step: int, enabled: bool):
        self.enabled = enabled
        if not enabled:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _keep_lines_until(folder / METRICS_FILE, first_step)
        self._lines = open(folder / METRICS_FILE, "a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self._bar = tqdm(
            total=total_steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True, smoothing=0.1
        )

    def advance(self) -> None:
        """One optimizer step was taken."""
        if self.enabled:
            self._bar.update(1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write named values of a step; names have the group before a slash (``loss/mask_bce``)."""
        if not self.enabled:
            return
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        shown = {name.rsplit("/", 1)[-1]: f"{value:.3g}" for name, value in values.items()}
        self._bar.set_postfix(shown, refresh=False)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3], RGB."""
        if self.enabled:
            self._board.add_image(name, image, step, dataformats="HWC")

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            self._bar.write(message)

    def close(self) -> None:
        """Flush everything to disk."""
        if self.enabled:
            self._bar.close()
            self._board.close()
            self._lines.close()


class Meter:
    """Losses of micro-batches, kept on the device and fetched together.

    Fetching one number makes the host wait for the device, so nothing is fetched until somebody asks.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: list[Any] = []
        self.origins: list[tuple[int, list[str]]] = []

    def add(self, losses: dict[str, Any], step: int, samples: list[str]) -> None:
        """Note one micro-batch.

        Args:
            losses: 0-dim tensors by name, the same names every time.
            step: of the optimizer, 1-based.
            samples: names of the samples, for messages.
        """
        self.names = self.names or list(losses)
        self.rows.append([losses[name].detach().float() for name in self.names])
        self.origins.append((step, samples))

    def clear(self) -> None:
        """Forget what was noted, after it was reported."""
        self.rows.clear()
        self.origins.clear()
