"""Where everything of a training batch lies: rows, supervised tokens, read-outs, masks.

The read-out rule: the state one position before a token predicts it. Positions follow from the layout of the rows, so
the number of visual tokens appears nowhere as a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.backbones.packing import Layout, Row, split_at_image
from utils.batch import IGNORE_INDEX, MoraBatch, VideoTensors
from utils.errors import DataError


@dataclass
class Conversation:
    """One question of the batch.

    Attributes:
        video: index of its video.
        question: index within the video.
        where: how errors call it.
        prefix: ids before the image.
        suffix: ids after it.
        has_image: whether there is one.
        labels: of the suffix.
        mask_frames: frames with supervised masks.
        segs: where [SEG] stands in the suffix.
        locs: where [LOC] stands in the suffix.
        rows: (row, suffix number) of each of its LLM rows.
    """

    video: int
    question: int
    where: str
    prefix: list[int]
    suffix: list[int]
    has_image: bool
    labels: list[int]
    mask_frames: list[int]
    segs: list[int]
    locs: list[int]
    rows: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class BatchPlan:
    """The rows of a batch and its conversations.

    Attributes:
        rows: LLM rows.
        conversations: in the order of the batch.
        by_video: the conversations of each video.
    """

    rows: list[Row]
    conversations: list[Conversation]
    by_video: list[list[Conversation]]


def _to_lists(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Values of 1-D tensors, moved off their device in one transfer."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).tolist()
    lists, start = [], 0
    for tensor in tensors:
        lists.append(flat[start : start + tensor.numel()])
        start += tensor.numel()
    return lists


def find(ids: Sequence[int], token: int | None) -> list[int]:
    """Indices of ``token`` in ``ids``; none for None."""
    return [] if token is None else [index for index, value in enumerate(ids) if value == token]


def _conversations(batch: MoraBatch, seg_id: int, loc_id: int | None) -> list[Conversation]:
    """Examine the questions of a batch and cut them at their images.

    Raises:
        DataError: supervision that does not fit the ids.
    """
    questions = [(v, i, q) for v, video in enumerate(batch.videos) for i, q in enumerate(video.questions)]
    values = _to_lists([t for _, _, q in questions for t in (q.input_ids, q.labels, q.mask_frames)])
    result = []
    for number, (v, i, question) in enumerate(questions):
        ids, labels, mask_frames = values[3 * number : 3 * number + 3]
        where = f"video {batch.videos[v].video_id!r}, question {i}"
        if len(ids) != len(labels):
            raise DataError(f"{where}: {len(ids)} input_ids but {len(labels)} labels")
        prefix, suffix, has_image = split_at_image(ids, where)
        cut = len(ids) - len(suffix)
        if any(label != IGNORE_INDEX for label in labels[:cut]):
            raise DataError(f"{where}: labels before the image; answers come after it")
        segs, locs = find(suffix, seg_id), find(suffix, loc_id)
        tubes, frames = question.masks.shape[:2]
        if tubes != len(segs) or frames != len(mask_frames):
            raise DataError(
                f"{where}: masks are {tubes} tubes x {frames} frames, "
                f"but the ids hold {len(segs)} [SEG] after the image and mask_frames {len(mask_frames)}"
            )
        length = batch.videos[v].num_frames
        if any(not 0 <= frame < length for frame in mask_frames):
            raise DataError(f"{where}: mask_frames {mask_frames} outside the {length} sampled frames")
        result.append(Conversation(v, i, where, prefix, suffix, has_image, labels[cut:], mask_frames, segs, locs))
    return result


def plan_batch(
    batch: MoraBatch, visual: Sequence[Tensor], seg_id: int, loc_id: int | None, pack_questions: bool
) -> tuple[BatchPlan, list[Tensor]]:
    """Lay a batch out.

    Args:
        batch: the videos.
        visual: visual tokens per video, [R, n_vis, D].
        seg_id: id of [SEG].
        loc_id: id of [LOC] or None.
        pack_questions: let questions of a video with the same beginning share rows.

    Returns:
        The plan, and the visual rows its ``Row.visual`` count through, each [n_vis, D].
    """
    conversations = _conversations(batch, seg_id, loc_id)
    visual_rows = [row for rows in visual for row in rows]
    offsets = [0]
    for rows in visual:
        offsets.append(offsets[-1] + rows.shape[0])
    plan = BatchPlan([], conversations, [[] for _ in batch.videos])
    groups: dict[tuple, list[Conversation]] = {}
    for number, talk in enumerate(conversations):
        plan.by_video[talk.video].append(talk)
        shared = pack_questions and talk.has_image
        groups.setdefault((talk.video, tuple(talk.prefix)) if shared else (number,), []).append(talk)
    for group in groups.values():
        first = group[0]
        tokens = visual[first.video]
        for r in range(tokens.shape[0] if first.has_image else 1):
            source = offsets[first.video] + r if first.has_image else -1
            for number, talk in enumerate(group):
                talk.rows.append((len(plan.rows), number))
            count = tokens.shape[1] if first.has_image else 0
            plan.rows.append(Row(first.prefix, source, count, [talk.suffix for talk in group]))
    return plan, visual_rows


def supervised_tokens(plan: BatchPlan, layout: Layout) -> tuple[list[int], list[int]]:
    """Flat positions of the states that predict supervised tokens, and those tokens."""
    places, targets = [], []
    for talk in plan.conversations:
        supervised = [(index, label) for index, label in enumerate(talk.labels) if label != IGNORE_INDEX]
        for row, number in talk.rows:
            for index, label in supervised:
                place = layout.place_before(row, number, index)
                if place is not None:
                    places.append(place)
                    targets.append(label)
    return places, targets


@dataclass
class MaskPlan:
    """Which prompt meets which frame.

    Attributes:
        prompt_places: flat positions of the distinct states that become prompts.
        prompts: for each mask, index into ``prompt_places``.
        frames: for each mask, index into ``encoded``.
        encoded: (video, frame) to be encoded by SAM, each once.
        shapes: (video, question) -> (n_seg, m); their masks follow each other in this order.
    """

    prompt_places: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    encoded: list[tuple[int, int]] = field(default_factory=list)
    shapes: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)


def plan_masks(plan: BatchPlan, layout: Layout) -> MaskPlan:
    """Pair every supervised mask with its prompt and its frame.

    Raises:
        DataError: a [SEG] that nothing comes before.
    """
    masks = MaskPlan()
    prompt_index: dict[int, int] = {}
    frame_index: dict[tuple[int, int], int] = {}
    for talk in plan.conversations:
        masks.shapes[talk.video, talk.question] = (len(talk.segs), len(talk.mask_frames))
        for seg in talk.segs:
            for frame in talk.mask_frames:
                row, number = talk.rows[frame if len(talk.rows) > 1 else 0]
                place = layout.place_before(row, number, seg)
                if place is None:
                    raise DataError(f"{talk.where}: [SEG] is the first token; nothing predicts it")
                masks.prompts.append(prompt_index.setdefault(place, len(prompt_index)))
                masks.frames.append(frame_index.setdefault((talk.video, frame), len(frame_index)))
    masks.prompt_places = list(prompt_index)
    masks.encoded = list(frame_index)
    return masks


def loc_places(talk: Conversation, layout: Layout) -> list[int]:
    """Flat positions of the states that predict a conversation's first [LOC], one per LLM row.

    Raises:
        DataError: a [LOC] that nothing comes before.
    """
    places = [layout.place_before(row, number, talk.locs[0]) for row, number in talk.rows]
    if None in places:
        raise DataError(f"{talk.where}: [LOC] is the first token; nothing predicts it")
    return places


def visual_places(talk: Conversation, layout: Layout, count: int) -> list[list[int]]:
    """Flat positions of the visual tokens of a conversation's rows, [R][n_vis]."""
    starts = [row * layout.length + layout.prefix_lengths[row] - count for row, _ in talk.rows]
    return [list(range(start, start + count)) for start in starts]


def video_frames(video: VideoTensors, frames: Sequence[int]) -> Tensor:
    """SAM's input for some frames of a video, [len(frames), 3, S, S]."""
    return video.sam_pixels[torch.tensor(frames, dtype=torch.long, device=video.sam_pixels.device)]
