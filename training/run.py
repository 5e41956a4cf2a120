"""One training run, from flags to the last checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.collate import collate
from model.checkpoints import Provenance, attach_provenance, differences
from training.assembly import Parts, build_dataset, build_parts, choose_attention, describe_dataset
from training.checkpoints import RUN_CARD, CheckpointStore, initialise_from, read_run_card
from training.engine import Trainer, start_engine
from training.logging import set_aside_logs
from training.pictures import SamplePicture
from training.run_folder import hold_run_folder
from training.settings import RunSettings, TrainingSettings
from utils.errors import CheckpointError, ConfigError
from utils.flags import each_flag, values_of
from utils.processes import World, gather_objects, start_world


def seed_everything(seed: int) -> None:
    """Seed every global generator of this process (dropout draws from torch's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may still draw from it
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    names = ("torch", "transformers", "deepspeed", "peft")  # all of them imported by now
    return {name: str(getattr(sys.modules.get(name), "__version__", "unknown")) for name in names}


def find_start(run: RunSettings, store: CheckpointStore) -> Path | None:
    """The checkpoint this run goes on from, or None to begin.

    Raises:
        ConfigError: there is one, and the flags would overwrite it.
    """
    exists = store.recover()
    if run.resume is not None:
        if exists and store.rolling.resolve() != Path(run.resume).resolve():
            # A killed run is started again by its own command, --resume included; its newer state must not be lost.
            newer, older = read_run_card(store.rolling)["step"], read_run_card(run.resume)["step"]
            if newer > older:
                raise ConfigError(
                    f"--resume {run.resume} is at step {older}, but {store.rolling} is at step {newer} and would be "
                    "overwritten; leave --resume out to go on from there, or choose another --exp_name"
                )
        return Path(run.resume)
    if exists and not run.auto_resume:
        raise ConfigError(
            f"{store.rolling} exists and --no-auto_resume would overwrite it; continue it with --auto_resume, choose "
            "another --exp_name, or move it away"
        )
    return store.rolling if exists else None


def changed_flags(settings: Any, card: dict[str, Any]) -> list[str]:
    """Lines such as ``--lr: 0.0003 -> 0.001`` for flags that change the course of a run and differ from those that the
    checkpoint of this run card was trained with."""
    stored = card.get("args", {})
    return [
        f"--{name}: {stored[name]} -> {value}"
        for name, about, value in each_flag(settings)
        if about.course and name in stored and stored[name] != value
    ]


def require_same_network(card: dict[str, Any], parts: Parts, start: Path) -> None:
    """Refuse to go on with weights that were trained in another network, text or scale, or on another base.

    Raises:
        CheckpointError: naming every setting that differs.
    """
    if "provenance" not in card:
        return
    trained = Provenance.from_dict(card["provenance"], str(start / RUN_CARD))
    lines = differences(trained, parts.provenance)
    if trained.trainable != parts.provenance.trainable:
        lines.append(f"--trainable: trained with {trained.trainable!r}, here {parts.provenance.trainable!r}")
    if lines:
        raise CheckpointError(
            f"{start}: cannot be continued, this run would be another one:\n  - " + "\n  - ".join(lines)
            + f"\nuse the flags that it was started with ({RUN_CARD} has them), or another --exp_name"
        )  # fmt: skip


def _announce(world: World, *lines: str) -> None:
    if world.is_main and lines:
        print(*lines, sep="\n", flush=True)


def prepare_model(settings: TrainingSettings, world: World, resuming: bool) -> Parts:
    """The model with its adapters, and with the weights of ``--init_from`` on a first launch."""
    compute, run = settings.compute, settings.run
    attention = choose_attention(compute.attn_implementation, compute.dtype, world.device)
    parts = build_parts(settings.model, settings.trainable, run.seed, compute.dtype, attention, digest=world.is_main)
    base = gather_objects(parts.provenance.base)[0]  # one process reads all bytes of the base to say which it is
    parts.provenance = dataclasses.replace(parts.provenance, base=base, precision=compute.precision)
    _announce(world, parts.describe())
    if run.init_from is not None and not resuming:
        _announce(world, str(initialise_from(parts.model, run.init_from, parts.provenance)))
    attach_provenance(parts.model, parts.provenance)
    if compute.gradient_checkpointing:
        parts.model.set_gradient_checkpointing(True)
    return parts


def train(settings: TrainingSettings) -> int:
    """Run ``train_ds.py``.

    Args:
        settings: from :func:`training.settings.parse_arguments`.

    Returns:
        Optimizer steps taken since the run's beginning.

    Raises:
        MoraError: a flag, file or checkpoint cannot be used, or the loss diverged; the message names it.
    """
    world = start_world({"auto": None, "cuda": True, "cpu": False}[settings.compute.device])
    if world.device.type == "cpu":
        _announce(world, f"no GPU is used: training on the CPU with {torch.get_num_threads()} thread(s) per process")
    with hold_run_folder(settings.run.folder, world):
        return _train(settings, world, CheckpointStore(settings.run.folder, world))


def _train(settings: TrainingSettings, world: World, store: CheckpointStore) -> int:
    """:func:`train`, in a folder that no other run writes into."""
    seed = settings.run.seed
    seed_everything(seed)
    start = find_start(settings.run, store)
    card = store.verify(start) if start else {"step": 0}  # fails before anything large is loaded
    first_step = card["step"]
    _announce(world, *store.begin(card if start else None))
    if world.is_main and (moved := set_aside_logs(store.folder, store.run_id)):
        _announce(world, moved)
    parts = prepare_model(settings, world, resuming=start is not None)
    if start is not None:
        require_same_network(card, parts, start)
    store.write_model_files = parts.write
    if not world.is_main:
        logging.getLogger("datasets").setLevel(logging.ERROR)  # every process finds the same mistakes; one names them
    dataset = build_dataset(settings.data, seed, parts)
    _announce(world, describe_dataset(dataset))
    engine = start_engine(parts.model, settings.optimizer, settings.compute, world)
    seed_everything(seed + 1 + world.rank)  # dropout differs between processes
    if start is not None:
        store.load(engine, start)
        _announce(world, f"{start}: going on after step {first_step}")
        for line in changed_flags(settings, card):
            _announce(world, f"  WARNING, another flag than before: {line}")
    trainer = Trainer(
        engine, dataset, collate, settings, world, store,
        card={"args": values_of(settings), "base": settings.model.version, "trained": parts.trained,
              "versions": versions(), "provenance": parts.provenance.as_dict()},
        forward_options={"loss_weights": settings.optimizer.loss_weights},
        name_samples=lambda batch: [video.video_id for video in batch.videos],
        draw=SamplePicture(parts.tokenizer, parts.model.sam.pixel_rule),
    )  # fmt: skip
    done = trainer.fit(first_step)
    _announce(world, f"step {done} of {trainer.total_steps}: {store.rolling}")
    return done
