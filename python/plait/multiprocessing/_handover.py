"""How an object in nameless shared memory goes to another process: as a descriptor, and where it lies there.

While a process is being started, what starts it passes the descriptor. At any other time (an argument of a
pool's job, an item of a queue) the receiver opens it in the sender's `/proc/PID/fd`, so the sender must be
alive and have the object until then. Safe from any thread.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable
from multiprocessing import context, reduction
from typing import Any, Protocol, TypeVar


class InSharedMemory(Protocol):
    """An object of `plait._rust` that lies in shared memory."""

    def _locate(self) -> tuple[int, tuple[Any, ...]]: ...

    @staticmethod
    def _rebuild(fd: int, /, *where: Any) -> Any: ...


T = TypeVar("T")


def can_be_sent(cls: type[InSharedMemory]) -> None:
    """Let objects of a class be pickled for other processes."""

    def reduce(obj: InSharedMemory) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        fd, where = obj._locate()
        return receive, (descriptor(fd), cls._rebuild, where)

    copyreg.pickle(cls, reduce)


def receive(arrived: _Arrived, rebuild: Callable[..., T], where: tuple[Any, ...]) -> T:
    """Return the object that lies at `where` in the memory behind a descriptor."""
    return rebuild(arrived.fd, *where)


def descriptor(fd: int) -> object:
    """Return what pickles as a descriptor. Unpickled, it has an open one as ``fd`` while it lives."""
    popen = context.get_spawning_popen()
    if popen is None:
        return _Open(fd)
    # One per descriptor and child: some ways to start a process refuse to pass the same one twice.
    passed: dict[int, _Passed] = vars(popen).setdefault("_plait_descriptors", {})
    if fd not in passed:
        passed[fd] = _Passed(reduction.DupFd(fd))
    return passed[fd]


def kept(obj: InSharedMemory | None) -> object:
    """Return what pickles as the object, to be received once; this process may let go of it before."""
    return None if obj is None else _Kept(obj)


class _Kept:
    """An object whose descriptor the start of a process or the standard resource sharer keeps."""

    def __init__(self, obj: InSharedMemory) -> None:
        self.obj = obj

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        fd, where = self.obj._locate()
        starting = context.get_spawning_popen() is not None
        duplicate = descriptor(fd) if starting else _Passed(reduction.DupFd(fd))
        return receive, (duplicate, self.obj._rebuild, where)


class _Passed:
    """A descriptor that goes to a child with the child's start."""

    def __init__(self, duplicate: Any) -> None:
        self.duplicate = duplicate

    def __reduce__(self) -> tuple[Callable[..., _Arrived], tuple[Any, ...]]:
        return _inherit, (self.duplicate,)


class _Open:
    """A descriptor that is opened by whoever is told of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Callable[..., _Arrived], tuple[int, ...]]:
        told = os.fstat(self.fd)
        return _open, (os.getpid(), self.fd, told.st_dev, told.st_ino)


class _Arrived:
    """An open descriptor, closed when the last object that was made from it has a duplicate."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)


def _inherit(duplicate: Any) -> _Arrived:
    return _Arrived(duplicate.detach())


def _open(pid: int, fd: int, device: int, inode: int) -> _Arrived:
    try:
        arrived = _Arrived(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise _gone(pid) from error
    found = os.fstat(arrived.fd)
    if (found.st_dev, found.st_ino) != (device, inode):
        raise _gone(pid)
    return arrived


def _gone(pid: int) -> OSError:
    return FileNotFoundError(
        f"an object in shared memory was sent by process {pid}, which has ended or no longer has the object"
    )
