"""How a coroutine waits for a job's future, and how its event loop hears of the end.

Whoever ends a job resolves its future on a thread of the pool, which then wakes the loop: a thread more than
is needed. While a loop waits for jobs of a process pool it therefore hears that pool's workers itself: they
ring a doorbell that the loop polls among its own descriptors
(`crates/engine/src/process_pool/listener.rs`). One loop can do that for a pool at a time; other loops, and
loops that cannot poll, are woken by the pool's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize, ref

if TYPE_CHECKING:
    from concurrent.futures import Future

    from plait import _rust
    from plait.future import Future as PlaitFuture

_IDLE_SECONDS = 0.1
"""How long a loop goes on listening when it waits for nothing: the next job is often near."""


def wait_in_loop(
    future: PlaitFuture[Any], loop: asyncio.AbstractEventLoop | None = None
) -> asyncio.Future[Any]:
    """A future of `loop` (the running one) that ends as `future` does; cancelling it cancels `future`."""
    if loop is None:
        loop = asyncio.get_running_loop()
    waiter: asyncio.Future[Any] = loop.create_future()
    if future.done():
        _copy(future, waiter)
        return waiter
    thread = get_ident()
    listener = future._listener()
    if listener is not None and not _listens(loop, listener):
        listener = None
    if listener is not None:
        listener.expect(future)

    def copy() -> None:
        if listener is not None:
            listener.forget(future)
        _copy(future, waiter)

    def ended(_future: Future[Any]) -> None:
        if get_ident() == thread:
            copy()
        else:
            # A loop that was closed meanwhile waits for nothing.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(copy)

    def given_up(waiter: asyncio.Future[Any]) -> None:
        if waiter.cancelled():
            future.cancel()

    waiter.add_done_callback(given_up)
    future.add_done_callback(ended)
    return waiter


def _copy(future: PlaitFuture[Any], waiter: asyncio.Future[Any]) -> None:
    """Let `waiter` end as `future` has ended."""
    if waiter.done():
        return
    if future.cancelled():
        waiter.cancel()
        return
    error = future.exception()
    if error is None:
        waiter.set_result(future.result())
    else:
        # An exception of concurrent.futures becomes that of asyncio, as with asyncio's futures of threads.
        waiter.set_exception(asyncio.futures._convert_future_exc(error))  # type: ignore[attr-defined]


class _Listening:
    """An event loop that hears the workers of a pool. Used by the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: _rust.Listener, doorbell: int) -> None:
        """Begin; raises NotImplementedError if this kind of loop cannot poll."""
        loop.add_reader(doorbell, listener.hear)
        # Whatever was rung for before is heard, too.
        loop.call_soon(listener.hear)
        # Not the loop itself: what belongs to a loop that is gone must not keep it alive.
        self.loop = ref(loop)
        self.listener = listener
        self.doorbell = doorbell
        self.end = finalize(loop, _end, listener, doorbell)
        self.end.atexit = False
        self.heard = 0
        loop.call_later(_IDLE_SECONDS, self.look, loop)

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop, if the loop has not waited for anything lately."""
        before, self.heard = self.heard, self.listener.expected
        if self.heard != before or self.listener.awaits():
            loop.call_later(_IDLE_SECONDS, self.look, loop)
        else:
            self.stop()

    def stop(self) -> None:
        """Leave the workers to the pool's own thread again."""
        loop = self.loop()
        if loop is not None:
            if not loop.is_closed():
                loop.remove_reader(self.doorbell)
            del _by_loop[loop][id(self.listener)]
        self.end()


def _end(listener: _rust.Listener, doorbell: int) -> None:
    os.close(doorbell)
    listener.end()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Listening]] = WeakKeyDictionary()
"""Which loops hear which pools, by the address of the pool's listener, which the entry keeps alive."""


def _listens(loop: asyncio.AbstractEventLoop, listener: _rust.Listener) -> bool:
    """Whether the running `loop` hears that pool's workers, from now on if it did not before."""
    heard = _by_loop.setdefault(loop, {})
    if id(listener) in heard:
        return True
    doorbell = listener.begin()
    if doorbell is None:
        _stop_closed_loops(listener)
        doorbell = listener.begin()
        if doorbell is None:
            return False
    try:
        heard[id(listener)] = _Listening(loop, listener, doorbell)
    except NotImplementedError:
        _end(listener, doorbell)
        return False
    return True


def _stop_closed_loops(listener: _rust.Listener) -> None:
    """Loops that were closed, but not collected yet, do not hear anything."""
    for loop, heard in list(_by_loop.items()):
        if loop.is_closed() and id(listener) in heard:
            heard[id(listener)].stop()
