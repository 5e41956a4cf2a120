"""Training the rows of new tokens only: what a checkpoint holds, resuming, starting from it, merging."""

from __future__ import annotations

import pytest
import torch

from datasets.tokenization import load_tokenizer
from model.checkpoints import load_any
from model.presets import build
from tests.training.conftest import small_config, small_qwen
from training.assembly import build_parts
from training.checkpoints import fit_weights, read_weights, take_provenance
from training.export import export
from training.export import parse_arguments as parse_export
from training.run import train
from training.settings import parse_arguments
from utils.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow

BASES = {
    "llava": ("llava", "tiny_tokenizer", small_config, {}),
    "tied": ("qwen3_vl", "tiny_qwen_tokenizer", small_qwen, {"tied": True}),
    "untied": ("qwen3_vl", "tiny_qwen_tokenizer", small_qwen, {}),
}


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory, project_root):
    """(backbone, folder of a base that has [SEG] and two free rows)."""
    backbone, words, config_of, more = BASES[request.param]
    tokenizer = load_tokenizer(project_root / "assets" / words)
    config = config_of(vocab_size=len(tokenizer) + 2, seg_token_id=tokenizer.id_of("[SEG]"), loc_mode="none", **more)
    folder = tmp_path_factory.mktemp(request.param)
    build(config).save_pretrained(folder)
    tokenizer.save(folder)
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace("[LOC]", "<other>"))
    return backbone, folder


def run(base, corpus, folder, name, *flags):
    backbone, version = base
    settings = parse_arguments(
        ["--version", str(version), "--dataset_dir", str(corpus), "--dataset", "groundmore", "--precision", "fp32",
         "--epochs", "1", "--steps_per_epoch", "3", "--warmup_steps", "1", "--grad_accumulation_steps", "1",
         "--num_frames", "1", "--workers", "0", "--picture_freq", "0", "--log_base_dir", str(folder), "--device", "cpu",
         "--exp_name", name, "--lr", "1e-2", "--token_rows", "new", *flags], backbone,
    )  # fmt: skip
    return settings, train(settings)


def test_rows_of_new_tokens_from_the_first_run_to_the_export(base, tiny_corpus, tmp_path, world):
    backbone, version = base
    run(base, tiny_corpus, tmp_path, "first", "--seg_only", "--trainable", "default")
    first = tmp_path / "first" / "ckpt_model"
    state = read_weights(first)
    kept = [name for name in state if "embed_tokens" in name or "lm_head" in name]
    assert kept and all(name.endswith(".token_rows") and state[name].shape == (1, 128) for name in kept)
    assert take_provenance(first, state).token_rows == "new"

    settings, _ = run(base, tiny_corpus, tmp_path, "second", "--loc_mode", "global", "--init_from", str(first))
    settings.optimizer.epochs = 2
    assert train(settings) == 6, "it goes on"
    second = tmp_path / "second" / "ckpt_model"
    state = read_weights(second)
    assert all(state[name].shape == (2, 128) for name in kept)

    merged = export(parse_export(["--version", str(version), "--weight", str(second), "--save_path",
                                  str(tmp_path / "merged"), "--precision", "fp32"]))  # fmt: skip
    parts = build_parts(settings.model, settings.trainable, 0, torch.float32)
    fit_weights(parts.model, state, "the checkpoint")
    wrapped, model = parts.model.eval(), load_any(merged)[0]
    ids, states = torch.tensor([[1, model.config.loc_token_id, model.config.seg_token_id, 3]]), torch.randn(3, 128)
    assert torch.equal(model.backbone.embed(ids), wrapped.backbone.embed(ids))
    torch.testing.assert_close(model.backbone.logits(states), wrapped.backbone.logits(states), rtol=0, atol=1e-6)
    embeddings, head = model.backbone.vocabulary
    assert (head.weight is embeddings.weight) == model.config.text_config.tie_word_embeddings
    assert model.config.text_config.vocab_size == len(embeddings.weight), "the free rows were enough"


def test_what_learned_of_the_words_is_part_of_what_weights_are(base, tiny_corpus, tmp_path, world):
    _, version = base
    run(base, tiny_corpus, tmp_path, "rows", "--seg_only")
    rows = tmp_path / "rows" / "ckpt_model"
    with pytest.raises(CheckpointError, match="--token_rows: trained with 'new', here 'all'"):
        run(base, tiny_corpus, tmp_path, "rows", "--seg_only", "--token_rows", "all", "--epochs", "2")
    with pytest.raises(CheckpointError, match="trained with --token_rows new, and this run trains whole matrices"):
        run(base, tiny_corpus, tmp_path, "all", "--seg_only", "--token_rows", "all", "--init_from", str(rows))
    with pytest.raises(ConfigError, match="--token_rows: all, but the weights were trained with new"):
        export(parse_export(["--version", str(version), "--weight", str(rows), "--save_path", str(tmp_path / "out"),
                             "--token_rows", "all"]))  # fmt: skip
    run(base, tiny_corpus, tmp_path, "all", "--seg_only", "--token_rows", "all")
    with pytest.raises(CheckpointError, match="(?s)does not train them.*embed_tokens.weight"):
        run(base, tiny_corpus, tmp_path, "new", "--seg_only", "--init_from", str(tmp_path / "all" / "ckpt_model"))


def test_a_token_that_comes_into_a_free_row_gets_values_once(base, tmp_path):
    backbone, version = base
    settings = parse_arguments(
        ["--version", str(version), "--dataset_dir", str(tmp_path), "--precision", "fp32", "--lora_r", "0"], backbone
    )
    parts = build_parts(settings.model, settings.trainable, 0, torch.float32)
    before, after = load_any(version)[0].get_input_embeddings().weight, parts.model.get_input_embeddings().weight
    new = parts.model.config.loc_token_id
    assert after.shape == before.shape and new == len(parts.tokenizer) - 1 == len(before) - 2
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert changed == [new]
    mean, spread = before[:new].mean(0), before[:new].std(0)
    assert 0.05 < ((after[new] - mean) / spread).std() < 0.2
    again = build_parts(settings.model, settings.trainable, 5, torch.float32).model.get_input_embeddings().weight
    assert torch.equal(again, after)
    parts.model.save_pretrained(tmp_path / "saved")
    parts.tokenizer.save(tmp_path / "saved")
    settings.model.version = str(tmp_path / "saved")
    kept = build_parts(settings.model, settings.trainable, 0, torch.float32).model.get_input_embeddings().weight
    assert torch.equal(kept, after), "a token that the base had met keeps its row"
