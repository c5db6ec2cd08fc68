"""`plait.Lock`, `Semaphore`, `Event`, `Condition`, `Barrier`: locks for threads and coroutines alike.

They are those of `plait.threading`, but for `Condition`, whose lock is one that coroutines can use.
"""

from __future__ import annotations

from plait import threading
from plait.threading import Barrier, BoundedSemaphore, Event, Lock, Semaphore

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "Semaphore"]


class Condition(threading.Condition):
    """A condition variable for threads (``with``, `wait`) and coroutines (``async with``, `wait_async`).

    `lock` is a `Lock`, or None for a new one, which its holder, unlike an `RLock`'s, cannot acquire again.
    Safe to use from any thread and any number of event loops.
    """

    def __init__(self, lock: Lock | None = None) -> None:
        super().__init__(Lock() if lock is None else lock)
