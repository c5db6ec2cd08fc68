"""`plait.threading.watch`: a circle of waits is told, with names and stacks; a wait without one never is."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import plait
import plait.threading as ours
from plait._deadlocks import Deadlock, Edge, _circles

LONG = 30.0
"""Seconds after which a test that waits has failed."""


@pytest.fixture
def told() -> Any:
    found: queue.Queue[Deadlock] = queue.Queue()
    with ours.watch(0.1, found.put):
        yield found


def in_thread(name: str, body: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set when the circle may end; at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def insist(lock: Any, over: threading.Event) -> None:
    """Wait for the lock, again and again, each time long enough to be seen; until the test is over."""
    while not over.is_set():
        if lock.acquire(timeout=0.5):
            lock.release()
            return


@pytest.mark.parametrize("make", [ours.Lock, ours.RLock])
def test_two_threads_that_lock_in_opposite_order(
    told: queue.Queue[Deadlock], over: threading.Event, make: Callable[[], Any]
) -> None:
    locks, both = [make(), make()], threading.Barrier(2)

    def body(first: int) -> None:
        with locks[first]:
            both.wait(LONG)
            insist(locks[1 - first], over)

    threads = [in_thread(f"locker-{first}", lambda first=first: body(first)) for first in (0, 1)]
    deadlock = told.get(timeout=LONG)
    assert len(deadlock.waits) == 2
    report = str(deadlock)
    assert "deadlock: 2 wait for each other" in report
    for first in (0, 1):
        assert f"thread 'locker-{first}'" in report
        assert repr(locks[first]) in report
    assert report.count("in body") == 2
    assert all(wait.seconds >= 0.1 for wait in deadlock.waits)
    over.set()
    for thread in threads:
        thread.join(LONG)
    time.sleep(0.2)
    assert told.empty()


def test_two_coroutines_that_lock_in_opposite_order(told: queue.Queue[Deadlock]) -> None:
    async def body(mine: plait.Lock, other: plait.Lock) -> None:
        async with mine:
            await asyncio.sleep(0.01)
            async with other:
                pass

    async def main() -> Deadlock:
        locks = plait.Lock(), plait.Lock()
        tasks = [
            asyncio.create_task(body(*locks), name="there"),
            asyncio.create_task(body(*locks[::-1]), name="back"),
        ]
        deadlock = await asyncio.to_thread(told.get, timeout=LONG)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert not any(lock.locked() for lock in locks)
        return deadlock

    report = str(asyncio.run(main()))
    assert "task 'there'" in report
    assert "task 'back'" in report
    assert "in body" in report


def test_a_thread_and_a_coroutine_whose_loop_is_blocked(
    told: queue.Queue[Deadlock], over: threading.Event
) -> None:
    mine, other = plait.Lock(), plait.Lock()
    both = threading.Barrier(2)

    def by_thread() -> None:
        with other:
            both.wait(LONG)
            insist(mine, over)

    async def main() -> None:
        async with mine:
            both.wait(LONG)
            insist(other, over)  # blocks the loop, and thereby the task that has `mine`

    thread = in_thread("thread", by_thread)
    loop = in_thread("loop", lambda: asyncio.run(main()))
    report = str(told.get(timeout=LONG))
    assert "thread 'thread'" in report
    assert "the thread of its event loop" in report
    over.set()
    thread.join(LONG)
    loop.join(LONG)


def test_a_join_of_a_thread_that_wants_what_the_joiner_holds(
    told: queue.Queue[Deadlock], over: threading.Event
) -> None:
    lock, held = plait.Lock(), threading.Event()

    def worker() -> None:
        held.wait(LONG)
        insist(lock, over)

    def joiner() -> None:
        with lock:
            held.set()
            working.join()

    working = in_thread("worker", worker)
    joining = in_thread("joiner", joiner)
    report = str(told.get(timeout=LONG))
    assert "thread 'joiner'" in report
    assert "for its end, held by thread 'worker'" in report
    over.set()
    for thread in (working, joining):
        thread.join(LONG)


def test_a_long_wait_without_a_circle_is_not_told(told: queue.Queue[Deadlock]) -> None:
    lock, inner = plait.Lock(), plait.Lock()
    signal = plait.Lock()
    signal.acquire()
    release = threading.Event()

    def holder() -> None:
        with lock, inner:
            release.wait(LONG)

    def as_a_signal() -> None:
        own = plait.Lock()
        own.acquire()
        threading.Timer(0.5, own.release).start()
        own.acquire()  # another thread releases it

    def waiter() -> None:
        with lock:
            pass

    threads = [in_thread("holder", holder), in_thread("signal", as_a_signal)]
    while not inner.locked():
        time.sleep(0.001)
    threads += [in_thread("waiter", waiter) for _ in range(3)]
    time.sleep(0.6)
    release.set()
    for thread in threads:
        thread.join(LONG)
    assert told.empty()


def test_a_chain_as_long_as_a_pool_is_no_circle_and_no_recursion() -> None:
    chain = [Edge(2 * number, "a lock", 0.0, 2 * number + 2) for number in range(1, 5_000)]
    assert _circles(chain) == []
    circle = Edge(10_000, "a lock", 0.0, 2)
    assert {edge.key for found in _circles([*chain, circle]) for edge in found} == {
        edge.key for edge in [*chain, circle]
    }


def test_by_default_it_is_printed(capfd: pytest.CaptureFixture[str], over: threading.Event) -> None:
    with pytest.raises(ValueError, match="limit must be a number of seconds above 0, not 0"):
        ours.watch(0)
    locks, both = (plait.Lock(), plait.Lock()), threading.Barrier(2)

    def body(mine: plait.Lock, other: plait.Lock) -> None:
        with mine:
            both.wait(LONG)
            insist(other, over)

    with ours.watch(0.1):
        threads = [in_thread("one", lambda: body(*locks)), in_thread("two", lambda: body(*locks[::-1]))]
        printed, deadline = "", time.monotonic() + LONG
        while "wait for each other" not in printed and time.monotonic() < deadline:
            time.sleep(0.05)
            printed += capfd.readouterr().err
        over.set()
        for thread in threads:
            thread.join(LONG)
    assert "plait: deadlock: 2 wait for each other in a circle" in printed
    assert not any(thread.name == "plait-watch" for thread in threading.enumerate())
