"""One training step: encode every video once, read all its questions, decode all masks in one call, sum the losses."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.backbones.llava import run_rows
from model.backbones.packing import Layout, require_rows
from model.losses import LossWeights, language_loss, localization_loss, mask_losses
from model.plan import (
    BatchPlan,
    Conversation,
    MaskPlan,
    loc_places,
    plan_batch,
    plan_masks,
    supervised_tokens,
    video_frames,
    visual_places,
)
from utils.batch import MoraBatch, VideoTensors
from utils.errors import DataError

if TYPE_CHECKING:
    from model.mora import MoraModel


def training_step(model: MoraModel, batch: MoraBatch, weights: LossWeights, return_predictions: bool) -> dict[str, Any]:
    """Losses of a batch; see :meth:`model.mora.MoraModel.forward`."""
    seg_id, loc_id = model.token_ids()
    visual = model.visual_tokens([video.clip_pixels for video in batch.videos])
    plan, visual_rows = plan_batch(batch, visual, seg_id, loc_id, model.packs_questions)
    layout, states = run_rows(model.language_model, plan.rows, visual_rows)
    ce = _language(model, plan, layout, states)
    masks = _masks(model, batch, plan_masks(plan, layout), states)
    bce, dice = mask_losses([(masks[v], _mask_targets(batch.videos[v])) for v in masks], states.device)
    times = _localization(model, batch, plan, layout, states, visual)
    loc = localization_loss(_timed(batch, plan, times) if loc_id is not None else [], states.device)
    losses = {
        "ce_loss": weights.ce * ce,
        "mask_bce_loss": weights.bce * bce,
        "mask_dice_loss": weights.dice * dice,
        "loc_loss": weights.loc * loc,
    }
    losses["mask_loss"] = losses["mask_bce_loss"] + losses["mask_dice_loss"]
    losses["loss"] = losses["ce_loss"] + losses["mask_loss"] + losses["loc_loss"] + _idle(model, masks, times)
    if return_predictions:
        losses["predictions"] = _predictions(batch, plan, masks, times, states.device)
    return losses


def _language(model: MoraModel, plan: BatchPlan, layout: Layout, states: Tensor) -> Tensor:
    """Language loss; the head is applied only where something is supervised."""
    places, targets = supervised_tokens(plan, layout)
    require_rows(targets, model.config.text_config.vocab_size)
    where = torch.tensor(places, dtype=torch.long, device=states.device)
    logits = model.language_model.lm_head(states[where])
    return language_loss(logits, torch.tensor(targets, dtype=torch.long, device=states.device))


def _masks(model: MoraModel, batch: MoraBatch, plan: MaskPlan, states: Tensor) -> dict[int, Tensor]:
    """Mask logits [N, H, W] by video, question after question; all of a batch from one call of the decoder."""
    if not plan.prompts:
        return {}
    # Conversations come video after video, and so do the frames and the masks of the plan.
    frames: dict[int, list[int]] = {}
    for video, frame in plan.encoded:
        frames.setdefault(video, []).append(frame)
    embeddings = model.encode_frames(torch.cat([video_frames(batch.videos[v], f) for v, f in frames.items()]))
    index = partial(torch.tensor, dtype=torch.long, device=states.device)
    prompts = model.prompt_embeddings(states[index(plan.prompt_places)])
    low_res = model.sam.decode(embeddings[index(plan.frames)], prompts[index(plan.prompts)])
    counts = dict.fromkeys(frames, 0)
    for (video, _), (tubes, supervised) in plan.shapes.items():
        if video in counts:
            counts[video] += tubes * supervised
    return {
        v: model.sam.to_frames(part, batch.videos[v].resized_size, batch.videos[v].original_size)
        for v, part in zip(counts, low_res.split(list(counts.values())))
    }


def _mask_targets(video: VideoTensors) -> Tensor:
    """Targets of a video's masks in the order of its questions, [N, H, W]."""
    parts = [question.masks.flatten(0, 1) for question in video.questions]
    return torch.cat([part for part in parts if part.shape[0]])


def _localization(
    model: MoraModel, batch: MoraBatch, plan: BatchPlan, layout: Layout, states: Tensor, visual: list[Tensor]
) -> dict[tuple[int, int], Tensor]:
    """[LOC] logits [T] by (video, question), for every question with a [LOC] and an image."""
    result: dict[tuple[int, int], Tensor] = {}
    mode = model.config.loc_mode
    for v, talks in enumerate(plan.by_video):
        groups: dict[tuple[int, ...], list[Conversation]] = {}
        for talk in talks:
            if talk.locs and talk.has_image:
                groups.setdefault(tuple(row for row, _ in talk.rows), []).append(talk)
        for group in groups.values():
            places = torch.tensor([loc_places(talk, layout) for talk in group], device=states.device)  # [Q, R]
            if mode == "frame":
                logits = model.loc_head(states[places])
            else:
                seen = torch.tensor(visual_places(group[0], layout, visual[v].shape[1]), device=states.device)
                frames = model.projector.frame_states(states[seen], batch.videos[v].num_frames)
                logits = model.loc_head(states[places].mean(1), frames)
            result.update({(talk.video, talk.question): logit for talk, logit in zip(group, logits)})
    return result


def _timed(batch: MoraBatch, plan: BatchPlan, times: dict[tuple[int, int], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(logits [T], in_window [T]) of the questions whose time is known.

    Raises:
        DataError: a window, but no [LOC] to learn it.
    """
    pairs = []
    for talk in plan.conversations:
        window = batch.videos[talk.video].questions[talk.question].in_window
        if window is None:
            continue
        if (talk.video, talk.question) not in times:
            raise DataError(f"{talk.where}: in_window is given, but its ids hold no [LOC] after an image")
        pairs.append((times[talk.video, talk.question], window))
    return pairs


def _idle(model: MoraModel, masks: dict, times: dict) -> Tensor | float:
    """Zero, with a gradient of zero for trained parts this batch did not use.

    Without it, processes whose batches use different parts would wait for each other's gradients for ever.
    """
    unused = []
    if not masks:
        unused += [*model.text_hidden_fcs.parameters(), *model.sam.decoder.parameters()]
    if not times and model.config.loc_mode != "none":
        unused += list(model.loc_head.parameters())
    return sum((parameter.sum() * 0.0 for parameter in unused if parameter.requires_grad), 0.0)


def _predictions(
    batch: MoraBatch,
    plan: BatchPlan,
    masks: dict[int, Tensor],
    times: dict[tuple[int, int], Tensor],
    device: torch.device,
) -> list[list[dict[str, Tensor | None]]]:
    """What ``forward`` returns about every video's questions, detached."""
    result = []
    for v, talks in enumerate(plan.by_video):
        rest = masks[v].detach() if v in masks else torch.zeros(0, *batch.videos[v].original_size, device=device)
        result.append([])
        for talk in talks:
            shape = (len(talk.segs), len(talk.mask_frames))
            mine, rest = rest[: shape[0] * shape[1]], rest[shape[0] * shape[1] :]
            logits = times.get((v, talk.question))
            result[-1].append(
                {
                    "mask_logits": mine.reshape(*shape, *batch.videos[v].original_size),
                    "loc_logits": None if logits is None else logits.detach().float(),
                }
            )
    return result
