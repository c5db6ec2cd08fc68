"""The thread pool against its peers, two workers: `python benches/thread_pool.py --help`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pebble

import plait
from harness import (
    OURS,
    OfExecutor,
    OfMultiprocessing,
    OfPebble,
    Row,
    main,
    map_items,
    round_trip,
    submit_and_result,
)

WORKERS = 2

if __name__ == "__main__":
    main(
        "thread pool",
        __file__,
        {
            OURS: lambda: OfExecutor(plait.Executor("threads", workers=WORKERS)),
            "concurrent.futures": lambda: OfExecutor(ThreadPoolExecutor(WORKERS)),
            "multiprocessing.pool": lambda: OfMultiprocessing(ThreadPool(WORKERS)),
            "pebble": lambda: OfPebble(pebble.ThreadPool(max_workers=WORKERS)),
        },
        [
            Row("submit + result", "/s", submit_and_result),
            Row("map", "/s", map_items),
            Row("round trip, p50", "µs", round_trip, higher_is_better=False),
        ],
    )
