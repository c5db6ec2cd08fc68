"""CPython's own tests of asyncio's streams, on plait's classes: on asyncio's loop and on plait's."""

from __future__ import annotations

import asyncio
import importlib.util
import types
import unittest
from typing import Any

import pytest

import plait
import plait.asyncio

if importlib.util.find_spec("test.test_asyncio") is None:
    pytest.skip("this Python was installed without CPython's tests", allow_module_level=True)


def loaded(loop_factory: Any) -> Any:
    """A copy of the tests, for which plait.asyncio is asyncio, but for the loops that it makes."""
    spec = importlib.util.find_spec("test.test_asyncio.test_streams")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = {**vars(plait.asyncio), "new_event_loop": loop_factory}
    replaced = types.ModuleType("plait.asyncio")
    vars(replaced).update(names)
    vars(module)["asyncio"] = replaced
    return module


class StreamTests(loaded(asyncio.SelectorEventLoop).StreamTests):  # type: ignore[misc]
    """Plait's streams on asyncio's own loop."""


class StreamTestsOnPlaitsLoop(loaded(plait.EventLoop).StreamTests):  # type: ignore[misc]
    """Plait's streams on plait's loop."""


def test_there_are_tests_and_they_test_ours() -> None:
    for case in (StreamTests, StreamTestsOnPlaitsLoop):
        assert len(unittest.defaultTestLoader.getTestCaseNames(case)) >= 60
    module = loaded(plait.EventLoop)
    assert module.asyncio.StreamReader is plait.asyncio.StreamReader
    assert module.asyncio.open_connection is plait.asyncio.open_connection
