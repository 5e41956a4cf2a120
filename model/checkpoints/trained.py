"""Trained weights laid over a base, whoever wrote them: a converter of a checkpoint, its shards, another program.

A tensor has had several names: wrappers put words in front, peft moves a matrix to ``base_layer`` beside its adapters,
to ``modules_to_save`` or beside the rows that were trained of it. All are brought to one form; what has no place is
listed by family, and adapters are merged here, in float32.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones import backbone_class
from model.checkpoints import lisa, qwen3_vl
from model.checkpoints.files import read_config, read_state_dict
from model.checkpoints.layout import Reading
from model.checkpoints.provenance import PROVENANCE, Provenance
from model.checkpoints.report import LoadReport, matches, shapes_of
from model.config import MoraConfig, known_fields
from model.localization import build_loc_head
from model.mora import MoraModel
from utils.errors import CheckpointError, ConfigError, Problems
from utils.hub import is_hub_name, resolve_folder

_NAMES = {"llava": lisa.plain_names, "qwen3_vl": qwen3_vl.plain_names}
"""Stored names to ours, by backbone; None for a stranger."""

_PEFT = (
    (re.compile(r"\.modules_to_save\.\w+\."), "."),
    (re.compile(r"\.(?:token_adapter\.)?base_layer\."), "."),
    (re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.\w+)?$"), ".token_rows"),
    (re.compile(r"\.(lora_[AB])(?:\.\w+)?\.weight$"), r".\1.weight"),
)
"""What peft puts into names, and what is left."""

_CONSTANT = re.compile(r".*(?:rotary_emb\.inv_freq|\.pixel_(?:mean|std)|position_ids|\.original_module\..*)$")
"""What follows from the configuration, and peft's copies of matrices that were trained."""


@dataclasses.dataclass
class Trained:
    """Weights to be laid over a base.

    Attributes:
        source: file or folder.
        tensors: by our names, adapters beside their matrices (``.lora_A.weight``, ``.lora_B.weight``), single rows of
            words as ``.token_rows`` [n, D].
        ignored: names, as stored, of what was allowed to be left out, with shapes.
        provenance: what they say about their training; None if nothing.
        token_ids: of [SEG], and of [LOC] if there is one; set by whoever opens the tokenizer.
        new_tokens: whether the base's tokenizer had not got them.
        lora_alpha: of the adapters, if ``provenance`` does not say.
        brought: our names of what they brought, adapters merged; set by :func:`lay_over`.
        keeps: whether something was left to the base; likewise.
    """

    source: str
    tensors: dict[str, Tensor]
    ignored: dict[str, tuple[int, ...]]
    provenance: Provenance | None
    token_ids: Sequence[int] = ()
    new_tokens: bool = False
    lora_alpha: float | None = None
    brought: frozenset[str] = frozenset()
    keeps: bool = True

    @property
    def network(self) -> dict[str, Any]:
        """Fields of the configuration that it was trained in; a field that is younger has its default. {} if nothing
        is known."""
        if self.provenance is None:
            return {}
        defaults = {name: default for name, (default, _) in known_fields(self.provenance.network).items()}
        return {**defaults, **self.provenance.network}


def read_trained(
    path: str | Path, backbone: str, allow_unexpected: Sequence[str] = (), lora_alpha: float | None = None
) -> Trained:
    """Read trained weights.

    Args:
        path: a file, a folder with ``pytorch_model.bin`` or shards and their index, or a Hugging Face id.
        backbone: of the base.
        allow_unexpected: patterns of stored names that may be left out.
        lora_alpha: see :class:`Trained`.

    Raises:
        CheckpointError: nothing readable there, an exported model, tensors that have no place in a model of this
            backbone (by family), or of which two are one.
    """
    path = Path(path) if Path(path).exists() or not is_hub_name(path) else resolve_folder(path)
    state = read_state_dict(path)
    told = next((name for name in state if name.removeprefix("module.") == PROVENANCE), None)
    provenance = None if told is None else Provenance.from_tensor(state.pop(told), str(path))
    if provenance is None and (path / "config.json").is_file():
        if read_config(path).get("model_type") == MoraConfig.model_type:
            raise CheckpointError(f"{path}: a whole model, not weights for a base; give it as --version (no --weight)")
    left_out = {name for name in state if _CONSTANT.match(name) or matches(name, allow_unexpected)}
    trained = Trained(str(path), {}, shapes_of({name: state.pop(name) for name in left_out}), provenance)
    trained.lora_alpha = lora_alpha
    plain = {stored: _without_peft(stored) for stored in state}
    names = _NAMES.get(backbone, lambda names: {name: name for name in names})(plain.values())
    problems, stored_as = Problems(), {}
    for stored, name in plain.items():
        ours = names[name]
        if ours in stored_as:
            problems.add(ours, f"stored as {stored_as[ours]} and as {stored}")
        elif ours is not None:
            trained.tensors[ours], stored_as[ours] = state[stored], stored
    problems.raise_if_any(CheckpointError, f"{path}: tensors that are there twice; leave one of each out")
    strangers = [stored for stored, name in plain.items() if names[name] is None]
    if strangers or not trained.tensors:
        raise CheckpointError(
            f"{path}: {len(strangers)} of its {len(plain)} tensors have no place on the backbone {backbone!r}: "
            f"{families(strangers) or 'it holds none'}. Known are: {families(trained.tensors) or 'none'}. Give the "
            "base that they were trained on, or leave tensors out by pattern (--allow_unexpected)"
        )
    return trained


def _without_peft(name: str) -> str:
    for pattern, left in _PEFT:
        name = pattern.sub(left, name)
    return name


def head_mode(names: Iterable[str]) -> str | None:
    """The ``loc_mode`` whose head has the names found among those of a state, or None if there is no head."""
    found = {name.removeprefix("loc_head.") for name in names if name.startswith("loc_head.")}
    return next((mode for mode in ("global", "frame") if found == set(build_loc_head(mode, 8, 8).state_dict())), None)


def families(names: Iterable[str]) -> str:
    """How many of some tensors belong together, "language_model.model.visual 104, lm_head 1", in order of names."""
    first = (re.split(r"\.(?:\d|weight$|bias$)", name)[0].split(".") for name in names)
    depths = {"loc_head": 1, "sam": 2}
    counts = Counter(".".join(words[: depths.get(words[0], 3)]) for words in first)
    return ", ".join(f"{family} {count}" for family, count in sorted(counts.items()))


def lay_over(reading: Reading, trained: Trained, report: LoadReport) -> None:
    """Put trained tensors in the place of a base's.

    Args:
        reading: the base, changed in place; so is its configuration, whose vocabulary and token ids follow.
        trained: its tensors are taken out.
        report: gets a note of what there was, by family.

    Raises:
        CheckpointError: adapters or rows that do not fit, word embeddings without their language head.
        ConfigError: nobody says how adapters are scaled.
    """
    tensors, known = trained.tensors, families(trained.tensors)
    report.ignored.update(trained.ignored)
    _merge_adapters(reading, trained)
    _fit_vocabulary(reading, trained)
    trained.brought, trained.keeps = frozenset(tensors), bool(reading.tensors.keys() - tensors.keys())
    report.source = f"{report.source} with {trained.source}"
    report.notes.append(f"from {trained.source}: {known}")
    reading.tensors.update(tensors)
    tensors.clear()


def _merge_adapters(reading: Reading, trained: Trained) -> None:
    """Add every pair of LoRA matrices to the matrix it belongs to, as peft does, in float32."""
    tensors, told = trained.tensors, trained.provenance
    pairs = sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in tensors if ".lora_" in name})
    if not pairs:
        return
    alpha = trained.lora_alpha
    if told is not None:
        stored = None if told.adapters is None else told.adapters.alpha
        if stored is None or alpha not in (None, stored):
            said = "without adapters, and holds some" if stored is None else f"with {stored:g}"
            raise ConfigError(f"--lora_alpha: {trained.source} was trained {said}; leave the flag out")
        alpha = stored
    problems = Problems()
    for name in pairs:
        down, up = (tensors.pop(f"{name}.lora_{letter}.weight", None) for letter in "AB")
        matrix = tensors.get(f"{name}.weight", reading.tensors.get(f"{name}.weight"))
        if down is None or up is None or matrix is None:
            lacking = "its matrix" if matrix is None else "its other half"
            problems.add(name, f"an adapter without {lacking}")
        elif down.dim() != 2 or up.shape != (matrix.shape[0], len(down)) or down.shape[1] != matrix.shape[1]:
            problems.add(name, f"adapters {list(down.shape)} and {list(up.shape)} for a matrix {list(matrix.shape)}")
        elif told is not None and told.adapters.r != len(down):
            problems.add(name, f"rank {len(down)}, but the weights say {told.adapters.r}")
        elif alpha is None:
            raise ConfigError(
                f"--lora_alpha: {trained.source} holds LoRA matrices of rank {len(down)} and does not say how they are "
                "scaled; you must (MoRA's published training: 16)"
            )
        else:
            tensors[f"{name}.weight"] = matrix.float() + (up.float() @ down.float()) * (alpha / len(down))
    problems.raise_if_any(CheckpointError, f"{trained.source}: adapters that do not fit {reading.config.backbone!r}")


def _fit_vocabulary(reading: Reading, trained: Trained) -> None:
    """Let vocabulary and token ids follow the weights; put single rows into their matrices."""
    config, tensors, source = reading.config, trained.tensors, trained.source
    parts = backbone_class(config.backbone).vocabulary_parts
    words, head = (f"{part}.weight" for part in parts)
    tied, ids = config.text_config.tie_word_embeddings, list(trained.token_ids)
    if words in tensors and head not in tensors:
        if tied:
            reading.tensors.pop(head, None)  # the base's, if it stored the one matrix twice
        elif trained.provenance is None:
            raise CheckpointError(
                f"{source}: brings word embeddings and no language head, but the base's config.json says that these "
                "are two matrices (tie_word_embeddings false): weights of a tied model would be left with a foreign "
                "head. Give the base that they were trained on as --version"
            )
    rows = {part: tensors.pop(f"{part}.token_rows") for part in parts if f"{part}.token_rows" in tensors}
    for part, values in rows.items():
        if tied and part == parts[1] and parts[0] in rows:
            if not torch.equal(values, rows[parts[0]]):
                raise CheckpointError(f"{source}: rows of words and language head differ, though the base ties them")
            continue
        matrix = tensors.get(f"{part}.weight", reading.tensors.get(f"{part}.weight"))
        if matrix is None or values.shape != (len(ids), matrix.shape[1]) or max(ids) >= len(matrix):
            raise CheckpointError(
                f"{source}: {part} has rows {list(values.shape)} for the tokens {ids} and a matrix "
                f"{'that is absent' if matrix is None else list(matrix.shape)}; they do not belong together"
            )
        matrix = matrix.to(torch.promote_types(matrix.dtype, values.dtype), copy=True)
        matrix[ids] = values.to(matrix.dtype)
        tensors[f"{part}.weight"] = matrix
        if tied:
            reading.tensors.pop(head, None)
    if words in tensors:
        config.text_config.vocab_size = tensors[words].shape[0]
    elif trained.new_tokens:
        raise CheckpointError(
            f"{source}: brings no word embeddings, and the base's tokenizer lacks {config.seg_token} or "
            f"{config.loc_token}; give the base that they were trained on as --version"
        )
    if ids and max(ids) >= config.text_config.vocab_size:
        raise CheckpointError(
            f"{source}: its word embeddings have {config.text_config.vocab_size} rows, and {config.seg_token} and "
            f"{config.loc_token} would have the ids {ids}; give the base that they were trained on as --version"
        )
    config.seg_token_id, config.loc_token_id = (ids + [None, None])[:2]


def require_trained(model: MoraModel, trained: Trained) -> None:
    """Refuse weights that lack something of what they say was trained.

    Args:
        model: the whole, with the weights; which of its parameters learn is set as in the training.
        trained: laid over its base.

    Raises:
        CheckpointError: naming what is absent, by family.
    """
    from model.adapters import set_trainable  # late: it loads peft

    told = trained.provenance
    parts = [part.strip() for part in told.trainable.split("||") if part.strip()]
    plain = [part.replace(".base_layer", "") for part in parts if "lora_" not in part]
    needed = set(set_trainable(model, "||".join(plain))) if plain else set()
    if told.adapters is not None and {"default", "all"} & set(parts):
        first = f"{model.backbone.decoder_part}."
        layers = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        within = (name for name in layers if name.startswith(first) and name.split(".")[-1] in told.adapters.targets)
        needed |= {f"{name}.weight" for name in within}
    if lacking := needed - trained.brought:
        raise CheckpointError(
            f"{trained.source}: lacks {len(lacking)} of the {len(needed)} tensors that were trained "
            f"({families(lacking)}); the copy is not whole, convert the checkpoint again"
        )
