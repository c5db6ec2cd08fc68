"""`Pool` and `ThreadPool`: what the standard ones do, and what happens when a worker dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import process_calls as calls
import pytest
from faults.leftovers import excess, holdings

import plait
import plait.multiprocessing
from plait.multiprocessing.pool import Pool, ThreadPool


@pytest.fixture(params=["processes", "threads"])
def pool(request: pytest.FixtureRequest, package: Any) -> Iterator[Any]:
    """A pool of two workers, processes or threads."""
    if request.param == "threads":
        made = package.pool.ThreadPool(2)
    else:
        made = package.get_context("forkserver").Pool(2)
    with made:
        yield made
    made.join()


def numbers(until: int) -> Iterator[int]:
    """Count, and fail."""
    yield from range(until)
    raise LookupError("no more numbers")


def test_results_come_in_every_way(pool: Any) -> None:
    assert pool.apply(calls.add, (1,), {"y": 2}) == 3
    assert pool.apply_async(calls.square, (3,)).get(60) == 9
    assert pool.map(calls.square, range(10)) == [x * x for x in range(10)]
    assert pool.map(calls.square, (x for x in range(100)), chunksize=7) == [x * x for x in range(100)]
    assert pool.starmap(calls.add, [(1, 2), (3, 4)]) == [3, 7]
    assert pool.map_async(calls.square, []).get(60) == []
    assert pool.starmap_async(calls.add, [(1, 2)]).get(60) == [3]
    assert list(pool.imap(calls.square, range(50))) == [x * x for x in range(50)]
    assert list(pool.imap(calls.square, range(50), chunksize=8)) == [x * x for x in range(50)]
    assert sorted(pool.imap_unordered(calls.square, range(50))) == [x * x for x in range(50)]
    assert sorted(pool.imap_unordered(calls.square, range(50), 8)) == [x * x for x in range(50)]


def test_failures_are_the_calls_own(pool: Any) -> None:
    with pytest.raises(KeyError):
        pool.apply(calls.fail, ("x",))
    result = pool.apply_async(calls.fail, ("x",))
    result.wait(60)
    assert result.ready()
    assert not result.successful()
    with pytest.raises(KeyError):
        pool.map(calls.fail_if_odd, range(4))
    items = pool.imap(calls.fail_if_odd, range(4))
    assert next(items) == 0
    with pytest.raises(KeyError):
        next(items)
    assert next(items) == 2  # one failed item is not the end
    with pytest.raises(KeyError):
        items.next(60)
    with pytest.raises(StopIteration):
        next(items)


def test_an_input_that_fails_is_told_in_its_place(pool: Any) -> None:
    items = pool.imap(calls.square, numbers(3))
    assert [next(items) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(LookupError, match="no more numbers"):
        next(items)
    with pytest.raises(LookupError, match="no more numbers"):
        pool.map(calls.square, numbers(3))


def test_callbacks_come_before_the_result(pool: Any) -> None:
    told: list[Any] = []
    result = pool.apply_async(calls.square, (4,), callback=told.append, error_callback=told.append)
    result.wait(60)
    assert told == [16]
    pool.map_async(calls.fail, [1], callback=told.append, error_callback=told.append).wait(60)
    assert isinstance(told[1], KeyError)


def test_a_result_that_is_late(pool: Any, package: Any) -> None:
    result = pool.apply_async(calls.sleep, (0.3,))
    with pytest.raises(package.TimeoutError):
        result.get(0.01)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    assert result.get(60) == 0.3
    assert result.successful()


def test_a_closed_pool_does_what_it_was_asked_for(pool: Any) -> None:
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    late = pool.imap(calls.square, range(1000))
    results = [pool.apply_async(calls.square, (x,)) for x in range(10)]
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(calls.square, (1,))
    pool.join()
    assert [result.get(60) for result in results] == [x * x for x in range(10)]
    assert list(late) == [x * x for x in range(1000)]


def test_what_a_pool_is_made_with_is_looked_at(package: Any) -> None:
    for processes in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            package.Pool(processes)
    with pytest.raises(TypeError, match="callable"):
        package.Pool(1, initializer=1)
    with pytest.raises(ValueError, match="maxtasksperchild"):
        package.Pool(1, maxtasksperchild=0)


def test_an_initializer_runs_in_each_worker(package: Any) -> None:
    with package.get_context("spawn").Pool(2, calls.remember, (1, "two")) as pool:
        assert pool.map(calls.remembered, range(4)) == [[1, "two"]] * 4
    pool.join()


def test_workers_are_replaced_after_so_many_tasks(package: Any) -> None:
    with package.get_context("forkserver").Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(calls.pid) for _ in range(6)]
    pool.join()
    assert len(set(pids)) == 3


def test_an_argument_that_refuses_to_be_pickled(package: Any) -> None:
    with package.get_context("forkserver").Pool(1) as pool:
        with pytest.raises(RuntimeError, match="cannot be pickled"):
            pool.apply(calls.square, (calls.Unpicklable(),))
        with pytest.raises(RuntimeError, match="cannot be pickled"):
            pool.map(calls.square, [calls.Unpicklable()] * 3)
    pool.join()


def test_a_result_that_refuses_to_be_pickled(package: Any) -> None:
    encoding_error = package.pool.MaybeEncodingError
    with (
        package.get_context("forkserver").Pool(1) as pool,
        pytest.raises(encoding_error, match="cannot be pickled"),
    ):
        pool.apply(calls.Unpicklable)
    pool.join()


def test_the_remote_traceback_is_the_cause(package: Any) -> None:
    with package.get_context("forkserver").Pool(1) as pool, pytest.raises(KeyError) as raised:
        pool.apply(calls.fail, (1,))
    pool.join()
    assert type(raised.value.__cause__) is package.pool.RemoteTraceback
    assert "raise KeyError(x)" in str(raised.value.__cause__)


# From here on: what the standard pool does not do.


def test_a_worker_that_dies_costs_its_own_call() -> None:
    before = holdings()
    with Pool(2) as pool:
        with pytest.raises(plait.WorkerDied):
            pool.apply(calls.die)
        items = pool.imap(calls.die_if_three, range(6))
        got: list[object] = []
        for _ in range(6):
            try:
                got.append(next(items))
            except plait.WorkerDied as death:
                got.append(type(death))
        assert got == [0, 1, 2, plait.WorkerDied, 4, 5]
        with pytest.raises(plait.WorkerDied):
            pool.map(calls.die_if_three, range(6), chunksize=2)
        assert pool.map(calls.square, range(6)) == [x * x for x in range(6)]
        told: list[BaseException] = []
        pool.apply_async(calls.die, error_callback=told.append).wait(60)
        assert isinstance(told[0], plait.WorkerDied)
    pool.join()
    del pool, items
    assert excess(before) == {}


def test_terminate_fails_what_is_still_awaited() -> None:
    pool = Pool(1)
    told: list[object] = []
    running = pool.apply_async(calls.sleep, (600,))
    waiting = pool.map_async(calls.sleep, [600] * 3, chunksize=1, error_callback=told.append)
    items = pool.imap(calls.sleep, iter([600] * 1000))
    while not pool._engine.statistics()["workers"]:
        time.sleep(0.001)
    pool.terminate()
    pool.join()
    for wait in (running.get, waiting.get, items.next):
        with pytest.raises((plait.WorkerDied, CancelledError)):
            wait(60)
    assert told == []  # nobody wants to hear of what they have ended


def test_an_endless_input_is_read_as_calls_finish() -> None:
    read = 0

    def endless() -> Iterator[float]:
        nonlocal read
        while True:
            read += 1
            yield 0.01

    with Pool(2) as pool:
        items = pool.imap(calls.sleep, endless())
        for _ in range(10):
            next(items)
        assert read < 1000
    pool.join()


def test_pools_nest_and_workers_have_children() -> None:
    with Pool(1) as pool:
        assert pool.apply(calls.nest, (3,)) == [0, 1, 4]
        assert pool.apply(calls.start_a_child) == 0
    pool.join()


def test_a_callback_may_end_its_pool_but_not_wait_for_it() -> None:
    for pool in (Pool(1), ThreadPool(1)):
        told: list[BaseException] = []

        def end(_: object, pool: Any = pool, told: list[BaseException] = told) -> None:
            pool.terminate()
            try:
                pool.join()
            except RuntimeError as error:
                told.append(error)

        pool.apply_async(calls.square, (2,), callback=end).wait(60)
        pool.join()
        assert "cannot wait" in str(told[0])


def test_a_callback_that_fails_does_not_keep_its_result_from_being_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ThreadPool(1) as pool:
        result = pool.apply_async(calls.square, (2,), callback=lambda _: 1 // 0)
        assert result.get(60) == 4
    pool.join()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_workers_inherit_and_may_die() -> None:
    calls.STATE[:] = ["inherited"]
    with plait.multiprocessing.get_context("fork").Pool(2) as pool:
        calls.STATE[:] = ["later"]
        assert pool.map(calls.remembered, range(3)) == [["inherited"]] * 3
        with pytest.raises(plait.WorkerDied):
            pool.apply(calls.die)
        assert pool.apply(calls.remembered) == ["inherited"]
    pool.join()


class OwnProcess(plait.multiprocessing.context.ForkServerProcess):
    """A process of the user's class."""


class OwnContext(plait.multiprocessing.context.ForkServerContext):
    """A context with processes of the user's class."""

    Process = OwnProcess


def test_a_pool_whose_processes_are_the_users_is_the_standard_one() -> None:
    with Pool(1, context=OwnContext()) as pool:
        assert type(pool._pool[0]) is OwnProcess
        assert pool.apply(calls.square, (3,)) == 9
    pool.join()
