"""The motion world at other sizes and lengths, still videos, touching shapes, and settings that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.synthetic import WorldSettings, make_still_video, make_video
from datasets.synthetic.shapes import contact_distance, extent
from tests.datasets.motion_worlds import render
from utils.errors import ConfigError


def test_still_videos_show_the_objects_and_no_motion():
    video = make_still_video(3, 0, WorldSettings(), num_frames=40)
    frames, id_maps = render(video)
    assert frames.shape == (40, 64, 64, 3) and id_maps.shape == (40, 64, 64)
    assert not video.questions and not video.events
    assert [e.object_ids for e in video.expressions] == [(t.object_id,) for t in video.objects]
    assert set(np.unique(id_maps)) <= set(range(len(video.objects) + 1))
    steps = np.diff(video.centres, axis=1)
    ahead, behind = steps[:, 1:].reshape(-1, 2), steps[:, :-1].reshape(-1, 2)
    correlation = np.corrcoef(ahead[:, 0], behind[:, 0])[0, 1]
    assert correlation < -0.3, "independent places: steps undo one another (-0.5); motion: they go on"
    again = make_still_video(3, 0, WorldSettings(), num_frames=40)
    np.testing.assert_array_equal(render(again, [5])[0], render(video, [5])[0])


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (90, 40), (720, 1280)])
def test_every_canvas_size_works(size):
    settings = WorldSettings.hard(height=size[0], width=size[1])
    video = make_video(1, 1, settings)
    frames, id_maps = render(video, [0, 47])
    assert frames.shape == (2, *size, 3) and id_maps.shape == (2, *size)
    area = (id_maps[0] > 0).mean()
    assert 0.03 < area < 0.6


@pytest.mark.parametrize("num_frames", [24, 25, 60, 120])
def test_other_lengths_work(num_frames):
    video = make_video(1, 1, WorldSettings(num_frames=num_frames))
    assert video.num_frames == num_frames and len(video.questions) >= 5
    assert all(q.window[1] < num_frames for q in video.questions)


def test_length_jitter_gives_clips_of_several_lengths():
    lengths = {make_video(1, index, WorldSettings(length_jitter=1)).num_frames for index in range(12)}
    assert lengths == {42, 48, 54}


def test_touching_shapes_touch():
    assert contact_distance("circle", 5.0, "circle", 7.0, "right", 0.0) == pytest.approx(12.0, abs=0.2)
    assert contact_distance("square", 5.0, "square", 5.0, "up", 1.0) == pytest.approx(8.8, abs=0.2)
    assert contact_distance("circle", 5.0, "circle", 5.0, "left", 3.0) == pytest.approx(np.sqrt(91), abs=0.3)
    assert extent("triangle", "up") == pytest.approx(1.1, abs=0.03)
    assert extent("triangle", "down") == pytest.approx(0.72, abs=0.03)


@pytest.mark.parametrize(
    "values, word",
    [
        ({"num_frames": 12}, "4 seconds"),
        ({"height": 8}, "at least 32"),
        ({"level": "medium"}, "easy or hard"),
        ({"min_objects": 6, "max_objects": 5}, "min_objects"),
        ({"max_objects": 9}, "told apart"),
    ],
)
def test_impossible_settings_are_refused(values, word):
    with pytest.raises(ConfigError, match=word):
        WorldSettings(**values)


def test_no_room_is_an_error_and_not_an_endless_search():
    with pytest.raises(ConfigError, match="fewer or smaller objects"):
        make_video(0, 0, WorldSettings(radius=(20.0, 22.0)))
    with pytest.raises(ConfigError, match="split"):
        make_video(0, 0, WorldSettings(), split="dev")
