"""`ThreadPool`: jobs on OS threads of this process. The queue and the workers' loop are in Rust."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from plait import _rust
from plait._budget import cpus
from plait._exit import interrupted, join, report, reports, stack_of, to_deadline, watch_exit
from plait._job import Statistics
from plait.future import Future

if TYPE_CHECKING:
    import asyncio

__all__ = ["ThreadPool", "default_workers"]

_BROKEN = "A thread initializer failed, the thread pool is not usable anymore"

# Every thread that runs jobs or keeps time, with what it must be told so that it leaves.
_threads: dict[threading.Thread, _rust.ThreadPoolCore] = {}
_pools: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
_exiting = False
_numbers = itertools.count()
# Seconds within which a thread that was started says so.
_STARTS_WITHIN = 0.5
MOST_ADAPTIVE = 256
"""The most threads of an adaptive pool."""
IDLE_TIMEOUT = 300.0
"""Seconds after which a thread without jobs leaves, unless the program says otherwise."""


def default_workers() -> int:
    """How many threads a pool may have if nobody says: most jobs wait, so more than there are CPUs."""
    return min(32, cpus() + 4)


class Crew:
    """The threads of one pool. Knows nothing of the pool, so that a pool that nobody refers to can go."""

    def __init__(
        self, prefix: str, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        self.prefix = prefix
        self.initializer = initializer
        self.initargs = initargs
        self.workers: set[threading.Thread] = set()
        self.timer: threading.Thread | None = None
        self.regulator: threading.Thread | None = None
        self._numbers = itertools.count()

    def start_worker(self, core: _rust.ThreadPoolCore) -> BaseException | None:
        """Start a thread that runs jobs. Gives a Ctrl-C that came meanwhile; raises what prevented it."""
        if len(self.workers) > 2 * core.workers + 16:
            # Of a pool whose width changes, many may have left.
            for gone in [thread for thread in self.workers if not thread.is_alive()]:
                self.workers.discard(gone)
        name = f"{self.prefix}_{next(self._numbers)}"
        thread, interrupt = _start(name, core, _work, self.initializer, self.initargs)
        self.workers.add(thread)
        return interrupt

    def start_timer(self, core: _rust.ThreadPoolCore) -> BaseException | None:
        """Start the thread that sees to timeouts, in the same way."""
        self.timer, interrupt = _start(f"{self.prefix}_timer", core, _keep_time, self)
        return interrupt

    def start_regulator(self, core: _rust.ThreadPoolCore) -> BaseException | None:
        """Start the thread that adapts how many workers there are, in the same way."""
        self.regulator, interrupt = _start(f"{self.prefix}_regulator", core, _regulate, self)
        return interrupt

    def saturated(self, limit: int, waiting: int, seconds: float, longest: float) -> None:
        """Say, once, that the pool is as wide as it may be and yet jobs wait."""
        logging.getLogger("plait").warning(
            "%s: all %d threads have been busy for %g s, and %d jobs wait, the first of them for %.1f s:"
            " jobs take longer than expected, or are more than threads can take; see statistics()",
            self.prefix,
            limit,
            seconds,
            waiting,
            longest,
        )

    def refuse(self, broken: bool) -> None:
        """Say why a job is not taken."""
        if broken:
            raise _broken()
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        raise RuntimeError("cannot schedule new futures after shutdown")

    def join(self, core: _rust.ThreadPoolCore, deadline: float | None = None) -> bool:
        """Return when all threads of a closed pool have left, or when it is time: False."""
        while True:
            for thread in [*self.workers, self.timer, self.regulator]:
                if thread is not None and not join(thread, deadline):
                    return False
            if not core.workers and not any(thread.is_alive() for thread in self.workers):
                return True
            time.sleep(0.001)  # another thread is about to start one

    def stuck(self) -> list[str]:
        """The workers of a closed pool that still run jobs, and where they are."""
        return [
            f"thread {thread.name!r}:\n{stack_of(thread, '_work')}"
            for thread in list(self.workers)
            if thread.is_alive()
        ]

    def forget(self) -> None:
        """In the child of a fork: none of the threads exists here."""
        self.workers.clear()
        self.timer = self.regulator = None


class ThreadPool(_rust.ThreadPool):
    """Runs jobs on at most `workers` threads, which are started on demand and reused.

    Jobs run in a copy of the context variables of whoever submits them. A coroutine function is run to
    completion by an event loop that its worker keeps. A job that is over its ``timeout`` fails with
    `TaskTimeout`, but its thread cannot be stopped: it runs on, and counts as a worker, until the function
    returns.

    Thread-safe. In the child of a fork the pool starts anew, without the jobs of the parent: those that
    waited or had a timeout are cancelled there, others that ran never complete there. A pool that nobody
    refers to any more finishes its jobs, then its threads leave; at the end of the program every pool does.

    Args:
        workers: the most threads; by default four more than there are CPUs, and at most 32.
            ``"adaptive"``: as many, up to 256, as bring more results a second, and fewer while they wait for
            the interpreter.
        name: what the names of the threads begin with.
        initializer: called with `initargs` in each thread before its first job. If it raises, every job fails
            with `concurrent.futures.thread.BrokenThreadPool`.
        initargs: see `initializer`.
        idle_timeout: after so many seconds without a job a thread leaves, and another is started when it is
            needed. None keeps them until the pool is shut down.
        ledger: where to note what jobs cost; by default nowhere.
        of: the model that they are noted under.

    Raises:
        ValueError: `workers` is less than 1, or `idle_timeout` below 0.
        TypeError: `initializer` cannot be called.
    """

    model: ClassVar[str] = "threads"

    _crew: Crew
    _core: _rust.ThreadPoolCore

    def __new__(
        cls,
        workers: int | Literal["adaptive"] | None = None,
        *,
        name: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        idle_timeout: float | None = IDLE_TIMEOUT,
        ledger: _rust.Ledger | None = None,
        of: str = "threads",
    ) -> ThreadPool:
        prefix = name or f"plait-threads-{next(_numbers)}"
        return _create(cls, workers, prefix, initializer, initargs, True, idle_timeout, ledger, of)

    def load(self) -> Statistics:
        """What the pool is doing."""
        workers, running, waiting, width, limit, longest = self.statistics()
        return Statistics(self.model, workers, width, limit, running, waiting, longest)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs; with `wait`, return when all are done and every thread has left.

        With `cancel_futures` the jobs that no thread has begun are cancelled. With `timeout`, return after so
        many seconds all the same, having printed where the threads are that still run jobs. May be called
        again, from any thread but the pool's own.
        """
        self._core.close()
        if cancel_futures:
            self.cancel_waiting()
        if wait and not self._crew.join(self._core, to_deadline(timeout)) and timeout is not None:
            report(timeout, self._crew.stuck())

    def _forget_threads(self) -> None:
        self._crew.forget()
        self.forget_threads()


def _create(
    cls: type[ThreadPool],
    workers: int | Literal["adaptive"] | None,
    prefix: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    is_plait: bool,
    idle_timeout: float | None = IDLE_TIMEOUT,
    ledger: _rust.Ledger | None = None,
    of: str = "threads",
) -> ThreadPool:
    """A new pool; without `is_plait` it leaves coroutines and contexts alone, as the standard pool does."""
    is_adaptive = workers == "adaptive"
    if workers is None:
        workers = default_workers()
    if workers == "adaptive":
        workers = MOST_ADAPTIVE
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if idle_timeout is not None and not idle_timeout >= 0:
        raise ValueError(f"idle_timeout must be at least 0 seconds, not {idle_timeout}")
    crew = Crew(prefix, initializer, initargs)
    pool = _rust.ThreadPool.__new__(
        cls, workers, crew, Future, is_plait, is_adaptive, idle_timeout, ledger, of
    )
    pool._crew = crew
    pool._core = pool.core()
    _pools.add(pool)
    if _exiting:
        pool._core.close()
    return pool


def _start(
    name: str, core: _rust.ThreadPoolCore, target: Callable[..., None], *args: Any
) -> tuple[threading.Thread, BaseException | None]:
    thread = threading.Thread(name=name, target=target, args=(core, *args))
    # Noted first: whoever ends the program now either finds it here or has been seen by the next line.
    _threads[thread] = core
    try:
        if _exiting and not core.closed:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        thread.start()
    except BaseException as error:
        # Ctrl-C may come while Python waits for the thread to say that it runs.
        if isinstance(error, Exception) or not thread._started.wait(_STARTS_WITHIN):  # type: ignore[attr-defined]
            _threads.pop(thread, None)
            raise
        return thread, error
    return thread, None


def _work(
    core: _rust.ThreadPoolCore, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """What a worker thread runs."""
    runner: asyncio.Runner | None = None

    def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
        nonlocal runner
        import asyncio
        import contextvars

        if runner is None:
            runner = asyncio.Runner()
        return runner.run(coroutine, context=contextvars.copy_context())

    try:
        if initializer is not None:
            try:
                initializer(*initargs)
            except BaseException:
                _logger().critical("Exception in initializer:", exc_info=True)
                core.break_down(_broken())
                return
        core.work(run_coroutine, _pause, threading.current_thread().name)
    finally:
        if runner is not None:
            runner.close()
        _threads.pop(threading.current_thread(), None)


def _pause() -> None:
    """Python code, however little: a worker runs it now and then so that other threads get their turn."""


def _keep_time(core: _rust.ThreadPoolCore, crew: Crew) -> None:
    """What a timer thread runs."""
    try:
        core.keep_time(crew)
    finally:
        _threads.pop(threading.current_thread(), None)


def _regulate(core: _rust.ThreadPoolCore, crew: Crew) -> None:
    """What a regulator thread runs."""
    try:
        core.regulate(crew)
    finally:
        _threads.pop(threading.current_thread(), None)


def _broken() -> Exception:
    from concurrent.futures.thread import BrokenThreadPool

    return BrokenThreadPool(_BROKEN)


def _logger() -> logging.Logger:
    return logging.getLogger("concurrent.futures")


def _finish() -> None:
    """At the end of the program, before Python waits for threads: let every pool finish its jobs."""
    global _exiting
    _exiting = True
    for pool in list(_pools):
        pool._core.close()
        if interrupted():
            pool.cancel_waiting()
    threads = list(_threads.items())
    for _, core in threads:
        core.close()
    if interrupted():
        return
    watch_exit()
    for thread, _ in threads:
        try:
            thread.join()
        except RuntimeError:  # not started yet: Python itself will wait for it
            continue


def _stuck() -> list[str]:
    """The threads that still run jobs although every pool is closed, and where they are."""
    return [
        f"thread {thread.name!r}:\n{stack_of(thread, '_work')}"
        for thread in list(_threads)
        if thread.is_alive() and not thread.name.endswith(("_timer", "_regulator"))
    ]


def _forget_threads() -> None:
    """In the child of a fork."""
    _threads.clear()
    for pool in list(_pools):
        pool._forget_threads()


# Before threads are joined, which `atexit` functions are not; also used by the standard pool.
threading._register_atexit(_finish)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forget_threads)
reports(_stuck)
