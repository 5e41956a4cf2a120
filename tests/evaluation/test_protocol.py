"""The contract: presets, refusals, sampling."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from evaluation.protocol import CHOICES, SCORING_FIELDS, Protocol, make_protocol
from utils.errors import ConfigError


def test_presets_differ_only_in_the_arithmetic_of_the_frames_and_windows():
    new, old = make_protocol("groundmore").as_dict(), make_protocol("groundmore_2025").as_dict()
    assert {key for key in new if new[key] != old[key]} == {"name", "frame_sampling", "window"}
    assert make_protocol("groundmore_2025", num_frames=5, window=None).window == "unclipped"


def test_sampling():
    assert make_protocol("groundmore_2025").sample(58).tolist() == np.linspace(0, 57, 20, dtype=int).tolist()
    assert make_protocol(num_frames=8).sample(24).tolist() == [0, 3, 7, 10, 13, 16, 20, 23]
    assert make_protocol("groundmore_2025", num_frames=8).sample(24).tolist() == [0, 3, 6, 9, 13, 16, 19, 23]
    short = make_protocol(num_frames=5).sample(2)
    assert short.tolist() == sorted(short.tolist()) and set(short.tolist()) == {0, 1} and len(short) == 5


def test_every_choice_is_described_and_stored():
    protocol = make_protocol(loc_refine=True)
    text = "\n".join(protocol.describe())
    for field in dataclasses.fields(Protocol):
        assert field.name in protocol.as_dict()
        assert field.name == "name" or f"{field.name} = {protocol.as_dict()[field.name]}" in text
    assert set(CHOICES) <= set(protocol.as_dict())


def test_scoring_fields_do_not_touch_the_predictions():
    base = make_protocol()
    other = make_protocol("groundmore_2025", frame_sampling="uniform", loc_refine=True, loc_threshold=0.9)
    assert base.prediction_settings() == other.prediction_settings()
    assert not set(SCORING_FIELDS) & set(base.prediction_settings())
    assert base.prediction_settings() != make_protocol(force_seg_token=True).prediction_settings()


def test_all_mistakes_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        make_protocol(frame_sampling="random", num_frames=0, loc_threshold=1.5, seg_only=True, loc_refine=True)
    for word in ("frame_sampling", "num_frames", "loc_threshold", "seg_only", "4 problems"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="groundmore_2025"):
        make_protocol("davis")
