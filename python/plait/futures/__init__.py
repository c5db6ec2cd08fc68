"""The whole of `concurrent.futures`, with plait's executors and `Future` in place of the standard ones."""

from __future__ import annotations

import concurrent.futures
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    InvalidStateError,
    TimeoutError,
    as_completed,
    wait,
)
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from plait._job import DEFAULT_OPTIONS
from plait.future import Future
from plait.thread_pool import ThreadPool, _create, default_workers

if TYPE_CHECKING:
    from plait._process_pool_executor import ProcessPoolExecutor

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "wait",
]
if sys.version_info >= (3, 14):
    __all__ += ["InterpreterPoolExecutor"]

_numbers = itertools.count()

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """`concurrent.futures.ThreadPoolExecutor` on plait's thread pool: the same arguments and behaviour.

    Unlike `plait.Executor("threads")` it neither copies context variables nor runs what coroutine functions
    return, since the standard pool does not. A thread that has had no job for five minutes leaves, and
    another is started (and initialized) when there is a job for it. Thread-safe; for forks see
    `plait.thread_pool.ThreadPool`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = default_workers()
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._max_workers = max_workers
        self._thread_name_prefix = thread_name_prefix or f"ThreadPoolExecutor-{next(_numbers)}"
        self._pool = _create(ThreadPool, max_workers, self._thread_name_prefix, initializer, initargs, False)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future. Raises RuntimeError after `shutdown`."""
        return self._pool.submit(fn, args, kwargs, DEFAULT_OPTIONS)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; with `wait`, return when all are done and every thread has left."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def __getattr__(self, name: str) -> Any:
        """The private attributes that other code reads of the standard executor."""
        if name == "_threads":
            return self._pool._crew.workers
        if name == "_shutdown":
            return self._pool._core.closed
        if name == "_broken":
            return self._pool.broken
        if name == "_work_queue":
            return _WorkQueue(self._pool)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)


class _WorkQueue:
    """What people read of the standard executor's `_work_queue`, in order to learn how much is waiting."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool

    def qsize(self) -> int:
        return self._pool.waiting

    def empty(self) -> bool:
        return not self._pool.waiting


def __getattr__(name: str) -> Any:
    """The executors that most programs do without, imported when somebody asks."""
    if name == "ProcessPoolExecutor":
        from plait._process_pool_executor import ProcessPoolExecutor

        return ProcessPoolExecutor
    if name == "InterpreterPoolExecutor" and name in __all__:
        return getattr(concurrent.futures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
