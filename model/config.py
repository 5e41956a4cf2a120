"""``MoraConfig``: everything that shapes a MoRA network, stored with its weights as ``config.json``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig

from model import fields
from model.localization import LOC_HEADS
from model.segmenters import SEGMENTERS, segmenter_class
from utils.errors import ConfigError, Problems

CHOICES: dict[str, tuple[Any, ...]] = {
    "backbone": ("llava",),
    "projector": ("linear", "mlp"),
    "projector_shuffle": (1, 2),
    "visual_mode": ("frame", "pooled", "video"),
    "loc_mode": ("none", "global", "frame"),
    "template": ("llava_llama_2", "llava_v1", "plain"),
    "tokenization": ("legacy", "plain"),
    "clip_resize": ("crop", "pad", "squash"),
    "answer_style": ("fixed", "name"),
    "initialization": ("hf", "xavier"),
}
"""Allowed values of the fields that name a choice."""

_HEADLINE = "this MoRA configuration cannot be built"


_CHOICE_RULES = {name: fields.one_of(*allowed) for name, allowed in CHOICES.items()}

FIELDS: dict[str, fields.Rule] = {
    **_CHOICE_RULES,
    **fields.COMMON,
    "segmenter": fields.key_of(SEGMENTERS),
    "vision_select_layer": fields.whole(-fields.LAYERS - 1, fields.LAYERS),
    "projector_hidden_size": fields.optional(fields.SIZE),
    "projector_motion": fields.FLAG,
    "frame_time_embedding": fields.FLAG,
    "loc_hidden_size": fields.SIZE,
    "out_dim": fields.SIZE,
    "seg_token": fields.WORD,
    "loc_token": fields.WORD,
    "seg_token_id": fields.optional(fields.whole(0, fields.ROWS)),
    "loc_token_id": fields.optional(fields.whole(0, fields.ROWS)),
    "tie_word_embeddings": fields.FLAG,
}
"""What each of the configuration's own fields may hold."""


def _plain(value: Any) -> Any:
    """The fields of a configuration object; anything else as it is."""
    return value.to_dict() if isinstance(value, PretrainedConfig) else value


def note_wrong_values(values: Mapping[str, Any], problems: Problems) -> None:
    """Note every field of a stored or asked-for configuration that holds what it may not, one by one.

    Args:
        values: fields of :class:`MoraConfig`; its parts as objects, dicts or None.
        problems: gets a line per mistake.
    """
    fields.note_problems(values, FIELDS, problems)
    for part, rules, kind in (
        ("text_config", fields.LLAMA, "llama"), ("vision_config", fields.CLIP, "clip_vision_model"),
    ):  # fmt: skip
        if values.get(part) is not None:
            rules = {**rules, "model_type": fields.one_of(kind)}
            fields.note_problems(_plain(values[part]), rules, problems, part)
    segmenter = values.get("segmenter", "sam")
    if values.get("sam_config") is not None and FIELDS["segmenter"].fits(segmenter):
        segmenter_class(segmenter).note_wrong_values(_plain(values["sam_config"]), problems, "sam_config")


def _sub_config(value: Any, kind: type[PretrainedConfig], name: str) -> PretrainedConfig:
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
        backbone: which multimodal LLM; "llava" is a Llama decoder with a CLIP vision tower.
        text_config: Llama decoder (``LlamaConfig`` or dict).
        vision_config: CLIP vision tower (``CLIPVisionConfig`` or dict).
        segmenter: which network draws the masks, a key of :data:`model.segmenters.SEGMENTERS`.
        sam_config: of the segmenter (object or dict; for "sam" made by :func:`model.segmenters.sam_config`; default:
            ViT-H).
        vision_select_layer: index into the tower's hidden states; -2 is the input of its last layer.
        projector: "linear" (LLaVA v1) or "mlp" (two layers with GELU).
        projector_hidden_size: width between the two layers of the "mlp" projector; None: that of the decoder.
        projector_shuffle: 2 joins each 2x2 block of neighbouring patches into one token; 1 keeps every patch.
        projector_motion: give the projector each token's difference to the same token one frame earlier as well.
        frame_time_embedding: add an embedding of the frame's time, normalised to 0..1, to its visual tokens.
        visual_mode: "frame" one LLM row per frame, "pooled" temporal and spatial means in one row, "video" all tokens
            of all frames in one row.
        loc_mode: "none" no [LOC] head, "frame" a logit from each frame's own [LOC] state (visual_mode "frame" only),
            "global" one [LOC] state matched against every frame.
        loc_hidden_size: width of the [LOC] head.
        out_dim: width of a prompt embedding; equals SAM's.
        template: conversation template the model was trained with.
        tokenization: rule for text next to added tokens.
        seg_token: text of the segmentation token.
        loc_token: text of the localization token.
        seg_token_id: its id, or None until a tokenizer is known.
        loc_token_id: its id, or None (always None without a [LOC] head).
        clip_resize: how a frame becomes the tower's square: centre crop, pad or squash.
        answer_style: "fixed" answers, or "name" answers that name the object before [SEG].
        initialization: of fresh weights: "hf" (the libraries' own) or "xavier" (for very narrow networks).

    Raises:
        ConfigError: listing every value that cannot be used.
    """

    model_type = "mora"
    sub_configs = {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig, "sam_config": PretrainedConfig}

    def __init__(
        self,
        backbone: str = "llava",
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: CLIPVisionConfig | dict[str, Any] | None = None,
        sam_config: PretrainedConfig | dict[str, Any] | None = None,
        vision_select_layer: int = -2,
        projector: str = "linear",
        projector_hidden_size: int | None = None,
        projector_shuffle: int = 1,
        projector_motion: bool = False,
        frame_time_embedding: bool = False,
        visual_mode: str = "frame",
        loc_mode: str = "none",
        loc_hidden_size: int = 256,
        out_dim: int = 256,
        template: str = "llava_llama_2",
        tokenization: str = "legacy",
        seg_token: str = "[SEG]",
        loc_token: str = "[LOC]",
        seg_token_id: int | None = None,
        loc_token_id: int | None = None,
        clip_resize: str = "crop",
        answer_style: str = "fixed",
        initialization: str = "hf",
        segmenter: str = "sam",
        **kwargs: Any,
    ):
        self.backbone = backbone
        self.vision_select_layer = vision_select_layer
        self.projector = projector
        self.projector_hidden_size = projector_hidden_size
        self.projector_shuffle = projector_shuffle
        self.projector_motion = projector_motion
        self.frame_time_embedding = frame_time_embedding
        self.visual_mode = visual_mode
        self.loc_mode = loc_mode
        self.loc_hidden_size = loc_hidden_size
        self.out_dim = out_dim
        self.template = template
        self.tokenization = tokenization
        self.seg_token = seg_token
        self.loc_token = loc_token
        self.seg_token_id = seg_token_id
        self.loc_token_id = loc_token_id
        self.clip_resize = clip_resize
        self.answer_style = answer_style
        self.initialization = initialization
        self.segmenter = segmenter
        kwargs.setdefault("tie_word_embeddings", False)
        parts = {"text_config": text_config, "vision_config": vision_config, "sam_config": sam_config}
        problems, choices = Problems(), Problems()
        note_wrong_values({**vars(self), **kwargs, **parts}, problems)
        fields.note_problems(vars(self), _CHOICE_RULES, choices)
        if len(problems) > len(choices):  # else the rest can be examined as well, so that all is said at once
            problems.raise_if_any(ConfigError, _HEADLINE)
        self.text_config = _sub_config(text_config, LlamaConfig, "text_config")
        self.vision_config = _sub_config(vision_config, CLIPVisionConfig, "vision_config")
        kind = segmenter_class(segmenter)
        self.sam_config = (
            kind.default_config() if sam_config is None else _sub_config(sam_config, kind.config_class, "sam_config")
        )
        with fields.building("MoraConfig"):
            super().__init__(**kwargs)
        self.check()

    @property
    def patches_per_side(self) -> int:
        """Visual tokens along one side of a frame, before the projector joins any."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one frame as the LLM sees them."""
        return (self.patches_per_side // self.projector_shuffle) ** 2

    def check(self) -> None:
        """Examine the values together.

        Raises:
            ConfigError: listing every value that cannot be used.
        """
        problems = Problems()
        fields.note_problems(vars(self), _CHOICE_RULES, problems)
        if self.loc_mode == "frame" and self.visual_mode != "frame":
            problems.add("loc_mode", f"'frame' needs visual_mode 'frame', not {self.visual_mode!r}; use 'global'")
        if self.loc_mode == "global" and self.loc_hidden_size % LOC_HEADS:
            problems.add("loc_hidden_size", f"is {self.loc_hidden_size}; use a multiple of {LOC_HEADS}")
        if self.projector_shuffle == 2 and self.patches_per_side % 2:
            problems.add("projector_shuffle", f"2 needs an even patch grid, this tower has {self.patches_per_side}")
        depth = self.vision_config.num_hidden_layers
        if not -(depth + 1) <= self.vision_select_layer <= depth:
            problems.add("vision_select_layer", f"is {self.vision_select_layer}; this tower has {depth} layers")
        segmenter = segmenter_class(self.segmenter)
        prompt_width = segmenter.prompt_width(self.sam_config)
        if self.out_dim != prompt_width:
            problems.add("out_dim", f"is {self.out_dim}, but this SAM takes prompts of width {prompt_width}")
        self._check_text(problems)
        segmenter.note_contradictions(self.sam_config, problems)
        problems.raise_if_any(ConfigError, _HEADLINE)

    def _check_text(self, problems: Problems) -> None:
        """Note contradictions between the decoder and the special tokens."""
        text = self.text_config
        if text.head_dim % 2:
            problems.add("text_config.head_dim", f"is {text.head_dim}; rotary positions need an even one")
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
    known = {*inspect.signature(MoraConfig.__init__).parameters, *MoraConfig().to_dict(), "torch_dtype"}
    for name in sorted(saved.keys() - known):
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
