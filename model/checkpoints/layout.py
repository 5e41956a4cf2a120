"""What the reader of a layout is told and what it gives, and what all of them ask of a configuration."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model.backbones import backbone_class
from model.checkpoints.report import LoadReport
from model.config import MoraConfig, field_names
from utils.errors import CheckpointError, ConfigError, Problems
from utils.tensors import digests_by_part


@dataclass
class Request:
    """What a layout's reader is told, and where it notes what it did.

    Attributes:
        folder: local.
        stored: content of its ``config.json``.
        vision_pretrained: a SAM checkpoint for parts that the folder lacks.
        vision_tower: a CLIP folder or hub name, likewise.
        overrides: fields of :class:`model.config.MoraConfig` that the caller says instead; None values count.
        report: filled in.
    """

    folder: Path
    stored: dict[str, Any]
    vision_pretrained: str | Path | None
    vision_tower: str | Path | None
    overrides: dict[str, Any]
    report: LoadReport


@dataclass
class Reading:
    """What a folder holds.

    Attributes:
        config: the network's shape.
        tensors: by the names of :class:`model.mora.MoraModel`.
        fresh: patterns of tensors that are to be newly initialised.
        strangers: names of ``tensors`` that the layout has no place for; they do not tell which base this is.
    """

    config: MoraConfig
    tensors: dict[str, Tensor]
    fresh: list[str] = field(default_factory=list)
    strangers: frozenset[str] = frozenset()

    def digests(self) -> dict[str, str]:
        """Which weights these are, by part of the network."""
        return digests_by_part({name: t for name, t in self.tensors.items() if name not in self.strangers})


def build_config(stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> MoraConfig:
    """A configuration from stored fields and what the caller says instead.

    Raises:
        ConfigError: overrides that are no fields of :class:`model.config.MoraConfig`, values that cannot be used.
    """
    strange = sorted(overrides.keys() - field_names(stored))
    if strange:
        raise ConfigError(f"{', '.join(strange)}: not a field of MoraConfig; its fields are in model/config.py")
    return MoraConfig(**{**stored, **overrides})


def new_parts(before: MoraConfig, config: MoraConfig) -> list[str]:
    """Patterns of tensors that a model of ``config`` has and one of ``before`` could not have."""
    parts = []
    if before.loc_mode == "none" and config.loc_mode != "none":
        parts.append("loc_head.*")
    if getattr(config, "frame_time_embedding", False) and not before.frame_time_embedding:
        parts.append("projector.frame_time.*")
    return parts


_SIDES: dict[str, tuple[str, int]] = {
    "sam_config.vision_config.hidden_size": ("sam.vision_encoder.patch_embed.projection.weight", 0),
    "sam_config.vision_config.patch_size": ("sam.vision_encoder.patch_embed.projection.weight", 2),
    "sam_config.vision_config.mlp_dim": ("sam.vision_encoder.layers.0.mlp.lin1.weight", 0),
    "sam_config.prompt_encoder_config.hidden_size": ("sam.prompt_encoder.no_mask_embed.weight", 1),
    "sam_config.mask_decoder_config.mlp_dim": ("sam.mask_decoder.transformer.layers.0.mlp.lin1.weight", 0),
    "out_dim": ("text_hidden_fcs.0.2.weight", 0),
}
"""Fields of a configuration that are a side of some tensor, besides those of the backbone."""

_DEPTHS = {
    "sam_config.vision_config.num_hidden_layers": r"sam\.vision_encoder\.layers\.(\d+)\.",
    "sam_config.mask_decoder_config.num_hidden_layers": r"sam\.mask_decoder\.transformer\.layers\.(\d+)\.",
}
"""Fields that count layers, and the names of those, likewise."""


def refuse_tower(request: Request, backbone: str) -> None:
    """Refuse a separate vision tower for a backbone that has its own.

    Raises:
        CheckpointError: one is given.
    """
    if request.vision_tower is not None and backbone != "llava":
        raise CheckpointError(
            f"{request.vision_tower}: not needed, {request.folder} has the backbone {backbone!r}, whose vision tower "
            "is its own; leave it out (--vision_tower)"
        )


def require_sizes(config: MoraConfig, tensors: Mapping[str, Tensor], files: Mapping[str, Path]) -> None:
    """Compare a configuration with the tensors it came with, before a model of its size is built.

    Args:
        config: the configuration.
        tensors: named as in :class:`model.mora.MoraModel`; what is absent is not looked at.
        files: where fields are stored, by what their names begin with here and not there.

    Raises:
        ConfigError: naming file and field of every size that is not the tensors'.
    """
    found: dict[str, tuple[int, str]] = {}
    kind = backbone_class(config.backbone)
    for key, (name, side) in {**kind.sides, **_SIDES}.items():
        if name in tensors and side < tensors[name].dim():
            found[key] = tensors[name].shape[side], f"{name} is {list(tensors[name].shape)}"
    for key, pattern in {**kind.depths, **_DEPTHS}.items():
        if depth := count_layers(tensors, pattern):
            found[key] = depth, f"the weights have {depth} layers"
    problems = Problems()
    for key, (size, reason) in found.items():
        stored = functools.reduce(getattr, key.split("."), config)
        where = next((start for start in files if key.startswith(start)), None)
        if stored != size and where is not None:
            problems.add(str(files[where]), f"{key.removeprefix(where).strip('.')} is {stored}, but {reason}")
    problems.raise_if_any(ConfigError, "sizes that are not those of the weights; use the config.json saved with them")


def count_layers(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that ``pattern``'s group takes among the names; 0 if no name fits."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
