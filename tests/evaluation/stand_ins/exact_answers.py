"""A benchmark of texts: is the answer the name of the object, letter by letter?"""

from __future__ import annotations

from datasets.sample import QUESTION_TYPES
from evaluation.benchmark import Benchmark, Kind, Measure
from evaluation.benchmarks.groundmore import BENCHMARK as GROUNDMORE


def read_answers(video, indices, protocol):
    """The truth of a question is its answer."""
    return lambda question: question.answer


def match(truth, record, question, listed, protocol):
    """1 if the text is the truth; silence never is."""
    said = None if record is None else record.answers[0]
    return {"rows": {"model": {"exact": float(said == truth)}, "silence": {"exact": 0.0}}, "said": said}


BENCHMARK = Benchmark(
    name="exact_answers",
    corpus="groundmore",
    open=GROUNDMORE.open,
    inputs=GROUNDMORE.inputs,
    kind=Kind("text", truths=read_answers),
    score=match,
    groups=QUESTION_TYPES,
    measures=(Measure("exact", "exact match", "share of answers that are the truth", ("main", "reference", "detail")),),
    rows={"model": ("result", "the answers"), "silence": ("baseline", "no answer")},
    constant=("silence",),
    tables={"main": "Answers"},
    zero=("exact",),
    protocol="groundmore",
)
