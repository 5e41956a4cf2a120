"""Rows of several questions: positions, masks, places."""

import pytest
import torch

from model.layout import Row, after, pack, segment_mask, split_at_images
from utils.batch import IMAGE_TOKEN_INDEX
from utils.errors import DataError


def test_layout_of_two_rows():
    layout = pack([Row([1, 2, (1, 3)], [[3, 4], [5]], 0), Row([], [[7, 8, 9]])])
    assert layout.ids.tolist() == [[1, 2, 0, 0, 0, 3, 4, 5], [7, 8, 9, 0, 0, 0, 0, 0]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert layout.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2], [1, 1, 1, -1, -1, -1, -1, -1]]
    assert layout.images == [[2, 3, 4], []]
    assert layout.starts == [[5, 7], [0]] and layout.prefix_lengths == [5, 0]


def test_what_predicts_a_token():
    layout = pack([Row([1, 2, (1, 3)], [[3, 4], [5]], 0), Row([], [[7, 8]])])
    assert layout.place_before(0, 0, 1) == 5
    assert layout.place_before(0, 0, 0) == layout.place_before(0, 1, 0) == 4, "the last visual token predicts both"
    assert layout.place_before(1, 0, 1) == 8 and layout.place_before(1, 0, 0) is None


def test_single_suffixes_need_neither_mask_nor_positions():
    layout = pack([Row([1, (2, 1)], [[3]], 0), Row([1, (2, 1)], [[4, 5]], 1)])
    assert layout.segments is None and layout.position_ids is None
    assert layout.ids.tolist() == [[1, 0, 0, 3, 0], [1, 0, 0, 4, 5]]


def test_mask_by_definition():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    allowed = segment_mask(segments, segments)[0, 0]
    for q in range(6):
        for k in range(6):
            inside = segments[0, k] == 0 or segments[0, k] == segments[0, q]
            assert allowed[q, k] == (k <= q and bool(inside))
    assert torch.equal(segment_mask(segments[:, 4:], segments)[0, 0], allowed[4:]), "later queries, all keys"
    assert allowed.any(-1).all(), "padding sees itself, so no softmax is empty"


def test_split_at_images():
    assert split_at_images([1, IMAGE_TOKEN_INDEX, 2, 3], [(1, 4)], "x") == ([1, (1, 4)], [2, 3])
    assert split_at_images([1, 2], [(1, 4)], "x") == ([], [1, 2])
    several = [1, IMAGE_TOKEN_INDEX, 7, IMAGE_TOKEN_INDEX, 2]
    assert split_at_images(several, [(2, 3), (1, 2)], "x") == ([1, (2, 3), 7, (1, 2)], [2])
    with pytest.raises(DataError, match="clip 3: 2 image tokens"):
        split_at_images([IMAGE_TOKEN_INDEX] * 2, [(1, 4)], "clip 3")


def test_rows_of_several_images_and_axes():
    """Text between images; every question's positions go on from the largest of its prefix, on all axes."""
    prefix = [1, (2, 1), 8, (1, 2)]
    axes = torch.tensor([[0, 1, 1, 3, 4, 4], [0, 1, 2, 3, 4, 4], [0, 1, 1, 3, 4, 5]])
    empty = torch.zeros(3, 0, dtype=torch.long)
    rows = [Row(prefix, [[5, 6], [7]], 1), Row([], [[9]])]
    layout = pack(rows, positions_of=lambda pieces: axes if pieces else empty)
    assert after(axes) == 6 and after(empty) == 0
    assert layout.ids.tolist() == [[1, 0, 0, 8, 0, 0, 5, 6, 7], [9] + [0] * 8]
    assert layout.images == [[1, 2, 4, 5], []]
    assert layout.position_ids.shape == (3, 2, 9)
    assert torch.equal(layout.position_ids[:, 0, :6], axes)
    assert layout.position_ids[:, 0, 6:].tolist() == [[6, 7, 6]] * 3 and not layout.position_ids[:, 1].any()
    alone = pack(rows[:1], positions_of=lambda pieces: axes)
    assert torch.equal(alone.position_ids[:, 0], layout.position_ids[:, 0])
