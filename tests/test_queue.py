"""`plait.queue`: as the standard queues, and between threads and coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import queue as standard
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait import queue

FULL_QUEUES = [queue.Queue, queue.LifoQueue, queue.PriorityQueue]
ALL_QUEUES = [*FULL_QUEUES, queue.SimpleQueue]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run it in a thread; what is returned waits for its result."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(60)
        assert results, "it hangs"
        return results[0]

    return result


def test_every_name_is_there_and_what_is_not_ours_is_the_standard_one() -> None:
    assert {*standard.__all__, "ShutDown"} == set(queue.__all__)
    assert queue.Empty is standard.Empty
    assert queue.Full is standard.Full
    assert queue.ShutDown is getattr(standard, "ShutDown", queue.ShutDown)
    for name in ("Queue", "LifoQueue", "PriorityQueue"):
        ours = getattr(queue, name)
        assert issubclass(ours, getattr(standard, name))
        assert isinstance(ours(), queue.Queue)
        assert repr(ours[int]) == f"plait.queue.{name}[int]"


@pytest.mark.parametrize("name", ["Queue", "LifoQueue", "PriorityQueue"])
@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_calls_does_what_the_standard_class_does(name: str, seed: int) -> None:
    chance = random.Random(seed)
    bound = chance.choice([0, 1, 3, -1])
    theirs, ours = getattr(standard, name)(bound), getattr(queue, name)(maxsize=bound)
    calls: list[tuple[str, Callable[[Any], Any]]] = [
        ("put", lambda q: q.put(number, False)),
        ("put", lambda q: q.put(number, True, 0)),
        ("put", lambda q: q.put_nowait(number)),
        ("get", lambda q: q.get(False)),
        ("get", lambda q: q.get(timeout=0)),
        ("get", lambda q: q.get_nowait()),
        ("get", lambda q: q.get(True, -1)),
        ("put", lambda q: q.put(number, timeout=-1)),
        ("done", lambda q: q.task_done()),
        ("sizes", lambda q: (q.qsize(), q.empty(), q.full(), q.maxsize, q.unfinished_tasks)),
    ]
    if hasattr(theirs, "shutdown"):
        calls.append(("shut", lambda q: q.is_shutdown))
    rare: list[Callable[[Any], Any]] = [lambda q: sorted(q.queue)]
    if hasattr(theirs, "shutdown"):
        rare += [lambda q: q.shutdown(), lambda q: q.shutdown(immediate=True)]
    for number in range(200):
        call = chance.choice(rare) if chance.random() < 0.01 else chance.choice(calls)[1]
        outcomes = []
        for one in (theirs, ours):
            try:
                outcomes.append(("returned", call(one)))
            except Exception as error:
                outcomes.append((type(error).__name__, str(error)))
        assert outcomes[0] == outcomes[1], f"seed {seed}, call {number}"


@pytest.mark.parametrize("kind", ALL_QUEUES)
def test_what_makes_no_sense_is_refused_as_the_standard_class_does(kind: Any) -> None:
    one = kind()
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
        one.get(True, -0.5)
    with pytest.raises(ValueError, match="NaN"):
        one.get(True, float("nan"))
    with pytest.raises(OverflowError, match="too large"):
        one.get(True, 1e100)
    with pytest.raises(TypeError):
        one.get(True, "soon")
    with pytest.raises(queue.Empty):
        one.get(None)
    with pytest.raises(queue.Empty):
        one.get(timeout=0.01)
    for copied in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="cannot pickle"):
            copied(one)
    assert kind[int] is not None
    assert weakref.ref(one)() is one


def test_more_done_than_put_is_refused() -> None:
    for kind in FULL_QUEUES:
        with pytest.raises(ValueError, match="called too many times"):
            kind().task_done()


def test_items_that_do_not_compare_leave_the_queue_usable() -> None:
    for kind in (standard.PriorityQueue, queue.PriorityQueue):
        one: Any = kind()
        one.put(1)
        with pytest.raises(TypeError):
            one.put("one")
        # As the standard one: it is in the heap, at the end.
        assert (one.qsize(), one.unfinished_tasks) == (2, 1)
        assert [one.get(timeout=10), one.get(timeout=10)] == [1, "one"]
        one.put(2)
        assert one.get(timeout=10) == 2


@pytest.mark.parametrize("kind", ALL_QUEUES)
def test_shutdown_ends_the_waits_of_threads_and_coroutines(kind: Any) -> None:
    one = kind()
    waiting = in_thread(one.get)

    async def wait() -> None:
        await one.get_async()

    awaiting = in_thread(lambda: asyncio.run(wait()))
    time.sleep(0.05)
    one.shutdown()
    assert isinstance(waiting(), queue.ShutDown)
    assert isinstance(awaiting(), queue.ShutDown)
    with pytest.raises(queue.ShutDown):
        one.put(1)
    with pytest.raises(queue.ShutDown):
        one.get(False)
    assert one.is_shutdown


@pytest.mark.parametrize("kind", FULL_QUEUES)
def test_what_was_put_before_a_shutdown_can_be_got(kind: Any) -> None:
    one = kind(1)
    one.put(1)
    blocked = in_thread(lambda: one.put(2))
    awaiting = in_thread(lambda: asyncio.run(one.put_async(3)))
    time.sleep(0.05)
    one.shutdown()
    assert isinstance(blocked(), queue.ShutDown)
    assert isinstance(awaiting(), queue.ShutDown)
    assert one.get() == 1
    with pytest.raises(queue.ShutDown):
        one.get()


@pytest.mark.parametrize("kind", ALL_QUEUES)
@pytest.mark.parametrize("consumers", ["threads", "coroutines", "both"])
def test_every_item_arrives_once(kind: Any, consumers: str) -> None:
    one = kind() if kind is queue.SimpleQueue else kind(5)
    got: list[int] = []

    def consume() -> None:
        while (item := one.get()) >= 0:
            got.append(item)

    async def consume_async() -> None:
        while (item := await one.get_async()) >= 0:
            got.append(item)

    async def many() -> None:
        await asyncio.gather(*(consume_async() for _ in range(3)))

    ends = []
    expected = 0
    if consumers != "coroutines":
        ends += [in_thread(consume) for _ in range(3)]
        expected += 3
    if consumers != "threads":
        ends += [in_thread(lambda: asyncio.run(many())) for _ in range(2)]
        expected += 6

    async def produce(start: int) -> None:
        for number in range(start, start + 300):
            await one.put_async(number)

    producers = [in_thread(lambda at=at: [one.put(n) for n in range(at, at + 300)]) for at in (0, 300)]
    producers.append(in_thread(lambda: asyncio.run(produce(600))))
    for producer in producers:
        assert not isinstance(producer(), BaseException)
    eventually(lambda: len(got) == 900)
    for _ in range(expected):
        one.put(-1)
    for end in ends:
        assert end() is None
    assert sorted(got) == list(range(900))


def test_threads_and_coroutines_stand_in_one_line() -> None:
    one: queue.Queue[int] = queue.Queue()
    order: list[str] = []

    async def main() -> None:
        async def getter(name: str) -> None:
            await one.get_async()
            order.append(name)

        first = asyncio.create_task(getter("coroutine 1"))
        await asyncio.sleep(0.05)
        second = in_thread(lambda: (one.get(), order.append("thread")))
        await asyncio.sleep(0.2)
        third = asyncio.create_task(getter("coroutine 2"))
        await asyncio.sleep(0.05)
        for number in range(3):
            one.put(number)
            await asyncio.sleep(0.2)
        await first
        await third
        await asyncio.to_thread(second)

    asyncio.run(main())
    assert order == ["coroutine 1", "thread", "coroutine 2"]


@pytest.mark.parametrize("kind", ALL_QUEUES)
def test_a_cancelled_get_takes_no_item_along(kind: Any) -> None:
    one = kind()

    async def main() -> None:
        for number in range(200):
            task = asyncio.create_task(one.get_async())
            await asyncio.sleep(0)
            put = in_thread(lambda n=number: one.put(n))
            if number % 2:
                await asyncio.sleep(0)
            cancelled = task.cancel()
            try:
                got = await task
            except asyncio.CancelledError:
                assert cancelled
                got = await asyncio.wait_for(one.get_async(), 30)
            assert got == number
            put()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one.get_async(), 0.01)

    asyncio.run(main())
    assert one.empty()


@pytest.mark.parametrize("kind", FULL_QUEUES)
def test_a_cancelled_put_leaves_its_place_to_the_next(kind: Any) -> None:
    one = kind(1)

    async def main() -> None:
        await one.put_async(0)
        first = asyncio.create_task(one.put_async(1))
        second = asyncio.create_task(one.put_async(2))
        await asyncio.sleep(0.01)
        assert one.get() == 0  # the first is called …
        first.cancel()  # … and does not come
        await asyncio.wait_for(second, 30)
        assert await one.get_async() == 2

    asyncio.run(main())


@pytest.mark.parametrize("loses_descriptor", [False, True])
def test_a_loop_that_cannot_listen_is_called(loses_descriptor: bool) -> None:
    listened: list[int] = []

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
            if not loses_descriptor:
                raise NotImplementedError
            super().add_reader(fd, callback, *args)
            listened.append(fd)

    async def main() -> None:
        one: queue.Queue[int] = queue.Queue()
        for number in range(3):
            getter = asyncio.create_task(one.get_async())
            await asyncio.sleep(0)
            if listened:
                loop.remove_reader(descriptor := listened.pop())
                with Path(os.devnull).open() as nothing:
                    os.dup2(nothing.fileno(), descriptor)  # as of somebody who closes every descriptor
            result = in_thread(lambda number=number: one.put(number))  # type: ignore[misc]
            assert await asyncio.wait_for(getter, 60) == number
            assert result() is None

    loop = Loop()
    with contextlib.closing(loop):
        loop.run_until_complete(main())
    assert not listened


def test_a_loop_that_was_closed_is_passed_over() -> None:
    one: queue.Queue[int] = queue.Queue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(one.get_async())
    loop.run_until_complete(asyncio.sleep(0))
    waiting = in_thread(one.get)
    time.sleep(0.05)
    loop.close()
    one.put(7)
    assert waiting() == 7
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", FULL_QUEUES)
def test_join_waits_until_all_is_done(kind: Any) -> None:
    one = kind()
    one.put(1)
    one.put(2)
    joining = in_thread(one.join)
    awaiting = in_thread(lambda: asyncio.run(one.join_async()))
    for _ in range(2):
        assert one.unfinished_tasks
        one.get()
        one.task_done()
    assert joining() is None
    assert awaiting() is None
    one.join()


def test_the_inside_of_the_standard_class_is_there_for_those_who_use_it() -> None:
    one: queue.Queue[int] = queue.Queue()
    waiting = in_thread(lambda: [one.get() for _ in range(3)])
    one.put(0)
    time.sleep(0.05)
    with one.mutex:
        one.queue.clear()
    for number in (1, 2):
        one.put(number)
    assert waiting() == [0, 1, 2]
    assert one.qsize() == 0
    one.put(5)
    with one.mutex:
        assert list(one.queue) == [5]
        one.queue.clear()
        one.unfinished_tasks = 0
    one.join()
    assert asyncio.run(asyncio.wait_for(_put_and_get(one), 30)) == 9


async def _put_and_get(one: queue.Queue[int]) -> int:
    getter = asyncio.create_task(one.get_async())
    await asyncio.sleep(0.01)
    await one.put_async(9)
    return await getter


def test_a_subclass_says_how_items_are_kept() -> None:
    class Unique(queue.Queue[int]):
        def _init(self, maxsize: int) -> None:
            self.items: set[int] = set()

        def _qsize(self) -> int:
            return len(self.items)

        def _put(self, item: int) -> None:
            self.items.add(item)

        def _get(self) -> int:
            return self.items.pop()

    one = Unique(2)
    for number in (1, 1, 2):
        one.put(number)
    assert one.full()
    with pytest.raises(queue.Full):
        one.put(3, timeout=0.01)
    assert {one.get(), one.get()} == {1, 2}
    assert asyncio.run(asyncio.wait_for(_put_and_get(one), 30)) == 9


def test_a_size_that_changes_is_heeded() -> None:
    one: queue.Queue[int] = queue.Queue(1)
    one.put(1)
    blocked = in_thread(lambda: one.put(2))
    time.sleep(0.05)
    one.maxsize = 2
    assert blocked() is None
    assert one.full()


def test_a_queue_that_holds_itself_is_collected() -> None:
    class Marked(queue.Queue[Any]):
        pass

    one = Marked()
    one.put(one)
    seen = weakref.ref(one)
    del one
    gc.collect()
    assert seen() is None


def test_what_is_put_is_let_go_of() -> None:
    class Item:
        pass

    for kind in (queue.Queue, queue.LifoQueue, queue.SimpleQueue):
        one = kind()
        item = Item()
        gone = weakref.ref(item)
        one.put(item)
        assert one.get() is item
        del item
        assert gone() is None


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.SimpleQueue])
def test_a_fork_keeps_the_items_and_forgets_who_waited(kind: Any) -> None:
    one = kind()
    waiting = in_thread(one.get)
    time.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            got = in_thread(one.get)
            time.sleep(0.05)
            one.put(3)
            status = 0 if got() == 3 else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    one.put(4)
    assert waiting() == 4
