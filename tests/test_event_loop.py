"""The event loop: order, fairness, timers, other threads, contexts, errors, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.event_loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def run_briefly(loop: EventLoop) -> None:
    """One turn, and what is ready in it."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_callbacks_run_in_the_order_they_were_asked_for(loop: EventLoop) -> None:
    seen: list[int] = []
    for number in range(100):
        ask = loop.call_soon_threadsafe if number % 3 == 0 else loop.call_soon
        ask(seen.append, number)
    run_briefly(loop)
    assert seen == list(range(100))


def test_what_a_callback_asks_for_is_for_the_next_turn(loop: EventLoop) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_soon(seen.append, "asked for by the first")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    run_briefly(loop)
    assert seen == ["first", "second"]
    run_briefly(loop)
    assert seen == ["first", "second", "asked for by the first"]


def test_a_storm_of_callbacks_does_not_keep_descriptors_and_timers_waiting(loop: EventLoop) -> None:
    turns = 0
    seen: dict[str, int] = {}
    here, there = socket.socketpair()
    with here, there:

        def storm() -> None:
            nonlocal turns
            turns += 1
            if len(seen) == 2:
                loop.stop()
            else:
                loop.call_soon(storm)

        def read() -> None:
            here.recv(100)
            seen["read"] = turns

        def send() -> None:
            there.send(b"x")
            seen_from["read"] = seen_from["timer"] = turns
            loop.call_later(0, lambda: seen.setdefault("timer", turns))

        seen_from: dict[str, int] = {}
        loop.add_reader(here, read)
        loop.call_soon(storm)
        for _ in range(3):
            loop.call_soon(lambda: None)
        loop.call_soon(send)
        loop.run_forever()
        loop.remove_reader(here)
    # The bound is 32 turns without a look, and one turn to run what was found.
    assert {what: seen[what] - seen_from[what] <= 34 for what in seen} == {"read": True, "timer": True}


def test_timers_run_in_order_and_cancelled_ones_do_not(loop: EventLoop) -> None:
    seen: list[float] = []
    now = loop.time()
    handles = {delay: loop.call_at(now + delay / 1000, seen.append, delay) for delay in (3, 1, 2, 1.5)}
    handles[2].cancel()
    assert handles[2].cancelled()
    assert handles[1].when() == now + 0.001
    loop.call_at(now + 0.004, loop.stop)
    loop.run_forever()
    assert seen == [1, 1.5, 3]


def test_cancelled_timers_let_go_of_what_they_held(loop: EventLoop) -> None:
    class Something:
        def call(self) -> None:
            raise AssertionError("cancelled")

    kept = [loop.call_later(3600, Something().call) for _ in range(1000)]
    watched = [weakref.ref(handle) for handle in kept]
    for handle in kept:
        handle.cancel()
    kept.clear()
    del handle
    gc.collect()
    # Swept out whenever half of them were cancelled; fewer than 64 are not worth it.
    assert sum(ref() is not None for ref in watched) < 64


def test_other_threads_wake_a_sleeping_loop(loop: EventLoop) -> None:
    seen: list[int] = []

    def call_from_outside() -> None:
        for number in range(1000):
            loop.call_soon_threadsafe(seen.append, number)
            if number % 100 == 0:
                time.sleep(0.002)  # so that the loop falls asleep now and then
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=call_from_outside)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert seen == list(range(1000))


def test_handles_are_asyncio_s(loop: EventLoop) -> None:
    soon = loop.call_soon(print, "not printed")
    later = loop.call_later(3600, print)
    assert isinstance(soon, asyncio.Handle)
    assert isinstance(later, asyncio.TimerHandle)
    assert "print" in repr(soon)
    soon.cancel()
    soon.cancel()
    later.cancel()
    assert soon.cancelled()
    assert later.cancelled()
    assert "cancelled" in repr(later)


def test_a_handle_that_somebody_keeps_is_not_used_again(loop: EventLoop) -> None:
    seen: list[int] = []
    kept = [loop.call_soon(seen.append, number) for number in range(10)]
    watched = weakref.ref(loop.call_soon(seen.append, 10))
    run_briefly(loop)
    later = [loop.call_soon(seen.append, number) for number in range(11, 30)]
    assert not {id(handle) for handle in kept} & {id(handle) for handle in later}
    assert watched() is None
    kept[0].cancel()
    run_briefly(loop)
    assert seen == list(range(30))


def test_contexts(loop: EventLoop) -> None:
    color = contextvars.ContextVar("color", default="none")
    seen: list[str] = []
    color.set("red")
    loop.call_soon(lambda: seen.append(color.get()))
    other = contextvars.copy_context()
    other.run(color.set, "blue")
    loop.call_soon(lambda: seen.append(color.get()), context=other)
    loop.call_later(0, lambda: seen.append(color.get()), context=other)
    color.set("green")
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert seen == ["red", "blue", "blue"]


def test_a_callback_that_raises_is_told_of_and_the_rest_runs(loop: EventLoop) -> None:
    told: list[dict[str, Any]] = []
    seen: list[int] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(seen.append, 1)
    run_briefly(loop)
    assert seen == [1]
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
    assert "<lambda>" in told[0]["message"]


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_loop_loses_no_callback(loop: EventLoop, ending: type[BaseException]) -> None:
    seen: list[int] = []

    def end() -> None:
        raise ending

    loop.call_soon(seen.append, 1)
    loop.call_soon(end)
    loop.call_soon(seen.append, 2)
    with pytest.raises(ending):
        loop.run_forever()
    assert seen == [1]
    run_briefly(loop)
    assert seen == [1, 2]


def test_signals_reach_a_sleeping_loop(loop: EventLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    loop.run_forever()
    timer.join()
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_debug_mode_tells_of_slow_callbacks(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    loop.call_soon(time.sleep, 0.02)
    run_briefly(loop)
    assert any("Executing" in record.message and "sleep" in record.message for record in caplog.records)
    with pytest.raises(TypeError, match="coroutine"):
        loop.call_soon(asyncio.sleep)


@pytest.mark.parametrize("wrong", ["delay", "when"])
def test_times_that_are_none(loop: EventLoop, wrong: str) -> None:
    with pytest.raises(TypeError, match=f"{wrong} .*None"):
        (loop.call_later if wrong == "delay" else loop.call_at)(None, print)  # type: ignore[arg-type]


def test_a_closed_loop_refuses(loop: EventLoop) -> None:
    made = EventLoop()
    made.close()
    made.close()
    for ask in (made.call_soon, made.call_soon_threadsafe):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            ask(print)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        made.call_later(1, print)


def test_descriptors_that_cannot_be_watched(loop: EventLoop) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(987654, print)
    with pytest.raises(ValueError, match="Invalid file object"):
        loop.add_reader("no descriptor", print)
    assert not loop.remove_reader(987654)


def test_a_descriptor_whose_number_is_used_again(loop: EventLoop) -> None:
    seen: list[str] = []
    here, there = socket.socketpair()
    number = here.fileno()
    loop.add_reader(number, seen.append, "old")
    here.close()  # without remove_reader
    there.close()
    here, there = socket.socketpair()
    with here, there:
        assert here.fileno() == number
        loop.add_reader(number, seen.append, "new")
        there.send(b"x")
        run_briefly(loop)
        assert seen == ["new"]
        assert loop.remove_reader(number)


def test_loops_leave_nothing_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main() -> None:
        await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(10)))

    plait.run(main())
    gc.collect()
    before = descriptors()
    loops = []
    for _ in range(10):
        with asyncio.Runner(loop_factory=EventLoop) as runner:
            runner.run(main())
            runner.get_loop().call_later(3600, print, runner.get_loop())  # a cycle
            loops.append(weakref.ref(runner.get_loop()))
        del runner
    gc.collect()
    assert [ref() for ref in loops] == [None] * 10
    assert descriptors() == before


def test_run_gives_the_result_and_the_exception() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        assert type(asyncio.get_running_loop()) is EventLoop
        return 2 * number

    async def fail() -> None:
        raise LookupError("not here")

    assert plait.run(double(4)) == 8
    with pytest.raises(LookupError, match="not here"):
        plait.run(fail())
    with pytest.raises((TypeError, ValueError), match="coroutine"):
        plait.run(4)  # type: ignore[arg-type]


def test_run_inside_a_running_loop_uses_a_second_one() -> None:
    color = contextvars.ContextVar("color", default="none")

    async def inner() -> tuple[str, int]:
        await asyncio.sleep(0)
        return color.get(), threading.get_ident()

    async def outer() -> None:
        color.set("red")
        seen, thread = plait.run(inner())
        assert seen == "red"
        assert thread != threading.get_ident()

    plait.run(outer())


def test_streams_subprocesses_and_executors_work() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out == b"42\n"
        assert await asyncio.to_thread(len, "four") == 4

    plait.run(main())


def test_a_coroutine_that_is_closed_when_the_interpreter_ends() -> None:
    script = """
import asyncio, plait
async def main():
    await asyncio.sleep(3600)  # its timer is cancelled by the very last collection
loop = plait.EventLoop()
task = loop.create_task(main())
loop.call_soon(loop.stop)
loop.run_forever()
keep = [loop, task]
keep.append(keep)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "panicked" not in ended.stderr
