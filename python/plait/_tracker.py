"""One resource tracker for a program and its workers, as for all processes that multiprocessing starts.

A worker that makes a `SharedMemory` would start a tracker of its own, which removes the segment when the
worker leaves, while the program still uses it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["with_tracker"]


def with_tracker(initializer: Callable[..., object] | None) -> Callable[..., object] | None:
    """The initializer, which also tells its worker of this program's tracker if the program may need one."""
    if "multiprocessing.shared_memory" not in sys.modules or not (
        initializer is None or callable(initializer)
    ):
        return initializer
    from multiprocessing import resource_tracker

    fd = resource_tracker.getfd()
    return initializer if fd is None else _Initializer(initializer, os.getpid(), fd)


class _Initializer:
    """Takes over the tracker of the process that has it open as `fd`, then calls what there is to call."""

    def __init__(self, initializer: Callable[..., object] | None, pid: int, fd: int) -> None:
        self.initializer = initializer
        self.pid = pid
        self.fd = fd
        self.__qualname__ = getattr(initializer, "__qualname__", "initializer")

    def __call__(self, *args: Any) -> None:
        from multiprocessing import resource_tracker

        tracker: Any = resource_tracker._resource_tracker
        if tracker._fd is None:  # else inherited
            tracker._fd = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC)
        if self.initializer is not None:
            self.initializer(*args)
