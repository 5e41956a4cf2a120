"""What a run says: a progress bar, TensorBoard curves and a JSON line per print, all from the main process."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.checkpoints import UNRECORDED
from utils.errors import MoraError
from utils.files import atomic_write

METRICS_FILE = "metrics.jsonl"
BOARD_FOLDER = "tensorboard"
RUN_FILE = "logs_of_run"
"""Says which run the two above are of."""


class LogError(MoraError):
    """What a run says cannot be written."""


def set_aside_logs(folder: Path, run_id: str) -> str | None:
    """Move the curves of another run out of the way of this one's, and note whose the next ones are.

    Args:
        folder: of the run.
        run_id: of the run that begins or goes on.

    Returns:
        A line for the log; None if nothing was moved.

    Raises:
        OSError: the folder cannot be written to.
    """
    found = UNRECORDED
    with contextlib.suppress(FileNotFoundError):
        found = (folder / RUN_FILE).read_text(encoding="utf-8", errors="replace").strip()
    if found == run_id:
        return None
    said = None
    old = [folder / name for name in (METRICS_FILE, BOARD_FOLDER) if (folder / name).exists()]
    if old:
        number = next(n for n in range(1, 10**6) if not (folder / f"earlier_logs_{n}").exists())
        target = folder / f"earlier_logs_{number}"
        target.mkdir()
        for path in [*old, folder / RUN_FILE]:
            if path.exists():
                path.rename(target / path.name)
        said = f"{target}: curves of an earlier run in this folder, moved there"
    with atomic_write(folder / RUN_FILE, "w") as stream:
        stream.write(run_id + "\n")
    return said


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will take again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the process was killed while it wrote this line, which is the last
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
        self._folder = folder
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            _keep_lines_until(folder / METRICS_FILE, first_step)
            self._lines = open(folder / METRICS_FILE, "a", encoding="utf-8")
            _let_board_fail_quietly()
            self._board = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=first_step + 1)
        self._bar = tqdm(
            total=total_steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True, smoothing=0.1
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogError(
                f"{self._folder}: {METRICS_FILE} or {BOARD_FOLDER}/ cannot be written ({error.strerror or error}); "
                "checkpoints are whole. Make room and start again with --auto_resume"
            ) from error

    def advance(self) -> None:
        """One optimizer step was taken."""
        if self.enabled:
            self._bar.update(1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write named values of a step; names have the group before a slash (``loss/mask_bce``).

        Raises:
            LogError: the disk is full, for one.
        """
        if not self.enabled:
            return
        with self._writing():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        shown = {name.rsplit("/", 1)[-1]: f"{value:.3g}" for name, value in values.items()}
        self._bar.set_postfix(shown, refresh=False)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, 3], RGB.

        Raises:
            LogError: the disk is full, for one.
        """
        if self.enabled:
            with self._writing():
                self._board.add_image(name, image, step, dataformats="HWC")

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            self._bar.write(message)

    def close(self) -> None:
        """Flush everything to disk; all is closed, whatever fails.

        Raises:
            LogError: the disk is full, for one.
        """
        if self.enabled:
            self._bar.close()
            with self._writing(), contextlib.ExitStack() as stack:
                stack.callback(self._lines.close)
                stack.callback(self._board.close)


def _let_board_fail_quietly() -> None:
    """TensorBoard's thread hands its error to the next call, and dies; Python would print its traceback as well."""
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda args: (
            None if type(args.thread).__name__ == "_AsyncWriterThread" else threading.__excepthook__(args)
        )


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
