"""Every public name of `multiprocessing` and of its modules is in `plait.multiprocessing`."""

from __future__ import annotations

import inspect
import multiprocessing
import pkgutil
from importlib import import_module
from types import ModuleType

import pytest

import plait.multiprocessing


def modules(package: ModuleType, prefix: str = "") -> list[str]:
    found = [prefix]
    for module in pkgutil.iter_modules(package.__path__):
        name = f"{prefix}.{module.name}"
        if name == ".popen_spawn_win32":
            continue
        found += (
            modules(import_module(package.__name__ + "." + module.name), name) if module.ispkg else [name]
        )
    return found


@pytest.mark.parametrize("name", modules(multiprocessing))
def test_every_public_name_is_there(name: str) -> None:
    standard = import_module("multiprocessing" + name)
    ours = import_module("plait.multiprocessing" + name)
    public = {
        key
        for key, value in vars(standard).items()
        if not key.startswith("_")
        and not (inspect.ismodule(value) and key not in standard.__dict__.get("__all__", ()))
    }
    assert sorted(key for key in public if not hasattr(ours, key)) == []
    assert set(getattr(standard, "__all__", [])) <= set(ours.__all__)
    assert public <= {*dir(ours)}
    with pytest.raises(AttributeError, match="nonsense"):
        ours.nonsense  # noqa: B018


def test_star_imports_give_what_the_standard_ones_give() -> None:
    standard: dict[str, object] = {}
    ours: dict[str, object] = {}
    exec("from multiprocessing import *", standard)
    exec("from plait.multiprocessing import *", ours)
    assert set(standard) <= set(ours)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_contexts_are_standard_contexts(method: str) -> None:
    context = plait.multiprocessing.get_context(method)
    assert isinstance(context, type(multiprocessing.get_context(method)))
    assert context.get_start_method() == method
    assert issubclass(context.Process, multiprocessing.get_context(method).Process)


def test_the_default_start_method_is_the_zygote() -> None:
    assert plait.multiprocessing.get_all_start_methods()[0] == "forkserver"
