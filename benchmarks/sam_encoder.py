"""What each step of SAM's fast encoder gains over ``transformers``' own image encoder, and how exact it is.

    python -m benchmarks.sam_encoder --preset tiny
    python -m benchmarks.sam_encoder --preset vit_h --device cuda --peak 790 --kernels

Pictures are noise and so are the weights, unless ``--sam`` names a checkpoint; time does not depend on them, and errors
are given relative to the result's scale. All steps run in turn, several rounds, and the fastest round of each counts,
so that other work on the machine disturbs them alike. The error is that against ``transformers`` in float32 on the same
(rounded) weights; what the two plain routes show is what the number format costs.
"""

from __future__ import annotations

import argparse
import copy
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from benchmarks.sam_kernels import measure_kernels
from model.checkpoints import read_sam, sam_config_of
from model.segmenters import (
    FastEncoder,
    SamSegmenter,
    attend_biased,
    attend_flex,
    attend_folded,
    sam_config,
)
from model.settings import PRECISIONS


@dataclass(frozen=True)
class Preset:
    """An encoder, and how many pictures it is given at once."""

    settings: dict[str, Any]
    batch: dict[str, int]
    """Device type -> pictures per pass."""


PRESETS = {
    "tiny": Preset(
        {"image_size": 512, "embed_dim": 768, "depth": 4, "num_heads": 12, "global_attn_indexes": (1,)},
        {"cpu": 1, "cuda": 20},
    ),
    "vit_b": Preset(
        {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)}, {"cpu": 1, "cuda": 20}
    ),
    "vit_h": Preset({}, {"cpu": 1, "cuda": 20}),
}
"""tiny: four layers of ViT-B on 512 pixels, for a CPU in a minute. vit_h is what LISA has."""


def build_encoder(
    config: SamVisionConfig, implementation: str, device: torch.device, state: dict[str, Tensor] | None = None
) -> nn.Module:
    """An image encoder in float32, of ``state`` or of noise, the same for either implementation ("sdpa", "eager")."""
    whole = SamConfig(vision_config=config.to_dict())
    whole._attn_implementation = implementation
    with torch.device(device):
        encoder = SamSegmenter(whole).vision_encoder.eval().requires_grad_(False)
    if state is not None:
        encoder.load_state_dict(state)
        return encoder
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in encoder.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=device)
        is_scale = name.endswith("weight") and parameter.ndim == 1
        loudness = 0.2 if "rel_pos" in name else 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.copy_(1 + 0.1 * noise if is_scale else noise * loudness)
    return encoder


def read_encoder(path: str) -> tuple[SamVisionConfig, dict[str, Tensor]]:
    """Configuration and tensors of the image encoder in a SAM checkpoint.

    Raises:
        CheckpointError: the file is unreadable or holds no SAM.
    """
    tensors = read_sam(path)
    prefix = "vision_encoder."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return sam_config_of(tensors).vision_config, state


def picture_size(image_size: int, aspect: float) -> tuple[int, int]:
    """(h, w) of a picture with that width by height, inside the square."""
    return round(image_size / max(aspect, 1.0)), round(image_size * min(aspect, 1.0))


def count_flops(config: SamVisionConfig) -> float:
    """Floating-point operations that the plain encoder spends on one picture."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        encoder = SamVisionEncoder(config)
        pixels = torch.empty(1, 3, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(pixels)
    return float(counter.get_total_flops())


def ladder(device: torch.device, compiled: bool, size: tuple[int, int]) -> dict[str, Callable[..., Tensor]]:
    """Steps by name: functions of (eager encoder, sdpa encoder, pixels).

    The default is the last step on a GPU that leaves padding unknown, and the first such step on a CPU.
    """
    routes: dict[str, tuple[Callable[..., Tensor], ...] | None] = {
        "real tokens only, contiguous bias": (attend_biased, attend_biased),
        "windows folded": (attend_folded, attend_biased),
        "windows and global folded": (attend_folded, attend_folded),
    }
    if device.type == "cuda":
        routes["windows folded, global flex"] = (attend_folded, attend_flex)
    routes["default, padding known"] = None
    if compiled:
        routes["default, padding known, compiled"] = None
    encoders = {}
    for name, pair in routes.items():
        fast = FastEncoder()
        fast.compile = name.endswith("compiled")
        if pair is not None:
            fast.routes = {device.type: pair}
        encoders[name] = (fast, size if pair is None else None)

    def step(fast: FastEncoder, known: tuple[int, int] | None) -> Callable[..., Tensor]:
        return lambda eager, sdpa, pixels: fast(sdpa, pixels, known)

    return {
        "transformers, eager": lambda eager, sdpa, pixels: eager(pixels)[0],
        "transformers, sdpa": lambda eager, sdpa, pixels: sdpa(pixels)[0],
        **{name: step(*pair) for name, pair in encoders.items()},
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def measure(args: argparse.Namespace, config: SamVisionConfig, state: dict[str, Tensor] | None) -> list[dict[str, Any]]:
    """Time and error of every step; see :func:`ladder` and :func:`build_encoder`.

    Returns:
        One dict per step: ``step``, ``ms`` per picture, ``memory`` (peak bytes beyond the weights, CUDA only),
        ``largest`` and ``rms``, errors relative to the standard deviation of the float32 reference; or ``failure``.
    """
    device, dtype = torch.device(args.device), PRECISIONS[args.dtype]
    sdpa = build_encoder(config, "sdpa", device, state).to(dtype)
    eager = build_encoder(config, "eager", device, state).to(dtype)
    side = sdpa.config.image_size
    size = picture_size(side, args.aspect)
    pixels = torch.zeros(args.batch, 3, side, side)
    pixels[:, :, : size[0], : size[1]] = torch.randn(args.batch, 3, *size, generator=torch.Generator().manual_seed(1))
    pixels = pixels.to(device, dtype)
    wide = copy.deepcopy(sdpa).float()
    exact = torch.cat([wide(picture.float())[0] for picture in pixels[: args.checked].split(1)])
    del wide
    rows = []
    steps = ladder(device, args.compile, size)
    for name, run in steps.items():
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        try:
            off = (run(eager, sdpa, pixels)[: args.checked].float() - exact) / exact.std()
        except RuntimeError as error:  # no memory, or no kernel
            rows.append({"step": name, "failure": str(error).strip().partition("\n")[0][:60]})
            continue
        errors = {"largest": off.abs().max().item(), "rms": off.square().mean().sqrt().item()}
        row = {"step": name, "ms": float("inf"), **errors}
        if device.type == "cuda":
            row["memory"] = torch.cuda.max_memory_allocated(device) - before
        rows.append(row)
    for _ in range(args.rounds):
        for row in rows:
            if "failure" not in row:
                wait(device)
                start = time.perf_counter()
                steps[row["step"]](eager, sdpa, pixels)
                wait(device)
                row["ms"] = min(row["ms"], 1e3 * (time.perf_counter() - start) / args.batch)
    return rows


def format_rows(rows: list[dict[str, Any]], flops: float, peak: float | None) -> str:
    """A Markdown table; ``flops`` of the plain encoder per picture, ``peak`` of the device in TFLOP/s."""
    times = {row["step"]: row["ms"] for row in rows if "ms" in row}
    plain = [times.get(f"transformers, {name}") for name in ("eager", "sdpa")]
    head = ["step", "ms/image", "x eager", "x sdpa", "TFLOP/s", *(["of peak"] if peak else []), "memory"]
    lines = ["| " + " | ".join([*head, "max error", "RMS error"]) + " |"]
    lines.append("|" + "---|" * lines[0].count(" |"))
    for row in rows:
        if "failure" in row:
            lines.append(f"| {row['step']} | {row['failure']} |" + " |" * (lines[0].count(" |") - 2))
            continue
        rate = flops / row["ms"] / 1e9
        cells = [row["step"], f"{row['ms']:.2f}", *(f"{base / row['ms']:.2f}" if base else "-" for base in plain)]
        cells += [f"{rate:.3g}", *([f"{rate / peak:.0%}"] if peak else [])]
        cells.append(f"{row['memory'] / 2**30:.2f} GiB" if "memory" in row else "-")
        lines.append("| " + " | ".join([*cells, f"{row['largest']:.1e}", f"{row['rms']:.1e}"]) + " |")
    return "\n".join(lines)


def machine_name(device: torch.device) -> str:
    """What ran it, for the head of a table."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, with defaults that depend on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--sam", metavar="PATH", help="a SAM checkpoint to take weights and sizes from")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--dtype", choices=PRECISIONS, help="default: bf16 on a GPU, else fp32")
    parser.add_argument("--batch", type=int, help="pictures per pass; default 20 on a GPU, else 1")
    parser.add_argument("--aspect", type=float, default=16 / 9, help="width by height of the pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checked", type=int, default=2, help="pictures compared with float32")
    parser.add_argument("--peak", type=float, help="TFLOP/s that the device reaches in matrix products (H200: 790)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--kernels", action=argparse.BooleanOptionalAction, default=False, help="parts on their own")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(argv)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(args.device).type
    args.dtype = args.dtype or ("bf16" if kind == "cuda" else "fp32")
    args.batch = args.batch or PRESETS[args.preset].batch.get(kind, 1)
    args.compile = kind == "cuda" if args.compile is None else args.compile
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    # The reference is to be float32 and not TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(args.device)
    config, state = sam_config(**PRESETS[args.preset].settings).vision_config, None
    if args.sam:
        config, state = read_encoder(args.sam)
    flops = count_flops(config)
    print(f"`python -m benchmarks.sam_encoder {shlex.join(sys.argv[1:] if argv is None else argv)}`  ")
    print(f"{machine_name(device)}; {args.sam or args.preset}, {args.dtype},")
    print(f"{args.batch} pictures of {args.aspect:.2f} to 1 per pass,")
    print(f"{flops / 1e12:.3f} TFLOP each as transformers computes them\n")
    print(format_rows(measure(args, config, state), flops, args.peak))
    if args.kernels:
        print("\n" + measure_kernels(config, args.batch, device, PRECISIONS[args.dtype], args.peak))


if __name__ == "__main__":
    main()
