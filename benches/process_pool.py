"""The process pool against its peers, two workers: `python benches/process_pool.py --help`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any, cast

import numpy
import pebble
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from mpire.pool import WorkerPool

import plait
from harness import (
    OURS,
    OfExecutor,
    OfMultiprocessing,
    OfPebble,
    Pool,
    Row,
    Sample,
    main,
    map_chunks,
    map_items,
    round_trip,
    submit_and_result,
    tree_cpu,
    warm,
)
from light import nothing

WORKERS = 2
SIZE = 64 * 2**20


def last_of(array: Any) -> int:
    """Takes an array and gives next to nothing."""
    return int(array[-1])


def ones(size: int) -> Any:
    """Takes next to nothing and gives an array."""
    return numpy.ones(size, numpy.uint8)


def array_in(make: Callable[[], Pool]) -> Sample:
    """Gigabytes per second of 64 MiB arrays, each a new one, as an argument."""
    times = []
    with warm(make) as pool:
        cpu = 0.0
        for turn in range(12):
            array = numpy.full(SIZE, turn, numpy.uint8)
            before, began = tree_cpu(), time.perf_counter()
            assert pool.result(pool.submit(last_of, array)) == turn
            times.append(time.perf_counter() - began)
            cpu += tree_cpu() - before
    return Sample(SIZE / median(times) / 1e9, cpu / len(times))


def array_out(make: Callable[[], Pool]) -> Sample:
    """Gigabytes per second of 64 MiB arrays, made by the worker and received."""
    times = []
    with warm(make) as pool:
        cpu = tree_cpu()
        for _ in range(12):
            began = time.perf_counter()
            array = pool.result(pool.submit(ones, SIZE))
            times.append(time.perf_counter() - began)
            assert array[-1] == 1
            del array
        cpu = tree_cpu() - cpu
    return Sample(SIZE / median(times) / 1e9, cpu / len(times))


_inherited: Any = None


def _inherit(array: Any) -> None:
    global _inherited
    _inherited = array


def byte_of_inherited(at: int) -> int:
    """Reads what an initializer has put into a global, which a fork has for nothing."""
    return int(_inherited[at])


def byte_of_shared(shared: plait.Shared[Any], at: int) -> int:
    """Reads what `plait.share` gives."""
    return int(shared.value[at])


def byte_of(array: Any, at: int) -> int:
    """Reads an argument, which joblib puts into a file that it maps."""
    return int(array[at])


def thousand_tasks(make: Callable[[], Pool]) -> Sample:
    """Milliseconds for 1,000 tasks that each read a byte of one array of 1 GiB, which is there before.

    plait shares it; joblib writes arguments of that size to a file, once; the standard pools have it in a
    global that workers inherit by fork, as an initializer's argument.
    """
    array = numpy.ones(2**30, numpy.uint8)
    pool = make()
    if isinstance(pool, Joblib):
        calls = [delayed(byte_of)(array, at) for at in range(1000)]
    elif isinstance(pool, OfExecutor) and isinstance(pool.executor, plait.Executor):
        shared = plait.share(array)
        calls = [(byte_of_shared, shared, at) for at in range(1000)]
    else:
        pool.close()
        fork = multiprocessing.get_context("fork")
        if isinstance(pool, OfMultiprocessing):
            pool = OfMultiprocessing(fork.Pool(WORKERS, _inherit, (array,)))
        elif isinstance(pool, OfExecutor):
            executor = ProcessPoolExecutor(WORKERS, fork, _inherit, (array,))
            pool = OfExecutor(executor)
        else:
            raise SystemExit("nothing to share a value by")
        calls = [(byte_of_inherited, at) for at in range(1000)]

    def run() -> Any:
        if isinstance(pool, Joblib):
            return pool.parallel(calls)
        return [pool.result(job) for job in [pool.submit(*call) for call in calls]]

    try:
        run()  # workers have imported what they need, and joblib's file is there
        cpu, began = tree_cpu(), time.perf_counter()
        assert sum(run()) == 1000
        elapsed = time.perf_counter() - began
        return Sample(elapsed * 1000, (tree_cpu() - cpu) / 1000)
    finally:
        pool.close()


def first_result(make: Callable[[], Pool]) -> Sample:
    """Milliseconds from making a pool to its first result.

    The function's module imports nothing. Peers that fork this process, with all that it has imported, import
    nothing either; those that start afresh import their own modules.
    """
    began = time.perf_counter()
    pool = make()
    pool.result(pool.submit(nothing))
    elapsed = time.perf_counter() - began
    pool.close()
    return Sample(elapsed * 1000)


class Loky(OfExecutor):
    """The executor inside joblib, for single jobs."""

    def __init__(self) -> None:
        super().__init__(get_reusable_executor(max_workers=WORKERS))

    def close(self) -> None:
        self.executor.shutdown(kill_workers=True)  # type: ignore[call-arg]


class OfMpire:
    """mpire's pools, whose workers stay: one for jobs, one for maps, as one cannot have both in turn."""

    def __init__(self) -> None:
        self.pool = WorkerPool(WORKERS, keep_alive=True)
        self.mapping = WorkerPool(WORKERS, keep_alive=True)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(fn, args)

    def result(self, job: Any) -> Any:
        return job.get()

    def map(self, fn: Callable[[Any], Any], items: range, chunksize: int | None = None) -> list[Any]:
        return list(self.mapping.imap(fn, items, chunk_size=chunksize))

    def close(self) -> None:
        self.pool.terminate()
        self.mapping.terminate()


class Joblib:
    """joblib's own face: it batches the items of a map, and memory-maps arrays."""

    def __init__(self) -> None:
        self.parallel = Parallel(n_jobs=WORKERS)
        self.parallel.__enter__()

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.parallel([delayed(fn)(*args)])

    def result(self, job: Any) -> Any:
        return job[0]

    def map(self, fn: Callable[[Any], Any], items: range, chunksize: int | None = None) -> list[Any]:
        self.parallel.batch_size = chunksize or "auto"
        found: list[Any] = self.parallel(delayed(fn)(item) for item in items)
        return found

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)


def with_joblib(measure: Callable[[Callable[[], Pool]], Sample]) -> Callable[[Callable[[], Pool]], Sample]:
    """The same measurement, with joblib at its best for it: not through the executor inside."""
    return lambda make: measure(Joblib if cast(object, make) is Loky else make)


if __name__ == "__main__":
    main(
        "process pool",
        __file__,
        {
            OURS: lambda: OfExecutor(plait.Executor("processes", workers=WORKERS)),
            "concurrent.futures": lambda: OfExecutor(ProcessPoolExecutor(WORKERS)),
            "multiprocessing": lambda: OfMultiprocessing(multiprocessing.Pool(WORKERS)),
            "pebble": lambda: OfPebble(pebble.ProcessPool(max_workers=WORKERS), None),
            "joblib (loky)": Loky,
            "mpire": OfMpire,
        },
        [
            Row("submit + result", "/s", submit_and_result),
            Row("map", "/s", with_joblib(map_items)),
            Row("map, chunksize 100", "/s", with_joblib(map_chunks)),
            Row("round trip, p50", "µs", round_trip, higher_is_better=False),
            Row("64 MiB array as argument", "GB/s", with_joblib(array_in)),
            Row("64 MiB made and returned", "GB/s", with_joblib(array_out)),
            Row("1,000 tasks read a shared GiB", "ms", with_joblib(thousand_tasks), higher_is_better=False),
            Row("first result of a new pool", "ms", first_result, higher_is_better=False),
        ],
    )
