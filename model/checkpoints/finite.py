"""Weights that are no numbers: NaN and infinities make empty masks, which nobody would notice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from utils.errors import CheckpointError, Problems

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""How weights may be stored. Narrower numbers need scales that no layout here has."""


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor an infinity.

    One pass over the values that keeps only two of them, ten times faster than a copy; NaN wins against any number.
    """
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def note_non_finite(name: str, stored: Tensor, cast: Tensor, problems: Problems) -> None:
    """Note a tensor that holds what is no number, or would after a cast.

    Args:
        name: of the tensor.
        stored: as its file has it.
        cast: the same values as the model will hold them.
        problems: gets a line if so.
    """
    if is_finite(cast):
        return
    if is_finite(stored):
        bound = torch.finfo(cast.dtype).max
        problems.add(
            name,
            f"its values leave the range of {_word(cast.dtype)} (up to {bound:.4g}) when {_word(stored.dtype)} is cast "
            "to it; use a wider precision (--precision bf16 or fp32)",
        )
    else:
        bad = int((~torch.isfinite(stored)).sum())
        problems.add(name, f"{bad} of {stored.numel()} values are NaN or infinite")


def require_weights(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are no weights: whole numbers, truth values, numbers of eight bits.

    Raises:
        CheckpointError: naming every such tensor.
    """
    problems = Problems()
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            problems.add(name, f"holds {_word(tensor.dtype)}, not floating-point numbers")
    problems.raise_if_any(
        CheckpointError,
        f"{source}: tensors that are no weights (a quantised checkpoint?); use one in float32, bfloat16 or float16",
    )


def require_finite(tensors: Iterable[tuple[str, Tensor]], source: str, dtype: torch.dtype | None = None) -> None:
    """Refuse weights that hold NaN or an infinity.

    Args:
        tensors: (name, tensor of floating-point numbers), on any device.
        source: file, folder or program they come from, for the message.
        dtype: the precision that they are about to be cast to, in which they must be finite as well; None: as stored.

    Raises:
        CheckpointError: naming every such tensor.
    """
    problems = Problems()
    for name, tensor in tensors:
        note_non_finite(name, tensor, tensor if dtype is None else tensor.to(dtype), problems)
    raise_non_finite(problems, source)


def raise_non_finite(problems: Problems, source: str) -> None:
    """Raise what :func:`note_non_finite` noted; return if that was nothing.

    Raises:
        CheckpointError: naming every tensor.
    """
    problems.raise_if_any(
        CheckpointError,
        f"{source}: weights that are not finite; a model with them answers nonsense. Use a checkpoint from before the "
        "training diverged, or download the file again",
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
