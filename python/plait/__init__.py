"""plait: coroutines, threads and processes on one Rust core, behind one `Executor`.

The names below are loaded when they are first used, so that ``import plait`` costs next to nothing.
"""

from __future__ import annotations

# As `typing.TYPE_CHECKING`, which would cost more to import than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from plait import asyncio as asyncio
    from plait import futures as futures
    from plait import gil as gil
    from plait import multiprocessing as multiprocessing
    from plait import queue as queue
    from plait import threading as threading
    from plait._budget import Budget, cpu_budget
    from plait._install import install, uninstall
    from plait._share import Shared, share
    from plait.auto import Decision
    from plait.errors import (
        ArgumentNotPicklable,
        ResultNotPicklable,
        TaskCancelled,
        TaskTimeout,
        WorkerDied,
    )
    from plait.event_loop import EventLoop, run
    from plait.executor import Executor
    from plait.future import Future
    from plait.locks import Barrier, BoundedSemaphore, Condition, Event, Lock, Semaphore

    __version__: str

__all__ = [
    "ArgumentNotPicklable",
    "Barrier",
    "BoundedSemaphore",
    "Budget",
    "Condition",
    "Decision",
    "Event",
    "EventLoop",
    "Executor",
    "Future",
    "Lock",
    "ResultNotPicklable",
    "Semaphore",
    "Shared",
    "TaskCancelled",
    "TaskTimeout",
    "WorkerDied",
    "__version__",
    "cpu_budget",
    "install",
    "run",
    "share",
    "uninstall",
]

# Public name -> the module that defines it.
_HOMES = {
    "ArgumentNotPicklable": "plait.errors",
    "Barrier": "plait.locks",
    "BoundedSemaphore": "plait.locks",
    "Budget": "plait._budget",
    "Condition": "plait.locks",
    "Decision": "plait.auto",
    "Event": "plait.locks",
    "EventLoop": "plait.event_loop",
    "Executor": "plait.executor",
    "Future": "plait.future",
    "Lock": "plait.locks",
    "ResultNotPicklable": "plait.errors",
    "Semaphore": "plait.locks",
    "Shared": "plait._share",
    "TaskCancelled": "plait.errors",
    "TaskTimeout": "plait.errors",
    "WorkerDied": "plait.errors",
    "__version__": "plait._rust",
    "cpu_budget": "plait._budget",
    "install": "plait._install",
    "run": "plait.event_loop",
    "share": "plait._share",
    "uninstall": "plait._install",
}
# Modules that need not be imported before they are used: ``plait.gil.contention()``.
_MODULES = frozenset({"asyncio", "futures", "gil", "multiprocessing", "queue", "threading"})


if not TYPE_CHECKING:  # A type checker would take any name for a public one.

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None and name not in _MODULES:
            raise AttributeError(f"module 'plait' has no attribute {name!r}")
        from importlib import import_module

        if home is None:
            return import_module(f"plait.{name}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
