"""`multiprocessing.pool`: the standard pools' face on plait's engines.

A worker that dies fails the call it was running (with `plait.WorkerDied`) and is replaced; nothing hangs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures.process import _RemoteTraceback
from multiprocessing import pool as _standard
from multiprocessing.pool import MaybeEncodingError as _StandardEncodingError
from typing import Any, ClassVar

from plait import process_pool, thread_pool
from plait._exit import join
from plait._forked_pool import ForkedPool
from plait._job import DEFAULT_OPTIONS
from plait._map import Window
from plait.errors import ResultNotPicklable
from plait.future import Future
from plait.multiprocessing._standard import fall_back
from plait.multiprocessing.context import BaseContext, _concrete_contexts, _default_context

CLOSE, RUN, TERMINATE = "CLOSE", "RUN", "TERMINATE"


class MaybeEncodingError(_StandardEncodingError, ResultNotPicklable):
    """A result (or an exception) cannot be sent back from its worker.

    Attributes:
        exc: why, in words.
        value: the same; the value itself never came here.
    """


class Pool(_standard.Pool):
    """`multiprocessing.Pool` on plait's process pool: the same arguments, methods and results.

    Different from the standard one: a worker that dies costs the call it was running, whose result raises
    `plait.WorkerDied`; `terminate` fails the results that are still awaited instead of leaving them waiting
    for ever; workers are no daemons and may have children; an `initializer` that raises fails every call with
    `BrokenProcessPool` instead of being tried again for ever; `imap` reads its input as calls finish, not all
    of it at once. Thread-safe; for forks see `plait.process_pool.ProcessPool`.

    With the start method ``"fork"`` workers inherit this process's memory as it is now; they are forked from
    a fork of it. With a context whose processes are of a class of your own, it is the standard pool.
    """

    _engine: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Pool:
        """Choose what runs the calls by the context's kind of process."""
        context = kwargs.get("context") if len(args) < 5 else args[4]
        if cls is Pool and not _is_ours(context or _default_context.get_context()):
            return object.__new__(_StandardPool)
        return object.__new__(cls)

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
    ) -> None:
        self._state = _standard.INIT
        self._ctx = context or _default_context.get_context()
        _check(processes, initializer)
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._maxtasksperchild = maxtasksperchild
        forks = self._ctx.get_start_method() == "fork"
        self._start(
            (ForkedPool if forks else process_pool.ProcessPool)(
                processes,
                initializer=initializer,
                initargs=tuple(initargs),
                max_tasks_per_worker=maxtasksperchild,
            )
        )
        if forks or maxtasksperchild is None:  # else a call that only starts a worker counts as one
            for _ in range(self._processes):
                self._engine.submit(_nothing, (), {})

    def _start(self, engine: Any) -> None:
        self._engine = engine
        self._processes = engine.workers
        self._cache: dict[int, Any] = {}
        self._feeders: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._state = RUN
        _pools.add(self)

    @property
    def _pool(self) -> list[Any]:
        """What people read of the standard pool to find its workers, all of which have been started then."""
        statistics = self._engine.statistics
        deadline = time.monotonic() + 5
        while self._state == RUN and time.monotonic() < deadline:
            pids = statistics()["workers"]
            if len(pids) >= self._processes and 0 not in pids:
                break
            for _ in range(self._processes - len(pids)):
                self._engine.submit(_nothing, (), {})
            time.sleep(0.001)
        return [_Worker(pid) for pid in statistics()["workers"]]

    def _repopulate_pool(self) -> None:
        """The engine replaces workers by itself."""

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={self._processes}>"

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> Any:
        """Call ``func(*args, **kwds)`` in a worker and return what it returns, or raise what it raises."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Any:
        """Have ``func(*args, **kwds)`` called in a worker; returns an `AsyncResult`.

        The callbacks are called in a thread of the pool before the result is ready.
        """
        self._check_running()
        future = self._submit(func, tuple(args), dict(kwds))
        if callback is None and error_callback is None:
            return _FutureResult(self, future)
        result = _standard.ApplyResult(self, callback, error_callback)
        _deliver(future, result, 0)
        return result

    def _submit(self, func: Callable[..., Any], args: tuple[Any, ...], kwds: dict[str, Any]) -> Future[Any]:
        try:
            future: Future[Any] = self._engine.submit(func, args, kwds, DEFAULT_OPTIONS)
        except RuntimeError as error:
            if self._state != RUN:
                raise ValueError("Pool not running") from error
            raise
        return future

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mapper: Callable[..., Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> Any:
        self._check_running()
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        length = len(iterable)  # type: ignore[arg-type]
        if chunksize is None:
            chunksize, extra = divmod(length, self._processes * 4)
            chunksize += bool(extra)
        if length == 0:
            chunksize = 0
        result = _standard.MapResult(self, chunksize, length, callback, error_callback)
        if chunksize > 0:
            calls = _Calls(mapper, func, chunksize)
            _Feed(self, calls, iter(iterable), result, -(-length // chunksize)).start()
        elif callback is not None:
            callback([])
        return result

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> Any:
        """Return an iterator over ``func(item)`` for each item, in order."""
        return self._imap(_standard.IMapIterator, func, iterable, chunksize)

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> Any:
        """Return an iterator over ``func(item)`` for each item, in the order in which they are done."""
        return self._imap(_standard.IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(
        self, kind: Callable[[Any], Any], func: Callable[..., Any], iterable: Iterable[Any], chunksize: int
    ) -> Any:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        result = kind(self)
        calls = _Calls(None if chunksize == 1 else _standard.mapstar, func, chunksize)
        _Feed(self, calls, iter(iterable), result, None).start()
        return result if chunksize == 1 else (item for chunk in result for item in chunk)

    def close(self) -> None:
        """Take no more calls. Workers leave when all that was asked for is done."""
        with self._lock:
            if self._state != RUN:
                return
            self._state = CLOSE
            if not self._feeders:
                self._engine.shutdown(wait=False)

    def terminate(self) -> None:
        """End every worker at once. Results that are still awaited fail."""
        with self._lock:
            self._state = TERMINATE
        self._terminate()

    def _terminate(self) -> None:
        if _in_callback():  # of whoever would have to be waited for
            self._engine._core.terminate()
        else:
            self._engine.terminate()

    def join(self) -> None:
        """Wait until every worker has left.

        Raises ValueError before `close` or `terminate`, RuntimeError in a callback.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if _in_callback():
            raise RuntimeError("a callback cannot wait for the pool that calls it")
        for feeder in list(self._feeders):
            join(feeder)
        self._engine.shutdown(wait=True)

    def _feeder_ends(self, feeder: threading.Thread) -> None:
        with self._lock:
            self._feeders.discard(feeder)
            if self._state == CLOSE and not self._feeders:
                self._engine.shutdown(wait=False)


class ThreadPool(Pool, _standard.ThreadPool):
    """`multiprocessing.pool.ThreadPool` on plait's thread pool: the same arguments, methods and results.

    What runs when the pool is terminated, or the program ends, runs to its end. Thread-safe; for forks see
    `plait.thread_pool.ThreadPool`.
    """

    _wrap_exception: ClassVar[bool] = False

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        self._state = _standard.INIT
        _check(processes, initializer)
        if processes is None:
            count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
            processes = count() or 1
        self._start(
            thread_pool._create(
                thread_pool.ThreadPool,
                processes,
                f"ThreadPool-{next(_numbers)}",
                initializer,
                tuple(initargs),
                False,
            )
        )

    @property
    def _pool(self) -> list[Any]:
        threads: list[Any] = [*self._engine._crew.workers]
        return threads + [None] * (self._processes - len(threads))

    def _terminate(self) -> None:
        self._engine.shutdown(wait=False, cancel_futures=True)


class _StandardPool(Pool):
    """The standard pool, for processes of the user's class."""

    locals().update(
        {
            name: value
            for name, value in vars(_standard.Pool).items()
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__")
        }
    )
    _pool: Any = None  # the standard one sets it


def _is_ours(context: Any) -> bool:
    method = getattr(context, "_name", None)
    if method not in _concrete_contexts:
        return False
    plain = _concrete_contexts[method].Process
    return context.Process in (plain, *plain.__bases__)


def _check(processes: int | None, initializer: Callable[..., object] | None) -> None:
    if processes is not None and processes < 1:
        raise ValueError("Number of processes must be at least 1")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


def _nothing() -> None:
    """A call that only starts a worker."""


class _Worker:
    """As much of a `Process` as can be asked of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exitcode = None
        self.name = f"PoolWorker-{pid}"

    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class _Calls:
    """A function as it is sent for the items of a map: one at a time, or in chunks to a `mapper`."""

    def __init__(self, mapper: Callable[..., Any] | None, func: Callable[..., Any], chunksize: int) -> None:
        self.chunksize = chunksize
        self.chunked = mapper is not None
        self.function = func if mapper is None else _Chunk(mapper, func)

    def arguments(self, items: Iterator[Any]) -> Iterator[tuple[Any, ...]]:
        """The arguments of one call after the other."""
        if not self.chunked:
            return ((item,) for item in items)
        return self._chunks(items)

    def _chunks(self, items: Iterator[Any]) -> Iterator[tuple[Any, ...]]:
        while chunk := tuple(itertools.islice(items, self.chunksize)):
            yield (chunk,)


class _Chunk:
    """Calls a function for every item of a chunk."""

    def __init__(self, mapper: Callable[..., Any], func: Callable[..., Any]) -> None:
        self.mapper = mapper
        self.func = func
        self.__qualname__ = getattr(func, "__qualname__", type(func).__qualname__)

    def __call__(self, chunk: tuple[Any, ...]) -> Any:
        return self.mapper((self.func, chunk))


class _Feed:
    """Submits the calls of a map as others finish, and hands their outcomes to the result."""

    def __init__(
        self, pool: Pool, calls: _Calls, items: Iterator[Any], result: Any, count: int | None
    ) -> None:
        self.pool = pool
        self.result = result
        self.count = count  # how many calls, if that is known
        self.arguments = calls.arguments(items)
        self.function = calls.function
        self.window = Window(None, pool._engine)
        self.room = threading.Condition()
        self.out = 0  # submitted and not done
        self.index = 0

    def start(self) -> None:
        """Submit what the window takes; a thread sees to the rest."""
        freeze = getattr(self.pool._engine, "freeze", None)
        try:
            if freeze is not None:
                self.function = freeze(self.function)
        except TypeError as error:
            self.end(error.__cause__ or error)
            return
        if self.count is not None and self.count <= self.window.size:
            self.run()
            return
        thread = threading.Thread(target=self.run_and_leave, name="plait-pool-feeder")
        thread.daemon = True
        self.pool._feeders.add(thread)
        thread.start()

    def run_and_leave(self) -> None:
        """In a thread of its own: submit everything."""
        try:
            self.run()
        finally:
            self.pool._feeder_ends(threading.current_thread())

    def run(self) -> None:
        """Submit everything."""
        engine, function = self.pool._engine, self.function
        try:
            for arguments in self.arguments:
                with self.room:
                    while self.out >= self.window.size and self.pool._state != TERMINATE:
                        self.room.wait(0.5)
                    self.out += 1
                if self.pool._state == TERMINATE:
                    raise CancelledError("the pool was terminated")
                future = engine.submit(function, arguments, {}, DEFAULT_OPTIONS)
                del arguments
                _deliver(future, self.result, self.index, self.done)
                del future
                self.index += 1
        except BaseException as error:
            self.end(error.with_traceback(None) if isinstance(error, CancelledError) else error)
        else:
            self.end(None)

    def done(self) -> None:
        """One of the calls is done."""
        with self.room:
            self.out -= 1
            self.window.more_results()
            self.room.notify()

    def end(self, error: BaseException | None) -> None:
        """There are no more calls. An error is the outcome of those that are missing."""
        result = self.result
        if self.count is not None:
            for index in range(self.index, self.count if error is not None else self.index):
                _set(result, index, (False, error))
            return
        if error is not None:
            _set(result, self.index, (False, error))
            self.index += 1
        with contextlib.suppress(KeyError):
            result._set_length(self.index)


class _FutureResult(_standard.ApplyResult[Any]):
    """An `AsyncResult` without callbacks: a future's other face."""

    def __init__(self, pool: Pool, future: Future[Any]) -> None:
        self._pool: Pool | None = pool  # which lives as long as somebody may wait for what it does
        self._future = future

    def ready(self) -> bool:
        """Whether the call is done."""
        return self._future.done()

    def successful(self) -> bool:
        """Whether the call returned. Raises ValueError if it is not done."""
        if not self._future.done():
            raise ValueError(f"{self!r} not ready")
        return _outcome(self._future)[0]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call is done, for at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError, CancelledError):
            self._future.exception(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Return what the call returned, or raise what it raised.

        Raises `multiprocessing.TimeoutError` if it is not done within `timeout` seconds.
        """
        self.wait(timeout)
        if not self._future.done():
            raise _standard.TimeoutError
        self._pool = None
        success, value = _outcome(self._future)
        if success:
            return value
        try:
            raise value
        finally:
            del value


def _deliver(future: Future[Any], result: Any, index: int, then: Callable[[], object] | None = None) -> None:
    """Hand a future's outcome to a standard result when it is there."""

    def deliver(future: Any) -> None:
        outer, _here.delivers = _in_callback(), True
        try:
            _set(result, index, _outcome(future))
        finally:
            _here.delivers = outer
            if then is not None:
                then()

    future.add_done_callback(deliver)


_here = threading.local()


def _in_callback() -> bool:
    """Whether this thread is handing an outcome to a result, whose callbacks it calls."""
    return getattr(_here, "delivers", False)


def _set(result: Any, index: int, outcome: tuple[bool, Any]) -> None:
    """Tell a standard result one outcome. A callback that raises does not keep it from being ready."""
    pool = result._pool
    if pool is not None and pool._state == TERMINATE and isinstance(result, _standard.ApplyResult):
        result._callback = result._error_callback = None
    try:
        result._set(index, outcome)
    except Exception:
        logging.getLogger("multiprocessing").exception("exception calling callback of %r", result)
        result._cache.pop(result._job, None)
        event = getattr(result, "_event", None)
        if event is not None:
            event.set()


def _outcome(future: Future[Any]) -> tuple[bool, Any]:
    """What a call came to: whether it returned, and its value or exception."""
    if future.cancelled():
        return False, CancelledError("the pool was terminated before it ran this call")
    error = future.exception()
    return (True, future.result()) if error is None else (False, _translated(error))


def _translated(error: BaseException) -> BaseException:
    """The exception as the standard pool would raise it."""
    cause = error.__cause__
    if isinstance(cause, _RemoteTraceback):
        error.__cause__ = _standard.RemoteTraceback(f'\n"""\n{cause.tb.strip(chr(34) + chr(10))}\n"""')
    elif isinstance(error, process_pool.ArgumentNotPicklable) and cause is not None:
        notes = getattr(cause, "__notes__", [])
        if str(error) not in notes:
            cause.add_note(str(error))
        return cause
    elif type(error) is ResultNotPicklable and cause is None:
        return MaybeEncodingError(str(error), str(error))
    return error


_numbers = itertools.count(1)
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _end_all() -> None:
    """At the interpreter's exit: what nobody waited for is not done any more, as in the standard library."""
    for pool in list(_pools):
        if pool._state == RUN or pool._cache:
            pool._state = TERMINATE
            pool._terminate()


# After that of the engines, so that it is called before theirs.
threading._register_atexit(_end_all)

fall_back(globals(), _standard)
