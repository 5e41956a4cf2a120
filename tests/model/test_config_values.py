"""Values of config.json that cannot be used: an error with the file and the field, never a traceback or a silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from model import fields, presets
from model.checkpoints import load_any
from tests.model.published_layout import CONFIG
from utils.errors import CheckpointError, ConfigError, MoraError

HUGE = 10**12
NUMBERS = ["x", "", "1e-6", [], [1], {}, {"a": 1}, True, False, -1, -0.5]
SIZES = [*NUMBERS, None, 0, 0.5, 2.0, HUGE, 10**400]
EPSILONS = [*NUMBERS, None, 0, 0.0, 1, HUGE, "inf"]
FLAGS = ["x", "false", [], {}, -1, 0, 1, 0.5]
WORDS = ["", " ", 5, [], {}, True, None, "strange"]
TEXTS = ["", "  ", 5, [], {}, True, None]
OBJECTS = ["x", 5, [], [1], True]

DECODER = {
    **dict.fromkeys(
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"], SIZES
    ),
    "num_key_value_heads": [each for each in SIZES if each is not None] + [3],
    "head_dim": [each for each in SIZES if each is not None] + [31],
    "max_position_embeddings": SIZES,
    "rms_norm_eps": EPSILONS,
    "initializer_range": EPSILONS,
    "hidden_act": WORDS,
    "tie_word_embeddings": FLAGS,
    "attention_bias": FLAGS,
    "pad_token_id": ["x", [], {}, True, -2, 0.5, 640, HUGE],
    "eos_token_id": ["x", ["x"], {}, True, -2, 0.5, HUGE],
    "rope_theta": [each for each in EPSILONS if each is not None],
    "rope_scaling": ["x", [1], 5, True, {"type": "strange"}, {"type": "linear", "factor": "x"},
                     {"type": "linear", "factor": 0.5}, {"type": "linear"}, {"type": ["linear"]}],
    "dtype": ["x", "", [], {}, 5, True, "int64", "float99"],
}  # fmt: skip
TOWER = {
    **dict.fromkeys(
        ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"],
        SIZES,
    ),
    "num_channels": [*SIZES, 1, 4],
    "layer_norm_eps": EPSILONS,
    "initializer_range": EPSILONS,
    "hidden_act": WORDS,
    "attention_dropout": ["x", [], {}, True, -0.5, 1, 2],
}
OWN = {
    **{("text_config", name): values for name, values in DECODER.items()},
    ("text_config", "rope_parameters"): [{"rope_theta": each} for each in EPSILONS] + DECODER["rope_scaling"][:5],
    ("text_config", "model_type"): ["mistral", 5, None],
    ("text_config", "per_layer_config"): [{"0": {"hidden_size": 3}}],
    ("text_config", "return_dict"): [False, "x"],
    ("text_config", "output_hidden_states"): [True, "x"],
    **{("vision_config", name): values for name, values in TOWER.items()},
    ("sam_config", "model_type"): ["sam2", []],
    **{("sam_config", "vision_config", name): values for name, values in TOWER.items() if name != "intermediate_size"},
    ("sam_config", "vision_config", "output_channels"): [*SIZES, 95],
    ("sam_config", "vision_config", "num_pos_feats"): [*SIZES, 47],
    ("sam_config", "vision_config", "window_size"): [each for each in SIZES if each != 0],
    ("sam_config", "vision_config", "global_attn_indexes"): ["x", 5, None, {}, [-1], ["x"], [0.0], [3], [HUGE]],
    ("sam_config", "vision_config", "use_rel_pos"): FLAGS,
    **{("sam_config", "prompt_encoder_config", name): SIZES
       for name in ("hidden_size", "image_size", "patch_size", "image_embedding_size", "num_point_embeddings")},
    ("sam_config", "prompt_encoder_config", "layer_norm_eps"): EPSILONS,
    **{("sam_config", "mask_decoder_config", name): SIZES
       for name in ("hidden_size", "mlp_dim", "num_hidden_layers", "num_attention_heads", "attention_downsample_rate",
                    "num_multimask_outputs", "iou_head_depth", "iou_head_hidden_dim")},
    ("sam_config", "mask_decoder_config", "num_attention_heads"): [*SIZES, 5],
    **{("sam_config", part): OBJECTS for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config")},
    **{(part,): OBJECTS for part in ("text_config", "vision_config", "sam_config")},
    **{(name,): [*WORDS, "Frame"] for name in ("backbone", "projector", "visual_mode", "loc_mode", "template",
                                               "tokenization", "clip_resize", "answer_style", "initialization")},
    ("projector_shuffle",): [*SIZES, 3],
    ("projector_hidden_size",): [each for each in SIZES if each is not None],
    ("projector_motion",): FLAGS,
    ("frame_time_embedding",): FLAGS,
    ("vision_select_layer",): [*NUMBERS[:-2], None, -5, 4, 0.5, HUGE, -HUGE],
    ("loc_hidden_size",): SIZES,
    ("out_dim",): [*SIZES, 95],
    ("seg_token",): [*TEXTS, "[LOC]"],
    ("loc_token",): [*TEXTS, "[SEG]"],
    ("seg_token_id",): ["x", "3", [], [3], {}, True, -1, 3.0, 640, HUGE],
    ("loc_token_id",): ["x", "3", [], [3], {}, True, -1, 3.5, 3, 640, HUGE],
    ("tie_word_embeddings",): FLAGS,
    ("dtype",): DECODER["dtype"],
    ("torch_dtype",): DECODER["dtype"],
    ("colour",): ["red", None],
    ("visual_modus",): ["frame"],
}  # fmt: skip
PUBLISHED = {
    **{name: values for name, values in DECODER.items() if name not in ("vocab_size", "dtype")},
    "vocab_size": NUMBERS,
    "mm_vision_select_layer": [*NUMBERS[:-2], None, -5, 3, 0.5, HUGE],
    "mm_vision_select_feature": [*WORDS, "cls_patch"],
    "train_mask_decoder": FLAGS,
    "vision_tower": ["", 5, [], {}, True, None, "nowhere", "a\0b", "x" * 5000, "/dev/null"],
    "num_key_value_heads": [each for each in SIZES if each is not None],
    "out_dim": [each for each in SIZES if each is not None],
    "model_type": [*WORDS, "llama"],
}


def put(path: Path, keys: tuple[str, ...], value: object, content: dict) -> None:
    """Write ``content`` as JSON with one value changed; "inf" is written as a number too large for a float."""
    content = json.loads(json.dumps(content))
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content).replace('"inf"', "1e999"))


def refused(folder: Path, words: tuple[str, ...]) -> str | None:
    """What is wrong with how the folder is refused; None if it is right."""
    try:
        load_any(folder)
    except MoraError as error:
        missing = [word for word in words if word not in str(error)]
        return f"says nothing of {missing}: {error}" if missing else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.fixture
def own(tmp_path, project_root) -> Path:
    """A copy of the tiny base; only config.json may be written to."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in (project_root / "assets" / "tiny_base").iterdir():
        if file.name == "config.json":
            shutil.copy(file, folder)
        else:
            (folder / file.name).symlink_to(file)
    return folder


@pytest.mark.parametrize("keys", OWN, ids=".".join)
def test_our_own_folder(own, keys):
    stored = json.loads((own / "config.json").read_text())
    wrong = []
    for value in OWN[keys]:
        put(own / "config.json", keys, value, stored)
        if answer := refused(own, (f"{own}/config.json", keys[-1])):
            wrong.append(f"{value!r:.40}: {answer:.300}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_published_layout(published, key):
    wrong = []
    for value in PUBLISHED[key]:
        put(published / "config.json", (key,), value, CONFIG)
        away = key == "vision_tower" and isinstance(value, str) and value  # the name is right, nothing is there
        words = ("no such folder",) if away else (f"{published}/config.json", key.removeprefix("mm_"))
        if answer := refused(published, words):
            wrong.append(f"{value!r:.40}: {answer:.300}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("key", TOWER)
def test_the_vision_tower(published, key):
    path = published.parent / "tower" / "config.json"
    content = json.loads(path.read_text())
    wrong = []
    for number, value in enumerate(TOWER[key]):
        if number % 2:
            put(path, ("vision_config", key), value, content)
        else:  # CLIPVisionModel's own file
            put(path, (key,), value, {**content["vision_config"], "model_type": "clip_vision_model"})
        if answer := refused(published, (str(path), key)):
            wrong.append(f"{value!r:.40}: {answer:.300}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("key", "values"), [("model_type", [*WORDS, "siglip"]), ("vision_config", OBJECTS)])
def test_the_kind_of_the_vision_tower(published, key, values):
    path = published.parent / "tower" / "config.json"
    content = json.loads(path.read_text())
    for value in values:
        put(path, (key,), value, content)
        assert refused(published, (str(path), key)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"x"', "null", '{"a": NaN}', "9" * 5000, "\0", "\ufeff{}"])
def test_what_is_no_object(own, text):
    (own / "config.json").write_text(text)
    assert refused(own, (f"{own}/config.json",)) is None


def test_all_mistakes_of_a_file_at_once(own):
    stored = json.loads((own / "config.json").read_text())
    stored["text_config"]["rms_norm_eps"] = -1e-6
    stored["vision_config"]["layer_norm_eps"] = "1e-5"
    stored["sam_config"]["mask_decoder_config"]["mlp_dim"] = None
    stored |= {"visual_mode": "movie", "seg_token": "", "colour": "red"}
    (own / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"\(6 problems\)") as error:
        load_any(own)
    for part in (
        "text_config.rms_norm_eps: is -1e-06; use a number above 0 and below 1",
        "vision_config.layer_norm_eps: is '1e-5'",
        "sam_config.mask_decoder_config.mlp_dim: is None; use a whole number from 1",
        "visual_mode: is 'movie'; use one of 'frame', 'pooled', 'video'",
        "seg_token: is ''; use a text that is not empty",
        "colour: not a field of MoraConfig",
    ):
        assert part in str(error.value)


def test_an_unknown_backbone_is_the_one_mistake(own):
    """What fields there may be depends on it; good ones must not be called wrong."""
    stored = json.loads((own / "config.json").read_text()) | {"backbone": "llama5"}
    (own / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"\(1 problem\)[^-]*- backbone: is 'llama5'; use one of 'llava'") as error:
        load_any(own)
    assert "projector" not in str(error.value)


def test_sizes_that_are_not_those_of_the_weights(own, published):
    """Said by field, before a network of that size is built."""
    stored = json.loads((own / "config.json").read_text())
    stored["text_config"] |= {"vocab_size": 1 << 23, "hidden_size": 1 << 16, "num_hidden_layers": 1000}
    stored["vision_config"] |= {"intermediate_size": 1 << 20}
    (own / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"sizes that are not those of the weights(.|\n)*\(4 problems\)") as error:
        load_any(own)
    assert "vocab_size is 8388608, but language_model.model.embed_tokens.weight is [640, 128]" in str(error.value)
    assert "num_hidden_layers is 1000, but the weights have 4 layers" in str(error.value)
    put(published / "config.json", ("intermediate_size",), 81, CONFIG)
    tower = published.parent / "tower" / "config.json"
    put(tower, ("vision_config", "num_hidden_layers"), 3, json.loads(tower.read_text()))
    with pytest.raises(ConfigError) as error:
        load_any(published)
    assert f"{published}/config.json: intermediate_size is 81" in str(error.value)
    assert f"{tower}: num_hidden_layers is 3, but the weights have 2 layers" in str(error.value)


def test_what_other_programs_write_stays_usable():
    """Nulls, whole numbers for real ones, RoPE in the ways of transformers 4 and 5, ids outside the vocabulary."""
    for more in (
        {"rope_theta": 500000, "rope_scaling": None, "num_key_value_heads": None, "attention_dropout": 0},
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 10000.0, "eos_token_id": [1, 2]},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e6}, "pad_token_id": -1},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192, "rope_theta": 5e5}},
    ):  # fmt: skip
        text = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
        assert presets.tiny(text_config={**text, **more}).text_config.hidden_size == 16
    for config in (presets.lisa_7b(), presets.tiny()):
        assert type(config)(**config.to_dict()).to_dict() == config.to_dict()


def test_every_field_of_the_libraries_that_shapes_a_network_has_a_rule():
    """A new version of transformers that adds one is noticed here."""
    common = set(LlamaConfig().to_dict()) & set(CLIPVisionConfig().to_dict())
    known = {*fields.COMMON, "pretraining_tp", "attention_dropout", "initializer_range", "model_type"}
    assert set(LlamaConfig().to_dict()) - common - set(fields.LLAMA) <= known
    assert set(CLIPVisionConfig().to_dict()) - common - set(fields.CLIP) <= known


def test_a_missing_folder_stays_a_missing_folder():
    with pytest.raises(CheckpointError, match="no such folder"):
        load_any("x" * 5000)
