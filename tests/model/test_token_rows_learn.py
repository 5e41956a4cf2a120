"""Only the rows of new tokens learn: forward, gradients, merging, tied and untied, on both backbones."""

from __future__ import annotations

import pytest
import torch

from model.adapters import add_lora, add_token_rows, merge_adapters, set_trainable
from model.presets import build, tiny, tiny_qwen

SMALL = {"llm_layers": 2, "llm_hidden": 64, "vocab_size": 90, "sam_layers": 1}
IDS = (80, 71)


def model_of(kind: str):
    if kind == "llava":
        return build(tiny(**SMALL, clip_layers=1))
    small = {name: value for name, value in SMALL.items() if name != "sam_layers"}
    return build(tiny_qwen(**small, tower_layers=1, tied=kind == "tied"))


def words(model):
    """Ids that hold the tokens and others."""
    return torch.tensor([[1, 80, 5, 71, 80, 7]])


@pytest.mark.parametrize("kind", ["llava", "untied", "tied"])
def test_only_the_rows_learn_and_merge_exactly(kind):
    model = model_of(kind)
    backbone, ids = model.backbone, words(model)
    parts = backbone.vocabulary_parts
    names, states = list(model.state_dict()), torch.randn(5, 64)
    embedded, logits = backbone.embed(ids), backbone.logits(states)
    matrix = model.get_input_embeddings().weight.clone()
    add_token_rows(model, IDS)
    add_lora(model, r=2, dropout=0.0)
    assert torch.equal(backbone.embed(ids), embedded)
    torch.testing.assert_close(backbone.logits(states), logits)
    trained = set_trainable(model, "default")
    wanted = [f"{part}.token_rows" for part in parts[: 1 if kind == "tied" else 2]]
    assert [name for name in trained if name.startswith(parts)] == wanted

    optimizer = torch.optim.SGD([model.get_parameter(name) for name in wanted], lr=1.0)
    (backbone.embed(ids).square().sum() + backbone.logits(states).square().mean()).backward()
    assert all(model.get_parameter(name).grad.abs().sum(1).gt(0).all() for name in wanted)
    optimizer.step()
    assert torch.equal(backbone.vocabulary[0].weight, matrix), "the matrix itself stays"
    embedded, logits = backbone.embed(ids).detach(), backbone.logits(states).detach()
    assert not torch.equal(embedded[0, 1], matrix[80]) and torch.equal(embedded[0, 0], matrix[1])

    assert merge_adapters(model) == 2 * 2 + 2 and list(model.state_dict()) == names
    assert torch.equal(backbone.embed(ids), embedded)
    torch.testing.assert_close(backbone.logits(states), logits, rtol=0, atol=1e-6)
    embeddings, head = backbone.vocabulary
    assert (head.weight is embeddings.weight) == (kind == "tied")
    others = [row for row in range(90) if row not in IDS]
    assert torch.equal(embeddings.weight[others], matrix[others])


def test_a_matrix_whose_rows_learn_apart_never_learns():
    model = model_of("llava")
    add_token_rows(model, IDS)
    trained = set_trainable(model, "all")
    assert not [
        name for name in trained if name.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight"))
    ]
    assert sum(name.endswith(".token_rows") for name in trained) == 2
