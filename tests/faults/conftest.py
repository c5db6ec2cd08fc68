"""A seed for tests that leave something to chance: printed, and taken from PLAIT_TEST_SEED if that is set."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's chance."""
    value = int(os.environ.get("PLAIT_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{request.node.name}: PLAIT_TEST_SEED={value}")
    return value
