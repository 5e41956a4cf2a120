"""Which weights change in a step; LoRA added and merged."""

import pytest
import torch

from model import answering
from model.adapters import add_lora, merge_adapters, set_trainable
from utils.batch import MoraBatch
from utils.errors import ConfigError


def step(model, batch):
    """One optimiser step; names of what it changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    model.train()(batch)["loss"].backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def test_a_step_changes_exactly_the_default_set(worlds):
    model = worlds.model(visual_mode="video")
    adapters = add_lora(model, dropout=0.0)
    trained = set_trainable(model, "default")
    # Half of each adapter is zero and stops the other half's gradient in the first step.
    with torch.no_grad():
        for name in adapters:
            model.get_parameter(name).add_(0.01)
    changed = step(model, MoraBatch([worlds.video(1, 3, segs=[1, 2])]))
    silent = {name for name in trained if "iou_prediction_head" in name}
    silent |= {n for n in trained if "output_hypernetworks_mlps" in n and "output_hypernetworks_mlps.0." not in n}
    # A key's bias adds the same to every score of a softmax: its gradient is zero up to rounding.
    rounding = {name for name in trained if name.endswith(("k_proj.bias", "key.bias"))}
    assert changed - rounding == set(trained) - silent - rounding
    assert changed <= set(trained)
    tops = {"language_model", "sam", "text_hidden_fcs", "loc_head"}
    assert {name.split(".")[0] for name in changed} == tops
    assert all("lora_" in n or "lm_head" in n or "embed_tokens" in n for n in changed if n.startswith("language_model"))
    assert all(n.startswith("sam.mask_decoder") for n in changed if n.startswith("sam"))


@pytest.mark.parametrize(
    "spec, wanted",
    [
        ("projector.*", {"projector"}),
        ("projector.*||vision_tower.*", {"projector", "vision_tower"}),
        ("default||projector.*", {"projector", "language_model", "sam", "text_hidden_fcs", "loc_head"}),
    ],
)
def test_patterns(worlds, spec, wanted):
    model = worlds.model()
    names = set_trainable(model, spec)
    assert names == [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in names} == wanted


def test_all_but_the_constant(worlds):
    model = worlds.model()
    set_trainable(model, "projector.*")
    names = set_trainable(model, "all")
    assert {n for n, _ in model.named_parameters()} - set(names) == {"sam.shared_image_embedding.positional_embedding"}


@pytest.mark.parametrize("spec", ["projektor.*", "default||nothing*", "", "||"])
def test_patterns_that_match_nothing(worlds, spec):
    with pytest.raises(ConfigError, match="of [0-9]+ names .* the 12 closest are"):
        set_trainable(worlds.model(), spec)


@pytest.mark.parametrize(
    "typo, meant",
    [
        ("projektor.*", "projector.layers.*.weight"),
        ("*.q_prj.weight", "language_model.model.layers.*.self_attn.q_proj.weight"),
        ("sam.mask_decode.*", "sam.mask_decoder.mask_tokens.weight"),
        ("text_hidden_fc.*", "text_hidden_fcs.*.*.bias"),
    ],
)
def test_the_closest_names_are_shown(worlds, typo, meant):
    with pytest.raises(ConfigError) as caught:
        set_trainable(worlds.model(), f"default||{typo}")
    headline, *names = str(caught.value).splitlines()
    assert f"no parameter matches {typo!r}" in headline and "'default'" not in headline
    assert f"  {meant}" in names and len(names) == 12


def test_lora_is_on_the_language_model_only_and_silent_at_first(worlds):
    model, batch = worlds.model(), MoraBatch([worlds.video(1, 2)])
    before = model(batch)["loss"]
    names = add_lora(model)
    assert len(names) == 2 * 2 * 2, "two layers, q and v, A and B"
    assert all(name.startswith("language_model.") and ("q_proj" in name or "v_proj" in name) for name in names)
    assert torch.equal(model.eval()(batch)["loss"], before)
    other = worlds.model()
    torch.rand(2)
    add_lora(other)
    assert all(torch.equal(model.get_parameter(n), other.get_parameter(n)) for n in names)


def test_merged_equals_unmerged(worlds):
    model, batch = worlds.model(), MoraBatch([worlds.video(1, 3, segs=[1, 2])])
    plain = [name for name, _ in model.named_parameters()]
    base = model(batch)["loss"]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in add_lora(model):
            parameter = model.get_parameter(name)
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    video = batch.videos[0]
    ids = [question.input_ids for question in video.questions]

    def logits():
        context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
        readings = answering.read(model, context, ids)
        return torch.cat([reading.logits for reading in readings], dim=1), model(batch)["loss"]

    unmerged = logits()
    assert merge_adapters(model) == 4
    merged = logits()
    assert (base - merged[1]).abs() > 1e-4, "the adapters do something"
    torch.testing.assert_close(unmerged, merged, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in model.named_parameters()] == plain
    assert merge_adapters(model) == 0
    add_lora(model)


def test_lora_mistakes(worlds):
    model = worlds.model()
    with pytest.raises(ConfigError, match="Q_proj: not in the language model"):
        add_lora(model, targets=["Q_proj"])
    add_lora(model)
    with pytest.raises(ConfigError, match="already"):
        add_lora(model)
