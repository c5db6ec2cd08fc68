"""What a thread pool must do: the same bodies on the standard executor and on ours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import concurrent.futures.thread
import contextlib
import gc
import inspect
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import plait.futures

LONG = 30.0
"""Seconds after which a test that waits has failed."""


@pytest.fixture(
    params=[concurrent.futures.ThreadPoolExecutor, plait.futures.ThreadPoolExecutor],
    ids=["standard", "plait"],
)
def executor_type(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def executor(executor_type: Any) -> Iterator[Any]:
    with executor_type(4) as executor:
        yield executor


def test_signatures(executor_type: Any) -> None:
    standard = concurrent.futures.ThreadPoolExecutor
    for name in "__init__", "submit", "map", "shutdown":
        ours = inspect.signature(getattr(executor_type, name)).parameters
        theirs = inspect.signature(getattr(standard, name)).parameters
        wanted = [(p.name, p.kind, p.default) for p in theirs.values() if p.name != "ctxkwargs"]
        assert [(p.name, p.kind, p.default) for p in ours.values() if p.name != "ctxkwargs"] == wanted
    assert issubclass(executor_type, standard)


def test_bad_arguments(executor_type: Any) -> None:
    for number in 0, -1:
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            executor_type(number)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        executor_type(1, initializer=3)
    assert executor_type()._max_workers == concurrent.futures.ThreadPoolExecutor()._max_workers


def test_submit_and_map(executor: Any) -> None:
    assert executor.submit(pow, 2, 8).result(LONG) == 256
    assert executor.submit(lambda *a, **k: (a, k), 1, self=2, fn=3).result(LONG) == (
        (1,),
        {"self": 2, "fn": 3},
    )
    assert isinstance(executor.submit(int), concurrent.futures.Future)
    with pytest.raises(TypeError):
        executor.submit()
    assert list(executor.map(pow, range(9), [2] * 9, timeout=LONG)) == [n**2 for n in range(9)]
    with pytest.raises(ZeroDivisionError):
        list(executor.map(divmod, [1, 1], [1, 0]))


def test_jobs_run_in_other_threads_in_order(executor_type: Any) -> None:
    order: list[int] = []
    with executor_type(1) as executor:
        threads = {future.result(LONG) for future in [executor.submit(threading.get_ident) for _ in range(9)]}
        for number in range(100):
            executor.submit(order.append, number)
    assert order == list(range(100))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_threads_are_started_on_demand(executor_type: Any) -> None:
    with executor_type(3) as executor:
        assert len(executor._threads) == 0
        gate = threading.Semaphore(0)
        for expected in 1, 2, 3, 3, 3:
            executor.submit(gate.acquire)
            assert len(executor._threads) == expected
        gate.release(5)


def test_an_idle_thread_is_used_again(executor_type: Any) -> None:
    with executor_type(4) as executor:
        for _ in range(20):
            executor.submit(int).result(LONG)
        if getattr(
            sys, "_is_gil_enabled", lambda: True
        )():  # else the next submit may come before the thread is idle
            assert len(executor._threads) == 1


def test_jobs_that_wait_for_each_other(executor_type: Any) -> None:
    """A job must never lie behind one that blocks while the pool could have another thread."""
    for _ in range(20):
        barrier = threading.Barrier(4)
        with executor_type(4) as executor:
            executor.submit(int).result(LONG)
            jobs = [executor.submit(barrier.wait, LONG) for _ in range(4)]
            assert sorted(job.result(LONG) for job in jobs) == [0, 1, 2, 3]
            barrier.reset()
            jobs = [executor.submit(barrier.wait, LONG) for _ in range(4)]
            assert sorted(job.result(LONG) for job in jobs) == [0, 1, 2, 3]


def test_jobs_may_submit_jobs(executor: Any) -> None:
    def outer(depth: int) -> int:
        return depth if depth == 0 else 1 + executor.submit(outer, depth - 1).result(LONG)

    assert executor.submit(outer, 3).result(LONG) == 3


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_failure_fails_its_job_alone(executor: Any, error: BaseException) -> None:
    def fail() -> None:
        raise error

    assert executor.submit(fail).exception(LONG) is error
    assert executor.submit(int).result(LONG) == 0


def test_names(executor_type: Any) -> None:
    with executor_type(2, thread_name_prefix="mine") as executor:
        executor.submit(int).result(LONG)
        assert [thread.name for thread in executor._threads] == ["mine_0"]
    with executor_type(2) as executor:
        name = executor.submit(lambda: threading.current_thread().name).result(LONG)
        assert name.startswith("ThreadPoolExecutor-")
        assert name.endswith("_0")


def test_initializer(executor_type: Any) -> None:
    local = threading.local()

    def prepare(value: int) -> None:
        local.value = value

    with executor_type(2, initializer=prepare, initargs=(7,)) as executor:
        assert [job.result(LONG) for job in [executor.submit(lambda: local.value) for _ in range(9)]] == [
            7
        ] * 9


def test_an_initializer_that_raises_breaks_the_pool(
    executor_type: Any, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    def prepare() -> None:
        go.wait(LONG)
        raise ValueError("in initializer")

    broken = concurrent.futures.thread.BrokenThreadPool
    with executor_type(2, initializer=prepare) as executor:
        jobs = [executor.submit(int) for _ in range(5)]
        go.set()
        for job in jobs:
            with pytest.raises(broken, match="A thread initializer failed"):
                job.result(LONG)
        assert executor._broken
        with pytest.raises(broken, match="A thread initializer failed"):
            executor.submit(int)
    assert {record.getMessage() for record in caplog.records} == {"Exception in initializer:"}
    assert "in initializer" in caplog.text


def test_cancel(executor_type: Any) -> None:
    with executor_type(1) as executor:
        gate = threading.Event()
        first = executor.submit(gate.wait, LONG)
        second = executor.submit(int)
        while not first.running():
            time.sleep(0.001)
        assert not first.cancel()
        assert second.cancel()
        gate.set()
        assert concurrent.futures.wait([second], timeout=LONG).done == {second}
        assert first.result(LONG) is True


def test_shutdown_finishes_what_was_submitted(executor_type: Any) -> None:
    executor = executor_type(2)
    jobs = [executor.submit(time.sleep, 0.001) for _ in range(50)]
    executor.shutdown()
    assert all(job.done() for job in jobs)
    assert not any(thread.is_alive() for thread in executor._threads)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)
    executor.shutdown()
    executor_type(2).shutdown()


def test_shutdown_without_waiting(executor_type: Any) -> None:
    gate = threading.Event()
    executor = executor_type(2)
    job = executor.submit(gate.wait, LONG)
    executor.shutdown(wait=False)
    assert not job.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)
    gate.set()
    assert job.result(LONG) is True


def test_shutdown_that_cancels(executor_type: Any) -> None:
    gate, told = threading.Event(), []
    executor = executor_type(1)
    first = executor.submit(gate.wait, LONG)
    others = [executor.submit(int) for _ in range(5)]
    for job in others:
        job.add_done_callback(told.append)
    while not first.running():
        time.sleep(0.001)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(job.cancelled() for job in others)
    assert told == others
    gate.set()
    executor.shutdown()
    assert first.result(LONG) is True


def test_a_forgotten_pool_finishes_its_jobs_and_goes(executor_type: Any) -> None:
    executor = executor_type(2)
    jobs = [executor.submit(time.sleep, 0.001) for _ in range(20)]
    threads = list(executor._threads)
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert all(job.done() for job in jobs)


def test_nothing_of_a_job_is_kept(executor: Any) -> None:
    class Value:
        def method(self) -> Value:
            return self

    value = Value()
    gone = threading.Event()
    weakref.finalize(value, gone.set)
    executor.submit(value.method)
    del value
    # Without a GIL an object is deleted by the thread that made it, and only while that thread runs.
    for _ in range(int(LONG / 0.05)):
        gc.collect()
        if gone.wait(0.05):
            break
    assert gone.is_set()


def test_a_generator_of_jobs_left_early_cancels_them(executor_type: Any) -> None:
    gate, seen = threading.Event(), []
    with executor_type(1) as executor:
        first = executor.submit(gate.wait, LONG)
        results = executor.map(seen.append, [1, 2], timeout=0)
        with contextlib.closing(results), pytest.raises(TimeoutError):
            next(results)
        gate.set()
        first.result(LONG)
    assert seen == []


def test_asyncio_uses_it(executor_type: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with executor_type(2) as executor:
            assert await loop.run_in_executor(executor, pow, 2, 5) == 32
            assert await asyncio.gather(*(loop.run_in_executor(executor, abs, -n) for n in range(50))) == [
                *range(50)
            ]
        executor = executor_type(2)
        loop.set_default_executor(executor)
        assert await asyncio.to_thread(pow, 2, 6) == 64
        await loop.shutdown_default_executor()

    asyncio.run(main())


@pytest.mark.parametrize("wait", [True, False])
def test_the_end_of_the_program_waits_for_jobs(executor_type: Any, wait: bool) -> None:
    script = f"""
import sys, threading, time
from {executor_type.__module__} import ThreadPoolExecutor
executor = ThreadPoolExecutor(2)
def job():
    time.sleep(0.2)
    print("done", flush=True)
executor.submit(job)
if not {wait}:
    executor.shutdown(wait=False)
import atexit
@atexit.register
def late():
    try:
        executor.submit(int)
    except RuntimeError as error:
        print(error)
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG)
    assert outcome.stderr == ""
    first, second = outcome.stdout.splitlines()
    assert first == "done"
    assert second.startswith("cannot schedule new futures after ")
    assert outcome.returncode == 0


def test_many_submitters(executor_type: Any) -> None:
    counts: list[Callable[[], int]] = []
    with executor_type(3) as executor:

        def submit_some() -> None:
            jobs = [executor.submit(abs, -1) for _ in range(500)]
            counts.append(lambda: sum(job.result(LONG) for job in jobs))

        threads = [threading.Thread(target=submit_some) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert [count() for count in counts] == [500] * 4
