"""The procedural world is what its log says: checked against paths and pixels, not against the code that wrote it."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from datasets.sample import QUESTION_TYPES
from datasets.synthetic import (
    COLOURS,
    WorldSettings,
    make_video,
)
from datasets.synthetic.phrases import PAIR_PHRASES, PHRASES
from datasets.synthetic.settings import sampled_frame_indices
from datasets.synthetic.world import SPLITS
from tests.datasets.motion_worlds import id_maps, render

UNIT = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@pytest.fixture(scope="module")
def easy_videos():
    return [make_video(5, index, WorldSettings()) for index in range(250)]


@pytest.fixture(scope="module")
def hard_videos():
    return [make_video(5, index, WorldSettings.hard()) for index in range(60)]


@pytest.fixture(scope="module")
def all_videos(easy_videos, hard_videos):
    return easy_videos + hard_videos


def moving_frames(video, object_id):
    """bool [T]: the frames whose position differs from the frame before (frame 0 has none before)."""
    path = video.centres[object_id - 1]
    steps = np.abs(np.diff(path, axis=0)).max(axis=1) > 1e-9
    return np.concatenate([steps[:1] & steps[1:2], steps])


def start_and_stop(video):
    """Object id -> first and last moving frame, read off the paths; a start at frame 0 is seen at frame 1."""
    found = {}
    for target in video.objects:
        frames = np.flatnonzero(moving_frames(video, target.object_id))
        if len(frames):
            found[target.object_id] = (int(frames[0]), int(frames[-1]))
    return found


def alone(video, object_id, scale=1):
    """The same video with one object and no screen, so that nothing covers it."""
    settings = dataclasses.replace(video.settings, height=64 * scale, width=64 * scale)
    number = object_id - 1
    return dataclasses.replace(
        video,
        settings=settings,
        objects=[dataclasses.replace(video.objects[number], object_id=1)],
        centres=video.centres[number : number + 1],
        radii=video.radii[number : number + 1],
        screen=None,
    )


def gap(video, frame, one, other, scale=4):
    """Distance between the masks of two objects on a frame, in world units."""
    masks = [id_maps(alone(video, item, scale), [frame])[0] for item in (one, other)]
    return float(cv2.distanceTransform(1 - masks[0], cv2.DIST_L2, 5)[masks[1] > 0].min()) / scale


def test_the_arguments_alone_decide(easy_videos):
    again = make_video(5, 7, WorldSettings())
    assert again.questions == easy_videos[7].questions and again.events == easy_videos[7].events
    frames = [0, 20, 47]
    np.testing.assert_array_equal(render(again, frames)[0], render(easy_videos[7], frames)[0])
    backwards = render(make_video(5, 7, WorldSettings()), frames[::-1])[0]
    np.testing.assert_array_equal(backwards[::-1], render(easy_videos[7], frames)[0])


def test_splits_seeds_and_indices_give_other_videos():
    paths = [
        make_video(seed, index, WorldSettings(), split).centres.tobytes()
        for seed in (0, 1)
        for index in (0, 1)
        for split in SPLITS
    ]
    assert len(set(paths)) == len(paths)


def test_global_random_state_is_untouched():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    render(make_video(0, 0, WorldSettings()), [0])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_travel_windows_are_exactly_the_moving_frames(all_videos):
    for video in all_videos:
        for target in video.objects:
            logged = np.zeros(video.num_frames, dtype=bool)
            for event in video.events:
                if event.object_id == target.object_id and event.kind in ("move", "zigzag"):
                    logged[event.start : event.end + 1] = True
            np.testing.assert_array_equal(logged[1:], moving_frames(video, target.object_id)[1:])


def test_moves_go_the_way_the_log_says(all_videos):
    for video in all_videos:
        for event in video.events:
            if event.kind == "move":
                path = video.centres[event.object_id - 1]
                shift = path[event.end] - path[event.start]
                assert shift @ np.array(UNIT[event.direction]) > 5
                assert abs(shift @ np.array(UNIT[event.direction])[::-1]) < 1e-9


def test_radii_change_only_while_growing_or_shrinking(all_videos):
    for video in all_videos:
        for target in video.objects:
            radii = video.radii[target.object_id - 1]
            resized = [e for e in video.events if e.object_id == target.object_id and e.kind in ("grow", "shrink")]
            changed = np.flatnonzero(np.abs(np.diff(radii)) > 1e-9) + 1
            if not resized:
                assert not len(changed)
                continue
            (event,) = resized
            assert (changed[0], changed[-1]) == (max(event.start, 1), event.end)
            assert (radii[-1] > 1.3 * radii[0]) if event.kind == "grow" else (radii[-1] < 0.75 * radii[0])


def test_events_start_and_stop_on_whole_seconds(all_videos):
    for video in all_videos:
        for question in video.questions:
            assert question.window[0] % 6 == 0 and (question.window[1] + 1) % 6 == 0
            assert 0 <= question.window[0] < question.window[1] < video.num_frames


def test_pixels_change_inside_the_window_and_not_outside(easy_videos):
    for video in easy_videos[:12]:
        for target in video.objects:
            masks = id_maps(alone(video, target.object_id, scale=2))
            changed = (masks[1:] != masks[:-1]).any(axis=(1, 2))
            logged = np.zeros(video.num_frames, dtype=bool)
            for event in video.events:
                if event.object_id == target.object_id and event.kind in ("move", "zigzag", "grow", "shrink"):
                    logged[event.start : event.end + 1] = True
            assert not changed[~logged[1:]].any()
            assert not logged.any() or changed[logged[1:]].mean() > 0.4


def test_pushed_and_blocked_objects_touch_at_the_contact(easy_videos):
    checked = 0
    for video in easy_videos[:60]:
        for event in video.events:
            if event.kind == "push":
                assert gap(video, event.start - 1, event.object_id, event.partner) < 1.0
                assert gap(video, 0, event.object_id, event.partner) > 2.0
                assert not moving_frames(video, event.partner)[: event.start].any()
            elif event.kind == "blocked":
                assert gap(video, event.end, event.object_id, event.partner) < 1.0
                assert not moving_frames(video, event.object_id)[event.end + 1 :].any()
                assert not moving_frames(video, event.partner).any()
            checked += event.kind in ("push", "blocked")
    assert checked > 20


def test_hidden_objects_vanish_and_come_back():
    settings = WorldSettings(
        event_weights={"alone": 1.0, "hide": 1.0, "move": 1e-6}, min_questions=1, max_objects=4, screen_rate=0.0
    )
    videos = [make_video(2, index, settings) for index in range(12)]
    hides = [(video, event) for video in videos for event in video.events if event.kind == "hide"]
    assert len(hides) > 6
    for video, event in hides:
        area = (id_maps(video) == event.object_id).sum(axis=(1, 2))
        assert area[event.start] > 0 and area[event.end] > 0 and area[-1] > 0
        assert (area[event.start : event.end + 1] == 0).sum() >= 4
        sampled = sampled_frame_indices(video.num_frames)
        assert (area[: event.start] > 0).all() and (area[sampled] == 0).any()


def test_easy_objects_never_cover_each_other(easy_videos):
    for video in easy_videos[:50]:
        frames = sampled_frame_indices(video.num_frames)
        masks = np.stack([id_maps(alone(video, target.object_id), frames) for target in video.objects])
        assert (masks.sum(axis=0) > 1).sum(axis=(1, 2)).max() <= 16, "touching outlines share one row of pixels"


def test_hard_objects_do_cover_each_other(hard_videos):
    covered = 0
    for video in hard_videos:
        frames = sampled_frame_indices(video.num_frames)
        masks = np.stack([id_maps(alone(video, target.object_id), frames) for target in video.objects])
        covered += (masks.sum(axis=0) > 1).sum(axis=(1, 2)).max() > 20
    assert covered > 0.15 * len(hard_videos)


def test_objects_stay_on_the_canvas(all_videos):
    for video in all_videos:
        low, high = video.centres - video.radii[..., None], video.centres + video.radii[..., None]
        assert low.min() > 0 and (high < video.settings.canvas).all()


def test_masks_agree_with_the_colours_drawn(easy_videos):
    for video in easy_videos[:20]:
        frames, ids = render(video, [0, 30])
        for target in video.objects:
            seen = frames[ids == target.object_id].astype(float)
            if len(seen) > 40:
                distances = {name: np.abs(seen.mean(axis=0) - rgb).sum() for name, rgb in COLOURS.items()}
                assert min(distances, key=distances.get) == target.colour


def _expected(video, question):
    """Answers by brute force from paths and radii, for the templates where that needs no log."""
    spans = start_and_stop(video)
    key, text = question.key, question.text
    if key == "moves":
        (direction,) = [name for name in UNIT if f" {name}" in text]
        unit = np.array(UNIT[direction])
        return {o for o in spans if ((np.diff(video.centres[o - 1], axis=0) @ unit) > 1e-6).any()}
    change = video.radii[:, -1] - video.radii[:, 0]
    if key in ("grows", "shrinks"):
        return {int(o) + 1 for o in np.flatnonzero(change > 0 if key == "grows" else change < 0)}
    starts = {o: max(0, first - 1) if first == 1 else first for o, (first, _) in spans.items()}
    stops = {o: last for o, (_, last) in spans.items()}
    if key in ("first_start", "last_start"):
        extreme = (min if key == "first_start" else max)(starts.values())
        return {o for o, start in starts.items() if start == extreme}
    if key in ("first_stop", "last_stop"):
        extreme = (min if key == "first_stop" else max)(stops.values())
        return {o for o, stop in stops.items() if stop == extreme}
    named = [t.object_id for t in video.objects if f"the {t.name}" in text]
    if key == "after_start":
        return {o for o, start in starts.items() if start > starts[named[0]]}
    if key == "before_start":
        return {o for o, start in starts.items() if start < starts[named[0]]}
    if key == "after_stop":
        return {o for o, start in starts.items() if start > stops[named[0]]}
    return None


def test_answers_are_right_and_unique_by_the_paths(all_videos):
    seen = set()
    for video in all_videos:
        for question in video.questions:
            expected = _expected(video, question)
            if expected is not None:
                assert expected == set(question.answer_ids), (video.key, question)
                seen.add(question.key)
    assert len(seen) == 10


def test_causal_answers_follow_the_log(all_videos):
    roles = {
        "push_object": ("push", "partner"), "hit_object": ("push", "partner"), "cf_still": ("push", "partner"),
        "pusher": ("push", "object_id"), "cf_pusher": ("push", "object_id"),
        "blocked": ("blocked", "object_id"), "cf_blocked": ("blocked", "object_id"),
        "blocker": ("blocked", "partner"), "cf_blocker": ("blocked", "partner"),
        "leader": ("chase", "partner"), "cf_leader": ("chase", "partner"), "cf_chaser": ("chase", "object_id"),
    }  # fmt: skip
    seen = set()
    for video in all_videos:
        for question in video.questions:
            if question.key in roles:
                kind, role = roles[question.key]
                (event,) = [event for event in video.events if event.kind == kind]
                assert question.answer_ids == (getattr(event, role),)
                other = event.partner if role == "object_id" else event.object_id
                assert f"the {video.name_of(other)}" in question.text
                seen.add(question.key)
    assert seen == set(roles)


def test_answer_names_are_unique_and_never_in_the_question(all_videos):
    for video in all_videos:
        names = [target.name for target in video.objects]
        assert len(set(names)) == len(names)
        for question in video.questions:
            assert question.answer == " and ".join(f"the {video.name_of(item)}" for item in question.answer_ids)
            assert not any(video.name_of(item) in question.text for item in question.answer_ids)
            assert "{" not in question.text and question.text.endswith("?")


def test_every_template_has_three_phrasings_and_a_known_type():
    assert all(len(set(wordings)) >= 3 for _, wordings in PHRASES.values())
    assert {q_type for q_type, _ in [*PHRASES.values(), *PAIR_PHRASES.values()]} == set(QUESTION_TYPES)


def test_question_statistics(easy_videos):
    questions = [(video, question) for video in easy_videos for question in video.questions]
    assert 5 <= len(questions) / len(easy_videos) <= 10
    outside, types = [], []
    for video, question in questions:
        frames = sampled_frame_indices(video.num_frames)
        inside = (frames >= question.window[0]) & (frames <= question.window[1])
        assert inside.sum() >= 3
        outside.append(1 - inside.mean())
        types.append(question.q_type)
    assert 0.38 < np.mean(outside) < 0.46
    assert all(types.count(name) > 0.15 * len(types) for name in QUESTION_TYPES)
    assert len({question.window for _, question in questions}) >= 15


def test_the_answer_cannot_be_told_by_looks_size_place_or_order(easy_videos):
    """Against the video's other objects, the answer is of no special colour, shape, id, size or place."""
    single = [(v, q.answer_ids[0]) for v in easy_videos for q in v.questions if len(q.answer_ids) == 1]
    for attribute in ("colour", "shape"):
        values = sorted({getattr(t, attribute) for v in easy_videos for t in v.objects})
        for value in values:
            among_answers = np.mean([getattr(v.objects[a - 1], attribute) == value for v, a in single])
            among_all = np.mean([np.mean([getattr(t, attribute) == value for t in v.objects]) for v, _ in single])
            assert abs(among_answers - among_all) < 0.06, value
    for frame in (0, -1):
        features = {
            "id": lambda v: np.arange(len(v.objects)),
            "radius": lambda v, frame=frame: v.radii[:, frame],
            "x": lambda v, frame=frame: v.centres[:, frame, 0],
            "y": lambda v, frame=frame: v.centres[:, frame, 1],
            "off centre": lambda v, frame=frame: np.linalg.norm(v.centres[:, frame] - 32, axis=1),
        }
        chance = np.mean([1 / len(v.objects) for v, _ in single])
        for name, feature in features.items():
            ranks = [(feature(v) < feature(v)[a - 1]).sum() / (len(v.objects) - 1) for v, a in single]
            assert abs(np.mean(ranks) - 0.5) < 0.08, (name, frame)
            assert abs(np.mean(np.array(ranks) == 0) - chance) < 0.1, (name, frame)
            assert abs(np.mean(np.array(ranks) == 1) - chance) < 0.1, (name, frame)


def test_hard_videos_have_distractors_of_the_same_colour_and_shape(hard_videos):
    for video in hard_videos:
        assert len({t.colour for t in video.objects}) <= 3 and len({t.shape for t in video.objects}) <= 3
        assert len({t.colour for t in video.objects}) < len(video.objects)


def test_expressions_mean_what_they_say(all_videos):
    for video in all_videos:
        kinds = {expression.kind for expression in video.expressions}
        assert {"plain", "motion", "multi"} >= kinds and "plain" in kinds
        everyone = set(range(1, len(video.objects) + 1))
        movers = set(start_and_stop(video))
        for expression in video.expressions:
            ids = set(expression.object_ids)
            assert ids and ids <= everyone and "{" not in expression.text
            if expression.text.endswith((" one", "that move", "moving objects", "everything that moves")):
                colour = expression.text.split()[1]
                same = {t.object_id for t in video.objects if t.colour == colour}
                assert ids == (same if expression.text.endswith(" one") else movers)
            elif expression.kind == "plain":
                (target,) = [video.objects[item - 1] for item in ids]
                assert target.shape in expression.text
