"""`plait.share`: a value put into memory once, for any number of jobs in any process.

What lies where, who holds it and what happens when somebody dies is in
`crates/engine/src/shared_memory/README.md`.
"""

from __future__ import annotations

import warnings
from _pickle import PickleBuffer, loads
from _thread import RLock
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from weakref import WeakValueDictionary

from plait import _rust, _serialize

__all__ = ["Shared", "share"]

T = TypeVar("T")

_UNSET = object()


class _Held:
    """A segment that this process has mapped, and its value once somebody has asked for it."""

    def __init__(self, segment: _rust.Segment) -> None:
        self.segment = segment
        self.ticket = bytes(memoryview(segment.ticket()))
        self._value: Any = _UNSET
        self._lock = RLock()

    def value(self) -> Any:
        if self._value is _UNSET:
            with self._lock:
                if self._value is _UNSET:
                    payload, *buffers = self.segment.parts()
                    self._value = loads(payload, buffers=map(memoryview, buffers))
        return self._value


_known: WeakValueDictionary[bytes, _Held] = WeakValueDictionary()
"""What this process has mapped, by ticket: while somebody holds a handle, it is mapped once."""

_kept: dict[bytes, _Held] = {}
"""In a worker: what is kept for the next job, until the origin lets go."""


class Shared(Generic[T]):
    """A handle to a value that `share` has put into memory. Small: pass it to as many jobs as you like.

    The value is there as long as this handle, or a copy of it in the process that shared it, or a job on its
    way that has it among its arguments. `close`, or leaving a ``with`` block, lets go early. Thread-safe; a
    fork's copy works as well.
    """

    __slots__ = ("_held",)

    _held: _Held | None

    def __init__(self) -> None:
        raise TypeError("a Shared is made by plait.share(value)")

    @property
    def value(self) -> T:
        """The value: the same object for everybody in this process.

        It is put together when it is first asked for, its large buffers (arrays, say) in place, without a
        copy. They are read-only unless it was shared with ``writable=True``; change nothing else in it
        either: later jobs of the same process would see that, and others would not.

        Raises:
            ValueError: the handle is closed.
        """
        if self._held is None:
            raise ValueError("this handle of a shared value is closed")
        value: T = self._held.value()
        return value

    def get(self) -> T:
        """The value; a method, for whoever wants to pass one on."""
        return self.value

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the value takes; 0 when the handle is closed."""
        return 0 if self._held is None else self._held.segment.size

    @property
    def writable(self) -> bool:
        """Whether processes may change its buffers, for all others to see; they have to agree who does."""
        return self._held is not None and self._held.segment.writable

    def close(self) -> None:
        """Let go of the value. Views of it that somebody holds stay valid."""
        self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._held is None:
            raise ValueError("this handle of a shared value is closed: it cannot be sent anywhere")
        # A pool that finds the ticket among the buffers keeps the segment until the job has ended.
        ticket = PickleBuffer(self._held.segment.ticket()) if protocol >= 5 else self._held.ticket
        return _attach, (ticket,)

    def __repr__(self) -> str:
        if self._held is None:
            return "<plait.Shared, closed>"
        segment = self._held.segment
        access = "writable" if segment.writable else "read-only"
        return f"<plait.Shared of {segment.size:,} bytes, {access}, from process {segment.origin}>"


def share(obj: T, *, writable: bool = False) -> Shared[T]:
    """Put a value into memory that every process can read, once; passing it to a job then costs nothing.

    The value is copied now: whatever happens to ``obj`` afterwards changes nothing. Jobs get the handle and
    ask it for its `Shared.value`, under every model but ``"interpreters"``, which cannot load what it needs.
    Large buffers in it (of numpy arrays, Arrow tables, PIL images, torch tensors, memoryviews, whatever
    pickles with protocol 5, in any nesting) are used in place by every process; the rest is unpickled once
    per process.

    Args:
        obj: what to share; it must be possible to pickle it.
        writable: whether processes may change its buffers, which all others then see. There is no lock.

    Raises:
        MemoryError: there is not so much memory.
        TypeError: ``obj`` cannot be pickled.
    """
    try:
        payload, buffers = _serialize.dumps(obj)
    except Exception as error:
        from plait.errors import ArgumentNotPicklable

        raise ArgumentNotPicklable(
            f"the value cannot be shared: {_serialize.describe(obj, error)}"
        ) from error
    held = _Held(_rust.Segment.create(payload, buffers, writable))
    warn_of_fallback()
    _known[held.ticket] = held
    return _handle(held)


def _handle(held: _Held) -> Shared[Any]:
    handle: Shared[Any] = object.__new__(Shared)
    handle._held = held
    return handle


def _attach(ticket: Any) -> Shared[Any]:
    """The handle that a pickle stands for."""
    ticket = bytes(ticket)
    held = _known.get(ticket)
    if held is None:
        let_go()
        held = _known.setdefault(ticket, _Held(_rust.Segment.attach(ticket)))
        if _rust.before_idle(let_go):
            _kept[ticket] = held
    return _handle(held)


def let_go() -> bool:
    """In a worker: forget what nobody shares any more; whether there is something left to look after."""
    for ticket, held in list(_kept.items()):
        if not held.segment.live:
            del _kept[ticket]
    return bool(_kept)


_warned = False


def warn_of_fallback() -> None:
    """Say once, if it is so, that this system has no nameless memory and that files are used instead."""
    global _warned
    folder = _rust.memory_fallback()
    if folder is not None and not _warned:
        _warned = True
        warnings.warn(
            "this system does not allow memfd_create: data for worker processes goes through files in "
            f"{folder} that never have a name. That is slower if the folder is on a disk, and limited by its "
            "size",
            RuntimeWarning,
            stacklevel=3,
        )
