"""A trained model with adapters, exported and opened again, gives the same masks, times and words."""

from __future__ import annotations

import pytest
import torch

from datasets.conversation import encode_prompt, groundmore_question
from datasets.tokenization import load_tokenizer
from model.adapters import add_lora, set_trainable
from model.answering import Request, answer, encode
from model.checkpoints import load_any
from training.export import export, parse_arguments

FRAMES, SIDE = 4, 64


def answers(model, tokenizer):
    """Two questions about random frames, answered freely; every answer has [SEG] and [LOC]."""
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(2, FRAMES, 3, SIDE, SIDE, generator=generator)
    context = encode(model, frames[0], frames[1], (SIDE, SIDE), (48, 40))
    prompts = [
        encode_prompt(groundmore_question(text), model.config.template, tokenizer)
        for text in ("What moves to the right?", "What stops first?")
    ]
    request = Request(max_new_tokens=6, force_seg_token=True, force_loc_token=True, eos_token_id=tokenizer.eos_id)
    return answer(model, context, prompts, request)


@pytest.mark.parametrize("loc_mode", ["global", "none"])
def test_export_and_reload_give_the_same_answers(tiny_base, tmp_path, loc_mode):
    model, _ = load_any(tiny_base, loc_mode=loc_mode)
    tokenizer = load_tokenizer(tiny_base)
    add_lora(model, r=4, alpha=8, dropout=0.05)
    names = set_trainable(model, "default")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    before = answers(model.eval(), tokenizer)
    torch.save({name: model.state_dict()[name] for name in names}, tmp_path / "fp32_model_state.pt")
    folder = export(
        parse_arguments(
            ["--version", str(tiny_base), "--weight", str(tmp_path / "fp32_model_state.pt"), "--save_path",
             str(tmp_path / "exported"), "--precision", "fp32", "--lora_alpha", "8",
             "--visual_mode", "video", "--conv_type", "plain", "--answer_style", "name",
             *(["--seg_only"] if loc_mode == "none" else [])]
        )
    )  # fmt: skip
    reloaded, _ = load_any(folder)
    after = answers(reloaded, load_tokenizer(folder))
    untrained = answers(load_any(tiny_base, loc_mode=loc_mode)[0], tokenizer)
    for old, new, base in zip(before, after, untrained):
        assert new.token_ids == old.token_ids
        torch.testing.assert_close(new.masks, old.masks, atol=1e-4, rtol=1e-4)
        assert torch.equal(new.masks > 0, old.masks > 0)
        assert (old.loc_probs is None) == (loc_mode == "none") == (new.loc_probs is None)
        if old.loc_probs is not None:
            torch.testing.assert_close(new.loc_probs, old.loc_probs, atol=1e-5, rtol=1e-5)
        assert (base.masks - old.masks).abs().max() > 1e-2, "what was trained must matter"
