"""What the ledger costs a job that does nothing: `python benches/ledger.py`.

CPU time per job, workers included, of pools with and without a ledger that take turns in one process. The
goals: no more than 150 ns for a thread, no more than 2 % for a process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from plait import _rust
from plait._job import DEFAULT_OPTIONS
from plait._map import ItemFeed, Results, Window
from plait.process_pool import ProcessPool
from plait.thread_pool import ThreadPool


def nothing(_item: object = None) -> None:
    """The job."""


def cpu_of(pid: int) -> int:
    """CPU nanoseconds of a process so far: of its only thread, for a worker."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


class Threads:
    """Jobs submitted to one thread, a windowful at a time."""

    def __init__(self, ledger: _rust.Ledger | None) -> None:
        self.pool = ThreadPool(1, ledger=ledger)

    def run(self, jobs: int) -> None:
        """Run so many jobs."""
        submit = self.pool.submit
        for _ in range(jobs // 500):
            for future in [submit(nothing, (), {}, DEFAULT_OPTIONS) for _ in range(500)]:
                future.result()

    def workers(self) -> list[int]:
        """Process ids."""
        return []


class Submitted(Threads):
    """Jobs submitted to one process, a windowful at a time."""

    def __init__(self, ledger: _rust.Ledger | None) -> None:
        self.pool: Any = ProcessPool(1, ledger=ledger)

    def workers(self) -> list[int]:
        return list(self.pool.statistics()["workers"])


class Mapped(Submitted):
    """The items of a map over one process."""

    def run(self, jobs: int) -> None:
        items = self.pool.map_items(self.pool.freeze(nothing), DEFAULT_OPTIONS, ordered=True)
        inputs = ((number,) for number in range(jobs))
        for _ in Results(ItemFeed(items, "nothing", inputs, Window(2048, self.pool), None), None):
            pass


def per_job(pool: Threads, jobs: int) -> float:
    """CPU nanoseconds for one of so many jobs."""
    before = time.process_time_ns() + sum(map(cpu_of, pool.workers()))
    pool.run(jobs)
    after = time.process_time_ns() + sum(map(cpu_of, pool.workers()))
    return (after - before) / jobs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=20_000, help="in each (default: %(default)s)")
    options = parser.parse_args()
    print(f"CPU time per no-op job, {os.cpu_count()} CPUs, median of {options.rounds} pairs")
    kinds: list[tuple[str, Callable[[_rust.Ledger | None], Threads]]] = [
        ("a thread", Threads),
        ("a process, submit", Submitted),
        ("a process, map", Mapped),
    ]
    for name, kind in kinds:
        pools = [kind(None), kind(_rust.Ledger())]
        for pool in pools:
            pool.run(options.jobs)
        pairs = []
        for turn in range(options.rounds):
            order = pools if turn % 2 else pools[::-1]
            measured = {id(pool): per_job(pool, options.jobs) for pool in order}
            pairs.append([measured[id(pool)] for pool in pools])
        for pool in pools:
            pool.pool.shutdown()
        without, with_ledger = (median(pair[at] for pair in pairs) for at in (0, 1))
        more = median(one - other for other, one in pairs)
        ratio = median(one / other - 1 for other, one in pairs)
        print(
            f"{name:18} without {without:7.0f} ns, with {with_ledger:7.0f} ns:"
            f" {more:+5.0f} ns, {ratio:+.1%} (medians of the differences)"
        )


if __name__ == "__main__":
    main()
