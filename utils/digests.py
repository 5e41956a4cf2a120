"""What tensors hold, in a few letters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


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
