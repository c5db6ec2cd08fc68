"""`TaskPool`: coroutines on one event loop in a background thread; blocking functions go to threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import io
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from types import CoroutineType
from typing import Any, ClassVar, TypeVar, cast

from plait import _rust
from plait._coroutines import is_coroutine_function
from plait._exit import interrupted, join, report, reports, to_deadline, watch_exit
from plait._job import JobOptions, Statistics, job_name
from plait.errors import TaskTimeout
from plait.future import Future
from plait.thread_pool import ThreadPool

__all__ = ["TaskFuture", "TaskPool"]

T = TypeVar("T")

_DEFAULT_WORKERS = 1000
# How long a shutdown that cancels waits for coroutines that refuse to be cancelled.
_GRACE_SECONDS = 5.0

_logger = logging.getLogger("plait")

_RETURNED, _RAISED, _CANCELLED, _TIMED_OUT = range(4)
"""How a job ends; `Ending` in `crates/engine/src/ledger/record.rs`."""

Coroutine.register(_rust.Steps)  # so that a task takes one


class _Job:
    """One submitted call on its way through the loop. Once queued, it belongs to the loop's thread."""

    __slots__ = (
        "args",
        "awaiting",
        "context",
        "coroutine",
        "ended",
        "fn",
        "future",
        "kwargs",
        "late",
        "options",
        "retries_left",
        "since",
        "started",
        "steps",
        "task",
        "timed_out",
        "timer",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: JobOptions,
        context: Context,
        future: TaskFuture[Any],
    ) -> None:
        self.fn, self.args, self.kwargs, self.options, self.context = fn, args, kwargs, options, context
        self.future = future
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        """The coroutine of the first attempt, if the function was called already."""
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.retries_left = options.retries
        self.late = False
        self.awaiting = 0
        """How many results of this pool the job is waiting for."""
        self.ended = False
        self.since = time.monotonic()
        """When it was queued."""
        self.started = 0
        """When its first attempt began, in nanoseconds; 0 if it has not."""
        self.steps: list[_rust.Steps] = []
        """Its attempts, if somebody wants to know what it costs."""
        self.timed_out = False


_current_job: ContextVar[_Job | None] = ContextVar("plait_current_job", default=None)


class TaskFuture(Future[T]):
    """A future whose ``cancel`` also stops a coroutine that is already running.

    It counts as cancelled at once; the coroutine gets its `asyncio.CancelledError` at its next ``await``. It
    may be awaited from any event loop, also from a job of the same pool, which then lends its place to
    others.
    """

    _home: _LoopThread | None = None
    _job: _Job | None = None
    _in_thread: concurrent.futures.Future[Any] | None = None

    def cancel(self) -> bool:
        """Cancel the job, queued or running; False if it has finished, or is a blocking call under way."""
        in_thread = self._in_thread
        if in_thread is not None and not in_thread.cancel():
            return False
        if not super().cancel():
            return False
        home, job = self._home, self._job
        if home is not None and job is not None:
            home.call(home.cancel_job, job)
        return True

    def running(self) -> bool:
        """Whether the job has begun and not ended."""
        if self.done():
            return False
        job, in_thread = self._job, self._in_thread
        return (job is not None and job.task is not None) or (in_thread is not None and in_thread.running())

    def result(self, timeout: float | None = None) -> T:
        """As in the base class; RuntimeError in a coroutine of the same pool, which would block itself."""
        self._refuse_to_block()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in the base class; RuntimeError in a coroutine of the same pool, which would block itself."""
        self._refuse_to_block()
        return super().exception(timeout)

    def _refuse_to_block(self) -> None:
        home = self._home
        if home is not None and threading.get_ident() == home.ident and not self.done():
            raise RuntimeError(
                "a coroutine cannot wait for a job of its own event loop like this: await the future"
            )

    def __await__(self) -> Generator[Any, None, T]:
        home = self._home
        if home is None or self.done() or threading.get_ident() != home.ident:
            return super().__await__()
        return self._await_in_job(home)

    def _await_in_job(self, home: _LoopThread) -> Generator[Any, None, T]:
        with home.place_lent():
            return (yield from super().__await__())


class _LoopThread:
    """The event loop and its thread. Knows nothing of the pool, so that dropping the pool can end it."""

    def __init__(self, workers: int, ledger: _rust.Ledger | None) -> None:
        self._workers = workers
        self._ledger = ledger
        self._worker = 0
        self._lock = threading.Lock()
        # What other threads ask for. One wake-up of the loop carries all that came since the last one.
        self._inbox: deque[tuple[Callable[[_Job], None], _Job]] = deque()
        self._woken = False
        self._over = False
        # The rest belongs to the loop's thread.
        self._queue: deque[_Job] = deque()
        self._in_flight: set[_Job] = set()
        self._lent = 0
        self._closing = False
        self._stopped = False
        self._loop = asyncio.new_event_loop()
        self.ident: int | None = None
        self._thread = threading.Thread(target=self._main, name="plait-tasks", daemon=True)
        self._thread.start()
        _loop_threads.add(self)

    # Called from any thread.

    def call(self, verb: Callable[[_Job], None], job: _Job) -> bool:
        """Have ``verb(job)`` called on the loop, in the order of the calls; False if the loop is over."""
        with self._lock:
            if self._over:
                return False
            self._inbox.append((verb, job))
            if not self._woken:
                self._woken = True
                self._loop.call_soon_threadsafe(self._read_inbox)
        return True

    def close(self, cancel: bool) -> None:
        """End when all jobs have; with ``cancel``, cancel them."""
        with self._lock:
            if not self._over:
                self._loop.call_soon_threadsafe(self._close, cancel)

    def join(self, deadline: float | None = None) -> bool:
        """Wait until the thread has ended (not from the thread itself); False if the deadline is first."""
        return threading.get_ident() == self.ident or join(self._thread, deadline)

    def load(self) -> tuple[int, int, float]:
        """How many jobs run and wait, and for how many seconds the first of those has been waiting."""
        with self._lock:
            coming = [job for verb, job in self._inbox if verb == self.enqueue]
        queue = self._queue
        try:
            first = queue[0] if queue else coming[0] if coming else None
        except IndexError:  # the loop has taken it this instant
            first = None
        waited = 0.0 if first is None else time.monotonic() - first.since
        return len(self._in_flight), len(queue) + len(coming), waited

    def stuck(self) -> list[str]:
        """The coroutines that have not ended, and where they wait."""
        texts = []
        for job in self._in_flight.copy():
            task, options, fn = job.task, job.options, getattr(job, "fn", None)
            if task is None or fn is None or task.done():
                continue
            text = io.StringIO()
            task.print_stack(file=text)
            _, _, stack = text.getvalue().partition("\n")
            texts.append(f"coroutine {job_name(fn, options)!r}:\n{stack}")
        return texts

    # Called on the loop.

    def enqueue(self, job: _Job) -> None:
        """Queue a new job."""
        self._queue.append(job)

    def cancel_job(self, job: _Job) -> None:
        """Stop a job whose future was cancelled; if it has not begun, tell its waiters at once."""
        if job.task is not None:
            job.task.cancel()
        elif not job.ended and job not in self._in_flight:
            self._end(job)

    @contextlib.contextmanager
    def place_lent(self) -> Iterator[None]:
        """While a job waits for other jobs of this pool, its place is theirs: so they cannot deadlock."""
        job = _current_job.get()
        if job is None:
            yield
            return
        job.awaiting += 1
        if job.awaiting == 1:
            self._lent += 1
            self._loop.call_soon(self._start_jobs)
        try:
            yield
        finally:
            job.awaiting -= 1
            if job.awaiting == 0:
                self._lent -= 1

    def _read_inbox(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, deque()
            self._woken = False
        for verb, job in inbox:
            verb(job)
        self._start_jobs()

    def _start_jobs(self) -> None:
        queue, in_flight = self._queue, self._in_flight
        while queue and len(in_flight) - self._lent < self._workers:
            job = queue.popleft()
            if job.ended:
                continue
            if job.future.cancelled():
                self._settle(job)
                continue
            in_flight.add(job)
            job.context.run(_current_job.set, job)
            self._attempt(job)
        if self._closing and not in_flight and not queue:
            self._stop()

    def _attempt(self, job: _Job) -> None:
        """Start the job's coroutine, for the first time or again."""
        coroutine, job.coroutine = job.coroutine, None
        if self._ledger is not None:
            job.started = job.started or time.monotonic_ns()
        try:
            if coroutine is None:
                coroutine = job.context.run(job.fn, *job.args, **job.kwargs)
            if self._ledger is not None and type(coroutine) is CoroutineType:
                job.started = job.started or time.monotonic_ns()
                steps = _rust.Steps(coroutine)
                job.steps.append(steps)
                coroutine = cast(Coroutine[Any, Any, Any], steps)
            task = self._loop.create_task(coroutine, name=job.options.name, context=job.context)
        except BaseException as error:
            # Off this stack: an attempt that fails at once and is repeated must not recurse.
            self._loop.call_soon(self._failed, job, error)
            return
        job.task = task
        job.late = False
        if job.options.timeout is not None:
            job.timer = self._loop.call_later(job.options.timeout, self._deadline, job)
        task.add_done_callback(partial(self._task_done, job))

    def _deadline(self, job: _Job) -> None:
        if job.task is not None and not job.task.done():
            job.late = True
            job.task.cancel()

    def _task_done(self, job: _Job, task: asyncio.Task[Any]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        error = None if task.cancelled() else task.exception()
        if job.late and not job.future.cancelled():
            timeout = TaskTimeout(job_name(job.fn, job.options), job.options.timeout or 0.0)
            timeout.__cause__ = error
            job.timed_out = job.retries_left == 0
            self._failed(job, timeout)
        elif task.cancelled():
            # By the caller, or by itself: then its future does not know yet.
            Future.cancel(job.future)
            self._end(job)
        elif error is not None:
            self._failed(job, error)
        else:
            self._end(job, result=task.result())

    def _failed(self, job: _Job, error: BaseException) -> None:
        """An attempt failed: make another one, or say so."""
        if job.retries_left > 0 and isinstance(error, Exception) and not job.future.cancelled():
            job.retries_left -= 1
            job.task = None
            self._attempt(job)
        else:
            self._end(job, error=error)

    def _end(self, job: _Job, *, result: Any = None, error: BaseException | None = None) -> None:
        """The job is over: say so, and give its place to the next."""
        self._settle(job, result=result, error=error)
        if self._queue or self._closing:
            self._start_jobs()

    def _settle(self, job: _Job, *, result: Any = None, error: BaseException | None = None) -> None:
        # Whatever is the caller's is let go of before anybody hears that the job is over.
        future = job.future
        job.ended = True
        if self._ledger is not None and (job.started or future.cancelled()):
            self._note(self._ledger, job, error)
        job.task = job.timer = job.coroutine = None
        del job.fn, job.args, job.kwargs, job.context, job.future
        future._job = None
        self._in_flight.discard(job)
        if future.set_running_or_notify_cancel():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    def _note(self, ledger: _rust.Ledger, job: _Job, error: BaseException | None) -> None:
        if job.future.cancelled():
            ending = _CANCELLED
        elif job.timed_out:
            ending = _TIMED_OUT
        else:
            ending = _RETURNED if error is None else _RAISED
        cost = None
        if job.steps:
            cpu, children, delayed = map(sum, zip(*(steps.cost() for steps in job.steps), strict=True))
            cost = (time.monotonic_ns() - job.started, cpu, children, delayed)
        if job.started and not self._worker:
            self._worker = ledger.worker_came(TaskPool.model, self._thread.name)
        ledger.write(
            TaskPool.model,
            job_name(job.fn, job.options),
            self._worker if job.started else 0,
            ending,
            job.options.retries - job.retries_left,
            job.options.since_ns or round(job.since * 1e9),
            job.started,
            cost,
        )

    def _close(self, cancel: bool) -> None:
        self._closing = True
        if cancel:
            self._cancel_all()
            self._loop.call_later(_GRACE_SECONDS, self._give_up)
        self._read_inbox()

    def _cancel_all(self) -> None:
        with self._lock:
            queued = [job for verb, job in self._inbox if verb == self.enqueue]
        for job in [*queued, *self._queue, *self._in_flight]:
            if not job.ended:
                Future.cancel(job.future)
        for job in list(self._in_flight):
            if job.task is not None:
                job.task.cancel()

    def _give_up(self) -> None:
        names = sorted({job_name(job.fn, job.options) for job in self._in_flight})
        _logger.warning(
            "shutdown: left behind %d coroutines that did not end within %g s of being cancelled: %s",
            len(self._in_flight),
            _GRACE_SECONDS,
            ", ".join(names),
        )
        self._stop()

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._loop.stop()

    # The thread.

    def _main(self) -> None:
        self.ident = threading.get_ident()
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
                break
            except (KeyboardInterrupt, SystemExit):
                # A job raised it: asyncio stops the loop for that. The job's future has it; the others go on.
                continue
        try:
            self._loop.run_until_complete(self._tidy_up())
        finally:
            with self._lock:
                self._over = True
            self._loop.close()
            asyncio.set_event_loop(None)
            # What came too late, or refused to be cancelled.
            late = [job for verb, job in self._inbox if verb == self.enqueue]
            for job in [*late, *self._queue, *self._in_flight]:
                if not job.ended:
                    Future.cancel(job.future)
                    self._settle(job)
            if self._ledger is not None and self._worker:
                self._ledger.worker_left(self._worker)

    async def _tidy_up(self) -> None:
        """End what the jobs left running on the loop, as `asyncio.run` does, but not for ever."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        last = [
            asyncio.ensure_future(self._loop.shutdown_asyncgens()),
            asyncio.ensure_future(self._loop.shutdown_default_executor()),
        ]
        await asyncio.wait([*left, *last], timeout=_GRACE_SECONDS)


_loop_threads: weakref.WeakSet[_LoopThread] = weakref.WeakSet()
_pools: weakref.WeakSet[TaskPool] = weakref.WeakSet()


class TaskPool:
    """Runs coroutine functions as tasks of one event loop, at most ``workers`` at a time, first come, first
    served.

    A blocking function goes to a thread, so that it stalls nobody. A function that is not ``async`` but
    returns a coroutine is called in a thread, and its coroutine runs on the loop.

    Thread-safe; jobs may submit and await further jobs. A fork takes no loop along: a child process must make
    a pool of its own, and gets a RuntimeError from one that it inherited.
    """

    model: ClassVar[str] = "tasks"

    def __init__(self, workers: int | None = None, *, ledger: _rust.Ledger | None = None) -> None:
        self._ledger = ledger
        self.workers = _DEFAULT_WORKERS if workers is None else workers
        # As wide as asked for; the default width of a pool of threads is a better guess than 1000.
        self._thread_workers = workers
        self._lock = threading.Lock()
        self._home: _LoopThread | None = None
        self._threads: ThreadPool | None = None
        self._closed: str | None = None
        # Functions that returned something else than a coroutine: their calls need no second look.
        self._plain: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
        _pools.add(self)

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        """Queue one job. Raises RuntimeError after `shutdown`, and in a process forked from the pool's."""
        if self._closed is not None:
            raise RuntimeError(self._closed)
        if not is_coroutine_function(fn):
            return self._submit_blocking(fn, args, kwargs, options)
        home = self._home or self._make_home()
        future: TaskFuture[Any] = TaskFuture()
        job = _Job(fn, args, kwargs, options, copy_context(), future)
        future._home, future._job = home, job
        if not home.call(home.enqueue, job):
            raise RuntimeError("cannot submit a job after shutdown")
        return future

    def _submit_blocking(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        threads = self._threads or self._make_threads()
        if _contains(self._plain, fn):
            return threads.submit(fn, args, kwargs, options)
        # Its result may turn out to be a coroutine, which belongs on the loop.
        future: TaskFuture[Any] = TaskFuture()
        in_thread = threads.submit(_Boxed(fn), args, kwargs, options)
        future._in_thread = in_thread
        in_thread.add_done_callback(
            partial(self._thread_done, _Job(fn, args, kwargs, options, copy_context(), future))
        )
        return future

    def _thread_done(self, job: _Job, in_thread: concurrent.futures.Future[Any]) -> None:
        future = job.future
        future._in_thread = None
        if in_thread.cancelled():
            Future.cancel(future)
            future.set_running_or_notify_cancel()
            return
        error = in_thread.exception()
        if error is not None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        value = in_thread.result().value
        if inspect.iscoroutine(value):
            home = self._home or self._make_home()
            job.coroutine = value
            future._home, future._job = home, job
            if not home.call(home.enqueue, job):
                value.close()
                Future.cancel(future)
                future.set_running_or_notify_cancel()
            return
        with contextlib.suppress(TypeError):  # Not every callable can be referred to weakly.
            self._plain.add(job.fn)
        if future.set_running_or_notify_cancel():
            future.set_result(value)

    def load(self) -> Statistics:
        """What the pool is doing; blocking functions, which run in threads, included."""
        home, threads = self._home, self._threads
        running, queued, waited = (0, 0, 0.0) if home is None else home.load()
        if threads is not None:
            beside = threads.load()
            running, queued = running + beside.running, queued + beside.queued
            waited = max(waited, beside.longest_wait)
        return Statistics(self.model, running, self.workers, self.workers, running, queued, waited)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs; with ``wait``, return when all have ended and the loop's thread is gone.

        With ``timeout``, return after so many seconds all the same, having printed what still runs.

        With ``cancel_futures``, jobs in the queue and coroutines that run are cancelled; a coroutine that has
        not ended after five seconds is left behind, and a warning names it.
        """
        with self._lock:
            self._closed = self._closed or "cannot submit a job after shutdown"
            home, threads = self._home, self._threads
        deadline = to_deadline(timeout)
        if threads is not None:
            # A blocking function may still hand a coroutine to the loop: the threads end first.
            threads.shutdown(wait, cancel_futures=cancel_futures, timeout=timeout)
        if home is not None:
            home.close(cancel_futures)
            if wait and not home.join(deadline) and timeout is not None:
                report(timeout, home.stuck())

    def _make_home(self) -> _LoopThread:
        with self._lock:
            if self._home is None:
                self._home = _LoopThread(self.workers, self._ledger)
                # A pool that is dropped without shutdown finishes its jobs and ends its thread.
                weakref.finalize(self, self._home.close, False).atexit = False
            return self._home

    def _make_threads(self) -> ThreadPool:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPool(self._thread_workers, ledger=self._ledger, of=self.model)
            return self._threads


class _Boxed:
    """Calls a blocking function and hands a coroutine that it returns through the thread untouched."""

    __slots__ = ("func", "value")

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func
        self.value: Any = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> _Boxed:
        self.value = self.func(*args, **kwargs)
        if inspect.iscoroutine(self.value):
            _rust.job_goes_on()
        return self


def _contains(functions: weakref.WeakSet[Callable[..., Any]], fn: Callable[..., Any]) -> bool:
    try:
        return fn in functions
    except TypeError:  # Not hashable, or not weakly referable.
        return False


def _at_exit() -> None:
    """The interpreter leaves: as in `concurrent.futures`, what was submitted is run first.

    Unless it leaves because of a Ctrl-C: then nobody wants to wait.
    """
    for home in list(_loop_threads):
        home.close(interrupted())
    watch_exit()
    for home in list(_loop_threads):
        home.join()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._closed = "this executor was made before the fork: make one in the child process"
    _loop_threads.clear()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork)
reports(lambda: [text for home in list(_loop_threads) for text in home.stuck()])
