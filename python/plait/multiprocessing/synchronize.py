"""`multiprocessing.synchronize`: locks on words of nameless shared memory, which notice an owner that died.

All are safe to use from any thread, and after a fork. They go to other processes as arguments of a
`Process`, and also as arguments of a pool's jobs and as items of a queue.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from multiprocessing import synchronize as _standard
from multiprocessing.context import BaseContext
from typing import Any

from plait import _rust
from plait.errors import OwnerDied
from plait.multiprocessing._handover import can_be_sent
from plait.multiprocessing._standard import fall_back

RECURSIVE_MUTEX, SEMAPHORE = 0, 1
SEM_VALUE_MAX = _rust.SemLock.SEM_VALUE_MAX

can_be_sent(_rust.SemLock)
can_be_sent(_rust.ProcessEvent)
can_be_sent(_rust.ProcessWaiters)
os.register_at_fork(before=_rust.note_fork)


class SemLock(_standard.SemLock):
    """What locks and semaphores have in common."""

    _semlock: _rust.SemLock
    _is_fork_ctx = False

    def __init__(
        self, kind: int, value: int, maxvalue: int, *, ctx: BaseContext | None = None, owned: bool = False
    ) -> None:
        self.__setstate__((_rust.SemLock(kind, value, maxvalue, owned=owned),))

    def __getstate__(self) -> tuple[_rust.SemLock]:
        return (self._semlock,)

    def __setstate__(self, state: tuple[_rust.SemLock]) -> None:
        (self._semlock,) = state
        self.acquire = self._semlock.acquire  # type: ignore[method-assign]
        self.release = self._semlock.release  # type: ignore[method-assign]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()

    def locked(self) -> bool:
        """Return whether nobody could acquire it without waiting."""
        return self._semlock._is_zero()


class Lock(SemLock, _standard.Lock):
    """A lock between processes. Any process or thread may release it.

    ``acquire`` raises :class:`plait.multiprocessing.OwnerDied`, in one of those that wait, if the process
    that acquired it has ended without releasing it. The lock is free then.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        super().__init__(SEMAPHORE, 1, 1, ctx=ctx, owned=True)


class RLock(SemLock, _standard.RLock):
    """A lock between processes that the thread which holds it may acquire again. Else as :class:`Lock`."""

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        super().__init__(RECURSIVE_MUTEX, 1, 1, ctx=ctx)


class Semaphore(SemLock, _standard.Semaphore):
    """A semaphore between processes. Nobody owns it: what a killed process had acquired stays acquired.

    Raises ValueError if `value` is negative or more than ``SEM_VALUE_MAX``.
    """

    def __init__(self, value: int = 1, *, ctx: BaseContext | None = None) -> None:
        SemLock.__init__(self, SEMAPHORE, value, SEM_VALUE_MAX, ctx=ctx)


class BoundedSemaphore(Semaphore, _standard.BoundedSemaphore):
    """A semaphore whose ``release`` raises ValueError above its first value."""

    def __init__(self, value: int = 1, *, ctx: BaseContext | None = None) -> None:
        SemLock.__init__(self, SEMAPHORE, value, value, ctx=ctx)


class Condition(_standard.Condition):
    """A condition between processes. A waiter that is killed holds nobody up, and takes no notification.

    Raises RuntimeError in ``wait`` if 1020 threads wait already, and OwnerDied, with the lock held, if
    another process died while it held the lock.
    """

    _lock: Any
    _waiters: _rust.ProcessWaiters

    def __init__(self, lock: Any = None, *, ctx: Any) -> None:
        self.__setstate__((lock or ctx.RLock(), _rust.ProcessWaiters()))

    def __getstate__(self) -> tuple[Any, ...]:
        return self._lock, self._waiters

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._lock, self._waiters = state
        self.acquire = self._lock.acquire  # type: ignore[method-assign]
        self.release = self._lock.release  # type: ignore[method-assign]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._lock}, {len(self._waiters)})>"

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until notified; False if that took longer than `timeout` seconds."""
        assert self._lock._semlock._is_mine(), "must acquire() condition before using wait()"
        enrolled = self._waiters.enroll()
        count = self._lock._semlock._count()
        for _ in range(count):
            self._lock.release()
        try:
            return self._waiters.wait(enrolled, timeout)
        finally:
            self._reacquire(count)

    def _reacquire(self, count: int) -> None:
        died = None
        for _ in range(count):
            while True:
                try:
                    self._lock.acquire()
                except OwnerDied as error:  # the lock is free now, and the caller is going to release it
                    died = error
                else:
                    break
        if died is not None:
            raise died

    def notify(self, n: int = 1) -> None:
        """Wake `n` of those that wait, in the order they came."""
        assert self._lock._semlock._is_mine(), "lock is not owned"
        if n > 0:
            self._waiters.notify(n)

    # What the standard class has inside, for CPython's own tests.

    @property
    def _sleeping_count(self) -> _Number:
        return _Number(len(self._waiters))

    @property
    def _woken_count(self) -> _Number:
        return _Number(0)

    _wait_semaphore = _woken_count


class _Number:
    """Something with a value, like a semaphore."""

    def __init__(self, value: int) -> None:
        self._value = value

    def get_value(self) -> int:
        return self._value


class Event(_standard.Event):
    """An event between processes. There is no lock in it that a killed process could hold."""

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        self._event = _rust.ProcessEvent()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._event.is_set()

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._event.set()

    def clear(self) -> None:
        """Unset it. Who was woken before returns from ``wait`` all the same."""
        self._event.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; False if that took longer than `timeout` seconds."""
        return self._event.wait(timeout)


class Barrier(_standard.Barrier):
    """A barrier between processes."""

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: BaseContext,
    ) -> None:
        from plait.multiprocessing.heap import BufferWrapper

        two_integers = BufferWrapper(2 * struct.calcsize("i"))
        self.__setstate__((parties, action, timeout, ctx.Condition(), two_integers))
        self._state = 0
        self._count = 0


fall_back(globals(), _standard)
