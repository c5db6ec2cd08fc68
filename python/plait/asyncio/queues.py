"""`asyncio.queues`: plait's queues, which derive from the standard ones; `shutdown` on every Python.

What is hot of them is in Rust. They work on any event loop, and are for the thread of the one they were first
used in, as the standard ones are; `plait.queue` has those for several loops and threads.
"""

from __future__ import annotations

import asyncio.queues as _standard
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from plait import _rust
from plait._fall_back import fall_back
from plait.asyncio.locks import Event

T = TypeVar("T")
C = TypeVar("C", bound=Any)

if sys.version_info >= (3, 13):
    from asyncio import QueueShutDown as QueueShutDown
else:

    class QueueShutDown(Exception):
        """Raised by a queue that was shut down, as Python has it since 3.13."""


if TYPE_CHECKING:
    from asyncio.queues import QueueEmpty as QueueEmpty
    from asyncio.queues import QueueFull as QueueFull

    if sys.version_info >= (3, 13):
        from asyncio.queues import LifoQueue as LifoQueue
        from asyncio.queues import PriorityQueue as PriorityQueue
        from asyncio.queues import Queue as Queue
    else:

        class Queue(_standard.Queue[T]):
            def shutdown(self, immediate: bool = False) -> None: ...

        class LifoQueue(_standard.LifoQueue[T], Queue[T]): ...

        class PriorityQueue(_standard.PriorityQueue[C], Queue[C]): ...
else:
    # Of these a subclass may have its own; each group is told to the Rust class by a bit.
    _OWN = {1: ("_init", "_get", "_put", "qsize", "empty", "full"), 2: ("put_nowait",), 4: ("get_nowait",)}

    class Queue(_rust.AsyncQueue, _standard.Queue):
        """`asyncio.Queue`, as it is, in less time."""

        # How items leave: first in first out, last in first out, the least first.
        _order = 0
        # What a subclass has of its own.
        _own = 0

        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            base = next((kind for kind in cls.__mro__[1:] if kind in _KINDS), Queue)
            cls._own = sum(
                bit
                for bit, names in _OWN.items()
                if any(getattr(cls, name) is not getattr(base, name) for name in names)
            )

        def __init__(self, maxsize=0):
            """Make a queue for so many items at a time; for any number, if it is not above 0."""
            self._begin(maxsize, self._order, self._own, Event())

    _KINDS = [Queue]

    class LifoQueue(Queue, _standard.LifoQueue):
        """`asyncio.LifoQueue`, as it is, in less time."""

        _order = 1

    class PriorityQueue(Queue, _standard.PriorityQueue):
        """`asyncio.PriorityQueue`, as it is, in less time."""

        _order = 2

    _KINDS += [LifoQueue, PriorityQueue]
    LifoQueue._own = PriorityQueue._own = 0


fall_back(globals(), _standard)
