"""The published Qwen3-VL layout, a base that has yet to learn [SEG], and the names that its tensors have had.

Layout: ``save_pretrained`` of ``Qwen3VLForConditionalGeneration``. ``config.json`` has ``model_type: "qwen3_vl"``,
``text_config``, ``vision_config`` and, at the top, the ``tie_word_embeddings`` that counts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from model.backbones import backbone_class
from model.checkpoints.files import read_state_dict
from model.checkpoints.layout import Reading, Request, build_config, refuse_tower, require_sizes
from model.checkpoints.lisa import find_token_id
from model.checkpoints.sam import fill_sam, part_of, rename_sam, sam_config_of
from model.fields import COMMON, FLAG, building, note_problems
from utils.errors import CheckpointError, ConfigError, Problems

_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|base_model|model|language_model|qwen\w*|sam|visual_model)\.)*")
"""What programs put in front: their own attribute's name, peft's, DeepSpeed's, transformers' two levels. What follows
tells a part of the network whatever comes before it."""

_DECODER = r"layers\.\d+\.(?:self_attn|mlp|input_layernorm|post_attention_layernorm)\.|embed_tokens\.|norm\."

_PARTS = (
    (re.compile(r"lm_head\."), "language_model."),
    (re.compile(r"visual\."), "language_model.model."),
    (re.compile(_DECODER), "language_model.model.language_model."),
    (re.compile(r"(?:text_hidden_fcs|loc_head)\."), ""),
)
"""How the name of a part goes on, and what ours has before it."""

_RENAMED_SAM = re.compile(r"vision_encoder\.|shared_image_embedding\.|mask_decoder\..*\.proj_in\.")
"""Names that only transformers' SAM has."""


def plain_names(names: Iterable[str]) -> dict[str, str | None]:
    """Stored names of Qwen3-VL or of MoRA on it, whichever wrappers are around them, to ours; None for a stranger."""
    rests = {name: name[_WRAPPERS.match(name).end() :] for name in names}
    # In SAM's first names "layers.0" is what "proj_in" is in the others; all of them together tell which these are.
    renamed = any(_RENAMED_SAM.match(rest) for rest in rests.values())
    return {name: _our_name(rest, renamed) for name, rest in rests.items()}


def _our_name(rest: str, renamed_sam: bool) -> str | None:
    for pattern, ours in _PARTS:
        if pattern.match(rest):
            return ours + rest
    (sam,) = (rest,) if renamed_sam else rename_sam({rest: None})
    return f"sam.{sam}" if part_of(sam) else None


def read(request: Request) -> Reading:
    """Read a folder; SAM comes from elsewhere, read-out and [LOC] head are new."""
    folder, report = request.folder, request.report
    path = folder / "config.json"
    refuse_tower(request, "qwen3_vl")
    parts = _parts(request.stored, path)
    state = read_state_dict(folder)
    names = plain_names(state)
    tensors = {ours or name: state.pop(name) for name, ours in names.items()}
    require_head(tensors, parts["text_config"].tie_word_embeddings, path)
    fill_sam(tensors, request.vision_pretrained, report)
    sam = sam_config_of({name.removeprefix("sam."): t for name, t in tensors.items() if name.startswith("sam.")})
    fields: dict[str, Any] = {
        "backbone": "qwen3_vl",
        **parts,
        "sam_config": sam,
        "out_dim": sam.prompt_encoder_config.hidden_size,
        "seg_token_id": find_token_id(folder, request.overrides.get("seg_token", "[SEG]")),
        "loc_token_id": find_token_id(folder, request.overrides.get("loc_token", "[LOC]")),
    }
    try:
        build_config(fields, {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    config = build_config(fields, request.overrides)
    require_sizes(config, tensors, {"text_config": path, "vision_config": path})
    strangers = frozenset(name for name, ours in names.items() if ours is None)
    heads = ("loc_head.", "text_hidden_fcs.")
    fresh = [f"{head}*" for head in heads if not any(name.startswith(head) for name in tensors)]
    return Reading(config, tensors, fresh, strangers)


def require_head(names: Iterable[str], tied: bool, source: str | Path) -> None:
    """Refuse word embeddings without a language head where the two are not one: it would stay random.

    Raises:
        CheckpointError: naming the field.
    """
    words, head = (f"{part}.weight" for part in backbone_class("qwen3_vl").vocabulary_parts)
    if not tied and words in names and head not in names:
        raise CheckpointError(
            f"{source}: there are word embeddings and no language head (lm_head.weight), but tie_word_embeddings is "
            "false at the top of config.json: they were saved as one matrix. Use the config.json saved with these "
            "weights, or set it to true there"
        )


def _parts(stored: dict[str, Any], path: Path) -> dict[str, PretrainedConfig]:
    """The configurations of decoder and tower.

    Raises:
        ConfigError: with every field that is absent or cannot be used.
    """
    kinds, problems = backbone_class("qwen3_vl").parts, Problems()
    note_problems(stored, {"tie_word_embeddings": FLAG}, problems)
    for part, (_, rules) in kinds.items():
        note_problems(stored.get(part), rules, problems, part)
    problems.raise_if_any(ConfigError, f"{path}: use the config.json saved with these weights")
    made = {}
    for part, (kind, rules) in kinds.items():
        known = rules.keys() - {*COMMON, "model_type", "tie_word_embeddings", "partial_rotary_factor"}
        values = {name: value for name, value in stored[part].items() if name in known and value is not None}
        with building(f"{path}: {part}"):
            made[part] = kind(**copy.deepcopy(values))
    # The one at the top counts, as in transformers; the decoder's own value says nothing.
    made["text_config"].tie_word_embeddings = stored.get("tie_word_embeddings", False)
    return made
