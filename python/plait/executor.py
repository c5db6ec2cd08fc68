"""`Executor`: one `concurrent.futures.Executor` in front of every concurrency model."""

from __future__ import annotations

import concurrent.futures
import operator
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, overload

from plait import _rust
from plait._job import DEFAULT_OPTIONS, JobOptions, Pool, Statistics, job_name
from plait._map import Chunk, Feed, ItemFeed, Results, Window

if TYPE_CHECKING:
    from plait.auto import Decision
    from plait.future import Future
    from plait.ledger import Ledger
    from plait.report import Report

__all__ = ["Executor"]

P = ParamSpec("P")
T = TypeVar("T")

# Model -> where its pool is. A pool is imported when it is first asked for.
_POOLS = {
    "auto": ("plait.auto", "AutoPool"),
    "tasks": ("plait.task_pool", "TaskPool"),
    "threads": ("plait.thread_pool", "ThreadPool"),
    "processes": ("plait.process_pool", "ProcessPool"),
    "interpreters": ("plait.interpreter_pool", "InterpreterPool"),
    "hybrid": ("plait.hybrid_pool", "HybridPool"),
}

# Option of `Executor` -> the models that have it. "auto" has those that only a process can have: it runs jobs
# in threads and tasks of this process, too, where an initializer would mean something else.
_FITS = {
    "initializer": ("threads", "processes", "hybrid"),
    "initargs": ("threads", "processes", "hybrid"),
    "max_tasks_per_worker": ("processes", "hybrid", "auto"),
    "preload": ("processes", "hybrid", "auto"),
    "cancel_grace": ("processes", "hybrid", "auto"),
    "idle_timeout": ("threads", "processes", "hybrid", "auto"),
    "max_memory_per_worker": ("processes", "hybrid", "auto"),
    "width": ("hybrid",),
}


_IDLE_TIMEOUT = 300.0
"""Seconds after which a worker without jobs leaves, unless the program says otherwise."""


@dataclass(frozen=True, slots=True)
class _MapOptions:
    """What `Executor.options` sets for `Executor.map`."""

    ordered: bool = True
    progress: bool = False


class Executor(concurrent.futures.Executor):
    """Runs functions, plain or ``async``, under the model you name, or under the one that measures best.

    Args:
        model: ``"auto"`` (run the first jobs, measure them, choose, say why in `decision`), ``"tasks"``
            (coroutines on one event loop), ``"threads"``, ``"processes"``, ``"interpreters"`` (Python 3.14
            and later) or ``"hybrid"`` (processes that each run many jobs at once, on an event loop and in
            threads).
        workers: how many jobs run at once. By default: 1000 for tasks, the CPUs this process may use + 4 (at
            most 32) for threads, the CPUs for processes, interpreters and the processes of a hybrid.
            ``"adaptive"``, for threads: as many, up to 256, as bring more results a second; fewer while they
            wait for the interpreter (the GIL).
        initializer: called with ``initargs`` in each thread or worker process before its first job. If it
            raises, every job fails with `concurrent.futures.BrokenExecutor`. Threads and processes only.
        initargs: the arguments of ``initializer``.
        max_tasks_per_worker: after so many jobs a worker process is replaced; by default never.
        preload: names of modules that are imported once, before worker processes are forked, so that they
            have them at once. If one cannot be imported, every job fails with its traceback.
        width: how many jobs each process of a hybrid runs at once, at most 256; by default as many as bring
            more results a second.
        cancel_grace: how many seconds a job in a worker process may take to end after it was cancelled, or
            its timeout was over, before the worker is killed; by default 1.
        idle_timeout: after so many seconds without a job a worker (a process or a thread) leaves, and another
            is started when it is needed; by default 300. None keeps them.
        max_memory_per_worker: a worker process that holds more than so many bytes of memory of its own is
            replaced when it has done the job it is doing; by default there is no limit.

    The last five are for processes, `idle_timeout` for threads, too; ``"auto"`` takes them for the case that
    it chooses processes.

    Raises:
        ValueError: the model is not known, ``workers`` or ``max_tasks_per_worker`` is below 1.
        TypeError: an argument has the wrong type, or ``model`` has no such option.
        RuntimeError: this Python has no such model (``"interpreters"`` before 3.14).

    It is a `concurrent.futures.Executor` with the exact standard signatures; what goes beyond them is in
    `options` and in keywords of `map`. All methods may be called from any thread. After a fork, the child
    must make its own.
    """

    def __init__(
        self,
        model: str = "auto",
        workers: int | Literal["adaptive"] | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_worker: int | None = None,
        preload: Sequence[str] = (),
        width: int | None = None,
        cancel_grace: float | None = None,
        idle_timeout: float | None = _IDLE_TIMEOUT,
        max_memory_per_worker: int | None = None,
    ) -> None:
        given = {
            "initializer": initializer,
            "initargs": initargs,
            "max_tasks_per_worker": max_tasks_per_worker,
            "preload": preload,
            "width": width,
            "cancel_grace": cancel_grace,
            "idle_timeout": None if idle_timeout == _IDLE_TIMEOUT else _for_ever(idle_timeout),
            "max_memory_per_worker": max_memory_per_worker,
        }
        self._notes = _rust.Ledger()
        self._pool = _make_pool(
            model,
            workers,
            {name: value for name, value in given.items() if value is not None and value != ()},
            self._notes,
        )
        self._submit = self._pool.submit
        self._options = DEFAULT_OPTIONS
        self._map_options = _MapOptions()

    @property
    def model(self) -> str:
        """The concurrency model, as given; what ``"auto"`` chose is in `decision`."""
        return self._pool.model

    @property
    def workers(self) -> int:
        """How many jobs run at once."""
        return self._pool.workers

    @property
    def decision(self) -> Decision | None:
        """What ``"auto"`` chose for the function it saw last, and why; None before there was any work.

        Always None for the other models: you decided.
        """
        return getattr(self._pool, "decision", None)

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue ``fn(*args, **kwargs)``; its future gives the result, or the exception with its traceback.

        The future is a `concurrent.futures.Future`, and can also be awaited from any running event loop.
        Context variables are carried into tasks and threads.

        Raises:
            RuntimeError: after `shutdown`.
        """
        return self._submit(fn, args, kwargs, self._options)

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool | None = None,
        progress: bool | None = None,
        retries: int | None = None,
        name: str | None = None,
    ) -> Results[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool | None = None,
        progress: bool | None = None,
        retries: int | None = None,
        name: str | None = None,
    ) -> Results[T]: ...
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool | None = None,
        progress: bool | None = None,
        retries: int | None = None,
        name: str | None = None,
    ) -> Results[Any]:
        """Give ``fn(a, b, ...)`` for the items ``a, b, ...`` of the iterables, read as results are consumed.

        The first jobs are submitted at once; from then on an input is taken whenever a result has been given
        out, so the iterables may be endless, and no result is kept once you have it. Closing or dropping the
        iterator cancels what has not been consumed. The first exception of a job is raised in its turn and
        ends the map; an exception of an iterable is raised after the results of the inputs before it.

        Args:
            timeout: seconds from now after which asking for a result that is not there raises `TimeoutError`.
                (A limit for each job is ``options(timeout=)``.)
            chunksize: how many inputs make one job: saves hand-overs when they are short. Ignored under
                ``"tasks"``, and when a job has a timeout or retries of its own, which count for each input.
            buffersize: how many jobs may be submitted and not yet consumed; by default a few times the
                workers, more for short jobs.
            ordered: False gives results as they are ready.
            progress: True shows a bar, on standard error, that counts finished inputs.
            retries: how often an input that failed is run again before the failure is raised.
            name: what errors and the bar call the work.

        Raises:
            RuntimeError: after `shutdown`.
            ValueError: ``chunksize`` or ``buffersize`` is below 1, or ``retries`` below 0.
            TypeError: one of them is not an integer; or, under ``"processes"``, ``fn`` cannot be pickled.
        """
        options = self._options
        if retries is not None or name is not None:
            options = _merge(options, None, retries, name)
        chunksize = _count("chunksize", chunksize)
        if buffersize is not None:
            buffersize = _count("buffersize", buffersize)
        if self.model in ("tasks", "hybrid") or options.timeout is not None or options.retries:
            chunksize = 1
        work = Chunk(fn, options) if chunksize > 1 else fn
        freeze = getattr(self._pool, "freeze", None)
        if freeze is not None:
            # A function that goes by value is pickled once, not for each item.
            work = freeze(work)
        length = _length(iterables)
        announce = getattr(self._pool, "announce", None)
        if announce is not None:
            announce(work, None if length is None else -(-length // chunksize))
        bar = None
        if self._map_options.progress if progress is None else progress:
            from plait.progress import Bar

            bar = Bar(job_name(fn, options), length)
        deadline = None if timeout is None else timeout + monotonic()
        inputs = zip(*iterables, strict=False)
        window = Window(buffersize, self._pool)
        if ordered is None:
            ordered = self._map_options.ordered
        map_items = getattr(self._pool, "map_items", None)
        feed: Feed | ItemFeed
        if map_items is not None and chunksize == 1:
            items = map_items(work, options, ordered=ordered)
            feed = ItemFeed(items, job_name(fn, options), inputs, window, bar)
        else:
            feed = Feed(
                self._submit, work, inputs, options, window, chunksize=chunksize, ordered=ordered, bar=bar
            )
        feed.fill()
        if announce is not None and not feed.submitted:
            announce(work, 0)
        return Results(feed, deadline)

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        name: str | None = None,
        ordered: bool | None = None,
        progress: bool | None = None,
    ) -> Self:
        """This executor with other defaults for its jobs: the same methods on the same workers.

        What is None stays as it is. The view *is* this executor in all else: shutting down either, or leaving
        its ``with`` block, shuts down both.

        Args:
            timeout: seconds a job may run, not counting its time in the queue; then its future gives
                `TaskTimeout`. A coroutine is cancelled; a job in a worker process is interrupted (it sees
                `TaskCancelled`) and, if it has not ended ``cancel_grace`` seconds later, killed; a thread
                cannot be stopped and runs on.
            retries: how often a job that failed (raised an `Exception`, timed out, lost its worker) is run
                again.
            name: what errors, progress and reports call the job, instead of its function's name.
            ordered: whether `map` keeps the order of its inputs.
            progress: whether `map` shows a bar.

        Raises:
            ValueError: ``timeout`` is not above 0, or ``retries`` is below 0.
            TypeError: an option has the wrong type.
        """
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._options = _merge(self._options, timeout, retries, name)
        view._map_options = _MapOptions(
            self._map_options.ordered if ordered is None else ordered,
            self._map_options.progress if progress is None else progress,
        )
        return view

    def statistics(self) -> Statistics:
        """What the executor is doing at this moment: workers, width, jobs running and queued, longest wait.

        A few microseconds; from any thread. Under ``"auto"``, sums over what runs where.
        """
        return self._pool.load()

    @property
    def ledger(self) -> Ledger:
        """What the jobs that have ended cost, whichever model ran them: totals, quantiles, a record of each.

        As it is at this moment; it does not change afterwards. Takes some milliseconds once there are many
        jobs. From any thread, also after `shutdown`. Raises RuntimeError in a fork of the process that made
        the executor.
        """
        from plait.ledger import Ledger

        return Ledger(self._notes.snapshot())

    def report(self) -> Report:
        """What became of the time: printed, a table; `Report.save` writes it as a page of HTML with charts.

        Where the time went (queue, pickling, CPU, waiting, the GIL, idle workers), how busy the workers were,
        what ``"auto"`` chose and why, and up to three findings. As `ledger`, it is of this moment.
        """
        from plait.report import Report

        decision = self.decision
        return Report(self.ledger, self.statistics(), decision, self.workers)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs. May be called again.

        Args:
            wait: return when every job has ended and all threads, processes and memory are given back.
            cancel_futures: cancel the jobs that have not started (and, under ``"tasks"``, those that have).
            timeout: seconds after which to return all the same. What still runs then is printed on standard
                error, with the stack of each worker, and runs on.

        Raises:
            ValueError: ``timeout`` is negative or not a number.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be a number of seconds of at least 0, not {timeout!r}")
        self._pool.shutdown(wait, cancel_futures=cancel_futures, timeout=timeout)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if exc_type is None or issubclass(exc_type, Exception | GeneratorExit):
            self.shutdown(wait=True)
        else:
            # Ctrl-C, sys.exit() or the cancellation of a coroutine: nobody wants to wait for the jobs.
            self.shutdown(wait=False, cancel_futures=True)
            cancel = getattr(self._pool, "cancel", None)
            if cancel is not None:
                cancel()
        return None

    def __repr__(self) -> str:
        return f"<plait.Executor {self.model!r}, {self.workers} workers>"


def _make_pool(
    model: str,
    workers: int | Literal["adaptive"] | None,
    options: dict[str, Any],
    ledger: _rust.Ledger,
) -> Pool:
    if not isinstance(model, str):
        raise TypeError(f"model must be a string, one of {_known()}, not {type(model).__name__}")
    if model not in _POOLS:
        raise ValueError(f"unknown model {model!r}: the models are {_known()}")
    if workers == "adaptive":
        if model != "threads":
            raise ValueError(f"workers='adaptive' is for the model 'threads', not {model!r}")
    elif workers is not None:
        workers = _count("workers", workers)
    for option in options:
        if model not in _FITS[option]:
            fits = " and ".join(map(repr, _FITS[option]))
            raise TypeError(f"the model {model!r} has no option {option!r}: it is for {fits}")
    if "max_tasks_per_worker" in options:
        options["max_tasks_per_worker"] = _count("max_tasks_per_worker", options["max_tasks_per_worker"])
    if "width" in options:
        options["width"] = _count("width", options["width"])
    for option in ("cancel_grace", "idle_timeout"):
        if option in options:
            options[option] = _seconds(option, options[option])
    if model in _FITS["idle_timeout"]:
        options.setdefault("idle_timeout", _IDLE_TIMEOUT)
    if "max_memory_per_worker" in options:
        options["max_memory_per_worker"] = _count("max_memory_per_worker", options["max_memory_per_worker"])
    if "preload" in options:
        options["preload"] = _names("preload", options["preload"])
    if model == "interpreters" and sys.version_info < (3, 14):
        version = ".".join(map(str, sys.version_info[:2]))
        raise RuntimeError(
            f"the model 'interpreters' needs Python 3.14 or later and this is {version}; "
            "'processes' does the same on every version"
        )
    module, name = _POOLS[model]
    pool: Pool = getattr(import_module(module), name)(workers, ledger=ledger, **options)
    return pool


def _known() -> str:
    return ", ".join(map(repr, _POOLS))


def _names(what: str, value: Sequence[str]) -> list[str]:
    """``value`` as a list of strings."""
    names = [value] if isinstance(value, str) else list(value)
    if isinstance(value, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what} must be a list of names of modules, not {value!r}")
    return names


def _for_ever(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds


def _seconds(what: str, value: float) -> float:
    """``value`` as a number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {value!r} ({type(value).__name__})")
    if not value >= 0:
        raise ValueError(f"{what} must be at least 0 seconds, not {value!r}")
    return float(value)


def _count(what: str, value: int) -> int:
    """``value`` as an integer of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or (number == 0 and value != 0):
        raise TypeError(f"{what} must be an integer, not {value!r} ({type(value).__name__})")
    if number < 1:
        raise ValueError(f"{what} must be at least 1, not {number}")
    return number


def _merge(options: JobOptions, timeout: float | None, retries: int | None, name: str | None) -> JobOptions:
    """``options`` with what is given put in."""
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise TypeError(
                f"timeout must be a number of seconds, not {timeout!r} ({type(timeout).__name__})"
            )
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
        options = replace(options, timeout=float(timeout))
    if retries is not None:
        if isinstance(retries, bool) or not isinstance(retries, int):
            raise TypeError(f"retries must be an integer, not {retries!r} ({type(retries).__name__})")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, not {retries}")
        options = replace(options, retries=retries)
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r} ({type(name).__name__})")
        options = replace(options, name=name)
    return options


def _length(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """How many inputs there will be, if all the iterables say."""
    lengths = [length for length in map(_length_of, iterables) if length is not None]
    return min(lengths) if lengths and len(lengths) == len(iterables) else None


def _length_of(iterable: Iterable[Any]) -> int | None:
    # An iterator's length hint may be a guess; a bar must not promise what it does not know.
    try:
        return len(iterable)  # type: ignore[arg-type]
    except TypeError:
        return None
