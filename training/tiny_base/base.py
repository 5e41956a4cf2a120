"""Makes ``assets/tiny_base``: a very small MoRA that can see, name and segment, and has never seen anything move.

Three steps, all on still videos (see ``training.tiny_base.tasks``): SAM alone with a learned prompt per colour and
shape, as SAM was trained before LISA; then everything but SAM's image encoder on naming, placing and referring, with an
auxiliary loss that makes each patch of the vision tower say which colour and shape it shows, as CLIP's alignment does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.synthetic import SHAPES, WorldSettings
from datasets.tokenization import load_tokenizer
from model import presets
from model.answering import Request, answer, encode
from model.losses import LossWeights, bce_per_mask
from model.mora import MoraModel
from training.tiny_base.tasks import COLOUR_NAMES, StillBatches, StillTasks, TaskMix, dense_targets
from utils.batch import MoraBatch
from utils.files import atomic_directory, write_json
from utils.paths import require_own

NUM_FRAMES = 8
"""Pictures in the still videos that the figures are taken on."""

TasksOf = Callable[[int, TaskMix], StillTasks]
"""Tasks for still videos of so many pictures with so many questions."""


@dataclass(frozen=True)
class Phase:
    """Some steps on still videos of one length.

    Attributes:
        frames: pictures per video.
        videos: per step.
        steps: how many.
        mix: questions per video.
    """

    frames: int
    videos: int
    steps: int
    mix: TaskMix = TaskMix()


@dataclass(frozen=True)
class BaseRecipe:
    """How long and how fast.

    Attributes:
        sam: SAM alone, on single pictures.
        language: everything else, in phases with more and more pictures per video; one learning-rate curve over all.
        sam_lr, lr: peaks of the two curves.
        warmup: steps of linear warm-up of either; a cosine to 3 % follows.
        seed: of weights and data; no demo or test corpus uses it.
        workers: processes that make the pictures.
    """

    sam: Phase = Phase(frames=1, videos=32, steps=600)
    language: tuple[Phase, ...] = (
        Phase(1, 24, 1500, TaskMix(refer=1, where=2, what=2, list=0, mask_frames=1)),
        Phase(3, 12, 600),
        Phase(8, 8, 900),
    )
    sam_lr: float = 1e-3
    lr: float = 1.2e-3
    warmup: int = 100
    seed: int = 90210
    workers: int = 1

    def shortened(self, factor: float) -> BaseRecipe:
        """The same recipe with all numbers of steps multiplied by ``factor`` (at least one step each)."""

        def cut(phase: Phase) -> Phase:
            return dataclasses.replace(phase, steps=max(1, round(phase.steps * factor)))

        language = tuple(cut(phase) for phase in self.language)
        return dataclasses.replace(self, sam=cut(self.sam), language=language)


def cosine(step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to 0.03."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def segmentation_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """2 BCE + Dice with one pixel of smoothing, for small objects; [N, H, W] both."""
    probabilities = logits.sigmoid().flatten(1)
    flat = targets.float().flatten(1)
    dice = 1 - (2 * (probabilities * flat).sum(1) + 1) / (probabilities.sum(1) + flat.sum(1) + 1)
    return 2 * bce_per_mask(logits, targets).mean() + dice.mean()


def iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of each mask, [N]; 1 where both are empty."""
    predicted, wanted = logits > 0, targets > 0
    union = (predicted | wanted).flatten(1).sum(1)
    return torch.where(union > 0, (predicted & wanted).flatten(1).sum(1) / union.clamp(min=1), 1.0)


class NamedPrompts(nn.Module):
    """A prompt per colour plus a prompt per shape; thrown away when SAM is trained."""

    def __init__(self, width: int):
        super().__init__()
        self.colours = nn.Embedding(len(COLOUR_NAMES), width)
        self.shapes = nn.Embedding(len(SHAPES), width)

    def forward(self, things: list) -> Tensor:
        """Objects to prompts [N, C]."""
        colours = torch.tensor([COLOUR_NAMES.index(thing.colour) for thing in things])
        shapes = torch.tensor([SHAPES.index(thing.shape) for thing in things])
        return self.colours(colours) + self.shapes(shapes)


def optimise(
    parameters: list[nn.Parameter],
    batches: Iterable[tuple[MoraBatch, list]],
    steps: int,
    lr: float,
    warmup: int,
    loss_of: Callable[[MoraBatch, list], dict],
    name: str,
) -> None:
    """AdamW with warm-up and cosine; ``loss_of(batch, worlds)`` returns a dict whose "loss" is minimised."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    bar = tqdm(batches, desc=name, total=steps, mininterval=5.0)
    average: dict[str, float] = {}
    for step, (batch, worlds) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step, steps, warmup)
        values = loss_of(batch, worlds)
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, value in values.items():
            value = float(value.detach())
            average[key] = 0.95 * average.get(key, value) + 0.05 * value
        if step % 100 == 0:
            bar.write(json.dumps({"stage": name, "step": step, **{k: round(v, 4) for k, v in average.items()}}))


def _unchanged(item: Any) -> Any:
    """Instead of the loader's own conversion of arrays."""
    return item


def phase_batches(phases: Iterable[Phase], tasks: TasksOf, recipe: BaseRecipe) -> Iterator[tuple[MoraBatch, list]]:
    """The batches of several phases, one after the other; each phase has its own seed."""
    for number, phase in enumerate(phases):
        source = StillBatches(tasks(phase.frames, phase.mix), recipe.seed + 10 + number, phase.videos, phase.steps)
        yield from DataLoader(source, batch_size=None, num_workers=recipe.workers, collate_fn=_unchanged)


def train_sam(model: MoraModel, tasks: TasksOf, recipe: BaseRecipe) -> None:
    """SAM alone: single pictures, all named objects of each."""
    prompts = NamedPrompts(model.config.out_dim)

    def loss_of(batch: MoraBatch, worlds: list) -> dict:
        embeddings = model.sam.encode(torch.cat([video.sam_pixels for video in batch.videos]))
        things, frame_of, targets, frame = [], [], [], 0
        for world, id_maps in worlds:
            for id_map in id_maps:
                for thing in world.objects:
                    things.append(thing)
                    frame_of.append(frame)
                    targets.append(torch.from_numpy(id_map == thing.object_id))
                frame += 1
        low = model.sam.decode(embeddings[frame_of], prompts(things))
        video = batch.videos[0]
        logits = model.sam.to_frames(low, video.resized_size, video.original_size)
        target = torch.stack(targets).float()
        return {"loss": segmentation_loss(logits, target), "iou": iou(logits.detach(), target).mean()}

    parameters = [p for p in (*model.sam.parameters(), *prompts.parameters()) if p.requires_grad]
    batches = phase_batches([recipe.sam], tasks, dataclasses.replace(recipe, seed=recipe.seed + 100))
    optimise(parameters, batches, recipe.sam.steps, recipe.sam_lr, recipe.warmup, loss_of, "SAM on named objects")


class PatchReader(nn.Module):
    """Auxiliary heads on the vision tower's patches: which colour and which shape; thrown away afterwards."""

    def __init__(self, width: int):
        super().__init__()
        self.colour = nn.Linear(width, len(COLOUR_NAMES) + 1)
        self.shape = nn.Linear(width, len(SHAPES) + 1)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """features [F, N, C], targets int64 [F, N, 2] to the summed cross-entropy; objects weigh more than ground."""
        weights = torch.where(targets[..., 0] > 0, 1.0, 0.25).flatten()
        colour = F.cross_entropy(self.colour(features).flatten(0, 1), targets[..., 0].flatten(), reduction="none")
        shape = F.cross_entropy(self.shape(features).flatten(0, 1), targets[..., 1].flatten(), reduction="none")
        return ((colour + shape) * weights).sum() / weights.sum()


def patch_features(model: MoraModel) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """What takes the features of the vision tower's patches, and how these become [F, N, C], row after row."""
    if model.config.backbone == "llava":
        return model.projector, lambda features: features
    side = int(math.isqrt(model.config.min_pixels) / model.config.vision_config.patch_size / 2)

    def ordered(features: Tensor) -> Tensor:  # blocks of 2 x 2 patches, block after block
        blocks = features.unflatten(0, (-1, side, side, 2, 2))
        return blocks.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)

    return model.backbone.part("language_model.model.visual.merger"), ordered


def train_language(model: MoraModel, tasks: TasksOf, recipe: BaseRecipe) -> None:
    """Everything but SAM's image encoder: naming, placing, referring, with the patch loss beside."""
    model.sam.encoder.requires_grad_(False)
    projector, ordered = patch_features(model)
    reader = PatchReader(model.config.vision_config.hidden_size)
    seen: list[Tensor] = []
    hook = projector.register_forward_pre_hook(lambda module, inputs: seen.append(ordered(inputs[0])))

    def loss_of(batch: MoraBatch, worlds: list) -> dict:
        seen.clear()
        output = model(batch, LossWeights(ce=1.0, bce=2.0, dice=1.0))
        features = torch.cat(seen)
        dense = reader(features, dense_targets(worlds, math.isqrt(features.shape[1])))
        return {"loss": output["loss"] + dense, "ce": output["ce_loss"], "mask": output["mask_loss"], "dense": dense}

    parameters = [p for p in (*model.parameters(), *reader.parameters()) if p.requires_grad]
    steps = sum(phase.steps for phase in recipe.language)
    batches = phase_batches(recipe.language, tasks, recipe)
    optimise(parameters, batches, steps, recipe.lr, recipe.warmup, loss_of, "seeing, naming, referring")
    hook.remove()
    model.sam.encoder.requires_grad_(True)


@torch.no_grad()
def figures(model: MoraModel, tasks: StillTasks, seed: int, videos: int = 40) -> dict[str, float]:
    """What the base can do on still videos it has not seen.

    Returns:
        Share of text answers generated word for word, by kind of question (``where``, ``what``, ``list``), and
        ``referring_iou``: mean IoU of the masks of objects named in the question.
    """
    model.eval()
    right: dict[str, list[bool]] = {}
    ious: list[float] = []
    for index in range(videos):
        batch, _ = tasks.batch(seed, index, 1)
        video = batch.videos[0]
        output = model(batch, return_predictions=True)
        for question, predicted in zip(video.questions, output["predictions"][0]):
            if question.masks.numel():
                ious += iou(predicted["mask_logits"][0], question.masks[0].float()).tolist()
        context = encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
        asked = [question for question in video.questions if not question.masks.numel()]
        starts = [int((question.labels >= 0).nonzero()[0]) for question in asked]
        prompts = [question.input_ids[:start] for question, start in zip(asked, starts)]
        request = Request(max_new_tokens=40, eos_token_id=tasks.tokenizer.eos_id)
        answers = answer(model, context, prompts, request)
        for question, prompt, start, said in zip(asked, prompts, starts, answers):
            words = tasks.tokenizer.decode(prompt[prompt >= 0].tolist())
            kind = "where" if "Where" in words else "list" if "Which" in words else "what"
            ids = [token for token in said.token_ids[0] if token != tasks.tokenizer.eos_id]
            right.setdefault(kind, []).append(ids == question.labels[start:-1].tolist())
    shares = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
    return {**shares, "referring_iou": sum(ious) / len(ious)}


FILES = ("card.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""What a base's folder holds."""


def make_tiny_base(
    out: Path, tokenizer_folder: Path, recipe: BaseRecipe, test_videos: int, backbone: str = "llava"
) -> dict:
    """Train a base from nothing and write it, with its tokenizer and a card, as one folder.

    Args:
        out: folder to write; an old one is replaced only when the new one is complete, and nothing else is.
        tokenizer_folder: with [SEG]; its [LOC] stays unknown to the base.
        recipe: how long and how fast.
        test_videos: unseen still videos for the figures.
        backbone: "llava" (:func:`model.presets.tiny`) or "qwen3_vl" (:func:`model.presets.tiny_qwen`).

    Returns:
        The card: recipe, minutes, figures.

    Raises:
        ConfigError: ``out`` holds anything but an earlier base.
    """
    require_own(out, FILES if (out / "card.json").is_file() else (), "--out")
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(tokenizer_folder, "plain")
    words = {"vocab_size": len(tokenizer), "loc_mode": "none", "seg_token_id": tokenizer.id_of("[SEG]")}
    config = presets.tiny(**words) if backbone == "llava" else presets.tiny_qwen(**words, timestamps=True)
    model = presets.build(config, seed=recipe.seed)

    def tasks(frames: int, mix: TaskMix) -> StillTasks:
        return StillTasks(
            WorldSettings(), tokenizer, config.template, frames, mix, model.sam.pixel_rule, config.pixel_rule,
            config.frame_marks,
        )  # fmt: skip

    begin = time.monotonic()
    model.train()
    train_sam(model, tasks, recipe)
    train_language(model, tasks, recipe)
    minutes = (time.monotonic() - begin) / 60
    model.half().float()  # the folder holds half precision; the figures are those of what it holds
    results = figures(model, tasks(NUM_FRAMES, TaskMix()), recipe.seed + 2, test_videos)
    card = {
        "made_by": "python -m scripts.make_tiny_base",
        "recipe": dataclasses.asdict(recipe),
        "minutes": round(minutes, 1),
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test_videos": test_videos,
        "figures": {name: round(value, 4) for name, value in results.items()},
    }
    with atomic_directory(out) as folder:
        model.half().save_pretrained(folder)
        tokenizer.save(folder)
        write_json(folder / "card.json", card)
    print(json.dumps(card, indent=2))
    return card
