"""What is said when one callback or task holds up an event loop: where it is meanwhile, how long it took.

The watch is a thread in Rust (`crates/python/src/event_loop/stall_watch.rs`): it calls `tell` during the
stall; the loop calls `ended` afterwards. Each place is told of once in a process.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from plait import _rust

if TYPE_CHECKING:
    from plait.event_loop import EventLoop

# The loops that may be told of, by the number of their pulse.
loops: WeakValueDictionary[int, EventLoop] = WeakValueDictionary()

# A program whose stalls are all elsewhere must not fill the memory with places.
_MOST_PLACES = 1000
_told: set[tuple[str, ...]] = set()


class Stall(NamedTuple):
    """A stall that the watch has seen: who it was, and whether it was told of."""

    culprit: str
    is_told: bool


def tell(number: int) -> None:
    """In the watch's thread, during a stall: say where the loop is, if that was not said before."""
    loop: Any = loops.get(number)
    if loop is None or loop._thread_id is None:
        return
    frame = sys._current_frames().get(loop._thread_id)
    frames = _inside_the_loop(frame)
    if not frames:
        return
    inner = frames[-1].f_code
    task = asyncio.current_task(loop)
    culprit = "a callback" if task is None else _name(task)
    is_new = _is_new((inner.co_filename, inner.co_qualname))
    loop._stall = Stall(culprit, is_new)
    if is_new:
        summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
        _logger().warning(
            "the event loop has been held up for %.3g s by %s, which is here:\n%s",
            loop.stall_after or 0.0,
            culprit,
            "".join(summary.format()).rstrip(),
        )


def ended(loop: EventLoop, item: object, seconds: float) -> None:
    """In the loop's thread, after a stall: say how long it took."""
    stall: Stall | None = vars(loop).pop("_stall", None)
    if stall is None:
        culprit = _of_item(item)
        if _is_new(("", culprit)):
            _logger().warning(
                "the event loop was held up for %.3g s by %s, which kept the GIL: nobody could see where",
                seconds,
                culprit,
            )
    elif stall.is_told:
        _logger().warning("the event loop was held up for %.3g s by %s", seconds, stall.culprit)


def _inside_the_loop(frame: FrameType | None) -> list[FrameType]:
    """The frames of what the loop runs, innermost last."""
    frames: list[FrameType] = []
    while frame is not None:
        code = frame.f_code
        if code.co_name == "run_forever" and code.co_filename == _LOOP_FILE:
            break
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


_LOOP_FILE = str(Path(__file__).with_name("event_loop.py"))


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return f"task {task.get_name()!r} ({getattr(coroutine, '__qualname__', coroutine)})"


def _of_item(item: object) -> str:
    callback = getattr(item, "_callback", item)
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return _name(owner)
    return f"callback {getattr(callback, '__qualname__', type(callback).__qualname__)}"


def _is_new(place: tuple[str, ...]) -> bool:
    if place in _told or len(_told) >= _MOST_PLACES:
        return False
    _told.add(place)
    return True


def _logger() -> logging.Logger:
    return logging.getLogger("plait")


# Before the interpreter is taken apart: the watch must not ask for it any more.
atexit.register(_rust.end_stall_watch)
os.register_at_fork(after_in_child=_rust.forget_stall_watch)
