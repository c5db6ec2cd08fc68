"""Each contract test runs twice: on the standard package, and on plait's."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

import plait.multiprocessing


@pytest.fixture(params=["standard", "plait"])
def package(request: pytest.FixtureRequest) -> Any:
    """A `multiprocessing`."""
    return multiprocessing if request.param == "standard" else plait.multiprocessing
