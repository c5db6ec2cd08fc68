"""`plait.threading`: the whole of `threading`, its locks in Rust, and each lock usable from coroutines, too.

``import plait.threading as threading`` is all that a program changes. `Lock`, `RLock`, `Semaphore`,
`BoundedSemaphore`, `Event`, `Condition` and `Barrier` do what the standard ones do, in less time, and derive
from them where those are classes; `Thread`, `Timer`, `local` and all the rest *are* the standard ones, so
debuggers, profilers and `threading.enumerate` see what they always saw.

`Lock`, `Semaphore`, `Event`, `Barrier` and `Condition` (over a `Lock`) can also be waited for by coroutines,
of any number of event loops, at the same time as by threads: ``async with lock``,
``await event.wait_async()``. Waiters of either kind stand in one line.

All of it is safe to use from any thread. In the child of a fork a lock is as it was at the fork, and nobody
waits for it.
"""

from __future__ import annotations

import os
import sys
import threading as _standard
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from plait import _rust

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import (
        TIMEOUT_MAX,
        BrokenBarrierError,
        ExceptHookArgs,
        Thread,
        ThreadError,
        Timer,
        active_count,
        current_thread,
        enumerate,
        excepthook,
        get_ident,
        get_native_id,
        getprofile,
        gettrace,
        local,
        main_thread,
        setprofile,
        settrace,
        stack_size,
    )

    from plait._deadlocks import Deadlock, Watch

    __all__ = [
        "TIMEOUT_MAX",
        "Barrier",
        "BoundedSemaphore",
        "BrokenBarrierError",
        "Condition",
        "Event",
        "ExceptHookArgs",
        "Lock",
        "RLock",
        "Semaphore",
        "Thread",
        "ThreadError",
        "Timer",
        "active_count",
        "current_thread",
        "enumerate",
        "excepthook",
        "get_ident",
        "get_native_id",
        "getprofile",
        "gettrace",
        "local",
        "main_thread",
        "setprofile",
        "settrace",
        "stack_size",
        "watch",
    ]
    if sys.version_info >= (3, 12):
        from threading import setprofile_all_threads, settrace_all_threads

        __all__ += ["setprofile_all_threads", "settrace_all_threads"]
else:
    __all__ = [*_standard.__all__, "watch"]

Lock = _rust.Lock
RLock = _rust.RLock


class Condition(_rust.Condition, _standard.Condition):
    """A condition variable, over `lock` or else a new `RLock`; see `threading.Condition`.

    Over a `Lock`, coroutines can use it, too: ``async with``, `wait_async`, `wait_for_async`.
    `plait.Condition` has such a lock by default.
    """

    def __init__(self, lock: Any = None) -> None:
        self._begin(RLock() if lock is None else lock)

    def __repr__(self) -> str:
        return f"<Condition({self._lock}, {self._waiting()})>"

    @property
    def _waiters(self) -> range:
        """As long as the line of those that wait: what other code asks the standard class's list for."""
        return range(self._waiting())

    def locked(self) -> bool:
        """Whether the lock is acquired by anybody."""
        return bool(self._lock.locked())

    def _lock_for_coroutines(self) -> Lock:
        lock = self._lock
        if not isinstance(lock, Lock):
            raise RuntimeError(
                f"coroutines cannot use a condition over {lock!r}, which belongs to a thread: "
                "make it as Condition(plait.Lock()), or take plait.Condition()"
            )
        return lock

    async def __aenter__(self) -> None:
        await self._lock_for_coroutines().acquire_async()

    async def __aexit__(self, *_: object) -> None:
        self._lock_for_coroutines().release()

    async def wait_async(self) -> bool:
        """Let go of the lock, wait to be notified, and acquire the lock again; always returns True.

        The lock is acquired again even if the wait is cancelled. Raises `RuntimeError` if it is not acquired.
        """
        lock = self._lock_for_coroutines()
        if not lock.locked():
            raise RuntimeError("cannot wait on un-acquired lock")
        from plait import _in_line

        await _in_line.wait_for_notification(self)
        return True

    async def wait_for_async(self, predicate: Callable[[], Any]) -> Any:
        """Wait until `predicate()`, called with the lock acquired, is true; returns what it returned."""
        while not (result := predicate()):
            await self.wait_async()
        return result


class Semaphore(_rust.Semaphore, _standard.Semaphore):
    """A counter of free units, `value` of them at first; see `threading.Semaphore`.

    ``acquire(blocking=True, timeout=None)`` takes a timeout in seconds and returns whether there was a unit
    in time; ``release(n=1)`` gives `n` back. Raises `ValueError` if `value` is negative.
    """

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        self._begin(value, False)

    def __repr__(self) -> str:
        return f"<{_module(self)}.{type(self).__qualname__} at {id(self):#x}: value={self._value}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


class BoundedSemaphore(Semaphore, _standard.BoundedSemaphore):
    """A semaphore that raises `ValueError` if more is released than was acquired."""

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        self._begin(value, True)

    def __repr__(self) -> str:
        kind = f"{_module(self)}.{type(self).__qualname__}"
        return f"<{kind} at {id(self):#x}: value={self._value}/{self._initial_value}>"


class Event(_rust.Event, _standard.Event):
    """A flag to wait for; see `threading.Event`. Coroutines wait with `wait_async`."""

    def __init__(self) -> None:
        pass

    def __repr__(self) -> str:
        state = "set" if self.is_set() else "unset"
        return f"<{_module(self)}.{type(self).__qualname__} at {id(self):#x}: {state}>"

    async def wait_async(self) -> bool:
        """Wait, from a coroutine, until it is set; always returns True."""
        if not self.is_set():
            from plait import _in_line

            await _in_line.wait_for_event(self)
        return True

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


class Barrier(_rust.Barrier, _standard.Barrier):
    """Where `parties` threads or coroutines wait for each other; see `threading.Barrier`.

    `action` is called by the last one to arrive, before all go on; `timeout` (seconds) is for each `wait`
    that has none of its own. Raises `ValueError` if `parties` is below 1. Coroutines wait with `wait_async`.
    """

    def __init__(
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        self._begin(parties)
        self._action = action
        self._timeout = timeout

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the others, for `timeout` seconds at most; returns a number from 0 to `parties` - 1.

        Raises `BrokenBarrierError` if the barrier is broken or reset meanwhile, or if the time is over, which
        breaks it.
        """
        return self._go_on(self._arrive(self._timeout if timeout is None else timeout))

    async def wait_async(self) -> int:
        """As `wait`, from a coroutine. If it is cancelled, it has not arrived."""
        from plait import _in_line

        return self._go_on(await _in_line.arrive(self))

    def _go_on(self, arrived: tuple[int, bool] | None) -> int:
        if arrived is None:
            raise _standard.BrokenBarrierError
        index, last = arrived
        if last:
            succeeded = False
            try:
                if self._action is not None:
                    self._action()
                succeeded = True
            finally:
                self._open(succeeded)
        return index

    def __repr__(self) -> str:
        kind = f"{_module(self)}.{type(self).__qualname__}"
        if self.broken:
            return f"<{kind} at {id(self):#x}: broken>"
        return f"<{kind} at {id(self):#x}: waiters={self.n_waiting}/{self.parties}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


def watch(limit: float = 10.0, report: Callable[[Deadlock], object] | None = None) -> Watch:
    """Watch, from now on, for threads and coroutines that wait for each other in a circle.

    When each of them has waited for `limit` seconds, the circle is told once, with who waits for what, who
    holds it, and all stacks: on standard error, or by ``report(deadlock)``, in a thread of the watch. A wait
    that is merely long is never told. Seen are waits for a `Lock` or `RLock` of this module that began after
    this call, and `Thread.join`; a `Lock` counts as held by whoever acquired it last, and one that its own
    holder waits for, as a signal.

    Returns the watch; its ``stop()`` ends it, as does leaving a ``with`` block. Raises `ValueError` if
    `limit` is not above 0. Thread-safe. The child of a fork is not watched.
    """
    from plait._deadlocks import Watch

    return Watch(limit, report)


def _module(instance: object) -> str:
    """Where the class is from, as `repr` says it: ours go by the name of the module that they stand for."""
    return type(instance).__module__.removeprefix("plait.")


# What names of `threading` that were assigned through this module held before.
_before: dict[str, Any] = {}


class _Threading(ModuleType):
    """The module: what it does not define itself is `threading`'s, read and written there.

    So ``excepthook`` can be assigned here as there, and `Thread` sees it.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(_standard, name)
        except AttributeError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__ or not hasattr(_standard, name):
            super().__setattr__(name, value)
        else:
            _before.setdefault(name, getattr(_standard, name))
            setattr(_standard, name, value)

    def __delattr__(self, name: str) -> None:
        """Take back an assignment, as tools do that replace for a while what is not the module's own."""
        if name in _before:
            setattr(_standard, name, _before.pop(name))
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__all__, *dir(_standard)})


sys.modules[__name__].__class__ = _Threading
# Whoever stood in line is the parent's.
os.register_at_fork(after_in_child=_rust.forget_waiting_threads)
