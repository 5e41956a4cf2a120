"""The JSON files beside a tokenizer's vocabulary: read and checked, every mistake named by file and key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from datasets.names import shown, text_fault
from utils.errors import DataError, Problems, TokenizerError
from utils.files import read_json

_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_MOST_ADDED = 100_000
"""An added id this far behind the last piece is a mistake; every id up to it would need a row of the embedding."""


class Special(NamedTuple):
    """A special token as its files describe it; ``strips``: (left, right) text is stripped next to it."""

    content: str
    strips: tuple[bool, bool]


def read_optional_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if nothing is there.

    Raises:
        TokenizerError: what is there is no file, no JSON, or no object, or it names a key twice.
    """
    if not os.path.lexists(path):
        return {}
    repeated: list[str] = []
    try:
        value = read_json(path, repeated)
    except DataError as error:
        raise TokenizerError(str(error)) from None
    if repeated:
        raise TokenizerError(f"{path}: names {', '.join(map(shown, repeated[:5]))} twice; get the file again")
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: must be a JSON object, not {type(value).__name__}; get the file again")
    return value


def read_specials(folder: Path, config: dict[str, Any]) -> dict[str, Special]:
    """Special tokens by key, as transformers 4.31 ends up with them.

    tokenizer_config.json is read first, where a bare string means "do not strip" (LlamaTokenizer wraps it so);
    special_tokens_map.json overrides it, and there a bare string means "strip both sides". A bos_token of null means
    that there is none (Qwen).

    Raises:
        TokenizerError: a token is described by something else than a text or an object; all such keys are listed.
    """
    specials = {"bos_token": Special("<s>", (False, False)), "eos_token": Special("</s>", (False, False))}
    specials["unk_token"] = Special("<unk>", (False, False))
    problems = Problems()
    overrides = read_optional_object(folder / "special_tokens_map.json")
    sources = (("tokenizer_config.json", config, (False, False)), ("special_tokens_map.json", overrides, (True, True)))
    for name, source, bare in sources:
        found = {key: (source.get(key), bare) for key in _SPECIAL_KEYS}
        more = source.get("additional_special_tokens") or []
        if isinstance(more, list):
            found |= {f"additional_{index}": (value, (True, True)) for index, value in enumerate(more)}
        else:
            problems.add(f"{name}, additional_special_tokens", f"must be a list, not {type(more).__name__}")
        for key, (value, strips) in found.items():
            if value is None and key in _SPECIAL_KEYS:
                if key == "bos_token" and key in source:  # told that there is none; Llama's default would be invented
                    specials.pop(key, None)
                continue
            special = _read_special(value, strips)
            if special is None:
                problems.add(
                    f"{name}, {key}", f"must be a token or an object with its 'content', not {shown(str(value))}"
                )
            else:
                specials[key] = special
    problems.raise_if_any(TokenizerError, f"{folder}: special tokens that cannot be used; correct them in these files")
    return specials


def _read_special(value: Any, bare: tuple[bool, bool]) -> Special | None:
    """One token as its file describes it; None if it is none."""
    if isinstance(value, dict):
        content, strips = value.get("content"), [value.get(side, False) for side in ("lstrip", "rstrip")]
    else:
        content, strips = value, list(bare)
    usable = isinstance(content, str) and content and text_fault(content) is None
    if not usable or not all(strip is None or isinstance(strip, bool) for strip in strips):
        return None
    return Special(content, (bool(strips[0]), bool(strips[1])))


def read_added_tokens(folder: Path, pieces: list[str]) -> dict[str, int]:
    """Ids by token of ``added_tokens.json``.

    Args:
        folder: of the tokenizer.
        pieces: the vocabulary's own, by id; an added token may repeat one under its own id.

    Raises:
        TokenizerError: ids that are none, are taken, or lie far behind the vocabulary; all are listed.
    """
    path = folder / "added_tokens.json"
    added, taken, problems = read_optional_object(path), {}, Problems()
    for token, number in added.items():
        if not token or text_fault(token):
            problems.add(shown(token), "is no token: it is empty, or UTF-8 cannot hold it")
        elif not isinstance(number, int) or isinstance(number, bool) or number < 0:
            problems.add(shown(token), f"its id must be an integer of 0 or more, not {shown(str(number), 40)}")
        elif number >= len(pieces) + _MOST_ADDED:
            problems.add(shown(token), f"its id {number} lies far behind the {len(pieces)} pieces of the vocabulary")
        elif number in taken or (number < len(pieces) and pieces[number] != token):
            other = taken.get(number) or pieces[number]
            problems.add(shown(token), f"its id {number} is that of {shown(other)}")
        taken.setdefault(number if isinstance(number, int) else None, token)
    problems.raise_if_any(
        TokenizerError, f"{path}: not the added tokens of this vocabulary; take the file that came with the weights"
    )
    return added
