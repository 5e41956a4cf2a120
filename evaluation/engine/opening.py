"""From flags to the model that answers: a folder, or trained weights on their base, with the tokenizer that fits."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.tokenization import MoraTokenizer, load_tokenizer
from evaluation.settings import EvaluatedModel
from model.checkpoints import (
    Trained,
    differences,
    head_mode,
    load_any,
    network_of,
    read_config,
    read_trained,
    require_own_tokenizer,
    require_trained,
    told_backbone,
)
from model.config import MoraConfig, known_fields
from model.mora import MoraModel
from model.settings import ComputeSettings
from utils.errors import CheckpointError, ConfigError, TokenizerError
from utils.flags import flags_of
from utils.hub import resolve_folder

logger = logging.getLogger(__name__)

FREE = {"min_pixels", "max_pixels"}
"""Fields of the network that an evaluation may choose otherwise than the training."""


def load_model(wanted: EvaluatedModel, compute: ComputeSettings) -> tuple[MoraModel, MoraTokenizer]:
    """The model that the flags name, in eval mode on its device, and its tokenizer.

    Raises:
        CheckpointError: the model cannot be opened, or the weights do not belong to it.
        TokenizerError: there is no tokenizer, or it does not belong to the weights.
        ConfigError: see :func:`check_template` and :func:`settle_network`.
    """
    folder = resolve_folder(wanted.version)
    stored = read_config(folder)
    backbone = told_backbone(stored) or "llava"
    if wanted.backbone not in (None, backbone):
        raise ConfigError(
            f"--backbone {wanted.backbone}: {wanted.version} has the backbone {backbone}; evaluate_groundmore.py takes "
            "either, evaluate_groundmore_qwen.py Qwen3-VL"
        )
    trained = None
    if wanted.weight is not None:
        trained = read_trained(wanted.weight, backbone, wanted.allow_unexpected, wanted.lora_alpha)
    asked = settle_network(wanted, stored, backbone, trained)
    tokenizer = None if trained is None else _open_tokenizer(folder, stored, backbone, asked, trained)
    model, report = load_any(
        wanted.version,
        wanted.vision_pretrained,
        wanted.vision_tower,
        device=compute.device,
        dtype=compute.dtype,
        allow_unexpected=wanted.allow_unexpected,
        digest=trained is not None and trained.provenance is not None and bool(trained.provenance.base),
        trained=trained,
        **asked,
    )
    logger.info("%s", report)
    for note in report.notes:
        if "NOT USED" in note or trained is not None:
            print(note)
    if report.initialised:
        raise CheckpointError(
            f"{wanted.version}: no weights for {', '.join(report.initialised)}; an untrained part would make every "
            "number meaningless. Give the file that has them (--vision_pretrained, --vision-tower) or an exported model"
            + (" (or --weight, what was trained)" if trained is None and backbone != "llava" else "")
        )
    if tokenizer is None:
        tokenizer = load_tokenizer(folder, model.config.tokenization)
        require_own_tokenizer(folder, tokenizer.digest())
    else:
        _require_belonging(model, tokenizer, trained, report.digests, wanted)
    attach_tokens(model, tokenizer)
    if wanted.compile:
        model.sam.compile_encoder()
    return model.eval(), tokenizer


def settle_network(
    wanted: EvaluatedModel, stored: Mapping[str, Any], backbone: str, trained: Trained | None
) -> dict[str, Any]:
    """Fields of :class:`model.config.MoraConfig` that count instead of the base's: what the trained weights say about
    their network, and what the flags say where nothing else does.

    Args:
        wanted: the flags.
        stored: ``config.json`` of ``--version``.
        backbone: that it names.
        trained: ``--weight``.

    Raises:
        ConfigError: flags that contradict the model or are not for its backbone, all of them; a template that nobody
            says; weights of another backbone.
    """
    known = known_fields({"backbone": backbone})
    own = dict(stored) if stored.get("model_type") == MoraConfig.model_type else {}
    source, told = wanted.version, own
    if trained is not None:
        source, told = (trained.source, trained.network) if trained.provenance else (source, {})
    if told.get("backbone", backbone) != backbone:
        raise ConfigError(
            f"--weight {source}: trained on the backbone {told['backbone']}, and {wanted.version} has {backbone}; give "
            "the base that it was trained on as --version"
        )
    if backbone == "llava":
        check_template(source, told.get("template") if trained else stored.get("template"), wanted.conv_type)
    asked = {about.network: getattr(wanted, name) for name, about in flags_of(wanted) if type(about.network) is str}
    asked = {name: value for name, value in asked.items() if value is not None}
    head = None if trained is None else head_mode(trained.tensors)
    lines = []
    for name, value in asked.items():
        flag = {"template": "--conv_type"}.get(name, f"--{name}")
        flag = flag if value is True else f"--no-{name}" if value is False else f"{flag} {value}"
        before = told.get(name, known[name][0] if told and name in known else None)
        if name == "loc_mode" and not told:
            before = head
        if name not in known or not known[name][1].fits(value):
            lines.append(f"{flag}: not for the backbone {backbone} of {wanted.version}; leave it out")
        elif before not in (None, value) and name in FREE:
            print(f"{flag}: {source} was trained with {before}")
        elif before not in (None, value):
            lines.append(f"{flag}: {source} was trained with {before}; leave the flag out")
    if lines:
        raise ConfigError("\n".join(lines))
    asked.pop("template", None)  # the predictor is told it
    if trained is None:
        return asked
    if not told:
        print(f"NOT CHECKED: {source} does not say how and on which base it was trained; --version and flags are taken "
              "on trust, the backbone's defaults for what no flag says")  # fmt: skip
        return {"loc_mode": head or own.get("loc_mode", "none"), **asked}
    given = {"backbone", "segmenter", "tie_word_embeddings", "seg_token_id", "loc_token_id"}
    return {**{name: told[name] for name in known if name in told and name not in given}, **asked}


def _open_tokenizer(
    folder: Path, stored: Mapping[str, Any], backbone: str, asked: Mapping[str, Any], trained: Trained
) -> MoraTokenizer:
    """The base's tokenizer with the tokens that the weights were trained with, which ``trained`` is told."""
    fields = {**{name: default for name, (default, _) in known_fields({"backbone": backbone}).items()}, **asked}
    if stored.get("model_type") == MoraConfig.model_type:
        fields = {**fields, **{name: value for name, value in stored.items() if name in fields}, **asked}
    tokenizer = load_tokenizer(folder, fields["tokenization"])
    require_own_tokenizer(folder, tokenizer.digest())
    tokens = [fields["seg_token"], *([] if fields["loc_mode"] == "none" else [fields["loc_token"]])]
    trained.new_tokens = tokenizer.add_tokens(tokens) > 0
    trained.token_ids = [tokenizer.id_of(token) for token in tokens]
    return tokenizer


def _require_belonging(
    model: MoraModel, tokenizer: MoraTokenizer, trained: Trained, base: dict[str, str], wanted: EvaluatedModel
) -> None:
    """Compare what the weights say about network, base and tokenizer with what they were laid over.

    Raises:
        CheckpointError: naming every contradiction, or what of the trained weights is absent.
    """
    told = trained.provenance
    if told is None:
        return
    here = dataclasses.replace(
        told, network=network_of(model.config), base=base, base_name=wanted.version, tokenizer=tokenizer.digest()
    )
    if lines := differences(told, here, FREE, needs_base=trained.keeps):
        raise CheckpointError(
            f"--weight {trained.source}: does not belong to this base or network:\n  - " + "\n  - ".join(lines)
            + "\ngive the base that it was trained on as --version"
        )  # fmt: skip
    require_trained(model, trained)


def check_template(version: str, stored: str | None, given: str | None) -> None:
    """Ask in the text that the model was trained with, or not at all.

    Args:
        version: the model.
        stored: template that its config.json names; None for layouts that name none.
        given: ``--conv_type``.

    Raises:
        ConfigError: the flag contradicts the model, or neither says it.
    """
    if stored is None and given is None:
        raise ConfigError(
            f"--conv_type: {version}/config.json does not say in which conversation template the model was trained; "
            "you must (MoRA's releases: llava_llama_2, LISA's: llava_v1)"
        )
    if stored is not None and given not in (None, stored):
        raise ConfigError(f"--conv_type {given}: {version} was trained with {stored}; leave the flag out")


def attach_tokens(model: MoraModel, tokenizer: MoraTokenizer) -> None:
    """Let the model know the ids of its tokens, or check those it was saved with.

    Raises:
        TokenizerError: a token is missing, or has another id than the weights were trained with.
    """
    config = model.config
    names = ["seg_token", "loc_token"] if config.loc_mode != "none" else ["seg_token"]
    for name in names:
        found, stored = tokenizer.id_of(getattr(config, name)), getattr(config, f"{name}_id")
        if stored is None:
            setattr(config, f"{name}_id", found)
        elif stored != found:
            raise TokenizerError(
                f"{getattr(config, name)} has id {found} in the tokenizer but {stored} in the model's config.json; "
                "use the tokenizer that was saved with the weights"
            )
