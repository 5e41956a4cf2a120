"""From a tower's features to visual tokens."""

import pytest
import torch
from torch import nn

from model.backbones.llava import Projector, vision_features


@pytest.fixture
def projector_of(worlds):
    """A projector whose layers pass their input on, so that its tokens can be read: the width fits by itself."""

    def make(**fields):
        plain = {"projector": "linear", "projector_shuffle": 1, "projector_motion": False}
        projector = Projector(worlds.config(**{**plain, "frame_time_embedding": False, **fields}))
        projector.layers = nn.Sequential(nn.Identity())
        return projector

    return make


def features(frames=3, patches=16, channels=2):
    return torch.randn(frames, patches, channels, generator=torch.Generator().manual_seed(0))


def test_rows_by_mode(projector_of):
    x = features()
    assert torch.equal(projector_of(visual_mode="frame", loc_mode="none")(x), x)
    assert torch.equal(projector_of(visual_mode="video")(x), x.reshape(1, 48, 2)), "frame after frame"
    pooled = projector_of(visual_mode="pooled")(x)
    assert pooled.shape == (1, 16 + 3, 2)
    torch.testing.assert_close(pooled[0, :16], x.mean(0))
    torch.testing.assert_close(pooled[0, 16:], x.mean(1))


@pytest.mark.parametrize("mode, tokens", [("frame", 16), ("video", 16), ("pooled", 1)])
def test_frame_states_finds_each_frames_tokens(projector_of, mode, tokens):
    x = features()
    projector = projector_of(visual_mode=mode, loc_mode="none")
    states = projector.frame_states(projector(x), 3)
    assert states.shape == (3, tokens, 2)
    torch.testing.assert_close(states, x if tokens == 16 else x.mean(1, keepdim=True))


def test_shuffle_joins_neighbours(projector_of):
    x = torch.arange(16.0).reshape(1, 16, 1)  # a 4 x 4 grid numbered row after row
    tokens = projector_of(projector_shuffle=2)(x)[0]
    blocks = [sorted(token.tolist()) for token in tokens]
    assert blocks == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_motion_is_the_change_since_the_frame_before(projector_of):
    x = features()
    tokens = projector_of(projector_motion=True, visual_mode="frame", loc_mode="none")(x)
    assert torch.equal(tokens[..., :2], x)
    assert not tokens[0, :, 2:].any()
    torch.testing.assert_close(tokens[1:, :, 2:], x[1:] - x[:-1])


@pytest.mark.parametrize("mode", ["frame", "video", "pooled"])
def test_time_is_added_to_the_tokens_of_its_frame(worlds, mode):
    fields = {"visual_mode": mode, "loc_mode": "none"}
    with_time, without = worlds.model(**fields).projector, worlds.model(**fields, frame_time_embedding=False).projector
    without.load_state_dict({k: v for k, v in with_time.state_dict().items() if "frame_time" not in k})
    x = features(channels=96)
    added = with_time(x) - without(x)
    if mode == "pooled":
        assert not added[0, :4].any(), "a mean over time has no time"
        added = added[:, 4:]
    added = added.reshape(3, -1, added.shape[-1])
    torch.testing.assert_close(added, added[:, :1].expand_as(added), atol=1e-6, rtol=1e-4)
    assert (added[0, 0] - added[1, 0]).abs().max() > 1e-3 and (added[1, 0] - added[2, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1])
def test_vision_features_are_hidden_states_without_the_class_token(worlds, layer):
    model = worlds.model()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    wanted = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert len(wanted) == 3
    torch.testing.assert_close(vision_features(model.vision_tower, pixels, layer), wanted[layer][:, 1:])
