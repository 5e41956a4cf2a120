"""What an evaluation benchmark runs on: synthetic clips in GroundMoRe's layout, and networks with random weights."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from benchmarks.costs import Costs, costs_of, images_of, tokens_per_image
from datasets.conversation import Shown, encode_forced_answer, encode_prompt, forced_answer, groundmore_question
from datasets.corpora import corpus_named, load
from datasets.pixels import Preprocessor
from datasets.sample import Question, VideoRecord
from datasets.synthetic import CorpusPlan, WorldSettings, write_corpora
from datasets.tokenization import MoraTokenizer, load_tokenizer
from evaluation.protocol import Protocol
from model import presets
from model.config import MoraConfig
from model.mora import MoraModel
from utils.errors import ConfigError

ASSETS = Path(__file__).resolve().parent.parent / "assets"

FULL_TEST = {"videos": 382, "questions": 2005, "frames": 20}
"""GroundMoRe's test set, evaluated on 20 frames per clip."""

QWEN = ("tiny_qwen", "qwen3_vl_2b", "qwen3_vl_4b", "qwen3_vl_8b")
"""Presets on Qwen3-VL."""

CLIP_SIZES = {"tiny": (64, 64), "tiny_qwen": (64, 64)} | dict.fromkeys(("lisa_7b", *QWEN[1:]), (720, 1280))
"""(height, width) of the clips that a preset is measured on by default."""


@dataclass
class Bench:
    """What is measured.

    Attributes:
        model: on its device, in eval mode.
        tokenizer: the model's.
        protocol: how it is evaluated.
        videos: clips with their questions.
        output_dir: where records go.
        workers: processes that score.
        decode_workers: threads that prepare frames.
        frame: (height, width) of the clips, pixels.
    """

    model: MoraModel
    tokenizer: MoraTokenizer
    protocol: Protocol
    videos: list[VideoRecord]
    output_dir: Path
    workers: int
    decode_workers: int
    frame: tuple[int, int]

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.get_input_embeddings().weight.device

    @property
    def questions(self) -> int:
        """Of all clips."""
        return sum(len(video.questions) for video in self.videos)

    def frames_of(self, video: VideoRecord) -> np.ndarray:
        """Distinct listed frames of a clip."""
        return np.unique(self.protocol.sample(len(video.frame_paths)))

    def prompt(self, video: VideoRecord, query: Question) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A question's ids, and the answer to force, if any."""
        config = self.model.config
        shown = Shown(video.times(self.frames_of(video)), config.frame_marks)
        message = groundmore_question(query.text)
        if self.protocol.answer_mode == "generate":
            return encode_prompt(message, config.template, self.tokenizer, shown), None
        text = forced_answer(config.loc_mode != "none", config.answer_style)
        return encode_forced_answer(message, text, config.template, self.tokenizer, shown)

    @property
    def seen(self) -> tuple[int, int]:
        """(height, width) at which the backbone sees a frame, pixels; of squares, before they are cut."""
        return Preprocessor(self.model.config.pixel_rule).resized_size(*self.frame)

    @property
    def costs(self) -> Costs:
        """Arithmetic of the model's parts on these clips."""
        return costs_of(self.model.config, self.seen)

    def rows(self, frames: int) -> tuple[int, int]:
        """Of a clip of so many frames: (its LLM rows, visual tokens in each)."""
        config = self.model.config
        each, images = tokens_per_image(config, self.seen), images_of(config, frames)
        return {"frame": (frames, each), "pooled": (1, each + frames), "video": (1, each * images)}[config.visual_mode]

    @property
    def tower(self) -> tuple[nn.Module, int]:
        """The first layer of the vision tower, and how many rows of what it returns are one image."""
        model, vision = self.model, self.model.config.vision_config
        if model.config.backbone == "llava":
            return model.vision_tower.embeddings, 1
        each = tokens_per_image(model.config, self.seen) * vision.spatial_merge_size**2
        return model.language_model.model.visual.patch_embed, each


def write_clips(
    work_dir: Path, videos: int, questions: int, height: int, width: int, seed: int = 3
) -> list[VideoRecord]:
    """Clips of the motion world with ``questions`` questions each; what is there already is used again.

    Args:
        work_dir: gets a folder per size and number, so that other settings do not meet.
        videos: how many.
        questions: of each; at most 9.
        height, width: of the frames, pixels.
        seed: of the world.

    Raises:
        ConfigError: more questions than the world can ask about a clip.
    """
    if not 1 <= questions <= 9:
        raise ConfigError(f"--questions_per_video {questions}: the motion world asks 1 to 9 questions about a clip")
    settings = WorldSettings.hard(
        height=height, width=width, num_frames=30, min_questions=questions, max_questions=max(questions, 8)
    )
    folder = work_dir / f"clips_{width}x{height}_{videos}x{questions}_seed{seed}"
    plan = CorpusPlan("groundmore", "test", seed, videos, settings)
    write_corpora(folder, [plan], workers=min(8, os.cpu_count() or 1))
    root = folder / "GroundMoRe"
    corpus = load(corpus_named("groundmore").reader)(root / "groundmore_test.json", root / "groundmore_videos")
    return [dataclasses.replace(record, questions=record.questions[:questions]) for record in corpus]


def make_config(preset: str, tokenizer: MoraTokenizer, **overrides: object) -> MoraConfig:
    """A preset whose vocabulary and token ids are those of a tokenizer.

    Args:
        preset: a key of CLIP_SIZES.
        tokenizer: must know [SEG] and [LOC].
        overrides: fields of the configuration. "frame" rows take the tiny preset's features across frames away, so
            that a row is the same whether its frame comes alone or among others.
    """
    fields = {
        "seg_token_id": tokenizer.id_of("[SEG]"),
        "loc_token_id": tokenizer.id_of("[LOC]"),
        "tokenization": tokenizer.rule,
        **({} if preset in QWEN else {"template": "llava_llama_2"}),
        **overrides,
    }
    if preset == "tiny_qwen":
        return presets.tiny_qwen(vocab_size=len(tokenizer), **fields)
    if preset == "tiny":
        alone = {"projector_motion": False, "frame_time_embedding": False}
        return presets.tiny(vocab_size=len(tokenizer), **(alone if fields["visual_mode"] == "frame" else {}), **fields)
    config = (presets.lisa_7b if preset == "lisa_7b" else getattr(presets, preset))(**fields)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))
    return config


def open_tokenizer(folder: Path | None, preset: str = "tiny") -> MoraTokenizer:
    """The tokenizer of a published folder with [LOC] added, or the tiny one that ships with the project."""
    tokenizer = load_tokenizer(folder or ASSETS / ("tiny_qwen_tokenizer" if preset in QWEN else "tiny_tokenizer"))
    tokenizer.add_tokens(["[SEG]", "[LOC]"])
    return tokenizer


def random_model(config: MoraConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> MoraModel:
    """A network with random weights, made on its device in its precision: 7 billion take 16 GB there, none elsewhere.

    Matrices are normal with deviation 0.02 (a position matrix of SAM 1), norms are one, biases zero. Narrow networks
    ("xavier") come from :func:`model.presets.build`, on the CPU.

    Args:
        config: its shape.
        device: where it is made.
        dtype: of the weights; constant buffers keep theirs.
        seed: of the weights.
    """
    if config.initialization == "xavier":
        model = presets.build(config, seed=seed)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)  # not model.to(dtype), which would round rotary frequencies
        return model.to(device)
    with init_empty_weights(include_buffers=False):
        model = MoraModel(config)
    generator = torch.Generator(device).manual_seed(seed)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            _fill(value, f"{path}.{name}", generator)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return model.to(device).eval()


def _fill(value: Tensor, name: str, generator: torch.Generator) -> None:
    """Give one parameter its random or constant values."""
    if value.dim() > 1:
        value.normal_(std=1.0 if name.endswith("positional_embedding") else 0.02, generator=generator)
    elif name.endswith("weight"):
        value.fill_(1.0)
    elif re.search(r"(bias|embed\w*)$", name):
        value.zero_()
    else:
        value.normal_(std=0.02, generator=generator)
