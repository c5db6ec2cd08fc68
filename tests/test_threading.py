"""`plait.threading` as a module, and its locks between threads and coroutines of several event loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import plait.threading as ours

LONG = 30.0
"""Seconds after which a test that waits has failed."""


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread is about to bring about."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def in_thread(body: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def run(main: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(LONG):
            return await main

    return asyncio.run(bounded())


# The module


def test_has_every_name_of_the_standard_module() -> None:
    for name in threading.__all__:
        assert name in ours.__all__
        assert hasattr(ours, name)
    public = {name for name in dir(threading) if not name.startswith("__")}
    assert public <= set(dir(ours))
    for name in ("Thread", "Timer", "local", "BrokenBarrierError", "current_thread", "TIMEOUT_MAX"):
        assert getattr(ours, name) is getattr(threading, name)
    with pytest.raises(AttributeError, match=r"plait\.threading.*no_such_name"):
        ours.no_such_name  # noqa: B018


def test_a_hook_that_is_assigned_here_is_the_standard_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ours, "excepthook", lambda arguments: seen.append(arguments.exc_type))
    assert threading.excepthook is ours.excepthook
    in_thread(fail).join(LONG)
    assert seen == [ZeroDivisionError]


# Threads and coroutines


@pytest.mark.parametrize("make", [ours.Lock, ours.Semaphore, ours.BoundedSemaphore])
def test_threads_and_coroutines_of_two_loops_take_turns(make: Callable[[], Any]) -> None:
    lock, counter, inside = make(), [0], [0]

    def add() -> None:
        inside[0] += 1
        assert inside[0] == 1
        counter[0] += 1
        inside[0] -= 1

    def by_thread() -> None:
        for _ in range(300):
            with lock:
                add()

    async def by_coroutine() -> None:
        for number in range(100):
            async with lock:
                add()
                if number % 10 == 0:
                    await asyncio.sleep(0)
                    counter[0] += 0

    async def by_coroutines() -> None:
        await asyncio.gather(*(by_coroutine() for _ in range(3)))

    threads = [in_thread(by_thread) for _ in range(2)]
    threads += [in_thread(lambda: run(by_coroutines())) for _ in range(2)]
    for thread in threads:
        thread.join(LONG)
    assert counter == [2 * 300 + 2 * 3 * 100]
    with lock:
        pass


def test_what_there_is_is_had_without_waiting() -> None:
    async def main() -> None:
        lock, semaphore, event = ours.Lock(), ours.Semaphore(2), ours.Event()
        async with lock as entered:
            assert (entered, lock.locked()) == (None, True)
        assert await lock.acquire_async() is True
        lock.release()
        async with semaphore:
            assert await semaphore.acquire_async() is True
            assert not semaphore.acquire(False)
            semaphore.release()
        event.set()
        assert await event.wait_async() is True
        with pytest.raises(ZeroDivisionError):
            async with lock:
                raise ZeroDivisionError
        assert not lock.locked()

    run(main())


def test_waiters_of_either_kind_stand_in_one_line() -> None:
    semaphore, order = ours.Semaphore(0), []

    def by_thread() -> None:
        semaphore.acquire()
        order.append("thread")

    async def by_coroutine() -> None:
        await semaphore.acquire_async()
        order.append("coroutine")

    async def main() -> None:
        tasks = []
        threads = []
        for kind in ("coroutine", "thread", "coroutine", "thread"):
            if kind == "coroutine":
                tasks.append(asyncio.create_task(by_coroutine()))
            else:
                threads.append(in_thread(by_thread))
            await asyncio.sleep(0.05)
        for count in range(1, 5):
            semaphore.release()
            while len(order) < count:
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    run(main())
    assert order == ["coroutine", "thread", "coroutine", "thread"]


@pytest.mark.parametrize("released_first", [False, True])
def test_a_cancelled_coroutine_takes_nothing_along(released_first: bool) -> None:
    async def main() -> None:
        for lock in (ours.Lock(), ours.Semaphore()):
            await lock.acquire_async()
            first = asyncio.create_task(lock.acquire_async())
            second = asyncio.create_task(lock.acquire_async())
            await asyncio.sleep(0)
            if released_first:
                lock.release()  # granted to the first, which is cancelled before it runs
            first.cancel()
            if not released_first:
                lock.release()
            assert await second is True
            assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))
            assert not lock.acquire(False)
            lock.release()
            assert lock.acquire(False)

    run(main())


def test_what_a_closed_loop_left_behind_goes_to_others() -> None:
    lock = ours.Lock()
    lock.acquire()
    loop = asyncio.new_event_loop()
    task = loop.create_task(lock.acquire_async())
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    acquired: list[bool] = []
    waits = in_thread(lambda: acquired.append(lock.acquire(timeout=LONG)))
    time.sleep(0.05)
    lock.release()
    waits.join(LONG)
    assert acquired == [True]
    assert task is not None


def test_a_loop_that_is_closed_with_several_waiting_keeps_nothing() -> None:
    semaphore = ours.Semaphore(0)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(semaphore.acquire_async()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    semaphore.release()  # asks the loop, which is closed before it looks
    loop.close()
    semaphore.release(2)
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert semaphore.acquire(timeout=LONG)
    assert semaphore.acquire(timeout=LONG)
    tasks.clear()
    del task
    gc.collect()
    assert semaphore.acquire(timeout=LONG)


def test_an_event_wakes_coroutines_of_several_loops_and_threads() -> None:
    event, woken = ours.Event(), []

    async def waits() -> None:
        await asyncio.gather(*(event.wait_async() for _ in range(5)))
        woken.extend([1] * 5)

    def wait() -> None:
        assert event.wait(LONG)
        woken.append(1)

    threads = [in_thread(lambda: run(waits())) for _ in range(2)] + [in_thread(wait)]
    time.sleep(0.05)
    event.set()
    for thread in threads:
        thread.join(LONG)
    assert len(woken) == 11


def test_a_condition_between_a_coroutine_and_a_thread() -> None:
    condition, items = ours.Condition(ours.Lock()), []

    def produce() -> None:
        for number in range(20):
            with condition:
                items.append(number)
                condition.notify()

    async def main() -> list[int]:
        thread = in_thread(produce)
        taken: list[int] = []
        while len(taken) < 20:
            async with condition:
                assert await condition.wait_for_async(lambda: items)
                taken += items
                items.clear()
        thread.join(LONG)
        return taken

    assert run(main()) == list(range(20))


def test_a_condition_that_coroutines_cannot_use_says_so() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"belongs to a thread.*plait\.Condition"):
            async with ours.Condition():
                pass
        condition = ours.Condition(ours.Lock())
        with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
            await condition.wait_async()

    run(main())


def test_a_cancelled_wait_has_the_lock_again_and_passes_its_notification_on() -> None:
    async def main() -> None:
        condition = ours.Condition(ours.Lock())
        had: list[str] = []

        async def wait(name: str) -> None:
            async with condition:
                try:
                    await condition.wait_async()
                    had.append(name)
                finally:
                    assert condition._lock.locked()

        first = asyncio.create_task(wait("first"))
        second = asyncio.create_task(wait("second"))
        await asyncio.sleep(0)
        async with condition:
            condition.notify()
            first.cancel()
        await second
        assert had == ["second"]
        with pytest.raises(asyncio.CancelledError):
            await first

    run(main())


def test_threads_and_coroutines_meet_at_a_barrier() -> None:
    acted: list[int] = []
    barrier = ours.Barrier(4, action=lambda: acted.append(1))
    numbers: list[int] = []

    def by_thread() -> None:
        for _ in range(10):
            numbers.append(barrier.wait(LONG))

    async def by_coroutine() -> None:
        for _ in range(10):
            numbers.append(await barrier.wait_async())

    async def main() -> None:
        await asyncio.gather(by_coroutine(), by_coroutine())

    threads = [in_thread(by_thread), in_thread(by_thread)]
    run(main())
    for thread in threads:
        thread.join(LONG)
    assert sorted(numbers) == sorted(list(range(4)) * 10)
    assert len(acted) == 10


def test_a_coroutine_that_is_cancelled_at_a_barrier_has_not_arrived() -> None:
    async def main() -> None:
        barrier = ours.Barrier(2)
        task = asyncio.create_task(barrier.wait_async())
        await asyncio.sleep(0)
        assert barrier.n_waiting == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (barrier.n_waiting, barrier.broken) == (0, False)
        assert sorted(await asyncio.gather(barrier.wait_async(), barrier.wait_async())) == [0, 1]
        barrier.abort()
        with pytest.raises(threading.BrokenBarrierError):
            await barrier.wait_async()

    run(main())
