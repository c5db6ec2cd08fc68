"""Finds threads and coroutines that wait for each other in a circle: what `plait.threading.watch` does.

A thread looks now and then who waits for what and who holds it, and follows that from one to the next. Only
when that leads back to where it began is there something to tell: a long wait alone is no deadlock. Nor is a
thread that waits for a plain `Lock` which it acquired itself: that is how a lock serves as a signal.

Where the knowledge comes from: a thread that has to wait for a `Lock` or an `RLock` says so
(`_rust.lock_waits`), a coroutine does in `plait._in_line`; a lock knows who acquired it last; and a thread in
`Thread.join` is recognised by its stack. A coroutine also waits for its loop's thread, if that is blocked.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

from plait import _in_line, _rust

__all__ = ["Deadlock", "Wait", "Watch"]

Party = int | asyncio.Task[Any]
"""Who waits or holds: a thread, by its number, or a task."""


@dataclass(frozen=True)
class Wait:
    """One of those that wait in a circle."""

    who: str
    """The thread or task, by its name."""
    seconds: float
    """How long it has waited; for `Thread.join` and blocked loops, since this was first seen."""
    what: str
    """What it waits for."""
    holder: str
    """The thread or task that it waits for thereby: the next in the circle."""
    stack: str
    """Where it waits."""


@dataclass(frozen=True)
class Deadlock:
    """A circle of waits; ``str`` of it is the report."""

    waits: tuple[Wait, ...]

    def __str__(self) -> str:
        text = io.StringIO()
        text.write(f"plait: deadlock: {len(self.waits)} wait for each other in a circle\n")
        for wait in self.waits:
            text.write(f"{wait.who} has waited {wait.seconds:.1f} s for {wait.what}, held by {wait.holder}\n")
            text.write(wait.stack)
        return text.getvalue()


@dataclass(frozen=True)
class Edge:
    """That one waits for another."""

    waiter: Party
    what: object
    since: float
    holder: Party

    @property
    def key(self) -> tuple[int, int, int]:
        return (_number(self.waiter), id(self.what), _number(self.holder))


def _number(party: Party) -> int:
    return party if isinstance(party, int) else id(party) | 1


class Watch:
    """A running watch; `stop` ends it, as does leaving a ``with`` block. Thread-safe. No fork copies it."""

    def __init__(self, limit: float, report: Callable[[Deadlock], object] | None) -> None:
        if not limit > 0:
            raise ValueError(f"limit must be a number of seconds above 0, not {limit!r}")
        self._limit = limit
        self._report = _print if report is None else report
        self._stopped = threading.Event()
        self._told: set[frozenset[tuple[int, int, int]]] = set()
        # When a wait that does not tell by itself was first seen.
        self._seen: dict[tuple[int, int, int], float] = {}
        _watching(+1)
        self._thread = threading.Thread(target=self._run, name="plait-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch. May be called again."""
        if not self._stopped.is_set():
            self._stopped.set()
            _watching(-1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        suspects: set[frozenset[tuple[int, int, int]]] = set()
        while not self._stopped.wait(self._limit / 4):
            now = time.monotonic()
            edges = [edge for edge in self._edges(now) if now - edge.since >= self._limit]
            circles = {frozenset(edge.key for edge in circle): circle for circle in _circles(edges)}
            for key, circle in circles.items():
                # Seen twice in a row, so that it is not put together from before and after a change.
                if key in suspects and key not in self._told:
                    self._told.add(key)
                    self._tell(circle, now)
            suspects = set(circles)

    def _tell(self, circle: list[Edge], now: float) -> None:
        deadlock = Deadlock(
            tuple(
                Wait(
                    _name(edge.waiter),
                    now - edge.since,
                    edge.what if isinstance(edge.what, str) else repr(edge.what),
                    _name(edge.holder),
                    _stack(edge.waiter),
                )
                for edge in circle
            )
        )
        try:
            self._report(deadlock)
        except Exception:
            traceback.print_exc()

    def _edges(self, now: float) -> list[Edge]:
        edges = []
        for thread, lock, seconds in _rust.lock_waits():
            holder = _holder(lock)
            if holder is not None and holder != thread:
                edges.append(Edge(thread, lock, now - seconds, holder))
        for task, (lock, since) in list(_in_line.waits.items()):
            holder = _holder(lock)
            if holder is not None and holder is not task:
                edges.append(Edge(task, lock, since, holder))
        unseen = [Edge(thread, "its end", now, joined) for thread, joined in _joins()]
        blocked = {edge.waiter for edge in [*edges, *unseen] if isinstance(edge.waiter, int)}
        for reference, thread in list(_in_line.holders.values()):
            holding = reference()
            if holding is not None and not holding.done() and thread in blocked:
                unseen.append(Edge(holding, "the thread of its event loop", now, thread))
        seen = {edge.key: self._seen.get(edge.key, now) for edge in unseen}
        self._seen = seen
        edges += [Edge(edge.waiter, edge.what, seen[edge.key], edge.holder) for edge in unseen]
        return edges


def _holder(lock: Any) -> Party | None:
    """Who has it, if it is a lock of which that can be said."""
    number: int | None = lock._holder() if isinstance(lock, _rust.Lock | _rust.RLock) else None
    if number is None or not number & 1:
        return number or None
    reference, _ = _in_line.holders.get(number, (None, 0))
    return None if reference is None else reference()


def _joins() -> Iterable[tuple[int, int]]:
    """The threads that wait, without a timeout, for the end of another, and that other."""
    join: CodeType = threading.Thread.join.__code__
    for number, frame in sys._current_frames().items():
        at: FrameType | None = frame
        for _ in range(3):  # `join` is the innermost Python function, or has another one of its module inside
            if at is None:
                break
            if at.f_code is join:
                joined = at.f_locals.get("self")
                if at.f_locals.get("timeout") is None and joined is not None and joined.ident is not None:
                    yield number, joined.ident
                break
            at = at.f_back


def _circles(edges: list[Edge]) -> list[list[Edge]]:
    """Ways that lead back to where they began, each once or more often."""
    leaving: dict[int, list[Edge]] = {}
    for each in edges:
        leaving.setdefault(_number(each.waiter), []).append(each)
    circles = []
    finished: set[int] = set()
    for start in leaving:
        # Depth first, with a stack of its own: a chain of waits may be longer than Python's.
        path: list[Edge] = []
        on_path = {start: 0}
        branches = [iter(leaving.get(start, ()))]
        while branches:
            edge: Edge | None = next(branches[-1], None)
            if edge is None:
                branches.pop()
                finished.add(_number(path[-1].holder) if path else start)
                if path:
                    on_path.pop(_number(path.pop().holder), None)
                continue
            target = _number(edge.holder)
            if target in on_path:
                circles.append([*path[on_path[target] :], edge])
            elif target not in finished:
                path.append(edge)
                on_path[target] = len(path)
                branches.append(iter(leaving.get(target, ())))
    return circles


def _name(party: Party) -> str:
    if isinstance(party, int):
        thread = next((each for each in threading.enumerate() if each.ident == party), None)
        return f"thread {thread.name!r} ({party})" if thread else f"thread {party}"
    return f"task {party.get_name()!r} ({party.get_coro()!r})"


def _stack(party: Party) -> str:
    if isinstance(party, int):
        frame = sys._current_frames().get(party)
        return "".join(traceback.format_stack(frame)) if frame else ""
    text = io.StringIO()
    party.print_stack(file=text)
    return text.getvalue()


def _print(deadlock: Deadlock) -> None:
    """To standard error, without `logging`, whose own locks may be part of the matter."""
    print(deadlock, file=sys.stderr, end="", flush=True)


_count = 0
_count_lock = threading.Lock()


def _watching(by: int) -> None:
    global _count
    with _count_lock:
        _count += by
        _in_line.watching = _count > 0
        _rust.watch_locks(_count > 0)


def _after_fork() -> None:
    """The watching thread and those that waited are the parent's."""
    global _count, _count_lock
    _count, _count_lock = 0, threading.Lock()
    _in_line.watching = False
    _in_line.waits.clear()
    _rust.watch_locks(False)


os.register_at_fork(after_in_child=_after_fork)
