"""CPython's own tests of asyncio's locks and queues, on plait's classes: on asyncio's loop and on plait's."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import types
import unittest
from typing import Any

import pytest

import plait
import plait.asyncio

if importlib.util.find_spec("test.test_asyncio") is None:
    pytest.skip("this Python was installed without CPython's tests", allow_module_level=True)

# What is left out, and why.
LEFT_OUT: dict[str, str] = {}


def loaded(name: str) -> types.ModuleType:
    """A copy of a module of tests, for which plait.asyncio is asyncio."""
    spec = importlib.util.find_spec(f"test.test_asyncio.{name}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["asyncio"] = plait.asyncio
    return module


class OnPlaitsLoop:
    """Runs a test case on plait's loop."""

    loop_factory = plait.EventLoop

    def setUp(self) -> None:
        if sys.version_info < (3, 13):
            asyncio.set_event_loop_policy(plait.asyncio.DefaultEventLoopPolicy())
        super().setUp()  # type: ignore[misc]

    def tearDown(self) -> None:
        super().tearDown()  # type: ignore[misc]
        if sys.version_info < (3, 13):
            asyncio.set_event_loop_policy(None)


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in (loaded("test_locks"), loaded("test_queues")):
        for name, case in vars(module).items():
            if isinstance(case, type) and issubclass(case, unittest.TestCase):
                for test in LEFT_OUT:
                    if test in vars(case):
                        delattr(case, test)
                found[name] = case
                if issubclass(case, unittest.IsolatedAsyncioTestCase):
                    found[name + "OnPlait"] = type(name + "OnPlait", (OnPlaitsLoop, case), {})
    return found


globals().update(cases())


def test_there_are_tests() -> None:
    assert sum(len(unittest.defaultTestLoader.getTestCaseNames(case)) for case in cases().values()) > 200
