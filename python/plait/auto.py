"""`AutoPool`: runs the first jobs for real, measures them, and lets the engine choose for the others.

No job is run twice and none waits for another to be measured with: probes are ordinary jobs, watched.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

from plait import _rust
from plait._budget import cpus
from plait._coroutines import is_coroutine_function
from plait._crossing import Crossing
from plait._exit import LOOK_SECONDS, interrupted, to_deadline, watch_exit
from plait._job import DEFAULT_OPTIONS, JobOptions, Pool, Statistics, job_name
from plait._map import Chunk
from plait._watch import CoroutineSample, Reading, Sample, gain
from plait.future import Future
from plait.process_pool import RefusedFuture

__all__ = ["AutoPool", "Decision"]

# Seconds after which a job that still runs is judged by what it did so far.
_PATIENCE = 0.1
# Alone, jobs are measured until there are this many or they took this long. The first one is left out of the
# means when there are others: it pays for imports and cold caches.
_ALONE_JOBS, _ALONE_SECONDS = 4, 0.02
# A job that computes for less than this share of its time is not slowed down by others that do the same.
_WAITS = 0.3
# Two at once, jobs are measured for about this long, but this many at most.
_TOGETHER_SECONDS, _TOGETHER_JOBS = 0.02, 64
_TOGETHER_TRIES = 3
# On this many jobs the crossing is tried.
_CROSSINGS = 2
# When other programs take this share of the time, the numbers are said to be rough.
_ROUGH = 0.2
# Functions whose measurements are kept.
_KNOWN_FUNCTIONS = 256

Submit = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], JobOptions], Future[Any]]


@dataclass(frozen=True, slots=True)
class Decision:
    """What ``"auto"`` chose for a function, and why. Times are in seconds, means over `jobs`."""

    function: str
    """The name of the function."""
    model: str
    """``"tasks"``, ``"threads"`` or ``"processes"``."""
    workers: int
    """How many of its jobs run at once."""
    reason: str
    """Why, in one sentence with the numbers."""
    final: bool
    """Whether the measuring is over; until then the choice may change for jobs yet to be submitted."""
    jobs: int
    """How many jobs were measured."""
    wall: float
    """How long one takes."""
    cpu: float
    """How much of that it computes (its own thread, and child processes it waits for)."""
    second_thread: float | None
    """Throughput of two threads over that of one: 1 if the GIL is always held, 2 if never."""
    stolen: float
    """Share of the jobs' time in which other programs had the CPUs: the more, the rougher the numbers."""
    crossing: float | None
    """How long it takes to pickle the arguments and the result; None if that is unknown or impossible."""
    crossing_bytes: int | None
    """How many bytes that makes."""
    obstacle: str | None
    """What keeps the jobs out of other processes, if something does."""
    expected: dict[str, float]
    """Jobs per second that each model was expected to reach, if it is possible at all."""


class _HeldFuture(Future[Any]):
    """The future of a job that was submitted before it was known where it will run."""

    _inner: Future[Any] | None = None

    def cancel(self) -> bool:
        """Cancel the job; False if it has finished or is running where it cannot be stopped."""
        inner = self._inner
        if inner is not None and not inner.cancel():
            return False
        return super().cancel()

    def running(self) -> bool:
        """Whether the job has begun and not ended."""
        inner = self._inner
        return not self.done() and inner is not None and inner.running()

    def follow(self, inner: Future[Any]) -> None:
        """Become what ``inner`` becomes."""
        self._inner = inner
        if self.cancelled():  # Meanwhile.
            inner.cancel()
        inner.add_done_callback(self._settle)

    def _settle(self, inner: Any) -> None:
        self._inner = None
        if inner.cancelled():
            Future.cancel(self)
        if not self.set_running_or_notify_cancel():
            return
        error = inner.exception()
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(inner.result())


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A job that waits to be told where to run."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: JobOptions
    context: Context
    future: _HeldFuture
    since_ns: int

    def run(self, submit: Submit, fn: Callable[..., Any] | None = None) -> None:
        """Submit it, in the context of the caller it comes from."""
        if self.future.cancelled():
            self.future.set_running_or_notify_cancel()
            return
        try:
            options = replace(self.options, since_ns=self.since_ns)
            inner = self.context.run(submit, fn or self.fn, self.args, self.kwargs, options)
        except Exception as error:
            self.fail(error)
            return
        self.future.follow(inner)

    def fail(self, error: Exception) -> None:
        """It cannot be run."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class _Route:
    """Where the jobs of one function go: watched one by one at first, held back meanwhile, then straight on.

    A thread of its own launches the probes. It leaves when there is nothing to launch or to watch.
    """

    def __init__(self, owner: AutoPool, fn: Callable[..., Any], options: JobOptions) -> None:
        self.name = job_name(fn, options)
        self.pin = getattr(fn, "__code__", fn)
        """What the key of this route names by its id."""
        self.announced: int | None = None
        """How many jobs there will be in all, if somebody said."""
        self._owner = owner
        self._submitted = 0
        self._coroutine = is_coroutine_function(fn)
        self._straight: Submit | None = None
        """Where new jobs go; None while they are held."""
        self._decision: Decision | None = None
        # Guards all that follows.
        self._changed = threading.Condition(threading.Lock())
        self._held: deque[_Held] = deque()
        self._passing = 0
        """How many jobs are no longer held and not yet in a pool."""
        self._thread: threading.Thread | None = None
        self._running: list[Sample] = []
        self._alone: list[tuple[float, float]] = []
        """Wall and CPU time of the jobs that ran alone."""
        self._together: dict[Sample, Reading | None] = {}
        """The jobs launched two at once; for one that ran alone before, what it had done when that began."""
        self._together_until = 0.0
        self._together_tries = 0
        self._second_thread: float | None = None
        self._crossings: list[Crossing] = []
        self._watched = 0.0
        self._stolen = 0.0
        """Of so many seconds of jobs that ran alone, other programs had the CPUs for so many."""

    # Called from any thread.

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        """Queue one job."""
        straight = self._straight
        if straight is not None:
            return straight(fn, args, kwargs, options)
        held = _Held(fn, args, kwargs, options, copy_context(), _HeldFuture(), time.monotonic_ns())
        with self._changed:
            self._submitted += 1
            straight = self._straight
            if straight is None:
                self._held.append(held)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._measure, name="plait-auto", daemon=True)
                    self._thread.start()
                else:
                    self._changed.notify_all()
                return held.future
        held.run(straight)
        return held.future

    def gives_coroutines(self, sample: Sample) -> None:
        """It is not an ``async def`` and yet returned a coroutine: that belongs on an event loop."""
        with self._changed:
            self._coroutine = True
            if sample in self._running:
                self._running.remove(sample)
            self._changed.notify_all()

    def sample_ended(self, sample: Sample) -> None:
        """A job that was watched is over, or an attempt at it: only the first one is counted."""
        with self._changed:
            if sample not in self._running:
                return
            self._running.remove(sample)
            reading = sample.read()
            if reading is not None:
                before = self._together.get(sample, reading)
                if before is reading:
                    self._alone.append(_times(reading))
                    # (Of those together, the other thread is what takes the CPU.)
                    self._watched += reading.until - reading.began
                    self._stolen += reading.stolen
                elif before is not None:
                    # It was alone for a while: had it stayed alone, it would have gone on at that pace.
                    wall, cpu = _times(before)
                    self._alone.append((wall * reading.cpu / cpu if cpu else wall, reading.cpu))
            self._changed.notify_all()

    def settle(self, *, cancel: bool, deadline: float | None = None) -> None:
        """No job will come any more: return when none is held, or when it is time.

        With ``cancel``, cancel those that are held.
        """
        with self._changed:
            given_up = list(self._held) if cancel else []
            if cancel:
                self._held.clear()
        for held in given_up:
            held.future.cancel()
            held.future.set_running_or_notify_cancel()
        with self._changed:
            while self._passing or (self._thread is not None and self._held):
                if deadline is not None and time.monotonic() >= deadline:
                    return
                left = LOOK_SECONDS if deadline is None else deadline - time.monotonic()
                self._changed.wait(max(0.0, min(LOOK_SECONDS, left)))

    def held_for(self) -> tuple[int, float]:
        """How many jobs are held, and for how many seconds the first of them has been."""
        with self._changed:
            since = self._held[0].since_ns if self._held else None
            return len(self._held), 0.0 if since is None else (time.monotonic_ns() - since) / 1e9

    def holds(self) -> bool:
        """Whether jobs are held."""
        with self._changed:
            return bool(self._held or self._passing)

    @property
    def decision(self) -> Decision:
        """The decision, or what it would be by now."""
        decided = self._decision
        if decided is not None:
            return decided
        with self._changed:
            return self._decide(final=False)[0]

    # Called holding the lock.

    def _decide(self, *, final: bool) -> tuple[Decision, str]:
        """What the evidence so far says, and the engine's word for why."""
        wall, cpu = self._means()
        tried = [crossing for crossing in self._crossings if crossing.complete or crossing.obstacle]
        obstacle = next((crossing.obstacle for crossing in tried if crossing.obstacle), None)
        mutates = next((crossing.mutates for crossing in tried if crossing.mutates), None)
        seconds = size = None
        crossing: float | str
        if not tried:
            crossing = "unknown"
        elif obstacle is not None:
            crossing = "refused"
        elif mutates is not None:
            crossing = "mutates"
        else:
            crossing = seconds = _mean([one.seconds for one in tried])
            size = round(_mean([one.bytes for one in tried]))
        left = None if self.announced is None else self.announced - self._submitted + len(self._held)
        model, workers, reason, *rates = _rust.choose(
            jobs=len(self._alone) + (wall > 0 and not self._alone),
            wall=wall,
            cpu=cpu,
            second_thread=self._second_thread,
            coroutine=self._coroutine,
            crossing=crossing,
            cpus=_cpus(),
            workers=self._owner.asked,
            jobs_left=None if left is None else max(left, 0),
        )
        decision = Decision(
            function=self.name,
            model=model,
            workers=workers,
            reason="",
            final=final,
            jobs=len(self._alone),
            wall=wall,
            cpu=cpu,
            second_thread=self._second_thread,
            stolen=self._stolen / self._watched if self._watched else 0.0,
            crossing=seconds,
            crossing_bytes=size,
            obstacle=obstacle or mutates,
            expected={
                name: rate
                for name, rate in zip(("tasks", "threads", "processes"), rates, strict=True)
                if rate
            },
        )
        return replace(decision, reason=_explain(reason, decision, self._coroutine, left)), reason

    def _means(self) -> tuple[float, float]:
        """Wall and CPU time of one job, alone."""
        alone = self._alone[1:] or self._alone
        if alone:
            return _mean([wall for wall, _ in alone]), _mean([cpu for _, cpu in alone])
        # Nothing has ended yet: what a long job did so far, while it was alone.
        for sample in self._running:
            reading = self._together.get(sample) or sample.read()
            if reading is not None and reading.until > reading.began:
                return _times(reading)
        return 0.0, 0.0

    def _computes(self) -> bool:
        wall, cpu = self._means()
        return cpu > _WAITS * wall

    def _known_alone(self) -> bool:
        """Whether enough jobs ran alone."""
        took = sum(wall for wall, _ in self._alone)
        if len(self._alone) >= _ALONE_JOBS or took >= _PATIENCE:
            return True
        return took >= _ALONE_SECONDS and (len(self._alone) > 1 or not self._computes())

    def _wants_second_thread(self) -> bool:
        """Whether it is worth knowing what a second thread brings."""
        return (
            self._second_thread is None
            and not self._coroutine
            and self._together_tries < _TOGETHER_TRIES
            and self._owner.asked != 1
            and self._computes()
        )

    def _overdue(self) -> bool:
        """Whether a job runs alone and so long that it is judged by what it did so far."""
        if len(self._running) != 1 or self._together:
            return False
        began = self._running[0].began
        return began is not None and time.perf_counter() - began >= _PATIENCE

    # The thread of the route.

    def _measure(self) -> None:
        held: deque[_Held] = deque()
        try:
            while self._step():
                pass
        except Exception as error:
            # A pool that cannot be made, say. Nobody may wait for these jobs for ever.
            with self._changed:
                held, self._held = self._held, held
            for one in held:
                one.fail(error)
        finally:
            with self._changed:
                self._thread = None
                self._changed.notify_all()

    def _step(self) -> bool:
        """Do the next thing there is to do; False if there is nothing to do or to wait for."""
        with self._changed:
            if self._together:
                self._look_at_those_together()
                if not any(sample in self._running for sample in self._together):
                    self._together = {}
            if self._straight is not None:
                if self._running:
                    self._changed.wait()
                    return True
                # The first choice was made by jobs that were still running. Now they are known whole.
                if self._decision is None or not self._decision.final:
                    self._choose()
                self._thread = None
                return False
            launch: list[tuple[_Held, Sample]] = []
            if self._can_choose():
                self._choose()
            elif not self._held and not self._running:
                self._thread = None
                return False
            else:
                launch = self._to_launch()
                if not launch:
                    self._changed.wait(self._until_look())
                self._passing += len(launch)
        try:
            for held, sample in launch:
                held.future.add_done_callback(partial(self._dropped, sample))
                held.run(self._owner.probe_pool(self._coroutine).submit, sample)
        finally:
            with self._changed:
                self._passing -= len(launch)
                self._changed.notify_all()
        return True

    def _can_choose(self) -> bool:
        if not (
            self._known_alone() or self._overdue() or (self._second_thread is not None and self._running)
        ):
            return False
        if self._wants_second_thread():
            # Not measured yet, and there may be jobs to measure it with.
            return False
        # A long job that computes must end before it is known whether it can cross.
        return self._known_alone() or self._decide(final=False)[1] != "too little seen"

    def _choose(self) -> None:
        """Decide, send on what was held, and let new jobs go straight on."""
        decision, _ = self._decide(final=bool(self._alone))
        self._decision = decision
        straight = self._owner.straight_to(decision)
        while self._held:
            held, self._held = self._held, deque()
            self._passing += len(held)
            # Not under the lock: what is submitted may call back.
            self._changed.release()
            try:
                for one in held:
                    one.run(straight)
            finally:
                self._changed.acquire()
                self._passing -= len(held)
        self._straight = straight
        self._changed.notify_all()

    def _to_launch(self) -> list[tuple[_Held, Sample]]:
        wants = self._wants_second_thread()
        if not self._running:
            if wants and self._known_alone() and len(self._held) > 1:
                wall = self._means()[0]
                jobs = min(max(int(2 * _TOGETHER_SECONDS / wall), 2), _TOGETHER_JOBS, len(self._held))
                launch = [self._take(None) for _ in range(jobs)]
                self._together = {sample: None for _, sample in launch}
            elif self._held:
                return [self._take(self._next_crossing())]
            else:
                return []
        elif wants and self._overdue() and self._held:
            # A long job gets company.
            first = self._running[0]
            self._together = {first: first.read()}
            launch = [self._take(self._next_crossing())]
            self._together[launch[0][1]] = None
        else:
            return []
        self._together_tries += 1
        self._together_until = time.perf_counter() + _PATIENCE
        return launch

    def _take(self, crossing: Crossing | None) -> tuple[_Held, Sample]:
        held = self._held.popleft()
        kind = CoroutineSample if self._coroutine else Sample
        sample = kind(self, held.fn, crossing)
        self._running.append(sample)
        return held, sample

    def _dropped(self, sample: Sample, future: Any) -> None:
        """The job is over; if it never began (it was cancelled), its sample is void."""
        with self._changed:
            if sample.began is None and sample in self._running:
                self._running.remove(sample)
                self._together.pop(sample, None)
                self._changed.notify_all()

    def _next_crossing(self) -> Crossing | None:
        """A trial of the crossing, if more of them tell more."""
        if len(self._crossings) >= _CROSSINGS or any(one.obstacle or one.mutates for one in self._crossings):
            return None
        self._crossings.append(Crossing())
        return self._crossings[-1]

    def _look_at_those_together(self) -> None:
        """When those launched together have ended, or were watched for long enough: see what it brought."""
        still = any(sample in self._running for sample in self._together)
        now = time.perf_counter()
        if self._second_thread is not None or (still and now < self._together_until):
            return
        readings = []
        for sample, before in self._together.items():
            reading = sample.read()
            if reading is not None and before is not None:
                cpu, stolen = reading.cpu - before.cpu, reading.stolen - before.stolen
                reading = Reading(before.until, reading.until, cpu, stolen)
            if reading is not None:
                readings.append(reading)
        wall, cpu = self._means()
        self._second_thread = gain(readings, cpu / wall if wall else 1.0)

    def _until_look(self) -> float | None:
        """How long nothing needs a look if nothing happens."""
        now = time.perf_counter()
        if self._together:
            return max(self._together_until - now, 0.001) if self._second_thread is None else None
        if len(self._running) == 1:
            began = self._running[0].began
            left = _PATIENCE - (now - began) if began is not None else _PATIENCE
            return left if left > 0 else None
        return None


class AutoPool:
    """Measures the first jobs of each function and runs the others under the model that suits them best.

    Thread-safe. Jobs of different functions are judged separately. A fork takes no threads along: a child
    process must make a pool of its own, and gets a RuntimeError from one that it inherited.

    Args:
        workers: how many jobs run at once, whatever the model; by default the decision says.
        ledger: where to note what jobs cost; by default nowhere.
        process_options: options of the `ProcessPool` that is made if processes are chosen.
    """

    model: ClassVar[str] = "auto"

    def __init__(
        self, workers: int | None = None, *, ledger: _rust.Ledger | None = None, **process_options: Any
    ) -> None:
        self.asked = workers
        self._ledger = ledger
        self._process_options = process_options
        self._lock = threading.Lock()
        self._routes: dict[tuple[Any, ...] | None, _Route] = {}
        self._last: _Route | None = None
        self._nothing: Decision | None = None
        self._pools: dict[tuple[str, int | None], Pool] = {}
        self._closed: str | None = None
        _pools.add(self)

    @property
    def workers(self) -> int:
        """How many jobs run at once: as asked, as last decided, or as a pool of threads would."""
        if self.asked is not None:
            return self.asked
        decided = self._last._decision if self._last is not None else None
        return decided.workers if decided is not None else min(32, _cpus() + 4)

    @property
    def decision(self) -> Decision | None:
        """The decision for the function that was submitted last."""
        return self._last.decision if self._last is not None else self._nothing

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        """Queue one job. Raises RuntimeError after `shutdown`, and in a process forked from the pool's."""
        if self._closed is not None:
            raise RuntimeError(self._closed)
        route = self._routes.get(_key(fn)) or self._make_route(fn, options)
        self._last = route
        return route.submit(fn, args, kwargs, options)

    def announce(self, fn: Callable[..., Any], jobs: int | None) -> None:
        """Say how many jobs of a function there are going to be; 0: there is no work."""
        if jobs == 0:
            if self._nothing is None:
                self._nothing = _Route(self, fn, DEFAULT_OPTIONS).decision
        elif jobs is not None:
            route = self._routes.get(_key(fn)) or self._make_route(fn, DEFAULT_OPTIONS)
            route.announced = (route.announced or 0) + jobs

    def probe_pool(self, coroutine: bool) -> Pool:
        """Where jobs are measured."""
        return self._pool("tasks", self.asked) if coroutine else self._pool("threads", self.asked or 2)

    def straight_to(self, decision: Decision) -> Submit:
        """How jobs are submitted once it is decided where they run."""
        if decision.model == "processes":
            processes = self._pool("processes", decision.workers)
            threads = self._pool("threads", self.asked or 2)
            return partial(_submit_across, processes.submit, threads.submit)
        return self._pool(
            decision.model, decision.workers if decision.model == "threads" else self.asked
        ).submit

    def load(self) -> Statistics:
        """What the pool is doing: sums over its pools; jobs that wait to be told where to run are queued."""
        loads = [pool.load() for pool in list(self._pools.values())]
        held = [route.held_for() for route in list(self._routes.values())]
        return Statistics(
            self.model,
            sum(load.workers for load in loads),
            self.workers,
            self.workers,
            sum(load.running for load in loads),
            sum(load.queued for load in loads) + sum(count for count, _ in held),
            max([load.longest_wait for load in loads] + [waited for _, waited in held], default=0.0),
        )

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs; with ``wait``, return when all are done and every resource is given back.

        With ``timeout``, return after so many seconds all the same, having printed what still runs.
        """
        with self._lock:
            self._closed = self._closed or "cannot submit a job after shutdown"
            routes = list(self._routes.values())
        # Not under the lock: a route that is choosing holds its own lock, and asks for a pool.
        measuring = any(route.holds() for route in routes)
        if measuring and not wait:
            # Jobs that are held must still find their way.
            threading.Thread(
                target=self._wind_up, args=(False, cancel_futures), name="plait-auto-end"
            ).start()
        else:
            self._wind_up(wait, cancel_futures, timeout)

    def cancel(self) -> None:
        """Cancel whatever can be cancelled, and wait for the end of worker processes."""
        self.shutdown(wait=False, cancel_futures=True)
        for pool in list(self._pools.values()):
            if hasattr(pool, "cancel"):
                pool.cancel()

    def _wind_up(self, wait: bool, cancel: bool, timeout: float | None = None) -> None:
        deadline = to_deadline(timeout)
        for route in list(self._routes.values()):
            route.settle(cancel=cancel, deadline=deadline)
        pools = list(self._pools.values())
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=cancel)
        if wait:
            for pool in pools:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                pool.shutdown(wait=True, timeout=left)

    def _make_route(self, fn: Callable[..., Any], options: JobOptions) -> _Route:
        key = _key(fn)
        with self._lock:
            known = list(self._routes.items())
        idle = None
        if len(known) >= _KNOWN_FUNCTIONS:
            # The oldest one, but none with jobs that `shutdown` must find. Not under the lock, as there.
            idle = next((old for old, route in known if not route.holds()), None)
        with self._lock:
            route = self._routes.get(key)
            if route is None:
                self._routes.pop(idle, None)
                route = self._routes[key] = _Route(self, fn, options)
            return route

    def _pool(self, model: str, workers: int | None) -> Pool:
        with self._lock:
            pool = self._pools.get((model, workers))
            if pool is None:
                module, name = _CHOICES[model]
                options = self._process_options if model == "processes" else {}
                pool = self._pools[model, workers] = getattr(import_module(module), name)(
                    workers, ledger=self._ledger, **options
                )
            return pool


# The models to choose from: their pools are imported when they are chosen.
_CHOICES = {
    "tasks": ("plait.task_pool", "TaskPool"),
    "threads": ("plait.thread_pool", "ThreadPool"),
    "processes": ("plait.process_pool", "ProcessPool"),
}

_pools: weakref.WeakSet[AutoPool] = weakref.WeakSet()


def _submit_across(
    processes: Submit,
    threads: Submit,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: JobOptions,
) -> Future[Any]:
    """Submit to a process; what turns out not to be picklable runs in a thread."""
    future = processes(fn, args, kwargs, options)
    return threads(fn, args, kwargs, options) if isinstance(future, RefusedFuture) else future


def _key(fn: Callable[..., Any]) -> tuple[Any, ...]:
    """What functions that do the same have in common: a lambda in a loop is a new object each time."""
    code = getattr(fn, "__code__", None)
    if code is not None:
        # Wrappers made by one decorator share their code, but not (if it keeps to the conventions) their
        # name.
        return id(code), getattr(fn, "__qualname__", "")
    if isinstance(fn, partial):
        return ("partial", *_key(fn.func))
    if isinstance(fn, Chunk):
        return ("chunk", *_key(fn.fn))
    return type(fn), getattr(fn, "__qualname__", type(fn).__qualname__)


def _explain(reason: str, decision: Decision, coroutine: bool, left: int | None) -> str:
    """The engine's word for why, as a sentence with the numbers."""
    sentence = _sentence(reason, decision, coroutine, left)
    if decision.stolen < _ROUGH:
        return sentence
    return f"{sentence} (roughly: other programs had the CPUs for {decision.stolen:.0%} of the time)"


def _sentence(reason: str, decision: Decision, coroutine: bool, left: int | None) -> str:
    share = min(decision.cpu / decision.wall, 1.0) if decision.wall else 0.0
    kind = "coroutine" if coroutine else "job"
    computes = f"a {kind} takes {_seconds(decision.wall)} and computes for {share:.0%} of it"
    if decision.second_thread is not None:
        computes += f", and a second thread makes that {decision.second_thread:.2f} times as fast"
    place = "on the event loop" if coroutine else "in threads"
    if reason == "no work":
        return (
            f"no job has ended yet, so nothing is known: jobs run {place}, where nothing needs to be pickled"
        )
    if reason == "too short":
        return (
            f"a {kind} takes {_seconds(decision.wall)}, no more than it costs to hand it over, so no model "
            "makes it faster; larger jobs would (chunksize=)"
        )
    if reason == "waits":
        return f"{computes}, so many of them wait at once {place}"
    if reason == "threads scale":
        return f"{computes}: they release the GIL, and share memory"
    crossing = ""
    if decision.crossing is not None:
        crossing = f"{_seconds(decision.crossing)} ({_bytes(decision.crossing_bytes or 0)} to pickle)"
    if reason == "GIL held":
        hold = "holds up the event loop" if coroutine else "holds the GIL"
        return f"{computes}: it {hold}, and crossing to a process costs {crossing}"
    why = {
        "cannot cross": f"it stays {place}, because {decision.obstacle}",
        "mutates": f"it stays {place}, because {decision.obstacle}, and nobody would see that from a process",
        "crossing dear": f"crossing to a process costs {crossing or 'as much as a job'}, more than it brings",
        "one CPU": "there is one CPU, so no model makes it faster",
        "soon over": f"the {left} jobs that are left are over before processes have started",
        "too little seen": f"it stays {place}: too little was seen to say whether processes would help",
    }
    return f"{computes}; {why[reason]}"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def _bytes(count: int) -> str:
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1e3:.3g} kB" if count < 1e6 else f"{count / 1e6:.3g} MB"


def _times(reading: Reading) -> tuple[float, float]:
    """Wall and CPU time of a job, on a machine that had nothing else to do."""
    return max(reading.until - reading.began - reading.stolen, reading.cpu), reading.cpu


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cpus() -> int:
    return cpus()


def _at_exit() -> None:
    """The interpreter leaves: jobs that are held must find their pools before those are told to end."""
    watch_exit()
    for pool in list(_pools):
        pool.shutdown(wait=not interrupted(), cancel_futures=interrupted())


def _after_fork() -> None:
    for pool in list(_pools):
        pool._closed = "this executor was made before the fork: make one in the child process"
        pool._routes.clear()
        pool._pools.clear()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork)
