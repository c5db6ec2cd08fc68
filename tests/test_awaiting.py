"""Waiting for jobs in event loops: one loop hears the workers itself, and nothing is lost when it cannot."""

from __future__ import annotations

import asyncio
import gc
import operator
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import plait
from plait import _awaiting


@pytest.fixture(params=["processes", "threads", "tasks"])
def ex(request: pytest.FixtureRequest) -> Iterator[plait.Executor]:
    with plait.Executor(request.param, workers=2) as executor:
        yield executor


@pytest.fixture
def processes() -> Iterator[plait.Executor]:
    # One worker: a second that is started meanwhile is a descriptor more.
    with plait.Executor("processes", workers=1) as executor:
        executor.submit(len, "").result()
        yield executor


def slow_double(number: int) -> int:
    """Takes a moment."""
    time.sleep(0.05)
    return 2 * number


def refuse() -> None:
    """Fails."""
    raise LookupError("not here")


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_results_and_errors_arrive(ex: plait.Executor) -> None:
    async def main() -> None:
        assert await ex.submit(len, "four") == 4
        with pytest.raises(LookupError, match="not here"):
            await ex.submit(refuse)
        futures = [ex.submit(operator.add, number, 1) for number in range(500)]
        assert await asyncio.gather(*futures) == list(range(1, 501))
        assert await futures[3] == 4  # one that is done

    asyncio.run(main())


def test_a_future_may_be_awaited_twice_at_once(ex: plait.Executor) -> None:
    async def wait(future: plait.Future[int]) -> int:
        return await future

    async def main() -> None:
        future = ex.submit(slow_double, 4)
        assert await asyncio.gather(wait(future), wait(future)) == [8, 8]

    asyncio.run(main())


def test_cancelling_the_wait_cancels_a_job_in_the_queue(ex: plait.Executor) -> None:
    async def main() -> None:
        blockers = [ex.submit(slow_double, number) for number in range(4)]
        future = ex.submit(slow_double, 9)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0.001)
        assert future.cancelled()
        assert await asyncio.gather(*blockers) == [0, 2, 4, 6]

    with plait.Executor(ex.model, workers=1) as ex:
        asyncio.run(main())


def test_a_cancelled_future_cancels_the_wait(ex: plait.Executor) -> None:
    async def main() -> None:
        blockers = [ex.submit(slow_double, number) for number in range(4)]
        future = ex.submit(slow_double, 9)
        asyncio.get_running_loop().call_later(0.01, future.cancel)
        with pytest.raises(asyncio.CancelledError):
            await future
        await asyncio.gather(*blockers)

    with plait.Executor(ex.model, workers=1) as ex:
        asyncio.run(main())


def test_the_loop_hears_workers_itself(processes: plait.Executor) -> None:
    async def main() -> None:
        delivered: list[int] = []
        await processes.submit(len, "warm")
        for _ in range(20):
            future = processes.submit(slow_double, 1)
            waiting = asyncio.ensure_future(_awaiting.wait_in_loop(future))
            future.add_done_callback(lambda _: delivered.append(threading.get_ident()))
            await waiting
        # The pool's own thread looks now and then, and may be first with some of them.
        assert delivered.count(threading.get_ident()) >= 10

    asyncio.run(main())


def test_a_loop_that_is_held_up_holds_up_nobody_else(processes: plait.Executor) -> None:
    async def main() -> None:
        await processes.submit(len, "the loop listens now")
        released = threading.Event()
        found: list[int] = []

        def wait_elsewhere() -> None:
            for number in range(20):
                found.append(processes.submit(operator.add, number, 1).result(timeout=60))
            released.set()

        thread = threading.Thread(target=wait_elsewhere)
        thread.start()
        assert released.wait(60)  # blocks the loop until the other thread has its results
        thread.join()
        assert found == list(range(1, 21))

    asyncio.run(main())


def test_callbacks_of_others_do_not_run_in_the_loop(processes: plait.Executor) -> None:
    async def main() -> None:
        await processes.submit(len, "the loop listens now")
        seen: list[int] = []
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(_future: plait.Future[int]) -> None:
            seen.append(threading.get_ident())
            loop.call_soon_threadsafe(done.set)

        processes.submit(slow_double, 1).add_done_callback(note)
        await done.wait()
        assert seen != [threading.get_ident()]

    asyncio.run(main())


def test_two_loops_at_once(processes: plait.Executor) -> None:
    async def main(base: int) -> list[int]:
        found = []
        for number in range(100):
            found.append(await processes.submit(operator.add, base, number))
        return found

    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda base=base: results.update({base: asyncio.run(main(base))}))
        for base in (0, 1000)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {base: list(range(base, base + 100)) for base in (0, 1000)}


def test_one_loop_after_another_and_nothing_stays_open(processes: plait.Executor) -> None:
    async def main() -> int:
        return await processes.submit(len, "four")

    assert asyncio.run(main()) == 4
    gc.collect()
    before = descriptors()
    for _ in range(10):
        assert asyncio.run(main()) == 4
    gc.collect()
    assert descriptors() <= before


def test_a_loop_that_waits_for_nothing_stops_listening(processes: plait.Executor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = descriptors()
        await processes.submit(len, "four")
        assert descriptors() == before + 1
        assert _awaiting._by_loop[loop]
        while _awaiting._by_loop[loop]:
            await asyncio.sleep(_awaiting._IDLE_SECONDS)
        assert descriptors() == before
        assert await processes.submit(len, "again") == 5

    asyncio.run(main())


def test_a_pool_that_is_shut_down_while_a_loop_listens() -> None:
    async def main() -> None:
        for _ in range(3):
            with plait.Executor("processes", workers=1) as ex:
                future = ex.submit(slow_double, 2)
                assert await ex.submit(len, "four") == 4
            assert await future == 4

    asyncio.run(main())


class DeafLoop(asyncio.SelectorEventLoop):
    """A loop that cannot poll descriptors for others."""

    def add_reader(self, fd: object, callback: object, *args: object) -> None:
        if getattr(callback, "__name__", "") == "hear":
            raise NotImplementedError
        super().add_reader(fd, callback, *args)  # type: ignore[arg-type]


def test_a_loop_that_cannot_poll_is_woken_by_the_pool(processes: plait.Executor) -> None:
    loop = DeafLoop()
    try:

        async def main() -> None:
            before = descriptors()
            for number in range(10):
                assert await processes.submit(operator.add, number, 1) == number + 1
            assert descriptors() == before

        loop.run_until_complete(main())
    finally:
        loop.close()
