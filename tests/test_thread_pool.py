"""What plait's thread pool does beyond the standard one: contexts, coroutines, timeouts, retries, forks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plait._job import DEFAULT_OPTIONS, JobOptions
from plait.errors import TaskTimeout
from plait.future import Future
from plait.thread_pool import ThreadPool, default_workers

LONG = 30.0
"""Seconds after which a test that waits has failed."""

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(4)
    yield pool
    pool.shutdown()


def submit(
    pool: ThreadPool, fn: Callable[..., Any], *args: Any, options: JobOptions = DEFAULT_OPTIONS, **kwargs: Any
) -> Future[Any]:
    return pool.submit(fn, args, kwargs, options)


def threads_of(pool: ThreadPool) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(pool._crew.prefix)}


class Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, *failures: BaseException | type[BaseException]) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= len(self.failures):
            raise self.failures[self.calls - 1]
        return self.calls


def test_it_says_what_it_is(pool: ThreadPool) -> None:
    assert ThreadPool.model == "threads"
    assert pool.workers == 4
    assert ThreadPool().workers == default_workers()
    with pytest.raises(ValueError, match="workers must be at least 1, not 0"):
        ThreadPool(0)
    assert isinstance(submit(pool, int), Future)
    assert submit(pool, dict, a=1).result(LONG) == {"a": 1}


def test_jobs_see_the_context_of_their_submit(pool: ThreadPool) -> None:
    def read_and_set(value: str) -> str:
        seen = variable.get()
        variable.set(value)
        return seen

    variable.set("first")
    first = submit(pool, read_and_set, "from a job")
    variable.set("second")
    second = submit(pool, read_and_set, "from another")
    assert (first.result(LONG), second.result(LONG)) == ("first", "second")
    assert variable.get() == "second"


def test_coroutine_functions_run_to_completion(pool: ThreadPool) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError("in a coroutine")

    async def read() -> str:
        await asyncio.sleep(0)
        return variable.get()

    variable.set("for a coroutine")
    assert submit(pool, double, 4).result(LONG) == 8
    assert submit(pool, functools.partial(double, 5)).result(LONG) == 10
    assert submit(pool, lambda: double(6)).result(LONG) == 12
    assert submit(pool, read).result(LONG) == "for a coroutine"
    with pytest.raises(OSError, match="in a coroutine"):
        submit(pool, fail).result(LONG)


def test_a_worker_keeps_its_event_loop_and_closes_it() -> None:
    async def which() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    pool = ThreadPool(1)
    first, second = (submit(pool, which).result(LONG) for _ in range(2))
    assert first is second
    assert not first.is_closed()
    pool.shutdown()
    assert first.is_closed()


def test_an_awaitable_that_is_no_coroutine_is_a_result(pool: ThreadPool) -> None:
    done = submit(pool, int)
    assert submit(pool, lambda: done).result(LONG) is done


def test_timeout(pool: ThreadPool) -> None:
    gate = threading.Event()
    job = submit(pool, gate.wait, LONG, options=JobOptions(timeout=0.05, name="waits"))
    with pytest.raises(TaskTimeout) as caught:
        job.result(LONG)
    assert (caught.value.job, caught.value.timeout) == ("waits", 0.05)
    assert str(caught.value) == "waits ran for longer than its timeout of 0.05 s"
    gate.set()
    assert submit(pool, gate.wait, options=JobOptions(timeout=LONG)).result(LONG) is True
    assert submit(pool, int, options=JobOptions(timeout=float("inf"))).result(LONG) == 0


def test_timeout_does_not_count_the_time_in_the_queue() -> None:
    pool, gate = ThreadPool(1), threading.Event()
    first = submit(pool, gate.wait, LONG)
    second = submit(pool, int, options=JobOptions(timeout=0.2))
    time.sleep(0.3)
    assert not second.done()
    gate.set()
    assert first.result(LONG) is True
    assert second.result(LONG) == 0
    pool.shutdown()
    assert threads_of(pool) == set()


def test_timeouts_expire_in_the_order_of_their_deadlines(pool: ThreadPool) -> None:
    gate, order = threading.Event(), []
    jobs = {}
    for timeout in 0.15, 0.05, 0.1:
        jobs[timeout] = submit(pool, gate.wait, LONG, options=JobOptions(timeout=timeout))
        jobs[timeout].add_done_callback(lambda job, timeout=timeout: order.append(timeout))
    assert {type(job.exception(LONG)) for job in jobs.values()} == {TaskTimeout}
    assert order == [0.05, 0.1, 0.15]
    gate.set()


def test_a_finished_job_is_not_kept_until_its_timeout(pool: ThreadPool) -> None:
    class Value:
        pass

    value = submit(pool, Value, options=JobOptions(timeout=LONG, retries=2)).result(LONG)
    gone = weakref.ref(value)
    del value
    gc.collect()
    for _ in range(1000):  # the worker lets go of it a moment after the result is there
        if gone() is None:
            break
        time.sleep(0.001)
    assert gone() is None


@pytest.mark.parametrize("timeout", [None, LONG])
def test_retries(pool: ThreadPool, timeout: float | None) -> None:
    options = JobOptions(retries=2, timeout=timeout)
    assert submit(pool, Flaky(), options=options).result(LONG) == 1
    assert submit(pool, Flaky(OSError, ValueError), options=options).result(LONG) == 3
    flaky = Flaky(OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="3"):
        submit(pool, flaky, options=options).result(LONG)
    assert flaky.calls == 3


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, concurrent.futures.CancelledError, asyncio.CancelledError]
)
def test_what_is_never_retried(pool: ThreadPool, error: type[BaseException]) -> None:
    flaky = Flaky(error)
    job = submit(pool, flaky, options=JobOptions(retries=5))
    assert type(job.exception(LONG)) is error
    assert flaky.calls == 1


def test_each_attempt_begins_with_the_same_context(pool: ThreadPool) -> None:
    seen = []

    def job() -> None:
        seen.append(variable.get())
        variable.set("changed by an attempt")
        if len(seen) < 3:
            raise OSError

    variable.set("at submit")
    submit(pool, job, options=JobOptions(retries=2)).result(LONG)
    assert seen == ["at submit"] * 3


def test_a_timeout_is_retried_on_another_thread(pool: ThreadPool) -> None:
    gate, calls = threading.Event(), []

    def job() -> str:
        calls.append(threading.get_ident())
        if len(calls) == 1:
            gate.wait(LONG)
            return "too late"
        return "in time"

    assert submit(pool, job, options=JobOptions(timeout=0.05, retries=1)).result(LONG) == "in time"
    gate.set()
    assert len(set(calls)) == 2


def test_the_last_retry_after_a_timeout_counts(pool: ThreadPool) -> None:
    gate = threading.Event()
    job = submit(pool, gate.wait, LONG, options=JobOptions(timeout=0.03, retries=2))
    assert type(job.exception(LONG)) is TaskTimeout
    gate.set()


def test_shutdown_waits_for_an_attempt_that_comes_after_it() -> None:
    """The only worker is busy with an attempt that timed out; the next is queued after the shutdown."""
    pool, gate, calls = ThreadPool(1), threading.Event(), []

    def job() -> int:
        calls.append(1)
        if len(calls) == 1:
            gate.wait(LONG)
        return len(calls)

    future = submit(pool, job, options=JobOptions(timeout=0.1, retries=1))
    while not calls:
        time.sleep(0.001)
    pool.shutdown(wait=False)
    while not pool.waiting:
        time.sleep(0.001)
    gate.set()
    pool.shutdown()
    assert future.result(timeout=0) == 2
    assert threads_of(pool) == set()


def test_shutdown_that_cancels_ends_an_attempt_that_waits() -> None:
    pool, gate = ThreadPool(1), threading.Event()
    timed = submit(pool, gate.wait, LONG, options=JobOptions(timeout=0.05, retries=1))
    while not (timed.running() and pool.waiting):
        time.sleep(0.001)
    queued = submit(pool, int)

    def leave(future: Future[Any]) -> None:
        raise SystemExit(3)

    queued.add_done_callback(leave)
    last = submit(pool, int)
    with pytest.raises(SystemExit):
        pool.shutdown(wait=False, cancel_futures=True)
    assert type(timed.exception(LONG)) is TaskTimeout
    assert queued.cancelled()
    assert last.cancelled()
    gate.set()
    pool.shutdown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (JobOptions(timeout=-1), "timeout must be a number of seconds >= 0, not -1"),
        (JobOptions(timeout=float("nan")), "timeout must be a number of seconds >= 0, not NaN"),
        (JobOptions(retries=-1), "retries must be between 0 and 4294967295, not -1"),
    ],
)
def test_bad_options(pool: ThreadPool, options: JobOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        submit(pool, int, options=options)


def test_futures_can_be_awaited_from_any_loop(pool: ThreadPool) -> None:
    gate = threading.Event()
    job = submit(pool, gate.wait, LONG)
    seen = []

    async def main() -> None:
        if len(loops) == 2:
            gate.set()
        seen.append(await job)

    loops: list[int] = []

    def run() -> None:
        loops.append(1)
        asyncio.run(main())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(LONG)
    assert seen == [True, True]
    asyncio.run(main())
    assert seen == [True] * 3

    async def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            await submit(pool, divmod, 1, 0)

    asyncio.run(fail())


def test_cancelling_an_await_cancels_a_job_that_waits() -> None:
    pool, gate = ThreadPool(1), threading.Event()
    submit(pool, gate.wait, LONG)
    queued = submit(pool, int)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queued, 0.01)

    asyncio.run(main())
    assert queued.cancelled()
    gate.set()
    pool.shutdown()


def test_a_cycle_through_a_result_is_collected(pool: ThreadPool) -> None:
    class Node:
        job: Any = None

    job = submit(pool, Node)
    node = job.result(LONG)
    node.job = job
    gone = weakref.ref(node)
    del node, job
    for _ in range(1000):  # the worker may be about to let go of the future
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.001)
    assert gone() is None


def test_no_thread_is_left_after_shutdown() -> None:
    pool = ThreadPool(3, name="short-lived")
    options = [DEFAULT_OPTIONS, JobOptions(timeout=LONG)] * 15
    for job in [submit(pool, time.sleep, 0.001, options=each) for each in options]:
        job.result(LONG)
    assert len(threads_of(pool)) == 4
    pool.shutdown()
    assert threads_of(pool) == set()


@pytest.mark.parametrize("workers", [1, 4, "adaptive"])
def test_idle_threads_leave_and_others_come(workers: Any) -> None:
    started: list[str] = []

    def note() -> None:
        started.append(threading.current_thread().name)

    pool = ThreadPool(workers, name="idle", initializer=note, idle_timeout=0.001)
    try:
        for number in range(30):
            jobs = [submit(pool, abs, -number) for _ in range(8)]
            assert [job.result(LONG) for job in jobs] == [number] * 8
            if number % 3 == 0:
                deadline = time.monotonic() + LONG
                while pool.load().workers:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
                assert submit(pool, threading.current_thread).result(LONG).name == started[-1]
    finally:
        pool.shutdown()
    assert len(started) >= 10


def test_an_idle_timeout_is_a_number_of_seconds() -> None:
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"idle_timeout must be at least 0 seconds, not {wrong}"):
            ThreadPool(1, idle_timeout=wrong)
    pool = ThreadPool(1, idle_timeout=None)
    assert submit(pool, abs, -4).result(LONG) == 4
    pool.shutdown()


def test_a_callback_that_ends_the_program_does_not_end_the_worker(
    pool: ThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def leave(future: Future[Any]) -> None:
        raise SystemExit(3)

    job = submit(pool, gate.wait, LONG)
    job.add_done_callback(leave)
    gate.set()
    assert job.result(LONG) is True
    assert submit(pool, int).result(LONG) == 0
    pool.shutdown()
    assert [record.getMessage() for record in caplog.records] == ["Exception in a done-callback"]


def test_a_callback_may_wait_for_another_job() -> None:
    pool, gate, called, seen = ThreadPool(2), threading.Event(), threading.Event(), []

    def wait_for_another(done: Future[Any]) -> None:
        seen.append(submit(pool, int).result(LONG))
        called.set()

    submit(pool, gate.wait, LONG).add_done_callback(wait_for_another)
    gate.set()
    assert called.wait(LONG)
    pool.shutdown()
    assert seen == [0]


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, gate = ThreadPool(2), threading.Event()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            submit(pool, int)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            submit(pool, int, options=JobOptions(timeout=LONG))
    first = submit(pool, gate.wait, LONG)
    while not first.running():
        time.sleep(0.001)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        second = submit(pool, int)  # waits for the thread that there is
    assert not second.done()
    gate.set()
    assert second.result(LONG) == 0
    assert submit(pool, int, options=JobOptions(timeout=LONG)).result(LONG) == 0
    pool.shutdown()


def test_jobs_that_are_c_functions_let_other_threads_run() -> None:
    """Between two such jobs no Python code runs by itself, so nothing would make the worker let go."""
    pool, numbers = ThreadPool(1), [number * 7919 % 30011 for number in range(4000)]
    jobs = [submit(pool, sorted, numbers) for _ in range(5000)]  # more than half a second
    time.sleep(0.001)
    assert not jobs[-1].done()
    pool.shutdown(cancel_futures=True)


def test_ctrl_c_interrupts_a_wait() -> None:
    script = """
import signal, threading
from plait.future import Future
threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
try:
    Future().result(timeout=30)
except KeyboardInterrupt:
    print("interrupted")
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG)
    assert (outcome.stdout, outcome.stderr) == ("interrupted\n", "")


def test_a_signal_handler_runs_during_a_wait() -> None:
    future: Future[str] = Future()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: future.set_result("from a handler"))
    try:
        timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR1])
        timer.start()
        assert future.result(LONG) == "from a handler"
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def in_child(body: Callable[[], bool]) -> bool:
    """Whether `body` returned True in a forked child, which is killed if it does not end."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(LONG))
        status = 1
        try:
            status = 0 if body() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_fork_while_running() -> None:
    pool, gate = ThreadPool(2), threading.Event()
    busy = [submit(pool, gate.wait, LONG) for _ in range(2)]
    queued = submit(pool, int)
    timed = submit(pool, int, options=JobOptions(timeout=LONG))

    def body() -> bool:
        gate.set()
        return (
            queued.cancelled()
            and timed.cancelled()
            and submit(pool, os.getpid).result(LONG) == os.getpid()
            and submit(pool, int, options=JobOptions(timeout=LONG)).result(LONG) == 0
            and len(threads_of(pool)) == 2
            and pool.shutdown() is None
            and not threads_of(pool)
        )

    while not all(job.running() for job in busy):
        time.sleep(0.001)
    assert in_child(body)
    gate.set()
    assert [job.result(LONG) for job in [*busy, queued, timed]] == [True, True, 0, 0]
    pool.shutdown()


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_forks_at_any_moment() -> None:
    """No lock of ours may be held by another thread at a fork, or the child would hang."""
    pool = ThreadPool(3)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            for job in [submit(pool, int) for _ in range(20)]:
                job.result(LONG)

    threads = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            assert in_child(lambda: submit(pool, int).result(LONG) == 0 and pool.shutdown() is None)
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)
    pool.shutdown()


def test_the_end_of_the_program_with_timers_and_coroutines() -> None:
    script = """
import asyncio, time
from plait._job import JobOptions
from plait.thread_pool import ThreadPool
pool = ThreadPool(2)
async def job():
    await asyncio.sleep(0.1)
    print("done", flush=True)
pool.submit(job, (), {}, JobOptions(timeout=30))
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG)
    assert (outcome.stdout, outcome.stderr, outcome.returncode) == ("done\n", "", 0)


def test_a_forgotten_pool_with_a_timer_goes() -> None:
    pool = ThreadPool(2, name="forgotten")
    job = submit(pool, int, options=JobOptions(timeout=LONG))
    threads = threads_of(pool)
    assert len(threads) == 2
    del pool
    for thread in threads:
        thread.join(LONG)
    assert job.result(LONG) == 0
    assert not any(thread.is_alive() for thread in threads)


def test_generic_alias() -> None:
    assert isinstance(Future[int], types.GenericAlias)
