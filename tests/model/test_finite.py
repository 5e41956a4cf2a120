"""Weights that are NaN, infinite, too large for the precision, or no numbers at all, wherever weights are read."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints import load_any, read_state_dict
from model.mora import MoraModel
from tests.model.published_layout import SAM, edit, noise
from training.checkpoints.weights import fit_weights
from utils.errors import CheckpointError
from utils.tensors import is_finite, require_finite

WORDS = "language_model.model.embed_tokens.weight"
PARTS = (
    WORDS,
    "language_model.lm_head.weight",
    "language_model.model.norm.weight",
    "language_model.model.layers.1.mlp.down_proj.weight",
    "vision_tower.embeddings.class_embedding",
    "projector.layers.0.bias",
    "text_hidden_fcs.0.2.weight",
    "sam.vision_encoder.pos_embed",
    "sam.shared_image_embedding.positional_embedding",
    "sam.mask_decoder.iou_token.weight",
)


@pytest.fixture
def base(tmp_path, project_root):
    """A function that writes the tiny base with some tensors changed, as a folder."""
    source = project_root / "assets" / "tiny_base"

    def write(change=None, dtype=None, **config):
        folder = tmp_path / "base"
        folder.mkdir(exist_ok=True)
        stored = json.loads((source / "config.json").read_text())
        stored["text_config"].update(config)
        (folder / "config.json").write_text(json.dumps(stored))
        state = load_file(source / "model.safetensors")
        state = {name: tensor.to(dtype or tensor.dtype).clone() for name, tensor in state.items()}
        if change is not None:
            change(state)
        save_file(state, folder / "model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_anywhere_is_found(value, dtype):
    for shape in ((), (1,), (7,), (3, 5), (2, 3, 4, 5), (1000, 3)):
        tensor = torch.zeros(shape, dtype=dtype)
        assert is_finite(tensor)
        for index in {0, tensor.numel() // 2, tensor.numel() - 1}:
            bad = tensor.clone()
            bad.view(-1)[index] = value
            assert not is_finite(bad)
            assert not is_finite(bad.T if bad.dim() == 2 else bad)
    assert is_finite(torch.empty(0, 3, dtype=dtype))
    assert is_finite(torch.full((9,), torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_base_with_bad_values_is_refused_with_every_name(base, value):
    def spoil(state):
        for name in PARTS:
            state[name].view(-1)[-1] = value

    folder = base(spoil)
    with pytest.raises(CheckpointError, match="weights that are not finite") as error:
        load_any(folder)
    for name in PARTS:
        assert f"{name}: 1 of " in str(error.value)
    assert str(folder) in str(error.value) and f"({len(PARTS)} problems)" in str(error.value)
    with pytest.raises(CheckpointError, match=rf"{folder}.*not finite"):
        MoraModel.from_pretrained(folder)


def test_values_that_the_precision_cannot_hold(base):
    def enlarge(state):
        state[PARTS[3]][0, 0] = 1e5
        state[WORDS][0, 0] = -7e4

    folder = base(enlarge, dtype=torch.float32)
    with pytest.raises(CheckpointError) as error:
        load_any(folder, dtype=torch.float16)
    for name in (PARTS[3], WORDS):
        assert f"{name}: its values leave the range of float16" in str(error.value)
    assert "--precision bf16" in str(error.value)
    for dtype in (torch.bfloat16, torch.float32, None):
        assert load_any(folder, dtype=dtype)[0].get_input_embeddings().weight[0, 0] < -6e4


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_tensors_that_are_no_weights(base, dtype):
    def spoil(state):
        for name in (WORDS, PARTS[3]):
            state[name] = state[name].to(dtype)

    with pytest.raises(CheckpointError, match="quantised") as error:
        load_any(base(spoil))
    for name in (WORDS, PARTS[3]):
        assert f"{name}: holds {str(dtype).removeprefix('torch.')}, not floating" in str(error.value)


def test_tied_words_that_differ(base):
    """The head would silently be replaced by the embeddings."""
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_any(base(tie_word_embeddings=True))

    def tie(state):
        state["language_model.lm_head.weight"] = state[WORDS].clone()

    model, _ = load_any(base(tie, tie_word_embeddings=True))
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight


def test_the_published_layout_its_tower_and_its_sam(published, tmp_path):
    def spoilt(tensor):
        tensor.view(-1)[0] = math.nan
        return tensor

    edit(published, add={"model.norm.weight": spoilt(torch.ones(48))})
    tower = read_state_dict(published.parent / "tower")
    spoilt(tower["vision_model.embeddings.class_embedding"])
    save_file(tower, published.parent / "tower" / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_any(published)
    assert "language_model.model.norm.weight: 1 of 48" in str(error.value)
    assert "embeddings.class_embedding: 1 of 20" in str(error.value)
    edit(published, drop="model.visual_model", add={"model.norm.weight": torch.ones(48)})
    plain = noise(SAM, seed=7)
    spoilt(plain["image_encoder.neck.0.weight"])
    torch.save(plain, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"neck\.conv1\.weight: 1 of"):
        load_any(published, tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("dtype", "value", "message"), [(None, math.nan, "NaN or infinite"), (torch.float16, 1e5, "range of float16")]
)
def test_a_sam_that_fills_what_is_absent(published, tmp_path, dtype, value, message):
    edit(published, drop="model.visual_model")
    plain = noise(SAM, seed=7)
    plain["image_encoder.pos_embed"].view(-1)[3] = value
    torch.save(plain, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=rf"sam\.vision_encoder\.pos_embed: .*{message}"):
        load_any(published, tmp_path / "sam.pth", dtype=dtype)


def test_trained_weights_that_are_fitted_into_a_model(base):
    """--init_from and export take them from files that this project did not check when it wrote them."""
    model, _ = load_any(base(), dtype=torch.float16)
    norm = "language_model.model.norm.weight"
    for value, message in ((math.nan, "NaN"), (1e6, "range of float16")):
        before = model.get_parameter(norm).clone()
        with pytest.raises(CheckpointError, match=rf"file\.pt(.|\n)*{norm}: .*{message}"):
            fit_weights(model, {norm: torch.full((128,), value)}, "file.pt")
        assert torch.equal(model.get_parameter(norm), before)
    with pytest.raises(CheckpointError, match="no weights"):
        fit_weights(model, {norm: torch.ones(128, dtype=torch.int64)}, "file.pt")


def test_all_tensors_are_named_and_the_healthy_pass():
    require_finite([("a", torch.ones(3), torch.ones(3))], "file")
    with pytest.raises(CheckpointError, match=r"file.*\(2 problems\)(.|\n)*b: 2 of 3(.|\n)*c: 1 of 1"):
        bad = {"a": torch.ones(3), "b": torch.tensor([1, math.nan, math.inf]), "c": torch.tensor(math.nan)}
        require_finite(((name, value, value) for name, value in bad.items()), "file")
