"""The training forward against a plain reference: one row per question and frame, one mask per call."""

import copy

import pytest
import torch
from torch.nn import functional as F

from model.adapters import set_trainable
from model.losses import LossWeights
from utils.batch import IGNORE_INDEX, IMAGE_TOKEN_INDEX, MoraBatch
from utils.errors import ConfigError, DataError

MODES = [("video", "global"), ("pooled", "global"), ("frame", "global"), ("frame", "frame"), ("video", "none")]
modes = pytest.mark.parametrize("visual_mode, loc_mode", MODES)
LOSSES = ("loss", "ce_loss", "mask_bce_loss", "mask_dice_loss", "mask_loss", "loc_loss")


def ragged(worlds, loc=True):
    """Two videos of different length, 0, 1 and 2 [SEG], a question without image and one with another beginning."""
    first = worlds.video(1, 3, segs=[1, 2, 0], loc=loc)
    second = worlds.video(2, 5, segs=[1], loc=loc)
    generator = torch.Generator().manual_seed(9)
    second.questions.append(worlds.question(generator, 5, segs=0, image=False, loc=False))
    second.questions.append(worlds.question(generator, 5, segs=1, loc=loc, prefix=3))
    return MoraBatch([first, second])


def plain_states(model, ids, tokens):
    """States of one row: [text before | visual tokens | text after], read alone; and the index shift of the text."""
    embed = model.get_input_embeddings()
    at = ids.tolist().index(IMAGE_TOKEN_INDEX) if IMAGE_TOKEN_INDEX in ids else None
    if at is None:
        embeds, shift = embed(ids), 0
    else:
        embeds = torch.cat([embed(ids[:at]), tokens, embed(ids[at + 1 :])])
        shift = tokens.shape[0] - 1
    return model.language_model.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0], shift, at


def plain_losses(model, batch):
    """Losses of a batch without packing, batching or gathering."""
    cross, masks, times = [], [], []
    head = model.language_model.lm_head
    for video in batch.videos:
        (visual,) = model.backbone.encode([video.clip_pixels])
        visual = visual.tokens
        sam = model.sam.encode(video.sam_pixels)
        for question in video.questions:
            ids = question.input_ids
            rows = [plain_states(model, ids, tokens) for tokens in (visual if IMAGE_TOKEN_INDEX in ids else visual[:1])]
            for states, shift, _ in rows:
                for place in (question.labels != IGNORE_INDEX).nonzero().flatten().tolist():
                    cross.append(F.cross_entropy(head(states[place + shift - 1]), ids[place]))
            for tube, place in enumerate((ids == 5).nonzero().flatten().tolist()):
                for column, frame in enumerate(question.mask_frames.tolist()):
                    states, shift, _ = rows[frame if len(rows) > 1 else 0]
                    prompt = model.prompt_embeddings(states[place + shift - 1])
                    low_res = model.sam.decode(sam[[frame]], prompt[None])
                    logits = model.sam.to_frames(low_res, video.resized_size, video.original_size)[0]
                    masks.append((logits, question.masks[tube, column].float()))
            if question.in_window is not None and model.config.loc_mode != "none":
                place = (ids == 6).nonzero().item()
                locs = torch.stack([states[place + shift - 1] for states, shift, _ in rows])
                if model.config.loc_mode == "frame":
                    logits = torch.stack([model.loc_head(loc) for loc in locs])
                else:
                    seen = torch.stack([s[at : at + shift + 1] for s, shift, at in rows])
                    frames = model.projector.frame_states(seen, video.num_frames)
                    logits = model.loc_head(locs.mean(0)[None], frames)[0]
                times.append(F.binary_cross_entropy_with_logits(logits, question.in_window))
    mean = lambda values: torch.stack(values).mean() if values else torch.zeros(())  # noqa: E731
    dice = []
    for logits, target in masks:
        p, g = logits.sigmoid() / 1000, target / 1000
        dice.append(1 - (2 * (p * target).sum() + 1e-6) / (p.sum() + g.sum() + 1e-6))
    bce = [F.binary_cross_entropy_with_logits(logits, target) for logits, target in masks]
    ce, bce, dice, loc = mean(cross), 2 * mean(bce), 0.5 * mean(dice), mean(times)
    values = {"ce_loss": ce, "mask_bce_loss": bce, "mask_dice_loss": dice, "loc_loss": loc, "mask_loss": bce + dice}
    return {**values, "loss": ce + bce + dice + loc}


@modes
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_a_plain_reading(worlds, visual_mode, loc_mode, attention):
    model = worlds.model(visual_mode=visual_mode, loc_mode=loc_mode)
    model.language_model.config._attn_implementation = attention
    batch = ragged(worlds, loc=loc_mode != "none")
    with torch.no_grad():
        got, wanted = model(batch), plain_losses(model, batch)
    for name in LOSSES:
        assert got[name].dtype == torch.float32 and got[name].shape == ()
        torch.testing.assert_close(got[name], wanted[name], atol=2e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_rows_without_a_shared_beginning_need_no_mask(worlds, model_of, monkeypatch):
    """What flash attention needs: with packing off, the decoder is never given a mask, and the losses are the same."""
    model = model_of("video", "global")
    batch = ragged(worlds)
    packed = model(batch)
    seen = []
    inner = model.language_model.model.forward
    monkeypatch.setattr(type(model.backbone), "packs_questions", property(lambda self: False))
    monkeypatch.setattr(
        model.language_model.model,
        "forward",
        lambda **kwargs: seen.append((kwargs["attention_mask"], kwargs["position_ids"])) or inner(**kwargs),
    )
    alone = model(batch)
    assert seen == [(None, None)]
    for name in LOSSES:
        torch.testing.assert_close(packed[name], alone[name], atol=1e-5, rtol=1e-5)


@modes
def test_batched_equals_one_by_one(worlds, model_of, visual_mode, loc_mode):
    model = model_of(visual_mode, loc_mode)
    batch = ragged(worlds, loc=loc_mode != "none")
    with torch.no_grad():
        together = model(batch, return_predictions=True)["predictions"]
        for v, video in enumerate(batch.videos):
            for q, question in enumerate(video.questions):
                alone = copy.copy(video)
                alone.questions = [question]
                (only,) = model(MoraBatch([alone]), return_predictions=True)["predictions"][0]
                torch.testing.assert_close(together[v][q]["mask_logits"], only["mask_logits"], atol=1e-5, rtol=1e-5)
                shape = (question.masks.shape[0], question.masks.shape[1], *video.original_size)
                assert only["mask_logits"].shape == shape
                assert (only["loc_logits"] is None) == (question.in_window is None or loc_mode == "none")
                if only["loc_logits"] is not None:
                    assert only["loc_logits"].shape == (video.num_frames,)
                    torch.testing.assert_close(together[v][q]["loc_logits"], only["loc_logits"], atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing(worlds):
    batch = ragged(worlds)
    gradients = []
    for enable in (False, True):
        model = worlds.model().train()
        set_trainable(model, "all")
        model.set_gradient_checkpointing(enable)
        model(batch)["loss"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_trained_part(worlds):
    model = worlds.model().train()
    set_trainable(model, "all")
    model(ragged(worlds))["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    allowed = (
        "sam.mask_decoder.iou_prediction_head",  # its output is not supervised, as in the original
        "sam.prompt_encoder",  # points, boxes and masks are never given
        "vision_tower.post_layernorm",
    )
    assert [name for name in without if not name.startswith(allowed)] == []


@pytest.mark.parametrize("spec, graph", [("default", False), ("all", True)])
def test_frozen_encoders_keep_no_graph(worlds, spec, graph):
    model = worlds.model().train()
    set_trainable(model, spec)
    video = worlds.video(1, 2)
    assert model.backbone.encode([video.clip_pixels])[0].tokens.requires_grad == graph
    assert model.sam.encode(video.sam_pixels).parts[0].requires_grad == graph


def test_each_frame_is_encoded_once_and_only_if_a_mask_needs_it(worlds, model_of, monkeypatch):
    model = model_of("video", "global")
    video = worlds.video(3, 6, segs=[1, 2, 1])
    for question in video.questions:
        question.mask_frames = torch.tensor([4, 1])
    calls = {"encode": [], "decode": []}
    encode, decode = model.sam.encode, model.sam.decode
    monkeypatch.setattr(model.sam, "encode", lambda x: calls["encode"].append(x) or encode(x))
    monkeypatch.setattr(model.sam, "decode", lambda e, p: calls["decode"].append(len(e)) or decode(e, p))
    model(MoraBatch([video]))
    (frames,) = calls["encode"]
    torch.testing.assert_close(frames, video.sam_pixels[[4, 1]])
    assert calls["decode"] == [8]


@pytest.mark.parametrize("loc_mode", ["global", "frame"])
def test_a_batch_without_masks_or_times_runs_and_trains_the_same_modules(worlds, loc_mode):
    """Under ZeRO a process whose batch has no use for a part must run it all the same, in the same order."""
    model = worlds.model(visual_mode="frame", loc_mode=loc_mode).train()
    names = set_trainable(model, "default||projector.*")
    blank = worlds.video(1, 2, segs=[0], loc=False)
    question = blank.questions[0]
    kept = question.input_ids >= 0  # no image either
    question.input_ids, question.labels = question.input_ids[kept], question.labels[kept]
    ran, learned = [], []
    for batch in (MoraBatch([worlds.video(1, 2, segs=[1])]), MoraBatch([blank])):
        calls: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
            for name, module in model.named_modules()
        ]
        model.zero_grad(set_to_none=True)
        losses = model(batch)
        losses["loss"].backward()
        ran.append(calls)
        learned.append({name for name in names if model.get_parameter(name).grad is not None})
        for hook in hooks:
            hook.remove()
    assert losses["mask_loss"] == 0 and losses["loc_loss"] == 0 and losses["loss"] == losses["ce_loss"] > 0
    assert ran[0] == ran[1]
    assert learned[0] == learned[1] and any("loc_head" in name for name in learned[0])
    unused = ("text_hidden_fcs", "loc_head", "sam", "projector")
    assert all(not model.get_parameter(name).grad.any() for name in learned[1] if name.startswith(unused))


def test_nothing_supervised_is_zero_not_nan(worlds, model_of):
    video = worlds.video(1, 2, segs=[0], loc=False)
    video.questions[0].labels.fill_(IGNORE_INDEX)
    assert model_of("video", "none")(MoraBatch([video]))["loss"] == 0


def test_weights_scale_their_losses(worlds, model_of):
    model, batch = model_of("video", "global"), ragged(worlds)
    base, scaled = model(batch), model(batch, LossWeights(ce=3, bce=4, dice=5, loc=6))
    for name, factor in (("ce_loss", 3), ("mask_bce_loss", 2), ("mask_dice_loss", 10), ("loc_loss", 6)):
        torch.testing.assert_close(scaled[name], factor * base[name])


def test_the_loc_head_takes_any_number_of_frames(worlds, model_of):
    for mode in (("video", "global"), ("pooled", "global"), ("frame", "frame")):
        for frames in (1, 2, 9):
            losses = model_of(*mode)(MoraBatch([worlds.video(1, frames)]), return_predictions=True)
            assert losses["predictions"][0][0]["loc_logits"].shape == (frames,)


def test_mistakes_are_named(worlds, model_of):
    model = model_of("video", "global")

    def error(change):
        video = worlds.video(7, 3)
        change(video.questions[0])
        with pytest.raises(DataError, match="video 'video_7', question 0") as caught:
            model(MoraBatch([video]))
        return str(caught.value)

    assert "2 image tokens" in error(lambda q: q.input_ids.__setitem__(4, IMAGE_TOKEN_INDEX))
    assert "masks are 2 tubes" in error(lambda q: setattr(q, "masks", q.masks.repeat(2, 1, 1, 1)))
    assert "outside the 3" in error(lambda q: setattr(q, "mask_frames", torch.tensor([0, 3])))
    assert "no [LOC]" in error(lambda q: q.input_ids.masked_fill_(q.input_ids == 6, 11))
    assert "labels before the image" in error(lambda q: q.labels.__setitem__(0, 50))
    assert "labels" in error(lambda q: setattr(q, "labels", q.labels[1:]))


def test_unknown_token_ids_are_an_error(worlds):
    batch = MoraBatch([worlds.video(1, 2)])
    for field in ("seg_token_id", "loc_token_id"):
        with pytest.raises(ConfigError, match=field):
            worlds.model(**{field: None})(batch)
