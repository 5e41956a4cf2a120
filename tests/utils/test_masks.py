"""utils/masks.py: run-length encoding, id masks in PNG files, unions."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from utils.errors import DataError
from utils.masks import (
    IdMaskCache,
    decode_rle,
    encode_rle,
    palette,
    read_id_mask,
    rle_size,
    union,
    write_id_mask,
)


def random_mask(seed: int, height: int, width: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_rle_round_trip(seed, height, width, share):
    mask = random_mask(seed, height, width, share)
    rle = encode_rle(mask)
    assert rle["size"] == [height, width] and isinstance(rle["counts"], str)
    decoded = decode_rle(rle)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


def test_rle_of_large_masks_with_long_runs():
    mask = np.zeros((720, 1280), dtype=bool)
    mask[300:500, 200:900] = True
    mask[::97, ::89] ^= True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


def test_rle_accepts_bytes_and_plain_lists():
    mask = random_mask(0, 9, 7, 0.4)
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    np.testing.assert_array_equal(decode_rle(encoded), mask)
    np.testing.assert_array_equal(decode_rle({"size": [2, 3], "counts": [1, 2, 3]}), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    "counts", ["", "\x00\x01", "é", 5, None, [1, 2], [-1, 64], ["a"], [64.0], "~" * 40, "o" * 30 + "0"], ids=repr
)
def test_damaged_rle_is_refused(counts):
    with pytest.raises(DataError):
        decode_rle({"size": [8, 8], "counts": counts})


def test_truncated_rle_is_refused_at_every_length():
    rle = encode_rle(random_mask(3, 20, 20, 0.3))
    for length in range(len(rle["counts"])):
        with pytest.raises(DataError, match="damaged"):
            decode_rle({"size": rle["size"], "counts": rle["counts"][:length]})
    with pytest.raises(DataError, match="20 x 21"):
        decode_rle({"size": [20, 21], "counts": rle["counts"]})


def test_a_foreign_letter_is_not_taken_for_a_run():
    assert not decode_rle({"size": [3, 5], "counts": "?"}).any()  # one run of 15
    with pytest.raises(DataError):
        decode_rle({"size": [3, 5], "counts": "é"})


@pytest.mark.parametrize("rle", [{}, {"size": [3]}, {"size": [0, 4]}, {"size": "ab"}, [], None])
def test_rle_without_size_is_refused(rle):
    with pytest.raises(DataError, match="size"):
        rle_size(rle)


def test_encode_needs_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions"):
        encode_rle(np.zeros((1, 4, 4)))


def test_id_mask_round_trip(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256, (13, 17)).astype(np.uint8)
    path = tmp_path / "new" / "00000.png"
    write_id_mask(path, ids)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.convert("RGB")), palette()[ids])
    read = read_id_mask(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, ids)
    assert [p.name for p in path.parent.iterdir()] == ["00000.png"]  # no temporary file is left


def test_palette_is_the_one_of_pascal_voc():
    assert palette()[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert len({tuple(colour) for colour in palette().tolist()}) == 256


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_id_mask_modes_that_hold_ids(tmp_path, mode):
    ids = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    image = Image.fromarray(ids.astype(bool)) if mode == "1" else Image.fromarray(ids)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_id_mask(tmp_path / "m.png"), ids)


@pytest.mark.parametrize("bits", [2, 4])
def test_low_bit_grey_keeps_raw_ids(tmp_path, bits):
    """Pillow stretches 2- and 4-bit grey to 0..255; the ids are the values in the file."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ids = [0, 1, 2, 3]
    packed = int("".join(f"{value:0{bits}b}" for value in ids), 2).to_bytes(len(ids) * bits // 8, "big")
    header = struct.pack(">IIBBBBB", len(ids), 1, bits, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(content)
    assert read_id_mask(tmp_path / "m.png").tolist() == [ids]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_other_modes_are_refused_by_name(tmp_path, mode):
    path = tmp_path / "mask.png"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(DataError, match=rf"mask\.png.*mode P or L.*{mode.split(';')[0]}"):
        read_id_mask(path)


def test_a_mask_must_be_lossless(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(DataError, match="JPEG"):
        read_id_mask(tmp_path / "mask.png")


def test_missing_and_damaged_masks_are_named(tmp_path):
    path = tmp_path / "mask.png"
    with pytest.raises(DataError, match=r"mask\.png: no such"):
        read_id_mask(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"mask\.png: cannot read"):
        read_id_mask(path)
    write_id_mask(path, np.random.default_rng(0).integers(0, 9, (64, 64)))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"mask\.png: cannot read"):
        read_id_mask(path)


@pytest.mark.parametrize("ids", [np.zeros((2, 2, 2), int), np.full((2, 2), 256), np.full((2, 2), -1), np.zeros((2, 2))])
def test_write_id_mask_refuses_what_is_no_id(tmp_path, ids):
    with pytest.raises(ValueError):
        write_id_mask(tmp_path / "m.png", ids)
    assert not list(tmp_path.iterdir())


def test_union_counts_overlaps_once():
    a, b = np.eye(3, dtype=np.uint8), np.ones((3, 3), dtype=bool)
    result = union([a, b], (3, 3))
    assert result.dtype == bool and result.sum() == 9
    assert not union([], (2, 4)).any() and union([], (2, 4)).shape == (2, 4)
    with pytest.raises(ValueError, match="shape"):
        union([a], (2, 3))


def test_cache_gives_shared_readonly_arrays_and_pickles_empty(tmp_path):
    write_id_mask(tmp_path / "m.png", np.eye(4, dtype=np.uint8))
    cache = IdMaskCache(2)
    first = cache.read(tmp_path / "m.png")
    assert cache.read(tmp_path / "m.png") is first
    with pytest.raises(ValueError):
        first[0, 0] = 5
    copy = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copy.read(tmp_path / "m.png"), first)
