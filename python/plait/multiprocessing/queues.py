"""`multiprocessing.queues`: `Queue` and `JoinableQueue` are logs in nameless shared memory, without a thread.

What is put is pickled in the caller and lies in the memory when ``put`` returns: an object that cannot be
pickled raises there, and a process that has put something can be joined whether or not anybody reads it.
Large buffers (arrays) are copied in once and out once. All are safe to use from any thread and after a fork,
and survive a process that is killed at any moment. They go to other processes as arguments of a `Process`, of
a pool's jobs, and as items of a queue.
"""

from __future__ import annotations

import copyreg
import pickle
from io import BytesIO
from multiprocessing import queues as _standard
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from queue import Empty, Full
from typing import TYPE_CHECKING, Any

from plait import _rust
from plait.multiprocessing._handover import can_be_sent
from plait.multiprocessing._standard import fall_back
from plait.multiprocessing.synchronize import SEM_VALUE_MAX

if TYPE_CHECKING:
    _Queue = _standard.Queue[Any]
    _JoinableQueue = _standard.JoinableQueue[Any]
    _SimpleQueue = _standard.SimpleQueue[Any]
    from typing_extensions import Buffer
else:
    _Queue, _JoinableQueue, _SimpleQueue = _standard.Queue, _standard.JoinableQueue, _standard.SimpleQueue

can_be_sent(_rust.ProcessQueue)

_PLAIN = frozenset({int, str, float, bool, type(None), bytes})
"""Types that nobody can have registered a reducer for."""

_OUT_OF_BAND = 4096
"""Bytes from which on a buffer is sent beside the pickle instead of in it."""

_reducers: tuple[int, int, dict[Any, Any]] = (-1, -1, {})


def _dispatch_table() -> dict[Any, Any]:
    """The reducers that `ForkingPickler` knows: those of copyreg and its own."""
    global _reducers
    common, extra = copyreg.dispatch_table, ForkingPickler._extra_reducers
    known = _reducers
    if known[0] != len(common) or known[1] != len(extra):
        _reducers = known = (len(common), len(extra), {**common, **extra})
    return known[2]


def _dumps(obj: object) -> tuple[Buffer, list[pickle.PickleBuffer] | None]:
    """Pickle an object; its large buffers are not in the pickle."""
    if type(obj) in _PLAIN:
        return pickle.dumps(obj, 5), None
    buffers: list[pickle.PickleBuffer] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < _OUT_OF_BAND:
            return True
        buffers.append(buffer)
        return False

    file = BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=is_small)
    pickler.dispatch_table = _dispatch_table()
    pickler.dump(obj)
    return file.getbuffer(), buffers


def _loads(found: Any) -> Any:
    """The object that was put."""
    if type(found) is tuple:
        return pickle.loads(found[0], buffers=found[1])
    return pickle.loads(found)


class Queue(_Queue):
    """A queue between processes, of any number of objects of any size, or of at most `maxsize` objects.

    ``put`` raises what pickling raises, and ``queue.Full`` after `timeout` seconds; ``get`` raises
    ``queue.Empty``. A subclass that overrides ``_on_queue_feeder_error`` is called by that instead of having
    ``put`` raise what pickling raised.
    """

    _log: _rust.ProcessQueue

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext | None = None) -> None:
        self.__setstate__((False, maxsize if maxsize > 0 else SEM_VALUE_MAX, _rust.ProcessQueue()))

    def __getstate__(self) -> tuple[Any, ...]:
        return self._ignore_epipe, self._maxsize, self._log

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._ignore_epipe, self._maxsize, self._log = state
        self._most = None if self._maxsize == SEM_VALUE_MAX else self._maxsize
        self._closed = False
        self._used = False
        self._handles_errors = type(self)._on_queue_feeder_error is not Queue._on_queue_feeder_error

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object. Waits only while there are `maxsize` already, `timeout` seconds at most."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        self._used = True
        try:
            pickled, buffers = _dumps(obj)
        except Exception as error:
            if not self._handles_errors:
                raise
            self._on_queue_feeder_error(error, obj)
            return
        if not self._log.put(pickled, buffers, self._most, block, timeout):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the object that was put first. Waits until there is one, `timeout` seconds at most."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        found = self._log.get(block, timeout)
        if found is None:
            raise Empty
        return _loads(found)

    def qsize(self) -> int:
        """Return how many objects there are."""
        return len(self._log)

    def empty(self) -> bool:
        """Return whether there is none. Raises OSError if this process has used and closed the queue."""
        if self._closed and self._used:
            raise OSError("handle is closed")
        return self._log.is_empty()

    def full(self) -> bool:
        """Return whether there are `maxsize`."""
        return self._most is not None and len(self._log) >= self._most

    def close(self) -> None:
        """Let this process neither put nor get any more."""
        self._closed = True

    def join_thread(self) -> None:
        """Do nothing: what was put is in the queue. Raises AssertionError if the queue was not closed."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Do nothing: there is no thread that could keep the process from ending."""

    def _terminate_broken(self) -> None:
        self.close()

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """Handle an object that cannot be pickled. For subclasses, of which the standard library has one."""


class JoinableQueue(Queue, _JoinableQueue):
    """A queue that counts what is done."""

    def task_done(self) -> None:
        """Say that one more object is done. Raises ValueError if all were already."""
        if not self._log.task_done():
            raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until all that was put is done."""
        self._log.join()


class SimpleQueue(_SimpleQueue):
    """The standard pipe, on our locks: the standard pools need its ends, to wait for and to see close."""

    def __getstate__(self) -> tuple[Any, ...]:
        return self._reader, self._writer, self._rlock, self._wlock


fall_back(globals(), _standard)
