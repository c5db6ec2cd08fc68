"""`InterpreterPool`: the `interpreters` model. Threads with an interpreter each (Python 3.14 and later)."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic_ns
from typing import Any, ClassVar

from plait import _rust, _serialize, _subinterpreter
from plait._budget import cpus
from plait._job import JobOptions, Statistics, job_name
from plait.errors import ResultNotPicklable
from plait.future import Future
from plait.process_pool import refused
from plait.thread_pool import ThreadPool

__all__ = ["InterpreterPool"]


class InterpreterPool:
    """Runs jobs in up to `workers` interpreters of this process, each with a GIL and modules of its own.

    The interpreters are those of the standard `concurrent.futures.InterpreterPoolExecutor`, in the threads of
    a `ThreadPool`: timeouts (the job runs on), retries and coroutine functions are as there. Functions,
    arguments and results are pickled as for processes. Many extension modules (numpy among them) cannot be
    imported in such an interpreter: the job then fails with the ImportError.

    Thread-safe; for forks see `ThreadPool`.

    Args:
        workers: how many interpreters at most; by default as many as this process may use CPUs.
        ledger: where to note what jobs cost; by default nowhere.

    Raises:
        RuntimeError: this Python has no such interpreters.
    """

    model: ClassVar[str] = "interpreters"

    def __init__(self, workers: int | None = None, *, ledger: _rust.Ledger | None = None) -> None:
        if not hasattr(concurrent.futures, "InterpreterPoolExecutor"):
            raise RuntimeError("interpreters need Python 3.14 or later")
        self.workers = cpus() if workers is None else workers
        self._threads = ThreadPool(self.workers, name="plait-interpreters", ledger=ledger, of=self.model)
        self._run = _Interpreters().run

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        """Queue one job. Raises RuntimeError after `shutdown`; every other failure arrives in the future.

        What cannot be pickled gives a TypeError that names the function or the argument, and what refused.
        """
        began = monotonic_ns()
        try:
            payload, buffers = _serialize.dumps((fn, args, kwargs))
        except Exception as error:
            return refused(fn, args, kwargs, options, error)
        call = (payload, tuple(bytes(buffer.raw()) for buffer in buffers))
        name = job_name(fn, options)
        pickled = monotonic_ns() - began
        return self._threads.submit(self._run, (name, call, pickled), {}, replace(options, name=name))

    def load(self) -> Statistics:
        """What the pool is doing."""
        return replace(self._threads.load(), model=self.model)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs; with `wait`, return when all are done and every interpreter is closed.

        With `timeout`, return after so many seconds all the same, having printed what still runs.
        """
        self._threads.shutdown(wait, cancel_futures=cancel_futures, timeout=timeout)


class _Interpreters(threading.local):
    """The interpreter of the thread that asks, closed when that thread ends."""

    def __init__(self) -> None:
        self._interpreter: _Interpreter | None = None

    def run(self, name: str, call: tuple[bytes, tuple[bytes, ...]], pickled: int) -> Any:
        """Run a call there, to its value. To pickle it has taken so many nanoseconds."""
        if self._interpreter is None:
            self._interpreter = _Interpreter()
        ending, payload, buffers, took = self._interpreter.run(_subinterpreter.run, *call)
        value, began = None, monotonic_ns()
        if ending == _subinterpreter.VALUE:
            value = pickle.loads(payload, buffers=buffers)
        _rust.job_crossed(
            pickled,
            took[0],
            took[1] + monotonic_ns() - began,
            len(call[0]) + sum(map(len, call[1])),
            len(payload) + sum(map(len, buffers)),
        )
        if ending == _subinterpreter.VALUE:
            return value
        if ending == _subinterpreter.RAISED:
            raise _serialize.loads_exception(payload, list(buffers), name)
        raise ResultNotPicklable(f"{name} {payload.decode('utf-8', 'replace')}")


class _Interpreter:
    """One worker of the standard pool, without its thread."""

    def __init__(self) -> None:
        # By this the standard executor makes its workers.
        standard: Any = getattr(concurrent.futures, "InterpreterPoolExecutor")  # noqa: B009  (not in 3.11)
        create, self._resolve = standard.prepare_context(None, ())
        self._context: Any = create()
        self._context.initialize()
        # What can be imported here can be imported there.
        self._context.interp.exec(f"import sys; sys.path[:] = {sys.path!r}")

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._context.run(self._resolve(fn, args, {}))

    def __del__(self) -> None:
        if self._context.interp is not None:
            self.run(_subinterpreter.close)
            self._context.finalize()
