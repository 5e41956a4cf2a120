"""Checkpoints that survive a kill, a full disk and a curious reader.

Layout of ``LOG_BASE_DIR/EXP_NAME``::

    ckpt_model/                     the newest state; replaced as a whole, by a rename
      latest                        name of the folder below
      global_step500/               DeepSpeed's files: weights that are trained, optimizer, schedule
      zero_to_fp32.py               DeepSpeed's converter, runs without anything else
      rng/rank_00000.pt             random states of each process
      run.json                      step, epoch, flags, base model, versions
      config.json, tokenizer/       what the exporter needs to know which network this is
    ckpt_model_epoch_005/           the same, kept
"""

from __future__ import annotations

import importlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.provenance import TENSOR
from utils.distributed import World, barrier, gather_objects, raise_together
from utils.errors import CheckpointError
from utils.files import atomic_write, read_json, recover_directory, replace_directory, write_json

ROLLING_NAME = "ckpt_model"
RUN_CARD = "run.json"
FORMAT = 1


HARMLESS_NAMES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Classes that DeepSpeed puts into its files beside tensors; nothing else is ever unpickled."""


def kept_name(epoch: int) -> str:
    """Folder name of the checkpoint kept after ``epoch`` (1-based): ``ckpt_model_epoch_005``."""
    return f"{ROLLING_NAME}_epoch_{epoch:03d}"


def random_states() -> dict[str, Any]:
    """The states of every global generator of this process, as plain values that load without running code."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - saved, not drawn from
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo everything drawn since :func:`random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _harmless_types() -> list[Any]:
    """The classes of HARMLESS_NAMES."""
    parts = [name.rpartition(".") for name in sorted(HARMLESS_NAMES)]
    return [getattr(importlib.import_module(module), name) for module, _, name in parts]


def check_states(path: str | Path) -> None:
    """Look into one file of a DeepSpeed checkpoint, without opening it, for anything that would run code.

    Raises:
        CheckpointError: missing, truncated, or holds objects other than tensors, plain values and DeepSpeed's own.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete, take an earlier one")
    try:
        foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - HARMLESS_NAMES
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read, probably truncated ({path.stat().st_size:,} bytes; {str(error)[:200]}); take an "
            "earlier checkpoint"
        ) from error
    if foreign:
        raise CheckpointError(
            f"{path}: refused, opening it would run {', '.join(sorted(foreign))}; use only checkpoints written by this "
            "program"
        )


def load_states(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read one file of a DeepSpeed checkpoint without running code from it.

    Args:
        path: a ``*_states.pt`` file.
        map_location: as in ``torch.load``.

    Raises:
        CheckpointError: see :func:`check_states`.
    """
    check_states(path)
    try:
        with torch.serialization.safe_globals(_harmless_types()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error)[:200]}); take an earlier checkpoint") from error


@contextmanager
def _careful_loading(engine: Any) -> Iterator[None]:
    """Let DeepSpeed's own reader go through :func:`load_states` (its own would unpickle anything)."""
    storage = engine.checkpoint_engine
    original = storage.load
    storage.load = lambda path, map_location=None: load_states(path, map_location)
    try:
        yield
    finally:
        storage.load = original


def read_run_card(folder: str | Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint, after checking that the folder is a whole one.

    Returns:
        dict with ``step``, ``epoch``, ``world_size``, ``args`` and what the run put there.

    Raises:
        CheckpointError: no such folder, no ``latest``, no ``run.json``, or an unknown format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    tag_folder(folder)
    if not (folder / RUN_CARD).is_file():
        raise CheckpointError(f"{folder}: has no {RUN_CARD}; it was not written by this program, or is incomplete")
    card = read_json(folder / RUN_CARD)
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{folder / RUN_CARD}: format {found!r}, this program reads {FORMAT}")
    missing = {"step", "epoch", "world_size"} - set(card)
    if missing:
        raise CheckpointError(f"{folder / RUN_CARD}: has no {', '.join(sorted(missing))}; take an earlier checkpoint")
    return card


def tag_folder(folder: str | Path) -> Path:
    """The folder inside a DeepSpeed checkpoint that its file ``latest`` names.

    Raises:
        CheckpointError: ``latest`` is absent, or names what is not there.
    """
    folder = Path(folder)
    latest = folder / "latest"
    if not latest.is_file():
        found = sorted(path.name for path in folder.glob("global_step*"))
        hint = f"write '{found[-1]}' into it if that folder is complete" if found else "there is no global_step* in it"
        raise CheckpointError(f"{folder}: checkpoint without a file 'latest'; {hint}, or take another checkpoint")
    tag = latest.read_text(encoding="utf-8").strip()
    if not tag or not (folder / tag).is_dir():
        raise CheckpointError(f"{latest}: names '{tag}', which is not there; take another checkpoint")
    return folder / tag


def load_trained_weights(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Put a checkpoint's weights into a module; only frozen ones may be absent.

    Raises:
        CheckpointError: a trained tensor is missing, one is unknown, or shapes differ; all are named.
    """
    src = {name: value for name, value in src.items() if name != TENSOR}  # compared before; this run writes its own
    own = dst.state_dict()
    trained = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    missing = sorted(trained - set(src))
    unexpected = sorted(set(src) - set(own))
    shapes = [
        f"{name} {tuple(src[name].shape)} for {tuple(own[name].shape)}"
        for name in src
        if name in own and src[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            "the checkpoint does not fit this model: "
            f"missing {missing or 'none'}; unexpected {unexpected or 'none'}; other shapes {shapes or 'none'}. "
            "Use the flags the run was started with (they are in the checkpoint's run.json)"
        )
    dst.load_state_dict(src, strict=False)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: ``LOG_BASE_DIR/EXP_NAME``.
        world: this process among the others; every method is called by all of them.
        write_model_files: called on the main process with a folder; writes config.json and tokenizer/ there.
    """

    def __init__(self, folder: str | Path, world: World, write_model_files: Callable[[Path], None] | None = None):
        self.folder = Path(folder)
        self.world = world
        self.write_model_files = write_model_files

    @property
    def rolling(self) -> Path:
        """The newest checkpoint."""
        return self.folder / ROLLING_NAME

    def recover(self) -> bool:
        """Clean up after a kill: finish or undo an interrupted rename, delete half-written folders.

        Returns:
            Whether there is a rolling checkpoint.
        """
        if self.world.is_main and self.folder.is_dir():
            recover_directory(self.rolling)
            for leftover in self.folder.glob(f".{ROLLING_NAME}_epoch_*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
        barrier()
        return gather_objects(self.rolling.is_dir())[0]  # one answer for all, whatever their file systems have cached

    def save(self, engine: Any, card: dict[str, Any]) -> Path:
        """Write the whole state under a temporary name, then give it the name ``ckpt_model``.

        Args:
            engine: DeepSpeed engine, between two optimizer steps.
            card: goes into run.json; has at least ``step`` and ``epoch``.

        Returns:
            The folder.

        Raises:
            CheckpointError: on every process, if any of them could not write (a full disk, for one). The previous
                checkpoint is untouched.
        """
        temporary = self.folder / f".{ROLLING_NAME}.step{card['step']:08d}.tmp"
        error = self._make_empty(temporary)
        raise_together(error, CheckpointError, f"{self.folder}: cannot write checkpoints here")
        tag = f"global_step{card['step']}"
        try:
            engine.save_checkpoint(str(temporary), tag=tag, save_latest=False, exclude_frozen_parameters=True)
        except (OSError, RuntimeError) as failure:  # torch reports a full disk as either
            error = failure
            barrier()  # the one that DeepSpeed ends with, where the other processes wait
        if error is None:
            error = self._write_rest(temporary, tag, card)
        try:
            raise_together(
                error,
                CheckpointError,
                f"{self.rolling}: writing the checkpoint of step {card['step']} failed, {self._free_space()} are free; "
                "the previous checkpoint is untouched. Make room and start again with --auto_resume",
            )
        except CheckpointError:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.world.is_main:
            replace_directory(temporary, self.rolling)
        barrier()
        return self.rolling

    def _make_empty(self, folder: Path) -> OSError | None:
        try:
            if self.world.is_main:
                shutil.rmtree(folder, ignore_errors=True)
                (folder / "rng").mkdir(parents=True)
        except OSError as failure:
            return failure
        finally:
            barrier()
        return None

    def _write_rest(self, folder: Path, tag: str, card: dict[str, Any]) -> Exception | None:
        """What DeepSpeed does not write; ``latest`` comes last."""
        try:
            with atomic_write(folder / "rng" / f"rank_{self.world.rank:05d}.pt") as stream:
                torch.save(random_states(), stream)
            if self.world.is_main:
                if self.write_model_files is not None:
                    self.write_model_files(folder)
                write_json(folder / RUN_CARD, {"format": FORMAT, "world_size": self.world.size, **card})
                for path in (folder / tag).iterdir():
                    _flush(path)
                with atomic_write(folder / "latest", "w") as stream:
                    stream.write(tag)
        except (OSError, RuntimeError) as failure:
            return failure
        return None

    def _free_space(self) -> str:
        try:
            return f"{shutil.disk_usage(self.folder).free / 2**30:.2f} GiB"
        except OSError:
            return "an unknown number of bytes"

    def keep(self, epoch: int) -> Path:
        """Keep the rolling checkpoint as that of ``epoch``. Files are linked, not written again, where possible.

        Raises:
            CheckpointError: on every process, if it cannot be written.
        """
        kept = self.folder / kept_name(epoch)
        error = None
        if self.world.is_main and not kept.is_dir():
            temporary = kept.with_name(f".{kept.name}.tmp")
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.copytree(self.rolling, temporary, copy_function=_link_or_copy)
                replace_directory(temporary, kept)
            except OSError as failure:
                error = failure
                shutil.rmtree(temporary, ignore_errors=True)
        raise_together(error, CheckpointError, f"{kept}: cannot keep the checkpoint")
        return kept

    def load(self, engine: Any, folder: str | Path) -> dict[str, Any]:
        """Bring a DeepSpeed engine, its optimizer, its schedule and the random states to where the checkpoint was.

        Args:
            engine: freshly initialised, with the same model, trainable set and number of processes.
            folder: a checkpoint folder.

        Returns:
            Its run card.

        Raises:
            CheckpointError: damaged or incomplete, another number of processes, or another model.
        """
        folder = Path(folder)
        card = read_run_card(folder)
        if card["world_size"] != self.world.size:
            raise CheckpointError(
                f"{folder}: written by {card['world_size']} process(es), and this run has {self.world.size}; optimizer "
                "states are divided among processes. Start as many, or take its weights only with --init_from"
            )
        states = load_states(folder / "rng" / f"rank_{self.world.rank:05d}.pt")
        with _careful_loading(engine):
            engine.load_checkpoint(
                str(folder), tag=tag_folder(folder).name, load_module_strict=False, custom_load_fn=load_trained_weights
            )
        restore_random_states(states)
        return card


def _link_or_copy(source: str, target: str) -> None:
    """A second name for the same bytes; checkpoint files are never written to again, so sharing them is safe."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _flush(path: Path) -> None:
    """Force a file that another library wrote onto the disk, so that the rename does not come before it."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
