"""The training loop, over a DeepSpeed engine."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from training.checkpoints import CheckpointStore
from training.data import make_loader
from training.logging import Meter, RunLog
from training.settings import ComputeSettings, OptimizerSettings, TrainingSettings
from utils.errors import CheckpointError, ConfigError, MoraError
from utils.processes import World, as_lost_peer, gather_objects, mean_over_processes


class DivergedError(MoraError):
    """A loss is no longer a finite number."""


def schedule_config(optimizer: OptimizerSettings) -> dict[str, Any]:
    """DeepSpeed's learning-rate schedule: linear warm-up, then linearly to 0 or a cosine.

    DeepSpeed sets the rate of a step from the number of steps finished before the previous one, so the first two
    updates have rate 0.
    """
    shared = {"total_num_steps": optimizer.total_steps, "warmup_num_steps": optimizer.warmup_steps}
    shared["warmup_type"] = "linear"
    if optimizer.lr_schedule == "cosine":
        return {"type": "WarmupCosineLR", "params": {**shared, "cos_min_ratio": optimizer.min_lr_ratio}}
    return {"type": "WarmupDecayLR", "params": {**shared, "warmup_min_lr": 0.0, "warmup_max_lr": optimizer.lr}}


def deepspeed_config(optimizer: OptimizerSettings, compute: ComputeSettings, num_trainable: int) -> dict[str, Any]:
    """The configuration handed to ``deepspeed.initialize``; communication buffers hold at most ``num_trainable``."""
    bucket = min(500_000_000, 1024 * math.ceil(num_trainable / 1024))  # DeepSpeed wants it even
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": optimizer.batch_size,
        "gradient_accumulation_steps": optimizer.grad_accumulation_steps,
        "gradient_clipping": optimizer.grad_clip,
        "scheduler": schedule_config(optimizer),
        "zero_optimization": {
            "stage": compute.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "steps_per_print": 10**9,
    }
    if compute.precision != "fp32":
        config[compute.precision] = {"enabled": True}
    return config


def start_engine(model: nn.Module, optimizer: OptimizerSettings, compute: ComputeSettings, world: World) -> Any:
    """Wrap a model in a DeepSpeed engine with torch's AdamW over its trainable parameters.

    Args:
        model: with ``requires_grad`` set as wanted.
        optimizer, compute: the flags.
        world: this process; ``start_world`` was called.

    Returns:
        The engine; ``engine.module`` is the model, on the device and in the precision asked for.

    Raises:
        ConfigError: nothing is trainable.
    """
    import deepspeed  # late: it reads DS_ACCELERATOR, which start_world sets

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("nothing is trainable; look at --trainable and --lora_r")
    if world.device.type == "cpu":
        # Its compilation takes most of a minute and a compiler, to speed up communication inside one machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    betas = optimizer.beta1, optimizer.beta2
    adamw = torch.optim.AdamW(trained, lr=optimizer.lr, betas=betas, weight_decay=optimizer.weight_decay)
    config = deepspeed_config(optimizer, compute, sum(parameter.numel() for parameter in trained))
    # torch's own advice about what DeepSpeed calls; nothing for the user to act on
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    if compute.zero_stage == 3:
        _keep_encoder_whole(model, world)
        if hasattr(model, "loc_head"):  # how often its layers run depends on the batch, so they are fetched together
            deepspeed.utils.set_z3_leaf_modules(model, [type(model.loc_head)])
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=config, dist_init_required=False)
    return engine


def _keep_encoder_whole(model: nn.Module, world: World) -> None:
    """Hide the frozen parts of the segmenter from DeepSpeed, so that they stay whole on every process: the number of
    passes through the image encoder depends on the frames, and it computes with rearranged weights.

    Raises:
        ConfigError: the encoder is trained.
    """
    segmenter = getattr(model, "sam", None)
    for name, child in [] if segmenter is None else list(segmenter.named_children()):
        if not any(parameter.requires_grad for parameter in child.parameters()):
            delattr(segmenter, name)
            object.__setattr__(segmenter, name, child.to(world.device))  # an attribute, and no module of the model
        elif name == segmenter.encoder_part:
            raise ConfigError("--zero_stage 3 does not train the segmenter's image encoder; use --zero_stage 2")


def _close(log: RunLog, failing: bool) -> None:
    """Close a log; while another error is on its way, that one matters."""
    with contextlib.suppress(*([MoraError] if failing else [])):
        log.close()


@dataclass(eq=False)
class Trainer:
    """Takes optimizer steps, writes what it sees, saves what it has.

    Args:
        engine: from :func:`start_engine`.
        dataset: map-style, valid for every item number >= 0 (see :mod:`training.data`).
        collate: list of items -> batch with ``.to(device, dtype)``; the model is called as
            ``model(batch, **forward_options)`` and returns a dict of 0-dim tensors, ``loss`` among them.
        settings: the flags.
        world: this process.
        store: where checkpoints go.
        card: what every run.json says beside step and epoch.
        forward_options: keywords for the model.
        name_samples: batch -> names of its samples, for messages.
        draw: (batch, output) -> picture uint8 [H, W, 3]; called with predictions on the main process every
            ``--picture_freq`` steps. None: no pictures.
    """

    engine: Any
    dataset: Dataset
    collate: Callable[[list], Any]
    settings: TrainingSettings
    world: World
    store: CheckpointStore
    card: dict[str, Any]
    forward_options: dict[str, Any] = field(default_factory=dict)
    name_samples: Callable[[Any], list[str]] = lambda batch: []
    draw: Callable[[Any, dict[str, Any]], Any] | None = None
    meter: Meter = field(init=False, default_factory=Meter)
    rate: float = field(init=False, default=0.0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.settings.optimizer.total_steps

    def fit(self, first_step: int = 0) -> int:
        """Train from ``first_step`` to the end, or until ``--max_minutes`` are over.

        Returns:
            Steps taken since the run's beginning.

        Raises:
            DivergedError: a loss is not finite; nothing was saved since.
            CheckpointError: a checkpoint could not be written; the previous one is intact.
            LogError: the curves could not be written.
            WorkerError: a data process died.
            PeerError: another process of the run died.
        """
        loader = make_loader(self.dataset, self.collate, self.world, first_step, self.settings)
        with contextlib.ExitStack() as stack:
            log = RunLog(self.store.folder, self.total_steps, first_step, self.world.is_main)
            stack.push(lambda kind, *_: _close(log, failing=kind is not None))
            try:
                return self._take_steps(first_step, iter(loader), log)
            except (RuntimeError, OSError, EOFError, CheckpointError) as error:
                found = loader.explain(error)
                if found is error and isinstance(error, RuntimeError):
                    found = as_lost_peer(error) or error
                if found is error:
                    raise
                raise found from error

    def _take_steps(self, first_step: int, batches: Any, log: RunLog) -> int:
        run, per_epoch = self.settings.run, self.settings.optimizer.steps_per_epoch
        self.engine.train()
        started = last_print = time.monotonic()
        if first_step and self.store.is_at(first_step):  # a kill may have come before it was kept
            self._keep_if_due(first_step, log)
        done = first_step
        for done in range(first_step + 1, self.total_steps + 1):
            self._step(batches, done, log)
            log.advance()
            stop = self._out_of_time(started)
            epoch_ends = done % per_epoch == 0
            due = epoch_ends or stop or (run.save_every_steps and done % run.save_every_steps == 0)
            if due or done % run.print_freq == 0:
                last_print = self._report(done, last_print, log)
            if due:
                self.store.save(self.engine, {"step": done, "epoch": done // per_epoch, **self.card})
                self._keep_if_due(done, log)
                last_print = time.monotonic()  # saving is no part of the throughput
            if stop and done < self.total_steps:
                log.say(f"{run.max_minutes:g} minutes are over: saved at step {done}; --auto_resume goes on")
                break
        return done

    def _step(self, batches: Any, step: int, log: RunLog) -> None:
        """All micro-batches of one optimizer step."""
        every = self.settings.run.picture_freq
        self.rate = self.engine.get_lr()[0]  # before the schedule moves on
        wants_picture = self.draw is not None and every and (step - 1) % every == 0
        for micro in range(self.settings.optimizer.grad_accumulation_steps):
            batch = next(batches).to(self.world.device, self.settings.compute.dtype)
            options = dict(self.forward_options)
            if wants_picture and micro == 0 and self.world.is_main:
                options["return_predictions"] = True
            output = self.engine(batch, **options)
            self.engine.backward(output["loss"])
            self.engine.step()
            losses = {name: value for name, value in output.items() if torch.is_tensor(value) and value.dim() == 0}
            self.meter.add(losses, step, self.name_samples(batch))
            if "return_predictions" in options:
                log.picture(step, "sample", self.draw(batch, output))

    def _report(self, step: int, since: float, log: RunLog) -> float:
        """Fetch what was noted since the last report, check it, write it; returns the time."""
        table = torch.stack([torch.stack(row) for row in self.meter.rows])  # [micro-batches, losses]
        norm = self.engine.get_global_grad_norm()
        norm = torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32, device=table.device)
        means = mean_over_processes(table.mean(dim=0))
        *losses, grad_norm = torch.cat([means, norm.reshape(1)]).tolist()
        if not all(math.isfinite(value) for value in losses):
            self._blame(table)
        now = time.monotonic()
        samples = len(self.meter.rows) * self.settings.optimizer.batch_size * self.world.size
        labels = ["total" if name == "loss" else name.removesuffix("_loss") for name in self.meter.names]
        values = {f"loss/{label}": value for label, value in zip(labels, losses)}
        values["train/lr"] = self.rate
        values["train/grad_norm"] = grad_norm
        values["train/samples_per_s"] = samples / max(now - since, 1e-9)
        log.scalars(step, values)
        self.meter.clear()
        return now

    def _blame(self, table: torch.Tensor) -> None:
        """Name the micro-batches whose loss is not finite, on every process at once."""
        mine = []
        for values, (step, samples) in zip(table.tolist(), self.meter.origins):
            bad = {name: value for name, value in zip(self.meter.names, values) if not math.isfinite(value)}
            if bad:
                mine.append(f"step {step}, rank {self.world.rank}, samples {', '.join(samples) or 'unnamed'}: {bad}")
        culprits = [line for lines in gather_objects(mine) for line in lines]
        raise DivergedError(
            "the loss is not a finite number:\n  " + "\n  ".join(culprits[:10]) + "\n"
            "No checkpoint was written since. Look at these samples, lower --lr, or use --precision bf16 or fp32"
        )

    def _keep_if_due(self, step: int, log: RunLog) -> None:
        epoch, rest = divmod(step, self.settings.optimizer.steps_per_epoch)
        every = self.settings.run.keep_ckpt_every
        if rest == 0 and every and epoch % every == 0:
            log.say(f"epoch {epoch}: kept as {self.store.keep(epoch)}")

    def _out_of_time(self, started: float) -> bool:
        """Whether ``--max_minutes`` are over; all processes agree, though their clocks may not."""
        minutes = self.settings.run.max_minutes
        if not minutes:
            return False
        over = torch.tensor(float(time.monotonic() - started > 60 * minutes), device=self.world.device)
        return bool(mean_over_processes(over) > 0)
