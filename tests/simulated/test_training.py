"""The trainer, and weights that are saved and loaded, on the simulated device."""

from __future__ import annotations

import json

import pytest
import torch

from model.checkpoints import load_any
from model.losses import LossWeights
from model.presets import build
from tests.simulated.device import SimulatedTensor
from tests.training.toy_run import toy_arguments
from training.checkpoints.weights import fit_weights
from training.engine import DivergedError, Trainer
from utils.batch import MoraBatch
from utils.processes.distributed import World

BOTH = pytest.mark.parametrize("precision", ["fp32", "bf16"])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Engine:
    """What the trainer calls of DeepSpeed's engine, by plain PyTorch."""

    def __init__(self, model, accumulation: int):
        self.module, self.accumulation, self.calls = model, accumulation, 0
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        self.norm = None

    def __call__(self, batch, **options):
        return self.module(batch, **options)

    def train(self):
        self.module.train()

    def backward(self, loss):
        (loss / self.accumulation).backward()

    def step(self):
        self.calls += 1
        if self.calls % self.accumulation == 0:
            self.norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def get_lr(self):
        return [1e-3]

    def get_global_grad_norm(self):
        return self.norm


class Store:
    """A place for checkpoints that takes none."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, engine, card):
        pass

    def keep(self, epoch):
        return self.folder


class Videos(torch.utils.data.Dataset):
    """Video i, with i + 1 questions for every second one."""

    def __init__(self, worlds, poison=None):
        self.worlds, self.poison = worlds, poison

    def __getitem__(self, index):
        video = self.worlds.video(index, 2 + index % 2, segs=[1, 2])
        if index == self.poison:
            video.sam_pixels.fill_(float("nan"))
        return video


def trainer_of(model, videos, folder, precision: str, draw=None) -> Trainer:
    flags = ("--precision", precision, "--epochs", "1", "--steps_per_epoch", "3", "--batch_size", "1",
             "--print_freq", "3", "--picture_freq", "2")  # fmt: skip
    settings = toy_arguments(folder, *flags)
    world = World(rank=0, local_rank=0, size=1, device=next(model.parameters()).device)
    return Trainer(
        Engine(model, settings.optimizer.grad_accumulation_steps), videos, MoraBatch, settings, world, Store(folder),
        card={}, forward_options={"loss_weights": LossWeights()},
        name_samples=lambda batch: [video.video_id for video in batch.videos], draw=draw,
    )  # fmt: skip


@BOTH
def test_a_run_waits_when_it_prints(device, worlds, tmp_path, precision):
    """Three steps of two micro-batches: losses, norms and AdamW on the device, one wait for the printed line."""
    drawn = []

    def draw(batch, output):
        drawn.append(output["predictions"])
        return torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()

    model = worlds.model().to("simulated", DTYPES[precision])
    device.forget()
    assert trainer_of(model, Videos(worlds), tmp_path, precision, draw).fit() == 3
    assert len(device.reads) == 1 and "training/engine.py" in device.reads[0], device.reads
    assert len(drawn) == 2
    for parameter in model.parameters():
        assert isinstance(parameter, SimulatedTensor) and parameter.dtype == DTYPES[precision]
    if precision == "fp32":
        host = worlds.model()
        trainer_of(host, Videos(worlds), tmp_path / "host", precision).fit()
        there, here = (json.loads((f / "metrics.jsonl").read_text()) for f in (tmp_path, tmp_path / "host"))
        for name in ("loss/total", "loss/loc", "train/grad_norm"):
            assert there[name] == pytest.approx(here[name], rel=1e-3), name


def test_a_diverged_run_is_named(device, worlds, tmp_path):
    model = worlds.model().to("simulated")
    with pytest.raises(DivergedError, match="video_3"):
        trainer_of(model, Videos(worlds, poison=3), tmp_path, "fp32").fit()


@BOTH
def test_an_exported_model_comes_back_to_the_device(device, worlds, tmp_path, precision):
    worlds.model(visual_mode="video").save_pretrained(tmp_path / "from the CPU")
    model, _ = load_any(tmp_path / "from the CPU", device="simulated", dtype=DTYPES[precision])
    model.save_pretrained(tmp_path / "from the device")
    loaded, report = load_any(tmp_path / "from the device", device="simulated")
    assert not report.missing and not report.initialised
    own = dict(model.state_dict())
    for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert isinstance(tensor, SimulatedTensor), name
        if name in own:
            assert tensor.dtype == own[name].dtype == DTYPES[precision] and torch.equal(tensor, own[name]), name
    batch = MoraBatch([worlds.video(1, 3, segs=[1, 2])]).to("simulated", DTYPES[precision])
    with torch.no_grad():
        assert loaded.eval()(batch)["loss"].item() == model.eval()(batch)["loss"].item()


@BOTH
def test_trained_weights_are_copied_to_the_device(device, worlds, precision):
    """``--init_from`` and export copy from host memory into a model wherever it is, in its precision."""
    model = build(worlds.config(), seed=8).to("simulated", DTYPES[precision])
    trained = worlds.model().state_dict()
    report = fit_weights(model, trained, "there")
    assert report.loaded == len(trained) and not report.missing
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, SimulatedTensor) and tensor.dtype == DTYPES[precision]
        assert torch.equal(tensor.cpu(), trained[name].to(tensor.dtype)), name


def test_the_optimizer_comes_back_to_the_device(device, worlds, tmp_path):
    """Its moments are on the device after a restart, its counts of steps stay on the host: none costs a wait."""
    model = worlds.model().to("simulated").train()
    batch = MoraBatch([worlds.video(1, 3, segs=[1, 2])]).to("simulated")

    def step(optimizer):
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()

    first = torch.optim.AdamW(model.parameters())
    step(first)
    saved = first.state_dict()
    for state in saved["state"].values():
        state.update({name: value.cpu() for name, value in state.items()})
    torch.save(saved, tmp_path / "optimizer.pt")
    second = torch.optim.AdamW(model.parameters())
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    moments = [state["exp_avg"] for state in second.state.values()]
    assert moments and all(isinstance(moment, SimulatedTensor) for moment in moments)
    device.forget()
    step(second)
    assert device.reads == []
