"""Watching single jobs of `auto` while they run for real: time, CPU time, time others had the CPUs."""

from __future__ import annotations

import inspect
import os
import resource
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, NamedTuple, Protocol

from plait._crossing import Crossing


class Watcher(Protocol):
    """Who wants to know."""

    def sample_ended(self, sample: Sample) -> None:
        """The job is over, or an attempt at it."""

    def gives_coroutines(self, sample: Sample) -> None:
        """The function is not an ``async def`` and yet returned a coroutine."""


class Reading(NamedTuple):
    """A job up to some moment: when it began, that moment (both of `time.perf_counter`), and in seconds:"""

    began: float
    until: float
    cpu: float
    """what its thread computed, and child processes that it waited for;"""
    stolen: float
    """how long it could have computed, but other threads and programs had the CPUs."""


class Sample:
    """Runs one job and watches it. Called by the worker; read, also while it runs, by others."""

    def __init__(self, watcher: Watcher, fn: Callable[..., Any], crossing: Crossing | None) -> None:
        self.func = fn  # The name under which `job_name` looks for the job's own function.
        self.began: float | None = None
        self._watcher = watcher
        self._crossing = crossing
        self._end: Reading | None = None
        # When the job began: the CPU time and the stolen time of its thread; and how to ask for them.
        self._cpu = 0.0
        self._stolen = 0.0
        self._thread = 0
        self._clock: int | None = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        crossing = self._crossing
        if crossing is not None:
            crossing.before(self.func, args, kwargs)
        self._start()
        try:
            result = self.func(*args, **kwargs)
        except BaseException:
            self._stop()
            self._watcher.sample_ended(self)
            raise
        self._stop()
        if inspect.iscoroutine(result):
            self._watcher.gives_coroutines(self)
            return result
        if crossing is not None:
            crossing.after(self.func, args, kwargs, result)
        self._watcher.sample_ended(self)
        return result

    def _start(self) -> None:
        if self._end is not None:
            return  # A second attempt.
        self._thread = threading.get_native_id()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._stolen = _stolen(self._thread)
        self._cpu = time.clock_gettime(self._clock) + _children_cpu()
        self.began = time.perf_counter()

    def _stop(self) -> None:
        self._end = self.read()

    def read(self) -> Reading | None:
        """The job so far; None if it has not begun."""
        began, clock = self.began, self._clock
        if self._end is not None or began is None or clock is None:
            return self._end
        now = time.perf_counter()
        try:
            cpu = time.clock_gettime(clock) + _children_cpu() - self._cpu
        except OSError:  # The thread ended this instant, and so the job has.
            return self._end
        stolen = _stolen(self._thread) - self._stolen
        return Reading(began, now, max(cpu, 0.0), min(max(stolen, 0.0), now - began))


class CoroutineSample(Sample):
    """The same for a coroutine function: its CPU time is that of its steps on the loop."""

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        crossing = self._crossing
        if crossing is not None:
            crossing.before(self.func, args, kwargs)
        if self._end is None:
            self.began = time.perf_counter()
        try:
            result = await self._watch(self.func(*args, **kwargs))
        finally:
            self._end = self.read()
            self._watcher.sample_ended(self)
        if crossing is not None:
            crossing.after(self.func, args, kwargs, result)
        return result

    def read(self) -> Reading | None:
        """The job so far; None if it has not begun."""
        if self._end is not None or self.began is None:
            return self._end
        return Reading(self.began, time.perf_counter(), self._cpu, 0.0)

    @coroutine
    def _watch(self, steps: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            before = time.thread_time()
            try:
                waited_for = step(value)
            except StopIteration as stop:
                return stop.value
            finally:
                self._cpu += time.thread_time() - before
            try:
                value = yield waited_for
                step = steps.send
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                step, value = steps.throw, error


# Two threads that disturb each other more than this were disturbed by something else.
_WORST = 0.5


def gain(readings: list[Reading], busy: float) -> float | None:
    """How many times the work of one thread two get done: from jobs that ran on two, compared by their CPU
    time.

    What jobs compute does not depend on what runs beside them. So it is known how long they would have taken
    one after the other, and how long two at a time; the time they took lies between (1 to 2), or beyond.

    Args:
        readings: the jobs, in the order in which they were given to the threads.
        busy: the share of its time that such a job computes when it runs alone.

    Returns:
        The factor, or None if the jobs would not have taken much less time two at once, so that they tell
        nothing.
    """
    if len(readings) < 2 or busy <= 0:
        return None
    lengths = [reading.cpu / busy for reading in readings]
    one = sum(lengths)
    free_at = [0.0, 0.0]
    for length in lengths:
        free_at[free_at[1] < free_at[0]] += length
    two = max(free_at)
    if one - two <= 0.2 * one:
        return None
    # Other programs only make this longer, so on a busy machine a second thread is judged worse than it is;
    # never better, which would keep work in threads that gains nothing there.
    took = max(reading.until for reading in readings) - min(reading.began for reading in readings)
    return min(max(1 + (one - took) / (one - two), _WORST), 2.0)


def _children_cpu() -> float:
    """CPU seconds of the child processes that ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _stolen(thread: int) -> float:
    """Seconds that a thread of ours was ready to run and had no CPU; 0 if the system does not say."""
    try:
        descriptor = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)
        try:
            return int(os.read(descriptor, 128).split()[1]) / 1e9
        finally:
            os.close(descriptor)
    except (OSError, IndexError, ValueError):
        return 0.0
