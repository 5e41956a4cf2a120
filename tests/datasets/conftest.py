"""Fixtures of the data tests."""

from __future__ import annotations

import json

import pytest
import sentencepiece

from model.backbones.llava import CLIP_MEAN, CLIP_STD
from model.segmenters.sam import MEAN, STD
from utils.batch import PixelRule

LLAMA_SENTENCES = [
    "the red circle moves to the left",
    "Can you segment the dog in this image?",
    "Sure, the result is here.",
    "USER: what happens then? ASSISTANT: it sits down.",
    "[INST] <<SYS>> You are a helpful assistant. <</SYS>> [/INST]",
] * 20


def pixels_of(size, resize="crop"):
    """A rule with CLIP's constants."""
    return PixelRule(size, resize, CLIP_MEAN, CLIP_STD)


def corner(size):
    """A rule with SAM's constants."""
    return PixelRule(size, "corner", MEAN, STD)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A published-looking Llama folder with LISA's three added tokens."""
    folder = tmp_path_factory.mktemp("llama")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LLAMA_SENTENCES),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    added = {"[SEG]": size, "<im_start>": size + 1, "<im_end>": size + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    plain = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    specials = {key: {"content": value, **plain} for key, value in names.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps({**specials, "pad_token": "<unk>"}))
    config = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 512, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
