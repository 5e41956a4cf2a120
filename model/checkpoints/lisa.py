"""The published LISA / MoRA layout: what its folder says about the model, and where its tensors go.

Layout: ``save_pretrained`` of transformers 4.31 over LISA's classes. ``config.json`` has ``model_type: "llava"`` with
Llama's fields, LLaVA's ``mm_*`` fields and LISA's ``train_mask_decoder`` and ``out_dim``; tensors are ``model.*`` and
``lm_head.weight``; the CLIP tower is not stored, only named by ``vision_tower``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from model.checkpoints.clip import clip_config, fill_tower
from model.checkpoints.files import checkpoint_json, read_state_dict, strip_wrappers
from model.checkpoints.layout import Reading, Request, build_config, new_parts, require_sizes
from model.checkpoints.report import shapes_of
from model.checkpoints.sam import fill_sam, part_of, rename_sam, sam_config_of
from model.config import MoraConfig
from model.fields import COMMON, FLAG, LAYERS, LLAMA, SIZE, WORD, Rule, building, note_problems, optional, shown, whole
from utils.errors import CheckpointError, ConfigError, Problems
from utils.hub import resolve_folder

LLAVA_FIELDS: dict[str, Rule] = {
    "mm_vision_select_layer": whole(-LAYERS, LAYERS),
    "vision_tower": optional(WORD),
    "mm_vision_tower": optional(WORD),
    "train_mask_decoder": optional(FLAG),
    "out_dim": optional(SIZE),
}
"""What LLaVA's and LISA's own fields may hold."""

_SAM = "model.visual_model."
_PROJECTOR = "model.mm_projector."

_IGNORED = re.compile(
    r"(.*\.rotary_emb\.inv_freq|model\.visual_model\.pixel_(mean|std)|model\.vision_tower\..*\.position_ids)$"
)
"""Buffers that old versions stored; they follow from the configuration."""

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(lm_head\.weight|model\.(?:embed_tokens|norm|layers\.\d+)\..*)$", r"language_model.\1"),
        (r"model\.mm_projector\.(\d.*)$", r"projector.layers.\1"),
        (r"model\.mm_projector\.(.*)$", r"projector.layers.0.\1"),
        (r"model\.(text_hidden_fcs\..*)$", r"\1"),
        (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.*)$", r"vision_tower.\1"),
    )
)
"""Published name to ours, all but SAM's; the first that fits."""

_PLAIN = re.compile(
    r"language_model\.(?:lm_head|model\.(?:embed_tokens|norm|layers))\.|"
    r"(?:projector|text_hidden_fcs|vision_tower|sam|loc_head)\."
)
"""What our names of this backbone's tensors begin with."""

_OURS = ("language_model.", "projector.", "text_hidden_fcs.", "vision_tower.", "sam.", "loc_head.")


def read(request: Request) -> Reading:
    """Read a folder. Sizes are read off the tensors and ``config.json``; nothing is assumed."""
    folder, published, report = request.folder, request.stored, request.report
    state = strip_wrappers(read_state_dict(folder))
    text_config, projector = llama_config(published, state, folder / "config.json"), projector_kind(state)
    tensors, ignored = rename_published(state)
    del state
    report.ignored.update(shapes_of(ignored))
    fill_sam(tensors, request.vision_pretrained, report)
    name = request.vision_tower or published.get("vision_tower") or published.get("mm_vision_tower")
    if not isinstance(name, (str, Path)):
        raise CheckpointError(f"{folder}/config.json: names no vision_tower; give a CLIP folder (--vision-tower)")
    tower = resolve_folder(name, beside=folder)
    vision_config = clip_config(tower)
    fill_tower(tensors, tower, report, asked_for=request.vision_tower is not None)
    sam = sam_config_of({name.removeprefix("sam."): t for name, t in tensors.items() if name.startswith("sam.")})
    fields: dict[str, Any] = {
        "text_config": text_config,
        "vision_config": vision_config,
        "sam_config": sam,
        "vision_select_layer": published.get("mm_vision_select_layer", -2),
        "projector": projector,
        "out_dim": sam.prompt_encoder_config.hidden_size,
        "seg_token_id": _token_id(folder, request.overrides.get("seg_token", "[SEG]"), text_config.vocab_size),
        "loc_token_id": _token_id(folder, request.overrides.get("loc_token", "[LOC]"), text_config.vocab_size),
    }
    try:
        build_config(fields, {})
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.json: {error}") from None
    config = build_config(fields, request.overrides)
    require_sizes(config, tensors, {"text_config": folder / "config.json", "vision_config": tower / "config.json"})
    fresh = [] if any(name.startswith("loc_head.") for name in tensors) else ["loc_head.*"]
    if not published.get("train_mask_decoder") and not any(name.startswith("text_hidden_fcs.") for name in tensors):
        fresh.append("text_hidden_fcs.*")  # a LLaVA base never had a read-out; a LISA checkpoint must have one
    strangers = frozenset(name for name in tensors if not name.startswith(_OURS))
    return Reading(config, tensors, fresh + new_parts(MoraConfig(), config), strangers)


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
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    absent = [name for name in needed if name not in config]
    if absent:
        raise CheckpointError(f"{path}: lacks {', '.join(absent)}; use the config.json saved with these weights")
    problems = Problems()
    note_problems(config, {**LLAMA, **LLAVA_FIELDS}, problems)
    problems.raise_if_any(ConfigError, f"{path}: use the config.json saved with these weights")
    # Llama 1, Vicuna and Llama 2 differ in some of them.
    shape = LLAMA.keys() - {*COMMON, "attention_dropout", "partial_rotary_factor"}
    fields = {name: config[name] for name in shape if config.get(name) is not None}
    fields["vocab_size"] = state["model.embed_tokens.weight"].shape[0]
    fields.setdefault("tie_word_embeddings", False)
    with building(str(path)):
        return LlamaConfig(**copy.deepcopy(fields))  # the library changes nested objects that it is given


def projector_kind(state: Mapping[str, Tensor]) -> str:
    """ "linear" (LLaVA v1) or "mlp" (two layers, LLaVA 1.5), from the names.

    Raises:
        CheckpointError: no projector, or one of another form.
    """
    names = {name.removeprefix(_PROJECTOR) for name in state if name.startswith(_PROJECTOR)}
    if names == {"weight", "bias"}:
        return "linear"
    if names == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        return "mlp"
    if not names:
        raise CheckpointError(f"{_PROJECTOR}*: missing; this checkpoint cannot see (a plain language model?)")
    raise CheckpointError(f"{_PROJECTOR}*: has {sorted(names)}; known are one linear layer, or two with GELU")


def rename_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sort the tensors of a published checkpoint.

    Returns:
        (renamed, ignored): tensors under the names of :class:`model.mora.MoraModel`, SAM's as well, those that have no
        place there under their own; and constants left out on purpose.
    """
    ignored = {name: tensor for name, tensor in state.items() if _IGNORED.match(name)}
    rest = {name: tensor for name, tensor in state.items() if name not in ignored}
    sam = rename_sam({name.removeprefix(_SAM): name for name in rest if name.startswith(_SAM)})
    renamed = {f"sam.{ours}" if part_of(ours) else name: rest[name] for ours, name in sam.items()}
    for name, tensor in rest.items():
        if not name.startswith(_SAM):
            matches = ((pattern.match(name), ours) for pattern, ours in _RENAMES)
            renamed[next((match.expand(ours) for match, ours in matches if match), name)] = tensor
    return renamed, ignored


def plain_names(names: Iterable[str]) -> dict[str, str | None]:
    """Stored names in this layout or in our own, whatever wrapper is around them, to ours; None for a stranger."""
    found: dict[str, str | None] = {}
    for stored in names:
        name = re.sub(r"^(?:(?:module|_orig_mod|base_model\.model)\.)+", "", stored)
        ours = name if _PLAIN.match(name) else next(iter(rename_published({name: None})[0]), name)
        found[stored] = ours if _PLAIN.match(ours) else None
    return found


def _token_id(folder: Path, token: str, vocabulary: int) -> int | None:
    """Id of a token by the folder's tokenizer files, or None; it must have a row in the embeddings."""
    found = find_token_id(folder, token)
    if found is not None and found >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer gives {token} the id {found}, but the embeddings have {vocabulary} rows; the "
            "tokenizer and the weights are not of the same checkpoint"
        )
    return found


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
        content = _object(checkpoint_json(path)) if path.is_file() else {}
        # Only added_tokens.json is a plain table of tokens; elsewhere a word at the top is the name of a part.
        named = content.items() if name == "added_tokens.json" else _tokens_in(content)
        for text, found in named:
            if text != token:
                continue
            if type(found) is not int or found < 0:
                raise CheckpointError(
                    f"{path}: the id of {token} is {shown(found)}, not a whole number from 0; take the file that was "
                    "saved with the weights"
                )
            return found
    return None


def _tokens_in(content: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Tokens that ``tokenizer.json`` or ``tokenizer_config.json`` names, with what it gives as their ids."""
    added = content.get("added_tokens")
    for entry in map(_object, added if isinstance(added, list) else ()):
        yield entry.get("content"), entry.get("id")
    for number, entry in _object(content.get("added_tokens_decoder")).items():
        whole_number = number.isascii() and number.isdigit() and len(number) < 10
        yield _object(entry).get("content"), int(number) if whole_number else number
    yield from _object(_object(content.get("model")).get("vocab")).items()


def _object(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one instead of anything else."""
    return value if isinstance(value, dict) else {}
