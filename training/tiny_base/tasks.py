"""What the tiny base is taught: to see, place, name and segment things on still pictures. Nothing here moves.

A base stands to the demo as LISA-7B and SAM stand to MoRA. Its pictures are "still videos": every frame places the same
objects anew at random, so that consecutive frames say nothing about each other, and no question is about motion or time
beyond the number of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.conversation import Shown, build_example, segmentation_answer, segmentation_question
from datasets.pixels import Preprocessor
from datasets.synthetic import COLOURS, SHAPES, Renderer, WorldSettings, make_still_video
from datasets.tokenization import MoraTokenizer
from utils.batch import FrameMarks, MoraBatch, PixelRule, QuestionTensors, VideoTensors

GRID = 8
"""Rows and columns that questions about places count in, 1 to 8 from the top left."""

COLOUR_NAMES = tuple(COLOURS)

KINDS = ("refer", "where", "what", "list")


@dataclass(frozen=True)
class TaskMix:
    """How many questions of each kind a still video gets.

    Attributes:
        refer: "segment the red circle", supervised by masks.
        where: "Where is the red circle in frame 3?" - "It is at 2, 5."
        what: "What is at 2, 5 in frame 3?" - "It is the red circle."
        list: "Which objects are there?" - every name.
        mask_frames: frames per referring question whose mask is supervised.
    """

    refer: int = 1
    where: int = 3
    what: int = 3
    list: int = 1
    mask_frames: int = 2


def place(id_map: np.ndarray, object_id: int) -> tuple[int, int] | None:
    """Row and column, 1 to GRID, of the centre of an object's visible pixels; None if it is hidden."""
    rows, columns = np.nonzero(id_map == object_id)
    if not len(rows):
        return None
    height, width = id_map.shape
    row = int(rows.mean() * GRID / height) + 1
    column = int(columns.mean() * GRID / width) + 1
    return row, column


class StillTasks:
    """Makes batches of still videos with questions; batch i is a pure function of (seed, i).

    Args:
        settings: the world; its looks only, its motion is never used.
        tokenizer: of the base.
        template: conversation template.
        num_frames: pictures per video; with one alone, questions do not say which.
        mix: questions per video.
        sam_pixels: how frames become the segmenter's.
        pixels: how frames become the backbone's.
        marks: where prompts show them; picture i stands at second i, counted from 1.
    """

    def __init__(
        self,
        settings: WorldSettings,
        tokenizer: MoraTokenizer,
        template: str,
        num_frames: int,
        mix: TaskMix,
        sam_pixels: PixelRule,
        pixels: PixelRule,
        marks: FrameMarks,
    ):
        self.shown = Shown(range(1, num_frames + 1), marks)
        self.settings = settings
        self.tokenizer = tokenizer
        self.template = template
        self.num_frames = num_frames
        self.mix = mix
        self.sam = Preprocessor(sam_pixels)
        self.clip = Preprocessor(pixels)

    def batch(self, seed: int, index: int, videos: int) -> tuple[MoraBatch, list]:
        """Videos number ``index * videos`` to ``(index + 1) * videos`` of a seed, and the worlds they came from."""
        worlds, tensors = [], []
        for number in range(index * videos, (index + 1) * videos):
            world = make_still_video(seed, number, self.settings, self.num_frames)
            frames, id_maps = Renderer(world).render(range(self.num_frames))
            worlds.append((world, id_maps))
            tensors.append(self.tensors(world, frames, id_maps, np.random.default_rng([seed, number, 7])))
        return MoraBatch(tensors), worlds

    def tensors(self, world, frames: np.ndarray, id_maps: np.ndarray, rng: np.random.Generator) -> VideoTensors:
        """One video as the model reads it."""
        questions = []
        for kind in KINDS:
            for _ in range(getattr(self.mix, kind)):
                question = self.question(kind, world, id_maps, rng)
                if question is not None:
                    questions.append(question)
        return VideoTensors(
            video_id="still",
            clip_pixels=self.clip(frames),
            sam_pixels=self.sam(frames),
            resized_size=self.sam.resized_size(*frames.shape[1:3]),
            original_size=frames.shape[1:3],
            questions=questions,
        )

    def question(self, kind: str, world, id_maps: np.ndarray, rng: np.random.Generator) -> QuestionTensors | None:
        """One question of a kind; None where the drawn object cannot be seen."""
        thing = world.objects[int(rng.integers(len(world.objects)))]
        frame = int(rng.integers(self.num_frames))
        spot = place(id_maps[frame], thing.object_id)
        if kind == "refer":
            chosen = rng.choice(self.num_frames, size=min(self.mix.mask_frames, self.num_frames), replace=False)
            text = segmentation_question(thing.name, rng, is_sentence=False)
            answer = segmentation_answer(rng, "name", answer=f"the {thing.name}")
            masks = torch.from_numpy((id_maps[np.sort(chosen)] == thing.object_id).astype(np.uint8))[None]
            return self.pack(text, answer, masks, torch.from_numpy(np.sort(chosen)))
        if kind == "list":
            names = ", ".join(f"the {name}" for name in sorted(item.name for item in world.objects))
            return self.pack("<image>\nWhich objects are there?", f"{names[0].upper()}{names[1:]}.", None, None)
        if spot is None:
            return None
        where = f"{spot[0]}, {spot[1]}"
        when = f" in frame {frame + 1}" if self.num_frames > 1 else ""
        if kind == "where":
            text, answer = f"Where is the {thing.name}{when}?", f"It is at {where}."
        else:
            text, answer = f"What is at {where}{when}?", f"It is the {thing.name}."
        return self.pack(f"<image>\n{text}", answer, None, None)

    def pack(self, text: str, answer: str, masks: Tensor | None, mask_frames: Tensor | None) -> QuestionTensors:
        """Tokens and targets of one question."""
        input_ids, labels = build_example(text, answer, self.template, self.tokenizer, shown=self.shown)
        if masks is None:
            height, width = self.settings.height, self.settings.width
            masks = torch.zeros(0, 0, height, width, dtype=torch.uint8)
            mask_frames = torch.zeros(0, dtype=torch.int64)
        return QuestionTensors(input_ids, labels, masks, mask_frames)


class StillBatches(torch.utils.data.Dataset):
    """Batches of one seed by number, for a loader that makes them in another process."""

    def __init__(self, tasks: StillTasks, seed: int, videos: int, steps: int):
        self.tasks, self.seed, self.videos, self.steps = tasks, seed, videos, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[MoraBatch, list]:
        return self.tasks.batch(self.seed, index, self.videos)


def dense_targets(worlds: list, patches: int) -> Tensor:
    """What each patch of each picture shows, for the auxiliary loss on the vision tower.

    Args:
        worlds: (world, id_maps [T, H, W]) pairs as :meth:`StillTasks.batch` returns them.
        patches: P, patches along a side.

    Returns:
        int64 [F, P * P, 2]: colour and shape class of the object that covers most of the patch if that is at least a
        third of it, else 0; classes count from 1 in the order of COLOURS and SHAPES.
    """
    targets = []
    for world, id_maps in worlds:
        frames, height, width = id_maps.shape
        cells = id_maps.reshape(frames, patches, height // patches, patches, width // patches)
        cells = cells.transpose(0, 1, 3, 2, 4).reshape(frames, patches * patches, -1)
        counts = np.stack([(cells == item.object_id).mean(-1) for item in world.objects], axis=-1)
        best = counts.argmax(-1)
        seen = counts.max(-1) >= 1 / 3
        colours = np.array([COLOUR_NAMES.index(item.colour) + 1 for item in world.objects])
        shapes = np.array([SHAPES.index(item.shape) + 1 for item in world.objects])
        targets.append(np.stack([colours[best] * seen, shapes[best] * seen], axis=-1))
    return torch.from_numpy(np.concatenate(targets)).long()
