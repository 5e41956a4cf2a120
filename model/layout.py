"""Where everything lies in the rows of a decoder: what is read, what is supervised, which state says what.

A row is ``[prefix | suffix 1 | ... | suffix K]``: the prefix is text and images up to the last image, and the questions
of a video that begin alike share it. Every suffix sees the prefix and itself and its positions continue the prefix, so
each reads exactly as it would in a row of its own.

The read-out rule: the state one position before a token predicts it. Positions follow from the layout of the rows, so
the number of visual tokens appears nowhere as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from utils.batch import IGNORE_INDEX, IMAGE_TOKEN_INDEX, MoraBatch
from utils.errors import DataError, TokenizerError

FILLER_ID = 0
"""Stands where an id is needed but never read: under visual tokens and in padding."""

Piece = int | tuple[int, int]
"""Of a prefix: a token id, or the (height, width) in tokens of an image."""


@dataclass
class Visual:
    """What a backbone's encoder made of a video.

    Attributes:
        tokens: float [R, n, D], visual tokens of R decoder rows.
        grids: (height, width) in tokens of each image of a row, as many as a prompt has image marks; they sum to n.
        extras: [R, n, D] each, what else the decoder wants at these tokens; only the backbone knows.
    """

    tokens: Tensor
    grids: list[tuple[int, int]]
    extras: list[Tensor] = field(default_factory=list)

    def rows(self) -> list[Visual]:
        """R of one row each."""
        parts = zip(self.tokens.split(1), *(extra.split(1) for extra in self.extras))
        return [Visual(tokens, self.grids, list(extras)) for tokens, *extras in parts]


@dataclass
class Row:
    """One row of the decoder.

    Attributes:
        prefix: its beginning up to the last image; empty without an image.
        suffixes: ids after it, one list per question sharing this row.
        visual: which of the visual rows its images are; -1 without one.
    """

    prefix: Sequence[Piece]
    suffixes: list[list[int]]
    visual: int = -1


@dataclass
class Layout:
    """Rows as tensors.

    Attributes:
        ids: int64 [B, L]; ``FILLER_ID`` under visual tokens and in padding.
        position_ids: int64 [B, L], or [A, B, L] for positions of A axes; None when counting from 0 is right.
        segments: int64 [B, L], 0 prefix, k for the k-th suffix, -1 padding; None when causality alone is enough.
        images: flat positions (row * L + column) of each row's visual tokens.
        prefix_lengths: P of each row, positions before any suffix.
        starts: column where each suffix of each row begins.
    """

    ids: Tensor
    position_ids: Tensor | None
    segments: Tensor | None
    images: list[list[int]]
    prefix_lengths: list[int]
    starts: list[list[int]]

    def place_before(self, row: int, suffix: int, index: int) -> int | None:
        """Flat position of the state that predicts token ``index`` of a suffix; None if nothing comes before it."""
        column = self.starts[row][suffix] + index if index > 0 else self.prefix_lengths[row]
        return row * self.ids.shape[1] + column - 1 if column else None


def require_rows(ids: Sequence[int], rows: int) -> None:
    """Refuse ids that the word embeddings have no row for: a GPU would end the process over them, or read elsewhere.

    Args:
        ids: on the CPU.
        rows: of the embeddings.

    Raises:
        TokenizerError: naming the ids.
    """
    if ids and not (min(ids) >= 0 and max(ids) < rows):
        strange = sorted({number for number in ids if not 0 <= number < rows})
        raise TokenizerError(
            f"token ids {', '.join(map(str, strange[:5]))}{' …' if len(strange) > 5 else ''} have no row in the word "
            f"embeddings ({rows} rows); use the tokenizer that was saved with the weights"
        )


def split_at_images(ids: Sequence[int], grids: Sequence[tuple[int, int]], where: str) -> tuple[list[Piece], list[int]]:
    """Cut a conversation after its last image.

    Args:
        ids: token ids, with an ``IMAGE_TOKEN_INDEX`` for each of the video's images, or with none.
        grids: of the video's images, see :class:`Visual`.
        where: named in the error.

    Returns:
        (prefix, suffix); without an image everything is suffix.

    Raises:
        DataError: more or fewer image marks than images.
    """
    ids = list(ids)
    count = ids.count(IMAGE_TOKEN_INDEX)
    if not count:
        return [], ids
    if count != len(grids):
        raise DataError(f"{where}: {count} image tokens in one conversation; this video takes exactly {len(grids)}")
    cut = len(ids) - ids[::-1].index(IMAGE_TOKEN_INDEX)
    images = iter(grids)
    return [next(images) if token == IMAGE_TOKEN_INDEX else token for token in ids[:cut]], ids[cut:]


def expand(prefix: Sequence[Piece]) -> tuple[list[int], list[int]]:
    """Ids of a prefix, ``FILLER_ID`` under visual tokens, and the columns of these."""
    ids: list[int] = []
    columns: list[int] = []
    for piece in prefix:
        if isinstance(piece, int):
            ids.append(piece)
        else:
            count = piece[0] * piece[1]
            columns += range(len(ids), len(ids) + count)
            ids += [FILLER_ID] * count
    return ids, columns


def count_tokens(prefix: Sequence[Piece]) -> Tensor:
    """Positions of a decoder that counts its tokens, int64 [1, P]."""
    return torch.arange(len(expand(prefix)[0]))[None]


def after(positions: Tensor) -> int:
    """The position of the text after a prefix whose positions are int64 [A, P]: one beyond the largest."""
    return int(positions.max()) + 1 if positions.numel() else 0


def pack(
    rows: Sequence[Row],
    device: torch.device | None = None,
    positions_of: Callable[[Sequence[Piece]], Tensor] = count_tokens,
) -> Layout:
    """Lay rows out, padded on the right to the longest.

    Args:
        rows: at least one.
        device: of the tensors.
        positions_of: positions of a prefix, int64 [A, P] on the CPU; one axis counts tokens.

    Returns:
        The layout; with one axis, ``position_ids`` only when a row holds more than one suffix, as ``segments`` always.
    """
    packed = any(len(row.suffixes) > 1 for row in rows)
    prefixes = [expand(row.prefix) for row in rows]
    lengths = [len(ids) for ids, _ in prefixes]
    width = max(1, *(length + sum(map(len, row.suffixes)) for length, row in zip(lengths, rows)))
    ids, segments, positions, starts = [], [], [], []
    for row, (row_ids, _), length in zip(rows, prefixes, lengths):
        row_segments, row_starts = [0] * length, []
        row_positions = positions_of(row.prefix)
        begin, text = after(row_positions), []
        for number, suffix in enumerate(row.suffixes, start=1):
            row_starts.append(len(row_ids))
            row_ids = row_ids + suffix
            row_segments += [number] * len(suffix)
            text += range(begin, begin + len(suffix))
        padding = width - len(row_ids)
        ids.append(row_ids + [FILLER_ID] * padding)
        segments.append(row_segments + [-1] * padding)
        text = torch.tensor(text + [0] * padding, dtype=torch.long).expand(len(row_positions), -1)
        positions.append(torch.cat([row_positions, text], dim=1))
        starts.append(row_starts)
    axes = torch.stack(positions, dim=1)  # [A, B, L]
    tensor = partial(torch.tensor, dtype=torch.long, device=device)
    return Layout(
        ids=tensor(ids),
        position_ids=(axes if len(axes) > 1 else axes[0]).to(device) if packed or len(axes) > 1 else None,
        segments=tensor(segments) if packed else None,
        images=[[number * width + column for column in columns] for number, (_, columns) in enumerate(prefixes)],
        prefix_lengths=lengths,
        starts=starts,
    )


def segment_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """Which position may look at which, when rows hold several suffixes.

    Args:
        queries: int64 [B, q], segments of the last q of the k positions.
        keys: int64 [B, k], segments (0 prefix, k suffix, -1 padding).

    Returns:
        bool [B, 1, q, k]: earlier or equal, and in the prefix or in the same segment.
    """
    total, new = keys.shape[1], queries.shape[1]
    order = torch.arange(total, device=keys.device)
    causal = order[None, :] <= order[total - new :, None]
    shared = (keys[:, None, :] == 0) | (keys[:, None, :] == queries[:, :, None])
    return (shared & causal)[:, None]


def find(ids: Sequence[int], token: int | None) -> list[int]:
    """Indices of ``token`` in ``ids``; none for None."""
    return [] if token is None else [index for index, value in enumerate(ids) if value == token]


@dataclass
class PlacedQuestion:
    """A question of a batch, and where it lies.

    Attributes:
        video: index of its video.
        number: index within the video.
        where: how errors call it.
        prefix: of its rows; empty without an image.
        suffix: ids after the last image.
        labels: of the suffix.
        mask_frames: frames with supervised masks.
        segs: where [SEG] stands in the suffix.
        locs: where [LOC] stands in the suffix.
        rows: (row, suffix number) of each of its decoder rows.
    """

    video: int
    number: int
    where: str
    prefix: list[Piece]
    suffix: list[int]
    labels: list[int]
    mask_frames: list[int]
    segs: list[int]
    locs: list[int]
    rows: list[tuple[int, int]] = field(default_factory=list)

    def places_of(self, index: int, layout: Layout, token: str, readout: str) -> list[int]:
        """Flat positions of the states that stand for token ``index`` of the suffix, one per row: those that predict it
        (``readout`` "before"), or those at it ("at").

        Raises:
            DataError: nothing comes before it.
        """
        index = index + 1 if readout == "at" else index
        places = [layout.place_before(row, number, index) for row, number in self.rows]
        if None in places:
            raise DataError(f"{self.where}: {token} is the first token; nothing predicts it")
        return places


def place_questions(
    batch: MoraBatch, visuals: Sequence[Visual], seg_id: int, loc_id: int | None, pack_questions: bool
) -> tuple[list[PlacedQuestion], list[Row]]:
    """Lay a batch out.

    Args:
        batch: the videos.
        visuals: of each video; ``Row.visual`` counts through the rows of all of them.
        seg_id: id of [SEG].
        loc_id: id of [LOC] or None.
        pack_questions: let questions of a video with the same beginning share rows.

    Raises:
        DataError: supervision that does not fit the ids.
    """
    questions = _examine(batch, visuals, seg_id, loc_id)
    offsets = [0]
    for visual in visuals:
        offsets.append(offsets[-1] + len(visual.tokens))
    rows: list[Row] = []
    groups: dict[tuple, list[PlacedQuestion]] = {}
    for number, question in enumerate(questions):
        shared = pack_questions and question.prefix
        groups.setdefault((question.video, tuple(question.prefix)) if shared else (number,), []).append(question)
    for group in groups.values():
        first, suffixes = group[0], [question.suffix for question in group]
        sources = range(offsets[first.video], offsets[first.video + 1]) if first.prefix else [-1]
        for source in sources:
            for number, question in enumerate(group):
                question.rows.append((len(rows), number))
            rows.append(Row(first.prefix, suffixes, source))
    return questions, rows


def _examine(batch: MoraBatch, visuals: Sequence[Visual], seg_id: int, loc_id: int | None) -> list[PlacedQuestion]:
    """Examine the questions of a batch and cut them after their images; see :func:`place_questions`."""
    questions = [(v, i, q) for v, video in enumerate(batch.videos) for i, q in enumerate(video.questions)]
    result = []
    for v, i, question in questions:
        ids, labels, mask_frames = (t.tolist() for t in (question.input_ids, question.labels, question.mask_frames))
        where = f"video {batch.videos[v].video_id!r}, question {i}"
        if len(ids) != len(labels):
            raise DataError(f"{where}: {len(ids)} input_ids but {len(labels)} labels")
        prefix, suffix = split_at_images(ids, visuals[v].grids, where)
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
        if question.in_window is not None and loc_id is not None and not (locs and prefix):
            raise DataError(f"{where}: in_window is given, but its ids hold no [LOC] after an image")
        length = batch.videos[v].num_frames
        if any(not 0 <= frame < length for frame in mask_frames):
            raise DataError(f"{where}: mask_frames {mask_frames} outside the {length} sampled frames")
        result.append(PlacedQuestion(v, i, where, prefix, suffix, labels[cut:], mask_frames, segs, locs))
    return result


def supervised_tokens(questions: Sequence[PlacedQuestion], layout: Layout) -> tuple[list[int], list[int]]:
    """Flat positions of the states that predict supervised tokens, and those tokens."""
    places, targets = [], []
    for question in questions:
        supervised = [(index, label) for index, label in enumerate(question.labels) if label != IGNORE_INDEX]
        for row, number in question.rows:
            for index, label in supervised:
                place = layout.place_before(row, number, index)
                if place is not None:
                    places.append(place)
                    targets.append(label)
    return places, targets


@dataclass
class MaskPlan:
    """Which prompt meets which frame; masks come question after question, and so video after video.

    Attributes:
        places: flat positions of the distinct states that become prompts.
        prompts: for each mask, index into ``places``.
        frames: for each mask, index into the frames to be encoded.
        encoded: by video, its frames to be encoded by the segmenter, each once.
        counts: by video, how many masks.
    """

    places: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    encoded: dict[int, list[int]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)


def plan_masks(questions: Sequence[PlacedQuestion], layout: Layout, readout: str) -> MaskPlan:
    """Pair every supervised mask with its prompt and its frame; ``readout`` as in :meth:`PlacedQuestion.places_of`.

    Raises:
        DataError: a [SEG] that nothing comes before.
    """
    masks = MaskPlan()
    prompt_index: dict[int, int] = {}
    frame_index: dict[tuple[int, int], int] = {}
    for question in questions:
        for seg in question.segs:
            places = question.places_of(seg, layout, "[SEG]", readout)
            for frame in question.mask_frames:
                place = places[frame if len(places) > 1 else 0]
                masks.prompts.append(prompt_index.setdefault(place, len(prompt_index)))
                masks.frames.append(frame_index.setdefault((question.video, frame), len(frame_index)))
                masks.counts[question.video] = masks.counts.get(question.video, 0) + 1
    masks.places = list(prompt_index)
    for video, frame in frame_index:
        masks.encoded.setdefault(video, []).append(frame)
    return masks
