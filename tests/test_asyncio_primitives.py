"""What CPython's tests of asyncio's locks and queues do not ask: subclasses, closed coroutines, heirs."""

from __future__ import annotations

import asyncio as standard
import collections
import gc
import inspect
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

import plait
import plait.asyncio as asyncio

LOOPS: list[Callable[[], standard.AbstractEventLoop]] = [plait.EventLoop, standard.SelectorEventLoop]
Main = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture(params=LOOPS, ids=["plait", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    def run(main: Main) -> Any:
        async def bounded() -> Any:
            return await standard.wait_for(main(), 60)

        with standard.Runner(loop_factory=request.param) as runner:
            return runner.run(bounded())

    return run


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await standard.sleep(0)


def test_they_are_the_standard_ones_by_descent() -> None:
    names = (
        "Lock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "Barrier",
        "Queue", "LifoQueue", "PriorityQueue",
    )  # fmt: skip
    for name in names:
        ours = getattr(asyncio, name)
        assert ours is not getattr(standard, name)
        assert issubclass(ours, getattr(standard, name))
    assert issubclass(asyncio.LifoQueue, asyncio.Queue)
    assert asyncio.Queue[int]
    assert asyncio.queues.Queue is asyncio.Queue
    assert asyncio.locks.Lock is asyncio.Lock


def test_what_is_not_awaited_does_nothing(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        lock, queue, semaphore = asyncio.Lock(), asyncio.Queue[int](), asyncio.Semaphore()
        begun = [lock.acquire(), semaphore.acquire(), queue.put(1), queue.get()]
        await turns()
        assert not lock.locked()
        assert not semaphore.locked()
        assert queue.empty()
        for coroutine in begun:
            assert inspect.isawaitable(coroutine)
            assert standard.iscoroutine(coroutine)
            coroutine.close()

    run(main)


def test_they_go_where_coroutines_go(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        lock, queue, event = asyncio.Lock(), asyncio.Queue[str](), asyncio.Event()
        assert await standard.create_task(lock.acquire()) is True
        getting = standard.create_task(queue.get(), name="getting")
        waiting = standard.ensure_future(event.wait())
        with pytest.raises(TimeoutError):
            await standard.wait_for(lock.acquire(), 0.001)
        await standard.gather(queue.put("a"), standard.sleep(0))
        event.set()
        assert await standard.gather(getting, waiting) == ["a", True]
        queue.task_done()
        assert await standard.wait_for(queue.join(), 60) is None
        async with standard.TaskGroup() as group:
            group.create_task(queue.put("b"))
            task = group.create_task(queue.get())
        assert task.result() == "b"

    run(main)


def test_async_with_a_lock_that_is_taken(run: Callable[[Main], Any]) -> None:
    async def main() -> list[str]:
        lock, order = asyncio.Lock(), []

        async def work(name: str) -> None:
            async with lock as nothing:
                assert nothing is None
                order.append(name)
                await turns()
                order.append(name)

        await standard.gather(*map(work, "abc"))
        assert not lock.locked()
        return order

    assert run(main) == list("aabbcc")


def test_whoever_is_cancelled_after_it_was_woken_passes_it_on(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        first, second = (standard.create_task(lock.acquire()) for _ in range(2))
        await turns()
        lock.release()
        first.cancel()
        assert await second is True
        assert first.cancelled()

        queue = asyncio.Queue[int]()
        getters = [standard.create_task(queue.get()) for _ in range(2)]
        await turns()
        queue.put_nowait(7)
        getters[0].cancel()
        assert await getters[1] == 7

        semaphore = asyncio.Semaphore(0)
        waiting = [standard.create_task(semaphore.acquire()) for _ in range(2)]
        await turns()
        semaphore.release()
        waiting[0].cancel()
        assert await waiting[1] is True

    run(main)


def test_a_coroutine_that_is_closed_while_it_waits_passes_it_on(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        def begin(coroutine: Coroutine[Any, Any, Any]) -> None:
            future = coroutine.send(None)
            assert standard.isfuture(future)

        lock = asyncio.Lock()
        await lock.acquire()
        closed = lock.acquire()
        begin(closed)
        waiting = standard.create_task(lock.acquire())
        await turns()
        lock.release()
        closed.close()
        assert await waiting is True

        queue = asyncio.Queue[int]()
        collected = queue.get()
        begin(collected)
        getting = standard.create_task(queue.get())
        await turns()
        queue.put_nowait(3)
        del collected
        gc.collect()
        assert await getting == 3

    run(main)


def test_a_lock_is_bound_to_the_loop_in_which_somebody_waited() -> None:
    lock = asyncio.Lock()

    async def wait() -> None:
        await lock.acquire()
        try:
            with pytest.raises(TimeoutError):
                await standard.wait_for(lock.acquire(), 0.001)
        finally:
            lock.release()

    asyncio.run(wait())

    async def elsewhere() -> None:
        async with lock:
            with pytest.raises(RuntimeError, match="is bound to a different event loop"):
                await lock.acquire()

    asyncio.run(elsewhere())


class Counting(asyncio.Lock):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.acquired = 0

    async def acquire(self) -> bool:  # type: ignore[override]
        self.acquired += 1
        return await super().acquire()


def test_a_subclass_with_its_own_acquire(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        lock = Counting("mine")
        async with lock:
            assert lock.locked()
        await lock.acquire()
        assert (lock.name, lock.acquired) == ("mine", 2)

    run(main)


class Unique(asyncio.Queue[int]):
    """The documented hooks, over a dictionary."""

    def _init(self, maxsize: int) -> None:
        self._queue: Any = {}

    def _put(self, item: int) -> None:
        self._queue[item] = None

    def _get(self) -> int:
        item: int = next(iter(self._queue))
        del self._queue[item]
        return item


class Loud(asyncio.Queue[str]):
    def put_nowait(self, item: str) -> None:
        super().put_nowait(item.upper())

    def get_nowait(self) -> str:
        return super().get_nowait() + "!"


class Reversed(asyncio.LifoQueue[int]):
    def _put(self, item: int) -> None:
        super()._put(-item)  # type: ignore[misc]


def test_subclasses_of_queues(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        unique = Unique(maxsize=2)
        for item in (1, 1, 2):
            await unique.put(item)
        assert unique.full()
        blocked = standard.create_task(unique.put(3))
        await turns()
        assert not blocked.done()
        assert [await unique.get() for _ in range(3)] == [1, 2, 3]
        await blocked

        loud = Loud(1)
        await loud.put("a")
        assert await loud.get() == "A!"

        negative = Reversed()
        negative.put_nowait(5)
        negative.put_nowait(6)
        assert await negative.get() == -6

    run(main)


def test_the_items_can_be_looked_at_and_changed(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        queue = asyncio.Queue[int]()
        queue.put_nowait(1)
        queue.put_nowait(2)
        shown = queue._queue  # type: ignore[attr-defined]
        assert shown == collections.deque([1, 2])
        shown.appendleft(0)
        queue.put_nowait(3)
        assert queue.qsize() == 4
        assert [queue.get_nowait() for _ in range(4)] == [0, 1, 2, 3]
        stack = asyncio.LifoQueue[int]()
        stack.put_nowait(1)
        stack.put_nowait(2)
        assert stack._queue == [1, 2]  # type: ignore[attr-defined]
        assert stack.get_nowait() == 2
        heap = asyncio.PriorityQueue[int]()
        for item in (3, 1, 2):
            heap.put_nowait(item)
        assert [heap.get_nowait() for _ in range(3)] == [1, 2, 3]

    run(main)


def test_sizes_may_be_any_number_and_change() -> None:
    endless = asyncio.Queue[int](maxsize=float("inf"))  # type: ignore[arg-type]
    endless.put_nowait(1)
    assert not endless.full()
    queue = asyncio.Queue[int](2)
    assert queue.maxsize == 2
    queue._maxsize = 1  # type: ignore[attr-defined]
    queue.put_nowait(1)
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(2)
    with pytest.raises(ValueError, match=">= 0"):
        asyncio.Semaphore(-1)


def test_shutdown_on_every_python(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        queue = asyncio.Queue[int]()
        queue.put_nowait(1)
        queue.shutdown()
        with pytest.raises(asyncio.QueueShutDown):
            await queue.put(2)
        assert await queue.get() == 1
        with pytest.raises(asyncio.QueueShutDown):
            queue.get_nowait()
        queue.task_done()
        await queue.join()

        full = asyncio.PriorityQueue[int](1)
        full.put_nowait(1)
        putting = standard.create_task(full.put(2))
        joining = standard.create_task(full.join())
        await turns()
        full.shutdown(immediate=True)
        await joining
        with pytest.raises(asyncio.QueueShutDown):
            await putting
        with pytest.raises(asyncio.QueueShutDown):
            await full.get()

    run(main)


def test_conditions_and_barriers_stand_on_them(run: Callable[[Main], Any]) -> None:
    async def main() -> None:
        condition = asyncio.Condition()
        seen = []

        async def wait() -> None:
            async with condition:
                await condition.wait_for(lambda: bool(seen))

        waiting = [standard.create_task(wait()) for _ in range(3)]
        await turns()
        async with condition:
            seen.append(1)
            condition.notify_all()
        await standard.gather(*waiting)
        over_standard = asyncio.Condition(standard.Lock())  # type: ignore[arg-type]
        async with over_standard:
            over_standard.notify()
        barrier = asyncio.Barrier(3)
        assert sorted(await standard.gather(*(barrier.wait() for _ in range(3)))) == [0, 1, 2]

    run(main)


def test_nothing_is_kept_alive_by_a_circle() -> None:
    class Item:
        pass

    async def main() -> weakref.ref[Item]:
        queue, item = asyncio.Queue[Any](), Item()
        queue.put_nowait((queue, item))
        lock = asyncio.Lock()
        await lock.acquire()
        coroutine: Awaitable[Any] = lock.acquire()
        coroutine.send(None)  # type: ignore[attr-defined]
        item.line = (lock, coroutine)  # type: ignore[attr-defined]
        lock.keeps = item  # type: ignore[attr-defined]
        return weakref.ref(item)

    gone = asyncio.run(main())
    gc.collect()
    assert gone() is None
