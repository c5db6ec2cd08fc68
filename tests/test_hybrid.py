"""The `hybrid` model: processes that each run many jobs at once, on an event loop and in threads."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait

MOMENT = 0.02
arrived = 0
party = threading.Barrier(20)
color = contextvars.ContextVar("color", default="none")
made = "nothing"


@pytest.fixture
def ex() -> Iterator[plait.Executor]:
    with plait.Executor("hybrid", workers=2, width=20) as executor:
        yield executor


@pytest.fixture
def one_worker() -> Iterator[plait.Executor]:
    with plait.Executor("hybrid", workers=1, width=20) as executor:
        yield executor


async def meet(number: int, guests: int) -> int:
    """Returns when as many others are here."""
    global arrived
    arrived += 1
    while arrived < guests:
        await asyncio.sleep(0.001)
    return number


def meet_in_threads(number: int) -> int:
    """The same for plain functions."""
    party.wait(timeout=60)
    return number


async def double(number: int) -> int:
    """Waits a little."""
    await asyncio.sleep(0.001)
    return 2 * number


def double_later(number: int) -> Coroutine[Any, Any, int]:
    """A plain function that gives a coroutine."""
    return double(number)


async def paint(name: str) -> str:
    """Whether other jobs see this one's context."""
    before = color.get()
    color.set(name)
    await asyncio.sleep(0.001)
    return before + color.get()


async def fail(error: type[BaseException]) -> None:
    """Ends otherwise."""
    await asyncio.sleep(0)
    raise error("as asked for")


def fail_in_thread(error: type[BaseException]) -> None:
    """The same in a thread."""
    raise error("as asked for")


async def die() -> None:
    """Takes the process along."""
    await asyncio.sleep(MOMENT)
    os._exit(3)


async def wait_for_ever() -> None:
    """Never ends."""
    await asyncio.Event().wait()


def prepare(what: str) -> None:
    """An initializer."""
    global made
    made = what


async def what_was_made() -> str:
    """What it left."""
    return made


def process_id() -> int:
    """Where a plain function runs."""
    return os.getpid()


def test_coroutines_of_one_worker_run_at_once(one_worker: plait.Executor) -> None:
    futures = [one_worker.submit(meet, number, 20) for number in range(20)]
    assert [future.result(timeout=60) for future in futures] == list(range(20))


def test_plain_functions_of_one_worker_run_at_once(one_worker: plait.Executor) -> None:
    assert list(one_worker.map(meet_in_threads, range(20), timeout=60)) == list(range(20))


def test_coroutines_and_plain_functions_side_by_side(ex: plait.Executor) -> None:
    futures: list[plait.Future[Any]] = []
    for number in range(60):
        futures += [ex.submit(double, number), ex.submit(double_later, number), ex.submit(abs, -number)]
    found = [future.result(timeout=60) for future in futures]
    assert found == [value for number in range(60) for value in (2 * number, 2 * number, number)]


def test_the_work_is_spread_over_processes(ex: plait.Executor, tmp_path: Path) -> None:
    futures = [ex.submit(meet_in_processes, number, tmp_path) for number in range(40)]
    assert len({future.result(timeout=60) for future in futures}) == 2


def process_id_slowly(_number: int) -> int:
    """The same, and takes a moment."""
    time.sleep(MOMENT)
    return os.getpid()


def meet_in_processes(number: int, place: Path) -> int:
    """Returns when as many as fit into two processes are here."""
    (place / str(number)).touch()
    while len(list(place.iterdir())) < 40:
        time.sleep(MOMENT)
    return os.getpid()


def test_map_keeps_the_order_and_closes_early(ex: plait.Executor) -> None:
    assert list(ex.map(double, range(500))) == [2 * number for number in range(500)]
    results = ex.map(double, iter(range(10**9)))
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    results.close()


def test_functions_by_value_and_keywords(ex: plait.Executor) -> None:
    base = 5

    async def add(number: int, *, times: int) -> int:
        await asyncio.sleep(0)
        return base + number * times

    assert ex.submit(add, 2, times=10).result() == 25
    assert ex.submit(lambda number: number + base, 1).result() == 6


def test_each_job_has_a_context_of_its_own(one_worker: plait.Executor) -> None:
    names = [str(number) for number in range(20)]
    assert list(one_worker.map(paint, names)) == ["none" + name for name in names]


@pytest.mark.parametrize("job", [fail, fail_in_thread])
@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_job_raises_is_its_own(
    one_worker: plait.Executor, job: Any, error: type[BaseException]
) -> None:
    pid = one_worker.submit(process_id).result()
    others = [one_worker.submit(double, number) for number in range(10)]
    with pytest.raises(error, match="as asked for"):
        one_worker.submit(job, error).result(timeout=60)
    assert [future.result(timeout=60) for future in others] == [2 * number for number in range(10)]
    assert one_worker.submit(process_id).result() == pid


def test_a_result_that_cannot_be_pickled(ex: plait.Executor) -> None:
    async def refuse() -> object:
        return threading.Lock()

    with pytest.raises(plait.ResultNotPicklable, match="lock"):
        ex.submit(refuse).result()
    assert ex.submit(double, 4).result() == 8


def test_a_death_takes_the_jobs_of_its_worker_along_and_no_others(ex: plait.Executor) -> None:
    running = [ex.submit(wait_for_ever) for _ in range(4)]
    dying = ex.submit(die)
    with pytest.raises(plait.WorkerDied, match="exited with status 3"):
        dying.result(timeout=60)
    # Those of the other worker go on; the pool does, too.
    assert list(ex.map(double, range(100))) == [2 * number for number in range(100)]
    lost = [future for future in running if future.done()]
    assert 0 < len(lost) < 4
    for future in lost:
        assert isinstance(future.exception(), plait.WorkerDied)
    ex._pool.terminate()


def test_what_was_lost_with_a_worker_runs_again_if_it_may(ex: plait.Executor) -> None:
    patient = ex.options(retries=3)
    slow = [patient.submit(process_id_slowly, number) for number in range(20)]
    assert isinstance(ex.submit(die).exception(timeout=60), plait.WorkerDied)
    assert all(future.result(timeout=60) > 0 for future in slow)


def test_initializer_and_statistics() -> None:
    with plait.Executor("hybrid", workers=1, initializer=prepare, initargs=("tea",)) as ex:
        assert ex.submit(what_was_made).result() == "tea"
        assert ex._pool.statistics()["width"] == 16  # where the search for the best one begins


def test_shutdown_waits_for_what_runs() -> None:
    ex = plait.Executor("hybrid", workers=2, width=8)
    futures = [ex.submit(double, number) for number in range(50)]
    futures += [ex.submit(process_id_slowly, number) for number in range(10)]
    ex.shutdown()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(double, 1)


@pytest.mark.parametrize("width", [0, -1, 257])
def test_a_width_that_cannot_be(width: int) -> None:
    with pytest.raises(ValueError, match=f"width must be .*, not {width}"):
        plait.Executor("hybrid", width=width)


def test_width_is_for_hybrids_only() -> None:
    with pytest.raises(TypeError, match="the model 'processes' has no option 'width': it is for 'hybrid'"):
        plait.Executor("processes", width=4)


def test_the_width_grows_while_that_brings_more_results() -> None:
    with plait.Executor("hybrid", workers=1) as ex:
        assert sum(ex.map(sleep_a_little, range(3000))) == 3000
        # From 16 on. Where it ends depends on how busy the machine is.
        assert ex._pool.statistics()["width"] >= 32


async def sleep_a_little(_number: int) -> int:
    """Waits for far longer than it computes."""
    await asyncio.sleep(MOMENT)
    return 1
