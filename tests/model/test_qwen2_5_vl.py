"""Qwen2.5-VL, the third backbone: against the library's own forward, through training, answering and a file."""

import pytest
import torch

from model import answering, presets
from model.adapters import add_lora, merge_adapters, set_trainable
from model.answering import Request
from model.checkpoints import load_any
from model.layout import after, split_at_images
from model.mora import MoraModel
from tests.model.qwen_worlds import QwenWorlds, close, stock_of
from tests.model.test_qwen3_vl import compare, ragged
from utils.batch import MoraBatch
from utils.errors import ConfigError

MODES = ["video", "frame"]
modes = pytest.mark.parametrize("mode", MODES)


class Qwen25Worlds(QwenWorlds):
    """With a tower of three layers, the second of which looks beyond windows of 2 x 2 tokens."""

    def config(self, **overrides):
        like = super().config(**{name: overrides.pop(name) for name in ("visual_mode",) if name in overrides})
        text = {
            "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": overrides.pop("tied", False),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "bos_token_id": None, "eos_token_id": self.eos,
        }  # fmt: skip
        # Older versions of the library multiply the time of images, too, by the tokens per second of videos.
        vision = {
            "tokens_per_second": 1, "hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 48,
            "out_hidden_size": 64, "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1],
        }  # fmt: skip
        shared = ("visual_mode", "sam_config", "out_dim", "loc_mode", "loc_hidden_size", "seg_token_id", "loc_token_id",
                  "min_pixels", "max_pixels", "initialization")  # fmt: skip
        fields = {"backbone": "qwen2_5_vl", "text_config": text, "vision_config": vision}
        return presets.MoraConfig(**{**{name: getattr(like, name) for name in shared}, **fields, **overrides})


@pytest.fixture(scope="module")
def made():
    """(worlds, model) by mode; tests must not change the weights."""
    return {mode: (worlds := Qwen25Worlds(mode), worlds.model(loc_mode="global")) for mode in MODES}


def test_published_sizes():
    model = presets.build(presets.qwen2_5_vl_7b(), device="meta")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.language_model) == 8_292_166_656 and len(list(model.language_model.parameters())) == 729
    assert count(model.language_model.model.visual) == 676_550_144
    assert model.config.pixel_rule.size == 28 and not hasattr(model.config.vision_config, "deepstack_visual_indexes")
    weights = model.state_dict()
    for field, (name, side) in model.backbone.sides.items():
        part, _, name_of_field = field.partition(".")
        assert weights[name].shape[side] == getattr(getattr(model.config, part), name_of_field), field


@modes
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "alone"])
@torch.no_grad()
def test_states_are_the_librarys(made, mode, packed):
    worlds, model = made[mode]
    assert 1 < compare(model, ragged(worlds), packed) < 10
    compare(model, MoraBatch([worlds.video(1, 1, segs=[1, 1, 1])]))


@torch.no_grad()
def test_positions_are_the_librarys(made):
    worlds, model = made["video"]
    video = worlds.video(2, 3)
    ids = video.questions[0].input_ids
    (visual,) = model.backbone.encode([video.clip_pixels], 2)
    close(visual.tokens, model.backbone.encode([video.clip_pixels])[0].tokens)
    stock = stock_of(model, ids, video.clip_pixels)
    wanted, _ = stock.network(model).model.get_rope_index(stock.ids, stock.kinds, **stock.grids())
    prefix, _ = split_at_images(ids.tolist(), visual.grids, "here")
    got = model.backbone.positions(prefix)
    assert torch.equal(got, wanted[:, 0, : got.shape[1]]) and after(got) == wanted[0, 0, got.shape[1]]


@modes
def test_it_learns_answers_and_is_saved(mode, tmp_path):
    worlds = Qwen25Worlds(mode)
    model = worlds.model(loc_mode="global", tied=mode == "frame")
    video = worlds.video(1, 3, segs=[1, 1])
    for question in video.questions:
        question.mask_frames = torch.arange(3)
        question.masks = torch.zeros(1, 3, *video.original_size, dtype=torch.uint8)
    assert len(add_lora(model, dropout=0.0)) == 12
    trained = set_trainable(model, "default")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.train()(MoraBatch([video]))["loss"]
        loss.backward()
        assert all(model.get_parameter(name).grad is not None for name in trained if "lora" in name)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    merge_adapters(model.eval())
    starts = [int((question.labels != -100).nonzero()[0]) for question in video.questions]
    prompts = [question.input_ids[:start] for question, start in zip(video.questions, starts)]
    forced = [question.input_ids[start:-1] for question, start in zip(video.questions, starts)]

    def said(model):
        context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
        free = Request(max_new_tokens=3, force_seg_token=True, force_loc_token=True)
        requests = (Request(forced=forced), free)
        return [answer for request in requests for answer in answering.answer(model, context, prompts, request)]

    with torch.no_grad():
        (taught,) = model(MoraBatch([video]), return_predictions=True)["predictions"]
    answers = said(model)
    for answer, wanted in zip(answers, taught):
        close(answer.masks, wanted["mask_logits"][0])
        close(answer.loc_probs, wanted["loc_logits"].sigmoid())
    model.save_pretrained(tmp_path)
    loaded, report = load_any(tmp_path)
    assert not (report.missing or report.unexpected or report.initialised)
    for again in (loaded, MoraModel.from_pretrained(tmp_path)):
        for answer, wanted in zip(said(again), answers):
            assert torch.equal(answer.masks, wanted.masks) and answer.token_ids == wanted.token_ids


def test_what_a_configuration_refuses():
    worlds = Qwen25Worlds()
    vision = {**worlds.config().vision_config.to_dict(), "window_size": 40, "fullatt_block_indexes": [3]}
    with pytest.raises(ConfigError) as caught:
        worlds.config(vision_config=vision, max_pixels=10)
    for part in ("window_size: is 40", "fullatt_block_indexes: is [3]", "max_pixels: is 10", "3 problems"):
        assert part in str(caught.value)
    for wrong, said in (({"frames_as": "video"}, "frames_as: is 'video'"), ({"visual_mode": "pooled"}, "visual_mode")):
        with pytest.raises(ConfigError, match=said):
            presets.MoraConfig(backbone="qwen2_5_vl", **wrong)
    with pytest.raises(ConfigError, match="use_sliding_window: is True"):
        presets.MoraConfig(backbone="qwen2_5_vl", text_config={"use_sliding_window": True})
