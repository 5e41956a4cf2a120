"""Conversations: the strings and labels that published weights were trained with."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from datasets.conversation import (
    ANSWERS,
    ANSWERS_WITH_LOC,
    TEMPLATES,
    build_example,
    encode_forced_answer,
    encode_prompt,
    forced_answer,
    groundmore_question,
    render_prompt,
    segmentation_answer,
    segmentation_question,
)
from datasets.tokenization import load_tokenizer
from utils.batch import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from utils.errors import ConfigError, DataError

PAD = 0
"""Id of <unk>, with which the original pads its batches."""

SPLIT = {"llava_llama_2": "[/INST] ", "llava_v1": " ASSISTANT: "}
"""Where the original cuts a round into question and answer."""


@pytest.fixture
def tiny(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_tokenizer")


@pytest.fixture
def tiny_qwen(project_root):
    return load_tokenizer(project_root / "assets" / "tiny_qwen_tokenizer")


@pytest.fixture(scope="module")
def golden(shared_data):
    return json.loads((shared_data / "lisa_golden" / "prompts.json").read_text())


@pytest.fixture(scope="module")
def legacy(shared_data):
    return load_tokenizer(shared_data / "lisa_golden" / "lisa_tiny", "legacy")


def written(question: str, answer: str, template_name: str) -> str:
    """A whole conversation as text."""
    template = TEMPLATES[template_name]
    return f"{render_prompt(question, template_name)}{template.lead}{answer}{template.tail}</s>"


def labels_of_the_original(text: str, template: str, tokenizer) -> list[int]:
    """LISA's rule: count the tokens of each round and of its question, and mask by the counts."""
    labels = list(tokenizer.encode(text))
    total = len(labels)
    labels[0] = IGNORE_INDEX
    position = 1
    for one_round in text.split("</s>"):
        if not one_round:
            break
        question, _ = one_round.split(SPLIT[template])
        masked = len(tokenizer.encode(question + SPLIT[template])) - 2
        labels[position : position + masked] = [IGNORE_INDEX] * masked
        position += len(tokenizer.encode(one_round))
    assert position == total
    labels[position:] = [IGNORE_INDEX] * (total - position)
    return labels


def taken_apart(text: str, template_name: str) -> tuple[str, str]:
    """Question and answer of a rendered conversation."""
    template = TEMPLATES[template_name]
    assert text.startswith(template.opening) and text.endswith(f"{template.tail}</s>")
    text = text.removeprefix(template.opening).removesuffix(f"{template.tail}</s>")
    question, answer = text.split(template.ask + template.lead)
    return question, answer


def test_samples_of_the_original(golden, legacy):
    for sample in golden["samples"]:
        user, answer, template = sample["user_message"], sample["answer"], sample["conv_type"]
        assert written(user, answer, template) == sample["prompt_final"]
        input_ids, labels = build_example(user, answer, template, legacy)
        assert input_ids.tolist() == sample["input_ids"]
        assert labels.tolist() == sample["labels"]
        assert int((input_ids == legacy.id_of("[SEG]")).nonzero()) == sample["seg_index_in_input_ids"]
        if "eval_prompt" in sample:
            assert render_prompt(user, template) == sample["eval_prompt"]
            assert encode_prompt(user, template, legacy).tolist() == sample["eval_input_ids"]


def test_collated_conversations_of_the_original(golden, legacy):
    kinds = set()
    for case in golden["tokenization_cases"]:
        wanted = [torch.tensor(case[key]) for key in ("input_ids", "labels", "attention_masks")]
        for row, text in enumerate(case["conversations"]):
            if text.count("</s>") > 1:  # several turns, which this project never writes
                continue
            kinds.add(case["kind"])
            question, answer = taken_apart(text, case["conv_type"])
            assert written(question, answer, case["conv_type"]) == case["final"][row]
            ids, labels = build_example(question, answer, case["conv_type"], legacy)
            if case["kind"] == "truncated_train":  # cut by the original, refused here
                with pytest.raises(DataError, match=f"more than the {wanted[0].shape[1]} that fit"):
                    build_example(question, answer, case["conv_type"], legacy, wanted[0].shape[1])
                ids, labels = ids[: wanted[0].shape[1]], labels[: wanted[0].shape[1]]
            pad = wanted[0].shape[1] - len(ids)
            assert torch.nn.functional.pad(ids, (0, pad), value=PAD).equal(wanted[0][row])
            assert torch.nn.functional.pad(labels, (0, pad), value=IGNORE_INDEX).equal(wanted[1][row])
            assert (wanted[2][row] != 0).sum() == len(ids)
    assert {"truncated_train", "batch3_padded", "two_seg"} <= kinds


def random_words(rng: random.Random, allow_empty: bool = False) -> str:
    words = [
        "what",
        "the dog",
        "Zoë",
        "日本",
        "\t",
        "  ",
        "runs",
        "left?",
        "3.5",
        "\n",
        "🙂",
        "[SEG]",
        "[SEG].",
        "It's",
    ]
    text = " ".join(rng.choice(words) for _ in range(rng.randrange(0 if allow_empty else 1, 12)))
    return text if rng.random() < 0.3 else text.strip() or "x"


def check_labels_of_random_conversations(legacy, template):
    rng = random.Random(template)
    rows = []
    for _ in range(150):
        question, answer = random_words(rng), random_words(rng, allow_empty=True)
        if rng.random() < 0.8:
            question = "<image>\n" + question
        ids, labels = build_example(question, answer, template, legacy)
        text = written(question, answer, template)
        assert ids.tolist() == legacy.encode(text)
        assert labels.tolist() == labels_of_the_original(text, template, legacy), text
        rows.append((ids, labels))
    longest = max(len(ids) for ids, _ in rows)
    for ids, _ in rows:  # the original pads on the right and tells pads by their id
        padded = torch.nn.functional.pad(ids, (0, longest - len(ids)), value=PAD)
        assert (padded != PAD).sum() == len(ids)


@pytest.mark.parametrize("template", ["llava_llama_2", "llava_v1"])
def test_labels_equal_the_rule_of_the_original(legacy, template):
    check_labels_of_random_conversations(legacy, template)


@pytest.mark.parametrize("template", ["llava_llama_2", "llava_v1"])
def test_labels_equal_the_rule_of_the_original_on_another_vocabulary(llama_folder, template):
    check_labels_of_random_conversations(load_tokenizer(llama_folder, "legacy"), template)


def test_rendered_strings():
    assert written("<image>\nHi", "Yes.", "llava_llama_2") == (
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>"
        "\n\n<im_start><image><im_end>\nHi [/INST] Yes. </s>"
    )
    assert written("<image>\nHi", "Yes.", "llava_v1") == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. "
        "USER: <im_start><image><im_end>\nHi ASSISTANT: Yes.</s>"
    )
    assert render_prompt("<image>\nHi", "plain") == "USER: <im_start><image><im_end>\nHi ASSISTANT:"
    with pytest.raises(ConfigError, match="llava_llama_2, llava_v1, plain"):
        render_prompt("Hi", "vicuna")


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_only_answers_are_labelled_with_the_tiny_tokenizer(tiny, tiny_qwen, template):
    tokenizer, form = tiny_qwen if template == "qwen3_vl" else tiny, TEMPLATES[template]
    ids, labels = build_example("<image>\nWhat moves?", "It is Zoë's red circle [SEG] [LOC].", template, tokenizer)
    assert ids.dtype == labels.dtype == torch.int64
    taught = tokenizer.decode(ids[labels != IGNORE_INDEX].tolist())
    end = "<|im_end|>" if template == "qwen3_vl" else "</s>"
    # The tiny tokenizers give [SEG] and [LOC] the space before them back.
    assert taught == f"{form.lead}It is Zoë's red circle [SEG] [LOC].{form.tail}{end}"
    assert (labels == ids)[labels != IGNORE_INDEX].all()
    assert (ids == IMAGE_TOKEN_INDEX).sum() == 1


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_prompt_and_forced_answer_join_to_the_taught_example(tiny, tiny_qwen, template):
    tokenizer = tiny_qwen if template == "qwen3_vl" else tiny
    question = groundmore_question("What moves left?")
    for text in ("Sure, [SEG], [LOC].", "[SEG], [LOC]"):
        prompt, answer = encode_forced_answer(question, text, template, tokenizer)
        assert prompt.equal(encode_prompt(question, template, tokenizer))
        assert torch.cat([prompt, answer]).equal(build_example(question, text, template, tokenizer)[0])
        assert answer[-1] == tokenizer.eos_id


def test_prompt_is_the_beginning_of_the_example_under_the_legacy_rule(legacy):
    for answer in ("Sure, [SEG].", "[SEG].", "It is [SEG]."):
        prompt, taught = encode_forced_answer("<image>\nwho?", answer, "llava_v1", legacy)
        assert prompt.equal(encode_prompt("<image>\nwho?", "llava_v1", legacy))
        assert taught[-1] == legacy.eos_id


def test_a_long_conversation_is_refused(tiny):
    question = "<image>\n" + "what moves? " * 50
    with pytest.raises(DataError, match="video 7 query 3: the conversation has .* more than the 40"):
        build_example(question, "Sure, [SEG].", "plain", tiny, 40, where="video 7 query 3")


def test_questions():
    rng = np.random.default_rng(0)
    short = {segmentation_question("The  Red\tCar", rng) for _ in range(100)}
    assert len(short) == 4 and "<image>\nCan you segment the the red car in this image?" in short
    long = {segmentation_question("Who runs?", rng) for _ in range(50)}
    assert long == {
        "<image>\nwho runs? Please respond with segmentation mask.",
        "<image>\nwho runs? Please output segmentation mask.",
    }
    assert segmentation_question("a {text} b", rng, is_sentence=True).startswith("<image>\na {text} b Please")
    assert "\nWhat holds Tea Please" in segmentation_question("What holds  Tea", rng, is_sentence=True)
    assert " what holds tea? in this image" in segmentation_question("What holds tea?", rng, is_sentence=False)
    assert groundmore_question(" Who kicks the Ball? ") == "<image>\nWho kicks the Ball? Please respond with masks."


def test_same_seed_same_wording():
    def draw(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [segmentation_question("dog", rng) + segmentation_answer(rng) for _ in range(20)]

    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("text", ["find the [SEG]", "a <image> b", "x</s>", "  ", "",
                                  *("a<|im_end|>", "<|vision_start|>", "<|image_pad|>s", "<|video_pad|>")])  # fmt: skip
def test_text_that_would_be_read_as_tokens_is_refused(text):
    with pytest.raises(DataError, match="video v query 2"):
        groundmore_question(text, where="video v query 2")
    with pytest.raises(DataError, match="text: "):
        segmentation_question(text, np.random.default_rng(0))


def test_answers():
    rng = np.random.default_rng(0)
    assert {segmentation_answer(rng) for _ in range(200)} == set(ANSWERS)
    assert {segmentation_answer(rng, with_loc=True) for _ in range(200)} == set(ANSWERS_WITH_LOC)
    assert segmentation_answer(rng, "name", answer=" the red circle. ") == "It is the red circle [SEG]."
    assert segmentation_answer(rng, "name", True, "the red circle") == "It is the red circle [SEG] [LOC]."
    for unnamed in (None, "", " . "):
        assert segmentation_answer(rng, "name", answer=unnamed) in ANSWERS
    assert segmentation_answer(rng, "bare", True) == "[SEG], [LOC]"
    with pytest.raises(DataError, match=r"\[SEG\]"):
        segmentation_answer(rng, "name", answer="the [SEG]")
    with pytest.raises(ConfigError, match="fixed, name, bare"):
        segmentation_answer(rng, "long")


@pytest.mark.parametrize("style", ["fixed", "name", "bare"])
@pytest.mark.parametrize("with_loc", [False, True])
def test_every_answer_has_one_seg_and_at_most_one_loc(style, with_loc):
    rng = np.random.default_rng(0)
    answers = [segmentation_answer(rng, style, with_loc, "it") for _ in range(40)] + [forced_answer(with_loc, style)]
    for answer in answers:
        assert answer.count("[SEG]") == 1 and answer.count("[LOC]") == int(with_loc)
        assert "[LOC]" not in answer or answer.index("[SEG]") < answer.index("[LOC]")
    if style == "fixed":
        assert forced_answer(with_loc) in (ANSWERS_WITH_LOC if with_loc else ANSWERS)
