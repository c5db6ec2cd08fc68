"""plait's event loop against asyncio's, uvloop, rloop and zuvloop: `python benches/event_loop.py --help`.

Every figure is CPU time per operation, of the whole process unless said otherwise. In the echo rows it is
the server's; the client is a Rust program in a process of its own, and "bare epoll" is the least that a
server has to do (`crates/engine/examples/epoll_echo.rs` is both). Streams and primitives are those of
`plait.asyncio` on our side.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import event_loop_peers as loops
from event_loop_peers import BARE
from harness import Row, Sample, main

REQUEST = 1024
IDLE = 10_000
Which = Callable[[], str]


def nothing() -> None:
    """A callback that costs nothing."""


def each(count: int, which: Which, main: Callable[[int], Coroutine[Any, Any, None]]) -> Sample:
    """Nanoseconds of CPU time for each of so many operations; the best of three, as others only add."""

    async def measure() -> float:
        await main(count // 10)
        found = []
        for _ in range(3):
            began = time.process_time_ns()
            await main(count)
            found.append((time.process_time_ns() - began) / count)
        return min(found)

    return Sample(loops.run(which(), measure()))


def call_soon(which: Which) -> Sample:
    """A callback that asks for the next one."""

    async def chain(count: int) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        left = count

        def callback() -> None:
            nonlocal left
            left -= 1
            if left:
                loop.call_soon(callback)
            else:
                done.set_result(None)

        loop.call_soon(callback)
        await done

    return each(300_000, which, chain)


def sleep_zero(which: Which) -> Sample:
    """One task that yields."""

    async def yields(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    return each(200_000, which, yields)


def gather(which: Which) -> Sample:
    """A hundred tasks that do nothing; for each task."""

    async def job() -> None:
        pass

    async def gathers(count: int) -> None:
        for _ in range(count // 100):
            await asyncio.gather(*[job() for _ in range(100)])

    return each(100_000, which, gathers)


def sleeps(which: Which) -> Sample:
    """Ten thousand tasks, each asleep for 1 to 10 ms; for each task."""

    async def naps(count: int) -> None:
        await asyncio.gather(*[asyncio.sleep(0.001 + 0.009 * number / count) for number in range(count)])

    return each(10_000, which, naps)


def timers(which: Which) -> Sample:
    """A timer that is cancelled."""

    async def later(count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            loop.call_later(10, nothing).cancel()

    return each(200_000, which, later)


def threadsafe(which: Which) -> Sample:
    """Callbacks asked for by another thread: the other thread's CPU time; the whole process's."""
    count = 200_000

    async def measure() -> Sample:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        taken = []

        def other() -> None:
            began = time.thread_time_ns()
            for _ in range(count):
                loop.call_soon_threadsafe(nothing)
            taken.append((time.thread_time_ns() - began) / count)
            loop.call_soon_threadsafe(done.set)

        cpu = time.process_time()
        thread = threading.Thread(target=other)
        thread.start()
        await done.wait()
        thread.join()
        return Sample(taken[0], (time.process_time() - cpu) / count)

    found: Sample = loops.run(which(), measure())
    return found


def queue(which: Which) -> Sample:
    """An item from one task to another through a queue that holds one."""

    async def hand_over(count: int) -> None:
        queue = loops.asyncio_of(which()).Queue(1)

        async def put() -> None:
            for number in range(count):
                await queue.put(number)

        putting = asyncio.create_task(put())
        for _ in range(count):
            await queue.get()
        await putting

    return each(50_000, which, hand_over)


def lock(which: Which) -> Sample:
    """`async with` a lock that is free."""

    async def acquire(count: int) -> None:
        lock = loops.asyncio_of(which()).Lock()
        for _ in range(count):
            async with lock:
                pass

    return each(200_000, which, acquire)


def executor(which: Which) -> Sample:
    """A round trip to the default executor, one at a time."""

    async def offload(count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            await loop.run_in_executor(None, int)

    found = each(5000, which, offload)
    return Sample(found.value / 1000)


def open_connection(which: Which) -> Sample:
    """A connection made, used once and closed, over streams, both ends in one process."""

    async def connect(count: int) -> None:
        module = loops.asyncio_of(which())

        async def answer(reader: Any, writer: Any) -> None:
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await module.start_server(answer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        for _ in range(count):
            reader, writer = await module.open_connection(host, port)
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    found = each(500, which, connect)
    return Sample(found.value / 1000)


def lines(which: Which) -> Sample:
    """A line of 100 bytes read by `readline`, many in each packet; both ends in one process."""

    async def read(count: int) -> None:
        module = loops.asyncio_of(which())
        line = b"x" * 99 + b"\n"

        async def write(reader: Any, writer: Any) -> None:
            for _ in range(count // 100):
                writer.write(line * 100)
                await writer.drain()
            writer.close()

        server = await module.start_server(write, "127.0.0.1", 0)
        reader, writer = await module.open_connection(*server.sockets[0].getsockname()[:2])
        for _ in range(count // 100 * 100):
            assert await reader.readline()
        writer.close()
        server.close()

    return each(50_000, which, read)


def echo(kind: str, connections: int, size: int, which: Which) -> Sample:
    """Microseconds of the server's CPU time for a request; each connection has one on its way."""
    with loops.server(which(), kind) as (process, port):
        client = loops.Client(process, port, connections, size)
        try:
            client.requests(max(2000, 2 * connections))
            return Sample(client.requests(60_000) * 1e6)
        finally:
            client.close()


def many_connections(which: Which) -> Sample:
    """A request's cost over 1,000 connections, as a multiple of that over 10; three times, alternating."""
    ratios = []
    with loops.server(which(), "Protocol") as (process, port):
        clients = [loops.Client(process, port, connections, REQUEST) for connections in (10, 1000)]
        try:
            for client in clients:
                client.requests(4000)
            for _ in range(3):
                few, many = (client.requests(20_000) for client in clients)
                ratios.append(many / few)
        finally:
            for client in clients:
                client.close()
    return Sample(sorted(ratios)[1])


def idle(kind: str, which: Which) -> Sample:
    """KiB of the server's memory for each of 10,000 idle connections that have each had one request."""
    with loops.server(which(), kind) as (process, port):
        first = loops.Client(process, port, 64, REQUEST)
        first.requests(1000)
        before = loops.resident(process.pid)
        client = loops.Client(process, port, IDLE - 64, REQUEST)
        try:
            client.requests(IDLE - 64)
            return Sample((loops.resident(process.pid) - before) / 1024 / (IDLE - 64))
        finally:
            client.close()
            first.close()


def rows() -> list[Row]:
    """What is measured."""

    def row(name: str, unit: str, measure: Callable[[Which], Sample], *, bare: bool = False) -> Row:
        without = frozenset() if bare else frozenset({BARE})
        return Row(name, unit, measure, higher_is_better=False, without=without)  # type: ignore[arg-type]

    return [
        row("call_soon chain", "ns", call_soon),
        row("sleep(0)", "ns", sleep_zero),
        row("gather of 100, per task", "ns", gather),
        row("sleep(1–10 ms), per task", "ns", sleeps),
        row("call_later + cancel", "ns", timers),
        row("call_soon_threadsafe", "ns", threadsafe),
        row("asyncio.Queue hand-off", "ns", queue),
        row("asyncio.Lock", "ns", lock),
        row("run_in_executor(None, int)", "µs", executor),
        row("open_connection, a line, close", "µs", open_connection),
        row("readline", "ns", lines),
        *(
            row(f"TCP echo, {kind}", "µs", functools.partial(echo, kind, 64, REQUEST), bare=True)
            for kind in ("Protocol", "BufferedProtocol", "streams", "sock_*")
        ),
        row("TCP echo of 64 KiB, Protocol", "µs", functools.partial(echo, "Protocol", 16, 65536), bare=True),
        row("1,000 connections ÷ 10", "×", many_connections, bare=True),
        *(
            row(f"10,000 idle connections, {kind}", "KiB", functools.partial(idle, kind))
            for kind in ("Protocol", "streams")
        ),
    ]


if __name__ == "__main__":
    if "--one" not in sys.argv:
        loops.build_client()
    loops.more_descriptors()
    main(
        "event loop",
        __file__,
        {peer: functools.partial(str, peer) for peer in (*loops.peers(), BARE)},  # type: ignore[misc]
        rows(),
        ("plait", *loops.OTHERS),
    )
