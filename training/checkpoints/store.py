"""Checkpoints that survive a kill, a full disk and a curious reader.

Layout of ``LOG_BASE_DIR/EXP_NAME``::

    ckpt_model/                     the newest state; replaced as a whole, by a rename
      latest                        name of the folder below
      global_step500/               DeepSpeed's files: weights that are trained, optimizer, schedule
      zero_to_fp32.py               DeepSpeed's converter, runs without anything else
      rng/rank_00000.pt             random states of each process
      run.json                      step, epoch, which run, flags, base model, versions
      config.json, tokenizer/       what the exporter needs to know which network this is
      digests.json                  size and SHA-256 of all of these
    ckpt_model_epoch_005/           the same, kept
    run.lock                        locked by the run that is under way
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.checkpoints import PROVENANCE
from training.checkpoints.digests import DIGESTS, check_digests, digest_files, listed_files
from training.checkpoints.digests import FORMAT as DIGESTS_FORMAT
from training.checkpoints.files import (
    FORMAT,
    RUN_CARD,
    UNRECORDED,
    check_states,
    load_states,
    read_run_card,
    tag_folder,
)
from training.checkpoints.random_states import random_states, restore_random_states
from training.checkpoints.weights import fit_weights, plain_name
from utils.errors import CheckpointError, ConfigError, MoraError, Problems
from utils.files import atomic_write, recover_directory, replace_directory, write_json
from utils.processes import World, agree, barrier, gather_objects, raise_together

ROLLING_NAME = "ckpt_model"


def kept_name(epoch: int) -> str:
    """Folder name of the checkpoint kept after ``epoch`` (1-based): ``ckpt_model_epoch_005``."""
    return f"{ROLLING_NAME}_epoch_{epoch:03d}"


@contextmanager
def _replacing(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Another method in the place of ``owner.name``, within the block."""
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


def load_trained_weights(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Put a checkpoint's weights into a module; only frozen ones may be absent.

    Raises:
        CheckpointError: a trained tensor is missing, one is unknown, or shapes differ; all are named.
    """
    # What they belong to was compared before; this run writes its own.
    src = {plain_name(name): value for name, value in src.items() if name != PROVENANCE}
    report = fit_weights(dst, src, "the checkpoint")
    trained = {plain_name(name) for name, parameter in dst.named_parameters() if parameter.requires_grad}
    missing = sorted(trained & set(report.missing))
    unexpected = sorted(report.unexpected)
    shapes = [f"{name} {found} for {wanted}" for name, (found, wanted) in sorted(report.mismatched.items())]
    if missing or unexpected or shapes:
        raise CheckpointError(
            "the checkpoint does not fit this model: "
            f"missing {missing or 'none'}; unexpected {unexpected or 'none'}; other shapes {shapes or 'none'}. "
            "Use the flags the run was started with (they are in the checkpoint's run.json)"
        )


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
        self.run_id: str | None = None
        self._verified: Path | None = None

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
            for name in {ROLLING_NAME, *_names_of_leftovers(self.folder)}:
                recover_directory(self.folder / name)
        barrier()
        return gather_objects(self.rolling.is_dir())[0]  # one answer for all, whatever their file systems have cached

    def begin(self, card: dict[str, Any] | None) -> list[str]:
        """Say which run this is, and refuse to mix its checkpoints with those of another one.

        Args:
            card: of the checkpoint that it goes on from; None begins a new run.

        Returns:
            Lines for the log.

        Raises:
            ConfigError: the folder holds checkpoints of another run; they are named, and stay as they are.
        """
        self.run_id = gather_objects(card.get("run_id", UNRECORDED) if card else uuid.uuid4().hex[:12])[0]
        problems, later = Problems(), []
        for path in sorted(self.folder.glob(f"{ROLLING_NAME}*")):
            if path != self.rolling and not path.name.startswith(kept_name(0)[:-3]):
                continue
            try:
                found = read_run_card(path)
            except MoraError as error:
                problems.add(str(path), f"nothing tells which run made it ({error})")
                continue
            if card is None or found.get("run_id", UNRECORDED) != self.run_id:
                problems.add(str(path), f"step {found['step']} of run {found.get('run_id', UNRECORDED)}")
            elif found["step"] > card["step"]:
                later.append(path.name)
        problems.raise_if_any(
            ConfigError,
            f"{self.folder} holds checkpoints of another run than this one ({self.run_id}); choose another --exp_name, "
            "move them away, or go on from one of them with --resume",
        )
        return [f"{', '.join(later)}: of a course that was left; replaced when this one gets there"] if later else []

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
        # A process of an earlier launch that is still writing must not write into this folder.
        mine = gather_objects((self.run_id or uuid.uuid4().hex[:12], uuid.uuid4().hex[:6]))[0]
        self.run_id, unique = mine
        temporary = self.folder / f".{ROLLING_NAME}.step{card['step']:08d}.{unique}.tmp"
        try:
            self._write(engine, temporary, {"run_id": self.run_id, **card})
        except BaseException:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.world.is_main:
            replace_directory(temporary, self.rolling)
        self._verified = None
        barrier()
        return self.rolling

    def _write(self, engine: Any, temporary: Path, card: dict[str, Any]) -> None:
        """Everything of a checkpoint, complete or an error on every process."""
        error = self._make_empty(temporary)
        raise_together(error, CheckpointError, f"{self.folder}: cannot write checkpoints here")
        tag = f"global_step{card['step']}"
        storage, written = engine.checkpoint_engine, []
        save = storage.save

        def noting(state_dict: Any, path: str) -> None:
            save(state_dict, path)
            written.append(Path(path))

        with _replacing(storage, "save", noting):
            try:
                engine.save_checkpoint(str(temporary), tag=tag, save_latest=False, exclude_frozen_parameters=True)
            except (OSError, RuntimeError) as failure:  # torch reports a full disk as either
                error = failure
                barrier()  # the one that DeepSpeed ends with, where the other processes wait
        digests: dict[str, Any] = {}
        if error is None:
            try:
                path = temporary / "rng" / f"rank_{self.world.rank:05d}.pt"
                with atomic_write(path) as stream:
                    torch.save(random_states(), stream)
                written.append(path)
                for path in written:
                    _flush(path)
                digests = digest_files(temporary, written)
            except (OSError, RuntimeError) as failure:
                error = failure
        digests = {name: entry for part in gather_objects(digests) for name, entry in part.items()}
        if error is None and self.world.is_main:
            error = self._write_rest(temporary, tag, card, digests)
        raise_together(
            error,
            CheckpointError,
            f"{self.rolling}: writing the checkpoint of step {card['step']} failed, {self._free_space()} are free; "
            "the previous checkpoint is untouched. Make room and start again with --auto_resume",
        )

    def _make_empty(self, folder: Path) -> OSError | None:
        try:
            if self.world.is_main:
                (folder / "rng").mkdir(parents=True)
        except OSError as failure:
            return failure
        finally:
            barrier()
        return None

    def _write_rest(self, folder: Path, tag: str, card: dict[str, Any], digests: dict[str, Any]) -> Exception | None:
        """What DeepSpeed does not write; digests come after all they are about, and ``latest`` comes last."""
        try:
            if self.write_model_files is not None:
                self.write_model_files(folder)
            write_json(folder / RUN_CARD, {"format": FORMAT, "world_size": self.world.size, "digests": DIGESTS, **card})
            rest = [path for path in listed_files(folder) if path.relative_to(folder).as_posix() not in digests]
            for path in rest:
                _flush(path)
            files = dict(sorted({**digests, **digest_files(folder, rest)}.items()))
            write_json(folder / DIGESTS, {"format": DIGESTS_FORMAT, "files": files})
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

    def is_at(self, step: int) -> bool:
        """Whether the rolling checkpoint is that of ``step``; a run may have gone on from elsewhere."""
        return gather_objects(self.rolling.is_dir() and read_run_card(self.rolling)["step"] == step)[0]

    def keep(self, epoch: int) -> Path:
        """Keep the rolling checkpoint as that of ``epoch``. Files are linked, not written again, where possible.

        What this run had kept of the same epoch, before it was taken back to an earlier one, is replaced.

        Raises:
            CheckpointError: on every process, if it cannot be written, or another run's is there.
        """
        kept = self.folder / kept_name(epoch)
        error = None
        if self.world.is_main and not _is_same_checkpoint(kept, self.rolling):
            temporary = kept.with_name(f".{kept.name}.tmp")
            try:
                _require_same_run(kept, self.rolling)
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.copytree(self.rolling, temporary, copy_function=_link_or_copy)
                replace_directory(temporary, kept)
            except (OSError, MoraError) as failure:
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
            MoraError: damaged or incomplete, another number of processes, or another model; on every process.
        """
        folder = Path(folder)
        card = self.verify(folder)
        states = load_states(folder / "rng" / f"rank_{self.world.rank:05d}.pt")
        # DeepSpeed's own reader would unpickle anything.
        with _replacing(engine.checkpoint_engine, "load", load_states):
            engine.load_checkpoint(
                str(folder), tag=tag_folder(folder).name, load_module_strict=False, custom_load_fn=load_trained_weights
            )
        restore_random_states(states)
        self.run_id = card.get("run_id", UNRECORDED)
        return card

    def verify(self, folder: str | Path) -> dict[str, Any]:
        """Look at every file of a checkpoint, once; the processes divide the work.

        Returns:
            Its run card.

        Raises:
            MoraError: damaged, incomplete, or of another number of processes; on every process.
        """
        folder = Path(folder)
        error: MoraError | None = None
        try:
            card = read_run_card(folder)
            if folder != self._verified:
                self._look_at_files(folder, card)
        except MoraError as failure:
            error = failure
        agree(error)
        self._verified = folder
        return card

    def _look_at_files(self, folder: Path, card: dict[str, Any]) -> None:
        if card["world_size"] != self.world.size:
            raise CheckpointError(
                f"{folder}: written by {card['world_size']} process(es), and this run has {self.world.size}; optimizer "
                "states are divided among processes. Start as many, or take its weights only with --init_from"
            )
        inner = tag_folder(folder)
        for path in sorted(inner.glob("*_states.pt")):
            check_states(path)
        check_digests(folder, self.world.rank, self.world.size)
        check_states(folder / "rng" / f"rank_{self.world.rank:05d}.pt")
        mine = f"*zero_pp_rank_{self.world.rank}_mp_rank_00_optim_states.pt"
        if not list(inner.glob(mine)) or not list(inner.glob("*model_states.pt")):
            raise CheckpointError(f"{inner}: has no {mine} or no *model_states.pt; take an earlier checkpoint")


def _names_of_leftovers(folder: Path) -> list[str]:
    """Checkpoints of which a kill left something."""
    names = (path.name[1:].split(".")[0] for path in folder.glob(f".{ROLLING_NAME}*"))
    return sorted({name for name in names if name.startswith(ROLLING_NAME)})


def _is_same_checkpoint(one: Path, other: Path) -> bool:
    """Whether two folders hold the same state; False if nothing tells."""
    try:
        return (one / DIGESTS).read_bytes() == (other / DIGESTS).read_bytes()
    except OSError:
        return False


def _require_same_run(kept: Path, rolling: Path) -> None:
    """Refuse to replace what another run has kept."""
    if kept.is_dir() and read_run_card(kept).get("run_id") != read_run_card(rolling).get("run_id"):
        raise CheckpointError("another run has kept one of that name; move it away")


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
