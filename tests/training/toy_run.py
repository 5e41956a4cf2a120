"""A run of the real trainer over a toy network, started as a program so that it can be killed.

    python tests/training/toy_run.py FOLDER [--kill_at_item N] [--kill_while_saving STEP] [--limit_file_size BYTES]
                                            [flags of train_ds.py]

``--lora_dropout`` 0 switches the toy's dropout off.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from training.checkpoints.store import CheckpointStore
from training.engine import Trainer, start_engine
from training.program import run_program
from training.run_folder import hold_run_folder
from training.settings import TrainingSettings, build_parser
from utils.flags import parse, values_of
from utils.processes import World, start_world


class ToyBatch:
    """Numbers that a toy network is fitted to."""

    def __init__(self, x, numbers):
        self.x = x
        self.numbers = numbers

    def to(self, device, dtype):
        return ToyBatch(self.x.to(device=device, dtype=dtype), self.numbers)


class ToyData(torch.utils.data.Dataset):
    """Item i is a function of i."""

    def __init__(self, kill_at: int | None = None):
        self.kill_at = kill_at

    def __getitem__(self, index):
        if self.kill_at is not None and index >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return index, torch.randn(6, generator=torch.Generator().manual_seed(index))


def collate(items):
    return ToyBatch(torch.stack([x for _, x in items]), [number for number, _ in items])


class ToyNet(nn.Module):
    """A frozen layer, dropout (so that the random state matters) and two trained layers."""

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.hidden = nn.Linear(8, 16)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(16, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, batch, nan_at: int | None = None):
        y = self.head(self.drop(torch.tanh(self.hidden(self.frozen(batch.x)))))
        loss = ((y.squeeze(-1) - self.scale * batch.x.sum(-1)) ** 2).mean()
        if nan_at is not None and nan_at in batch.numbers:
            loss = loss * float("nan")
        return {"loss": loss, "ce_loss": loss.detach() / 2}


def toy_arguments(folder: Path, *extra: str):
    """Flags of a short toy run, unchecked (it needs no corpus and no base)."""
    return parse(
        TrainingSettings, build_parser(), "the toy cannot start",
        ["--version", "toy", "--log_base_dir", str(folder), "--exp_name", "toy", "--precision", "fp32",
         "--epochs", "3", "--steps_per_epoch", "4", "--grad_accumulation_steps", "2", "--batch_size", "2",
         "--warmup_steps", "2", "--lr", "0.05", "--workers", "0", "--keep_ckpt_every", "2", *extra]
    )  # fmt: skip


def toy_trainer(settings, world: World, data: ToyData | None = None, **options) -> tuple[Trainer, CheckpointStore]:
    """Trainer and store of a toy run."""
    seed = settings.run.seed
    torch.manual_seed(seed)
    net = ToyNet(dropout=0.2 if settings.trainable.lora_dropout else 0.0)
    torch.manual_seed(seed + 1 + world.rank)
    store = CheckpointStore(settings.run.folder, world)
    engine = start_engine(net, settings.optimizer, settings.compute, world)
    return Trainer(
        engine, data or ToyData(), collate, settings, world, store, {"args": values_of(settings)},
        name_samples=lambda batch: [str(n) for n in batch.numbers], **options,
    ), store  # fmt: skip


def kill_inside_save(trainer: Trainer, at_step: int) -> None:
    """Arrange that the process dies when half of the checkpoint of ``at_step`` is written."""
    storage = trainer.engine.checkpoint_engine
    original = storage.save

    def save(state_dict, path):
        original(state_dict, path)
        if trainer.engine.global_steps == at_step:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    storage.save = save


def work(settings, hooks: dict[str, int]) -> None:
    """What train_ds.py does, with the toy."""
    world = start_world(use_cuda=False)
    folder = Path(settings.run.log_base_dir)
    with hold_run_folder(settings.run.folder, world, patience=0.5):
        trainer, store = toy_trainer(settings, world, ToyData(hooks.get("--kill_at_item")))
        first = store.load(trainer.engine, store.rolling)["step"] if store.recover() else 0
        if "--kill_while_saving" in hooks:
            kill_inside_save(trainer, hooks["--kill_while_saving"])
        if "--limit_file_size" in hooks:
            limit = hooks["--limit_file_size"]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        trainer.fit(first)
        if world.is_main:
            torch.save(trainer.engine.module.state_dict(), folder / "final.pt")


def main() -> int:
    folder, argv = Path(sys.argv[1]), sys.argv[2:]
    hooks = {}
    while argv and argv[0] in ("--kill_at_item", "--kill_while_saving", "--limit_file_size"):
        hooks[argv[0]] = int(argv[1])
        argv = argv[2:]
    return run_program(lambda: toy_arguments(folder, *argv), lambda settings: work(settings, hooks))


if __name__ == "__main__":
    sys.exit(main())
