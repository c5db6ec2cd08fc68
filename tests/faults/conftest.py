"""A seed for tests that leave something to chance, and a look at what each test leaves behind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from faults.leftovers import excess, holdings


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's chance: printed, and taken from PLAIT_TEST_SEED if that is set."""
    value = int(os.environ.get("PLAIT_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{request.node.name}: PLAIT_TEST_SEED={value}")
    return value


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No test leaves a descriptor, a mapping, a thread or a process behind."""
    before = holdings()
    yield
    assert excess(before) == {}
