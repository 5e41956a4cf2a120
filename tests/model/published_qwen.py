"""A tiny Qwen3-VL as its makers save it, a SAM file in the original layout, and MoRA on both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from model import presets
from tests.model.published_layout import SAM, noise

ROWS = 651
"""Rows of the vocabulary: more than the tiny tokenizer has words, as with the published model."""


def write_qwen(place: Path, tokenizer: Path | None = None, **overrides) -> Path:
    """A base folder in shards, ``sam.pth`` beside it.

    Args:
        place: gets ``qwen`` and ``sam.pth``.
        tokenizer: folder of the tokenizer to put in, if any.
        overrides: of :func:`model.presets.tiny_qwen`.
    """
    sizes = {"vocab_size": ROWS, "tower_hidden": 32, "llm_hidden": 64, "llm_layers": 2, "tower_layers": 2}
    config = presets.tiny_qwen(**{**sizes, **overrides})
    text, vision = config.text_config, config.vision_config
    torch.manual_seed(5)
    network = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=text.tie_word_embeddings)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + (parameter.dim() == 1))
    folder = place / "qwen"
    network.save_pretrained(folder, max_shard_size="300KB")
    assert (folder / "model.safetensors.index.json").is_file()
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            shutil.copy(file, folder)
    torch.save(noise(SAM, seed=1), place / "sam.pth")
    return folder


def change_config(folder: Path, **fields) -> None:
    """Set fields of ``config.json``, dotted by "__"; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
        if value is not None:
            place[last] = value
    path.write_text(json.dumps(config))


def join(folder) -> dict[str, torch.Tensor]:
    """Put the shards of a folder into one file, which is given."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    state = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    for file in (index, *(folder / file for file in files)):
        file.unlink()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return state
