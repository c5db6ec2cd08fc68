"""`asyncio.locks`: plait's primitives, which derive from the standard ones. What is hot of them is in Rust.

They do what the standard ones do, in the same order, and work on any event loop. As those, they are for the
thread of the loop they were first used in; `plait.Lock` and its like are for several loops and threads.
"""

from __future__ import annotations

import asyncio.locks as _standard
from typing import TYPE_CHECKING

from plait import _rust
from plait._fall_back import fall_back

if TYPE_CHECKING:
    # What type checkers see: the standard classes, so that ours are accepted wherever those are.
    from asyncio.locks import Barrier as Barrier
    from asyncio.locks import BoundedSemaphore as BoundedSemaphore
    from asyncio.locks import Condition as Condition
    from asyncio.locks import Event as Event
    from asyncio.locks import Lock as Lock
    from asyncio.locks import Semaphore as Semaphore
else:

    class Lock(_rust.AsyncLock, _standard.Lock):
        """`asyncio.Lock`, as it is, in less time."""

        def __init__(self):
            """Make a lock that nobody has."""

    class Event(_rust.AsyncEvent, _standard.Event):
        """`asyncio.Event`, as it is, in less time."""

        def __init__(self):
            """Make an event that is not set."""

    class Semaphore(_rust.AsyncSemaphore, _standard.Semaphore):
        """`asyncio.Semaphore`, as it is, in less time."""

        def __init__(self, value=1):
            """Make one with so many permits. Raises ValueError if they are less than 0."""
            self._start(value, False)

        def _start(self, value, is_bounded):
            if value < 0:
                raise ValueError("Semaphore initial value must be >= 0")
            self._begin(value, is_bounded)

    class BoundedSemaphore(Semaphore, _standard.BoundedSemaphore):
        """`asyncio.BoundedSemaphore`, as it is, in less time."""

        def __init__(self, value=1):
            """Make one with so many permits, and never more. Raises ValueError if they are less than 0."""
            self._start(value, True)

    class Condition(_standard.Condition):
        """`asyncio.Condition`, over a lock of plait's if it is given none."""

        def __init__(self, lock=None):
            """Make a condition over a lock."""
            super().__init__(Lock() if lock is None else lock)

    class Barrier(_standard.Barrier):
        """`asyncio.Barrier`, over a condition of plait's."""

        def __init__(self, parties):
            """Make a barrier for so many. Raises ValueError if they are less than 1."""
            super().__init__(parties)
            self._cond = Condition()


fall_back(globals(), _standard)
