"""`ProcessPool`: what may be sent and how it arrives, what a function may close over, data of every size."""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import gc
import importlib
import io
import operator
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait._job import JobOptions
from plait.errors import ArgumentNotPicklable, ResultNotPicklable
from plait.process_pool import ProcessPool


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    """Two workers for the tests of this file that need none of their own."""
    pool = ProcessPool(2)
    yield pool
    pool.shutdown()


def call(pool: ProcessPool, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run one job."""
    return pool.submit(fn, args, kwargs).result(60)


def failure(pool: ProcessPool, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseException:
    """Run one job that fails."""
    error = pool.submit(fn, args, kwargs).exception(60)
    assert error is not None
    return error


def double(value: Any) -> Any:
    """Something importable."""
    return value * 2


def echo(*args: Any, **kwargs: Any) -> Any:
    """What it was given."""
    return args if not kwargs else (args, kwargs)


def same(value: Any) -> Any:
    """What it was given, alone."""
    return value


class Adder:
    """Something callable, with state."""

    def __init__(self, to: int) -> None:
        self.to = to

    def __call__(self, value: int) -> int:
        return self.to + value

    def add(self, value: int) -> int:
        """The same as a bound method."""
        return self.to + value

    @classmethod
    def of_class(cls, value: int) -> tuple[str, int]:
        """A class method."""
        return cls.__name__, value

    @staticmethod
    def of_nothing(value: int) -> int:
        """A static method."""
        return value + 7


# Functions of every kind.


def test_functions_of_every_kind_run(pool: ProcessPool) -> None:
    five = 5

    class Local:
        def __call__(self, value: int) -> int:
            return value + five

    def closure(value: int) -> int:
        return value * five

    async def coroutine(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    assert call(pool, double, 4) == 8
    assert call(pool, lambda value: value - five, 4) == -1
    assert call(pool, closure, 4) == 20
    assert call(pool, Local(), 4) == 9
    assert call(pool, functools.partial(double, 4)) == 8
    assert call(pool, functools.partial(closure, value=4)) == 20
    assert call(pool, Adder(3).add, 4) == 7
    assert call(pool, Adder(3), 4) == 7
    assert call(pool, Adder.of_class, 4) == ("Adder", 4)
    assert call(pool, Adder.of_nothing, 4) == 11
    assert call(pool, "a-b".split, "-") == ["a", "b"]
    assert call(pool, len, [1, 2]) == 2
    assert call(pool, operator.itemgetter(1), "ab") == "b"
    assert call(pool, int, "12") == 12
    assert call(pool, coroutine, 4) == 5
    assert call(pool, functools.partial(coroutine, 5)) == 6
    assert call(pool, echo, 1, two=2) == ((1,), {"two": 2})
    assert type(call(pool, Local)).__name__ == "Local"


@pytest.mark.parametrize("times", [1, 3])
def test_a_local_class_keeps_its_identity_on_the_way_there_and_back(pool: ProcessPool, times: int) -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    for x in range(times):
        point = call(pool, same, Point(x))
        assert type(point) is Point
        assert point.x == x


# What cannot be sent.


def test_a_function_that_cannot_be_pickled_is_named_with_what_refused(pool: ProcessPool) -> None:
    lock = threading.Lock()

    def holds_a_lock() -> bool:
        return lock.locked()

    error = failure(pool, holds_a_lock)
    assert isinstance(error, TypeError)
    assert isinstance(error, ArgumentNotPicklable)
    assert isinstance(error, pickle.PicklingError)
    assert "holds_a_lock" in str(error)
    assert "<closure lock>" in str(error)
    assert "_thread.lock" in str(error)


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((1, threading.Lock()), {}, "argument 2"),
        ((1,), {"stream": threading.Lock()}, "argument stream="),
        ((1, {"deep": [1, (2, threading.Lock())]}), {}, "argument 2"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(
    pool: ProcessPool, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> None:
    error = failure(pool, echo, *args, **kwargs)
    assert isinstance(error, ArgumentNotPicklable)
    assert f"{where} cannot be pickled" in str(error)
    assert "echo" in str(error)
    assert error.__cause__ is not None


def test_the_way_to_the_inner_object_that_refused_is_told(pool: ProcessPool) -> None:
    error = failure(pool, echo, {"deep": [1, (2, threading.Lock())]})
    assert "['deep'][1][1]" in str(error)
    assert "_thread.lock" in str(error)
    box = types.SimpleNamespace(connections=[threading.Lock()])
    assert ".connections[0]" in str(failure(pool, echo, box))


def test_a_result_that_cannot_be_pickled_fails_only_its_job(pool: ProcessPool) -> None:
    error = failure(pool, lambda: {"handle": threading.Lock()})
    assert isinstance(error, ResultNotPicklable)
    assert "['handle']" in str(error)
    assert "_thread.lock" in str(error)
    assert call(pool, double, 1) == 2


class Hostile:
    """Does `what` when it is pickled."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        if self.what == "exit":
            sys.exit(3)
        if self.what == "interrupt":
            raise KeyboardInterrupt
        if self.what == "repr":
            raise ValueError("no pickle")
        raise RecursionError("too deep")

    def __repr__(self) -> str:
        if self.what == "repr":
            raise ValueError("no repr")
        return f"Hostile({self.what})"


@pytest.mark.parametrize("what", ["exit", "interrupt", "recurse", "repr"])
def test_a_result_that_misbehaves_when_pickled_fails_only_its_job(pool: ProcessPool, what: str) -> None:
    before = set(pool.statistics()["workers"])
    error = failure(pool, Hostile, what)
    assert isinstance(error, ResultNotPicklable | SystemExit | KeyboardInterrupt)
    assert call(pool, double, 1) == 2
    assert set(pool.statistics()["workers"]) <= before | {0}


@pytest.mark.parametrize("what", ["recurse", "repr"])
def test_an_argument_that_misbehaves_when_pickled_fails_only_its_job(pool: ProcessPool, what: str) -> None:
    assert isinstance(failure(pool, same, Hostile(what)), ArgumentNotPicklable)
    assert call(pool, double, 1) == 2


def raise_on_load(kind: str) -> Any:
    """What an unpickled `Trap` does."""
    if kind == "exit":
        sys.exit(7)
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise ValueError("caught in the trap")


class Trap:
    """Raises when it is unpickled."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return raise_on_load, (self.kind,)


TRAPS = {"raise": ValueError, "exit": SystemExit, "interrupt": KeyboardInterrupt}


@pytest.mark.parametrize("kind", TRAPS)
def test_an_argument_that_raises_when_unpickled_fails_only_its_job(pool: ProcessPool, kind: str) -> None:
    assert type(failure(pool, same, Trap(kind))) is TRAPS[kind]
    assert call(pool, double, 1) == 2


@pytest.mark.parametrize("kind", TRAPS)
def test_a_result_that_raises_when_unpickled_fails_only_its_job(pool: ProcessPool, kind: str) -> None:
    assert type(failure(pool, Trap, kind)) is TRAPS[kind]
    assert call(pool, double, 1) == 2


# Exceptions.


class TwoArguments(Exception):
    """Is pickled with one argument and wants two."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def fail_with(kind: Callable[..., BaseException], *args: Any) -> None:
    """Raise something made here."""
    raise kind(*args)


def test_an_exception_arrives_as_itself_with_its_remote_traceback(pool: ProcessPool) -> None:
    class Local(ValueError):
        pass

    error = failure(pool, fail_with, KeyError, "gone")
    assert type(error) is KeyError
    assert error.args == ("gone",)
    assert "in fail_with" in str(error.__cause__)
    local = failure(pool, fail_with, Local, 1, 2)
    assert type(local) is Local
    assert local.args == (1, 2)


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, CancelledError]
)
def test_every_kind_of_exception_is_the_jobs_outcome(pool: ProcessPool, kind: type[BaseException]) -> None:
    workers = set(pool.statistics()["workers"])
    with pytest.raises(kind):
        pool.submit(fail_with, (kind, 1), {}).result(60)
    assert call(pool, double, 1) == 2
    assert set(pool.statistics()["workers"]) <= workers | {0}


def test_an_exception_group_arrives_whole(pool: ProcessPool) -> None:
    error = failure(pool, fail_with, ExceptionGroup, "several", [ValueError(1), KeyError(2)])
    assert isinstance(error, ExceptionGroup)
    assert [type(inner) for inner in error.exceptions] == [ValueError, KeyError]


def test_an_exception_whose_pickle_lies_fails_with_the_text_of_what_happened(pool: ProcessPool) -> None:
    error = failure(pool, fail_with, TwoArguments, 1, 2)
    assert isinstance(error, ResultNotPicklable)
    assert "TwoArguments" in str(error)
    assert "1 and 2" in str(error)
    assert "in fail_with" in str(error)
    assert call(pool, double, 1) == 2


def test_an_exception_that_cannot_be_pickled_fails_with_its_text(pool: ProcessPool) -> None:
    error = failure(pool, fail_with, HoldsALock)
    assert isinstance(error, ResultNotPicklable)
    assert "HoldsALock" in str(error)
    assert "in fail_with" in str(error)


def dive(depth: int = 0) -> int:
    """Never comes back."""
    return dive(depth + 1) + 1


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_recursion_errors_are_ordinary_failures(pool: ProcessPool) -> None:
    assert isinstance(failure(pool, dive), RecursionError)
    assert isinstance(failure(pool, nested, 100_000), ResultNotPicklable)
    assert isinstance(failure(pool, same, nested(100_000)), ArgumentNotPicklable)
    assert call(pool, double, 1) == 2


def test_a_huge_exception_arrives_whole(pool: ProcessPool) -> None:
    error = failure(pool, lambda: fail_with(ValueError, "x" * 3_000_000))
    assert isinstance(error, ValueError)
    assert error.args == ("x" * 3_000_000,)


# What a function closes over.


def test_a_function_is_sent_as_it_is_when_it_is_submitted(pool: ProcessPool) -> None:
    seen: list[int] = []
    number = 0

    def look() -> tuple[list[int], int]:
        return seen, number

    for at in range(3):
        seen.append(at)
        number = at * 1_000_000
        assert call(pool, look) == (seen, at * 1_000_000)


def test_a_closure_whose_constant_is_bound_anew_is_sent_anew(pool: ProcessPool) -> None:
    """Also if the new value lies where an older one lay before it was freed."""
    value: Any = None

    def look() -> Any:
        return value

    for at in range(50):
        value = f"{at} {'x' * 20}"
        assert call(pool, look) == value
        # Frees the value that was sent, and (most likely) puts another one in its place.
        value = None
        value = f"{at} {'y' * 20}"
        assert call(pool, look) == value


def test_a_function_whose_defaults_and_code_change_is_sent_anew(pool: ProcessPool) -> None:
    def look(value: int = 1) -> int:
        return value

    def other(value: int = 1) -> int:
        return -value

    assert call(pool, look) == 1
    look.__defaults__ = (1_000_001,)
    assert call(pool, look) == 1_000_001
    look.__code__ = other.__code__
    assert call(pool, look) == -1_000_001


def test_more_functions_than_a_worker_remembers(pool: ProcessPool) -> None:
    def make(number: int) -> Callable[[int], int]:
        return lambda value: value * 1_000 + number

    functions = [make(number) for number in range(600)]
    for _ in range(2):
        futures = [pool.submit(function, (2,), {}) for function in functions]
        assert [future.result(60) for future in futures] == [2_000 + number for number in range(600)]


def test_a_pool_whose_slots_are_used_up_refuses_jobs_after_shutdown_like_any_other() -> None:
    pool = ProcessPool(1)

    def make(number: int) -> Callable[[], int]:
        return lambda: number

    for number in range(300):
        pool.submit(make(number), (), {})
    functions = [make(number) for number in range(300)]
    assert [pool.submit(function, (), {}).result(60) for function in functions] == list(range(300))
    pool.shutdown()
    for function in (*functions, make(300)):
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(function, (), {})


def test_a_new_function_where_an_old_one_lay_is_another_function(pool: ProcessPool) -> None:
    def make(number: int) -> Callable[[], int]:
        return lambda: number

    for number in range(1_000):
        future = pool.submit(make(number), (), {})
        if number % 7 == 0:
            assert future.result(60) == number
    gc.collect()


def test_a_frozen_function_is_what_it_was_when_it_was_frozen(pool: ProcessPool) -> None:
    seen = [1]
    frozen = pool.freeze(lambda value: (seen, value))
    seen.append(2)
    assert call(pool, frozen, 3) == ([1], 3)
    assert call(pool, frozen, 4) == ([1], 4)
    assert frozen(5) == ([1, 2], 5)
    with pytest.raises(ArgumentNotPicklable):
        pool.freeze(threading.Lock().acquire)


def test_a_function_of_a_module_that_workers_cannot_import(pool: ProcessPool) -> None:
    module = types.ModuleType("only_here")
    exec("def invisible():\n    return 1\n", module.__dict__)
    sys.modules["only_here"] = module
    try:
        error = failure(pool, module.invisible)
    finally:
        del sys.modules["only_here"]
    assert isinstance(error, ModuleNotFoundError)
    assert "only_here" in str(error)
    assert call(pool, double, 1) == 2


# Data.

ARRAYS: dict[str, Callable[[], Any]] = {
    "C order": lambda: np.arange(120_000.0).reshape(300, 400),
    "Fortran order": lambda: np.asfortranarray(np.arange(120_000.0).reshape(300, 400)),
    "strided": lambda: np.arange(120_000.0).reshape(300, 400)[::2, ::-3],
    "read-only": lambda: frozen_array(),
    "empty": lambda: np.empty((0, 7)),
    "no dimension": lambda: np.array(3.5),
    "objects": lambda: np.array([1, "two", None, [3]], dtype=object),
    "structured": lambda: np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "large structured": lambda: np.ones(20_000, dtype=[("a", "i4"), ("b", "f8")]),
    "masked": lambda: np.ma.masked_greater(np.arange(20_000), 5),
    "dates": lambda: np.array(["2020-01-01"] * 10_000, dtype="M8[D]"),
    "big endian": lambda: np.arange(20_000, dtype=">i4"),
}


def frozen_array() -> Any:
    """An array that nobody may write to."""
    value = np.arange(50_000)
    value.flags.writeable = False
    return value


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_kind_go_there_and_back(pool: ProcessPool, name: str) -> None:
    value = ARRAYS[name]()
    back = call(pool, same, value)
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    np.testing.assert_array_equal(back, value)
    assert back.flags.writeable or name == "read-only"


SIZES = sorted(
    {
        size + by
        for size in (0, 1, 4096, 16 << 10, 32 << 10, 64 << 10, 256 << 10, 1 << 20)
        for by in (-200, -129, -1, 0, 1)
        if size + by >= 0
    }
)


@pytest.mark.parametrize("kind", [bytes, bytearray, np.frombuffer], ids=lambda kind: kind.__name__)
def test_bytes_of_every_size_go_there_and_back(pool: ProcessPool, kind: Callable[[bytes], Any]) -> None:
    futures = []
    for size in SIZES:
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        value = np.frombuffer(data, np.uint8) if kind is np.frombuffer else kind(data)
        futures.append((data, value, pool.submit(echo, (value, size), {"again": value})))
    for data, value, future in futures:
        (back, size), keywords = future.result(60)
        assert type(back) is type(value)
        assert size == len(data)
        assert bytes(back) == data
        assert bytes(keywords["again"]) == data


def test_buffers_that_pickle_knows_otherwise(pool: ProcessPool) -> None:
    assert call(pool, same, array.array("d", range(10_000))) == array.array("d", range(10_000))
    assert bytes(call(pool, same, memoryview(b"abc"))) == b"abc"
    assert call(pool, same, pickle.PickleBuffer(bytearray(b"x" * 100_000))) == b"x" * 100_000
    crooked = pickle.PickleBuffer(memoryview(bytes(200_000))[::2])
    assert isinstance(failure(pool, same, crooked), ArgumentNotPicklable | ValueError)
    # The exception and this frame are a cycle, and Python 3.11 crashes when it collects one with such a
    # buffer in it.
    crooked.release()
    assert call(pool, double, 1) == 2


@pytest.mark.parametrize(("count", "size"), [(10_000, 8), (50_000, 1), (3_000, 9_000)])
def test_very_many_buffers_in_one_call(pool: ProcessPool, count: int, size: int) -> None:
    values = [np.full(size, at % 200, np.uint8) for at in range(count)]
    assert call(pool, total, values) == sum(at % 200 for at in range(count)) * size
    back = call(pool, many, count, size)
    assert len(back) == count
    assert all(value[0] == at % 200 and value.size == size for at, value in enumerate(back))


def total(values: list[Any]) -> int:
    """The sum of all that is in many arrays."""
    return sum(int(value.sum(dtype=np.int64)) for value in values)


def many(count: int, size: int) -> list[Any]:
    """Many arrays."""
    return [np.full(size, at % 200, np.uint8) for at in range(count)]


def overwrite(value: Any) -> float:
    """Write on an argument, which belongs to this job."""
    first = float(value[0])
    value[:] = -1.0
    return first


@pytest.mark.parametrize("length", [10, 100_000])
def test_what_a_job_does_to_its_arguments_stays_with_it(pool: ProcessPool, length: int) -> None:
    value = np.full(length, 5.0)
    assert call(pool, overwrite, value) == 5.0
    assert (value == 5.0).all()


def overwrite_and_fail_once(value: Any, marker: Path) -> list[float]:
    """Spoil the argument and fail, the first time; give back what it was, the second."""
    seen = [float(value[0]), float(value[-1])]
    value[:] = -1.0
    with contextlib.suppress(FileExistsError):
        marker.touch(exist_ok=False)
        raise OSError("the first time")
    return seen


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_retry_finds_its_arguments_as_they_were(pool: ProcessPool, tmp_path: Path, length: int) -> None:
    value = np.arange(length, dtype=float) + 1
    future = pool.submit(overwrite_and_fail_once, (value, tmp_path / "marker"), {}, JobOptions(retries=1))
    assert future.result(60) == [1.0, float(length)]


KEPT: list[Any] = []


def keep(value: Any) -> int:
    """Hold on to an argument beyond the job."""
    KEPT.append(value)
    return len(KEPT)


def kept_sum() -> float:
    """What the kept arguments hold."""
    return float(sum(value.sum() for value in KEPT))


def test_an_argument_that_a_worker_keeps_stays_valid() -> None:
    pool = ProcessPool(1)
    try:
        for at in range(4):
            call(pool, keep, np.full(200_000, float(at)))
        for _ in range(20):
            call(pool, same, np.full(200_000, 77.0))
        assert call(pool, kept_sum) == 200_000.0 * (0 + 1 + 2 + 3)
    finally:
        pool.shutdown()


def make_array(value: float, length: int) -> Any:
    """A large result."""
    return np.full(length, value)


def test_results_outlive_their_pool() -> None:
    pool = ProcessPool(2)
    results = [pool.submit(make_array, (float(at), 300_000), {}) for at in range(8)]
    arrays = [future.result(60) for future in results]
    pool.shutdown()
    for at, value in enumerate(arrays):
        assert (value == at).all()
        value += 1  # it is ours to write on
        assert (value == at + 1).all()


def resident_kilobytes(pid: int) -> int:
    """How much memory a process has in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_memory_of_results_and_arguments_is_used_again() -> None:
    pool = ProcessPool(1)
    length = 1 << 20  # 8 MiB
    try:
        worker = call(pool, os.getpid)
        for at in range(500):
            if at == 50:
                begun = resident_kilobytes(os.getpid()), resident_kilobytes(worker)
            value = np.full(length, float(at)) if at % 2 else at
            function = double if at % 2 else functools.partial(make_array, length=length)
            assert call(pool, function, value)[-1] == (2 * at if at % 2 else at)
            assert pool.statistics()["blocks"] <= 4
        ended = resident_kilobytes(os.getpid()), resident_kilobytes(worker)
        assert ended[0] - begun[0] < 200_000
        assert ended[1] - begun[1] < 200_000
        assert call(pool, os.getpid) == worker
    finally:
        pool.shutdown()


# Options and the pool itself.


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": -1}, {"max_tasks_per_worker": 0}])
def test_counts_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        ProcessPool(**options)


def test_workers_are_replaced_after_so_many_jobs() -> None:
    pool = ProcessPool(1, max_tasks_per_worker=3)
    try:
        pids = [call(pool, os.getpid) for _ in range(9)]
    finally:
        pool.shutdown()
    assert len(set(pids)) == 3
    assert all(pids[at] == pids[at + 2] for at in (0, 3, 6))


def test_nothing_is_submitted_after_shutdown() -> None:
    pool = ProcessPool(1)
    future = pool.submit(double, (1,), {})
    pool.shutdown()
    assert future.result(0) == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(double, (1,), {})
    pool.shutdown()


def wait_for(path: Path) -> str:
    """Wait until there is a file."""
    import time

    while not path.exists():
        time.sleep(0.002)
    return path.name


def test_pending_jobs_can_be_cancelled(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    go = tmp_path / "go"
    try:
        first = pool.submit(wait_for, (go,), {})
        others = [pool.submit(double, (at,), {}) for at in range(200)]
        cancelled = {at for at in range(0, 200, 3) if others[at].cancel()}
        assert len(cancelled) > 50, "only a few jobs may have been sent ahead"
        go.touch()
        assert first.result(60) == "go"
        for at, future in enumerate(others):
            assert future.cancelled() == (at in cancelled)
            assert at in cancelled or future.result(60) == 2 * at
    finally:
        pool.shutdown()


@pytest.mark.parametrize("submitted", [3, 500])
def test_shutdown_can_cancel_what_has_not_run(tmp_path: Path, submitted: int) -> None:
    pool = ProcessPool(2)
    go = tmp_path / "go"
    # So quick that many are sent ahead of those that then wait.
    quick = [pool.submit(double, (at,), {}) for at in range(500)]
    assert [future.result(60) for future in quick] == [2 * at for at in range(500)]
    blockers = [pool.submit(wait_for, (go,), {}) for _ in range(2)]
    futures = [pool.submit(double, (at,), {}) for at in range(submitted)]
    pool.shutdown(wait=False, cancel_futures=True)
    go.touch()
    assert not wait(futures + blockers, 60).not_done
    pool.shutdown()
    assert [future.result(0) for future in blockers] == ["go", "go"]
    for at, future in enumerate(futures):
        assert future.cancelled() or future.result(0) == 2 * at


def test_a_job_that_fails_for_the_last_time_during_shutdown_is_told(tmp_path: Path) -> None:
    """Its retry is cancelled with the others, and whoever waits is told."""
    pool = ProcessPool(1)
    go = tmp_path / "go"
    failing = pool.submit(wait_and_fail, (go,), {}, JobOptions(retries=5))
    futures = [pool.submit(double, (at,), {}) for at in range(50)]
    pool.shutdown(wait=False, cancel_futures=True)
    go.touch()
    assert not wait([failing, *futures], 60).not_done
    pool.shutdown()
    assert failing.cancelled() or isinstance(failing.exception(0), ValueError)


def wait_and_fail(path: Path) -> None:
    """Fail, once there is a file."""
    wait_for(path)
    raise ValueError("it failed")


def test_retries_are_counted(pool: ProcessPool, tmp_path: Path) -> None:
    for retries in (0, 1, 3):
        log = tmp_path / f"log-{retries}"
        future = pool.submit(log_and_fail, (log,), {}, JobOptions(retries=retries))
        assert isinstance(future.exception(60), ValueError)
        assert log.read_text() == "x" * (retries + 1)


def log_and_fail(path: Path) -> None:
    """Leave a mark and fail."""
    with path.open("a") as log:
        log.write("x")
    raise ValueError("again")


def test_a_coroutine_keeps_its_loop(pool: ProcessPool) -> None:
    async def loop_id() -> tuple[int, int]:
        return os.getpid(), id(asyncio.get_running_loop())

    seen = dict(call(pool, loop_id) for _ in range(20))
    again = dict(call(pool, loop_id) for _ in range(20))
    assert all(seen.get(pid, loop) == loop for pid, loop in again.items())


def test_an_unreferenced_future_and_its_arguments_are_let_go(pool: ProcessPool) -> None:
    class Token:
        pass

    future = pool.submit(double, (1,), {})
    future.token = Token()  # type: ignore[attr-defined]
    gone = weakref.ref(future.token)  # type: ignore[attr-defined]
    assert future.result(60) == 2
    del future
    for _ in range(100):
        call(pool, double, 1)
        gc.collect()
        if gone() is None:
            break
    assert gone() is None


def test_an_initializer_runs_in_every_worker_before_its_jobs() -> None:
    big = np.arange(100_000)
    pool = ProcessPool(2, initializer=remember, initargs=("x", big))
    try:
        assert call(pool, recall) == ("x", int(big.sum()))
    finally:
        pool.shutdown()


STATE: list[Any] = []


def remember(name: str, value: Any) -> None:
    """An initializer."""
    STATE[:] = [name, value]


def recall() -> tuple[str, int]:
    """What the initializer left."""
    return STATE[0], int(STATE[1].sum())


def test_an_initializer_that_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="callable"):
        ProcessPool(1, initializer="no")  # type: ignore[arg-type]
    with pytest.raises(ArgumentNotPicklable, match="initializer"):
        ProcessPool(1, initializer=print, initargs=(threading.Lock(),))


def run_python(
    *arguments: str, text: str | None = None, limit: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter and look at what it says."""
    return subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, timeout=limit, check=False
    )


SCRIPT = textwrap.dedent(
    """
    import plait

    FACTOR = 3

    class Box:
        def __init__(self, value):
            self.value = value

    class Refused(Exception):
        pass

    def triple(box):
        return Box(box.value * FACTOR)

    def refuse():
        raise Refused("no")

    ex = plait.Executor("processes", workers=2)
    box = ex.submit(triple, Box(14)).result()
    print(box.value, type(box) is Box)
    try:
        ex.submit(refuse).result()
    except Refused as error:
        print("refused", error)

    print(list(ex.map(lambda value: value + FACTOR, range(3))))
    ex.shutdown()
    """
)
SAID = ["42 True", "refused no", "[3, 4, 5]"]


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "interactive"])
def test_what_is_defined_where_no_worker_can_import_it(tmp_path: Path, how: str) -> None:
    """Without any `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    match how:
        case "script":
            done = run_python(str(script))
        case "-c":
            done = run_python("-c", SCRIPT)
        case "stdin":
            done = run_python("-", text=SCRIPT)
        case _:
            # At a prompt, a compound statement ends with an empty line, and holds none.
            done = run_python(
                "-i",
                "-q",
                text=SCRIPT.replace("\n\n", "\n")
                .replace("\n", "\n\n")
                .replace("\n\n    ", "\n    ")
                .replace("\n\nexcept", "\nexcept"),
            )
    assert [line for line in done.stdout.splitlines() if line] == SAID
    assert how == "interactive" or done.stderr == ""
    assert done.returncode == 0


def test_pending_jobs_are_done_before_the_interpreter_exits() -> None:
    done = run_python(
        "-c",
        textwrap.dedent(
            """
            import plait
            ex = plait.Executor("processes", workers=2)
            for at in range(50):
                ex.submit(pow, at, 2).add_done_callback(lambda future: print(future.result()))
            """
        ),
    )
    assert sorted(map(int, done.stdout.split())) == [at**2 for at in range(50)]
    assert done.stderr == ""


@pytest.mark.parametrize("wait_for_it", [True, False])
def test_shutdown_without_waiting_and_then_exit(wait_for_it: bool) -> None:
    done = run_python(
        "-c",
        textwrap.dedent(
            f"""
            import plait, time
            ex = plait.Executor("processes", workers=2)
            futures = [ex.submit(time.sleep, 0.05) for _ in range(6)]
            futures[-1].add_done_callback(lambda future: print("done", future.result()))
            ex.shutdown(wait={wait_for_it})
            """
        ),
    )
    assert done.stdout.split() == ["done", "None"]
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_pool_that_is_forgotten_still_does_its_jobs() -> None:
    done = run_python(
        "-c",
        textwrap.dedent(
            """
            import gc, time
            from plait.process_pool import ProcessPool
            pool = ProcessPool(2)
            futures = [pool.submit(pow, (at, 2), {}) for at in range(100)]
            del pool
            gc.collect()
            print(sum(future.result(30) for future in futures))
            """
        ),
    )
    assert done.stdout.split() == [str(sum(at**2 for at in range(100)))]
    assert done.stderr == ""


def test_a_module_edited_on_disk_is_found_by_workers_that_come_later(tmp_path: Path) -> None:
    (tmp_path / "late_module.py").write_text("def answer():\n    return 42\n")
    sys.path.insert(0, str(tmp_path))
    try:
        module = importlib.import_module("late_module")
        pool = ProcessPool(1)
        try:
            assert call(pool, module.answer) == 42
        finally:
            pool.shutdown()
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("late_module", None)


def test_what_a_job_prints_comes_out() -> None:
    done = run_python(
        "-c", "import plait\nwith plait.Executor('processes', workers=1) as ex: ex.submit(print, 'hello')"
    )
    assert done.stdout == "hello\n"
    assert done.stderr == ""


def test_a_job_has_an_empty_standard_input(pool: ProcessPool) -> None:
    assert call(pool, lambda: sys.stdin.read()) == ""
    assert isinstance(failure(pool, input), EOFError)
    assert isinstance(call(pool, io.StringIO, "x"), io.StringIO)
