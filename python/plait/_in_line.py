"""How coroutines stand in line for plait's locks: on a future of their loop, which the loop's bell completes.

Whoever is cancelled while it waits leaves the line; if it was granted something in that very instant, that is
passed on, so nothing is lost. Imported when a coroutine has to wait for the first time.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from plait import _rust

if TYPE_CHECKING:
    from plait.threading import Barrier, Condition, Event

__all__ = ["acquire", "arrive", "enter", "running_bell", "wait_for_event", "wait_for_notification"]

_bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _rust.LoopBell] = weakref.WeakKeyDictionary()


def running_bell() -> tuple[asyncio.AbstractEventLoop, _rust.LoopBell]:
    """The running loop and its bell. Raises `RuntimeError` if no loop runs in this thread."""
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        # Two threads never run one loop, so nobody else makes a bell for this one.
        bell = _bells[loop] = _rust.LoopBell(loop)
    return loop, bell


async def acquire(lock: _rust.Lock | _rust.Semaphore) -> bool:
    """Take a unit; wait for it as long as it takes. Returns True."""
    if not lock.acquire(False):
        await enter(lock)
    return True


async def enter(lock: _rust.Lock | _rust.Semaphore) -> None:
    """Take a unit that was not there a moment ago."""
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
