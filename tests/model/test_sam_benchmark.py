"""The benchmark of the image encoder on an encoder of toy size; no figure of time is judged."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import sam_encoder
from model.segmenters.sam import SamSegmenter, sam_config

TOY = {"image_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "window_size": 3}


@pytest.fixture
def toy(monkeypatch):
    preset = sam_encoder.Preset({**TOY, "global_attn_indexes": (1,), "out_channels": 16}, {"cpu": 2})
    monkeypatch.setitem(sam_encoder.PRESETS, "toy", preset)
    return preset


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables(toy, capsys):
    arguments = ["--preset", "toy", "--device", "cpu", "--rounds", "1", "--kernels", "--peak", "0.5"]
    sam_encoder.main(arguments)
    printed = capsys.readouterr().out
    assert "python -m benchmarks.sam_encoder " + " ".join(arguments) in printed
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    start = next(index for index, line in enumerate(lines) if line.startswith("| part"))
    steps = [dict(zip(cells(lines[0]), cells(line))) for line in lines[2:start]]
    assert [row["step"] for row in steps][:2] == ["transformers, eager", "transformers, sdpa"]
    assert len(steps) == 6
    for row in steps:
        assert float(row["max error"]) < 1e-5 and float(row["RMS error"]) < 1e-6
        assert float(row["ms/image"]) > 0 and row["of peak"].endswith("%")
    assert len(lines) > start + 2 and all(len(cells(line)) == 4 for line in lines[start:])


def test_weights_of_a_checkpoint(tmp_path, capsys):
    settings = {**TOY, "patch_size": 16, "num_heads": 8, "embed_dim": 32, "global_attn_indexes": (1,)}
    sam = SamSegmenter(sam_config(**settings, out_channels=32))
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    config, state = sam_encoder.read_encoder(str(tmp_path / "sam.pth"))
    assert (config.hidden_size, config.image_size, config.window_size) == (32, 64, 3)
    encoder = sam_encoder.build_encoder(config, "sdpa", torch.device("cpu"), state)
    assert all(torch.equal(encoder.state_dict()[name], t) for name, t in sam.vision_encoder.state_dict().items())
    sam_encoder.main(["--sam", str(tmp_path / "sam.pth"), "--device", "cpu", "--rounds", "1"])
    assert f"{tmp_path / 'sam.pth'}, fp32" in capsys.readouterr().out


def test_compiled_is_a_step_of_its_own():
    names = list(sam_encoder.ladder(torch.device("cuda"), True, (36, 64)))
    assert names[-1].endswith("compiled") and "windows folded, global flex" in names


def test_arithmetic_of_vit_h():
    """Counted by hand: patches, 32 layers, neck; a multiply and an add each."""
    tokens, width, padded, window = 64**2, 1280, 70**2, 14**2
    linear = 2 * width**2
    total = 2 * tokens * 768 * width + 2 * tokens * 256 * width + 2 * tokens * 9 * 256 * 256
    for count, span, side, layers in ((padded, window, 14, 28), (tokens, tokens, 64, 4)):
        attention = 4 * count * span * width + 2 * count * 2 * side * width
        total += layers * (4 * count * linear + 8 * tokens * linear + attention)
    assert math.isclose(sam_encoder.count_flops(sam_config().vision_config), total, rel_tol=1e-6)


@pytest.mark.parametrize("aspect, size", [(16 / 9, (576, 1024)), (9 / 16, (1024, 576)), (1.0, (1024, 1024))])
def test_picture_size(aspect, size):
    assert sam_encoder.picture_size(1024, aspect) == size
