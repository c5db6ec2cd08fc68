"""`plait.futures.ProcessPoolExecutor`: the standard executor's face on plait's process pool.

A module of its own because the standard one it derives from imports all of `multiprocessing`.
"""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util
from multiprocessing.context import BaseContext
from typing import Any, ParamSpec, TypeVar

from plait import errors
from plait._budget import cpus
from plait._forked_pool import ForkedPool
from plait._job import DEFAULT_OPTIONS
from plait.future import Future
from plait.process_pool import ProcessPool

__all__ = ["ProcessPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")


class WorkerDied(errors.WorkerDied, BrokenProcessPool):
    """`plait.WorkerDied`, for code that expects the standard `BrokenProcessPool`."""


class _Watched(ProcessPool):
    """A pool that remembers why it cannot be used."""

    worker_died = WorkerDied
    cancels_running = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.breakage = _Breakage()
        # The engine asks this one, which does not hold the pool, for exceptions.
        vars(self)["_exception_of"] = self.breakage.exception_of
        super().__init__(*args, **kwargs)


class _Pool(_Watched):
    """A pool for any start method but `fork`."""


class _ForkedPool(_Watched, ForkedPool):
    """A pool for the start method `fork`."""


class _Breakage:
    """Why no worker of a pool can be used."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def exception_of(self, *what: Any) -> BaseException:
        """The exception for a job that has no answer."""
        error = _Watched._exception_of(*what)
        if type(error) is BrokenProcessPool:
            self.reason = str(error)
        return error


class _Initializer:
    """An initializer whose failure is logged in its worker, as the standard executor does."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)

    def __call__(self, *args: Any) -> None:
        try:
            self.function(*args)
        except BaseException:
            concurrent.futures._base.LOGGER.critical("Exception in initializer:", exc_info=True)
            # This worker will leave. What was put into queues is to be there when the executor hears of it.
            util._exit_function()  # type: ignore[attr-defined]
            raise


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
    """`concurrent.futures.ProcessPoolExecutor` on plait's process pool: the same arguments and behaviour.

    Except that a worker that dies fails only the job it was running (with a `BrokenProcessPool`); it is
    replaced, and the executor goes on. Workers come from a zygote, and the caller is never forked, unless
    `mp_context` asks for just that (``"fork"``); then workers inherit its memory as it is at the first
    `submit`. Thread-safe; for forks see `plait.process_pool.ProcessPool`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = cpus()
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        forks = mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork"
        if mp_context is None:
            mp_context = multiprocessing.get_context(None if max_tasks_per_child is None else "spawn")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                    "supply a different mp_context."
                )
        self._max_workers = max_workers
        self._mp_context = mp_context
        self._pool = (_ForkedPool if forks else _Pool)(
            max_workers,
            initializer=initializer if initializer is None else _Initializer(initializer),
            initargs=initargs,
            max_tasks_per_worker=max_tasks_per_child,
        )
        self._to_start = max_workers if forks else 0  # the standard executor forks all workers at once

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Raises RuntimeError after `shutdown`, BrokenProcessPool after an initializer has failed.
        """
        if self._broken:
            raise BrokenProcessPool(self._broken)
        while self._to_start > 0:
            self._to_start -= 1
            self._pool.submit(_nothing, (), {})
        return self._pool.submit(fn, args, kwargs, DEFAULT_OPTIONS)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; with `wait`, return when all are done and every process is gone."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def __del__(self) -> None:
        # Whoever still waits for the last jobs may hold the pool, so its own end is not enough.
        if (pool := vars(self).get("_pool")) is not None:
            pool.shutdown(wait=False)

    def terminate_workers(self) -> None:
        """End every worker at once; running jobs fail, the others are cancelled."""
        self._force_shutdown(operation="terminate")

    def kill_workers(self) -> None:
        """The same."""
        self._force_shutdown(operation="kill")

    def _force_shutdown(self, operation: str) -> None:
        if operation not in ("terminate", "kill"):
            raise ValueError(f"unsupported operation: {operation!r}")
        self._pool.terminate()

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        return self._pool.breakage.reason or False

    @property
    def _executor_manager_thread(self) -> _Joinable:  # type: ignore[override]
        return _Joinable(self._pool)

    _call_queue = _executor_manager_thread

    @property
    def _processes(self) -> dict[int, _WorkerProcess]:  # type: ignore[override] # the standard one is a dict, too
        """What people read of the standard executor to find its workers, once they have started."""
        while 0 in (pids := self._pool.statistics()["workers"]):
            time.sleep(0.001)
        return {pid: _WorkerProcess(pid) for pid in pids}


def _nothing() -> None:
    """A job that only starts a worker."""


class _Joinable:
    """As much of a thread, or of a queue's feeder, as can be asked of what the engine does by itself."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool

    def join(self) -> None:
        self._pool.wait_closed()

    join_thread = join


class _WorkerProcess:
    """As much of a `multiprocessing.Process` as can be asked of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def join(self, timeout: float = math.inf) -> None:
        """Wait until the process is gone, for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True
