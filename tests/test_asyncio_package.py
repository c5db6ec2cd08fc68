"""`plait.asyncio` has every public name of `asyncio` and its modules, and what makes a loop makes plait's."""

from __future__ import annotations

import asyncio as standard
import importlib
import inspect
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType

import pytest

import plait
import plait.asyncio as asyncio

MODULES = [
    "",
    *(
        f".{module.name}"
        for module in pkgutil.iter_modules(standard.__path__)
        if not module.name.startswith("windows_") and module.name != "__main__"
    ),
]


def public_names(module: ModuleType) -> set[str]:
    shown = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not (inspect.ismodule(value) and not hasattr(value, "__path__"))
    }
    return shown | set(getattr(module, "__all__", ()))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_there(name: str) -> None:
    theirs = importlib.import_module(f"asyncio{name}")
    ours = importlib.import_module(f"plait.asyncio{name}")
    assert [public for public in public_names(theirs) if not hasattr(ours, public)] == []
    assert set(getattr(theirs, "__all__", ())) <= set(getattr(ours, "__all__", ())) | {*dir(ours)}
    if name:
        assert getattr(asyncio, name[1:]) is ours


def test_star_import_gives_the_same_names_and_the_loop() -> None:
    names: dict[str, object] = {}
    exec("from plait.asyncio import *", names)
    assert {*standard.__all__, "EventLoop"} <= {*names}
    assert names["EventLoop"] is plait.EventLoop
    assert names["run"] is asyncio.run


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"plait\.asyncio.*no_such_name"):
        _ = asyncio.no_such_name  # type: ignore[attr-defined]


async def kind_of_loop() -> type:
    return type(asyncio.get_running_loop())


def test_run_and_runner_use_plaits_loop_and_any_other_that_is_asked_for() -> None:
    assert asyncio.run(kind_of_loop()) is plait.EventLoop
    with asyncio.Runner() as runner:
        assert runner.run(kind_of_loop()) is plait.EventLoop
        assert isinstance(runner.get_loop(), asyncio.EventLoop)
    with asyncio.Runner(loop_factory=standard.SelectorEventLoop) as runner:
        assert runner.run(kind_of_loop()) is standard.SelectorEventLoop


def test_debug_is_passed_on() -> None:
    async def is_debug() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert asyncio.run(is_debug(), debug=True)
    assert not asyncio.run(is_debug(), debug=False)


def test_run_inside_a_loop_says_what_to_do_instead() -> None:
    async def nested() -> None:
        coroutine = kind_of_loop()
        with pytest.raises(RuntimeError, match=r"running event loop.*plait\.run"):
            asyncio.run(coroutine)
        coroutine.close()

    asyncio.run(nested())


def test_after_run_no_loop_is_set() -> None:
    def ask() -> None:
        asyncio.run(kind_of_loop())
        with pytest.raises(RuntimeError):
            standard.get_event_loop()

    in_new_thread(ask)


def in_new_thread(function: Callable[[], None]) -> None:
    """A thread starts without a loop, whatever other tests have set."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_new_event_loop_is_plaits_and_can_be_set() -> None:
    def use() -> None:
        loop = asyncio.new_event_loop()
        assert isinstance(loop, plait.EventLoop)
        asyncio.set_event_loop(loop)
        assert standard.get_event_loop() is loop
        assert asyncio.get_event_loop() is loop
        assert loop.run_until_complete(kind_of_loop()) is plait.EventLoop
        asyncio.set_event_loop(None)
        loop.close()

    in_new_thread(use)


PROGRAM = """
import warnings
warnings.simplefilter("ignore")
import sys, plait, asyncio as standard, plait.asyncio as asyncio
if sys.version_info < (3, 14):
    loop = asyncio.get_event_loop()
    assert type(loop) is plait.EventLoop, loop
    assert standard.get_event_loop() is loop
    loop.close()
    assert type(standard.new_event_loop()) is not plait.EventLoop
policy = asyncio.DefaultEventLoopPolicy()
asyncio.set_event_loop_policy(policy)
assert asyncio.get_event_loop_policy() is policy
loop = standard.new_event_loop()
assert type(loop) is plait.EventLoop, loop
loop.close()
class Other(standard.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return standard.SelectorEventLoop()
asyncio.set_event_loop_policy(Other())
loop = asyncio.new_event_loop()
assert type(loop) is standard.SelectorEventLoop, loop
loop.close()
"""


def test_the_loop_of_a_main_thread_and_policies() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_interactive_interpreter_is_on_plaits_loop() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plait.asyncio"],
        input="import asyncio\nprint(type(asyncio.get_running_loop()))\nawait asyncio.sleep(0, 'slept')\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "plait.event_loop.EventLoop" in done.stdout, done.stdout + done.stderr
    assert "'slept'" in done.stdout
