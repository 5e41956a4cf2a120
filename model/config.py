"""``MoraConfig``: everything that shapes a MoRA network, stored with its weights as ``config.json``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from model import fields
from model.backbones import BACKBONES, Backbone, backbone_class
from model.localization import LOC_HEADS
from model.segmenters import SEGMENTERS, segmenter_class
from utils.batch import FrameMarks, PixelRule
from utils.errors import ConfigError, Problems

CHOICES: dict[str, tuple[str, ...]] = {
    "visual_mode": ("frame", "pooled", "video"),
    "loc_mode": ("none", "global", "frame"),
    "template": ("llava_llama_2", "llava_v1", "plain", "qwen3_vl"),
    "tokenization": ("legacy", "plain"),
    "answer_style": ("fixed", "name", "bare"),
    "readout": ("before", "at"),
    "initialization": ("hf", "xavier"),
}
"""Allowed values of the fields that name a choice, the default first."""

FIELDS: dict[str, tuple[Any, fields.Rule]] = {
    "backbone": ("llava", fields.key_of(BACKBONES)),
    "segmenter": ("sam", fields.key_of(SEGMENTERS)),
    **{name: (values[0], fields.one_of(*values)) for name, values in CHOICES.items()},
    "loc_hidden_size": (256, fields.SIZE),
    "out_dim": (256, fields.SIZE),
    "seg_token": ("[SEG]", fields.WORD),
    "loc_token": ("[LOC]", fields.WORD),
    "seg_token_id": (None, fields.optional(fields.whole(0, fields.ROWS))),
    "loc_token_id": (None, fields.optional(fields.whole(0, fields.ROWS))),
    "tie_word_embeddings": (False, fields.FLAG),
}
"""Default and rule of the configuration's own fields, whatever the backbone."""

_TOLD = {"eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False}
"""What a decoder's configuration always says, whether or not its class does."""

_HEADLINE = "this MoRA configuration cannot be built"


def _backbone(values: Mapping[str, Any]) -> type[Backbone] | None:
    """The backbone that some fields name; None if there is no such."""
    name = values.get("backbone", FIELDS["backbone"][0])
    return backbone_class(name) if FIELDS["backbone"][1].fits(name) else None


def known_fields(values: Mapping[str, Any]) -> dict[str, tuple[Any, fields.Rule]]:
    """Default and rule of the plain fields that a configuration with the backbone of ``values`` has."""
    kind = _backbone(values)
    return {**FIELDS, **(kind.fields if kind else {})}


def field_names(values: Mapping[str, Any]) -> set[str]:
    """Names of all fields that may stand in a configuration with the backbone of ``values``."""
    kind = _backbone(values)
    parts = {*(kind.parts if kind else ()), "sam_config"}
    return {*known_fields(values), *parts, *PretrainedConfig().to_dict(), "torch_dtype"}


def _plain(value: Any) -> Any:
    """The fields of a configuration object; anything else as it is."""
    return value.to_dict() if isinstance(value, PretrainedConfig) else value


def note_wrong_values(values: Mapping[str, Any], problems: Problems) -> None:
    """Note every field of a stored or asked-for configuration that holds what it may not, one by one.

    Args:
        values: fields of :class:`MoraConfig`; its parts as objects, dicts or None.
        problems: gets a line per mistake.
    """
    rules = {name: rule for name, (_, rule) in known_fields(values).items()}
    fields.note_problems(values, {**rules, **fields.COMMON}, problems)
    kind, segmenter = _backbone(values), values.get("segmenter", "sam")
    for part, (_, part_rules) in kind.parts.items() if kind else ():
        if values.get(part) is not None:
            fields.note_problems(_plain(values[part]), part_rules, problems, part)
    if values.get("sam_config") is not None and FIELDS["segmenter"][1].fits(segmenter):
        segmenter_class(segmenter).note_wrong_values(_plain(values["sam_config"]), problems, "sam_config")


def _part(value: Any, kind: type[PretrainedConfig], name: str) -> PretrainedConfig:
    """A configuration object of ``kind`` from an object, a dict or None (defaults); never shared with the caller."""
    if value is None:
        return kind()
    if isinstance(value, dict):
        with fields.building(name):
            # The library changes nested objects that it is given.
            return kind(**copy.deepcopy({key: item for key, item in value.items() if key != "model_type"}))
    return copy.deepcopy(value)


class MoraConfig(PretrainedConfig):
    """Configuration of :class:`model.mora.MoraModel`.

    Args:
        backbone: which multimodal LLM, a key of :data:`model.backbones.BACKBONES`. It brings fields of its own, which
            its class describes (:class:`model.backbones.llava.Llava`); ``text_config`` is always its decoder's.
        segmenter: which network draws the masks, a key of :data:`model.segmenters.SEGMENTERS`.
        sam_config: of the segmenter (object or dict; for "sam" made by :func:`model.segmenters.sam_config`; default:
            ViT-H).
        visual_mode: "frame" one LLM row per frame, "pooled" temporal and spatial means in one row, "video" all tokens
            of all frames in one row.
        loc_mode: "none" no [LOC] head, "frame" a logit from each frame's own [LOC] state (visual_mode "frame" only),
            "global" one [LOC] state matched against every frame.
        loc_hidden_size: width of the [LOC] head.
        out_dim: width of a prompt embedding; equals the segmenter's.
        template: conversation template the model was trained with.
        tokenization: rule for text next to added tokens.
        seg_token: text of the segmentation token.
        loc_token: text of the localization token.
        seg_token_id: its id, or None until a tokenizer is known.
        loc_token_id: its id, or None (always None without a [LOC] head).
        answer_style: "fixed" answers, "name" answers that name the object before [SEG], or "bare" tokens alone.
        readout: which state stands for [SEG] and [LOC]: "before", the one that predicts the token (LISA, MoRA), or
            "at", the one at the token itself (Sa2VA and others).
        initialization: of fresh weights: "hf" (the libraries' own) or "xavier" (for very narrow networks).

    Raises:
        ConfigError: listing every value that cannot be used.
    """

    model_type = "mora"

    def __init__(self, **kwargs: Any):
        problems, choices = Problems(), Problems()
        note_wrong_values(kwargs, problems)
        fields.note_problems(kwargs, {name: FIELDS[name][1] for name in CHOICES}, choices)
        if len(problems) > len(choices):  # else the rest can be examined as well, so that all is said at once
            problems.raise_if_any(ConfigError, _HEADLINE)
        for name, (default, _) in known_fields(kwargs).items():
            setattr(self, name, kwargs.pop(name, default))
        for name, kind in self.sub_configs.items():
            value = kwargs.pop(name, None)
            if name == "sam_config" and value is None:
                value = segmenter_class(self.segmenter).default_config()
            setattr(self, name, _part(value, kind, name))
        for name, default in _TOLD.items():
            if not hasattr(self.text_config, name):
                setattr(self.text_config, name, default)
        with fields.building("MoraConfig"):
            super().__init__(tie_word_embeddings=self.tie_word_embeddings, **kwargs)
        self.note_contradictions(problems)
        problems.raise_if_any(ConfigError, _HEADLINE)

    @property
    def sub_configs(self) -> dict[str, type[PretrainedConfig]]:
        """Its parts: those of the backbone, and the segmenter's."""
        parts = {name: kind for name, (kind, _) in backbone_class(self.backbone).parts.items()}
        return {**parts, "sam_config": segmenter_class(self.segmenter).config_class}

    @property
    def pixel_rule(self) -> PixelRule:
        """How frames become the backbone's pixels."""
        return backbone_class(self.backbone).pixel_rule(self)

    @property
    def frame_marks(self) -> FrameMarks:
        """Where a prompt shows the frames."""
        return backbone_class(self.backbone).frame_marks(self)

    def note_contradictions(self, problems: Problems) -> None:
        """Examine the values together and note what does not fit."""
        if self.loc_mode == "frame" and self.visual_mode != "frame":
            problems.add("loc_mode", f"'frame' needs visual_mode 'frame', not {self.visual_mode!r}; use 'global'")
        if self.loc_mode == "global" and self.loc_hidden_size % LOC_HEADS:
            problems.add("loc_hidden_size", f"is {self.loc_hidden_size}; use a multiple of {LOC_HEADS}")
        backbone_class(self.backbone).note_contradictions(self, problems)
        segmenter = segmenter_class(self.segmenter)
        prompt_width = segmenter.prompt_width(self.sam_config)
        if self.out_dim != prompt_width:
            problems.add("out_dim", f"is {self.out_dim}, but this SAM takes prompts of width {prompt_width}")
        segmenter.note_contradictions(self.sam_config, problems)
        text = self.text_config
        for where, name in ((self, "seg_token_id"), (self, "loc_token_id"), (text, "pad_token_id")):
            number = getattr(where, name)
            if number is not None and number >= text.vocab_size:
                problems.add(name, f"is {number}, but the vocabulary has {text.vocab_size} rows; take the tokenizer's")
        if self.seg_token == self.loc_token:
            problems.add("loc_token", f"is {self.loc_token!r}, as seg_token is; they must differ")
        if self.seg_token_id is not None and self.seg_token_id == self.loc_token_id:
            problems.add("loc_token_id", f"is {self.loc_token_id}, as seg_token_id is; they must differ")


def stored_config(saved: Mapping[str, Any], path: Path) -> MoraConfig:
    """The configuration that ``save_pretrained`` wrote.

    Args:
        saved: content of the file.
        path: of the file, for messages.

    Raises:
        ConfigError: with every field that is unknown or cannot be used.
    """
    problems = Problems()
    # Which fields there may be, the backbone decides; one that is not known is the mistake to tell.
    for name in sorted(saved.keys() - field_names(saved)) if _backbone(saved) else ():
        if not name.startswith("_"):
            problems.add(name, "not a field of MoraConfig; remove it, or use the version of the program that wrote it")
    note_wrong_values(saved, problems)
    where = f"{path}: use the config.json that was saved with these weights"
    problems.raise_if_any(ConfigError, where)
    try:
        with fields.building(str(path)):
            return MoraConfig.from_dict(dict(saved))
    except ConfigError as error:
        raise ConfigError(f"{where}; {error}") from None
