"""The published LISA / MoRA layout: what its folder says about the model, and where its tensors go.

Layout: ``save_pretrained`` of transformers 4.31 over LISA's classes. ``config.json`` has ``model_type: "llava"`` with
Llama's fields, LLaVA's ``mm_*`` fields and LISA's ``train_mask_decoder`` and ``out_dim``; tensors are ``model.*`` and
``lm_head.weight``; the CLIP tower is not stored, only named by ``vision_tower``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from model.checkpoints.key_maps import rename_clip, rename_sam, strip_prefix
from model.fields import CLIP, FLAG, LAYERS, LLAMA, SIZE, WORD, Rule, building, note_problems, optional, shown, whole
from utils.errors import CheckpointError, ConfigError, DataError, Problems
from utils.files import read_json

LLAMA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Fields of ``config.json`` that shape the decoder. Llama 1, Vicuna and Llama 2 differ in some of them."""

LLAVA_FIELDS: dict[str, Rule] = {
    "mm_vision_select_layer": whole(-LAYERS, LAYERS),
    "vision_tower": optional(WORD),
    "mm_vision_tower": optional(WORD),
    "train_mask_decoder": optional(FLAG),
    "out_dim": optional(SIZE),
}
"""What LLaVA's and LISA's own fields may hold."""

SAM_PREFIX = "model.visual_model."
TOWER_PREFIX = "model.vision_tower.vision_tower."
PROJECTOR_PREFIX = "model.mm_projector."
HEAD_PREFIX = "model.text_hidden_fcs."

_CONSTANT = re.compile(r"(.*\.rotary_emb\.inv_freq|model\.visual_model\.pixel_(mean|std))$")
"""Buffers that old versions stored; they follow from the configuration."""

_DECODER = re.compile(r"(lm_head\.weight|model\.(embed_tokens|norm|layers\.\d+)\..*)$")

LLAVA_TYPES = ("llava", "llava_llama", "lisa", "mora_llava")
"""``model_type`` of LLaVA v1 and of what was trained from it."""


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
    try:
        config = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return config


def llama_config(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> LlamaConfig:
    """The decoder's configuration.

    Args:
        config: ``config.json``.
        state: the tensors; the vocabulary's size is that of ``model.embed_tokens.weight``.
        path: of ``config.json``, for messages.

    Raises:
        CheckpointError: no embeddings, fields that are needed are absent, or features this project does not have.
        ConfigError: with every field whose value cannot be used.
    """
    if "model.embed_tokens.weight" not in state:
        raise CheckpointError("model.embed_tokens.weight: missing; this is no LLaVA, LISA or MoRA checkpoint")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature != "patch":
        raise CheckpointError(f"{path}: mm_vision_select_feature is {shown(feature)}; only 'patch' features are known")
    absent = [name for name in LLAMA_FIELDS[1:5] if name not in config]
    if absent:
        raise CheckpointError(f"{path}: lacks {', '.join(absent)}; use the config.json saved with these weights")
    problems = Problems()
    note_problems(config, {**LLAMA, **LLAVA_FIELDS}, problems)
    problems.raise_if_any(ConfigError, f"{path}: use the config.json saved with these weights")
    fields = {name: config[name] for name in LLAMA_FIELDS if config.get(name) is not None}
    fields["vocab_size"] = state["model.embed_tokens.weight"].shape[0]
    fields.setdefault("tie_word_embeddings", False)
    with building(str(path)):
        return LlamaConfig(**copy.deepcopy(fields))  # the library changes nested objects that it is given


def clip_config(folder: Path) -> CLIPVisionConfig:
    """The vision tower's configuration from a ``CLIPModel`` or ``CLIPVisionModel`` folder.

    Raises:
        CheckpointError: no ``config.json``, or of another kind of model.
        ConfigError: with every field whose value cannot be used.
    """
    config, path = read_config(folder), folder / "config.json"
    kind = config.get("model_type")
    if kind == "clip":
        config = {} if config.get("vision_config") is None else config["vision_config"]
    elif kind != "clip_vision_model":
        raise CheckpointError(f"{path}: model_type is {shown(kind)}, expected a CLIP vision tower")
    problems = Problems()
    note_problems(config, CLIP, problems, "vision_config" if kind == "clip" else "")
    problems.raise_if_any(ConfigError, f"{path}: use the config.json saved with this vision tower")
    known = CLIPVisionConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    with building(str(path)):
        return CLIPVisionConfig(**{name: value for name, value in config.items() if name in known})


def projector_kind(state: Mapping[str, Tensor]) -> str:
    """ "linear" (LLaVA v1) or "mlp" (two layers, LLaVA 1.5), from the names.

    Raises:
        CheckpointError: no projector, or one of another form.
    """
    names = set(strip_prefix(state, PROJECTOR_PREFIX))
    if names == {"weight", "bias"}:
        return "linear"
    if names == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        return "mlp"
    if not names:
        raise CheckpointError(f"{PROJECTOR_PREFIX}*: missing; this checkpoint cannot see (a plain language model?)")
    raise CheckpointError(f"{PROJECTOR_PREFIX}*: has {sorted(names)}; known are one linear layer, or two with GELU")


def rename_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Sort the tensors of a published checkpoint.

    Returns:
        (renamed, unknown, ignored): tensors under the names of :class:`model.mora.MoraModel`, tensors that have no
        place there, and constants left out on purpose, both under their own names. SAM is renamed as well.
    """
    renamed: dict[str, Tensor] = {}
    sam: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    ignored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _CONSTANT.match(name):
            ignored[name] = tensor
        elif name.startswith(SAM_PREFIX):
            sam[name.removeprefix(SAM_PREFIX)] = tensor
        elif _DECODER.match(name):
            renamed[f"language_model.{name}"] = tensor
        elif name.startswith(PROJECTOR_PREFIX):
            bare = name.removeprefix(PROJECTOR_PREFIX)
            renamed[f"projector.layers.{bare if bare[0].isdigit() else '0.' + bare}"] = tensor
        elif name.startswith(HEAD_PREFIX):
            renamed[name.removeprefix("model.")] = tensor
        elif name.startswith(TOWER_PREFIX):
            tower[name.removeprefix(TOWER_PREFIX)] = tensor
        else:
            unknown[name] = tensor
    fitting, strange = rename_sam(sam)
    renamed.update({f"sam.{name}": tensor for name, tensor in fitting.items()})
    unknown.update({SAM_PREFIX + name: tensor for name, tensor in strange.items()})
    clip, extras = rename_clip(tower)
    renamed.update({f"vision_tower.{name}": tensor for name, tensor in clip.items()})
    ignored.update({TOWER_PREFIX + name: tensor for name, tensor in extras.items()})
    return renamed, unknown, ignored


def find_token_id(folder: Path, token: str) -> int | None:
    """Id of an added token, read from the tokenizer's files.

    ``added_tokens.json`` (slow tokenizers), ``tokenizer.json`` and ``tokenizer_config.json`` are looked into, in this
    order. The tokenizer itself is not run: its encoding of "[SEG]" begins with another token in some versions.

    Returns:
        The id, or None when no file names the token.

    Raises:
        CheckpointError: a tokenizer file is not JSON, or what it gives as the id is none.
    """
    for name in ("added_tokens.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = read_json(path)
        except DataError as error:
            raise CheckpointError(str(error)) from None
        # Only added_tokens.json is a plain table of tokens; elsewhere a word at the top is the name of a part.
        table = {"model": {"vocab": content}} if name == "added_tokens.json" else content
        found = _id_in(table, token)
        if found is _UNNAMED:
            continue
        if type(found) is not int or found < 0:
            raise CheckpointError(
                f"{path}: the id of {token} is {shown(found)}, not a whole number from 0; take the file that was saved "
                "with the weights"
            )
        return found
    return None


_UNNAMED = object()
"""Instead of an id, where a file does not name a token; null may be what it gives as the id."""


def _id_in(content: Any, token: str) -> Any:
    """What one tokenizer file, by its content, gives as the token's id."""
    if not isinstance(content, dict):
        return _UNNAMED
    added = content.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and entry.get("content") == token:
            return entry.get("id")
    decoder = content.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and entry.get("content") == token:
            return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else number
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return vocabulary.get(token, _UNNAMED) if isinstance(vocabulary, dict) else _UNNAMED
