"""The whole of `queue`, in Rust, for threads, which block, and for coroutines of any event loop, which await.

`put` and `get` are the standard ones. `put_async`, `get_async` and `join_async` are for coroutines; threads
and coroutines stand in one line, first come, first served. A coroutine that is cancelled while it waits takes
no item along. Every queue has `shutdown`, on every Python version. `docs/guide/queue.md` has more.
"""

from __future__ import annotations

import os
import queue as _standard
import sys
from queue import Empty, Full
from time import monotonic
from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from plait import _rust

if TYPE_CHECKING:
    from plait import threading

if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(Exception):
        """Raised when put/get with shut-down queue."""


__all__ = ["Empty", "Full", "LifoQueue", "PriorityQueue", "Queue", "ShutDown", "SimpleQueue"]

T = TypeVar("T")

_NOTHING: Any = _rust.nothing()
# How a subclass says how items are kept.
_HOOKS = ("_init", "_qsize", "_put", "_get")
# What the standard class shows of its inside.
_INSIDE = ("mutex", "not_empty", "not_full", "all_tasks_done", "queue")


class Queue(_rust.Queue, _standard.Queue[T]):
    """A queue for any number of threads and coroutines; see `queue.Queue`. Unlimited without `maxsize`.

    Safe to use from any thread and any event loop. In the child of a fork it has the items that it had, and
    nobody waits. Whoever uses what is inside the standard class (`mutex`, `queue`, `not_empty`, …), or a
    subclass that defines `_put` and `_get`, gets exactly that, at the standard class's speed (and its fork:
    there, a thread that waited before still counts as one that waits).
    """

    _lifo: ClassVar[bool] = False
    _keeps_items: ClassVar[bool] = False
    """Whether the class says how items are kept."""
    if TYPE_CHECKING:  # in `__dict__`, once it is as the standard class
        mutex: threading.Lock  # type: ignore[assignment]
        not_empty: threading.Condition
        not_full: threading.Condition
        all_tasks_done: threading.Condition
        is_shutdown: bool
        unfinished_tasks: int
        maxsize: int

        def put(self, item: T, block: bool = True, timeout: float | None = None) -> None: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...
        def put_nowait(self, item: T) -> None: ...
        def get_nowait(self) -> T: ...

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        base = _standard.LifoQueue if cls._lifo else _standard.Queue
        cls._keeps_items = any(getattr(cls, hook) is not getattr(base, hook) for hook in _HOOKS)

    def __init__(self, maxsize: int = 0) -> None:
        self.maxsize = maxsize
        if self._keeps_items:
            self._become_classic()

    async def put_async(self, item: T) -> None:
        """Put an item; wait for a place if there is none. Raises `ShutDown` if the queue is shut down."""
        if not self._offer(item):
            await self._put_in_line(item)

    async def get_async(self) -> T:
        """Take an item; wait for one if there is none. Raises `ShutDown` if there will be none.

        A limit is ``asyncio.timeout`` or ``wait_for``: who is cancelled takes no item along.
        """
        item = self._take()
        return (await _get_in_line(self)) if item is _NOTHING else item  # type: ignore[no-any-return]

    async def join_async(self) -> None:
        """Wait until `task_done` has been called for every item."""
        from plait._in_line import running_bell

        loop, bell = running_bell()
        place = None
        while True:
            future = loop.create_future()
            found = self._enter_join(bell, future, place)
            if found is None:
                await self._classic_join_async()
                return
            done, place = found
            if done:
                return
            try:
                await future
            except BaseException:
                if place is not None:
                    self._leave_join(place)
                raise

    async def _put_in_line(self, item: T) -> None:
        from plait._in_line import running_bell

        loop, bell = running_bell()
        place = None
        while True:
            future = loop.create_future()
            found = self._enter_put(item, bell, future, place)
            if found is None:
                await self._classic_put_async(item)
                return
            done, place = found
            if done:
                return
            try:
                await future
            except BaseException:
                if place is not None:
                    self._leave_put(place)
                raise

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object: a queue belongs to its process")

    # From here on: as the standard class, with its attributes. `crates/python/src/queue.rs` says when.

    def __getattr__(self, name: str) -> Any:
        if name in _INSIDE:
            self._become_classic()
            return vars(self)[name]
        if name == "unfinished_tasks":
            return self._state()[0]
        if name == "is_shutdown":
            return self._state()[1]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __setattr__(self, name: str, value: object) -> None:
        if not self._is_classic and (name in _INSIDE or name in ("unfinished_tasks", "is_shutdown")):
            self._become_classic()
        super().__setattr__(name, value)

    def _become_classic(self) -> None:
        """Move the items to where the standard class has them."""
        from plait import threading

        with _becoming:
            if self._is_classic:
                return
            mutex = threading.Lock()
            with mutex:  # whoever sees that it is classic waits until the items are there
                vars(self).update(
                    mutex=mutex,
                    not_empty=threading.Condition(mutex),
                    not_full=threading.Condition(mutex),
                    all_tasks_done=threading.Condition(mutex),
                )
                items, unfinished, is_shut = self._move_out()
                vars(self).update(unfinished_tasks=unfinished, is_shutdown=is_shut)
                self._init(self.maxsize)
                if items:
                    self.queue.extend(items)

    def _classic_qsize(self) -> int:
        with self.mutex:
            return self._qsize()

    def _classic_put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        with self.mutex:
            if self.is_shutdown:
                raise ShutDown
            if self.maxsize > 0:
                if not block:
                    if self._qsize() >= self.maxsize:
                        raise Full
                elif timeout is None:
                    while self._qsize() >= self.maxsize:
                        self.not_full.wait()
                        if self.is_shutdown:
                            raise ShutDown
                else:
                    deadline = _deadline(timeout)
                    while self._qsize() >= self.maxsize:
                        left = deadline - monotonic()
                        if left <= 0:
                            raise Full
                        self.not_full.wait(left)
                        if self.is_shutdown:
                            raise ShutDown
            self._put(item)
            self.__dict__["unfinished_tasks"] += 1
            self.not_empty.notify()

    def _classic_get(self, block: bool = True, timeout: float | None = None) -> T:
        with self.mutex:
            if self.is_shutdown and not self._qsize():
                raise ShutDown
            if not block:
                if not self._qsize():
                    raise Empty
            elif timeout is None:
                while not self._qsize():
                    self.not_empty.wait()
                    if self.is_shutdown and not self._qsize():
                        raise ShutDown
            else:
                deadline = _deadline(timeout)
                while not self._qsize():
                    left = deadline - monotonic()
                    if left <= 0:
                        raise Empty
                    self.not_empty.wait(left)
                    if self.is_shutdown and not self._qsize():
                        raise ShutDown
            item: T = self._get()
            self.not_full.notify()
            return item

    def _classic_task_done(self) -> None:
        with self.all_tasks_done:
            unfinished = self.unfinished_tasks - 1
            if unfinished <= 0:
                if unfinished < 0:
                    raise ValueError("task_done() called too many times")
                self.all_tasks_done.notify_all()
            self.unfinished_tasks = unfinished

    def _classic_join(self) -> None:
        with self.all_tasks_done:
            while self.unfinished_tasks:
                self.all_tasks_done.wait()

    def _classic_shutdown(self, immediate: bool) -> None:
        with self.mutex:
            self.is_shutdown = True
            if immediate:
                while self._qsize():
                    self._get()
                    if self.unfinished_tasks > 0:
                        self.unfinished_tasks -= 1
                self.all_tasks_done.notify_all()
            self.not_empty.notify_all()
            self.not_full.notify_all()

    async def _classic_put_async(self, item: T) -> None:
        async with self.not_full:
            while not self.is_shutdown and 0 < self.maxsize <= self._qsize():
                await self.not_full.wait_async()
            if self.is_shutdown:
                raise ShutDown
            self._put(item)
            self.unfinished_tasks += 1
            self.not_empty.notify()

    async def _classic_get_async(self) -> T:
        async with self.not_empty:
            while not self._qsize():
                if self.is_shutdown:
                    raise ShutDown
                await self.not_empty.wait_async()
            item: T = self._get()
            self.not_full.notify()
            return item

    async def _classic_join_async(self) -> None:
        async with self.all_tasks_done:
            while self.unfinished_tasks:
                await self.all_tasks_done.wait_async()


class LifoQueue(Queue[T], _standard.LifoQueue[T]):
    """A `Queue` that gives the item that was put last; see `queue.LifoQueue`."""

    _lifo = True


class PriorityQueue(Queue[T], _standard.PriorityQueue[T]):  # type: ignore[type-var]
    """A `Queue` that gives the smallest item; see `queue.PriorityQueue`.

    Items are compared by Python, so it costs about as much as the standard one.
    """

    if not TYPE_CHECKING:
        put, get = Queue._classic_put, Queue._classic_get


class SimpleQueue(_rust.SimpleQueue):
    """An unbounded queue without `task_done`; see `queue.SimpleQueue`.

    `put` may be called anywhere, in signal handlers and destructors too. Safe to use from any thread and any
    event loop. In the child of a fork it has the items that it had, and nobody waits.
    """

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    async def put_async(self, item: Any) -> None:
        """Put an item, as `put` does. Raises `ShutDown` if the queue has been shut down."""
        self.put(item)

    async def get_async(self) -> Any:
        """Take an item; wait for one if there is none. Raises `ShutDown` if there will be none."""
        item = self._take()
        return (await _get_in_line(self)) if item is _NOTHING else item

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object: a queue belongs to its process")


async def _get_in_line(queue: Queue[Any] | SimpleQueue) -> Any:
    """Wait in line for an item."""
    from plait._in_line import running_bell

    loop, bell = running_bell()
    place: _rust.QueueWaiter | None = None
    while True:
        future = loop.create_future()
        found = queue._enter_get(bell, future, place)
        if found is None:
            assert isinstance(queue, Queue)
            return await queue._classic_get_async()
        done, value = found
        if done:
            return value
        place = value
        try:
            await future
        except BaseException:
            queue._leave_get(place)
            raise


def _deadline(timeout: float) -> float:
    if timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    if timeout != timeout:  # The standard class would look without end.
        raise ValueError("Invalid value NaN (not a number)")
    return monotonic() + timeout


_becoming = _rust.RLock()
# Also done where futures are used; more than once does no harm.
os.register_at_fork(after_in_child=_rust.forget_waiting_threads)
