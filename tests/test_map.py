"""`Executor.map`: lazy, bounded, in order or not, and done with whatever it gave out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plait

MODELS = ["auto", "tasks", "threads", "processes"]
if sys.version_info >= (3, 14):
    MODELS.append("interpreters")
SHARED_MEMORY = ["auto", "tasks", "threads"]


@pytest.fixture(params=MODELS)
def ex(request: pytest.FixtureRequest) -> Iterator[plait.Executor]:
    with plait.Executor(request.param, 2) as executor:
        yield executor


@pytest.fixture(params=SHARED_MEMORY)
def near(request: pytest.FixtureRequest) -> Iterator[plait.Executor]:
    """An executor whose jobs share our memory."""
    with plait.Executor(request.param, 2) as executor:
        yield executor


def double(x: int) -> int:
    return 2 * x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def invert(x: int) -> float:
    return 1 / x


async def invert_later(x: int) -> float:
    await asyncio.sleep(0)
    return 1 / x


def add(x: int, y: int) -> int:
    return x + y


class Counted:
    """An endless iterator that knows how much of it was taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


def test_results_come_in_the_order_of_the_inputs(ex: plait.Executor) -> None:
    assert list(ex.map(nap, [0.05, 0.0, 0.02, 0.0])) == [0.05, 0.0, 0.02, 0.0]
    assert list(ex.map(double, range(500))) == [2 * x for x in range(500)]


def test_unordered_results_all_come(ex: plait.Executor) -> None:
    assert sorted(ex.map(double, range(200), ordered=False)) == [2 * x for x in range(200)]
    view = ex.options(ordered=False)
    assert sorted(view.map(double, range(20))) == [2 * x for x in range(20)]


def test_unordered_results_do_not_wait_for_slow_ones(near: plait.Executor) -> None:
    gate = threading.Event()

    def first_waits(x: int) -> int:
        if x == 0:
            gate.wait(30)
        return x

    results = near.map(first_waits, range(10), ordered=False)
    assert next(results) != 0
    gate.set()
    assert 0 in set(results)


def test_several_iterables_end_with_the_shortest(ex: plait.Executor) -> None:
    assert list(ex.map(add, range(10), itertools.count(100))) == [100 + 2 * x for x in range(10)]
    assert list(ex.map(double, [])) == []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 7])
def test_endless_inputs_are_read_as_results_are_taken(
    ex: plait.Executor, ordered: bool, chunksize: int
) -> None:
    inputs = Counted()
    results = ex.map(double, inputs, buffersize=3, ordered=ordered, chunksize=chunksize)
    assert 1 <= inputs.taken <= 3 * chunksize
    taken = set(itertools.islice(results, 20))
    assert len(taken) == 20
    assert inputs.taken <= 20 + 4 * chunksize
    results.close()
    before = inputs.taken
    assert list(results) == []
    assert inputs.taken == before


def meet(number: int, place: Path) -> int:
    """Returns when two are here."""
    (place / str(number)).touch()
    while len(list(place.iterdir())) < 2:
        time.sleep(0.005)
    return number


def test_inputs_are_read_on_while_there_are_no_results(ex: plait.Executor, tmp_path: Path) -> None:
    def inputs() -> Iterator[int]:
        for number in range(2):
            time.sleep(0.005)
            yield number

    assert list(ex.map(meet, inputs(), [tmp_path] * 2, timeout=60)) == [0, 1]


def test_without_a_buffersize_the_window_is_bounded_too(ex: plait.Executor) -> None:
    inputs = Counted()
    results = ex.map(double, inputs)
    next(results)
    assert inputs.taken <= 5 * max(ex.workers, 2)
    for _ in range(500):
        next(results)
    assert inputs.taken <= 500 + 2100


def test_no_more_jobs_are_in_flight_than_the_buffersize(near: plait.Executor) -> None:
    lock = threading.Lock()
    given, most = 0, 0

    def inputs() -> Iterator[int]:
        nonlocal given, most
        for x in range(100):
            with lock:
                given += 1
                most = max(most, given - consumed)
            yield x

    consumed = 0
    for _ in near.map(double, inputs(), buffersize=5):
        consumed += 1
    assert consumed == 100
    assert most <= 6


class Result:
    """Something a weak reference can follow."""


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 5])
def test_a_result_is_let_go_of_once_it_was_given_out(
    near: plait.Executor, ordered: bool, chunksize: int
) -> None:
    def make(_: int) -> Result:
        return Result()

    count = 0
    for result in near.map(make, range(60), ordered=ordered, chunksize=chunksize):
        follow = weakref.ref(result)
        del result
        count += 1
        if count < 20:
            continue  # The jobs that ``auto`` watches may be held for a moment longer.
        for _ in range(100):
            if follow() is None:
                break
            time.sleep(0.01)
        assert follow() is None


def test_the_inputs_are_let_go_of_too(near: plait.Executor) -> None:
    def make() -> Iterator[Result]:
        for _ in range(30):
            thing = Result()
            follow.append(weakref.ref(thing))
            yield thing
            del thing

    follow: list[weakref.ref[Result]] = []
    for _ in near.map(lambda thing: None, make()):
        pass
    for _ in range(200):
        if not any(reference() for reference in follow[:-1]):
            break
        time.sleep(0.01)
    assert [reference() for reference in follow[:-1]] == [None] * 29


@pytest.mark.parametrize("function", [invert, invert_later])
@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_an_error_is_raised_in_its_turn_after_the_results_before_it(
    ex: plait.Executor, function: Any, chunksize: int
) -> None:
    results = ex.map(function, [4, 2, 1, 5, 0, 10], chunksize=chunksize)
    assert list(itertools.islice(results, 4)) == [0.25, 0.5, 1.0, 0.2]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert not hasattr(caught.value, "_plait_values")
    assert list(results) == []
    assert ex.submit(double, 1).result() == 2


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_of_the_inputs_comes_after_the_results_before_it(
    ex: plait.Executor, chunksize: int, ordered: bool
) -> None:
    def inputs() -> Iterator[int]:
        yield from range(6)
        raise LookupError("no more lines")

    results = ex.map(double, inputs(), chunksize=chunksize, ordered=ordered)
    assert sorted(itertools.islice(results, 6)) == [0, 2, 4, 6, 8, 10]
    with pytest.raises(LookupError, match="no more lines"):
        next(results)


def test_closing_cancels_what_has_not_begun(near: plait.Executor) -> None:
    gate = threading.Event()
    ran = []

    def wait(x: int) -> int:
        ran.append(x)
        if x:
            gate.wait(30)
        return x

    untouched = near.map(wait, range(1, 100), buffersize=50)
    untouched.close()
    assert list(untouched) == []
    gate.set()
    assert near.submit(double, 1).result() == 2
    gate.clear()
    begun = near.map(wait, itertools.count(), buffersize=50)
    assert next(begun) == 0
    begun.close()
    gate.set()
    assert list(begun) == []
    near.shutdown()
    assert len(ran) < 20


def test_leaving_the_loop_ends_the_map(near: plait.Executor) -> None:
    for result in near.map(nap, itertools.repeat(0.001), buffersize=4):
        assert result == 0.001
        break
    near.shutdown()


@pytest.mark.parametrize("ordered", [True, False])
def test_the_timeout_is_for_the_whole_map(near: plait.Executor, ordered: bool) -> None:
    gate = threading.Event()
    results = near.map(gate.wait, [30, 30], timeout=0.05, ordered=ordered)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    gate.set()
    assert list(near.map(double, range(5), timeout=30, ordered=ordered)) == [0, 2, 4, 6, 8]


def test_a_map_that_nobody_iterates_over_says_so(near: plait.Executor) -> None:
    with pytest.warns(RuntimeWarning, match=r"map\(double, ...\) was dropped .* only its first 3 jobs run"):
        near.map(double, range(100), buffersize=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near.map(double, range(2), buffersize=3)  # All of it runs: nothing to say.
        results = near.map(double, range(100), buffersize=3)
        next(results)
        del results
        gc.collect()


def test_bad_numbers_are_refused_at_once(near: plait.Executor) -> None:
    inputs = Counted()
    for wrong in ({"chunksize": 0}, {"chunksize": -3}, {"buffersize": 0}, {"retries": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            near.map(double, inputs, **wrong)
    for mistyped in ({"chunksize": 1.5}, {"chunksize": True}, {"buffersize": "3"}, {"name": 1}):
        with pytest.raises(TypeError, match=f"{next(iter(mistyped))} must be"):
            near.map(double, inputs, **mistyped)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        near.map(double, 3)  # type: ignore[arg-type]
    assert inputs.taken == 0


def test_chunks_keep_what_belongs_to_each_input(ex: plait.Executor) -> None:
    assert list(ex.map(add, range(23), range(23), chunksize=5)) == [2 * x for x in range(23)]
    assert list(ex.map(lambda x: double(x), range(23), chunksize=5)) == [2 * x for x in range(23)]


def test_retries_count_for_each_input_also_with_chunks(near: plait.Executor) -> None:
    calls: dict[int, int] = {}

    def fail_once(x: int) -> int:
        calls[x] = calls.get(x, 0) + 1
        if calls[x] == 1 and x % 2:
            raise ConnectionError(x)
        return x

    assert list(near.map(fail_once, range(6), chunksize=3, retries=1)) == list(range(6))
    assert calls == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 2}


def test_two_maps_at_once(ex: plait.Executor) -> None:
    pairs = zip(ex.map(double, range(50)), ex.map(add, range(50), range(50)), strict=True)
    assert all(x == y for x, y in pairs)


def test_the_window_grows_for_short_jobs_and_not_for_long_ones() -> None:
    with plait.Executor("threads", 2) as ex:
        short, long = Counted(), Counted()
        for _ in zip(range(3000), ex.map(double, short), strict=False):
            pass
        assert short.taken > 3000 + 8
        for _ in zip(range(40), ex.map(lambda _: time.sleep(0.02), long), strict=False):
            pass
        assert long.taken <= 40 + 9


@pytest.fixture
def processes() -> Iterator[plait.Executor]:
    with plait.Executor("processes", 2) as executor:
        yield executor


def touch(path: str) -> str:
    Path(path).touch()
    return path


def test_no_item_waits_for_the_input_after_it(processes: plait.Executor, tmp_path: Path) -> None:
    def inputs() -> Iterator[str]:
        for at in range(40):
            yield str(tmp_path / str(at))
            # Every item has run before there is another input: none waits for company.
            limit = time.monotonic() + 30
            while not (tmp_path / str(at)).exists():
                assert time.monotonic() < limit, f"item {at} waits"
                time.sleep(0.001)

    assert list(processes.map(touch, inputs(), buffersize=40)) == [
        str(tmp_path / str(at)) for at in range(40)
    ]


def exit_at_two(x: int) -> int:
    if x == 2:
        os._exit(3)
    return x


def exit_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    return path


def test_a_worker_that_dies_costs_one_item(processes: plait.Executor, tmp_path: Path) -> None:
    results = processes.map(exit_at_two, range(5), buffersize=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(plait.WorkerDied, match="exit_at_two"):
        next(results)
    assert list(results) == []
    paths = [str(tmp_path / str(at)) for at in range(5)]
    assert list(processes.map(exit_once, paths, retries=1, ordered=True)) == paths


def test_a_timeout_is_for_each_item(processes: plait.Executor) -> None:
    assert list(processes.map(nap, [0.0] * 4)) == [0.0] * 4  # The start of workers takes time, too.
    results = processes.options(timeout=4.0).map(nap, [0.0, 600.0, 0.0])
    assert next(results) == 0.0
    with pytest.raises(plait.TaskTimeout):
        next(results)


def add_one(things: list[int]) -> int:
    things.append(1)
    return len(things)


def test_items_share_nothing(processes: plait.Executor) -> None:
    thing: list[int] = []
    assert list(processes.map(add_one, [thing] * 50)) == [1] * 50


def test_an_argument_that_cannot_be_pickled_fails_in_its_turn(processes: plait.Executor) -> None:
    results = processes.map(repr, [1, threading.Lock(), 2])
    assert next(results) == "1"
    with pytest.raises(TypeError, match=r"repr cannot be sent .* argument 1"):
        next(results)
    assert list(results) == []


PLAIN = [
    *(
        0,
        1,
        -1,
        255,
        256,
        65535,
        65536,
        -(2**31),
        2**31,
        2**63 - 1,
        -(2**63),
        2**63,
        2**200,
        True,
        False,
        None,
    ),
    *(0.0, -1.5, float("inf"), 1e300, "", "a", "é" * 127, "x" * 255, "x" * 256, "\udc80", b"", b"y" * 255),
    *(b"z" * 300, (), (1,), (1, 2), (1, "b", None), (1, 2, 3, 4), ((1,),), [1], {"a": 1}),
]


def same(value: Any) -> Any:
    return value


def test_values_come_back_as_they_went(processes: plait.Executor) -> None:
    back = list(processes.map(same, PLAIN))
    assert back == PLAIN
    assert list(map(type, back)) == list(map(type, PLAIN))
    assert list(processes.map(max, range(9), range(8, -1, -1), [4] * 9)) == [8, 7, 6, 5, 4, 5, 6, 7, 8]


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_fork_cannot_go_on_with_a_map(processes: plait.Executor) -> None:
    results = processes.map(double, range(1000))
    assert next(results) == 0
    child = os.fork()
    if child == 0:
        try:
            list(results)
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert list(results) == [2 * x for x in range(1, 1000)]
