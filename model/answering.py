"""The door to a model: encode a video once, read conversations about it, answer questions about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.backbones import Prefix, Session, generate, not_finite, read_prefix
from model.layout import FILLER_ID, Piece, Visual, find, split_at_images
from model.mora import MoraModel
from model.segmenters import Embeddings
from utils.errors import ConfigError

NO_MASK_LOGIT = -1.0e4
"""Mask logit of a frame for which no ``[SEG]`` was said: finite, and no pixel is in the mask."""


@dataclass
class VideoContext:
    """Everything about a video that no question changes; made once by :func:`encode`.

    Attributes:
        sam_embeddings: of the T frames.
        visual: visual tokens of the decoder's rows.
        resized_size: (h, w) of a frame inside the segmenter's square.
        original_size: (H, W) of the frames.
        prefixes: beginnings of prompts read so far; filled on demand, then only read.
        times: seconds of the T frames in the clip, for whoever writes the prompts; the model does not look at them.
    """

    sam_embeddings: Embeddings
    visual: Visual
    resized_size: tuple[int, int]
    original_size: tuple[int, int]
    prefixes: dict[tuple[Piece, ...], Prefix] = field(default_factory=dict)
    times: Sequence[float] = ()

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.sam_embeddings)


@dataclass
class Reading:
    """A question and its answer, read with teacher forcing.

    Attributes:
        seg_states: [n_seg, R, D], states that stand for each [SEG].
        logits: [R, S, V]; entry j predicts token j of the text after the image (or of the whole text without one).
        states: [R, P + S, D], of the whole rows after the final norm.
    """

    seg_states: Tensor
    logits: Tensor
    states: Tensor


@dataclass(frozen=True)
class Request:
    """How to answer.

    Attributes:
        forced: int64 [A] per prompt, taken as its answer; None: answers are generated, greedily.
        max_new_tokens: at most this many per answer.
        force_seg_token: append [SEG] to an answer without one.
        force_loc_token: append [LOC] to an answer without one.
        eos_token_id: ends an answer, as does any of several; None: the language model's.
        use_loc: read the [LOC] head; without it there are no probabilities.
        mask_threshold: give masks instead of logits: bool, above this. An eighth of the memory, and a fourth of what
            is copied from the device.
        frames_per_pass: at most so many masks are decoded together; None: as many as fit.
    """

    forced: Sequence[Tensor] | None = None
    max_new_tokens: int = 32
    force_seg_token: bool = False
    force_loc_token: bool = False
    eos_token_id: int | Sequence[int] | None = None
    use_loc: bool = True
    mask_threshold: float | None = None
    frames_per_pass: int | None = None


@dataclass
class Answer:
    """What the model says about one question.

    Attributes:
        token_ids: ids of the answer, one list per decoder row (R = T rows in "frame" mode, else 1); no end token.
            Forced tokens are included.
        masks: float32 logits [T, H, W], above 0 is inside; the highest of several, ``NO_MASK_LOGIT`` without one. If a
            threshold was given bool, the union of several.
        has_seg: bool [T] on the CPU, whether a [SEG] stands behind the frame's mask.
        loc_probs: float32 [T] in 0..1, or None without a [LOC] head or token.
        forced_seg: a missing [SEG] was appended in some row.
        forced_loc: a missing [LOC] was appended in some row.
    """

    token_ids: list[list[int]]
    masks: Tensor
    has_seg: Tensor
    loc_probs: Tensor | None
    forced_seg: bool = False
    forced_loc: bool = False


@dataclass
class AnsweredQuestion:
    """A prompt cut after its image, with the answers of its rows.

    Attributes:
        suffix: ids after the image, up to the answer.
        answers: ids per row.
        states: [R, 1 + S + A, D]; entry j predicts token j of suffix and answer.
        prefix: what it begins with.
        forced_seg: a [SEG] was appended.
        forced_loc: a [LOC] was appended.
    """

    suffix: list[int]
    answers: list[list[int]]
    prefix: Prefix
    states: Tensor | None = None
    forced_seg: bool = False
    forced_loc: bool = False

    def state_of(self, row: int, index: int, readout: str) -> Tensor:
        """State that stands for token ``index`` of a row's answer, [D]: it predicts it, or with ``readout`` "at" is at
        it."""
        return self.states[row, len(self.suffix) + index + (readout == "at")]

    def ids(self) -> Tensor:
        """Suffix and answer of every row, int64 [R, S + A]; shorter answers are filled up at their end, where nothing
        that is read comes after."""
        longest = max(map(len, self.answers))
        rows = [self.suffix + ids + [FILLER_ID] * (longest - len(ids)) for ids in self.answers]
        return torch.tensor(rows, dtype=torch.long)


@torch.no_grad()
def encode(
    model: MoraModel,
    clip_pixels: Tensor,
    sam_pixels: Tensor,
    resized_size: tuple[int, int],
    original_size: tuple[int, int],
    frames_per_pass: int | None = None,
) -> VideoContext:
    """Everything about a video that no question changes.

    Args:
        model: on the device of the pixels.
        clip_pixels: float [T, 3, c, c].
        sam_pixels: float [T, 3, S, S], zero outside ``resized_size``.
        resized_size: (h, w) of a frame inside the segmenter's square.
        original_size: (H, W) of the frames.
        frames_per_pass: at most so many frames go through an encoder together; None: as many as fit.
    """
    with model.evaluating():
        (visual,) = model.backbone.encode([clip_pixels], frames_per_pass)
        embeddings = model.sam.encode(sam_pixels, resized_size, frames_per_pass)
    return VideoContext(embeddings, visual, tuple(resized_size), tuple(original_size))


def _grouped(
    model: MoraModel, context: VideoContext, prompts: Sequence[Tensor]
) -> list[tuple[Prefix, list[tuple[int, list[int]]]]]:
    """Prompts by prefix: (prefix, [(number, suffix)]); single ones where questions may not be packed."""
    groups: dict[tuple, list[tuple[int, list[int]]]] = {}
    for number, ids in enumerate(prompts):
        before, suffix = split_at_images(ids.tolist(), context.visual.grids, f"prompt {number}")
        alone = not (model.backbone.packs_questions and before)
        groups.setdefault((tuple(before), number if alone else 0), []).append((number, suffix))
    result = []
    for (before, _), members in groups.items():
        if before not in context.prefixes:
            context.prefixes[before] = read_prefix(model.backbone, before, context.visual)
        result.append((context.prefixes[before], members))
    return result


@torch.no_grad()
def read(model: MoraModel, context: VideoContext, conversations: Sequence[Tensor]) -> list[Reading]:
    """Read whole conversations with teacher forcing.

    Args:
        model: that encoded the video.
        context: of the video.
        conversations: int64 [L] each, with an ``IMAGE_TOKEN_INDEX`` for each image of the video, or none.

    Returns:
        One reading per conversation.

    Raises:
        DataError: more or fewer image marks than images.
        TokenizerError: an id that has no row in the word embeddings.
    """
    (seg_id, _), readout = model.token_ids(), model.config.readout
    readings: dict[int, Reading] = {}
    with model.evaluating():
        for prefix, members in _grouped(model, context, conversations):
            session = Session(model.backbone, prefix, len(members))
            ids = [torch.tensor([suffix] * prefix.rows, dtype=torch.long) for _, suffix in members]
            for (number, suffix), states in zip(members, session.read(ids)):
                readings[number] = Reading(
                    seg_states=states[:, [i + (readout == "at") for i in find(suffix, seg_id)]].transpose(0, 1),
                    logits=model.backbone.logits(states[:, :-1]),
                    states=torch.cat([prefix.states, states[:, 1:]], dim=1),
                )
    return [readings[number] for number in range(len(conversations))]


@torch.no_grad()
def answer(
    model: MoraModel, context: VideoContext, prompts: Sequence[Tensor], request: Request = Request()
) -> list[Answer]:
    """Answer questions with masks and times.

    Args:
        model: that encoded the video.
        context: of the video.
        prompts: int64 [P] each, ending where the answer begins.
        request: how.

    Returns:
        One answer per prompt.

    Raises:
        ConfigError: not one forced answer per prompt.
        NumericalError: a value that a mask, a time or a generated token comes from is not finite; names which.
        DataError, TokenizerError: see :func:`read`.
    """
    seg_id, loc_id = model.token_ids()
    forced, ends = request.forced, request.eos_token_id
    ends = model.config.text_config.eos_token_id if ends is None else ends
    ends = ends if isinstance(ends, Sequence) else [ends]
    if forced is not None and len(forced) != len(prompts):
        raise ConfigError(f"{len(forced)} forced answers for {len(prompts)} prompts; give one each")
    done: dict[int, AnsweredQuestion] = {}
    with model.evaluating():
        for prefix, members in _grouped(model, context, prompts):
            if forced is None:
                session = Session(model.backbone, prefix, len(members))
                answers = generate(session, [suffix for _, suffix in members], request.max_new_tokens, ends)
            else:
                answers = [[forced[number].tolist() for _ in range(prefix.rows)] for number, _ in members]
            group = [AnsweredQuestion(suffix, rows, prefix) for (_, suffix), rows in zip(members, answers)]
            for question in group:
                if request.force_seg_token:
                    question.forced_seg = _append_missing(question.answers, seg_id)
                if request.force_loc_token and loc_id is not None:
                    question.forced_loc = _append_missing(question.answers, loc_id)
            session = Session(model.backbone, prefix, len(group))
            for question, states in zip(group, session.read([question.ids() for question in group])):
                question.states = states
            done.update({number: question for (number, _), question in zip(members, group)})
        questions = [done[number] for number in range(len(prompts))]
        checks = FiniteChecks()
        masks, has_seg = _masks(model, context, questions, seg_id, request, checks)
        read_loc = loc_id if request.use_loc else None
        times = [_times(model, context, question, read_loc, checks) for question in questions]
        checks.raise_if_any()
    return [
        Answer(q.answers, masks[i], has_seg[i], times[i], q.forced_seg, q.forced_loc) for i, q in enumerate(questions)
    ]


def _append_missing(answers: list[list[int]], token: int) -> bool:
    """Append ``token`` to every answer without it; whether there was one."""
    missing = [ids for ids in answers if token not in ids]
    for ids in missing:
        ids.append(token)
    return bool(missing)


class FiniteChecks:
    """Collects on the device whether values are finite, and asks it once.

    A mask of NaN is empty and a NaN probability keeps no mask, so a broken model would score as silence.
    """

    def __init__(self) -> None:
        self._finite: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Note whether all ``values`` are finite; ``name`` says what they are."""
        finite = values.isfinite().all()
        self._finite[name] = finite & self._finite[name] if name in self._finite else finite

    def raise_if_any(self) -> None:
        """Wait for the device.

        Raises:
            NumericalError: some values are not finite; names all of these, in the order in which they were computed.
        """
        if self._finite:
            finite = torch.stack(list(self._finite.values())).tolist()
            if not all(finite):
                raise not_finite([name for name, good in zip(self._finite, finite) if not good])


def _masks(
    model: MoraModel,
    context: VideoContext,
    questions: list[AnsweredQuestion],
    seg_id: int,
    request: Request,
    checks: FiniteChecks,
) -> tuple[Tensor, Tensor]:
    """All masks: logits float32 [K, T, H, W], or bool above the threshold; and has_seg bool [K, T], on the CPU."""
    frames, threshold = context.num_frames, request.mask_threshold
    states, owners, prompts, places = [], [], [], []
    for number, question in enumerate(questions):
        rows = len(question.answers)
        for row, ids in enumerate(question.answers):
            for index in find(ids, seg_id):
                # A row that saw one frame draws on that frame; a row that saw all draws on all.
                targets = [row] if rows > 1 or frames == 1 else range(frames)
                places += targets
                prompts += [len(states)] * len(targets)
                owners += [number] * len(targets)
                states.append(question.state_of(row, index, model.config.readout))
    device = context.sam_embeddings.device
    shape, nothing = (len(questions), frames, *context.original_size), NO_MASK_LOGIT if threshold is None else False
    drawn = torch.full(shape, nothing, device=device)
    has_seg = torch.zeros(len(questions), frames, dtype=torch.bool)
    has_seg[owners, places] = True
    if states:
        seg_states = torch.stack(states)
        embeds = model.prompt_embeddings(seg_states)
        low_res = model.sam.decode(
            context.sam_embeddings[torch.tensor(places, device=device)],
            embeds[torch.tensor(prompts, device=device)],
            request.frames_per_pass,
        )
        for name, values in (("[SEG] states", seg_states), ("prompt embeddings", embeds), ("mask logits", low_res)):
            checks.add(name, values)
        step = request.frames_per_pass or frames
        for start in range(0, len(places), step):
            # Full-size logits of a few masks at a time: a hundred at 720p would be a gigabyte of temporaries.
            part = model.sam.to_frames(low_res[start : start + step], context.resized_size, context.original_size)
            part = part if threshold is None else part > threshold
            for mask, number, frame in zip(part, owners[start:], places[start:]):
                # The highest logit of several masks; of thresholded ones, their union.
                drawn[number, frame] = torch.maximum(drawn[number, frame], mask)
    return drawn, has_seg


def _times(
    model: MoraModel, context: VideoContext, question: AnsweredQuestion, loc_id: int | None, checks: FiniteChecks
) -> Tensor | None:
    """Probability per frame that the motion happens, float32 [T]; None without a [LOC] or an image."""
    said = [(row, find(ids, loc_id)[0]) for row, ids in enumerate(question.answers) if loc_id in ids]
    if loc_id is None or not said or not question.prefix.pieces:
        return None
    states = torch.stack([question.state_of(row, index, model.config.readout) for row, index in said])
    checks.add("[LOC] states", states)
    if model.config.loc_mode == "frame":
        logits = model.loc_head(states).float()
        checks.add("[LOC] logits", logits)
        probs = torch.zeros(context.num_frames, device=states.device)
        probs[[row for row, _ in said]] = logits.sigmoid()
        return probs
    frames = model.backbone.frame_states(question.prefix.visual_states, context.num_frames)
    logits = model.loc_head(states.mean(0, keepdim=True), frames)[0].float()
    checks.add("[LOC] logits", logits)
    return logits.sigmoid()
