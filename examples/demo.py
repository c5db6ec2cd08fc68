"""The same real work under every model, measured: what `make demo` shows. Takes less than two minutes.

python examples/demo.py [--quick]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from corpus import source_files
from page_server import FASTEST, SLOWEST, page_server
from plait.compare import Comparison, compare

HERE = str(Path(__file__).resolve().parent)


@dataclass(frozen=True)
class Job:
    """One kind of work, and how much of it a serial run can do in a few seconds."""

    name: str
    function: str
    what: str
    files: int
    fetched: bool = False
    workers: Mapping[str, int] = field(default_factory=dict)


JOBS = [
    Job("parse", "measure_complexity:measure", "parse source files: CPU-bound Python", 800),
    Job("compress", "compress_files:compress", "compress them (bz2): CPU work that releases the GIL", 2000),
    Job(
        "fetch",
        "fetch_pages:fetch",
        f"fetch them over HTTP, {FASTEST * 1000:.0f} to {SLOWEST * 1000:.0f} ms each: waiting",
        200,
        fetched=True,
        workers={"threads": 100, "processes": 16},
    ),
    Job(
        "fetch and parse",
        "fetch_and_measure:fetch_and_measure",
        "both: waiting and CPU-bound Python",
        200,
        fetched=True,
        workers={"threads": 100, "processes": 16},
    ),
]


def main() -> int:
    """Run the four jobs, a table for each, and say what was learnt."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a few files only: to see that it works")
    options = parser.parse_args()

    console = Console(highlight=False)
    began = time.monotonic()
    total = len(source_files())
    console.print(f"Input: the {total} source files of Python {sys.version.split()[0]}'s standard library.")
    learnt: list[tuple[str, Comparison]] = []
    with page_server() as address:
        for job in JOBS:
            files = source_files(8 if options.quick else job.files)
            items = [f"{address}/{name}" for name in files] if job.fetched else files
            sample = (
                "all" if len(files) == total else f"{len(files)} of {total}, so that serial takes seconds"
            )
            console.print(f"\n[bold]{job.name}[/bold]: {job.what} ({sample})")
            with console.status(job.name) as status:
                found = compare(
                    job.function,
                    items,
                    workers=job.workers,
                    rounds=3,
                    seconds=26,
                    path=[HERE],
                    watch=lambda model, _, name=job.name: status.update(f"{name}: {model}"),  # type: ignore[misc]
                )
            console.print(found.table())
            for remark in found.remarks():
                console.print(remark, markup=False)
            learnt.append((job.name, found))

    console.print(f"\n[bold]What was learnt[/bold] ({time.monotonic() - began:.0f} s)")
    for name, found in learnt:
        console.print(f"{name}: {found.sentence()}", markup=False)
    return 0 if all(found.equal for _, found in learnt) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
