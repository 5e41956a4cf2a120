"""Pictures of every depth and mode are read as they are meant, or refused by name; turned videos come upright."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.utils.clips import write_clip
from utils.errors import DataError
from utils.masks import read_id_mask
from utils.video import frame_size, read_frame, read_video, scan_images

RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)


def png_of_size(path: Path, width: int, height: int) -> Path:
    """A PNG whose header claims a size; its pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "by_cv2.png"), RAMP)
    for name in ("grey.png", "by_cv2.png"):
        frame = read_frame(tmp_path / name)
        np.testing.assert_array_equal(frame, np.repeat((RAMP >> 8).astype(np.uint8)[..., None], 3, axis=2))
    colours = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)
    cv2.imwrite(str(tmp_path / "rgb.png"), colours[..., ::-1])
    assert np.abs(read_frame(tmp_path / "rgb.png").astype(int) - (colours >> 8)).max() <= 1
    assert frame_size(tmp_path / "grey.png") == (64, 64)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_of_eight_bits_give_their_colours(tmp_path, mode):
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:, 4:] = 255
    colours[4:, :4] = 200 if mode not in ("1",) else 0
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = Image.fromarray(colours)
    image = image.convert("L") if mode == "LA" else image
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(0)  # transparent: the stored colours count all the same
    image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    assert np.abs(read_frame(path).astype(int) - colours).max() <= (4 if mode == "CMYK" else 0)


def test_modes_without_known_levels_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tiff")
    os.rename(tmp_path / "a.tiff", tmp_path / "float.png")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "b.tiff")
    os.rename(tmp_path / "b.tiff", tmp_path / "int.png")
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "animated.png", save_all=True, append_images=pages[1:])
    for name, word in (("float.png", "mode F"), ("int.png", "mode I"), ("animated.png", "2 pictures")):
        with pytest.raises(DataError, match=f"{name}: .*{word}"):
            read_frame(tmp_path / name)
    with pytest.raises(DataError, match="mode F"):
        frame_size(tmp_path / "float.png")


@pytest.mark.parametrize("side", [30_000, 9_000])
def test_a_header_that_claims_a_huge_picture_is_refused(tmp_path, side):
    path = png_of_size(tmp_path / "frame_000000.png", side, side)
    for read in (read_frame, frame_size, read_id_mask):
        with pytest.raises(DataError, match="frame_000000.png: .*claims"):
            read(path)


def test_masks_are_ids_or_refused(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "colours.png")
    for name, word in (("deep.png", "I;16"), ("colours.png", "RGB")):
        with pytest.raises(DataError, match=f"{name}: .*{word}"):
            read_id_mask(tmp_path / name)
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    Image.fromarray(ids).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_id_mask(tmp_path / "grey.png"), ids)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "link in a circle"])
def test_what_is_no_file_among_the_frames_is_named(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_000000.jpg")
    odd = tmp_path / "frame_000001.jpg"
    make = {
        "pipe": lambda: os.mkfifo(odd), "folder": odd.mkdir, "link to nothing": lambda: odd.symlink_to("nowhere"),
        "link in a circle": lambda: odd.symlink_to(odd.name),
    }  # fmt: skip
    make[kind]()
    files, others = scan_images(tmp_path)
    assert [path.name for path in files] == ["frame_000000.jpg"] and others == [odd]
    for read in (read_frame, frame_size, read_id_mask):
        with pytest.raises(DataError, match="frame_000001.jpg: "):
            read(odd)
    (tmp_path / "frame_000002.jpg").symlink_to("frame_000000.jpg")
    assert read_frame(tmp_path / "frame_000002.jpg").shape == (8, 8, 3)


def turned(path: Path, degrees: int, width: int, height: int) -> Path:
    """Set the display matrix of an mp4 (ISO 14496-12, tkhd) so that players turn it clockwise."""
    one = 1 << 16
    matrices = {
        90: (0, one, 0, -one, 0, 0, height * one, 0, 1 << 30),
        180: (-one, 0, 0, 0, -one, 0, width * one, height * one, 1 << 30),
        270: (0, -one, 0, one, 0, 0, 0, width * one, 1 << 30),
    }
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    struct.pack_into(">9i", content, place, *matrices[degrees])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("size", [(64, 48), (100, 52), (66, 38)])
def test_a_turned_video_is_upright(tmp_path, degrees, size):
    width, height = size
    frames = []
    for number in range(8):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[: height // 2, : width // 2] = (250, 30, 30)  # one bright quarter: left and right, up and down differ
        frame[height // 2 :, width // 2 :] = 20 * number
        frames.append(frame)
    path = tmp_path / "a.mp4"
    write_clip(path, frames, fps=8)
    stored, _ = read_video(path)
    upright = np.rot90(stored, k=-degrees // 90, axes=(1, 2))
    frames, fps = read_video(turned(path, degrees, width, height))
    assert fps == pytest.approx(8) and frames.shape == upright.shape
    assert np.abs(frames.astype(int) - upright).mean() < 4  # two decoders round differently
    fewer, _ = read_video(path, fps=2)
    np.testing.assert_array_equal(fewer, frames[[0, 4]])
