"""Make the tokenizer of the tiny base: every word of the motion world is one token, and every other text still fits.

    python scripts/make_tiny_tokenizer.py --out assets/tiny_tokenizer
    python scripts/make_tiny_tokenizer.py --kind qwen --out assets/tiny_qwen_tokenizer

All bytes of UTF-8 are tokens, so any text comes back unchanged; on top of them stand whole words, most with the space
before them. Words are listed, not counted, so the same ids come out on every machine. [SEG] and [LOC] take the space
before them, so that the state which predicts [SEG] is that of the word before it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.errors import ConfigError
from utils.files import atomic_write, write_json
from utils.paths import require_own

SPECIALS = {
    "llava": ("<unk>", "<s>", "</s>", "[SEG]", "[LOC]", "<im_start>", "<im_end>"),
    "qwen": (
        *("<unk>", "<|endoftext|>", "<|im_end|>", "[SEG]", "[LOC]", "<|im_start|>"),
        *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    ),
}
"""By kind: unknown, two that are skipped in what is shown, and tokens that stay."""

NAMED = {
    "llava": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
    "qwen": {"bos_token": None, "eos_token": "<|im_end|>", "unk_token": None, "pad_token": "<|endoftext|>"},
}
"""By kind: what tokenizer_config.json calls them; Qwen's has no BOS and no unknown token."""

TAKES_SPACE = ("[SEG]", "[LOC]")
SIZE = 640
"""Ids in all: words, then reserved ids up to this number."""

NAMES = """red green blue yellow purple white orange cyan black gray
circle square triangle diamond cross ring star object objects thing things shape shapes one ones
small big large striped circles squares triangles diamonds screen everything"""

MOTIONS = """move moves moving moved start starts starting started stop stops stopping stopped turn turns turning turned
chase chases chasing chased follow follows following followed push pushes pushing pushed hit hits hitting
block blocks blocking blocked hide hides hiding hidden disappear disappears reappear reappears appears
come comes back go goes going gone grow grows growing shrink shrinks shrinking get gets getting
zigzags forth reverses change changes changing changed direction
stay stays stayed still keep keeps keeping kept stand stands standing remain remained rest
make makes made let cause causes caused set sets bump bumps bumped touches touched collides
travel travels pass passes leaves run runs
left right up down upward downward sideways around away bigger smaller larger size motion path way
becomes reversing takes turning fro corner leads along running upwards downwards"""

QUESTIONS = """what which who where when why how did does do is are was were be been being has have had would could
can not no never without with if then than that this these there it its them
the a an and or but of to in into on at by from for as after before while during until because
first last second third next later earlier once again both all any another other only same already else each cannot
behind between against out off over toward
please segment segmentation mask masks output respond image video frame frames answer sure result target
temporal boundary name"""

STARTS = """What Which Who Where When How Without With If After Before The A It Is Does Did Can Please Sure
Name Because"""

CAPTIONS = """zero two three four five six seven eight nine 0 1 2 3 4 5 6 7 8 9 nothing now time yes visible"""

TEMPLATE = """you helpful language vision assistant You able understand visual content user provides assist variety
tasks using natural chat curious human artificial intelligence gives detailed polite answers questions USER ASSISTANT
It Sure Please The << [ [/ ."""

TEMPLATE_MARKS = ("USER", "INST", "SYS", "You", "<<", ">>", "<</", "'s", "\n\n")

FILLERS = """er ed ing es ly re on in at it an is th he"""

LATER = "begins crosses rings"
"""Words that a later world needs: they take reserved ids, so that bases trained before keep theirs."""

OF_KIND = {"llava": (), "qwen": ("user", "assistant", " seconds")}
"""Words that only one template has."""


def spaced(text: str) -> list[str]:
    """Words of a list, each with the space before it."""
    return [" " + word for word in text.split()]


def vocabulary(kind: str) -> list[str]:
    """All tokens in the order of their ids, as the byte-level alphabet writes them; ``kind`` is a key of SPECIALS.

    Raises:
        ValueError: the lists hold more words than SIZE leaves room for.
    """
    words = spaced(NAMES) + STARTS.split() + spaced(QUESTIONS) + spaced(MOTIONS) + spaced(CAPTIONS)
    words += [*spaced(TEMPLATE), *TEMPLATE_MARKS, *FILLERS.split(), *spaced(LATER), *OF_KIND[kind]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Every byte of UTF-8 (13 of the 256 never occur in it), by characters that use them all.
    codes = [*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x110000, 64)]
    letters = sorted(set("".join(piece for piece, _ in byte_level.pre_tokenize_str("".join(map(chr, codes))))))
    tokens = [*SPECIALS[kind], *letters]
    for index, word in enumerate([*words, *(f"<reserved_{index}>" for index in range(SIZE))]):
        token = byte_level.pre_tokenize_str(word)[0][0]
        if token in tokens:
            continue
        if len(tokens) == SIZE:
            if index < len(words):
                raise ValueError(f"the word lists do not fit: {len(words) - index} words are left; raise SIZE")
            break
        tokens.append(token)
    return tokens


def build(kind: str = "llava") -> tokenizers.Tokenizer:
    """The tokenizer: byte-level pieces, cut so that whole words win over their parts (a unigram model)."""
    # Equal costs make the cut with the fewest pieces the best; the small slope breaks ties the same way everywhere.
    scores = [(token, -10.0 - index * 1e-4) for index, token in enumerate(vocabulary(kind))]
    engine = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    spaces = [decoders.Replace(token, " " + token) for token in TAKES_SPACE]
    engine.decoder = decoders.Sequence([*spaces, decoders.ByteLevel()])
    engine.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIALS[kind][:3]]
    )
    engine.add_tokens(
        [
            tokenizers.AddedToken(token, special=False, normalized=False, lstrip=token in TAKES_SPACE)
            for token in SPECIALS[kind][3:]
        ]
    )
    return engine


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/tiny_tokenizer"), help="folder to write")
    parser.add_argument("--kind", choices=tuple(SPECIALS), default="llava", help="whose special tokens (%(default)s)")
    arguments = parser.parse_args()
    arguments.out = arguments.out.expanduser()
    try:
        require_own(arguments.out, ("tokenizer.json", "tokenizer_config.json"), "--out")
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    engine = build(arguments.kind)
    with atomic_write(arguments.out / "tokenizer.json", "w") as stream:
        stream.write(engine.to_str(pretty=True) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **NAMED[arguments.kind],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "padding_side": "right",
        "mora_tokenization": "plain",
    }
    write_json(arguments.out / "tokenizer_config.json", config)
    print(f"{arguments.out}: {engine.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
