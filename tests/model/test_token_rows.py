"""Token ids that the word embeddings have no row for: a named error before they reach the device."""

from __future__ import annotations

import copy

import pytest
import torch

from model import answering
from model.answering import Request
from model.initialization import resize_vocabulary
from model.layout import require_rows
from utils.batch import IMAGE_TOKEN_INDEX, MoraBatch
from utils.errors import ConfigError, TokenizerError

ROWS = 64
STRANGE = [ROWS, 10**6, -1, -100]


def test_rows_are_counted():
    require_rows([], 3)
    require_rows([0, 2, 1], 3)
    with pytest.raises(TokenizerError, match=r"token ids -1, 3, 7 have no row in the word embeddings \(3 rows\)"):
        require_rows([3, 0, -1, 7, 3], 3)


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("place", ["before the image", "after the image", "in the answer"])
def test_reading_and_answering(worlds, model_of, place, cached, strange):
    model = model_of("video", "global")
    video = worlds.video(1, 2)
    context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
    before, after, answer = [50, 51], [12, 13], [worlds.seg]
    {"before the image": before, "after the image": after, "in the answer": answer}[place].append(strange)
    prompt = torch.tensor([*before, IMAGE_TOKEN_INDEX, *after])
    with pytest.raises(TokenizerError, match=f"token ids {strange} have no row"):
        answering.read(model, context, [torch.cat([prompt, torch.tensor(answer)])])
    forced = Request(forced=[torch.tensor(answer)])
    with pytest.raises(TokenizerError, match=f"token ids {strange} have no row"):
        answering.answer(model, context, [prompt], forced)
    # A good question after it is answered as before.
    answering.answer(model, context, [torch.tensor([50, 51, IMAGE_TOKEN_INDEX, 12])], Request(max_new_tokens=1))


@pytest.mark.parametrize(
    ("what", "strange"), [*(("input_ids", each) for each in STRANGE), *(("labels", each) for each in STRANGE[:-1])]
)
@pytest.mark.parametrize("visual_mode", ["video", "frame"])
def test_training(worlds, model_of, what, strange, visual_mode):
    video = copy.deepcopy(worlds.video(1, 2))
    getattr(video.questions[0], what)[-2] = strange
    if what == "input_ids":
        video.questions[0].labels[-2] = 10
    with pytest.raises(TokenizerError, match=f"token ids {strange} have no row"):
        model_of(visual_mode, "none")(MoraBatch([video]))


def test_ids_of_the_special_tokens(worlds):
    model = worlds.model()
    for name in ("seg_token_id", "loc_token_id"):
        right = getattr(model.config, name)
        for strange in (ROWS, -1):
            setattr(model.config, name, strange)
            with pytest.raises(ConfigError, match=rf"{name} is {strange}, but the word embeddings have {ROWS} rows"):
                model.token_ids()
        setattr(model.config, name, right)
    model.resize_token_embeddings(ROWS + 1)
    model.config.seg_token_id = ROWS
    assert model.token_ids() == (ROWS, worlds.loc)


def test_any_of_several_ends_ends_an_answer(worlds, model_of):
    """Llama 3 has a list of them in its config.json."""
    model = model_of("video", "global")
    video = worlds.video(1, 2)
    context = answering.encode(model, video.clip_pixels, video.sam_pixels, video.resized_size, video.original_size)
    prompt = [torch.tensor([50, IMAGE_TOKEN_INDEX, 12])]
    (long,) = answering.answer(model, context, prompt, Request(max_new_tokens=3, eos_token_id=[]))
    first = long.token_ids[0][0]
    (none,) = answering.answer(model, context, prompt, Request(max_new_tokens=3, eos_token_id=[-1, first]))
    assert len(long.token_ids[0]) == 3 and none.token_ids == [[]]


def test_rows_of_new_words_are_a_mean_with_noise_from_one_stream():
    """A seed's weights follow from the order of the draws: embeddings first, then the head."""
    torch.manual_seed(0)
    embeddings, head = torch.nn.Embedding(10, 8), torch.nn.Linear(8, 10, bias=False)
    before = [module.weight.detach().clone() for module in (embeddings, head)]
    resize_vocabulary(embeddings, head, 13)
    stream = torch.Generator().manual_seed(13)
    for old, module in zip(before, (embeddings, head)):
        new = old.mean(0) + 0.1 * old.std(0) * torch.randn(3, 8, generator=stream)
        assert torch.equal(module.weight, torch.cat([old, new]))
