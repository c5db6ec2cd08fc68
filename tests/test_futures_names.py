"""`plait.futures` has every public name of `concurrent.futures` and its modules, on each Python version."""

from __future__ import annotations

import concurrent.futures
import importlib
import pkgutil
from types import ModuleType

import pytest

import plait.futures

MODULES = ["", *(f".{module.name}" for module in pkgutil.iter_modules(concurrent.futures.__path__))]
# What is plait's own; all else is the standard library's very object.
OURS = {"Future", "ThreadPoolExecutor", "ProcessPoolExecutor"}


def public_names(module: ModuleType) -> set[str]:
    """What `dir` shows, without private names and without the modules that it imports."""
    shown = {
        name
        for name in dir(module)
        if not name.startswith("_") and not isinstance(getattr(module, name), ModuleType)
    }
    return shown | set(getattr(module, "__all__", ()))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_there(name: str) -> None:
    standard = importlib.import_module(f"concurrent.futures{name}")
    ours = importlib.import_module(f"plait.futures{name}")
    names = public_names(standard)
    assert len(names) >= 2
    missing = [public for public in names if not hasattr(ours, public)]
    assert missing == []
    for public in names - OURS:
        assert getattr(ours, public) is getattr(standard, public), public
    for public in names & OURS:
        assert issubclass(getattr(ours, public), getattr(concurrent.futures, public)), public


def test_the_classes_are_the_same_wherever_they_are_found() -> None:
    from plait.futures import _base, process, thread

    assert thread.ThreadPoolExecutor is plait.futures.ThreadPoolExecutor
    assert process.ProcessPoolExecutor is plait.futures.ProcessPoolExecutor
    assert _base.Future is plait.futures.Future


def test_star_import_gives_the_same_names() -> None:
    assert set(concurrent.futures.__all__) <= set(plait.futures.__all__)
