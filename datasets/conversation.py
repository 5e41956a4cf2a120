"""Conversations: templates, questions, answers, and their tokens with labels on the answers only.

The strings of ``llava_llama_2`` and ``llava_v1``, the question and answer lists and the label rule are those that LISA
(Lai et al., 2023) and MoRA (Deng et al., 2025) were trained with; published weights need them byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datasets.tokenization import MoraTokenizer
from utils.batch import IGNORE_INDEX, FrameMarks
from utils.errors import ConfigError, DataError

IMAGE = "<image>"
RESERVED = (
    *("<image>", "<im_start>", "<im_end>", "<im_patch>", "[SEG]", "[LOC]", "<s>", "</s>", "<unk>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Strings that are tokens of their own; a corpus or a user may not write them into a question."""

SEG = "[SEG]"
LOC = "[LOC]"

SHORT_QUESTIONS = (
    "<image>\nCan you segment the {text} in this image?",
    "<image>\nPlease segment the {text} in this image.",
    "<image>\nWhat is {text} in this image? Please respond with segmentation mask.",
    "<image>\nWhat is {text} in this image? Please output segmentation mask.",
)
"""LISA's questions about a named thing ("image" is kept for video, as MoRA does)."""

LONG_QUESTIONS = (
    "<image>\n{text} Please respond with segmentation mask.",
    "<image>\n{text} Please output segmentation mask.",
)
"""LISA's questions that are whole sentences."""

GROUNDMORE_QUESTION = "<image>\n{text} Please respond with masks."
"""The prompt of GroundMoRe's evaluation; the question keeps its case."""

ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
ANSWERS_WITH_LOC = (
    "It is [SEG], [LOC].",
    "Sure, [SEG], [LOC].",
    "Sure, it is [SEG], [LOC].",
    "Sure, the target object is [SEG], and the temporal boundary is [LOC].",
    "[SEG], [LOC].",
)
"""LISA's answers with a time; the fourth is the one in figure 3 of the GroundMoRe paper."""

FORCED_ANSWERS = {
    "fixed": ("Sure, [SEG].", "Sure, [SEG], [LOC]."),
    "name": ("It is [SEG].", "It is [SEG] [LOC]."),
    "bare": ("[SEG]", "[SEG], [LOC]"),
}
"""By style, without and with a time: the answer put into the model's mouth when evaluation does not let it generate.
It is one of those taught by "fixed" and "bare"; that of "name" leaves the name out, which an evaluation may not
know."""

ANSWER_STYLES = tuple(FORCED_ANSWERS)
"""fixed: one of ANSWERS; name: names the answer object first; bare: only the tokens, "[SEG], [LOC]"."""


@dataclass(frozen=True)
class Template:
    """How a question and its answer are written into one string.

    Attributes:
        opening: before the question, system text included.
        ask: between the question and where its answer begins; a prompt ends with it.
        lead, tail: before and after the answer; the end-of-sequence string follows the tail.
        image: an image mark, with ``<image>`` where the visual tokens go.
        wrap: around all marks where several frames stand behind each, as a video's.
        after_images: between the marks and the question.
    """

    opening: str
    ask: str
    lead: str = " "
    tail: str = ""
    image: str = "<im_start><image><im_end>"
    wrap: tuple[str, str] = ("", "")
    after_images: str = "\n"


TEMPLATES = {
    "llava_llama_2": Template(
        opening="[INST] <<SYS>>\nYou are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n",
        ask=" [/INST]",
        tail=" ",
    ),
    "llava_v1": Template(
        opening="A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. USER: ",
        ask=" ASSISTANT:",
    ),
    "plain": Template(opening="USER: ", ask=" ASSISTANT:"),
    "qwen3_vl": Template(
        opening="<|im_start|>user\n",
        ask="<|im_end|>\n<|im_start|>assistant\n",
        lead="",
        image="<|vision_start|><image><|vision_end|>",
        wrap=("<|vision_start|>", "<|vision_end|>"),
        after_images="",
    ),
}


def template_named(name: str) -> Template:
    """The template of that name.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"conversation template {name!r} is unknown; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


@dataclass(frozen=True)
class Shown:
    """The frames that a prompt shows.

    Attributes:
        times: seconds from the clip's beginning, of each frame as the language model is shown them.
        marks: where they stand.
    """

    times: Sequence[float] = (0.0,)
    marks: FrameMarks = FrameMarks()

    def write(self, form: Template) -> str:
        """The image marks. Where frames do not fill the last group, its last one counts as repeated; a group's time is
        the mean of those of its first and last frame, to a tenth of a second (as in Qwen3-VL's processor)."""
        size = self.marks.frames or len(self.times)
        groups = [self.times[start : start + size] for start in range(0, len(self.times), size)]
        stamps = [f"<{(group[0] + group[-1]) / 2:.1f} seconds>" if self.marks.stamps else "" for group in groups]
        written = "".join(stamp + form.image for stamp in stamps)
        return written.join(form.wrap) if self.marks.frames > 1 else written


def render_prompt(question_text: str, template: str, shown: Shown = Shown()) -> str:
    """The text a model is asked with, ending where the answer begins; the one place where prompts are made, for
    training and inference alike.

    Args:
        question_text: the user message, beginning with ``<image>`` and a new line where it is about frames. The leading
            BOS is left to the tokenizer.
        template: a key of TEMPLATES.
        shown: the frames.
    """
    form = template_named(template)
    return form.opening + question_text.replace(f"{IMAGE}\n", shown.write(form) + form.after_images) + form.ask


def build_example(
    question_text: str,
    answer_text: str,
    template: str,
    tokenizer: MoraTokenizer,
    max_length: int | None = None,
    where: str = "",
    shown: Shown = Shown(),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of a question and its answer; only tokens that begin inside the answer are labelled.

    Args:
        question_text: as for :func:`render_prompt`.
        answer_text: what is taught.
        template: a key of TEMPLATES.
        tokenizer: from ``load_tokenizer``.
        max_length: most text tokens a row may have (LISA: model_max_length - number of visual tokens + 1).
        where: names the question in messages.
        shown: the frames.

    Returns:
        input_ids int64 [L] with IMAGE_TOKEN_INDEX at ``<image>``, labels int64 [L] with IGNORE_INDEX elsewhere.

    Raises:
        DataError: longer than ``max_length``.
    """
    prompt, form = render_prompt(question_text, template, shown), template_named(template)
    # Without a space between them an answer is cut on its own, as one that is generated is: [SEG] may strip the text
    # before it, and would take the prompt's last token with it.
    taught, cut = form.lead + answer_text + form.tail + tokenizer.eos_token, 0 if form.lead else len(prompt)
    ids, starts = tokenizer.encode_with_offsets(prompt + taught, cut)
    if max_length is not None and len(ids) > max_length:
        raise DataError(
            f"{where or repr(question_text)}: the conversation has {len(ids)} tokens, more than the {max_length} "
            "that fit; shorten the question or raise the model's maximum length"
        )
    labels = [token if start >= len(prompt) else IGNORE_INDEX for token, start in zip(ids, starts)]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def encode_prompt(question_text: str, template: str, tokenizer: MoraTokenizer, shown: Shown = Shown()) -> torch.Tensor:
    """Tokens of :func:`render_prompt`: int64 [P], IMAGE_TOKEN_INDEX where the frames go."""
    return torch.tensor(tokenizer.encode(render_prompt(question_text, template, shown)), dtype=torch.int64)


def encode_forced_answer(
    question_text: str, answer_text: str, template: str, tokenizer: MoraTokenizer, shown: Shown = Shown()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split one taught example at the point where its answer begins.

    Returns:
        prompt int64 [P] and answer int64 [A], end of sequence included; joined they are exactly what training sees.
    """
    input_ids, labels = build_example(question_text, answer_text, template, tokenizer, shown=shown)
    answered = int((labels != IGNORE_INDEX).nonzero()[0])
    return input_ids[:answered], input_ids[answered:]


def check_free_text(text: str, where: str = "") -> str:
    """Return a text from outside (question, expression, name) without the spaces around it.

    Args:
        text: any text.
        where: names its source in the message.

    Raises:
        DataError: it is empty, or holds a string that is a token; [SEG] in a question would be read out as an answer.
    """
    found = [token for token in RESERVED if token in text]
    if found:
        raise DataError(
            f"{where or 'text'}: {text!r} holds {', '.join(found)}, which the model reads as tokens; reword it"
        )
    if not text.strip():
        raise DataError(f"{where or 'text'}: it is empty; every question needs words")
    return text.strip()


def segmentation_question(text: str, rng: np.random.Generator, is_sentence: bool | None = None, where: str = "") -> str:
    """A user message that asks for what an expression refers to.

    Args:
        text: "the red car turning left", or a whole question; lower-cased and its spaces collapsed, as when
            LISA and MoRA were trained.
        rng: draws among the wordings.
        is_sentence: whole sentence (LONG_QUESTIONS), which then keeps its case, or name (SHORT_QUESTIONS); None: a
            sentence ends with "?".
        where: names the question in messages.

    Raises:
        DataError: see :func:`check_free_text`.
    """
    text = " ".join(check_free_text(text, where).split())
    long = text.endswith("?") if is_sentence is None else is_sentence
    choices = LONG_QUESTIONS if long else SHORT_QUESTIONS
    return choices[int(rng.integers(len(choices)))].replace("{text}", text if is_sentence else text.lower())


def referring_question(text: str, where: str = "") -> str:
    """The user message for an expression in evaluation: the first of SHORT_QUESTIONS, written as in training.

    Args:
        text: the expression as the corpus has it ("the red car").
        where: names it in messages.

    Raises:
        DataError: see :func:`check_free_text`.
    """
    return SHORT_QUESTIONS[0].replace("{text}", " ".join(check_free_text(text, where).lower().split()))


def groundmore_question(text: str, where: str = "") -> str:
    """The user message for a GroundMoRe question, in training and evaluation; the question keeps its case.

    Args:
        text: the question as the corpus has it.
        where: names it in messages.

    Raises:
        DataError: see :func:`check_free_text`.
    """
    return GROUNDMORE_QUESTION.replace("{text}", check_free_text(text, where))


def check_answer_style(style: str) -> str:
    """Return ``style``.

    Raises:
        ConfigError: unknown style; the message lists the known ones.
    """
    if style not in ANSWER_STYLES:
        raise ConfigError(f"answer style {style!r} is unknown; choose one of {', '.join(ANSWER_STYLES)}")
    return style


def segmentation_answer(
    rng: np.random.Generator,
    style: str = "fixed",
    with_loc: bool = False,
    answer: str | None = None,
    where: str = "",
) -> str:
    """The answer taught for one target; exactly one [SEG], which stands for the union of the answer objects.

    Args:
        rng: draws among the wordings of style "fixed".
        style: one of ANSWER_STYLES; "name" without ``answer`` falls back to "fixed".
        with_loc: add one [LOC].
        answer: name of the answer object ("the red circle").
        where: names the question in messages.

    Raises:
        ConfigError: unknown style.
        DataError: see :func:`check_free_text`.
    """
    check_answer_style(style)
    if style == "name" and answer and answer.strip(" ."):
        name = " ".join(check_free_text(answer, where).strip(" .").split())
        return FORCED_ANSWERS["name"][with_loc].replace("It is", f"It is {name}")
    if style == "bare":
        return FORCED_ANSWERS["bare"][with_loc]
    choices = ANSWERS_WITH_LOC if with_loc else ANSWERS
    return choices[int(rng.integers(len(choices)))]


def forced_answer(with_loc: bool, style: str = "fixed") -> str:
    """One of FORCED_ANSWERS.

    Raises:
        ConfigError: unknown style.
    """
    return FORCED_ANSWERS[check_answer_style(style)][with_loc]
