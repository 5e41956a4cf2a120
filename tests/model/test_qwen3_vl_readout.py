"""What holds for LLaVA holds for Qwen3-VL: cached or not, forced or generated, alone or together, training or not."""

import pytest

from tests.model.qwen_worlds import QWEN_MODES, QwenWorlds, mode_of
from tests.model.test_promise_paths import test_generated_states_masks_and_times_equal_the_training_forward
from tests.model.test_readout import (
    test_a_training_model_answers_as_in_eval_and_goes_on_training,
    test_cached_reading_equals_reading_everything_again,
    test_forced_answers_equal_the_training_forward,
    test_generated_equals_forced_with_the_same_words,
    test_generation_is_greedy_and_stops,
    test_no_seg_no_mask_two_segs_the_higher,
    test_states_are_those_one_before_the_token,
    test_together_equals_one_by_one,
)

MODES = QWEN_MODES

__all__ = [
    "test_a_training_model_answers_as_in_eval_and_goes_on_training",
    "test_cached_reading_equals_reading_everything_again",
    "test_forced_answers_equal_the_training_forward",
    "test_generated_equals_forced_with_the_same_words",
    "test_generated_states_masks_and_times_equal_the_training_forward",
    "test_generation_is_greedy_and_stops",
    "test_no_seg_no_mask_two_segs_the_higher",
    "test_states_are_those_one_before_the_token",
    "test_together_equals_one_by_one",
]


@pytest.fixture
def worlds(request) -> QwenWorlds:
    """Of the mode that the test runs with."""
    return QwenWorlds(mode_of(request))


@pytest.fixture(scope="module")
def model_of():
    """Models by mode, each built once."""
    made = {}

    def get(visual_mode, loc_mode):
        if (visual_mode, loc_mode) not in made:
            made[visual_mode, loc_mode] = QwenWorlds(visual_mode).model(loc_mode=loc_mode)
        return made[visual_mode, loc_mode]

    return get
