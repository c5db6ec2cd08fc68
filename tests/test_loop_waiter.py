"""`_rust.LoopWaiter`: what tasks wait on in the place of a future behaves like one, on any loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import plait
from plait._rust import LoopWaiter

LOOPS = [plait.EventLoop, asyncio.SelectorEventLoop]


def run(body: Callable[[], Awaitable[Any]], make: Callable[[], asyncio.AbstractEventLoop]) -> Any:
    async def main() -> Any:
        return await body()

    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(main())


@pytest.fixture(params=LOOPS, ids=lambda loop: loop.__module__)
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


def new() -> Any:
    return LoopWaiter(asyncio.get_running_loop())


@pytest.mark.parametrize("value", [None, 1, (), (1, 2), StopIteration(3), ValueError("a value")])
def test_a_task_gets_the_value(make: Any, value: object) -> None:
    async def body() -> None:
        waiter = new()
        task = asyncio.create_task(wait(waiter))
        await asyncio.sleep(0)
        assert not task.done()
        waiter.set_result(value)
        assert await task is value
        assert await waiter is value
        assert waiter.result() is value
        assert waiter.exception() is None

    async def wait(waiter: Any) -> Any:
        return await waiter

    run(body, make)


def test_a_task_gets_the_exception(make: Any) -> None:
    async def body() -> None:
        waiter = new()
        asyncio.get_running_loop().call_soon(waiter.set_exception, KeyError("lost"))
        with pytest.raises(KeyError, match="lost"):
            await waiter
        assert isinstance(waiter.exception(), KeyError)
        with pytest.raises(asyncio.InvalidStateError):
            waiter.set_result(1)
        waiter = new()
        waiter.set_exception(LookupError)
        with pytest.raises(LookupError):
            await waiter

    run(body, make)


def test_cancelling_the_task_cancels_the_wait(make: Any) -> None:
    async def body() -> None:
        waiter = new()

        async def wait() -> None:
            await waiter

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert task.cancel("enough")
        assert waiter.cancelled()
        assert waiter.done()
        assert waiter._cancel_message == "enough"
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        assert not waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            waiter.exception()
        with pytest.raises(asyncio.InvalidStateError):
            waiter.set_exception(ValueError())

    run(body, make)


def test_what_takes_futures_takes_it(make: Any) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        waiters = [new() for _ in range(3)]
        assert asyncio.isfuture(waiters[0])
        assert asyncio.ensure_future(waiters[0]) is waiters[0]
        for number, waiter in enumerate(waiters):
            loop.call_later(0.001 * number, waiter.set_result, number)
        assert await asyncio.gather(*waiters) == [0, 1, 2]
        waiter = new()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiter, 0.001)
        assert waiter.cancelled()
        waiter = new()
        done, pending = await asyncio.wait({waiter}, timeout=0.001)
        assert (done, pending) == (set(), {waiter})
        shielded = asyncio.shield(waiter)
        waiter.set_result("shielded")
        assert await shielded == "shielded"
        cancelled = new()
        loop.call_soon(cancelled.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.gather(cancelled)

    run(body, make)


def test_callbacks(make: Any) -> None:
    async def body() -> None:
        color = contextvars.ContextVar("color", default="none")
        waiter = new()
        seen: list[object] = []
        context = contextvars.copy_context()
        context.run(color.set, "blue")
        waiter.add_done_callback(lambda done: seen.append((done is waiter, color.get())), context=context)
        waiter.add_done_callback(seen.append)
        waiter.add_done_callback(print)
        waiter.add_done_callback(print)
        waiter.add_done_callback(lambda done: seen.append("last"))
        assert waiter.remove_done_callback(print) == 2
        assert waiter.remove_done_callback(print) == 0
        waiter.set_result(1)
        assert seen == []
        waiter.add_done_callback(lambda done: seen.append("late"))
        await asyncio.sleep(0)
        assert seen == [(True, "blue"), waiter, "last", "late"]

    run(body, make)


def test_a_callback_that_raises_is_told_of_and_the_others_run(make: Any) -> None:
    async def body() -> None:
        told: list[dict[str, Any]] = []
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        waiter = new()
        waiter.add_done_callback(lambda done: 1 / 0)
        waiter.add_done_callback(seen.append)
        waiter.set_result(1)
        await asyncio.sleep(0)
        assert seen == [waiter]
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]

    run(body, make)


def test_before_it_is_done(make: Any) -> None:
    async def body() -> None:
        waiter = new()
        with pytest.raises(asyncio.InvalidStateError, match=r"Result is not set\."):
            waiter.result()
        with pytest.raises(asyncio.InvalidStateError, match=r"Exception is not set\."):
            waiter.exception()
        assert waiter.get_loop() is asyncio.get_running_loop()
        assert "pending" in repr(waiter)

    run(body, make)


def test_a_wait_that_nobody_can_end_is_collected(make: Any) -> None:
    class Kept:
        pass

    async def body() -> None:
        async def wait(kept: object) -> None:
            await LoopWaiter(asyncio.get_running_loop())

        kept = Kept()
        watched = weakref.ref(kept)
        task = asyncio.create_task(wait(kept))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        del kept, task
        gc.collect()
        assert watched() is None

    run(body, make)
