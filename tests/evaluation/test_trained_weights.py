"""Trained weights over a published Qwen3-VL: every way they have been named gives the model that was trained."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from datasets.tokenization import load_tokenizer
from evaluate_groundmore import main as evaluate_either
from evaluate_groundmore_qwen import main as evaluate_qwen
from evaluation.engine.opening import load_model
from evaluation.records import read_record
from evaluation.settings import parse_arguments
from model.checkpoints import PROVENANCE, Adapters, Provenance, load_any, network_of
from tests.model.published_layout import write_published
from tests.model.published_qwen import ROWS, join, write_qwen
from utils.errors import CheckpointError, ConfigError, MoraError

PIXELS = {"min_pixels": 1024, "max_pixels": 2048}
SEG, LOC = 640, 641
"""The first free ids of the base's tokenizer."""


class Place:
    """A base with its SAM, weights that were trained on it, and the model that they are.

    Attributes:
        model: every tensor; what was trained differs from the base.
        adapters: LoRA of the model, plain names to matrices; they are merged in ``model``.
        trained: plain names of what was trained, merged.
    """

    def __init__(self, folder, assets, **sizes):
        self.folder = folder
        tokenizer = folder / "tokenizer"
        shutil.copytree(assets / "tiny_qwen_tokenizer", tokenizer)
        text = (tokenizer / "tokenizer.json").read_text()
        (tokenizer / "tokenizer.json").write_text(text.replace("[SEG]", "<one>").replace("[LOC]", "<two>"))
        self.base = write_qwen(folder, tokenizer, **sizes)
        self.sam = folder / "sam.pth"
        self.model, report = load_any(self.base, self.sam, loc_mode="global", digest=True, seed=3)
        self.digests = report.digests
        generator = torch.Generator().manual_seed(9)
        noise = lambda *shape: 0.1 * torch.randn(shape, generator=generator)  # noqa: E731
        self.trained, self.adapters = set(), {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if re.search(r"embed_tokens|lm_head|text_hidden_fcs|loc_head|sam\.mask_decoder", name):
                    parameter.add_(noise(*parameter.shape))
                    self.trained.add(name)
                elif re.search(r"language_model\.layers.*[qv]_proj", name):
                    rows, columns = parameter.shape
                    up, down = noise(rows, 4), noise(4, columns)
                    parameter.add_(2.0 * (up @ down))
                    self.adapters |= {
                        name.replace(".weight", f".lora_{x}.weight"): m for x, m in (("A", down), ("B", up))
                    }
                    self.trained.add(name)
        self.model.config.seg_token_id, self.model.config.loc_token_id = SEG, LOC

    def weights(self, trained_only: bool = False) -> dict[str, torch.Tensor]:
        """The merged model's tensors by our names."""
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return {name: state[name] for name in self.trained} if trained_only else state

    def unmerged(self) -> dict[str, torch.Tensor]:
        """All tensors, LoRA beside matrices that are the base's."""
        base = load_any(self.base, self.sam, loc_mode="global")[0].state_dict()
        kept = {name.replace(".lora_A", "") for name in self.adapters if ".lora_A" in name}
        return {name: base[name].clone() if name in kept else t for name, t in self.weights().items()} | self.adapters

    def provenance(self, **changes) -> Provenance:
        told = load_tokenizer(self.base)
        told.add_tokens(["[SEG]", "[LOC]"])
        network = {**network_of(self.model.config), **PIXELS}
        adapters = Adapters(4, 8.0, ("q_proj", "v_proj"))
        made = Provenance(network, adapters, "default", self.digests, str(self.base), told.digest())
        return dataclasses.replace(made, **changes)

    def open(self, weight, *more, pixels: bool = True):
        """What the program opens."""
        flags = [f"--{name}={value}" for name, value in PIXELS.items()] if pixels else []
        settings = parse_arguments([
            "--version", str(self.base), "--vision_pretrained", str(self.sam), "--weight", str(weight), "--precision",
            "fp32", "--device", "cpu", "--meta_file", str(self.meta), "--video_root", str(self.root), "--output_dir",
            str(self.folder / "unused"), *flags, *more,
        ])  # fmt: skip
        return load_model(settings.model, settings.compute)[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory, project_root, corpus_paths):
    made = Place(tmp_path_factory.mktemp("place"), project_root / "assets")
    made.meta, made.root = corpus_paths
    return made


def save(state, path):
    torch.save(state, path)
    return path


def shards(state, folder, parts: int = 3):
    """A folder as zero_to_fp32.py writes it."""
    folder.mkdir()
    names, table = sorted(state), {}
    for number in range(parts):
        file = f"pytorch_model-{number + 1:05d}-of-{parts:05d}.bin"
        torch.save({name: state[name] for name in names[number::parts]}, folder / file)
        table |= {name: file for name in names[number::parts]}
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def require_same(model, wanted):
    own = model.state_dict()
    assert own.keys() == wanted.keys()
    unequal = [name for name, value in wanted.items() if not torch.equal(own[name], value)]
    assert not unequal


ORIGINAL_SAM = [("sam.vision_encoder.", "sam.image_encoder.")]
WRAPPERS = {
    "full names": lambda name: name,
    "distributed": lambda name: f"module.{name}",
    "peft around all": lambda name: f"base_model.model.{name}",
    "own attribute": lambda name: name.replace("language_model.", "qwen_vl.", 1),
    "published names": lambda name: name.removeprefix("language_model."),
    "peft around the language model": lambda name: name.replace("language_model.", "model.base_model.model.", 1),
    "parts at the top": lambda name: re.sub(
        r"^language_model\.(?:model\.(?=visual))?", "", name.replace("model.language_model.layers", "model.layers")
    ),
    "decoder at the top": lambda name: name.replace("language_model.model.language_model.", "model.").replace(
        "language_model.model.visual.", "visual."
    ),
    "below a model": lambda name: f"model.{name}" if name.startswith(("text_hidden", "loc_head")) else name.replace(
        "sam.", "model.visual_model."
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_merged_weights_by_every_name(place, tmp_path, wrapper):
    renamed = {WRAPPERS[wrapper](name): tensor for name, tensor in place.weights().items()}
    require_same(place.open(shards(renamed, tmp_path / "w")), place.weights())


PEFT = {
    "merge_lora's": lambda name: name,
    "wrapped matrices": lambda name: re.sub(r"([qv]_proj)\.weight$", r"\1.base_layer.weight", name),
    "named adapters": lambda name: re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", name),
    "saved modules": lambda name: re.sub(
        r"(embed_tokens|lm_head)\.weight$", r"\1.modules_to_save.default.weight", name
    ),
}


@pytest.mark.parametrize("spelling", PEFT)
def test_adapters_are_merged(place, tmp_path, spelling):
    state = {f"base_model.model.{PEFT[spelling](name)}": tensor for name, tensor in place.unmerged().items()}
    if spelling == "saved modules":
        state["base_model.model.language_model.lm_head.original_module.weight"] = torch.zeros(ROWS, 64)
    weight = save(state, tmp_path / "w.bin")
    require_same(place.open(weight, "--lora_alpha", "8"), place.weights())
    if spelling == "saved modules":
        other, right = place.open(weight, "--lora_alpha", "16").state_dict(), place.weights()
        changed = {name.split(".")[-2] for name in other if not torch.equal(other[name], right[name])}
        assert changed == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="--lora_alpha: .*rank 4 and does not say"):
        place.open(weight)


@pytest.mark.parametrize("row", [".token_rows", ".token_adapter.trainable_tokens_delta", "peft"])
def test_rows_of_new_words(place, tmp_path, row):
    state = place.weights()
    for part in ("language_model.model.language_model.embed_tokens", "language_model.lm_head"):
        matrix = state.pop(f"{part}.weight")
        inner = f"{part}.base_layer.weight" if row == ".token_rows" else f"{part}.token_adapter.base_layer.weight"
        state[f"{part}{'.token_adapter.trainable_tokens_delta.default' if row == 'peft' else row}"] = matrix[[SEG, LOC]]
        state[inner] = matrix.clone()
        state[inner][[SEG, LOC]] = 7.0
    require_same(place.open(save(state, tmp_path / "w.bin")), place.weights())
    state[next(name for name in state if name.endswith(("rows", "delta", "default")))] = torch.zeros(3, 64)
    with pytest.raises(CheckpointError, match=r"rows \[3, 64\] for the tokens \[640, 641\]"):
        place.open(save(state, tmp_path / "w.bin"))


def test_a_vocabulary_that_was_cut(place, tmp_path):
    state = place.weights()
    for name in ("language_model.model.language_model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[name] = state[name][: LOC + 1].clone()
    model = place.open(save(state, tmp_path / "w.bin"))
    assert model.config.text_config.vocab_size == LOC + 1 == len(model.get_input_embeddings().weight)
    require_same(model, state)
    short = {name: t[:LOC].clone() if len(t) == LOC + 1 else t for name, t in state.items()}
    with pytest.raises(
        CheckpointError, match=r"have 641 rows, and \[SEG\] and \[LOC\] would have the ids \[640, 641\]"
    ):
        place.open(save(short, tmp_path / "w.bin"))


def test_words_without_their_head(place, tmp_path):
    state = {name: tensor for name, tensor in place.weights().items() if "lm_head" not in name}
    with pytest.raises(CheckpointError, match="word embeddings and no language head.*foreign head"):
        place.open(save(state, tmp_path / "w.bin"))
    neither = {name: tensor for name, tensor in state.items() if "embed_tokens" not in name}
    with pytest.raises(CheckpointError, match=r"brings no word embeddings, and the base's tokenizer lacks \[SEG\]"):
        place.open(save(neither, tmp_path / "w.bin"))


def test_a_tied_base(tmp_path, project_root, corpus_paths):
    place = Place(tmp_path, project_root / "assets", tied=True)
    place.meta, place.root = corpus_paths
    head = "language_model.lm_head.weight"
    both = place.weights()
    one = {name: tensor for name, tensor in both.items() if name != head}
    for state in (both, one):
        model = place.open(save(state, tmp_path / "w.bin"))
        require_same(model, both)
        assert model.backbone.vocabulary[0].weight is model.backbone.vocabulary[1].weight
    stored = join(place.base)  # a base that holds the one matrix under both names
    stored["lm_head.weight"] = stored["model.language_model.embed_tokens.weight"].clone()
    save_file(stored, place.base / "model.safetensors", {"format": "pt"})
    require_same(place.open(save(one, tmp_path / "w.bin")), both)
    with pytest.raises(CheckpointError, match="lm_head.weight differs from the word embeddings"):
        place.open(save({**both, head: both[head] + 1}, tmp_path / "w.bin"))


def test_strangers_are_listed_by_family(place, tmp_path):
    state = {re.sub(r"^sam\.", "grounding.", name): tensor for name, tensor in place.weights().items()}
    count = sum(name.startswith("grounding") for name in state)
    weight = save(state, tmp_path / "w.bin")
    with pytest.raises(CheckpointError) as failed:
        place.open(weight)
    said = str(failed.value)
    assert f"{count} of its {len(state)} tensors have no place on the backbone 'qwen3_vl'" in said
    assert "grounding.mask_decoder" in said and "language_model.lm_head 1" in said
    base_sam = place.open(weight, "--allow_unexpected", "grounding.*").state_dict()
    assert not torch.equal(
        base_sam["sam.mask_decoder.iou_token.weight"], place.weights()["sam.mask_decoder.iou_token.weight"]
    )
    deep = {**place.weights(), "language_model.model.language_model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="layers.9.mlp.up_proj.weight.*has no place in the model"):
        place.open(save(deep, tmp_path / "w.bin"))


def test_names_that_are_two_tensors(place, tmp_path):
    state = place.weights()
    state["module.model.visual.pos_embed.weight"] = state["language_model.model.visual.pos_embed.weight"]
    with pytest.raises(CheckpointError, match="visual.pos_embed.weight: stored as .* and as .*"):
        place.open(save(state, tmp_path / "w.bin"))


def test_an_untrained_part_is_refused(place, tmp_path, capsys):
    state = {name: tensor for name, tensor in place.weights().items() if not name.startswith("text_hidden_fcs.0.2")}
    with pytest.raises(CheckpointError, match=r"no weights for text_hidden_fcs\.0\.2"):
        place.open(save(state, tmp_path / "w.bin"))
    flags = ["--version", str(place.base), "--vision_pretrained", str(place.sam), "--meta_file", str(place.meta),
             "--video_root", str(place.root), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]  # fmt: skip
    for program in (evaluate_either, evaluate_qwen):
        assert program(flags) == 2
        assert "no weights for text_hidden_fcs" in capsys.readouterr().err


def test_provenance_counts(place, tmp_path):
    state = {n: t for n, t in place.unmerged().items() if ".lora_" in n or n in place.trained and "_proj" not in n}
    state |= {name: tensor for name, tensor in place.weights(True).items() if "sam." in name}

    def opened(*more, **changes):
        told = {**state, PROVENANCE: place.provenance(**changes).as_tensor()}
        return place.open(save(told, tmp_path / "w.pt"), *more, pixels=False)

    network = {**place.provenance().network, "readout": "at", "timestamps": True}
    model = opened(network=network)
    require_same(model, place.weights())
    assert (model.config.readout, model.config.timestamps, model.config.max_pixels) == ("at", True, 2048)
    assert opened("--max_pixels", "4096", "--readout", "before").config.max_pixels == 4096
    with pytest.raises(ConfigError) as failed:
        opened("--readout", "at", "--timestamps", "--loc_mode", "frame", "--conv_type", "plain")
    for line in ("--readout at: ", "--timestamps: ", "--loc_mode frame: ", "--conv_type plain: not for the backbone"):
        assert line in str(failed.value)
    with pytest.raises(CheckpointError, match=r"text_config.rms_norm_eps: trained with 0.1, here 1e-06"):
        opened(network={**network, "text_config": {**network["text_config"], "rms_norm_eps": 0.1}})
    with pytest.raises(CheckpointError, match=r"another base .*other weights in sam\)"):
        opened(base={**place.digests, "sam": "0" * 16})
    with pytest.raises(CheckpointError, match="tokenizer: another one"):
        opened(tokenizer="0" * 16)
    with pytest.raises(ConfigError, match="trained on the backbone llava, and .* has qwen3_vl"):
        opened(network={**network, "backbone": "llava"})
    with pytest.raises(ConfigError, match="--lora_alpha: .*trained with 8; leave"):
        opened("--lora_alpha", "16")
    dropped = "language_model.model.language_model.layers.1.self_attn.v_proj.lora_{}.weight"
    del state[dropped.format("A")], state[dropped.format("B")]
    with pytest.raises(CheckpointError, match=r"lacks 1 of the .*language_model.model.language_model 1\)"):
        opened()


def test_masks_are_those_of_the_merged_model(place, tmp_path, capsys):
    merged = tmp_path / "merged"
    place.model.config.update(PIXELS)
    place.model.save_pretrained(merged)
    place.model.config.update({"min_pixels": 200704, "max_pixels": 802816})
    tokenizer = load_tokenizer(place.base)
    tokenizer.add_tokens(["[SEG]", "[LOC]"])
    tokenizer.save(merged)
    published = {WRAPPERS["published names"](name): tensor for name, tensor in place.unmerged().items()}
    common = ["--meta_file", str(place.meta), "--video_root", str(place.root), "--num_frames", "3", "--workers", "0",
              "--precision", "fp32", "--device", "cpu", "--pictures", "0", "--limit", "1"]  # fmt: skip
    base = ["--version", str(place.base), "--vision_pretrained", str(place.sam), "--lora_alpha", "8", "--weight",
            str(shards(published, tmp_path / "w")), "--loc_mode", "global",
            *(f"--{name}={value}" for name, value in PIXELS.items())]  # fmt: skip
    forced = ["--answer_mode", "forced", "--use_loc_refine", "--loc_threshold", "0.5"]
    assert evaluate_either(["--version", str(merged), *forced, *common, "--output_dir", str(tmp_path / "a")]) == 0
    assert evaluate_qwen([*base, *common, "--output_dir", str(tmp_path / "b")]) == 0
    assert evaluate_either([*base, *forced, *common, "--output_dir", str(tmp_path / "c")]) == 0
    assert "NOT CHECKED" in capsys.readouterr().out
    runs = [json.loads((tmp_path / out / "run.json").read_text())["settings"] for out in "abc"]
    assert runs[1] == runs[2] and {**runs[0], "network": runs[1]["network"]} == runs[1], "one model by one protocol"
    for query in ("0", "1"):
        first, *others = (read_record(tmp_path / out, "alpha_0000_0004", query) for out in "abc")
        assert first.ok and first.answers == ["[SEG], [LOC]<|im_end|>"]
        for record in others:
            assert (record.masks, record.loc_probs) == (first.masks, first.loc_probs)
    assert evaluate_qwen([*base, *common, "--output_dir", str(tmp_path / "b"), "--max_pixels", "4096"]) == 2
    assert "network" in capsys.readouterr().err
    assert evaluate_qwen([*base, *common, "--output_dir", str(tmp_path / "d"), "--seg_only", "--question", "0"]) == 0
    assert read_record(tmp_path / "d", "alpha_0000_0004", "0").loc_probs is None
    protocol = json.loads((tmp_path / "b" / "summary.json").read_text())["protocol"]
    assert (protocol["answer_mode"], protocol["loc_refine"], protocol["loc_threshold"]) == ("forced", True, 0.5)


def test_each_published_choice_can_be_turned_off(place, tmp_path):
    from evaluate_groundmore_qwen import PUBLISHED
    from evaluation.settings import protocol_of

    more = ["--version", str(place.base), "--meta_file", str(place.meta), "--video_root", str(place.root),
            "--output_dir", str(tmp_path / "out"), "--backbone", "llava", "--answer_mode", "generate",
            "--no-use_loc_refine"]  # fmt: skip
    settings = parse_arguments([*PUBLISHED, *more])
    assert settings.model.backbone == "llava"
    assert protocol_of(settings).answer_mode == "generate" and not protocol_of(settings).loc_refine


def test_the_other_backbone_is_refused(place, tmp_path, capsys):
    lisa = write_published(tmp_path)
    flags = ["--meta_file", str(place.meta), "--video_root", str(place.root), "--output_dir", str(tmp_path / "out"),
             "--device", "cpu", "--version", str(lisa), "--conv_type", "llava_v1"]  # fmt: skip
    assert evaluate_qwen(flags) == 2
    assert "--backbone qwen3_vl: " in (said := capsys.readouterr().err) and "has the backbone llava" in said
    weight = save(place.weights(), tmp_path / "w.bin")
    assert evaluate_either([*flags, "--weight", str(weight)]) == 2
    assert "have no place on the backbone 'llava'" in capsys.readouterr().err
    assert evaluate_either([*flags, "--frames_as", "video", "--max_pixels", "99"]) == 2
    said = capsys.readouterr().err
    assert "--frames_as video: not for the backbone llava" in said and "--max_pixels 99: not for" in said


def test_wrong_paths_and_flags(place, tmp_path):
    with pytest.raises(MoraError, match="--weight: .*no such file"):
        place.open(tmp_path / "nothing")
    folder = tmp_path / "whole"
    place.model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="a whole model.*give it as --version"):
        place.open(folder)
    save_file({name: tensor for name, tensor in place.weights().items()}, tmp_path / "w.safetensors")
    require_same(place.open(tmp_path / "w.safetensors"), place.weights())
    with pytest.raises(ConfigError, match="--loc_mode frame: .* was trained with global"):
        place.open(tmp_path / "w.safetensors", "--loc_mode", "frame")
