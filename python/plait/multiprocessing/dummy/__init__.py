"""`multiprocessing.dummy`: the face of `multiprocessing` on threads, with plait's thread pool."""

from __future__ import annotations

from typing import Any

from plait.multiprocessing._standard import fall_back, standard_module
from plait.multiprocessing.dummy import connection  # noqa: F401 (part of the package)

_standard = standard_module("dummy")


def Pool(processes: int | None = None, initializer: Any = None, initargs: Any = ()) -> Any:
    """Return a pool of threads: `plait.multiprocessing.pool.ThreadPool`."""
    from plait.multiprocessing.pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)


def Manager() -> Any:
    """Return this module: threads share everything anyway."""
    import sys

    return sys.modules[__name__]


fall_back(globals(), _standard)
