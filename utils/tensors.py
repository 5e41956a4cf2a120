"""What tensors hold: their digest in a few letters, and whether they are weights at all. NaN and infinities make empty
masks, which nobody would notice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

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


def require_finite(weights: Iterable[tuple[str, Tensor, Tensor]], source: str) -> None:
    """Refuse tensors that are no weights (whole numbers, truth values, numbers of eight bits), NaN and infinities.

    Args:
        weights: (name, tensor as its file has it, the same values as the model will hold them), on any device.
        source: file, folder or program they come from, for the message.

    Raises:
        CheckpointError: naming every such tensor, also those whose values leave the range of the model's precision.
    """
    kinds, values = Problems(), Problems()
    for name, stored, cast in weights:
        if stored.dtype not in WEIGHT_DTYPES:
            kinds.add(name, f"holds {_word(stored.dtype)}, not floating-point numbers")
        elif cast.dtype not in WEIGHT_DTYPES or is_finite(cast):  # by a wrong kind of another tensor, named already
            continue
        elif is_finite(stored):
            values.add(
                name,
                f"its values leave the range of {_word(cast.dtype)} (up to {torch.finfo(cast.dtype).max:.4g}) when "
                f"{_word(stored.dtype)} is cast to it; use a wider precision (--precision bf16 or fp32)",
            )
        else:
            bad = int((~torch.isfinite(stored)).sum())
            values.add(name, f"{bad} of {stored.numel()} values are NaN or infinite")
    kinds.raise_if_any(
        CheckpointError,
        f"{source}: tensors that are no weights (a quantised checkpoint?); use one in float32, bfloat16 or float16",
    )
    values.raise_if_any(
        CheckpointError,
        f"{source}: weights that are not finite; a model with them answers nonsense. Use a checkpoint from before the "
        "training diverged, or download the file again",
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes of some tensors; their order does not matter.

    What is in memory is digested, not the files it came from, so two layouts of one checkpoint give the same value and
    a cast to another precision another.

    Args:
        tensors: by name, on any device.

    Returns:
        16 hexadecimal digits.
    """

    def digest(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(head + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(digest, sorted(tensors.items())))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def digests_by_part(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """:func:`tensors_digest` of each part of a model: of all tensors whose names begin with the same word.

    Returns:
        Part ("language_model", "sam", ...) to digest, sorted by part.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.split(".", 1)[0], {})[name] = tensor
    return {part: tensors_digest(parts[part]) for part in sorted(parts)}
