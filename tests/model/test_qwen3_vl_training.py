"""Qwen3-VL learns: gradients, what is trained, adapters, vocabulary, and weights that come back as they were."""

import json

import pytest
import torch
from safetensors.torch import load_file

from model import answering
from model.adapters import add_lora, merge_adapters, set_trainable
from model.answering import Request
from model.backbones.qwen3_vl import Qwen3VL
from model.checkpoints import load_any
from model.mora import MoraModel
from tests.model.qwen_worlds import QwenWorlds, close
from utils.batch import MoraBatch

MODES = ["video", "pairs", "frame"]
modes = pytest.mark.parametrize("mode", MODES)
TIES = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
DECODER = "language_model.model.language_model"


def batch_of(worlds) -> MoraBatch:
    return MoraBatch([worlds.video(1, 3, segs=[1, 2, 0]), worlds.video(5, 1, segs=[1, 1])])


def gradients(model, batch):
    """Loss and gradients of one step."""
    model.zero_grad()
    losses = model.train()(batch)
    losses["loss"].backward()
    return losses["loss"].detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(one, other):
    """Losses and gradients agree; the latter relative to each tensor's largest, or to a thousandth of all."""
    close(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    floor = 1e-3 * max(gradient.abs().max() for gradient in one[1].values())
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).abs().max() <= 2e-5 * max(gradient.abs().max(), floor), name


@modes
def test_gradients_of_packed_questions(mode, monkeypatch):
    worlds = QwenWorlds(mode)
    model = worlds.model(loc_mode="global")
    trained = set_trainable(model, "all")
    packed = gradients(model, batch_of(worlds))
    monkeypatch.setattr(Qwen3VL, "packs_questions", False)
    same(packed, gradients(model, batch_of(worlds)))
    silent = {name for name in set(trained) - set(packed[1]) if "sam." not in name}
    assert not silent, "every part but SAM's unused heads has a gradient"
    parts = ("visual.patch_embed", "visual.pos_embed", "visual.deepstack_merger_list.1", "visual.merger", "lm_head",
             "language_model.embed_tokens", "language_model.layers.2.self_attn.k_norm")  # fmt: skip
    for part in parts:
        assert any(part in name and gradient.abs().sum() > 0 for name, gradient in packed[1].items()), part


@modes
def test_recomputing_layers_changes_nothing(mode):
    worlds = QwenWorlds(mode)
    model = worlds.model(loc_mode="global")
    set_trainable(model, "all")
    kept = gradients(model, batch_of(worlds))
    calls = []
    model.backbone.decoder.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    model.set_gradient_checkpointing(True)
    again = gradients(model, batch_of(worlds))
    assert len(calls) == 2, "the layer ran twice"
    assert torch.equal(kept[0], again[0]) and all(torch.equal(kept[1][name], again[1][name]) for name in kept[1])


@modes
@pytest.mark.parametrize("readout", ["before", "at"])
@torch.no_grad()
def test_both_readouts_in_training_and_answering(mode, readout):
    worlds = QwenWorlds(mode)
    model, video = worlds.model(loc_mode="global", readout=readout), worlds.video(1, 3, segs=[1, 1])
    for question in video.questions:
        question.mask_frames = torch.arange(3)
        question.masks = torch.zeros(1, 3, *video.original_size, dtype=torch.uint8)
    (taught,) = model(MoraBatch([video]), return_predictions=True)["predictions"]
    starts = [int((question.labels != -100).nonzero()[0]) for question in video.questions]
    prompts = [question.input_ids[:start] for question, start in zip(video.questions, starts)]
    forced = [question.input_ids[start:-1] for question, start in zip(video.questions, starts)]

    def said(readout):
        model.config.readout = readout
        context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
        return answering.answer(model, context, prompts, Request(forced=forced))

    for answer, other, wanted in zip(said(readout), said("at" if readout == "before" else "before"), taught):
        close(answer.masks, wanted["mask_logits"][0])
        close(answer.loc_probs, wanted["loc_logits"].sigmoid())
        assert (answer.masks - other.masks).abs().max() > 1e-3
        assert (answer.loc_probs - other.loc_probs).abs().max() > 1e-4


@TIES
def test_a_step_changes_exactly_the_default_set(tied):
    worlds = QwenWorlds()
    model = worlds.model(loc_mode="global", tied=tied)
    assert (model.backbone.vocabulary[0].weight is model.backbone.vocabulary[1].weight) == tied
    adapters = add_lora(model, dropout=0.0)
    assert {name.split(".lora")[0] for name in adapters} == {
        f"{DECODER}.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qv"
    }
    trained = set_trainable(model, "default")
    with torch.no_grad():  # half of each adapter is zero, and stops the other half's gradient
        for name in adapters:
            model.get_parameter(name).add_(0.01)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()(batch_of(worlds))["loss"].backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    vocabulary = {f"{DECODER}.embed_tokens.weight"} | (set() if tied else {"language_model.lm_head.weight"})
    assert {name for name in trained if name.startswith("language_model")} == vocabulary | set(adapters)
    assert {name for name in changed if name.startswith("language_model")} == vocabulary | set(adapters)
    assert changed <= set(trained)
    assert {name.split(".")[0] for name in changed} == {"language_model", "sam", "text_hidden_fcs", "loc_head"}
    assert all(name.startswith("sam.mask_decoder") for name in changed if name.startswith("sam"))
    assert all(not torch.equal(before[name], model.get_parameter(name)) for name in trained if "text_hidden" in name)


def test_a_frozen_tower_keeps_no_graph():
    worlds = QwenWorlds()
    model, videos = worlds.model(), [worlds.video(1, 2).clip_pixels]
    for spec, graph in (("default", False), ("default||language_model.model.visual.merger.*", True)):
        set_trainable(model, spec)
        (visual,) = model.backbone.encode(videos)
        assert visual.tokens.requires_grad == graph


def test_batches_without_images_or_answers_train_every_default_part():
    worlds = QwenWorlds()
    model = worlds.model(loc_mode="global")
    set_trainable(model, "default")
    _, wanted = gradients(model, batch_of(worlds))
    _, grads = gradients(model, MoraBatch([worlds.video(1, 2, segs=[0], image=False, loc=False)]))
    assert set(wanted) == set(grads) and {name.split(".")[0] for name in grads} >= {"sam", "loc_head"}


@TIES
def test_adapters_merge(tied):
    worlds = QwenWorlds()
    model, batch = worlds.model(loc_mode="global", tied=tied), batch_of(worlds)
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        plain = model(batch)["loss"]
        for name in add_lora(model):
            model.get_parameter(name).normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        unmerged = model(batch)["loss"]
        assert merge_adapters(model) == 6 and (unmerged - plain).abs() > 1e-3
        close(model(batch)["loss"], unmerged)
    assert [name for name, _ in model.named_parameters()] == names


@TIES
def test_the_vocabulary_grows(tied):
    worlds = QwenWorlds()
    model, batch = worlds.model(loc_mode="global", tied=tied), batch_of(worlds)
    with torch.no_grad():
        before = model(batch)["mask_loss"]
        model.resize_token_embeddings(70)
        close(model(batch)["mask_loss"], before)
    words, head = model.backbone.vocabulary
    assert words.weight.shape == head.weight.shape == (70, 64) and (words.weight is head.weight) == tied
    assert model.config.text_config.vocab_size == 70
    network = model.language_model.config
    assert network.text_config.vocab_size == model.backbone.decoder.config.vocab_size == 70


@modes
@TIES
def test_saved_weights_come_back(mode, tied, tmp_path):
    worlds = QwenWorlds(mode)
    model, batch = worlds.model(loc_mode="global", tied=tied, timestamps=mode != "frame"), batch_of(worlds)
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path)
    stored = set(load_file(tmp_path / "model.safetensors"))
    assert (
        stored == {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()} & stored
    )
    assert ("language_model.lm_head.weight" in stored) != tied and f"{DECODER}.embed_tokens.weight" in stored
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["backbone"] == "qwen3_vl" and saved["text_config"]["tie_word_embeddings"] == tied
    loaded, report = load_any(tmp_path)
    assert not (report.missing or report.unexpected or report.initialised)
    for again in (loaded, MoraModel.from_pretrained(tmp_path)):
        old, new = model.state_dict(), again.state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
        assert (again.backbone.vocabulary[0].weight is again.backbone.vocabulary[1].weight) == tied
        for name in ("frames_as", "timestamps", "min_pixels", "max_pixels", "visual_mode", "readout", "answer_style"):
            assert getattr(again.config, name) == getattr(model.config, name), name
        assert again.config.pixel_rule == model.config.pixel_rule
        assert again.config.frame_marks == model.config.frame_marks
        with torch.no_grad():
            assert torch.equal(again.eval()(batch)["loss"], model(batch)["loss"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_attention_is_chosen_when_it_is_opened(attention, tmp_path):
    worlds = QwenWorlds()
    model, batch = worlds.model(loc_mode="global"), batch_of(worlds)
    model.save_pretrained(tmp_path)
    loaded, _ = load_any(tmp_path, attn_implementation=attention)
    assert loaded.backbone.decoder.config._attn_implementation == attention
    assert loaded.language_model.model.visual.config._attn_implementation == attention
    assert loaded.backbone.packs_questions
    with torch.no_grad():
        close(loaded.eval()(batch)["loss"], model(batch)["loss"])
