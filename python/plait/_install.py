"""`install`: executors, locks, queues, event loops and `multiprocessing` by their names become plait's."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import queue
import threading
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["install", "uninstall"]

_lock = threading.Lock()
# What was there before, by module and name.
_replaced: dict[tuple[Any, str], Any] = {}

# The classes of `threading` and `queue` of which plait has its own that derive from them.
_LOCKS = ("Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier")
_QUEUES = ("Queue", "LifoQueue", "PriorityQueue")

# What is plait's in these modules of `asyncio`, and in `asyncio` itself.
_ASYNCIO = {
    "locks": ("Lock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"),
    "queues": ("Queue", "LifoQueue", "PriorityQueue"),
    "streams": (
        "StreamReader",
        "StreamReaderProtocol",
        "StreamWriter",
        "open_connection",
        "open_unix_connection",
        "start_server",
        "start_unix_server",
    ),
}

# The modules of `multiprocessing` of which plait has its own.
_MODULES = (
    "",
    ".connection",
    ".dummy",
    ".forkserver",
    ".managers",
    ".pool",
    ".popen_forkserver",
    ".popen_spawn_posix",
    ".queues",
    ".shared_memory",
    ".sharedctypes",
    ".synchronize",
)


def install() -> None:
    """Put plait's executors, locks, queues, loops and `multiprocessing` in the place of the standard ones.

    Replaced are ``ThreadPoolExecutor`` and ``ProcessPoolExecutor`` in `concurrent.futures`,
    `concurrent.futures.thread` and `concurrent.futures.process`, and what `plait.multiprocessing` has of its
    own in `multiprocessing` and its modules; and in `threading` ``Semaphore``, ``BoundedSemaphore``,
    ``Event``, ``Condition`` and ``Barrier``, in `queue` ``Queue``, ``LifoQueue`` and ``PriorityQueue``, by
    classes that derive from them. ``Lock`` and ``RLock`` stay the standard ones, whose types are compared
    with, and ``SimpleQueue``, which is faster at the little that it does. In `asyncio`, new event loops are
    plait's wherever nobody asks for another class (`asyncio.run`, ``Runner``, ``new_event_loop``; not with a
    policy that somebody has set, nor by ``SelectorEventLoop``), and its locks, queues and streams are
    plait's, which derive from it. Code that has imported the names before keeps the standard ones, as do
    executors, contexts and other objects that exist already: call this first. The start method stays what it
    was set to; if it was not, it is plait's zygote. `asyncio.to_thread` and
    ``loop.run_in_executor(None, ...)`` use plait's threads too, because they look the name up.

    May be called again, which changes nothing. Thread-safe. A forked child inherits it; another one does if
    it imports a main module that calls this.
    """
    with _lock:
        import plait.queue
        import plait.threading
        from plait import futures

        ours = {
            "ThreadPoolExecutor": (futures.ThreadPoolExecutor, concurrent.futures.thread),
            "ProcessPoolExecutor": (futures.ProcessPoolExecutor, concurrent.futures.process),
        }
        for name, (executor, home) in ours.items():
            for module in (concurrent.futures, home):
                _replace(module, name, executor)
        for name in _LOCKS:
            _replace(threading, name, getattr(plait.threading, name))
        for name in _QUEUES:
            _replace(queue, name, getattr(plait.queue, name))
        for module, name, value in [*_of_asyncio(), *_of_multiprocessing()]:
            _replace(module, name, value)


def _replace(module: Any, name: str, value: Any) -> None:
    if (module, name) not in _replaced:
        _replaced[module, name] = getattr(module, name)
        setattr(module, name, value)


def _of_asyncio() -> Iterator[tuple[Any, str, Any]]:
    """What is replaced in `asyncio`, in the same way."""
    import asyncio
    from asyncio import unix_events

    import plait.asyncio

    # What the standard policy makes, and with it `asyncio.run` and all the rest, on each Python.
    yield unix_events._UnixDefaultEventLoopPolicy, "_loop_factory", plait.asyncio.EventLoop
    if hasattr(asyncio, "EventLoop"):
        yield asyncio, "EventLoop", plait.asyncio.EventLoop
    for home, names in _ASYNCIO.items():
        for name in names:
            value = getattr(plait.asyncio, name)
            yield asyncio, name, value
            yield import_module(f"asyncio.{home}"), name, value


def _of_multiprocessing() -> Iterator[tuple[ModuleType, str, Any]]:
    """What is replaced in `multiprocessing`: where, its name, and by what."""
    from multiprocessing import context as standard

    from plait.multiprocessing import context

    chosen = standard._default_context._actual_context  # type: ignore[attr-defined]
    if (standard, "_default_context") not in _replaced and chosen is not None:
        context._force_start_method(chosen._name)
    for name in ("Process", "_concrete_contexts", "_default_context"):
        yield standard, name, getattr(context, name)
    for module in _MODULES:
        theirs = import_module("multiprocessing" + module)
        mine = import_module("plait.multiprocessing" + module)
        for name, value in vars(theirs).items():
            other = vars(mine).get(name, value)
            if other is not value and not name.startswith("_") and not isinstance(value, ModuleType):
                yield theirs, name, other


def uninstall() -> None:
    """Put the standard names back. Objects that exist go on as what they are. Thread-safe."""
    with _lock:
        while _replaced:
            (module, name), value = _replaced.popitem()
            setattr(module, name, value)
