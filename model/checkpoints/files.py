"""Read the tensors and the configuration of a folder, without running any code that a file may carry.

Formats: safetensors; PyTorch archives opened with ``weights_only=True``; either of them in shards listed by an
``*.index.json`` (the layout of ``transformers.save_pretrained`` and of current ``zero_to_fp32.py``).
"""

from __future__ import annotations

import codecs
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.backbones import BACKBONES
from model.fields import shown
from utils.errors import CheckpointError, DataError, Problems
from utils.files import POINTER, is_pointer, read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")
"""Names looked for in a folder, in this order, each with its sharded form ``NAME.index.json`` first."""

WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training programs keep the tensors of an otherwise mixed file."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a weight file or folder to the CPU.

    Args:
        path: a ``.safetensors``, ``.bin``, ``.pt`` or ``.pth`` file; an ``*.index.json``; or a folder holding
            ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards, or exactly one weight file.

    Returns:
        Name to tensor, as stored (dtype kept; PyTorch archives are memory-mapped).

    Raises:
        CheckpointError: nothing there, several candidates, a shard that is missing, truncated or lists other names
            than its index, a file that would need code to open, an unconverted DeepSpeed checkpoint.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = find_weights(path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder; check the path of the weights")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: neither a file nor a folder; check the path of the weights")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _read_file(path)


def find_weights(folder: Path) -> Path:
    """The weight file, or the index of shards, of a folder.

    Raises:
        CheckpointError: there is none, there are several, or the folder is a DeepSpeed checkpoint.
    """
    for name in WEIGHT_FILES:
        for candidate in (folder / f"{name}.index.json", folder / name):
            if candidate.is_file():
                return candidate
            if candidate.is_symlink() and not candidate.exists():
                raise CheckpointError(f"{candidate}: a link to {os.readlink(candidate)}, which is not there; copy it")
    refuse_deepspeed(folder)
    others = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(file.name for file in others)
        raise CheckpointError(f"{folder}: several weight files and no index ({names}); name one of them instead")
    raise CheckpointError(
        f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, or their shards with an index.json"
    )


def refuse_deepspeed(folder: Path) -> None:
    """Explain what to do with a DeepSpeed checkpoint folder; return if ``folder`` is none.

    Raises:
        CheckpointError: the folder is a DeepSpeed checkpoint, complete (merge it first) or without ``latest``.
    """
    latest = folder / "latest"
    pieces = sorted(folder.glob("global_step*")) or sorted(folder.glob("*mp_rank_*_model_states.pt"))
    if not latest.exists() and not pieces:
        return
    if not latest.exists():
        raise CheckpointError(
            f"{latest}: missing, though {pieces[0].name} is there: not a complete DeepSpeed checkpoint, or a folder "
            "inside one; use the folder that holds `latest`, or an older checkpoint"
        )
    raise CheckpointError(
        f"{folder}: a DeepSpeed checkpoint, which keeps what was trained in partitions; merge it into its base first: "
        f"python merge_lora_weights_and_save_hf_model.py --version BASE --weight {folder} --save_path MODEL"
    )


def checkpoint_json(path: Path) -> Any:
    """Content of a JSON file that belongs to a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo the names that peft and data-parallel wrappers add: ``module.``, ``base_model.model.``, ``.base_layer``.

    LoRA matrices keep their ``lora_A`` / ``lora_B`` names; the export tool merges them.
    """
    wrapper = "module." if all(name.startswith("module.") for name in state) else ""
    return {
        name.removeprefix(wrapper).removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for name, value in state.items()
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        CheckpointError: missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; a checkpoint folder has config.json beside its weights. For a training checkpoint, "
            "convert and merge it first (merge_lora_weights_and_save_hf_model.py)"
        )
    config = checkpoint_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return config


def told_backbone(stored: Mapping[str, Any]) -> str | None:
    """The backbone that the content of a ``config.json`` names; None if it does not."""
    kind = stored.get("backbone", "llava") if stored.get("model_type") == "mora" else stored.get("model_type")
    return kind if isinstance(kind, str) and kind in BACKBONES else None


def _read_shards(index_path: Path) -> dict[str, Tensor]:
    """Read every shard an index names and check that each holds just what the index says."""
    index = checkpoint_json(index_path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: no `weight_map`; download the index again")
    shards = _shards(index_path, weight_map)
    problems = Problems()
    state: dict[str, Tensor] = {}
    for shard, listed in shards.items():
        try:
            tensors = _read_file(shard)
        except CheckpointError as error:
            metadata = index.get("metadata")
            total = metadata.get("total_size") if isinstance(metadata, dict) else None
            on_disk = sum(file.stat().st_size for file in shards)
            expected = f"; the index counts {total:,} bytes of tensors" if isinstance(total, int) else ""
            raise CheckpointError(f"{error} ({len(shards)} shards hold {on_disk:,} bytes{expected})") from None
        for name in sorted(listed - tensors.keys()):
            problems.add(str(shard), f"lacks {name}, which {index_path.name} places there")
        for name in sorted(tensors.keys() - listed):
            problems.add(str(shard), f"holds {name}, which {index_path.name} does not place there")
        state.update(tensors)
    problems.raise_if_any(CheckpointError, f"{index_path}: shards and index disagree; download both again")
    return state


def _shards(index_path: Path, weight_map: Mapping[str, Any]) -> dict[Path, set[str]]:
    """The files that an index names, each with its tensors, sorted by file.

    Raises:
        CheckpointError: a file that is not there, or no path inside the folder of the index.
    """
    problems = Problems()
    listed: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        inside = isinstance(file, str) and file.strip() and not os.path.isabs(file) and "\0" not in file
        if not inside or ".." in Path(file).parts:
            problems.add(
                f"weight_map[{name!r}]", f"is {shown(file)}; use the name of a shard in the folder of the index"
            )
        else:
            listed.setdefault(index_path.parent / os.path.normpath(file), set()).add(name)
    for shard in listed:
        if not os.path.isfile(shard):
            problems.add(str(shard), f"missing shard, listed in {index_path.name}; download it again")
    problems.raise_if_any(CheckpointError, f"{index_path}: incomplete checkpoint")
    return dict(sorted(listed.items()))


def _read_file(path: Path) -> dict[str, Tensor]:
    """Read one weight file."""
    if is_pointer(path):
        raise CheckpointError(f"{path}: {POINTER}")
    size = path.stat().st_size
    broken = f"{path}: cannot be read: truncated or damaged at {size:,} bytes; download or write it again"
    if path.suffix == ".safetensors":
        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{broken} ({error})") from None
    if what := _kind_of_text(path):
        raise CheckpointError(
            f"{path}: {what}, not weights; name a .safetensors, .bin, .pt or .pth file, an *.index.json of shards, or "
            "the folder that holds them"
        )
    try:
        # Older pickles cannot be memory-mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes fail in a dozen ways: bad zip, bad pickle, bad text, missing key ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Weights only load failed" in str(error):
            # PyTorch's own advice, to open it all the same, is not passed on.
            culprit = re.search(r"GLOBAL (\S+)", str(error))
            raise CheckpointError(
                f"{path}: refused: it holds more than tensors ({culprit[1] if culprit else 'a pickled object'}) and "
                "could run code when opened; save its tensors again as safetensors where it is trusted"
            ) from None
        raise CheckpointError(f"{broken} ({reason})") from None
    return _unwrap(content, path)


def _kind_of_text(path: Path) -> str | None:
    """What a text file is taken for; None if the file does not start as text."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()  # a character cut in two is no mistake
    except UnicodeDecodeError:
        return None
    if not text or not all(character.isprintable() or character.isspace() for character in text):
        return None
    return "a JSON file" if text[0] in "{[" else "a text file"


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The dict of tensors inside what a file held."""
    if isinstance(content, dict):
        for key in WRAPPERS:
            inner = content.get(key)
            if isinstance(inner, dict) and inner and all(isinstance(value, Tensor) for value in inner.values()):
                content = inner
                break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    strange = [str(name) for name, value in content.items() if not (isinstance(name, str) and _is_plain(value))]
    if strange or not content:
        found = ", ".join(strange[:5]) or "nothing"
        raise CheckpointError(f"{path}: not a dict of tensors (it holds {found}); give the model's weights")
    return dict(content)


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor of ordinary numbers: not sparse, quantised or without values."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_meta
