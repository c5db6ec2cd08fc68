"""Fetch pages and measure each: waiting and CPU-bound Python in one function, the work of a crawler.

python examples/fetch_and_measure.py [--model tasks] [--pages 200]
"""

from __future__ import annotations

import argparse

import plait
from corpus import source_files
from fetch_pages import fetch
from measure_complexity import Complexity, complexity_of
from page_server import page_server


async def fetch_and_measure(url: str) -> Complexity:
    """The complexity of the source file at ``url``."""
    source = await fetch(url)
    return complexity_of(url.split("/", 3)[3], source)


def main() -> None:
    """Print the ten most complex functions of a library fetched from a server."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--workers", type=int, help="how many at a time (default: by model)")
    parser.add_argument("--pages", type=int, default=200, help="how many (default: 200)")
    options = parser.parse_args()

    with page_server() as address, plait.Executor(options.model, workers=options.workers) as executor:
        urls = [f"{address}/{name}" for name in source_files(options.pages)]
        found = list(executor.map(fetch_and_measure, urls, progress=True))
        if executor.decision is not None:
            print(f"auto chose {executor.decision.model}: {executor.decision.reason}")
    print(f"{len(found)} pages, {sum(each.functions for each in found)} functions; the most complex:")
    for each in sorted(found, key=lambda each: each.worst, reverse=True)[:10]:
        print(f"{each.worst:5} {each.worst_function} in {each.path}")


if __name__ == "__main__":
    main()
