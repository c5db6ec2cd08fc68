"""Measures ours against its peers: each measurement in a process of its own, peers alternating, as ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from plait.compare import process_tree

OURS = "plait"
SECONDS = 1.5  # How long one measurement of throughput goes on.
MOST_SECONDS = 120  # When a measurement is given up: it hangs.


@dataclass(frozen=True)
class Sample:
    """One measurement: its value in the row's unit, and the CPU time of one operation, workers included."""

    value: float
    cpu: float | None = None


class Pool(Protocol):
    """What a benchmark needs of a pool; each peer is fitted to it with as little in between as can be."""

    @property
    def submit(self) -> Callable[..., Any]:
        """Called with a function and its arguments, starts a job; `result` waits for what it gives."""

    def result(self, job: Any) -> Any:
        """The result of a job."""

    def map(self, fn: Callable[[Any], Any], items: range, chunksize: int | None = None) -> list[Any]:
        """All results; without a chunksize, whatever the pool does by itself."""

    def close(self) -> None:
        """End the workers."""


class OfExecutor:
    """A pool that is a `concurrent.futures.Executor`."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.submit: Callable[..., Any] = executor.submit

    def result(self, job: Any) -> Any:
        return job.result()

    def map(self, fn: Callable[[Any], Any], items: range, chunksize: int | None = None) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=chunksize or 1))

    def close(self) -> None:
        self.executor.shutdown()


class OfMultiprocessing:
    """A `multiprocessing.pool.Pool`, of processes or threads."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply_async(fn, args)

    def result(self, job: Any) -> Any:
        return job.get()

    def map(self, fn: Callable[[Any], Any], items: range, chunksize: int | None = None) -> list[Any]:
        found: list[Any] = self.pool.map(fn, items, chunksize)
        return found

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class OfPebble:
    """A pool of pebble, of processes or threads; ``leading`` is what its ``submit`` wants first."""

    def __init__(self, pool: Any, *leading: Any) -> None:
        self.pool = pool
        self.leading = leading

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.pool.submit(fn, *self.leading, *args)

    def result(self, job: Any) -> Any:
        return job.result()

    def map(self, fn: Callable[[Any], Any], items: range, chunksize: int | None = None) -> list[Any]:
        return list(self.pool.map(fn, items, chunksize=chunksize or 1).result())

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()


@dataclass(frozen=True)
class Row:
    """One line of the table. ``measure`` is given the function that makes a peer's pool."""

    name: str
    unit: str
    measure: Callable[[Callable[[], Pool]], Sample]
    higher_is_better: bool = True
    without: frozenset[str] = frozenset()  # peers that have nothing of the kind


def noop(*_: object) -> None:
    """The job that costs nothing."""


@contextmanager
def warm(make: Callable[[], Pool]) -> Iterator[Pool]:
    """A pool whose workers have all started."""
    pool = make()
    try:
        for job in [pool.submit(noop) for _ in range(64)]:
            pool.result(job)
        yield pool
    finally:
        pool.close()


def throughput(operation: Callable[[], int]) -> Sample:
    """Operations per second; ``operation`` does some and says how many."""
    cpu, began, count = tree_cpu(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < SECONDS:
        count += operation()
    return Sample(count / elapsed, (tree_cpu() - cpu) / count)


def submit_and_result(make: Callable[[], Pool]) -> Sample:
    """No-op jobs per second: a thousand submitted, then a thousand results."""

    def thousand() -> int:
        submit, result = pool.submit, pool.result
        for job in [submit(noop) for _ in range(1000)]:
            result(job)
        return 1000

    with warm(make) as pool:
        return throughput(thousand)


def map_items(make: Callable[[], Pool], chunksize: int | None = None) -> Sample:
    """No-op items per second through ``map``, called without tuning."""

    def ten_thousand() -> int:
        pool.map(noop, range(10_000), chunksize)
        return 10_000

    with warm(make) as pool:
        return throughput(ten_thousand)


def map_chunks(make: Callable[[], Pool]) -> Sample:
    """No-op items per second through ``map``, a hundred to a job."""
    return map_items(make, 100)


def round_trip(make: Callable[[], Pool]) -> Sample:
    """Median microseconds from submitting one job to having its result."""
    trips = []
    with warm(make) as pool:
        cpu = tree_cpu()
        for _ in range(3000):
            began = time.perf_counter()
            pool.result(pool.submit(noop))
            trips.append(time.perf_counter() - began)
        return Sample(median(trips) * 1e6, (tree_cpu() - cpu) / len(trips))


def tree_cpu() -> float:
    """Seconds of CPU time of this process and all that are below it now."""
    ticks = 0
    for pid in process_tree(os.getpid()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main(
    title: str,
    script: str,
    peers: Mapping[str, Callable[[], Pool]],
    rows: list[Row],
    versions: tuple[str, ...] = ("plait", "joblib", "mpire", "pebble", "numpy"),
) -> None:
    """The command line of a benchmark; ``script`` is its file, run again for each measurement.

    ``versions`` are the distributions whose versions are told with the figures.
    """
    parser = argparse.ArgumentParser(description=f"{title}: plait against its peers")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--row", action="append", help="only rows whose name contains this (may be repeated)")
    parser.add_argument("--peer", action="append", help="plait and only this peer (may be repeated)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        peer, name = options.one
        sample = next(row for row in rows if row.name == name).measure(peers[peer])
        print(json.dumps([sample.value, sample.cpu]))
        return
    chosen_rows = [row for row in rows if not options.row or any(part in row.name for part in options.row)]
    chosen_peers = [peer for peer in peers if not options.peer or peer in (OURS, *options.peer)]
    samples: dict[tuple[str, str], list[Sample]] = {}
    with Console(stderr=True).status(title) as status:
        for row in chosen_rows:
            for turn in range(options.rounds):
                for peer in chosen_peers:
                    if peer in row.without:
                        continue
                    status.update(f"{row.name}: {peer}, round {turn + 1} of {options.rounds}")
                    if (measured := _sample(script, peer, row)) is not None:
                        samples.setdefault((row.name, peer), []).append(measured)
    _report(title, chosen_rows, chosen_peers, samples, options.rounds, versions)


def _sample(script: str, peer: str, row: Row) -> Sample | None:
    """One measurement in a process of its own; None, and a line on standard error, if it failed."""
    command = [sys.executable, script, "--one", peer, row.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{row.name}: {peer} failed: more than {MOST_SECONDS} s", file=sys.stderr)
        return None
    if done.returncode == 0:
        return Sample(*json.loads(done.stdout))
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    print(f"{row.name}: {peer} failed: {last}", file=sys.stderr)
    return None


def _report(
    title: str,
    rows: list[Row],
    peers: list[str],
    samples: dict[tuple[str, str], list[Sample]],
    rounds: int,
    versions: tuple[str, ...],
) -> None:
    table = Table(show_lines=True)
    table.add_column(title)
    for peer in peers:
        table.add_column(peer, justify="right", overflow="fold")
    told: dict[str, dict[str, Any]] = {}
    for row in rows:
        figures = {peer: _figures(row, samples.get((row.name, peer), [])) for peer in peers}
        ours = figures.get(OURS, {}).get("value")
        for peer, figure in figures.items():
            if figure and ours and peer != OURS:
                theirs = figure["value"]
                figure["plait_is_better_by"] = ours / theirs if row.higher_is_better else theirs / ours
        table.add_row(row.name, *map(_cell, figures.values()))
        told[row.name] = figures
    machine = {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "versions": {name: _version(name) for name in versions},
    }
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"Medians of {rounds}: the figure; the CPU time of an operation, workers included; plait's ratio."
    )
    print(json.dumps({"title": title, "rounds": rounds, "machine": machine, "rows": told}))


def _figures(row: Row, samples: list[Sample]) -> dict[str, Any]:
    if not samples:
        return {}
    figures: dict[str, Any] = {"value": median(sample.value for sample in samples), "unit": row.unit}
    cpus = [sample.cpu for sample in samples if sample.cpu is not None]
    if cpus:
        figures["cpu_us"] = median(cpus) * 1e6
    return figures


def _cell(figures: dict[str, Any]) -> str:
    if not figures:
        return "–"
    lines = [f"{_number(figures['value'])} {figures['unit']}"]
    if "cpu_us" in figures:
        lines.append(f"{_number(figures['cpu_us'])} µs CPU")
    if "plait_is_better_by" in figures:
        lines.append(f"× {figures['plait_is_better_by']:.2f}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value / 1000:,.0f}k" if value >= 10_000 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
