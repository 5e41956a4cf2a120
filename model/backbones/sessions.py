"""Reading questions after a prefix that was read once.

Two sessions with one verb, ``append``: one keeps the keys and values of the prefix, the other reads everything again
each time. They give the same states; the second is the reference for the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from model.backbones.llava import run_rows
from model.backbones.packing import Row, attention_mask, require_rows, segment_mask
from utils.errors import NumericalError


@dataclass
class Prefix:
    """The question-independent beginning of R rows.

    Attributes:
        ids: text ids before the visual tokens.
        visual: visual tokens, float [R, n_vis, D]; None for a text-only row.
        states: float [R, P, D], after the final norm; P = len(ids) + n_vis. Filled by :func:`prefill`.
        layers: per decoder layer (keys, values), each [R, heads, P, d]. Filled by :func:`prefill`; never changed.
    """

    ids: list[int]
    visual: Tensor | None
    states: Tensor | None = None
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """R: decoder rows."""
        return 1 if self.visual is None else self.visual.shape[0]

    @property
    def length(self) -> int:
        """P: positions before any question."""
        return len(self.ids) + (0 if self.visual is None else self.visual.shape[1])

    @property
    def visual_states(self) -> Tensor | None:
        """States at the visual tokens, [R, n_vis, D]."""
        return None if self.visual is None else self.states[:, len(self.ids) :]

    def row(self, index: int, suffixes: list[list[int]]) -> Row:
        """Row ``index`` with these suffixes, for reading without a cache."""
        visual = -1 if self.visual is None else index
        return Row(self.ids, visual, 0 if self.visual is None else self.visual.shape[1], suffixes)


def prefill(llm: LlamaForCausalLM, prefix: Prefix, keep_cache: bool = True) -> Prefix:
    """Read the prefix: fill its states and, if asked, its keys and values.

    Args:
        llm: the decoder, in eval mode.
        prefix: changed in place.
        keep_cache: also keep keys and values.

    Returns:
        ``prefix``.

    Raises:
        TokenizerError: an id that has no row in the word embeddings.
    """
    embedding = llm.get_input_embeddings()
    require_rows(prefix.ids, llm.config.vocab_size)
    parts = []
    if prefix.ids:
        ids = torch.tensor(prefix.ids, device=embedding.weight.device)
        parts.append(embedding(ids).expand(prefix.rows, -1, -1))
    if prefix.visual is not None:
        parts.append(prefix.visual.to(embedding.weight.dtype))
    if not parts:
        prefix.states = embedding.weight.new_zeros(1, 0, embedding.embedding_dim)
        return prefix
    cache = DynamicCache(config=llm.config) if keep_cache else None
    output = llm.model(inputs_embeds=torch.cat(parts, dim=1), past_key_values=cache, use_cache=keep_cache)
    prefix.states = output.last_hidden_state
    if keep_cache:
        prefix.layers = [(layer.keys, layer.values) for layer in cache.layers]
    return prefix


class CachedSession:
    """Several questions growing side by side after one prefix, each seeing the prefix and itself.

    All questions of a prefix share its R rows, so keys and values of the prefix exist once however many questions
    there are. The prefix itself is not changed.

    Args:
        llm: the decoder, in eval mode.
        prefix: filled by :func:`prefill` with its cache.
        questions: K.
    """

    def __init__(self, llm: LlamaForCausalLM, prefix: Prefix, questions: int):
        self.llm = llm
        self.prefix = prefix
        self.lengths = [0] * questions
        self.segments = [0] * prefix.length
        self.cache = DynamicCache(config=llm.config)
        for index, (keys, values) in enumerate(prefix.layers):
            self.cache.update(keys, values, index)

    def append(self, pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """Continue questions.

        Args:
            pieces: question -> ids int64 [R, n], n >= 1.

        Returns:
            question -> states after the final norm, [R, n, D].
        """
        embedding = self.llm.get_input_embeddings()
        device = embedding.weight.device
        positions: list[int] = []
        segments: list[int] = []
        for question, ids in pieces.items():
            count = ids.shape[1]
            first = self.prefix.length + self.lengths[question]
            positions += range(first, first + count)
            segments += [question + 1] * count
            self.lengths[question] += count
        self.segments += segments
        embeds = embedding(torch.cat(list(pieces.values()), dim=1).to(device))
        mask = None
        if len(self.lengths) > 1:
            queries = torch.tensor([segments], device=device)
            allowed = segment_mask(queries, torch.tensor([self.segments], device=device))
            mask = attention_mask(allowed, self.llm.config._attn_implementation, embeds.dtype)
        output = self.llm.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=torch.tensor([positions], device=device),
            past_key_values=self.cache,
            use_cache=True,
        )
        parts = output.last_hidden_state.split([ids.shape[1] for ids in pieces.values()], dim=1)
        return dict(zip(pieces, parts))


class FreshSession:
    """As :class:`CachedSession`, but every ``append`` reads prefix and questions again from the start.

    Args:
        llm: the decoder, in eval mode.
        prefix: its cache is not used.
        questions: K.
    """

    def __init__(self, llm: LlamaForCausalLM, prefix: Prefix, questions: int):
        self.llm = llm
        self.prefix = prefix
        empty = torch.zeros(prefix.rows, 0, dtype=torch.long)
        self.ids = [empty] * questions

    def append(self, pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """Continue questions; see :meth:`CachedSession.append`."""
        for question, ids in pieces.items():
            self.ids[question] = torch.cat([self.ids[question], ids.cpu()], dim=1)
        lists = [ids.tolist() for ids in self.ids]
        rows = [self.prefix.row(index, [ids[index] for ids in lists]) for index in range(self.prefix.rows)]
        visual = [] if self.prefix.visual is None else list(self.prefix.visual)
        layout, states = run_rows(self.llm, rows, visual)
        states = states.view(len(rows), layout.length, -1)
        result = {}
        for question, ids in pieces.items():
            end = layout.starts[0][question] + self.ids[question].shape[1]
            result[question] = states[:, end - ids.shape[1] : end]
        return result


Session = CachedSession | FreshSession


def open_session(llm: LlamaForCausalLM, prefix: Prefix, questions: int, use_cache: bool) -> Session:
    """The session to read ``questions`` questions after ``prefix``."""
    return (CachedSession if use_cache else FreshSession)(llm, prefix, questions)


def generate(
    llm: LlamaForCausalLM,
    session: Session,
    suffixes: Sequence[list[int]],
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
) -> list[list[list[int]]]:
    """Greedy answers of several questions in every row.

    Args:
        llm: the decoder.
        session: fresh, for as many questions as there are suffixes.
        suffixes: ids after the visual tokens, up to where the answer begins.
        max_new_tokens: at most this many per answer.
        eos_token_id: ends an answer; so does any of several. None never does.

    Returns:
        [K][R] generated ids, without the end token.

    Raises:
        NumericalError: the logits of a token are not finite, so there is no most probable one.
    """
    ends = eos_token_id if isinstance(eos_token_id, Sequence) else [eos_token_id]
    rows = session.prefix.rows
    answers: list[list[list[int]]] = [[[] for _ in range(rows)] for _ in suffixes]
    open_rows = [[True] * rows for _ in suffixes]
    states = read_suffixes(session, [torch.tensor([ids] * rows, dtype=torch.long) for ids in suffixes])
    last = {k: state[:, -1] for k, state in enumerate(states)}
    for step in range(max_new_tokens):
        logits = llm.lm_head(torch.cat(list(last.values())))
        # -1 tells of values that are not finite without another wait for the device.
        tokens = logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), -1).view(len(last), rows)
        chosen = tokens.tolist()
        for k, row_tokens in zip(last, chosen):
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


def read_suffixes(session: Session, suffixes: Sequence[Tensor]) -> list[Tensor]:
    """Teacher-forced states of several questions in a fresh session.

    Args:
        session: fresh, for as many questions as there are suffixes.
        suffixes: ids int64 [R, S]; S may differ and may be 0.

    Returns:
        States [R, 1 + S, D] each: entry j predicts token j of the suffix, the last what would follow. Where nothing
        comes before the suffix (an empty prefix), entry 0 is zero.
    """
    for ids in suffixes:
        require_rows(ids.flatten().tolist(), session.llm.config.vocab_size)
    pieces = {k: ids for k, ids in enumerate(suffixes) if ids.shape[1]}
    read = session.append(pieces) if pieces else {}
    prefix = session.prefix.states
    before = prefix[:, -1:] if prefix.shape[1] else prefix.new_zeros(prefix.shape[0], 1, prefix.shape[2])
    return [torch.cat([before, read[k]], dim=1) if k in read else before for k in range(len(suffixes))]
