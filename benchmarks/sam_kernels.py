"""Parts of the image encoder on their own: matrix products, kernels of attention, resizing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import SamVisionConfig

from model.segmenters import attend_biased, attend_flex, attend_folded, attend_plain

BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def seconds(run: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Shortest of several runs, after one to warm up."""
    best = float("inf")
    for index in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if index:
            best = min(best, time.perf_counter() - start)
    return best


def products(vision: SamVisionConfig, batch: int, device: torch.device, dtype: torch.dtype) -> Iterator[tuple]:
    """(name, flops, function) of the linear layers over all tokens of a batch."""
    tokens, width = batch * (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    for outputs, inputs in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
        x = torch.randn(tokens, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        name = f"product, {tokens} x {inputs} to {outputs}"
        yield name, 2 * tokens * inputs * outputs, lambda x=x, weight=weight: F.linear(x, weight)


def attentions(vision: SamVisionConfig, batch: int, device: torch.device, dtype: torch.dtype) -> Iterator[tuple]:
    """(name, flops, function) of the routes of one layer, and of bare SDPA in the shapes that they give it."""
    heads, grid = vision.num_attention_heads, vision.image_size // vision.patch_size
    dim = vision.hidden_size // heads
    windows = (-(-grid // vision.window_size)) ** 2
    for kind, count, side in (("window", batch * windows, vision.window_size), ("global", batch, grid)):
        length = side**2
        flops = 4 * count * heads * length**2 * dim
        q, k, v = (torch.randn(count, length, heads, dim, device=device, dtype=dtype) for _ in range(3))
        tables = [torch.randn(2 * side - 1, dim, device=device, dtype=dtype) * 0.2 for _ in range(2)]
        routes = {"bias": attend_biased, "fold": attend_folded}
        if device.type == "cuda" and kind == "global":
            routes["flex"] = attend_flex
        for name, route in routes.items():
            yield f"{kind} layer, {name}", flops, lambda r=route, a=(q, k, v, *tables, (side, side)): r(*a)
        yield f"{kind} layer, no positions", flops, lambda a=(q, k, v): attend_plain(*a)
        if device.type == "cuda":
            yield from _bare_kernels(kind, (count, heads, length, dim), 2 * side, device, dtype, flops)


def _bare_kernels(
    kind: str, shape: tuple[int, int, int, int], extra: int, device: torch.device, dtype: torch.dtype, flops: float
) -> Iterator[tuple]:
    """SDPA per backend: folded with the value padded and not, and a dense bias for a single picture's worth."""
    count, heads, length, dim = shape
    wide = dim + extra + -(dim + extra) % 8

    def noise(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype)

    def kernel(backend: SDPBackend | None, *tensors: Tensor) -> Callable[[], Tensor]:
        query, key, value, *mask = tensors

        def run() -> Tensor:
            if backend is None:
                return F.scaled_dot_product_attention(query, key, value, *mask)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value, *mask)

        return run

    for name, backend in BACKENDS.items():
        q, k, v = noise(count, heads, length, wide), noise(count, heads, length, wide), noise(*shape)
        yield f"{kind} SDPA {wide}/{wide}, {name}", flops, kernel(backend, q, k, F.pad(v, (0, wide - dim)))
        yield f"{kind} SDPA {wide}/{dim}, {name}", flops, kernel(backend, q, k, v)
        few = min(count, 25)
        q, k, v = (noise(few, heads, length, dim) for _ in range(3)) if kind == "window" else noise(3, 1, *shape[1:])
        bias = noise(q.shape[0], heads, length, length)
        share = flops * q.shape[0] / count
        yield f"{kind} SDPA {dim} + bias, {q.shape[0]} at once, {name}", share, kernel(backend, q, k, v, bias)


@torch.no_grad()
def measure_kernels(
    vision: SamVisionConfig, batch: int, device: torch.device, dtype: torch.dtype, peak: float | None
) -> str:
    """A Markdown table of the parts; what a device refuses is named as such. ``peak`` in TFLOP/s."""
    lines = ["| part | ms | TFLOP/s |" + (" of peak |" if peak else ""), "|---|---|---|" + ("---|" if peak else "")]
    for parts in (products(vision, batch, device, dtype), attentions(vision, batch, device, dtype)):
        lines += [_line(*part, device, peak) for part in parts]
    return "\n".join(lines)


def _line(name: str, flops: float | None, run: Callable[[], object], device: torch.device, peak: float | None) -> str:
    """One row of the table."""
    try:
        taken = seconds(run, device)
    except RuntimeError as error:  # no kernel for these shapes, or no memory
        reason = str(error).strip().partition("\n")[0][:60]
        return f"| {name} | - | {reason} |" + (" - |" if peak else "")
    if flops is None:
        return f"| {name} | {1e3 * taken:.3f} | - |"
    rate = flops / taken / 1e12
    return f"| {name} | {1e3 * taken:.3f} | {rate:.3g} |" + (f" {rate / peak:.0%} |" if peak else "")
