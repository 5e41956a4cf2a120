"""MoRA: a multimodal LLM that says ``[SEG]`` and ``[LOC]``, SAM that draws the one, a head that times the other.

Deng et al. 2025, "Motion-Grounded Video Reasoning"; the wiring of masks is LISA's (Lai et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model import answering
from model.backbones.llava import Projector, vision_features
from model.config import MoraConfig
from model.context import Answer, Reading, VideoContext
from model.initialization import initialize_module, resize_vocabulary
from model.localization import build_loc_head
from model.losses import LossWeights
from model.segmenters import Embeddings, segmenter_class
from model.training_step import training_step
from utils.batch import MoraBatch
from utils.errors import ConfigError
from utils.finite import require_finite


class MoraModel(PreTrainedModel):
    """The whole network.

    Args:
        config: its shape.

    Attributes:
        language_model: ``LlamaForCausalLM``.
        vision_tower: ``CLIPVisionModel``.
        projector: visual features to visual tokens.
        sam: the segmenter, a :class:`model.segmenters.Segmenter`.
        text_hidden_fcs: the read-out of [SEG], state to prompt embedding.
        loc_head: only with ``loc_mode`` "global" or "frame".
    """

    config_class = MoraConfig
    base_model_prefix = ""
    main_input_name = "batch"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer", "SamVisionLayer"]

    def __init__(self, config: MoraConfig):
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.language_model = LlamaForCausalLM(config.text_config)
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.projector = Projector(config)
        self.sam = segmenter_class(config.segmenter)(config.sam_config)
        head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, config.out_dim), nn.Dropout(0.0))
        self.text_hidden_fcs = nn.ModuleList([head])
        loc_head = build_loc_head(config.loc_mode, hidden, config.loc_hidden_size)
        if loc_head is not None:
            self.loc_head = loc_head
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for a folder that ``save_pretrained`` wrote; :func:`model.checkpoints.load_any`
        opens more layouts and says more.

        Raises:
            CheckpointError: weights that are NaN or infinite, by name.
        """
        loaded = super().from_pretrained(source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        require_finite(((name, value, value) for name, value in model.named_parameters()), str(source))
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_module(module, self.config.initialization)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language head."""
        return self.language_model.get_output_embeddings()

    @property
    def packs_questions(self) -> bool:
        """Whether questions may share a row; flash attention takes no mask that would keep them apart."""
        return "flash" not in (self.language_model.config._attn_implementation or "")

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Recompute the decoder's layers in the backward pass instead of keeping what is inside them."""
        for module in self.language_model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = enable
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def token_ids(self) -> tuple[int, int | None]:
        """Ids of [SEG] and [LOC] (None without a [LOC] head).

        Raises:
            ConfigError: an id the model needs was never set, or has no row in the embeddings.
        """
        config = self.config
        if config.seg_token_id is None:
            raise ConfigError(f"seg_token_id is not set; take it from the tokenizer's id of {config.seg_token}")
        if config.loc_mode != "none" and config.loc_token_id is None:
            raise ConfigError(f"loc_token_id is not set; take it from the tokenizer's id of {config.loc_token}")
        for name in ("seg_token_id", "loc_token_id") if config.loc_mode != "none" else ("seg_token_id",):
            if not 0 <= getattr(config, name) < config.text_config.vocab_size:
                raise ConfigError(
                    f"{name} is {getattr(config, name)}, but the word embeddings have {config.text_config.vocab_size} "
                    "rows; use the tokenizer that was saved with the weights"
                )
        return config.seg_token_id, config.loc_token_id if config.loc_mode != "none" else None

    def vision_features(self, clip_pixels: Tensor) -> Tensor:
        """Patch features of frames: float [F, 3, c, c] to [F, N, C]; no graph is kept when the tower is frozen."""
        with _grad_if_trainable(self.vision_tower):
            return vision_features(self.vision_tower, clip_pixels, self.config.vision_select_layer)

    def encode_frames(self, sam_pixels: Tensor) -> Embeddings:
        """The segmenter's embeddings of frames, float [F, 3, S, S]; no graph is kept when its encoder is frozen."""
        return self.sam.encode(sam_pixels)

    def prompt_embeddings(self, states: Tensor) -> Tensor:
        """[SEG] states [..., D] to prompt embeddings [..., C]."""
        return self.text_hidden_fcs[0](states)

    def visual_tokens(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Visual tokens of several videos, the tower run once over all their frames.

        Args:
            clips: float [T, 3, c, c] per video.

        Returns:
            [R, n_vis, D] per video.
        """
        features = self.vision_features(torch.cat(list(clips)))
        return [self.projector(part) for part in features.split([clip.shape[0] for clip in clips])]

    def forward(
        self, batch: MoraBatch, loss_weights: LossWeights | None = None, return_predictions: bool = False
    ) -> dict[str, Any]:
        """One training step's losses.

        Args:
            batch: any number of videos with any number of questions each.
            loss_weights: default 1.0 / 2.0 / 0.5 / 1.0.
            return_predictions: also return masks and [LOC] logits.

        Returns:
            0-dim float32 ``loss``, ``ce_loss``, ``mask_bce_loss``, ``mask_dice_loss``, ``mask_loss``, ``loc_loss``,
            all weighted; ``loss`` is CE + masks + LOC. With ``predictions``: per video, per question, a dict of
            ``mask_logits`` float32 [n_seg, m, H, W] and ``loc_logits`` float32 [T] or None, both detached.

        Raises:
            DataError: supervision that does not fit its ids.
            ConfigError: ids of special tokens are missing.
        """
        return training_step(self, batch, loss_weights or LossWeights(), return_predictions)

    @torch.no_grad()
    def encode_video(
        self,
        clip_pixels: Tensor,
        sam_pixels: Tensor,
        resized_size: tuple[int, int],
        original_size: tuple[int, int],
    ) -> VideoContext:
        """Everything that no question changes, computed once.

        Args:
            clip_pixels: float [T, 3, c, c].
            sam_pixels: float [T, 3, S, S].
            resized_size: (h, w) of a frame inside SAM's square.
            original_size: (H, W) of the frames.

        Returns:
            The context that :meth:`read` and :meth:`answer` take.
        """
        with self.evaluating():
            (visual,) = self.visual_tokens([clip_pixels])
            embeddings = self.encode_frames(sam_pixels)
        return VideoContext(embeddings, visual, tuple(resized_size), tuple(original_size))

    @torch.no_grad()
    def read(self, context: VideoContext, input_ids: Sequence[Tensor], use_cache: bool = True) -> list[Reading]:
        """Read whole conversations with teacher forcing.

        Args:
            context: of the video.
            input_ids: int64 [L] each, with at most one ``IMAGE_TOKEN_INDEX``.
            use_cache: reuse the keys and values of what was read before; the result is the same.

        Returns:
            One reading per conversation.
        """
        with self.evaluating():
            return answering.read(self, context, input_ids, use_cache)

    @torch.no_grad()
    def answer(
        self,
        context: VideoContext,
        prompts: Sequence[Tensor],
        answer_mode: str = "generate",
        forced_answer_ids: Tensor | Sequence[Tensor] | None = None,
        max_new_tokens: int = 32,
        force_seg_token: bool = False,
        force_loc_token: bool = False,
        eos_token_id: int | Sequence[int] | None = None,
        use_cache: bool = True,
    ) -> list[Answer]:
        """Answer questions with masks and times.

        Args:
            context: of the video.
            prompts: int64 [P] each, ending where the answer begins.
            answer_mode: "generate" greedily, or "forced": take ``forced_answer_ids`` as the answer.
            forced_answer_ids: int64 [A] for all questions, or one per question.
            max_new_tokens: at most this many per answer.
            force_seg_token: append [SEG] to an answer without one.
            force_loc_token: append [LOC] to an answer without one.
            eos_token_id: ends an answer, as does any of several; default: the language model's.
            use_cache: as in :meth:`read`.

        Returns:
            One answer per prompt.

        Raises:
            ConfigError: an unknown mode, or a mode without its ids.
        """
        request = answering.Request(
            answer_mode, forced_answer_ids, max_new_tokens, force_seg_token, force_loc_token, eos_token_id, use_cache
        )
        with self.evaluating():
            return answering.answer(self, context, prompts, request)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the model is in eval mode (checkpointed layers of a training model would drop the cache)."""
        training = [module for module in self.modules() if module.training]
        if training:
            self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **kwargs: Any) -> nn.Module:
        """Make room for added tokens; see :func:`model.initialization.resize_vocabulary`.

        Args:
            new_num_tokens: size of the vocabulary; None changes nothing.
            kwargs: accepted for the base class's sake and not needed.

        Returns:
            The word embeddings.
        """
        if new_num_tokens is not None:
            resize_vocabulary(self, new_num_tokens)
        return self.get_input_embeddings()


@contextmanager
def _grad_if_trainable(module: nn.Module) -> Iterator[None]:
    """Keep a graph only if some parameter of ``module`` is trained."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        yield
