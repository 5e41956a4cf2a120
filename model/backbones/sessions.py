"""Reading rows; and reading questions after a beginning that was read once, with its keys and values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache

from model.backbones.interface import Backbone
from model.layout import Layout, Piece, Row, Visual, after, expand, pack, require_rows, segment_mask
from utils.errors import NumericalError


def read_rows(
    backbone: Backbone, rows: Sequence[Row], visuals: Sequence[Visual], cache: DynamicCache | None = None
) -> tuple[Layout, Tensor]:
    """Read whole rows.

    Args:
        backbone: its decoder reads.
        rows: what to read.
        visuals: of one row each; ``Row.visual`` is an index into them.
        cache: empty; keeps the keys and values.

    Returns:
        The layout, and the states after the final norm, [B, L, D].

    Raises:
        TokenizerError: an id that has no row in the word embeddings.
    """
    for row in rows:
        words = [piece for piece in row.prefix if isinstance(piece, int)]
        require_rows([*words, *itertools.chain(*row.suffixes)], backbone.config.text_config.vocab_size)
    device = backbone.vocabulary[0].weight.device
    layout = pack(rows, device, backbone.positions)
    embeds, places, extras = backbone.embed(layout.ids), None, []
    laid = [visuals[row.visual] for row in rows if row.visual >= 0]
    if laid:
        places = torch.tensor(list(itertools.chain(*layout.images)), dtype=torch.long, device=device)
        tokens = torch.cat([visual.tokens[0] for visual in laid]).to(embeds.dtype)
        embeds = embeds.flatten(0, 1).index_copy(0, places, tokens).view_as(embeds)
        extras = [torch.cat([extra[0] for extra in level]) for level in zip(*(visual.extras for visual in laid))]
    allowed = None if layout.segments is None else segment_mask(layout.segments, layout.segments)
    return layout, backbone.read(embeds, layout.position_ids, allowed, cache, places, extras)


@dataclass
class Prefix:
    """A beginning that questions share, in R rows, read once.

    Attributes:
        pieces: text and images; empty for a question without an image.
        visual: of the video.
        states: float [R, P, D], after the final norm.
        next: position of the token after it.
        layers: per decoder layer (keys, values), each [R, heads, P, d]; never changed.
    """

    pieces: Sequence[Piece]
    visual: Visual
    states: Tensor
    next: int = 0
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """R: decoder rows."""
        return self.states.shape[0]

    @cached_property
    def visual_states(self) -> Tensor:
        """States at the visual tokens, [R, n, D]."""
        return self.states[:, expand(self.pieces)[1]]


def read_prefix(backbone: Backbone, pieces: Sequence[Piece], visual: Visual) -> Prefix:
    """Read a beginning; see :func:`read_rows` for what is raised.

    Args:
        backbone: in eval mode, or its cache would stay empty.
        pieces: of the beginning.
        visual: of the video.
    """
    if not pieces:
        nothing = torch.zeros(1, 0, dtype=torch.long, device=visual.tokens.device)
        return Prefix(pieces, visual, backbone.embed(nothing))
    cache, rows = DynamicCache(), visual.rows()
    _, states = read_rows(backbone, [Row(pieces, [], index) for index in range(len(rows))], rows, cache)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return Prefix(pieces, visual, states, after(backbone.positions(pieces)), layers)


class Session:
    """Several questions growing side by side after one prefix, each seeing the prefix and itself.

    All questions of a prefix share its R rows, so keys and values of the prefix exist once however many questions
    there are. The prefix itself is not changed.

    Args:
        backbone: in eval mode.
        prefix: what they begin with.
        questions: K.
    """

    def __init__(self, backbone: Backbone, prefix: Prefix, questions: int):
        self.backbone = backbone
        self.prefix = prefix
        self.lengths = [0] * questions
        self.segments = [0] * prefix.states.shape[1]
        self.cache = DynamicCache()
        for index, (keys, values) in enumerate(prefix.layers):
            self.cache.update(keys, values, index)

    def append(self, pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """Continue questions.

        Args:
            pieces: question -> ids int64 [R, n], n >= 1.

        Returns:
            question -> states after the final norm, [R, n, D].
        """
        device = self.prefix.states.device
        positions: list[int] = []
        segments: list[int] = []
        for question, ids in pieces.items():
            first = self.prefix.next + self.lengths[question]
            positions += range(first, first + ids.shape[1])
            segments += [question + 1] * ids.shape[1]
            self.lengths[question] += ids.shape[1]
        self.segments += segments
        embeds = self.backbone.embed(torch.cat(list(pieces.values()), dim=1).to(device))
        allowed = None
        if len(self.lengths) > 1:
            queries = torch.tensor([segments], device=device)
            allowed = segment_mask(queries, torch.tensor([self.segments], device=device))
        states = self.backbone.read(embeds, torch.tensor([positions], device=device), allowed, self.cache)
        return dict(zip(pieces, states.split([ids.shape[1] for ids in pieces.values()], dim=1)))

    def read(self, suffixes: Sequence[Tensor]) -> list[Tensor]:
        """Teacher-forced states of all questions, from their beginning.

        Args:
            suffixes: ids int64 [R, S] of each; S may differ and may be 0.

        Returns:
            States [R, 1 + S, D] each: entry j predicts token j of the suffix, the last what would follow. Where nothing
            comes before the suffix (an empty prefix), entry 0 is zero.

        Raises:
            TokenizerError: an id that has no row in the word embeddings.
        """
        for ids in suffixes:
            require_rows(ids.flatten().tolist(), self.backbone.config.text_config.vocab_size)
        pieces = {k: ids for k, ids in enumerate(suffixes) if ids.shape[1]}
        read = self.append(pieces) if pieces else {}
        prefix = self.prefix.states
        before = prefix[:, -1:] if prefix.shape[1] else prefix.new_zeros(prefix.shape[0], 1, prefix.shape[2])
        return [torch.cat([before, read[k]], dim=1) if k in read else before for k in range(len(suffixes))]


def generate(
    session: Session, suffixes: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int]
) -> list[list[list[int]]]:
    """Greedy answers of several questions in every row.

    Args:
        session: fresh, for as many questions as there are suffixes.
        suffixes: ids after the prefix, up to where the answer begins.
        max_new_tokens: at most this many per answer.
        ends: any of these ids ends an answer.

    Returns:
        [K][R] generated ids, without the end token.

    Raises:
        NumericalError: the logits of a token are not finite, so there is no most probable one.
    """
    rows = session.prefix.rows
    answers: list[list[list[int]]] = [[[] for _ in range(rows)] for _ in suffixes]
    open_rows = [[True] * rows for _ in suffixes]
    states = session.read([torch.tensor([ids] * rows, dtype=torch.long) for ids in suffixes])
    last = {k: state[:, -1] for k, state in enumerate(states)}
    for step in range(max_new_tokens):
        logits = session.backbone.logits(torch.cat(list(last.values())))
        # -1 tells of values that are not finite without another wait for the device.
        tokens = logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), -1).view(len(last), rows)
        for k, row_tokens in zip(last, tokens.tolist()):
            for row, token in enumerate(row_tokens):
                if token < 0 and open_rows[k][row]:
                    raise not_finite(["logits of a generated token"])
                open_rows[k][row] = open_rows[k][row] and token not in ends
                if open_rows[k][row]:
                    answers[k][row].append(token)
        pieces = {k: tokens[i].clamp(min=0)[:, None] for i, k in enumerate(last) if any(open_rows[k])}
        if not pieces or step + 1 == max_new_tokens:
            break
        last = {k: state[:, -1] for k, state in session.append(pieces).items()}
    return answers


def not_finite(names: Sequence[str]) -> NumericalError:
    """The error that says which values of an answer are NaN or infinite."""
    return NumericalError(
        f"not finite (NaN or infinity): {', '.join(names)}; the weights are damaged, or numbers overflowed "
        "(fp16 overflows first; use bf16 or fp32)"
    )
