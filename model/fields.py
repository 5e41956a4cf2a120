"""What each field of a configuration may hold: a file written by hand or by another program can hold anything.

The libraries that read these fields check few of them: a word where a number belongs comes to light as a traceback in
the middle of a layer, and an epsilon of the wrong sign as wrong numbers that nobody notices.
"""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from utils.errors import ConfigError, MoraError, Problems

WIDTH = 1 << 16
"""Largest width of a layer, side of a picture and number of layers' inputs: many times what exists."""

LAYERS = 1024

ROWS = 1 << 24
"""Largest vocabulary."""


@dataclass(frozen=True)
class Rule:
    """Which values a field may have.

    Attributes:
        fits: whether a value is one of them.
        wanted: the same in words, for messages.
    """

    fits: Callable[[Any], bool]
    wanted: str


def optional(rule: Rule) -> Rule:
    """``rule``, or null."""
    return Rule(lambda value: value is None or rule.fits(value), f"{rule.wanted}, or null")


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds; true and 3.0 are none."""
    return Rule(lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}")


def real(low: float, high: float) -> Rule:
    """A number between two others, which it may not equal; NaN lies between none."""
    return Rule(lambda value: _is_number(value) and low < value < high, f"a number above {low:g} and below {high:g}")


def one_of(*values: Any) -> Rule:
    """One of some values, of the same type (1.0 and true are no 1)."""
    listed = ", ".join(map(repr, values))
    return Rule(lambda value: any(type(value) is type(one) and value == one for one in values), f"one of {listed}")


def key_of(table: Mapping[str, Any]) -> Rule:
    """A key of a table, as it is when a value is looked at."""
    return Rule(lambda value: isinstance(value, str) and value in table, f"one of {', '.join(map(repr, table))}")


_SCALED = {"linear", "dynamic", "yarn", "llama3"}
"""Kinds of rotary positions that have no meaning without a factor."""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_rope(value: Any) -> bool:
    """Whether the settings of rotary positions are an object of positive numbers with a name that is known."""
    if not isinstance(value, Mapping):
        return False
    kinds = [value[name] for name in ("rope_type", "type") if name in value]
    if not all(isinstance(kind, str) and kind in {"default", *ROPE_INIT_FUNCTIONS} for kind in kinds):
        return False
    numbers = [item for key, item in value.items() if key not in ("rope_type", "type")]
    numbers = [each for item in numbers for each in (item if isinstance(item, list) else [item])]
    base, factor = value.get("rope_theta", 2), value.get("factor", None if _SCALED & {*kinds} else 1)
    return (
        all(each is None or type(each) is bool or (_is_number(each) and 0 < each < 1e12) for each in numbers)
        and (_is_number(base) and base > 1)
        and (_is_number(factor) and factor >= 1)
    )


FLAG = Rule(lambda value: type(value) is bool, "true or false")
WORD = Rule(lambda value: isinstance(value, str) and value.strip() != "", "a text that is not empty")
OBJECT = Rule(lambda value: isinstance(value, Mapping), "an object with fields of its own")
SHARE = Rule(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
EPSILON = real(0, 1)
SIZE = whole(1, WIDTH)
DEPTH = whole(1, LAYERS)
ACTIVATION = Rule(
    lambda value: isinstance(value, str) and value in ACT2FN, "the name of an activation ('silu', 'gelu')"
)
ROPE = Rule(_is_rope, "an object of positive numbers, factor at least 1, with a rope_type that transformers knows")
LAYER_LIST = Rule(
    lambda value: isinstance(value, (list, tuple)) and all(type(item) is int and 0 <= item < LAYERS for item in value),
    "a list of layer numbers",
)
END_IDS = Rule(
    lambda value: (
        value is None
        or all(type(item) is int and -1 <= item <= ROWS for item in (value if isinstance(value, list) else [value]))
    ),
    "an id, a list of ids, or null",
)
PRECISION = Rule(
    lambda value: value is None or str(value).removeprefix("torch.") in ("float32", "float16", "bfloat16", "float64"),
    "'float32', 'bfloat16' or 'float16'",
)

COMMON: dict[str, Rule] = {
    "dtype": PRECISION,
    "torch_dtype": PRECISION,
    "use_cache": FLAG,
    # Other values change what the library's modules return, which the code that calls them relies on.
    "return_dict": one_of(True, None),
    "output_attentions": one_of(False, None),
    "output_hidden_states": one_of(False, None),
}
"""Fields that every configuration may have."""

LLAMA: dict[str, Rule] = {
    **COMMON,
    "vocab_size": whole(1, ROWS),
    "hidden_size": SIZE,
    "intermediate_size": whole(1, 1 << 20),
    "num_hidden_layers": DEPTH,
    "num_attention_heads": SIZE,
    "num_key_value_heads": optional(SIZE),
    "head_dim": optional(SIZE),
    "hidden_act": ACTIVATION,
    "max_position_embeddings": whole(1, 1 << 30),
    "initializer_range": EPSILON,
    "rms_norm_eps": EPSILON,
    "tie_word_embeddings": FLAG,
    "rope_theta": optional(real(1, 1e12)),
    "rope_scaling": optional(ROPE),
    "rope_parameters": optional(ROPE),
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "attention_dropout": optional(SHARE),
    "bos_token_id": END_IDS,
    "eos_token_id": END_IDS,
    "pad_token_id": optional(whole(-1, ROWS)),
    # The library knows these for every decoder; here they would silently make another network.
    "partial_rotary_factor": one_of(None, 1, 1.0),
    "per_layer_config": one_of(None),
}
"""Fields of a Llama decoder."""

VISION: dict[str, Rule] = {
    **COMMON,
    "hidden_size": SIZE,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": SIZE,
    "num_channels": one_of(3),
    "image_size": SIZE,
    "patch_size": SIZE,
    "hidden_act": ACTIVATION,
    "layer_norm_eps": EPSILON,
    "attention_dropout": optional(SHARE),
    "initializer_range": EPSILON,
}
"""Fields of any encoder of pictures."""

CLIP: dict[str, Rule] = {
    **VISION,
    "intermediate_size": whole(1, 1 << 20),
    "projection_dim": SIZE,
    "initializer_factor": real(0, 1e6),
}
"""Fields of a CLIP vision tower."""

_DIVIDED = (("hidden_size", "num_attention_heads"), ("image_size", "patch_size"),
            ("num_attention_heads", "num_key_value_heads"))  # fmt: skip
"""Pairs of which the first must be a multiple of the second."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120

_GRID = 1024
"""Most patches along one side of a picture."""


def note_problems(values: Any, rules: Mapping[str, Rule], problems: Problems, where: str = "") -> None:
    """Note every field whose value breaks its rule, and pairs of fields that contradict each other.

    Args:
        values: the fields; absent ones have the library's defaults and are not looked at.
        rules: by name of the field.
        problems: gets a line per mistake.
        where: what the fields belong to, put before their names.
    """
    if not isinstance(values, Mapping):
        problems.add(where or "config.json", f"is {shown(values)}; use {OBJECT.wanted}")
        return
    prefix = f"{where}." if where else ""
    wrong = [name for name, rule in rules.items() if name in values and not rule.fits(values[name])]
    for name in wrong:
        problems.add(prefix + name, f"is {shown(values[name])}; use {rules[name].wanted}")
    for whole_name, part in _DIVIDED:
        first, second = values.get(whole_name), values.get(part)
        if whole_name in rules and part in rules and not {whole_name, part} & set(wrong) and first and second:
            if first % second:
                problems.add(prefix + whole_name, f"is {first}, no multiple of {part} {second}; one of them is wrong")
            elif part == "patch_size" and first // second > _GRID:
                problems.add(prefix + part, f"is {second}: more than {_GRID} patches along a side of {first} pixels")


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    return _SHORT.repr(value)


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Turn whatever a library raises over the values of a configuration into an error that names its origin.

    Raises:
        ConfigError: instead of anything that is no :class:`utils.errors.MoraError`.
    """
    try:
        yield
    except MoraError:
        raise
    except Exception as error:  # libraries raise a dozen types over values that they did not expect
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"{what}: cannot be built from its values ({reason}); use the config.json saved with these weights"
        ) from error
