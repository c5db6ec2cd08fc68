"""`TaskPool`: coroutines on one loop, blocking functions in threads, nothing stalls and nothing is left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import plait
from plait import task_pool
from plait._job import DEFAULT_OPTIONS, JobOptions
from plait.task_pool import TaskPool


@pytest.fixture
def ex() -> Iterator[plait.Executor]:
    with plait.Executor("tasks", 4) as executor:
        yield executor


async def echo(x: Any) -> Any:
    await asyncio.sleep(0)
    return x


async def forever(begun: threading.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


def test_all_coroutines_run_on_one_loop_that_is_not_in_our_thread(ex: plait.Executor) -> None:
    async def where() -> tuple[int, int]:
        return id(asyncio.get_running_loop()), threading.get_ident()

    places = {ex.submit(where).result() for _ in range(20)}
    assert len(places) == 1
    assert places.pop()[1] != threading.get_ident()


def test_at_most_the_workers_are_in_flight_and_first_come_first_served(ex: plait.Executor) -> None:
    order: list[int] = []
    now, most = 0, 0

    async def job(x: int) -> None:
        nonlocal now, most
        order.append(x)
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    for future in [ex.submit(job, x) for x in range(50)]:
        future.result()
    assert most == 4
    assert order == list(range(50))


def test_a_thousand_wait_at_once_by_default() -> None:
    with plait.Executor("tasks") as ex:
        assert ex.workers == 1000
        gate = asyncio.Event()

        async def wait() -> None:
            nonlocal waiting
            waiting += 1
            if waiting == 1000:
                gate.set()
            await gate.wait()

        waiting = 0
        assert concurrent.futures.wait([ex.submit(wait) for _ in range(1000)], timeout=30).not_done == set()


def test_a_blocking_function_does_not_stall_the_loop(ex: plait.Executor) -> None:
    gate = threading.Event()
    blocked = [ex.submit(gate.wait, 30) for _ in range(3)]
    assert ex.submit(echo, 5).result(10) == 5
    gate.set()
    assert [future.result(10) for future in blocked] == [True] * 3


def test_what_only_returns_a_coroutine_still_runs_on_the_loop(ex: plait.Executor) -> None:
    async def thread() -> int:
        return threading.get_ident()

    loop_thread = ex.submit(thread).result()
    assert {ex.submit(lambda: thread()).result() for _ in range(5)} == {loop_thread}
    assert set(ex.map(lambda _: thread(), range(20))) == {loop_thread}


def test_cancel_stops_a_running_coroutine(ex: plait.Executor) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def tidy() -> None:
        try:
            await forever(begun)
        finally:
            ended.set()

    future = ex.submit(tidy)
    assert begun.wait(10)
    assert future.running()
    assert future.cancel()
    assert future.cancelled()
    assert not future.running()
    assert ended.wait(10)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)
    assert concurrent.futures.wait([future], timeout=10).done == {future}


def test_cancel_takes_a_queued_job_out(ex: plait.Executor) -> None:
    begun = threading.Event()
    running = [ex.submit(forever, begun) for _ in range(4)]
    queued = ex.submit(echo, 1)
    assert not queued.running()
    assert queued.cancel()
    assert concurrent.futures.wait([queued], timeout=10).done == {queued}
    for future in running:
        future.cancel()


def test_cancel_of_a_blocking_call_under_way_is_refused(ex: plait.Executor) -> None:
    begun, gate = threading.Event(), threading.Event()

    def block() -> str:
        begun.set()
        gate.wait(30)
        return "done"

    future = ex.submit(block)
    assert begun.wait(10)
    assert not future.cancel()
    assert future.running()
    gate.set()
    assert future.result(10) == "done"


def test_a_coroutine_that_cancels_itself_is_cancelled(ex: plait.Executor) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    future = ex.submit(give_up)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    assert future.cancelled()


def test_a_timeout_cancels_the_coroutine(ex: plait.Executor) -> None:
    ended = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(plait.TaskTimeout, match=r"slow ran for longer than its timeout of 0\.02 s"):
        ex.options(timeout=0.02).submit(slow).result(10)
    assert ended.is_set()
    assert ex.options(timeout=30).submit(echo, 1).result() == 1


def test_the_timeout_counts_the_run_and_not_the_queue() -> None:
    with plait.Executor("tasks", 1) as ex:
        view = ex.options(timeout=5)
        assert [future.result() for future in [view.submit(asyncio.sleep, 0.01, x) for x in range(5)]] == [
            *range(5)
        ]


def test_retries_try_again_after_errors_and_timeouts(ex: plait.Executor) -> None:
    attempts = 0

    async def third_time() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionError
        if attempts == 2:
            await asyncio.sleep(60)
        return attempts

    assert ex.options(retries=2, timeout=0.05).submit(third_time).result(10) == 3
    attempts = -1000
    with pytest.raises(ZeroDivisionError):
        ex.options(retries=300).submit(always_fails).result(10)


async def always_fails() -> None:
    raise ZeroDivisionError


async def always_leaves() -> None:
    raise SystemExit(3)


def test_leaving_a_job_does_not_end_the_loop(ex: plait.Executor) -> None:
    with pytest.raises(SystemExit):
        ex.options(retries=3).submit(always_leaves).result(10)
    assert ex.submit(echo, 2).result(10) == 2


def test_jobs_may_submit_and_await_jobs_however_few_workers_there_are() -> None:
    with plait.Executor("tasks", 1) as ex:

        async def tree(depth: int) -> int:
            if depth == 0:
                return 1
            return sum(await asyncio.gather(*[ex.submit(tree, depth - 1) for _ in range(3)]))

        assert ex.submit(tree, 4).result(30) == 81


def test_a_job_that_would_block_its_own_loop_is_told_to_await(ex: plait.Executor) -> None:
    async def block() -> int:
        return ex.submit(echo, 1).result()

    with pytest.raises(RuntimeError, match="await the future"):
        ex.submit(block).result(10)

    async def look() -> int:
        future = ex.submit(echo, 1)
        await future
        return future.result() if future.exception() is None else 0

    assert ex.submit(look).result(10) == 1


def test_a_lent_place_is_taken_back() -> None:
    now, most = 0, 0

    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    with plait.Executor("tasks", 2) as ex:

        async def parent() -> None:
            await asyncio.gather(*[ex.submit(count) for _ in range(10)])

        for future in [ex.submit(parent) for _ in range(5)]:
            future.result(30)
    assert most <= 2 + 1  # A job that has its result goes on beside the one that took its place.


def test_a_job_may_await_jobs_of_another_executor(ex: plait.Executor) -> None:
    with plait.Executor("threads", 1) as threads:

        async def ask() -> int:
            return await threads.submit(len, "four") + await ex.submit(echo, 1)

        assert ex.submit(ask).result(10) == 5


def test_the_context_is_the_submitters_also_for_subtasks(ex: plait.Executor) -> None:
    user: ContextVar[str] = ContextVar("user")

    async def name() -> str:
        return user.get()

    async def ask() -> tuple[str, str]:
        before = await asyncio.ensure_future(name())
        user.set("changed")
        return before, user.get()

    user.set("ada")
    assert ex.submit(ask).result() == ("ada", "changed")
    assert user.get() == "ada"


def test_shutdown_waits_for_coroutines_and_then_ends_the_thread() -> None:
    pool = TaskPool(3)
    futures = [pool.submit(asyncio.sleep, (0.01, x), {}, DEFAULT_OPTIONS) for x in range(20)]
    blocking = pool.submit(time.sleep, (0.01,), {}, DEFAULT_OPTIONS)
    assert pool._home is not None
    thread = pool._home._thread
    pool.shutdown()
    assert [future.result(0) for future in futures] == list(range(20))
    assert blocking.result(0) is None
    assert not thread.is_alive()


def test_shutdown_can_cancel_running_coroutines() -> None:
    pool = TaskPool(2)
    begun = threading.Event()
    futures = [pool.submit(forever, (begun,), {}, DEFAULT_OPTIONS) for _ in range(2000)]
    assert begun.wait(10)
    pool.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)


def test_a_coroutine_that_refuses_to_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(task_pool, "_GRACE_SECONDS", 0.05)
    pool = TaskPool(2)
    begun = threading.Event()

    async def stubborn() -> None:
        begun.set()
        for _ in range(100):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    future = pool.submit(stubborn, (), {}, JobOptions(name="stubborn one"))
    assert begun.wait(10)
    pool.shutdown(cancel_futures=True)
    assert future.cancelled()
    assert "left behind 1 coroutines" in caplog.text
    assert "stubborn one" in caplog.text


def test_background_tasks_of_jobs_are_ended_at_shutdown() -> None:
    ended = threading.Event()

    async def background() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def start() -> None:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with plait.Executor("tasks") as ex:
        ex.submit(start).result()
    assert ended.is_set()


def test_a_pool_that_is_dropped_finishes_its_jobs_and_leaves() -> None:
    pool = TaskPool(2)
    futures = [pool.submit(asyncio.sleep, (0.01, x), {}, DEFAULT_OPTIONS) for x in range(10)]
    assert pool._home is not None
    thread = pool._home._thread
    del pool
    assert [future.result(10) for future in futures] == list(range(10))
    thread.join(10)
    assert not thread.is_alive()


def test_many_threads_may_submit_at_once() -> None:
    with plait.Executor("tasks", 50) as ex:

        def submit_many() -> None:
            futures.extend([ex.submit(echo, x) for x in range(500)])

        futures: list[plait.Future[int]] = []
        threads = [threading.Thread(target=submit_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(future.result(30) for future in futures) == sorted([*range(500)] * 4)


def test_the_program_ends_when_its_jobs_have() -> None:
    program = """
import asyncio, plait
async def job(x):
    await asyncio.sleep(0.05)
    print(x, flush=True)
ex = plait.Executor("tasks")
for x in range(3):
    ex.submit(job, x)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert sorted(ran.stdout.split()) == ["0", "1", "2"]
    assert ran.stderr == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_to_make_its_own(ex: plait.Executor) -> None:
    assert ex.submit(echo, 1).result() == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ex.submit(echo, 1)
        except RuntimeError as error:
            status = 0 if "before the fork" in str(error) else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert ex.submit(echo, 1).result() == 1
