"""The [LOC] heads."""

import pytest
import torch

from model.localization import FrameLocHead, GlobalLocHead, build_loc_head, fourier_features, normalised_times


def test_times_and_their_code():
    assert normalised_times(1).tolist() == [0]
    assert normalised_times(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    code = fourier_features(normalised_times(20))
    assert code.shape == (20, 16) and code.abs().max() <= 1
    distances = torch.cdist(code, code) + 10 * torch.eye(20)
    assert distances.min() > 0.2, "every frame of twenty has its own code"
    torch.testing.assert_close(fourier_features(normalised_times(39))[::2], code), "it depends on the time, not on T"


def test_global_head_by_definition():
    torch.manual_seed(0)
    head = GlobalLocHead(6, 8, heads=2)
    states, frames = torch.randn(3, 6), torch.randn(4, 5, 6)
    got = head(states, frames)
    assert got.shape == (3, 4)
    for q in range(3):
        for t in range(4):
            found = []
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                query, key = head.query(states[q])[part], head.key(frames[t])[:, part]
                value = head.value(frames[t])[:, part]
                found.append((key @ query / 2).softmax(0) @ value)
            found, state = torch.cat(found), head.state(states[q])
            time = fourier_features(torch.tensor(t / 3))
            torch.testing.assert_close(got[q, t], head.mlp(torch.cat([state, found, state * found, time]))[0])


def test_questions_and_lengths_do_not_mix():
    torch.manual_seed(1)
    head = GlobalLocHead(6, 8)
    states, frames = torch.randn(3, 6), torch.randn(20, 2, 6)
    together = head(states, frames)
    for q in range(3):
        torch.testing.assert_close(together[q], head(states[q : q + 1], frames)[0])
    assert head(states, frames[:5]).shape == (3, 5)


def test_frame_head_takes_any_shape():
    head = FrameLocHead(6, 8)
    states = torch.randn(2, 7, 6)
    assert head(states).shape == (2, 7)
    torch.testing.assert_close(head(states)[1, 3], head(states[1, 3]))


@pytest.mark.parametrize("mode, kind", [("none", type(None)), ("frame", FrameLocHead), ("global", GlobalLocHead)])
def test_heads_by_mode(mode, kind):
    assert isinstance(build_loc_head(mode, 6, 8), kind)
