"""What trained weights belong to: the network, the adapters' scale, the base and the tokenizer, carried with them.

A checkpoint holds only what was trained; it means something only on the base it was trained on, in the network, text
and scale it was trained in. That knowledge travels as one more tensor among the weights, so whatever carries the
weights (DeepSpeed's own converter, its shards, another program's copy) carries it too. docs/checkpoints.md lists every
setting, who checks it, and what a contradiction says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model.config import MoraConfig
from utils.errors import CheckpointError

PROVENANCE = "provenance"
"""Name of the tensor: UTF-8 JSON, one byte per element."""

_FORMAT = 1

_NOT_THE_NETWORK = {"transformers_version", "dtype", "torch_dtype", "architectures", "_name_or_path", "use_cache",
                    "_attn_implementation", "attn_implementation", "_attn_implementation_autoset"}  # fmt: skip
"""Fields of a configuration that change no number, or follow from how it is run."""


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters: their product is added with the factor ``alpha / r``."""

    r: int
    alpha: float
    targets: tuple[str, ...]

    @classmethod
    def of_flags(cls, r: int, alpha: float, targets: str) -> Adapters | None:
        """What ``--lora_r``, ``--lora_alpha`` and ``--lora_target_modules`` say; None without adapters."""
        return cls(r, float(alpha), tuple(sorted(part.strip() for part in targets.split(",")))) if r else None


@dataclass(frozen=True)
class Provenance:
    """What a set of trained weights belongs to.

    Attributes:
        network: every field of the :class:`model.config.MoraConfig` it was trained in: visual and [LOC] mode,
            template, tokenization, answer style, token ids, sizes, constants.
        adapters: None without LoRA.
        trainable: the spec of what learned (``--trainable``).
        base: digest of each part of the base model as it is stored; {} if nothing was noted.
        base_name: where the base was found, for messages; another path to the same bytes is the same base.
        tokenizer: digest of what the tokenizer does; "" if nothing was noted.
        precision: of the training, "fp32", "bf16" or "fp16".
        token_rows: what learned of the words (``--token_rows``): "all" or "new".
    """

    network: dict[str, Any]
    adapters: Adapters | None
    trainable: str
    base: dict[str, str] = field(default_factory=dict)
    base_name: str = ""
    tokenizer: str = ""
    precision: str = ""
    token_rows: str = "all"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_dict` undoes it."""
        fields = {"format": _FORMAT, **dataclasses.asdict(self)}
        if self.token_rows == "all":  # as always, before there was a choice
            del fields["token_rows"]
        return fields

    @classmethod
    def from_dict(cls, value: Any, source: str) -> Provenance:
        """Undo :meth:`as_dict`.

        Raises:
            CheckpointError: ``value`` is nothing that it wrote.
        """
        try:
            fields = dict(value)
            if fields.pop("format") != _FORMAT:
                raise ValueError(f"format {value['format']!r}, this program reads {_FORMAT}")
            adapters = fields.pop("adapters")
            if adapters is not None:
                adapters = Adapters(int(adapters["r"]), float(adapters["alpha"]), tuple(adapters["targets"]))
            found = cls(adapters=adapters, **fields)
            if not (isinstance(found.network, dict) and isinstance(found.base, dict)):
                raise TypeError("'network' and 'base' must be objects")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}: what it says about its own training cannot be read ({error}); take another copy"
            ) from None

    def as_tensor(self) -> Tensor:
        """uint8 [N]; :meth:`from_tensor` undoes it."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor, source: str) -> Provenance:
        """Undo :meth:`as_tensor`; a converter may have made floats of the bytes.

        Raises:
            CheckpointError: ``tensor`` is nothing that it wrote.
        """
        try:
            value = json.loads(bytes(tensor.to(torch.uint8).tolist()).decode())
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{source}: its tensor '{PROVENANCE}' is damaged ({error}); convert or copy the checkpoint again"
            ) from None
        return cls.from_dict(value, source)


def attach_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Let the weights of ``model`` carry their provenance from now on, as a buffer that checkpoints hold."""
    model.register_buffer(PROVENANCE, provenance.as_tensor())


def network_of(config: MoraConfig) -> dict[str, Any]:
    """Everything of a configuration that changes a number, JSON-able."""
    return _numbers_only(json.loads(config.to_json_string(use_diff=False)))


def _numbers_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_only(item) for key, item in sorted(value.items()) if key not in _NOT_THE_NETWORK}
    return value


def differences(
    trained: Provenance, here: Provenance, besides: Iterable[str] = (), needs_base: bool = True
) -> list[str]:
    """Lines about everything in which two provenances contradict each other; what one does not know, it allows.

    Args:
        trained: of the weights.
        here: of the model they are to be put into.
        besides: first words of the network's fields, or names of other fields, that may differ.
        needs_base: some tensors are kept from the base, so it must be the one that was trained on.
    """
    besides = set(besides)
    lines = [
        f"{name}: trained with {before!r}, here {after!r}"
        for name, before, after in _leaves(trained.network, here.network)
        if name.split(".")[0] not in besides
    ]
    if "adapters" not in besides and trained.adapters != here.adapters:
        before, now = describe_adapters(trained.adapters), describe_adapters(here.adapters)
        lines.append(f"LoRA: trained with {before}, here {now}")
    if "token_rows" not in besides and trained.token_rows != here.token_rows:
        lines.append(f"--token_rows: trained with {trained.token_rows!r}, here {here.token_rows!r}")
    if "tokenizer" not in besides and trained.tokenizer and here.tokenizer and trained.tokenizer != here.tokenizer:
        lines.append("tokenizer: another one than it was trained with (other ids, or text cut elsewhere)")
    if needs_base and trained.base and here.base and trained.base != here.base:
        parts = sorted({*trained.base, *here.base})
        parts = [part for part in parts if trained.base.get(part) != here.base.get(part)]
        lines.append(
            f"--version: {here.base_name} is another base than the one it was trained on, {trained.base_name} (other "
            f"weights in {', '.join(parts)}); the same base at another path is fine"
        )
    return lines


def describe_adapters(adapters: Adapters | None) -> str:
    """A few words: rank, alpha, targets."""
    if adapters is None:
        return "none"
    return f"--lora_r {adapters.r} --lora_alpha {adapters.alpha:g} --lora_target_modules {','.join(adapters.targets)}"


def _leaves(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any, Any]]:
    """(dotted name, value, value) of the fields that both have and that differ; a field that one version of a library
    has and another has not says nothing."""
    for key in sorted(one.keys() & other.keys()):
        first, second = one[key], other[key]
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _leaves(first, second, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key}", first, second
