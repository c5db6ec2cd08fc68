"""`ProcessPool`: the `processes` model. Workers forked from a zygote and fed through shared memory."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import threading
import weakref
from _signal import SIGKILL  # type: ignore[import-not-found]
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any, ClassVar, NoReturn

from plait import _rust, _serialize
from plait._budget import cpus, share
from plait._exit import interrupted, report, reports, watch_exit
from plait._job import DEFAULT_OPTIONS, JobOptions, Statistics, job_name
from plait._memory_kills import memory_kills
from plait._notes import Notes, flush_streams, settings
from plait._tracker import with_tracker
from plait.errors import ArgumentNotPicklable, ResultNotPicklable, TaskTimeout, WorkerDied
from plait.future import Future

__all__ = ["ProcessPool"]

_LONGEST_CANCEL = 0.5
"""How many seconds jobs may clean up when the whole pool is cancelled, after Ctrl-C for instance."""

_SLOTS = 256
"""How many functions a worker remembers at once."""


class ProcessPool:
    """Up to `workers` processes that run jobs; a failure of one costs exactly the job it was running.

    Nothing is started before the first job. Thread-safe. After a `fork`, the child cannot use it (`submit`
    raises RuntimeError) and the parent is not affected.

    Args:
        workers: how many processes at most; by default as many as this process may use CPUs.
        initializer: called with `initargs` in each worker before its first job. If it raises, every job of
            the pool fails with `concurrent.futures.process.BrokenProcessPool`, which carries its traceback.
        initargs: the arguments of `initializer`.
        max_tasks_per_worker: after so many jobs a worker is replaced by a new one; by default never.
        cancel_grace: how many seconds a running job may take to end after it was cancelled, or its timeout
            was over, before its worker is killed.
        idle_timeout: after so many seconds without a job a worker leaves; the pool grows again on demand. By
            default workers stay.
        max_memory_per_worker: a worker that is found to hold more than so many bytes of memory of its own
            (what it shares with other processes does not count) is replaced when it has done the job it is
            doing. A warning of the logger ``plait`` tells so, once.
        preload: modules that are imported once, in the zygote, so that workers have them from the start. One
            that starts threads (which a fork would lose) is imported by each worker instead, before its first
            job. If one cannot be imported, every job of the pool fails like after a failed `initializer`.
        ledger: where to note what jobs cost; by default nowhere.

    Raises:
        ValueError: `workers` or `max_tasks_per_worker` is below 1.
        TypeError: `initializer` is not callable or cannot be pickled.
    """

    model: ClassVar[str] = "processes"
    worker_died: ClassVar[type[WorkerDied]] = WorkerDied
    _width: int | None = 1
    """How many jobs a worker runs at once; None for what turns out to be best."""
    cancels_running: ClassVar[bool] = True
    """Whether `Future.cancel` ends a job that runs; the standard's does not."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_worker: int | None = None,
        preload: Sequence[str] = (),
        cancel_grace: float = 1.0,
        idle_timeout: float | None = None,
        max_memory_per_worker: int | None = None,
        ledger: _rust.Ledger | None = None,
    ) -> None:
        budget = cpus()
        self.workers = budget if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if max_tasks_per_worker is not None and max_tasks_per_worker < 1:
            raise ValueError(f"max_tasks_per_worker must be at least 1, not {max_tasks_per_worker}")
        if max_memory_per_worker is not None and max_memory_per_worker < 1:
            raise ValueError(f"max_memory_per_worker must be at least 1, not {max_memory_per_worker}")
        worker_cpus = share(budget, self.workers)
        self._outfit = {
            "initializer": _pickle_initializer(with_tracker(initializer), initargs),
            "preload": list(preload),
            "cpus": worker_cpus,
            "width": self._width,
            "max_memory": max_memory_per_worker,
            "accounts": ledger is not None,
        }
        self._notes = Notes(max_memory_per_worker)
        self._core = _rust.ProcessPool(
            self.workers,
            max_tasks_per_worker,
            self._width,
            cancel_grace,
            idle_timeout,
            self.cancels_running,
            _zygote_command(worker_cpus),
            b"",
            Future,
            self._exception_of,
            self._notes,
            ledger,
            self.model,
        )
        if _rust.memory_fallback() is not None:
            from plait._share import warn_of_fallback

            warn_of_fallback()
        self._functions = _Functions(self._core, self._configure)
        self._owner = os.getpid()
        _live_pools.add(self)

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> Future[Any]:
        """Queue one job. Raises RuntimeError after `shutdown`; every other failure arrives in the future.

        What cannot be pickled gives a TypeError that names the function or the argument, and what inside it
        refused.
        """
        try:
            function = self._functions.find(fn)
            began = monotonic_ns()
            payload, buffers = _serialize.dumps(
                [args, kwargs, options.name] if kwargs or options.name is not None else args
            )
            pickled = monotonic_ns() - began
        except Exception as error:
            return refused(fn, args, kwargs, options, error)
        try:
            future: Future[Any] = self._core.submit(
                function,
                payload,
                buffers,
                options.name or fn,
                options.timeout,
                options.retries,
                options.since_ns,
                pickled,
            )
        except MemoryError as error:
            return refused(fn, args, kwargs, options, error)
        return future

    def map_items(self, fn: Callable[..., Any], options: JobOptions, *, ordered: bool) -> _rust.MapItems:
        """A way for the items of a map: many cross at a time, and each is a job of its own.

        Raises TypeError if `fn` cannot be pickled. `fn` is pickled once, now: it comes from `freeze`.
        """

        def refuse(args: tuple[Any, ...], error: Exception) -> BaseException:
            return refusal(fn, args, {}, options, error)

        def pickle(args: tuple[Any, ...]) -> Any:
            return _serialize.dumps([args, {}, options.name])

        function = self._functions.find(fn)
        return self._core.map_items(
            function,
            options.name or fn,
            options.timeout,
            options.retries,
            ordered,
            _serialize.dumps if options.name is None else pickle,
            refuse,
        )

    def freeze(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Pickle `fn` now, for any number of jobs: `submit` takes what this returns in its place.

        For `map`, whose function is the same for every item. Raises TypeError if `fn` cannot be pickled.
        """
        if isinstance(fn, _Frozen) or _serialize.is_constant(fn):
            return fn  # pickled once anyway
        try:
            definition = _serialize.dumps_function(fn)
        except Exception as error:
            raise ArgumentNotPicklable(
                _serialize.describe_call(fn, (), {}, job_name(fn, DEFAULT_OPTIONS))
            ) from error
        return _Frozen(fn, definition)

    def _configure(self) -> None:
        """Tell workers that will be started what this process is like now."""
        memory_kills.watch()
        flush_streams()
        configuration = {"path": sys.path, "authkey": _authkey(), "relay": settings(), **self._outfit}
        self._core.configure(marshal.dumps(configuration))

    def statistics(self) -> dict[str, Any]:
        """What the pool is doing: ``jobs`` and ``pending`` (counts), ``workers`` (process ids), ``blocks``
        (arguments in shared memory)."""
        return self._core.statistics()

    def load(self) -> Statistics:
        """What the pool is doing."""
        known = self._core.statistics()
        return Statistics(
            self.model,
            len(known["workers"]),
            self.workers * known["width"],
            self.workers * (self._width or _rust.MOST_WIDTH),
            known["jobs"] - known["pending"],
            known["pending"],
            known["waited"],
        )

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs; with `wait`, return when all are done and every process and descriptor is gone.

        With `timeout`, return after so many seconds all the same; workers that still run jobs have then
        printed their stacks on standard error.

        Interrupted by Ctrl-C while it waits, it cancels every job, as `cancel` does, and raises
        KeyboardInterrupt.
        """
        self._core.shut_down(cancel_futures)
        if wait:
            try:
                if not self._core.wait_closed(timeout) and timeout is not None:
                    report(timeout, self._stuck())
                    return
            except BaseException:
                self.cancel()
                raise
            self._notes.join()
            self._functions.forget()

    def wait_closed(self) -> None:
        """Wait until the pool, which was shut down, has done its jobs and given everything back."""
        self._core.wait_closed()
        self._notes.join()

    def cancel(self) -> None:
        """Take no more jobs and cancel all, also those that run; wait until everything is given back.

        That takes `cancel_grace` at most, and no longer than half a second: what has not ended by then is
        killed.
        """
        self._core.cancel_all()
        try:
            if not self._core.wait_closed(_LONGEST_CANCEL):
                self.terminate()
        except BaseException:
            self.terminate()
            raise

    def terminate(self) -> None:
        """End every worker at once. Running jobs fail with `WorkerDied`, the others are cancelled."""
        self._core.terminate()
        self.wait_closed()

    def _stuck(self) -> Iterator[str]:
        """The workers that still run jobs; then each prints its own stack, on the same standard error."""
        load, pids = self.load(), [pid for pid in self._core.statistics()["workers"] if pid]
        if load.running or load.queued:
            yield f"{load.running} jobs in worker processes {', '.join(map(str, pids))}\n"
            for pid in pids:
                _dump_stack(pid)

    def _disown(self) -> None:
        """In the child of a fork: refuse jobs, and before they are pickled, which may need locks (of an
        import, say) that threads held which the fork left behind.
        """
        self._functions.renew_lock()
        vars(self)["submit"] = self._refuse

    def _refuse(self, *_job: object) -> NoReturn:
        raise RuntimeError(
            f"this pool belongs to process {self._owner}, of which this one is a fork; make a new pool here"
        )

    def __del__(self) -> None:
        """A pool that nobody holds any more does the jobs it has, also if the interpreter exits meanwhile."""
        core = vars(self).get("_core")
        if core is not None:
            core.shut_down(False)
            if core.statistics()["jobs"]:
                _forgotten[:] = [core, *(other for other in _forgotten if other.statistics()["jobs"])]

    @classmethod
    def _exception_of(
        cls,
        kind: str,
        name: Any,
        pid: int,
        exitcode: int | None,
        signal: int | None,
        timeout: float | None,
        text: str,
    ) -> BaseException:
        """The exception for a job that has no answer; called by the collector."""
        job = name if isinstance(name, str) else job_name(name, DEFAULT_OPTIONS)
        match kind:
            case "died" | "terminated":
                starved = kind == "died" and signal == SIGKILL and memory_kills.is_new()
                return cls.worker_died(job, pid, exitcode, signal, _without_us(text), starved)
            case "overdue":
                return TaskTimeout(job, timeout or 0.0)
            case "unpicklable":
                return ResultNotPicklable(f"{job} {text}")
            case "too large":
                return MemoryError(f"the arguments of {job} do not fit into the memory shared with workers")
            case _:
                from concurrent.futures.process import BrokenProcessPool

                return BrokenProcessPool(f"no worker of the pool can be used: {text}")


def _without_us(traceback: str) -> str:
    """A crash's text without the frames by which a worker came to run the job."""
    ours = tuple(f'  File "{Path(__file__).with_name(name)}"' for name in ("_worker.py", "_zygote.py"))
    return "".join(line for line in traceback.splitlines(keepends=True) if not line.startswith(ours))


class RefusedFuture(Future[Any]):
    """The future of a job that was not sent, as it cannot be pickled; it has failed with a TypeError."""


class _Frozen:
    """A function together with its pickle."""

    def __init__(self, function: Callable[..., Any], definition: bytes) -> None:
        self.function = function
        self.definition = definition
        self.__qualname__ = job_name(function, DEFAULT_OPTIONS)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class _Functions:
    """The functions that workers know by number: the newest ones, so that a worker's memory stays bounded."""

    def __init__(self, core: _rust.ProcessPool, configure: Callable[[], None]) -> None:
        self._core = core
        self._configure: Callable[[], None] | None = configure
        self._lock = threading.Lock()
        self._free = list(range(_SLOTS))
        # By id, oldest first. The entry keeps the function and what it captured alive, so that
        # nothing else can take their places.
        self._known: OrderedDict[int, tuple[Callable[..., Any], tuple[Any, ...], int, _rust.Function]] = (
            OrderedDict()
        )

    def find(self, fn: Callable[..., Any]) -> _rust.Function:
        """The function as the engine knows it. Raises what pickling it raises."""
        known = self._known.get(id(fn))
        captured = _serialize.captured(fn)
        if known is not None and _serialize.are_identical(known[1], captured):
            return known[3]
        if self._configure is not None:
            # Not earlier: between making a pool and using it a program may set up its logging.
            self._configure()
            self._configure = None
        if type(fn) is _Frozen:
            return self._remember(fn, captured, fn.definition)
        definition = _serialize.dumps_function(fn)
        if not _serialize.is_constant(fn):
            return self._core.function(None, definition)  # sent along with each job
        return self._remember(fn, captured, definition)

    def renew_lock(self) -> None:
        """In the child of a fork: whoever held the lock is not here to let go of it."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Let go of every function."""
        with self._lock:
            self._known.clear()
            self._free = list(range(_SLOTS))

    def _remember(
        self, fn: Callable[..., Any], captured: tuple[Any, ...], definition: bytes
    ) -> _rust.Function:
        with self._lock:
            stale = self._known.pop(id(fn), None)
            if stale is not None:
                self._free.append(stale[2])
            elif not self._free:
                self._free.append(self._known.popitem(last=False)[1][2])
            slot = self._free.pop()
            function = self._core.function(slot, definition)
            self._known[id(fn)] = (fn, captured, slot, function)
            return function


def refused(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: JobOptions,
    error: Exception,
) -> Future[Any]:
    """A future that has failed because the call could not be pickled, or not be put into memory."""
    future = RefusedFuture()
    future.set_running_or_notify_cancel()
    future.set_exception(refusal(fn, args, kwargs, options, error))
    return future


def refusal(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: JobOptions,
    error: Exception,
) -> BaseException:
    """What a job fails with whose call could not be pickled, or not be put into memory."""
    if isinstance(error, MemoryError):
        name = job_name(fn, options)
        return MemoryError(f"the arguments of {name} do not fit into memory: {error}")
    fn = fn.function if isinstance(fn, _Frozen) else fn
    found = ArgumentNotPicklable(_serialize.describe_call(fn, args, kwargs, job_name(fn, options)))
    # Its traceback would keep the arguments alive, and the text says all.
    found.__cause__ = error.with_traceback(None)
    return found


def _dump_stack(pid: int) -> None:
    """Have a worker print where it is, if it is ready to: others would die of the signal."""
    from plait._worker import STACK_SIGNAL

    mask = 1 << (STACK_SIGNAL - 1)
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = status.partition("SigCgt:")[2].split(maxsplit=1)[0]
        if int(caught, 16) & mask:
            os.kill(pid, STACK_SIGNAL)
    except (OSError, IndexError, ValueError):
        return  # it has gone


def _pickle_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes | None:
    if initializer is None:
        return None
    if not callable(initializer):
        raise TypeError(f"initializer must be a callable, not {type(initializer).__qualname__}")
    try:
        definition = _serialize.dumps_function(initializer)
        arguments, buffers = _serialize.dumps(tuple(initargs))
    except Exception as error:
        raise ArgumentNotPicklable(
            _serialize.describe_call(initializer, tuple(initargs), {}, "the initializer")
        ) from error
    return marshal.dumps((definition, arguments, [bytes(buffer.raw()) for buffer in buffers]))


def _authkey() -> bytes | None:
    """What workers need to reach the managers of this process; `None` if it cannot have any."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return None if multiprocessing is None else bytes(multiprocessing.current_process().authkey)


def _zygote_command(cpus: int) -> list[str]:
    """How to start a zygote: this interpreter with its own flags, and a script that imports nothing by name.

    -P: the script's folder (this package) must not come first on `sys.path`, it has a `queue.py`.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if sys.version_info >= (3, 13):
        # So that the standard pools, and whoever else asks `os` for the CPUs, keep to the share of a worker.
        flags += ["-X", f"cpu_count={cpus}"]
    script = str(Path(__file__).with_name("_zygote.py"))
    # The zygote compares: if this process has gone before it looks, its parent is another one.
    return [sys.executable, *flags, "-P", script, str(os.getpid())]


_live_pools: weakref.WeakSet[ProcessPool] = weakref.WeakSet()


_forgotten: list[_rust.ProcessPool] = []
"""Cores whose pools nobody holds any more, while they may have jobs."""


def _disown_all() -> None:
    """In the child of a fork: every pool belongs to the parent."""
    for pool in list(_live_pools):
        pool._disown()


os.register_at_fork(after_in_child=_disown_all)
reports(lambda: (text for pool in list(_live_pools) for text in pool._stuck()))


def _finish_all() -> None:
    """At the interpreter's exit, let every pool finish its jobs, as the standard pools do."""
    watch_exit()
    for core in _forgotten:
        if interrupted():
            core.cancel_all()
            if not core.wait_closed(_LONGEST_CANCEL):
                core.terminate()
        core.wait_closed()
    for pool in list(_live_pools):
        if interrupted():
            pool.cancel()
        else:
            pool.shutdown()


# Before threads are joined and long before modules are torn down: jobs' callbacks may still run Python code.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
