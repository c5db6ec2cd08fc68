"""`plait.queue` against `queue`, janus and culsans: `python benches/queues.py --help`.

Alone: nanoseconds of CPU time for a put and a get, without the loop itself. Ping-pong: microseconds until the
other thread has answered. Hand-off: items per second through one queue. The figure that says most on a small
machine is the CPU time.
"""

from __future__ import annotations

import asyncio
import functools
import queue as standard
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import culsans
import janus

import plait.queue
from harness import OURS, Row, Sample, main

ROUNDS = 50_000
ITEMS = 20_000
BOUND = 1000


class OfThreads:
    """A queue whose methods block."""

    def __init__(self, module: Any, kind: str, bound: int) -> None:
        make = getattr(module, kind)
        self.queue = make() if kind == "SimpleQueue" else make(bound)
        self.put: Callable[[Any], None] = self.queue.put
        self.get: Callable[[], Any] = self.queue.get


class OfJanus:
    """A janus or culsans queue; made in the loop that uses its other end."""

    def __init__(self, make: Callable[[int], Any], bound: int) -> None:
        self.queue = make(bound)
        self.put: Callable[[Any], None] = self.queue.sync_q.put
        self.get: Callable[[], Any] = self.queue.sync_q.get
        self.put_async: Callable[[Any], Awaitable[None]] = self.queue.async_q.put
        self.get_async: Callable[[], Awaitable[Any]] = self.queue.async_q.get


class OfPlait(OfThreads):
    """Ours has both ends."""

    def __init__(self, bound: int) -> None:
        super().__init__(plait.queue, "Queue", bound)
        self.put_async: Callable[[Any], Awaitable[None]] = self.queue.put_async
        self.get_async: Callable[[], Awaitable[Any]] = self.queue.get_async


class NotForThreads(RuntimeError):
    """The peer has no such end."""


def make(peer: str, kind: str = "Queue", bound: int = 0) -> Any:
    """A peer's queue."""
    if peer == OURS:
        return OfPlait(bound) if kind == "Queue" else OfThreads(plait.queue, kind, bound)
    if peer == "queue":
        return OfThreads(standard, kind, bound)
    return OfJanus(janus.Queue if peer == "janus" else culsans.Queue, bound)


def alone(kind: str, which: Callable[[], Any]) -> Sample:
    """Nanoseconds for a put and a get, the best of a few attempts: others only ever add to it."""

    def rounds(put: Callable[[Any], Any], get: Callable[[], Any]) -> float:
        began = time.thread_time_ns()
        for number in range(ROUNDS):
            put(number)
            get()
        return (time.thread_time_ns() - began) / ROUNDS

    async def measure() -> float:
        one = make(which(), kind)
        return min(rounds(one.put, one.get) for _ in range(5))

    def loop() -> float:
        began = time.thread_time_ns()
        for _ in range(ROUNDS):
            pass
        return (time.thread_time_ns() - began) / ROUNDS

    return Sample(asyncio.run(measure()) - min(loop() for _ in range(5)))


def ping_pong(which: Callable[[], Any]) -> Sample:
    """Microseconds for a round trip between two threads, each of which sleeps for the other."""
    rounds = 3000

    async def measure() -> Sample:
        there, back = make(which()), make(which())

        def answer() -> None:
            for _ in range(rounds):
                back.put(there.get())

        thread = threading.Thread(target=answer)
        thread.start()
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(rounds):
            there.put(number)
            back.get()
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        thread.join()
        return Sample(elapsed / rounds * 1e6, cpu / rounds)

    return asyncio.run(measure())


def between_threads(pairs: int, which: Callable[[], Any]) -> Sample:
    """Items per second from so many threads to so many others, through one queue with a bound."""

    async def measure() -> Sample:
        one = make(which(), bound=BOUND)
        each = ITEMS // pairs

        def put() -> None:
            for number in range(each):
                one.put(number)

        def get() -> None:
            for _ in range(each):
                one.get()

        threads = [threading.Thread(target=body) for body in (put, get) for _ in range(pairs)]
        began, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Sample(each * pairs / elapsed, cpu / (each * pairs))

    return asyncio.run(measure())


def to_coroutine(bound: int, which: Callable[[], Any]) -> Sample:
    """Items per second from a thread to a coroutine."""
    if which() == "queue":
        raise NotForThreads("the standard queue has no end for coroutines")

    async def measure() -> Sample:
        one = make(which(), bound=bound)

        def put() -> None:
            for number in range(ITEMS):
                one.put(number)

        thread = threading.Thread(target=put)
        began, cpu = time.perf_counter(), time.process_time()
        thread.start()
        for _ in range(ITEMS):
            await one.get_async()
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        thread.join()
        return Sample(ITEMS / elapsed, cpu / ITEMS)

    return asyncio.run(measure())


def to_thread(which: Callable[[], Any]) -> Sample:
    """Items per second from a coroutine to a thread."""
    if which() == "queue":
        raise NotForThreads("the standard queue has no end for coroutines")

    async def measure() -> Sample:
        one = make(which(), bound=BOUND)

        def get() -> None:
            for _ in range(ITEMS):
                one.get()

        thread = threading.Thread(target=get)
        began, cpu = time.perf_counter(), time.process_time()
        thread.start()
        for number in range(ITEMS):
            await one.put_async(number)
        while thread.is_alive():
            await asyncio.sleep(0.001)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Sample(ITEMS / elapsed, cpu / ITEMS)

    return asyncio.run(measure())


def only_standard(kind: str, which: Callable[[], Any]) -> Sample:
    """As `alone`, for a kind that janus and culsans do not have by this name."""
    if which() not in (OURS, "queue"):
        raise NotForThreads(f"no {kind}")
    return alone(kind, which)


if __name__ == "__main__":
    peers: dict[str, Callable[[], Any]] = {
        name: functools.partial(str, name) for name in (OURS, "queue", "janus", "culsans")
    }
    main(
        "queue",
        __file__,
        peers,
        [
            Row("Queue: put + get", "ns", functools.partial(alone, "Queue"), higher_is_better=False),
            *(
                Row(
                    f"{kind}: put + get", "ns", functools.partial(only_standard, kind), higher_is_better=False
                )
                for kind in ("LifoQueue", "PriorityQueue", "SimpleQueue")
            ),
            Row("ping-pong", "µs", ping_pong, higher_is_better=False),
            *(
                Row(f"{pairs} threads to {pairs}", "/s", functools.partial(between_threads, pairs))
                for pairs in (1, 4, 32)
            ),
            Row("thread to coroutine", "/s", functools.partial(to_coroutine, 0)),
            Row("thread to coroutine, bound of 1000", "/s", functools.partial(to_coroutine, BOUND)),
            Row("coroutine to thread", "/s", to_thread),
        ],
    )
