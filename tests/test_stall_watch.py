"""The stall watch: who holds up a loop is told of while it does, once a place. And `loop.statistics()`."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import plait
from plait import _stall_watch

pytestmark = pytest.mark.thread_unsafe
LIMIT = 60


class Heard(logging.Handler):
    """What was logged; whoever waits for a record is woken by it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.news = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.news:
            self.messages.append(record.getMessage())
            self.news.notify_all()

    def wait_for(self, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.messages) >= count, LIMIT), self.messages


@pytest.fixture
def heard() -> Iterator[Heard]:
    logger, handler = logging.getLogger("plait"), Heard()
    logger.addHandler(handler)
    _stall_watch._told.clear()
    yield handler
    logger.removeHandler(handler)


def run(main: Any, stall_after: float | None = 0.01) -> plait.EventLoop:
    """Run a coroutine on a loop of little patience."""

    def loop() -> plait.EventLoop:
        made = plait.EventLoop()
        made.stall_after = stall_after
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)
        found = runner.get_loop()
        assert isinstance(found, plait.EventLoop)
        return found


def block_here(heard: Heard, count: int) -> None:
    heard.wait_for(count)


def test_the_stack_is_told_during_the_stall_and_the_duration_at_its_end(heard: Heard) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("the-slow-one")
        block_here(heard, 1)
        await asyncio.sleep(0)

    run(main())
    during, after = heard.messages
    assert "task 'the-slow-one'" in during
    assert "block_here" in during
    assert "heard.wait_for(count)" in during
    assert "run_forever" not in during
    assert "was held up for" in after
    assert "task 'the-slow-one'" in after


def test_a_callback_is_told_of_too_and_each_place_once(heard: Heard) -> None:
    rounds = 3

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, plait.EventLoop)
        for number in range(rounds):
            over = loop.create_future()

            def hold(number: int = number, over: asyncio.Future[None] = over) -> None:
                wait_until(lambda: loop.statistics().stalls > number)
                over.set_result(None)

            loop.call_soon(hold)
            await over

    loop = run(main())
    assert loop.statistics().stalls == rounds
    assert len([message for message in heard.messages if "a callback" in message]) == 2, heard.messages


def wait_until(is_so: Callable[[], bool]) -> None:
    """Hold the loop until something is so; the interpreter is let go of meanwhile."""
    event = threading.Event()
    for _ in range(int(LIMIT / 0.001)):
        if is_so():
            return
        event.wait(0.001)
    raise TimeoutError


def test_none_turns_it_off_and_it_can_be_changed_while_it_runs(heard: Heard) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, plait.EventLoop)
        other = plait.EventLoop()
        other.stall_after = 0.01
        ended = threading.Thread(target=lambda: asyncio.Runner(loop_factory=lambda: other).run(seen()))

        async def seen() -> None:
            wait_until(lambda: other.statistics().stalls > 0)

        # This loop is held up for as long as it takes to find that the other one is.
        ended.start()
        ended.join()
        other.close()

    loop = run(main(), stall_after=None)
    assert loop.statistics().stalls == 0
    assert not any(".main)" in message for message in heard.messages)


def test_an_item_that_keeps_the_gil_is_told_of_when_it_is_over(heard: Heard) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, plait.EventLoop)
        for _ in range(100):
            sum(range(10**7))  # one call into C, without a look at who else wants the GIL
            await asyncio.sleep(0)
            if heard.messages:
                break

    run(main(), stall_after=0.005)
    assert heard.messages
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert "kept the GIL" in heard.messages[0] or "main" in heard.messages[0]


def test_a_loop_that_sleeps_is_not_stalled(heard: Heard) -> None:
    async def main() -> None:
        await asyncio.sleep(0.1)

    loop = run(main(), stall_after=0.001)
    statistics = loop.statistics()
    assert statistics.poll_seconds >= 0.09
    assert heard.messages == [] or statistics.stalls > 0


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_patience_is_above_nothing(wrong: float) -> None:
    loop = plait.EventLoop()
    assert loop.stall_after == 0.5
    with pytest.raises(ValueError, match="stall_after must be a number of seconds above 0"):
        loop.stall_after = wrong
    loop.stall_after = float("inf")
    loop.stall_after = None
    assert loop.stall_after is None
    loop.close()


def test_statistics() -> None:
    loop = plait.EventLoop()
    before = loop.statistics()
    assert before == plait.event_loop.LoopStatistics(0, 0, 0.0, 0.0, 0, 0, 0)
    loop.call_soon(lambda: None)
    timer = loop.call_later(3600, lambda: None)
    loop.call_soon_threadsafe(lambda: None)
    assert loop.statistics().ready == 2
    assert loop.statistics().timers == 1
    timer.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    after = loop.statistics()
    assert after.ready == after.timers == 0
    assert after.turns >= 2
    assert after.callbacks >= 4
    assert after.poll_seconds > 0
    assert after.callback_seconds > 0
    loop.close()


FORKED = """
import asyncio, os, plait, plait.event_loop
async def main():
    await asyncio.sleep(0.001)
plait.run(main())
pid = os.fork()
plait.run(main())
if pid:
    assert os.waitpid(pid, 0)[1] == 0
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork_and_at_the_end_of_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["done", "done"], done.stderr
    assert done.returncode == 0
