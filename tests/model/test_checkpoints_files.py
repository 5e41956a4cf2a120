"""Weight files: what is read, and what is refused with a message that names the file and the remedy."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model import presets
from model.checkpoints import load_any, read_state_dict
from model.checkpoints.lisa import find_token_id
from model.mora import MoraModel
from utils.errors import CheckpointError, ConfigError


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {f"layer.{index}.weight": torch.randn(40, 30, generator=generator) for index in range(6)}
    return state | {"half": torch.randn(9, generator=generator).half(), "count": torch.tensor(3)}


def write_shards(folder: Path, tensors: dict, suffix: str) -> list[Path]:
    """Two shards with their index, as save_pretrained writes them."""
    folder.mkdir(exist_ok=True)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = sorted(tensors)
    parts = {f"{stem}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, part in parts.items():
        state = {name: tensors[name] for name in part}
        if suffix == "safetensors":
            save_file(state, folder / file)
        else:
            torch.save(state, folder / file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: file for file, part in parts.items() for name in part},
    }
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return [folder / file for file in parts]


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def test_every_format_reads_the_same(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pt")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "wrapped.pth")
    for name in ("a.safetensors", "b.pt", "old.bin", "wrapped.pth"):
        assert same(read_state_dict(tmp_path / name), tensors), name
    for suffix in ("safetensors", "bin"):
        write_shards(tmp_path / suffix, tensors, suffix)
        assert same(read_state_dict(tmp_path / suffix), tensors)
    lone = tmp_path / "lone"
    lone.mkdir()
    torch.save(tensors, lone / "fp32_model_state.pt")
    assert same(read_state_dict(lone), tensors)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_damaged_shards(tmp_path, tensors, suffix):
    shards = write_shards(tmp_path, tensors, suffix)
    whole = shards[1].read_bytes()
    for keep in (len(whole) // 2, 30, 0):
        shards[1].write_bytes(whole[:keep])
        with pytest.raises(CheckpointError) as error:
            read_state_dict(tmp_path)
        message = str(error.value)
        assert shards[1].name in message and f"{keep:,} bytes" in message and "download" in message
        assert f"counts {sum(tensor.nbytes for tensor in tensors.values()):,} bytes" in message
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name}: missing shard"):
        read_state_dict(tmp_path)


def test_index_and_shards_must_agree(tmp_path, tensors):
    shards = write_shards(tmp_path, tensors, "safetensors")
    save_file({"stranger": torch.zeros(2)}, shards[0])
    with pytest.raises(CheckpointError) as error:
        read_state_dict(tmp_path)
    assert "lacks count" in str(error.value) and "holds stranger" in str(error.value)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no `weight_map`"):
        read_state_dict(tmp_path)
    index.write_text('{"weight_map": ')
    with pytest.raises(CheckpointError, match="line 1"):
        read_state_dict(index)


class Harmful:
    """A pickle that would make a file when opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_is_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"weight": torch.zeros(2), "x": Harmful(trace)}, tmp_path / "new.pt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"x": Harmful(trace)}))
    for name in ("new.pt", "old.bin"):
        with pytest.raises(CheckpointError, match=f"{name}: refused"):
            read_state_dict(tmp_path / name)
    assert not trace.exists()


def test_what_is_no_weights(tmp_path, tensors):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "weight": torch.zeros(1)}, tmp_path / "mixed.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("list.pt", "holds a list"),
        ("mixed.pt", "it holds epoch"),
        ("noise.safetensors", "truncated or damaged at 100 bytes"),
        ("empty", "no weights; expected model.safetensors"),
        ("absent.pt", "no such file"),
        (".", "several weight files and no index"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / name)


def test_text_is_called_text(tmp_path):
    texts = {
        "run.json": ('{"weight": [1, 2]}', "a JSON file, not weights"),
        "list.pt": ("\ufeff[1, 2]\n", "a JSON file, not weights"),
        "notes.txt": ("Gewichte für später", "a text file, not weights"),
    }
    for name, (text, message) in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=f"{name}: {message}; name a .safetensors"):
            read_state_dict(tmp_path / name)


def test_deepspeed_folders(tmp_path):
    (tmp_path / "global_step5").mkdir()
    (tmp_path / "global_step5" / "mp_rank_00_model_states.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="latest: missing, though global_step5 is there"):
        read_state_dict(tmp_path)
    with pytest.raises(CheckpointError, match="latest: missing, though mp_rank_00"):
        read_state_dict(tmp_path / "global_step5")
    (tmp_path / "latest").write_text("global_step5")
    with pytest.raises(CheckpointError, match="merge_lora_weights_and_save_hf_model.py .*--weight"):
        read_state_dict(tmp_path)


def test_token_ids(tmp_path):
    assert find_token_id(tmp_path, "[SEG]") is None
    decoder = {"added_tokens_decoder": {"7": {"content": "[SEG]"}, "8": {"content": "<pad>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(decoder))
    assert find_token_id(tmp_path, "[SEG]") == 7
    content = {"added_tokens": [{"id": 9, "content": "[SEG]"}], "model": {"vocab": {"[LOC]": 4, "a": 0}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert find_token_id(tmp_path, "[SEG]") == 9
    assert find_token_id(tmp_path, "[LOC]") == 4
    (tmp_path / "added_tokens.json").write_text('{"[SEG]": 0}')
    assert find_token_id(tmp_path, "[SEG]") == 0
    assert find_token_id(tmp_path, "<im_start>") is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[MoraModel, Path]:
    """A tiny model and its save_pretrained folder, in several shards."""
    sizes = {"llm_hidden": 32, "llm_layers": 1, "clip_layers": 1, "sam_layers": 1, "loc_hidden_size": 16}
    config = presets.tiny(**sizes, vocab_size=50, seg_token_id=5, loc_token_id=6)
    model = presets.build(config, seed=2)
    folder = tmp_path_factory.mktemp("own") / "model"
    model.save_pretrained(folder, max_shard_size="500KB")
    return model, folder


def test_own_folder_comes_back(saved):
    model, folder = saved
    assert (folder / "model.safetensors.index.json").is_file()
    loaded, report = load_any(folder)
    assert not (report.missing or report.unexpected or report.mismatched or report.initialised or report.ignored)
    assert same(loaded.state_dict(), model.state_dict())
    ours, theirs = loaded.config.to_dict(), model.config.to_dict()
    for config in (ours, theirs):
        del config["architectures"], config["dtype"]  # written by save_pretrained
    assert ours == theirs
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert trained == {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}


def test_own_folder_and_its_localization_head(saved, tmp_path):
    model, folder = saved
    without, report = load_any(folder, loc_mode="none")
    assert not hasattr(without, "loc_head") and any(name.startswith("loc_head.") for name in report.ignored)
    with pytest.raises(ConfigError, match="a head for 'frame' is another network"):
        load_any(folder, loc_mode="frame", visual_mode="frame")
    without.save_pretrained(tmp_path / "seg_only")
    fresh, report = load_any(tmp_path / "seg_only", loc_mode="frame", visual_mode="frame", seed=1)
    assert report.initialised == ["loc_head.mlp.0", "loc_head.mlp.2"]
    assert fresh.loc_head.mlp[0].weight.std() > 0
    assert torch.equal(fresh.text_hidden_fcs[0][0].weight, model.text_hidden_fcs[0][0].weight)


def test_a_tower_or_sam_that_is_not_there_or_not_used(saved, tmp_path):
    """The folder brings both, so neither path is needed; a wrong one is refused all the same, a right one named."""
    model, folder = saved
    with pytest.raises(CheckpointError, match="--vision-tower /nowhere/clip: no such file or folder"):
        load_any(folder, vision_tower="/nowhere/clip")
    with pytest.raises(CheckpointError, match="--vision_pretrained sam.pth: no such file or folder"):
        load_any(folder, "sam.pth")
    model.vision_tower.save_pretrained(tmp_path / "clip")
    torch.save(model.sam.state_dict(), tmp_path / "sam.pth")
    _, report = load_any(folder, tmp_path / "sam.pth", tmp_path / "clip")
    assert [note for note in report.notes if "NOT USED" in note] == [
        f"{tmp_path / 'clip'} NOT USED: the checkpoint brings its vision tower",
        f"{tmp_path / 'sam.pth'} NOT USED: the checkpoint brings all of SAM, trained",
    ]
    _, report = load_any(folder, vision_tower="openai/clip-vit-large-patch14")  # not fetched
    assert "openai/clip-vit-large-patch14 NOT USED" in str(report)


def test_something_else_where_a_sam_or_a_tower_is_expected(saved, tmp_path):
    """A wrong file is noticed on the first run, not on the first run that needs it."""
    model, folder = saved
    clip, sam = tmp_path / "clip", tmp_path / "sam.pth"
    model.vision_tower.save_pretrained(clip)
    torch.save(model.sam.state_dict(), sam)
    (tmp_path / "notes.pth").write_text("to do")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "half.pth").write_bytes(sam.read_bytes()[: sam.stat().st_size // 2])
    (tmp_path / "empty").mkdir()
    names = {
        "image_encoder.patch_embed.seq.0.c.weight": torch.zeros(2),
        "mask_decoder.iou_token.weight": torch.zeros(2),
    }
    torch.save(names, tmp_path / "other_sam.pth")
    for name in ("notes.pth", "pointer.pth", "noise.pth", "half.pth", "empty", "clip", "other_sam.pth"):
        with pytest.raises(CheckpointError, match=str(tmp_path / name)):
            load_any(folder, vision_pretrained=tmp_path / name)
    (tmp_path / "sam_folder").mkdir()
    (tmp_path / "sam_folder" / "config.json").write_text('{"model_type": "clip_vision_model"}')
    save_file(model.sam.state_dict(), tmp_path / "sam_folder" / "model.safetensors")
    (tmp_path / "bare").mkdir()
    shutil.copy(clip / "config.json", tmp_path / "bare")
    for name in ("notes.pth", "sam.pth", "empty", "sam_folder", "bare"):
        with pytest.raises(CheckpointError, match=str(tmp_path / name)):
            load_any(folder, vision_tower=tmp_path / name)


def test_own_folder_must_be_complete(saved, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path)
    state = read_state_dict(tmp_path)
    del state["text_hidden_fcs.0.2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"text_hidden_fcs\.0\.2\.bias: missing"):
        load_any(tmp_path)
    loaded, report = load_any(tmp_path, allow_missing=["text_hidden_fcs.0.2.bias"])
    assert report.initialised == ["text_hidden_fcs.0.2"]
    assert torch.equal(loaded.text_hidden_fcs[0][2].weight, model.text_hidden_fcs[0][2].weight)
