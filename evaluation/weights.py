"""What a model's weights are, in a few letters."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Digest of every parameter and buffer as they are in memory: names, types, shapes and bytes.

    What ran is fingerprinted, not the files it came from, so two layouts of one checkpoint give the same value and a
    cast to another precision another.
    """

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(head + hashlib.sha256(content).digest()).digest()

    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(digest, sorted(model.state_dict().items())))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]
