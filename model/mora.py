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
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.backbones import backbone_class, read_rows
from model.config import MoraConfig
from model.initialization import initialize_module, resize_vocabulary
from model.layout import Layout, PlacedQuestion, Visual, place_questions, plan_masks, require_rows, supervised_tokens
from model.localization import build_loc_head
from model.losses import LossWeights, language_loss, localization_loss, mask_losses
from model.segmenters import segmenter_class
from utils.batch import MoraBatch, VideoTensors
from utils.errors import ConfigError
from utils.tensors import require_finite


class MoraModel(PreTrainedModel):
    """The whole network.

    Args:
        config: its shape.

    Attributes:
        backbone: what to do with the networks of the multimodal language model, which stand beside it under names of
            their own (``language_model``, ``vision_tower``, ``projector`` for LLaVA).
        sam: the segmenter, a :class:`model.segmenters.Segmenter`.
        text_hidden_fcs: the read-out of [SEG], state to prompt embedding.
        loc_head: only with ``loc_mode`` "global" or "frame".
    """

    config_class = MoraConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MoraConfig):
        super().__init__(config)
        hidden = config.text_config.hidden_size
        kind = backbone_class(config.backbone)
        networks = kind.networks(config)
        for name, network in networks.items():
            self.add_module(name, network)
        self.backbone = kind(config, networks)
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

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, under the names that the parameters have here: the library would write those of some
        networks (Qwen2.5-VL) by their oldest files."""
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_module(module, self.config.initialization)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.backbone.vocabulary[0]

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Recompute the decoder's layers in the backward pass instead of keeping what is inside them."""
        for module in self.backbone.decoder.modules():
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

    def prompt_embeddings(self, states: Tensor) -> Tensor:
        """[SEG] states [..., D] to prompt embeddings [..., C]."""
        return self.text_hidden_fcs[0](states)

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
        weights, videos = loss_weights or LossWeights(), batch.videos
        seg_id, loc_id = self.token_ids()

        # Every video is encoded once, and its questions share rows of the decoder.
        visuals = self.backbone.encode([video.clip_pixels for video in videos])
        questions, rows = place_questions(batch, visuals, seg_id, loc_id, self.backbone.packs_questions)
        layout, states = read_rows(self.backbone, rows, [row for visual in visuals for row in visual.rows()])
        states = states.flatten(0, 1)  # [B * L, D]
        index = partial(torch.tensor, dtype=torch.long, device=states.device)

        # Words: the language head runs only where something is supervised.
        places, words = supervised_tokens(questions, layout)
        require_rows(words, self.config.text_config.vocab_size)
        ce = language_loss(self.backbone.logits(states[index(places)]), index(words))

        # Masks: every frame that has one is encoded once, and all masks are decoded in one call. Parts that this batch
        # has no use for run on zeros in their turn: processes that divide weights or gradients wait for each other.
        plan, masks = plan_masks(questions, layout, self.config.readout), {}
        idle = 0.0 if any(question.prefix for question in questions) else _nothing(*_contents(visuals))
        if plan.prompts:
            pixels = torch.cat([videos[v].sam_pixels[index(frames)] for v, frames in plan.encoded.items()])
            prompts = self.prompt_embeddings(states[index(plan.places)])  # [S, C]
            logits = self.sam.decode(self.sam.encode(pixels)[index(plan.frames)], prompts[index(plan.prompts)])
            for v, part in zip(plan.counts, logits.split(list(plan.counts.values()))):
                masks[v] = self.sam.to_frames(part, videos[v].resized_size, videos[v].original_size)  # [N, H, W]
        else:
            idle = idle + self._draw_nothing(states[:1])
        bce, dice = mask_losses([(masks[v], videos[v].mask_targets()) for v in masks], states.device)

        # Times: the head reads the states before [LOC] and, unless each row has a frame of its own, of the frames.
        times = self._times(questions, layout, states, videos)
        supervised = [(q, videos[q.video].questions[q.number].in_window) for q in questions if loc_id is not None]
        pairs = [(times[q.video, q.number], window) for q, window in supervised if window is not None]
        loc = localization_loss(pairs, states.device)
        if not pairs and loc_id is not None:
            idle = idle + (_nothing(*times.values()) if times else self._time_nothing(states[:1]))

        losses = {
            "ce_loss": weights.ce * ce,
            "mask_bce_loss": weights.bce * bce,
            "mask_dice_loss": weights.dice * dice,
            "loc_loss": weights.loc * loc,
        }
        losses["mask_loss"] = losses["mask_bce_loss"] + losses["mask_dice_loss"]
        losses["loss"] = losses["ce_loss"] + losses["mask_loss"] + losses["loc_loss"] + idle
        if return_predictions:
            losses["predictions"] = _predictions(questions, videos, masks, times, states.device)
        return losses

    def _times(
        self, questions: Sequence[PlacedQuestion], layout: Layout, states: Tensor, videos: Sequence[VideoTensors]
    ) -> dict[tuple[int, int], Tensor]:
        """[LOC] logits [T] by (video, question), for every question with a [LOC] and an image."""
        groups: dict[tuple[int, ...], list[PlacedQuestion]] = {}  # questions that share their rows, and so their frames
        for question in questions:
            if question.locs and question.prefix:
                groups.setdefault(tuple(row for row, _ in question.rows), []).append(question)
        given: list[Tensor] = []
        for rows, group in groups.items():
            readout = self.config.readout
            places = [question.places_of(question.locs[0], layout, "[LOC]", readout) for question in group]
            said = states[torch.tensor(places, device=states.device)]  # [Q, R, D]
            if self.config.loc_mode == "frame":
                given.append(said)
            else:
                seen = states[torch.tensor([layout.images[row] for row in rows], device=states.device)]  # [R, n, D]
                given += [said.mean(1), self.backbone.frame_states(seen, videos[group[0].video].num_frames)]
        if not groups:
            return {}
        asked = [each for group in groups.values() for each in group]
        lengths = [videos[each.video].num_frames for each in asked]
        logits = self.loc_head(*given).flatten().split(lengths)
        return {(each.video, each.number): mine for each, mine in zip(asked, logits)}

    def _draw_nothing(self, state: Tensor) -> Tensor | float:
        """Run everything that masks need, on zeros that a state [1, D] stands behind, as behind real ones: ZeRO-3 lets
        a module go when a gradient has passed through it."""
        prompts = self.prompt_embeddings(state * 0.0)
        pixels = state.new_zeros(1, 3, self.sam.pixel_rule.size, self.sam.pixel_rule.size)
        return _nothing(self.sam.decode(self.sam.encode(pixels), prompts))

    def _time_nothing(self, state: Tensor) -> Tensor | float:
        """Run the [LOC] head as :meth:`_draw_nothing` does the rest."""
        zeros = state * 0.0
        return _nothing(self.loc_head(*[zeros, zeros[None]][: self.loc_head.takes]))

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
            resize_vocabulary(*self.backbone.vocabulary, new_num_tokens)
            self.config.text_config.vocab_size = new_num_tokens
        return self.get_input_embeddings()


def _contents(visuals: Sequence[Visual]) -> list[Tensor]:
    """Everything that an encoder made."""
    return [part for visual in visuals for part in (visual.tokens, *visual.extras)]


def _nothing(*made: Tensor) -> Tensor | float:
    """Zero, with a gradient of zero for what made these."""
    return sum((part.float().sum() * 0.0 for part in made if part.requires_grad), 0.0)


def _predictions(
    questions: Sequence[PlacedQuestion],
    videos: Sequence[VideoTensors],
    masks: dict[int, Tensor],
    times: dict[tuple[int, int], Tensor],
    device: torch.device,
) -> list[list[dict[str, Tensor | None]]]:
    """What ``forward`` returns about every video's questions, detached."""
    result: list[list[dict[str, Tensor | None]]] = [[] for _ in videos]
    rest = {v: logits.detach() for v, logits in masks.items()}
    for question in questions:
        v, shape = question.video, (len(question.segs), len(question.mask_frames))
        left = rest.get(v, torch.zeros(0, *videos[v].original_size, device=device))
        mine, rest[v] = left[: shape[0] * shape[1]], left[shape[0] * shape[1] :]
        times_of = times.get((v, question.number))
        result[v].append(
            {
                "mask_logits": mine.reshape(*shape, *videos[v].original_size),
                "loc_logits": None if times_of is None else times_of.detach().float(),
            }
        )
    return result
