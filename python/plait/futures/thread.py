"""`concurrent.futures.thread` with plait's `ThreadPoolExecutor`."""

from __future__ import annotations

from concurrent.futures.thread import *  # noqa: F403

from plait.futures import ThreadPoolExecutor as ThreadPoolExecutor
