"""What a model generates, read again with teacher forcing: the same states, masks and times, row by row."""

from __future__ import annotations

import torch

from model import answering
from model.answering import Request
from tests.model.fresh_session import reading
from utils.batch import IGNORE_INDEX, MoraBatch, QuestionTensors

MODES = [("video", "global"), ("pooled", "global"), ("frame", "global"), ("frame", "frame"), ("video", "none")]
FRAMES = 3


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def as_training_question(prompt, ids, eos, size):
    """A prompt and a generated answer as one taught conversation whose masks are asked for on every frame."""
    input_ids = torch.cat([prompt, torch.tensor([*ids, eos])])
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[len(prompt) :] = input_ids[len(prompt) :]
    return QuestionTensors(
        input_ids=input_ids,
        labels=labels,
        masks=torch.zeros(1, FRAMES, *size, dtype=torch.uint8),
        mask_frames=torch.arange(FRAMES),
        in_window=torch.zeros(FRAMES),
    )


def test_generated_states_masks_and_times_equal_the_training_forward(
    worlds, model_of, monkeypatch, visual_mode, loc_mode, cached
):
    model = model_of(visual_mode, loc_mode)
    video = worlds.video(5, FRAMES, segs=[1, 1])
    context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
    prompts = [q.input_ids[: int((q.labels != IGNORE_INDEX).nonzero()[0])] for q in video.questions]
    prompted = []
    to_prompts = model.prompt_embeddings
    monkeypatch.setattr(model, "prompt_embeddings", lambda states: prompted.append(states) or to_prompts(states))
    request = Request(max_new_tokens=5, force_seg_token=True, force_loc_token=True, eos_token_id=worlds.eos)
    answers = answering.answer(model, context, prompts, request)
    (generated_states,) = prompted
    rows = FRAMES if visual_mode == "frame" else 1
    number = 0
    for prompt, answer in zip(prompts, answers):
        assert len(answer.token_ids) == rows
        for row, ids in enumerate(answer.token_ids):
            assert ids.count(worlds.seg) == 1, "these random models never say [SEG] by themselves"
            with reading(not cached):
                (read,) = answering.read(model, context, [torch.cat([prompt, torch.tensor(ids)])])
            close(generated_states[number], read.seg_states[0, row])
            number += 1
            video.questions = [as_training_question(prompt, ids, worlds.eos, video.original_size)]
            with torch.no_grad():
                ((taught,),) = model(MoraBatch([video]), return_predictions=True)["predictions"]
            frames = [row] if rows > 1 else range(FRAMES)
            for frame in frames:
                assert answer.has_seg[frame]
                close(answer.masks[frame], taught["mask_logits"][0, frame])
            same_words = len(set(map(tuple, answer.token_ids))) == 1
            if loc_mode == "frame":
                close(answer.loc_probs[row], taught["loc_logits"].sigmoid()[row])
            elif loc_mode == "global" and same_words:  # the head takes the mean state of all rows
                close(answer.loc_probs, taught["loc_logits"].sigmoid())
    assert number == len(generated_states) == 2 * rows
