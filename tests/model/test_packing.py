"""Rows of several questions: positions, masks, places."""

import pytest
import torch

from model.backbones.packing import Row, attention_mask, pack, segment_mask, split_at_image
from utils.batch import IMAGE_TOKEN_INDEX
from utils.errors import DataError


def test_layout_of_two_rows():
    layout = pack([Row([1, 2], 0, 3, [[3, 4], [5]]), Row([], -1, 0, [[7, 8, 9]])])
    assert layout.ids.tolist() == [[1, 2, 0, 0, 0, 3, 4, 5], [7, 8, 9, 0, 0, 0, 0, 0]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert layout.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 2], [1, 1, 1, -1, -1, -1, -1, -1]]
    assert layout.visual_places.tolist() == [2, 3, 4] and layout.visual_rows == [0]
    assert layout.starts == [[5, 7], [0]] and layout.prefix_lengths == [5, 0]


def test_what_predicts_a_token():
    layout = pack([Row([1, 2], 0, 3, [[3, 4], [5]]), Row([], -1, 0, [[7, 8]])])
    assert layout.place_before(0, 0, 1) == 5
    assert layout.place_before(0, 0, 0) == layout.place_before(0, 1, 0) == 4, "the last visual token predicts both"
    assert layout.place_before(1, 0, 1) == 8 and layout.place_before(1, 0, 0) is None
    assert layout.place(0, 1, 0) == 7


def test_single_suffixes_need_neither_mask_nor_positions():
    layout = pack([Row([1], 0, 2, [[3]]), Row([1], 1, 2, [[4, 5]])])
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


def test_mask_by_implementation():
    allowed = torch.tensor([[[[True, False]]]])
    assert attention_mask(allowed, "sdpa", torch.float32) is allowed
    eager = attention_mask(allowed, "eager", torch.bfloat16)
    assert eager.dtype == torch.bfloat16 and eager.tolist() == [[[[0.0, torch.finfo(torch.bfloat16).min]]]]


def test_split_at_image():
    assert split_at_image([1, IMAGE_TOKEN_INDEX, 2, 3], "x") == ([1], [2, 3], True)
    assert split_at_image([1, 2], "x") == ([], [1, 2], False)
    with pytest.raises(DataError, match="clip 3: 2 image tokens"):
        split_at_image([IMAGE_TOKEN_INDEX] * 2, "clip 3")
