"""How coroutines stand in line for plait's locks: on a future of their loop, which the loop's bell completes.

Whoever is cancelled while it waits leaves the line; if it was granted something in that very instant, that is
passed on, so nothing is lost. Imported when a coroutine has to wait for the first time.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from plait import _rust

if TYPE_CHECKING:
    from plait.threading import Barrier, Condition, Event

__all__ = ["acquire", "arrive", "enter", "running_bell", "wait_for_event", "wait_for_notification"]

_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _rust.LoopBell] = weakref.WeakKeyDictionary()

watching = False
"""Whether the following two are kept, for `plait.threading.watch`."""
waits: dict[asyncio.Task[Any], tuple[object, float]] = {}
"""The tasks that wait for a lock, and since when (`time.monotonic`)."""
holders: dict[int, tuple[weakref.ref[asyncio.Task[Any]], int]] = {}
"""The tasks that have acquired a lock, by an odd number, which no thread has; and the thread that ran it."""


def running_bell() -> tuple[asyncio.AbstractEventLoop, _rust.LoopBell]:
    """The running loop and its bell. Raises `RuntimeError` if no loop runs in this thread."""
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        # Two threads never run one loop, so nobody else makes a bell for this one.
        bell = _bells[loop] = _rust.LoopBell(loop)
        if not isinstance(loop, _rust.EventLoop):
            with suppress(NotImplementedError):  # the loop has no `add_reader`
                # Not in the context of whoever is the first to wait: it would be kept as long as the loop.
                contextvars.Context().run(bell.listen, loop)
    return loop, bell


async def acquire(lock: _rust.Lock | _rust.Semaphore) -> bool:
    """Take a unit; wait for it as long as it takes. Returns True."""
    if not lock.acquire(False):
        await enter(lock)
    elif watching:
        _note_holder(lock)
    return True


async def enter(lock: _rust.Lock | _rust.Semaphore) -> None:
    """Take a unit that was perhaps not there a moment ago."""
    if not watching:
        await _enter(lock)
        return
    task = asyncio.current_task()
    if task is not None:
        waits[task] = (lock, time.monotonic())
    try:
        await _enter(lock)
    finally:
        if task is not None:
            waits.pop(task, None)
    _note_holder(lock)


def _note_holder(lock: _rust.Lock | _rust.Semaphore) -> None:
    """Have the lock tell that this task has it."""
    task = asyncio.current_task()
    if task is None or not isinstance(lock, _rust.Lock):
        return
    number = id(task) | 1
    if number not in holders:
        reference = weakref.ref(task, lambda _: holders.pop(number, None))
        holders[number] = (reference, threading.get_ident())
    lock._set_holder(number)


async def _enter(lock: _rust.Lock | _rust.Semaphore) -> None:
    loop, bell = running_bell()
    future = loop.create_future()
    waiter = lock._join(bell, future)
    while waiter is not None:
        try:
            await future
        except BaseException:
            if lock._leave(waiter):
                lock.release()
            raise
        future = loop.create_future()
        waiter = lock._settle(waiter, bell, future)


async def wait_for_event(event: Event) -> None:
    """Wait until it is set."""
    loop, bell = running_bell()
    future = loop.create_future()
    waiter = event._join(bell, future)
    if waiter is not None:
        try:
            await future
        except BaseException:
            event._leave(waiter)
            raise


async def wait_for_notification(condition: Condition) -> None:
    """Let go of the condition's lock, wait to be notified, and have the lock again, whatever happens."""
    loop, bell = running_bell()
    future = loop.create_future()
    lock = condition._lock
    waiter = condition._join(bell, future)
    lock.release()
    try:
        await future
    except BaseException:
        if condition._leave(waiter):
            condition._pass_on()
        raise
    finally:
        cancelled = None
        while True:
            try:
                await acquire(lock)
                break
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled


async def arrive(barrier: Barrier) -> tuple[int, bool] | None:
    """Arrive and wait for the others: the index, and whether this is the last one. None if it is broken."""
    loop, bell = running_bell()
    while True:
        future = loop.create_future()
        arrived = barrier._join(bell, future)
        if arrived is None:
            return None
        index, waiter = arrived
        if waiter is None:
            return (index or 0), True
        try:
            await future
        except BaseException:
            barrier._leave(waiter)
            raise
        fate = barrier._fate(waiter)
        if fate == "passed":
            return (index or 0), False
        if fate == "broken":
            return None
