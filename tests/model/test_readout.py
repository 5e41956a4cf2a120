"""Reading and answering over an encoded video: cached or not, forced or generated, alone or together."""

import pytest
import torch

from model import answering
from model.answering import NO_MASK_LOGIT, Request
from tests.model.fresh_session import reading
from utils.batch import IMAGE_TOKEN_INDEX, MoraBatch
from utils.errors import ConfigError, DataError

MODES = [("video", "global"), ("pooled", "global"), ("frame", "global"), ("frame", "frame"), ("video", "none")]
"""For every test with ``visual_mode`` and ``loc_mode`` that does not say otherwise."""


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def encode(model, video):
    return answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)


def answer(model, context, prompts, **request):
    return answering.answer(model, context, prompts, Request(**request))


def cut(question):
    """A training conversation as (prompt, answer without the end token)."""
    start = int((question.labels != -100).nonzero()[0])
    return question.input_ids[:start], question.input_ids[start:-1]


def shift_of(visual):
    """By how much the text after the images lies further back than its ids."""
    return visual.tokens.shape[1] - len(visual.grids)


def same_answer(a, b):
    assert a.token_ids == b.token_ids
    assert torch.equal(a.has_seg, b.has_seg)
    assert (a.forced_seg, a.forced_loc) == (b.forced_seg, b.forced_loc)
    close(a.masks, b.masks)
    assert (a.loc_probs is None) == (b.loc_probs is None)
    if a.loc_probs is not None:
        close(a.loc_probs, b.loc_probs)


def test_cached_reading_equals_reading_everything_again(worlds, model_of, visual_mode, loc_mode):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(1, 3, segs=[1, 2, 0])
    generator = torch.Generator().manual_seed(2)
    video.questions.append(worlds.question(generator, 3, segs=1, image=False, loc=False))
    context = encode(model, video)
    ids = [q.input_ids for q in video.questions]
    rows = 3 if visual_mode == "frame" else 1
    with reading(cached=False):
        whole = answering.read(model, context, ids)
    for fast, slow, q in zip(answering.read(model, context, ids), whole, video.questions):
        image = IMAGE_TOKEN_INDEX in q.input_ids
        close(fast.states, slow.states)
        close(fast.logits, slow.logits)
        close(fast.seg_states, slow.seg_states)
        assert fast.seg_states.shape == (q.masks.shape[0], rows if image else 1, 64)
        assert fast.states.shape[1] == q.input_ids.numel() + (shift_of(context.visual) if image else 0)


def test_states_are_those_one_before_the_token(worlds, model_of, visual_mode, loc_mode, cached):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(1, 3, segs=[2])
    context = encode(model, video)
    ids = video.questions[0].input_ids
    (read,) = answering.read(model, context, [ids])
    offset = shift_of(context.visual)
    for number, place in enumerate((ids == worlds.seg).nonzero().flatten().tolist()):
        close(read.seg_states[number], read.states[:, place + offset - 1])
    after = (ids == IMAGE_TOKEN_INDEX).nonzero().max() + 1
    close(read.logits[:, 3], model.language_model.lm_head(read.states[:, after + 3 + offset - 1]))


def test_forced_answers_equal_the_training_forward(worlds, model_of, visual_mode, loc_mode, cached):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(4, 4, segs=[1, 1, 0])
    for question in video.questions:
        question.mask_frames = torch.arange(4)
        question.masks = torch.zeros(question.masks.shape[0], 4, *video.original_size, dtype=torch.uint8)
    with torch.no_grad():
        (trained,) = model(MoraBatch([video]), return_predictions=True)["predictions"]
    prompts, answers = zip(*map(cut, video.questions))
    got = answer(model, encode(model, video), prompts, forced=answers)
    for question, wanted, said in zip(video.questions, trained, got):
        if question.masks.shape[0]:
            close(said.masks, wanted["mask_logits"][0])
        assert said.has_seg.tolist() == [question.masks.shape[0] > 0] * 4
        if loc_mode != "none":
            close(said.loc_probs, wanted["loc_logits"].sigmoid())


def test_generated_equals_forced_with_the_same_words(worlds, model_of, visual_mode, loc_mode, cached):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(5, 3, segs=[1, 1])
    context = encode(model, video)
    prompts = [cut(question)[0] for question in video.questions]
    options = {"force_seg_token": True, "force_loc_token": True, "eos_token_id": worlds.eos}
    generated = answer(model, context, prompts, max_new_tokens=5, **options)
    for prompt, said in zip(prompts, generated):
        assert said.forced_seg and said.forced_loc == (loc_mode != "none")
        assert len(said.token_ids) == (3 if visual_mode == "frame" else 1)
        if len(set(map(tuple, said.token_ids))) == 1:  # one forced answer serves all rows
            forced = torch.tensor(said.token_ids[0])
            (again,) = answer(model, context, [prompt], forced=[forced])
            close(again.masks, said.masks)
            if said.loc_probs is not None:
                close(again.loc_probs, said.loc_probs)
    with reading(not cached):
        others = answer(model, context, prompts, max_new_tokens=5, **options)
    for a, b in zip(generated, others):
        same_answer(a, b)


def test_generation_is_greedy_and_stops(worlds, model_of, visual_mode, loc_mode):
    """Against a plain loop over one row, growing one token at a time."""
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(6, 2, segs=[1, 0, 1])
    context = encode(model, video)
    prompts = [cut(question)[0] for question in video.questions]
    free = answer(model, context, prompts, max_new_tokens=6, eos_token_id=-1)
    end = free[0].token_ids[0][2]  # an end token that does occur
    stopped = answer(model, context, prompts, max_new_tokens=6, eos_token_id=end)
    for prompt, long, short in zip(prompts, free, stopped):
        for row, tokens in enumerate(long.token_ids):
            ids = prompt
            for token in tokens:
                with reading(cached=False):
                    (read,) = answering.read(model, context, [ids])
                following = model.language_model.lm_head(read.states[row, -1]).argmax()
                assert following == token
                ids = torch.cat([ids, following[None]])
            kept = tokens[: tokens.index(end)] if end in tokens else tokens
            assert short.token_ids[row] == kept and len(tokens) == 6


def test_together_equals_one_by_one(worlds, model_of, visual_mode, loc_mode):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(7, 3, segs=[1, 2, 0, 1])
    generator = torch.Generator().manual_seed(2)
    video.questions.append(worlds.question(generator, 3, segs=1, prefix=4))
    prompts = [cut(question)[0] for question in video.questions]
    options = {"max_new_tokens": 4, "force_seg_token": True, "force_loc_token": True, "eos_token_id": worlds.eos}
    together = answer(model, encode(model, video), prompts, **options)
    for prompt, said in zip(prompts, together):
        same_answer(said, answer(model, encode(model, video), [prompt], **options)[0])


def test_reading_does_not_change_the_context(worlds, model_of):
    model = model_of("frame", "global")
    video = worlds.video(8, 2, segs=[1, 1])
    context = encode(model, video)
    prompts = [cut(question)[0] for question in video.questions]
    first = answer(model, context, prompts, max_new_tokens=4, force_seg_token=True)
    (prefix,) = context.prefixes.values()
    kept = [tensor.clone() for layer in prefix.layers for tensor in layer] + [prefix.states.clone()]
    second = answer(model, context, prompts, max_new_tokens=4, force_seg_token=True)
    assert list(context.prefixes.values()) == [prefix], "the prefix is read once per video"
    after = [tensor for layer in prefix.layers for tensor in layer] + [prefix.states]
    assert all(torch.equal(a, b) for a, b in zip(kept, after))
    for a, b in zip(first, second):
        same_answer(a, b)


def test_encoders_do_not_run_for_questions(worlds, model_of, monkeypatch):
    model = model_of("video", "global")
    video = worlds.video(8, 2, segs=[1, 1])
    context = encode(model, video)
    calls = []
    monkeypatch.setattr(model.sam, "encode", lambda *a: calls.append("sam"))
    monkeypatch.setattr(model.backbone, "encode", lambda *a: calls.append("clip"))
    decode = model.sam.decode
    monkeypatch.setattr(model.sam, "decode", lambda *a: calls.append("decode") or decode(*a))
    answer(model, context, [cut(q)[0] for q in video.questions], max_new_tokens=3, force_seg_token=True)
    assert calls == ["decode"]


@pytest.mark.parametrize("visual_mode, loc_mode", [("video", "global"), ("frame", "frame")])
def test_no_seg_no_mask_two_segs_the_higher(worlds, model_of, visual_mode, loc_mode):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(9, 2)
    context, (prompt, _) = encode(model, video), cut(video.questions[0])
    forced = [torch.tensor(ids) for ids in ([11], [11, 5], [11, 5, 5])]
    none, one, two = answer(model, context, [prompt] * 3, forced=forced)
    assert (none.masks == NO_MASK_LOGIT).all() and not none.has_seg.any() and none.loc_probs is None
    assert one.has_seg.all() and one.masks.abs().max() < 1000 and one.masks.dtype == torch.float32
    assert (two.masks >= one.masks - 1e-5).all() and (two.masks > one.masks + 1e-3).any()


def test_frames_answer_for_themselves(worlds, model_of, monkeypatch):
    """In frame mode a row may say [SEG] and another not: only the first has a mask and a time."""
    model = model_of("frame", "frame")
    video = worlds.video(10, 3)
    context, (prompt, _) = encode(model, video), cut(video.questions[0])
    (full,) = answer(model, context, [prompt], forced=[torch.tensor([11, 5, 6])])
    mixed = [[11, 5, 6], [11], [11, 6]]
    monkeypatch.setattr("model.answering.generate", lambda *args: [mixed])
    (said,) = answer(model, context, [prompt])
    assert said.has_seg.tolist() == [True, False, False]
    close(said.masks[0], full.masks[0])
    assert (said.masks[1:] == NO_MASK_LOGIT).all()
    close(said.loc_probs[0], full.loc_probs[0])
    assert said.loc_probs[1] == 0 and said.loc_probs[2] > 0


def test_a_training_model_answers_as_in_eval_and_goes_on_training(worlds):
    model = worlds.model()
    video = worlds.video(11, 2)
    prompt, _ = cut(video.questions[0])
    wanted = answer(model, encode(model, video), [prompt], max_new_tokens=3, force_seg_token=True)
    model.train()
    model.sam.vision_encoder.eval()
    model.set_gradient_checkpointing(True)
    got = answer(model, encode(model, video), [prompt], max_new_tokens=3, force_seg_token=True)
    same_answer(wanted[0], got[0])
    assert model.training and model.language_model.training and not model.sam.vision_encoder.training


def test_bad_requests_are_named(worlds, model_of):
    model = model_of("video", "global")
    context = encode(model, worlds.video(1, 2))
    prompt = torch.tensor([11, IMAGE_TOKEN_INDEX, 12])
    with pytest.raises(ConfigError, match="2 forced answers for 1 prompts"):
        answer(model, context, [prompt], forced=[prompt, prompt])
    with pytest.raises(DataError, match="prompt 0: 2 image tokens"):
        answer(model, context, [torch.tensor([IMAGE_TOKEN_INDEX] * 2)])


def test_nothing_to_answer(worlds, model_of):
    model = model_of("video", "global")
    context = encode(model, worlds.video(1, 2))
    assert answer(model, context, []) == [] and answering.read(model, context, []) == []
