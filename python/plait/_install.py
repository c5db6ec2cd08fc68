"""`install`: the standard executors, by their standard names, become plait's."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import threading
from types import ModuleType

__all__ = ["install", "uninstall"]

_lock = threading.Lock()
# What was there before, by module and name.
_replaced: dict[tuple[ModuleType, str], type[concurrent.futures.Executor]] = {}


def install() -> None:
    """Put `plait.futures`' executors in the place of the standard ones, for all who look them up from now on.

    Replaced are ``ThreadPoolExecutor`` and ``ProcessPoolExecutor`` in `concurrent.futures`,
    `concurrent.futures.thread` and `concurrent.futures.process`. Code that has imported the classes by name
    before keeps the standard ones, as do executors that exist already: call this first. Nothing else changes;
    `asyncio.to_thread` and ``loop.run_in_executor(None, ...)`` use plait's threads too, because they look the
    name up.

    May be called again, which changes nothing. Thread-safe. A forked child inherits it, a spawned one does
    not.
    """
    with _lock:
        from plait import futures

        ours = {
            "ThreadPoolExecutor": (futures.ThreadPoolExecutor, concurrent.futures.thread),
            "ProcessPoolExecutor": (futures.ProcessPoolExecutor, concurrent.futures.process),
        }
        for name, (executor, home) in ours.items():
            for module in (concurrent.futures, home):
                if (module, name) not in _replaced:
                    _replaced[module, name] = getattr(module, name)
                    setattr(module, name, executor)


def uninstall() -> None:
    """Put the standard executors back. Executors that exist go on as what they are. Thread-safe."""
    with _lock:
        while _replaced:
            (module, name), executor = _replaced.popitem()
            setattr(module, name, executor)
