"""Encoding a video, and reading and answering questions about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.backbones.packing import FILLER_ID, split_at_image
from model.backbones.sessions import Prefix, generate, not_finite, open_session, prefill, read_suffixes
from model.context import NO_MASK_LOGIT, Answer, Reading, VideoContext
from model.plan import find
from utils.errors import ConfigError

if TYPE_CHECKING:
    from model.mora import MoraModel


@dataclass
class Request:
    """How to answer; the arguments of :meth:`model.mora.MoraModel.answer`, in its order, and three more.

    Attributes:
        mask_threshold: give masks instead of logits: bool, above this. An eighth of the memory, and a fourth of what
            is copied from the device; None gives logits.
        frames_per_pass: at most so many masks are decoded together; None: as many as fit.
        use_loc: read the [LOC] head; without it there are no probabilities.
    """

    answer_mode: str
    forced_answer_ids: Tensor | Sequence[Tensor] | None
    max_new_tokens: int
    force_seg_token: bool
    force_loc_token: bool
    eos_token_id: int | Sequence[int] | None
    use_cache: bool
    mask_threshold: float | None = None
    frames_per_pass: int | None = None
    use_loc: bool = True


@dataclass
class Question:
    """A prompt cut at its image, with the answers of its rows.

    Attributes:
        suffix: ids after the image, up to the answer.
        has_image: whether the prompt has one.
        answers: ids per LLM row.
        states: [R, 1 + S + A, D]; entry j predicts token j of suffix and answer.
        visual_states: [R, n_vis, D], or None without an image.
        forced_seg: a [SEG] was appended.
        forced_loc: a [LOC] was appended.
    """

    suffix: list[int]
    has_image: bool
    answers: list[list[int]]
    states: Tensor | None = None
    visual_states: Tensor | None = None
    forced_seg: bool = False
    forced_loc: bool = False

    def before(self, row: int, index: int) -> Tensor:
        """State that predicts token ``index`` of a row's answer, [D]."""
        return self.states[row, len(self.suffix) + index]


@torch.no_grad()
def encode(
    model: MoraModel,
    clip_pixels: Tensor,
    sam_pixels: Tensor,
    resized_size: tuple[int, int],
    original_size: tuple[int, int],
    frames_per_pass: int | None = None,
) -> VideoContext:
    """Everything about a video that no question changes; the model must be in eval mode.

    Args:
        model: on the device of the pixels.
        clip_pixels: float [T, 3, c, c].
        sam_pixels: float [T, 3, S, S], zero outside ``resized_size``.
        resized_size: (h, w) of a frame inside SAM's square.
        original_size: (H, W) of the frames.
        frames_per_pass: at most so many frames go through an encoder together; None: as many as fit.
    """
    parts = clip_pixels.split(frames_per_pass or len(clip_pixels))
    visual = model.projector(torch.cat([model.vision_features(part) for part in parts]))
    embeddings = model.sam.encode(sam_pixels, resized_size, frames_per_pass)
    return VideoContext(embeddings, visual, tuple(resized_size), tuple(original_size))


def prefix_of(model: MoraModel, context: VideoContext, ids: list[int], has_image: bool, use_cache: bool) -> Prefix:
    """The beginning of a prompt, read once per video."""
    key = (tuple(ids), has_image, use_cache)
    if key not in context.prefixes:
        prefix = Prefix(ids, context.visual if has_image else None)
        context.prefixes[key] = prefill(model.language_model, prefix, keep_cache=use_cache)
    return context.prefixes[key]


def _grouped(
    model: MoraModel, context: VideoContext, prompts: Sequence[Tensor], use_cache: bool
) -> list[tuple[Prefix, list[tuple[int, list[int], bool]]]]:
    """Prompts by prefix: (prefix, [(number, suffix, has_image)]); single ones where questions may not be packed."""
    groups: dict[tuple, list[tuple[int, list[int], bool]]] = {}
    for number, ids in enumerate(prompts):
        before, suffix, has_image = split_at_image(ids.tolist(), f"prompt {number}")
        key = (tuple(before), has_image, 0 if model.packs_questions and has_image else number)
        groups.setdefault(key, []).append((number, suffix, has_image))
    return [
        (prefix_of(model, context, list(before), has_image, use_cache), members)
        for (before, has_image, _), members in groups.items()
    ]


def read(model: MoraModel, context: VideoContext, input_ids: Sequence[Tensor], use_cache: bool) -> list[Reading]:
    """See :meth:`model.mora.MoraModel.read`."""
    seg_id, loc_id = model.token_ids()
    readings: dict[int, Reading] = {}
    for prefix, members in _grouped(model, context, input_ids, use_cache):
        session = open_session(model.language_model, prefix, len(members), use_cache)
        ids = [torch.tensor([suffix] * prefix.rows, dtype=torch.long) for _, suffix, _ in members]
        for (number, suffix, _), states in zip(members, read_suffixes(session, ids)):
            readings[number] = Reading(
                seg_states=states[:, find(suffix, seg_id)].transpose(0, 1),
                loc_states=states[:, find(suffix, loc_id)].transpose(0, 1),
                logits=model.language_model.lm_head(states[:, :-1]),
                states=states[:, 1:],
                prefix_states=prefix.states,
            )
    return [readings[number] for number in range(len(input_ids))]


def answer(model: MoraModel, context: VideoContext, prompts: Sequence[Tensor], request: Request) -> list[Answer]:
    """See :meth:`model.mora.MoraModel.answer`.

    Raises:
        NumericalError: a value that a mask, a time or a generated token comes from is not finite; names which.
    """
    seg_id, loc_id = model.token_ids()
    forced = _forced_answers(request, len(prompts))
    questions: dict[int, Question] = {}
    for prefix, members in _grouped(model, context, prompts, request.use_cache):
        if forced is None:
            answers = _generate(model, prefix, [suffix for _, suffix, _ in members], request)
        else:
            answers = [[list(forced[number]) for _ in range(prefix.rows)] for number, _, _ in members]
        group = [Question(suffix, has_image, rows) for (_, suffix, has_image), rows in zip(members, answers)]
        for question in group:
            question.visual_states = prefix.visual_states if question.has_image else None
            if request.force_seg_token:
                question.forced_seg = _append_missing(question.answers, seg_id)
            if request.force_loc_token and loc_id is not None:
                question.forced_loc = _append_missing(question.answers, loc_id)
        session = open_session(model.language_model, prefix, len(group), request.use_cache)
        for question, states in zip(group, read_suffixes(session, [_teacher_forced(q) for q in group])):
            question.states = states
        questions.update({number: question for (number, _, _), question in zip(members, group)})
    ordered = [questions[number] for number in range(len(prompts))]
    checks = FiniteChecks()
    drawn, has_seg = _masks(model, context, ordered, seg_id, request, checks)
    read_loc = loc_id if request.use_loc else None
    times = [_times(model, context, question, read_loc, checks) for question in ordered]
    checks.raise_if_any()
    logits, masks = (drawn, [None] * len(ordered)) if request.mask_threshold is None else ([None] * len(ordered), drawn)
    return [
        Answer(q.answers, logits[i], has_seg[i], times[i], q.forced_seg, q.forced_loc, masks[i])
        for i, q in enumerate(ordered)
    ]


def _forced_answers(request: Request, count: int) -> list[list[int]] | None:
    """The answer of each question, or None when they are generated."""
    if request.answer_mode == "generate":
        return None
    if request.answer_mode != "forced":
        raise ConfigError(f"answer_mode is {request.answer_mode!r}; use 'generate' or 'forced'")
    ids = request.forced_answer_ids
    if ids is None:
        raise ConfigError("answer_mode 'forced' needs forced_answer_ids")
    if isinstance(ids, Tensor):
        return [ids.tolist()] * count
    if len(ids) != count:
        raise ConfigError(f"{len(ids)} forced answers for {count} prompts; give one for all or one each")
    return [each.tolist() for each in ids]


def _generate(model: MoraModel, prefix: Prefix, suffixes: list[list[int]], request: Request) -> list[list[list[int]]]:
    """Greedy answers, [K][R] ids."""
    session = open_session(model.language_model, prefix, len(suffixes), request.use_cache)
    eos = request.eos_token_id
    if eos is None:
        eos = model.config.text_config.eos_token_id
    return generate(model.language_model, session, suffixes, request.max_new_tokens, eos)


def _append_missing(answers: list[list[int]], token: int) -> bool:
    """Append ``token`` to every answer without it; whether there was one."""
    missing = [ids for ids in answers if token not in ids]
    for ids in missing:
        ids.append(token)
    return bool(missing)


def _teacher_forced(question: Question) -> Tensor:
    """Suffix and answer of every row, int64 [R, S + A]; shorter answers are filled up at their end, where nothing that
    is read comes after."""
    longest = max(map(len, question.answers))
    rows = [question.suffix + ids + [FILLER_ID] * (longest - len(ids)) for ids in question.answers]
    return torch.tensor(rows, dtype=torch.long)


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
    questions: list[Question],
    seg_id: int,
    request: Request,
    checks: FiniteChecks,
) -> tuple[Tensor, Tensor]:
    """Masks of all questions: logits float32 [K, T, H, W], or bool above the threshold; and has_seg bool [K, T]."""
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
                states.append(question.before(row, index))
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
    return drawn, has_seg.to(device)


def _times(
    model: MoraModel, context: VideoContext, question: Question, loc_id: int | None, checks: FiniteChecks
) -> Tensor | None:
    """Probability per frame that the motion happens, float32 [T]; None without a [LOC] or an image."""
    said = [(row, find(ids, loc_id)[0]) for row, ids in enumerate(question.answers) if loc_id in ids]
    if loc_id is None or not said or question.visual_states is None:
        return None
    states = torch.stack([question.before(row, index) for row, index in said])
    checks.add("[LOC] states", states)
    if model.config.loc_mode == "frame":
        logits = model.loc_head(states).float()
        checks.add("[LOC] logits", logits)
        probs = torch.zeros(context.num_frames, device=states.device)
        probs[[row for row, _ in said]] = logits.sigmoid()
        return probs
    frames = model.projector.frame_states(question.visual_states, context.num_frames)
    logits = model.loc_head(states.mean(0, keepdim=True), frames)[0].float()
    checks.add("[LOC] logits", logits)
    return logits.sigmoid()
