"""The simulated accelerator as a fixture."""

from __future__ import annotations

import pytest
import torch

from tests.model.conftest import Worlds
from tests.simulated.device import simulated


@pytest.fixture
def device():
    """The simulated device, there while the test runs; see :mod:`tests.simulated.device`."""
    if torch.cuda.is_available():
        pytest.skip("a real device is here, and PyTorch knows one accelerator at a time; the tests marked gpu use it")
    with simulated() as notes:
        yield notes


@pytest.fixture(scope="session")
def worlds() -> Worlds:
    """Factory of tiny models and videos."""
    return Worlds()
