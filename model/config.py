"""``MoraConfig``: everything that shapes a MoRA network, stored with its weights as ``config.json``."""

from __future__ import annotations

import copy
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig, SamConfig

from model.sam import sam_config as original_sam
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


def _sub_config(value: Any, kind: type[PretrainedConfig]) -> PretrainedConfig:
    """A configuration object of ``kind`` from an object, a dict or None (defaults); never shared with the caller."""
    if value is None:
        return kind()
    if isinstance(value, dict):
        return kind(**{key: item for key, item in value.items() if key != "model_type"})
    return copy.deepcopy(value)


class MoraConfig(PretrainedConfig):
    """Configuration of :class:`model.mora.MoraModel`.

    Args:
        backbone: which multimodal LLM; "llava" is a Llama decoder with a CLIP vision tower.
        text_config: Llama decoder (``LlamaConfig`` or dict).
        vision_config: CLIP vision tower (``CLIPVisionConfig`` or dict).
        sam_config: SAM (``SamConfig`` or dict, made by :func:`model.sam.sam_config`; default: ViT-H).
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
    sub_configs = {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig, "sam_config": SamConfig}

    def __init__(
        self,
        backbone: str = "llava",
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: CLIPVisionConfig | dict[str, Any] | None = None,
        sam_config: SamConfig | dict[str, Any] | None = None,
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
        **kwargs: Any,
    ):
        self.text_config = _sub_config(text_config, LlamaConfig)
        self.vision_config = _sub_config(vision_config, CLIPVisionConfig)
        self.sam_config = original_sam() if sam_config is None else _sub_config(sam_config, SamConfig)
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
        kwargs.setdefault("tie_word_embeddings", False)
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
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                problems.add(name, f"is {getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}")
        if self.loc_mode == "frame" and self.visual_mode != "frame":
            problems.add("loc_mode", f"'frame' needs visual_mode 'frame', not {self.visual_mode!r}; use 'global'")
        if self.projector_shuffle == 2 and self.patches_per_side % 2:
            problems.add("projector_shuffle", f"2 needs an even patch grid, this tower has {self.patches_per_side}")
        depth = self.vision_config.num_hidden_layers
        if not -(depth + 1) <= self.vision_select_layer <= depth:
            problems.add("vision_select_layer", f"is {self.vision_select_layer}; this tower has {depth} layers")
        prompt_width = self.sam_config.prompt_encoder_config.hidden_size
        if self.out_dim != prompt_width:
            problems.add("out_dim", f"is {self.out_dim}, but this SAM takes prompts of width {prompt_width}")
        problems.raise_if_any(ConfigError, "this MoRA configuration cannot be built")
