"""`concurrent.futures.process` with plait's `ProcessPoolExecutor`."""

from __future__ import annotations

from concurrent.futures.process import *  # noqa: F403

from plait._process_pool_executor import ProcessPoolExecutor as ProcessPoolExecutor
