"""`multiprocessing.heap`: memory for shared values, in nameless files instead of `/dev/shm`. Thread-safe.

A block that another process may have (it was pickled, or this process was forked since it was made) is
not used again when its wrapper dies here, as the standard one is; it goes with its arena.
"""

from __future__ import annotations

import copyreg
import mmap
import os
import sys
from collections.abc import Callable
from multiprocessing import heap as _standard
from multiprocessing import util
from typing import Any

from plait.multiprocessing._handover import descriptor, receive
from plait.multiprocessing._standard import fall_back, with_globals

_forks = 0


def _note_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_note_fork)


class Arena:
    """A piece of shared memory that blocks lie in. Takes `fd` over, if it is given one."""

    def __init__(self, size: int, fd: int = -1) -> None:
        if fd == -1:
            fd = os.memfd_create("plait-heap", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.size = size
        self.fd = fd
        util.Finalize(self, os.close, (fd,))
        self.buffer = mmap.mmap(fd, size)


def reduce_arena(arena: Arena) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Pickle an arena as the descriptor of its memory."""
    return receive, (descriptor(arena.fd), rebuild_arena, (arena.size,))


def rebuild_arena(fd: int, size: int) -> Arena:
    """Return the arena behind a descriptor, of which it makes a duplicate."""
    return Arena(size, os.dup(fd))


copyreg.pickle(Arena, reduce_arena)


class Heap(_standard.Heap):
    """Hands out blocks of arenas."""

    _new_arena = with_globals(_standard.Heap._new_arena, Arena=Arena)


class BufferWrapper(_standard.BufferWrapper):
    """A block of shared memory. Raises ValueError or OverflowError for a size that cannot be."""

    _heap: Any = Heap()
    _state: Any
    _free: util.Finalize[None] | None

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"Size {size:n} out of range")
        if sys.maxsize <= size:
            raise OverflowError(f"Size {size:n} too large")
        heap = BufferWrapper._heap
        block = heap.malloc(size)
        self._state = (block, size)
        self._free = util.Finalize(self, _free, args=(heap, block, _forks, os.getpid()))

    def __getstate__(self) -> Any:
        # Unpickled elsewhere, it has no claim on the block; and here, none that ends.
        if self._free is not None:
            self._free.cancel()
        return self._state

    def __setstate__(self, state: Any) -> None:
        self._state = state
        self._free = None


def _free(heap: Any, block: Any, forks: int, pid: int) -> None:
    if forks == _forks and pid == os.getpid():
        heap.free(block)


fall_back(globals(), _standard)
