"""Each contract test runs twice: on the standard package, and on plait's."""

from __future__ import annotations

import multiprocessing
import os
import random
from typing import Any

import pytest

import plait.multiprocessing


@pytest.fixture(params=["standard", "plait"])
def package(request: pytest.FixtureRequest) -> Any:
    """A `multiprocessing`."""
    return multiprocessing if request.param == "standard" else plait.multiprocessing


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's chance: printed, and taken from PLAIT_TEST_SEED if that is set."""
    value = int(os.environ.get("PLAIT_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{request.node.name}: PLAIT_TEST_SEED={value}")
    return value
