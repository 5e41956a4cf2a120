"""Weight files that are pointers, cut, forged or listed wrongly: each is refused by its name, with what to do."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints import load_any, read_state_dict
from model.checkpoints.lisa import find_token_id
from utils.errors import CheckpointError, MoraError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0f" * 32 + "\nsize 12345\n"
TENSORS = {f"layer.{index}": torch.full((20, 10), float(index)) for index in range(4)}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "x.pt", "x.pth", "config.json", "added_tokens.json", "tokenizer.json",
     "model.safetensors.index.json", "pytorch_model.bin.index.json"],
)  # fmt: skip
def test_lfs_pointers_are_called_that(tmp_path, project_root, name):
    """What a clone without git-lfs holds, read as whatever it stands for."""
    folder = tmp_path / "model"
    shutil.copytree(project_root / "assets" / "tiny_base", folder)
    if "model." in name and name != "model.safetensors":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError) as error:
        if name in ("added_tokens.json", "tokenizer.json"):
            find_token_id(folder, "[SEG]")
        elif name.startswith("x."):
            read_state_dict(folder / name)
        else:
            load_any(folder)
    assert f"{folder / name}: a Git LFS pointer" in str(error.value) and "git lfs pull" in str(error.value)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_shard_that_is_a_pointer(tmp_path, suffix):
    write_index(tmp_path, {"a": f"one.{suffix}"})
    (tmp_path / f"one.{suffix}").write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"one\.{suffix}: a Git LFS pointer.*git lfs pull"):
        read_state_dict(tmp_path)


def with_header(path: Path, change) -> None:
    """Write TENSORS as safetensors with their header changed."""
    save_file(TENSORS, path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def doubled(header: dict) -> str:
    """The header with a second entry of a name, which leads elsewhere."""
    entry = '"layer.0": {"dtype": "F32", "shape": [20, 10], "data_offsets": [800, 1600]}'
    return json.dumps(header)[:-1] + f", {entry}}}"


@pytest.mark.parametrize(
    "change",
    [
        doubled,
        lambda header: header["layer.1"].update(data_offsets=header["layer.0"]["data_offsets"]),
        lambda header: header["layer.1"].update(data_offsets=[0, 10**15]),
        lambda header: header["layer.1"].update(shape=[-1, 10]),
        lambda header: header["layer.1"].update(shape=[2**62, 2**62]),
        lambda header: header["layer.1"].update(dtype="F99"),
        lambda header: header["layer.1"].update(dtype="F16"),
        lambda header: header.pop("layer.1") and None,
        lambda header: header.clear(),
        lambda header: "[1]",
        lambda header: '{"layer.0": ',
    ],
)
def test_forged_headers(tmp_path, change):
    with_header(tmp_path / "a.safetensors", change)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be read: truncated or damaged"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "old.bin"])
def test_cut_and_flipped_files_end_in_a_named_error_or_open(tmp_path, name):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name == "a.bin")
    whole, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for turn in range(120):
        place = int(torch.randint(min(len(whole), 1500), (1,), generator=generator))
        path.write_bytes(whole[:place] if turn % 4 == 0 else flipped(whole, place, turn % 8))
        try:
            assert read_state_dict(path)
        except MoraError as error:
            assert str(path) in str(error)


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """The content with one bit changed."""
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def test_archives_of_other_kinds(tmp_path):
    with tarfile.open(tmp_path / "tar.bin", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps({})
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "jit.pt"))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name, value in (
        ("meta.pt", torch.empty(2, device="meta")),
        ("sparse.pt", torch.eye(3).to_sparse()),
        ("quantised.pt", torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)),
    ):
        torch.save({"a": value}, tmp_path / name)
    torch.save({3: torch.eye(3)}, tmp_path / "number.pt")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CheckpointError, match=path.name):
            read_state_dict(path)


def write_index(folder: Path, weight_map, **more) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **more}))


@pytest.mark.parametrize("where", ["weights/{}", "./deep/er/{}", "{}"])
def test_shards_in_a_folder_below(tmp_path, where):
    names = [where.format(f"model-{number}.safetensors") for number in (1, 2)]
    parts = [{"layer.0": TENSORS["layer.0"]}, {key: TENSORS[key] for key in ("layer.1", "layer.2")}]
    for name, part in zip(names, parts):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(part, tmp_path / name)
    write_index(tmp_path, {key: name for name, part in zip(names, parts) for key in part})
    state = read_state_dict(tmp_path)
    assert sorted(state) == ["layer.0", "layer.1", "layer.2"] and state["layer.2"].eq(2).all()


@pytest.mark.parametrize(
    "value", [5, None, True, 1.5, [], ["x"], {"a": 1}, "", " ", "../x.safetensors", "w/../../x.bin", "/etc/passwd",
              "a\0b", ".", "x" * 5000],
)  # fmt: skip
def test_values_of_an_index(tmp_path, value):
    """The right entry beside it does not hide it, and no file elsewhere is opened."""
    save_file({"wrong": torch.zeros(2)}, tmp_path / "x.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"right": torch.zeros(2)}, folder / "one.safetensors")
    write_index(folder, {"right": "one.safetensors", "wrong": value, "also": 7}, metadata=3)
    with pytest.raises(CheckpointError) as error:
        read_state_dict(folder)
    assert "index.json" in str(error.value) and "weight_map['also']: is 7" in str(error.value)
    assert "2 problems" in str(error.value)
    write_index(folder, {"right": "one.safetensors", "wrong": value})
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_state_dict(folder)


@pytest.mark.parametrize("content", ["[1]", "5", '"x"', "null", '{"weight_map": []}', '{"weight_map": "x"}', "{", ""])
def test_contents_of_an_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        read_state_dict(tmp_path)


def test_totals_of_an_index_may_be_anything(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"x")
    for metadata in (None, 3, [], {"total_size": "much"}, {"total_size": None}):
        write_index(tmp_path, {**dict.fromkeys(TENSORS, "one.safetensors"), "b": "two.safetensors"}, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"two\.safetensors: cannot be read.*2 shards hold"):
            read_state_dict(tmp_path)


def test_folders_pipes_and_links_under_the_names_of_weights(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="no weights; expected"):
        read_state_dict(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(CheckpointError, match=r"pipe\.bin: neither a file nor a folder"):
        read_state_dict(tmp_path / "pipe.bin")
    (tmp_path / "pytorch_model.bin").symlink_to("gone.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a link to gone\.bin, which is not there"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("value", ["5", -1, 1.0, True, None, [3], {"id": 3}])
def test_ids_that_are_none(tmp_path, value):
    files = {
        "added_tokens.json": {"[SEG]": value},
        "tokenizer.json": {"added_tokens": [{"content": "[SEG]", "id": value}]},
        "tokenizer_config.json": {"added_tokens_decoder": {str(value): {"content": "[SEG]"}}},
    }
    for name, content in files.items():
        if name == "tokenizer_config.json" and value == "5":
            continue  # the way that file writes ids
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=rf"{name}: the id of \[SEG\] is "):
            find_token_id(folder, "[SEG]")


@pytest.mark.parametrize(
    "content", [[], 5, {"added_tokens": 5}, {"added_tokens_decoder": [1]}, {"model": {"vocab": 3}}]
)
def test_tokenizer_files_of_another_shape_name_no_token(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert find_token_id(tmp_path, "[SEG]") is None
