"""The interpreter's lock (the GIL): how much of the time it is held, how long threads wait, if it is on.

`contention` measures for a moment, `Watch` for as long as you like. A thread of Rust asks for the lock at
random moments, about a hundred times a second, and measures how long it takes to get it. Nothing has to be
installed, and no special rights are needed.
"""

from __future__ import annotations

import atexit
import functools
import importlib.machinery
import os
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

from plait import _rust

__all__ = ["Contention", "Watch", "contention", "is_enabled", "turned_on_by"]


@dataclass(frozen=True, slots=True)
class Contention:
    """What a `Watch` has seen so far."""

    enabled: bool
    """Whether this Python runs with a GIL at the moment."""
    held: float
    """The share of the time, from 0 to 1, in which some thread held the GIL: of the asks, those that waited
    for more than 50 µs."""
    mean_wait: float
    """How long, in seconds, a thread that asks for it waits on average."""
    longest_wait: float
    """The longest of these waits, in seconds."""
    asks: int
    """How often it was asked for. With fewer than a hundred, take the rest as a hint."""
    seconds: float
    """For how long it was watched."""
    turned_on_by: str | None
    """On a free-threaded build whose GIL is on: what turned it on. See `turned_on_by`."""

    def __str__(self) -> str:
        if not self.enabled:
            return "there is no GIL: threads run at the same time"
        text = (
            f"the GIL is held {self.held:.0%} of the time; a thread that asks for it waits"
            f" {self.mean_wait * 1e3:.2f} ms on average, {self.longest_wait * 1e3:.1f} ms at most"
            f" ({self.asks} asks in {self.seconds:.1f} s)"
        )
        if self.turned_on_by is not None:
            text += f"; this Python could do without, but it was turned on by {self.turned_on_by}"
        return text


class Watch:
    """Watches the GIL from `start` (or the beginning of a ``with`` block) until `stop` (or its end).

    Costs about 20 µs of CPU time per ask. Where threads compute in pure Python, each ask makes one of them
    hand over the GIL once. Thread-safe; in the child of a fork it is not watching.

    Args:
        interval: the mean time between two asks, in seconds.

    Raises:
        ValueError: the interval is not above 0.
    """

    def __init__(self, interval: float = 0.01) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be a number of seconds above 0, not {interval!r}")
        self._interval = float(interval)
        self._watch: _rust.GilWatch | None = None
        self._began = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        """Begin anew; does nothing if it is watching already."""
        if self._watch is None:
            self._began = time.monotonic()
            self._watch = _rust.GilWatch(self._interval)
            self._last = self._watch
            _watches.add(self)

    def stop(self) -> None:
        """Watch no longer; what was seen stays. May be called again."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._seconds = time.monotonic() - self._began
            watch.stop()

    def contention(self) -> Contention:
        """What was seen so far. Raises RuntimeError if it was never started."""
        last: _rust.GilWatch | None = getattr(self, "_last", None)
        if last is None:
            raise RuntimeError("this watch was not started")
        asks, taken, waited, longest = last.tally()
        seconds = self._seconds if self._watch is None else time.monotonic() - self._began
        many = max(1, asks)
        return Contention(is_enabled(), taken / many, waited / many, longest, asks, seconds, turned_on_by())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _forget_thread(self) -> None:
        if self._watch is not None:
            self._watch.forget_thread()
            self._watch = None


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def contention(seconds: float = 0.25) -> Contention:
    """Watch the GIL for so many seconds, and give what was seen of the other threads.

    The calling thread sleeps meanwhile: from a coroutine, use `Watch`. Raises ValueError if ``seconds`` is
    not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, not {seconds!r}")
    with Watch(min(0.01, seconds / 25)) as watch:
        time.sleep(seconds)
    return watch.contention()


def is_enabled() -> bool:
    """Whether this Python runs with a GIL now: always, except on a free-threaded build."""
    asked: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return True if asked is None else asked()


def turned_on_by() -> str | None:
    """What turned on the GIL of a free-threaded build; None on other builds, and while it is off.

    The name of the import, if this module (`plait.gil`) had been imported before; otherwise the extension
    modules that may have done it.
    """
    if not _IS_FREE_THREADED or not is_enabled():
        return None
    if _culprit is not None:
        return f"the import of {_culprit!r}"
    if getattr(sys.flags, "gil", None) == 1:
        return "the option -X gil=1 or PYTHON_GIL=1"
    return f"the import of one of {', '.join(_extensions_before) or 'the modules loaded before plait.gil'}"


_IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
_culprit: str | None = None
_extensions_before: list[str] = []


def _extensions() -> list[str]:
    """The extension modules loaded so far that are not Python's own."""
    loader = importlib.machinery.ExtensionFileLoader
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if isinstance(getattr(getattr(module, "__spec__", None), "loader", None), loader)
        and name.partition(".")[0] not in sys.stdlib_module_names
    )


def _note_culprit(loader: type[importlib.machinery.ExtensionFileLoader]) -> None:
    """Have the loader of extension modules note the one whose loading turns the GIL on."""

    def noting(load: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(load)
        def wrapped(self: Any, target: importlib.machinery.ModuleSpec | ModuleType) -> Any:
            global _culprit
            was_on = is_enabled()
            try:
                return load(self, target)
            finally:
                if not was_on and is_enabled():
                    _culprit = getattr(target, "name", None) or getattr(target, "__name__", "?")

        return wrapped

    loader.create_module = noting(loader.create_module)  # type: ignore[method-assign]
    loader.exec_module = noting(loader.exec_module)  # type: ignore[method-assign]


if _IS_FREE_THREADED:
    if is_enabled():
        _extensions_before = _extensions()
    else:
        _note_culprit(importlib.machinery.ExtensionFileLoader)


def _stop_all() -> None:
    """Before the interpreter is taken apart: nobody may ask for it any more."""
    for watch in list(_watches):
        watch.stop()


def _forget_threads() -> None:
    for watch in list(_watches):
        watch._forget_thread()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_threads)
