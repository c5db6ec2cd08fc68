"""`multiprocessing.context`: start methods, each of which makes plait's kind of everything.

The standard classes are the base classes, and what they share is shared with ours: the current
process, the `popen` that is being started, the reducer.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
from multiprocessing import context as _standard
from multiprocessing import process as _process
from typing import Any

from plait.multiprocessing._standard import fall_back


class BaseContext(_standard.BaseContext):
    """What a start method can make. Bound methods of the default one are the functions of the package."""

    def Manager(self) -> Any:
        """Return a manager whose server process is running. It ends when this process does, in any case."""
        from plait.multiprocessing.managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Pipe(self, duplex: bool = True) -> Any:
        """Return the two ends of a pipe; with ``duplex=False`` the first receives, the second sends."""
        from plait.multiprocessing.connection import Pipe

        return Pipe(duplex)

    def Lock(self) -> Any:
        """Return a lock between processes."""
        from plait.multiprocessing.synchronize import Lock

        return Lock(ctx=self.get_context())

    def RLock(self) -> Any:
        """Return a lock between processes that its holder may take again."""
        from plait.multiprocessing.synchronize import RLock

        return RLock(ctx=self.get_context())

    def Condition(self, lock: Any = None) -> Any:
        """Return a condition between processes."""
        from plait.multiprocessing.synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1) -> Any:
        """Return a semaphore between processes."""
        from plait.multiprocessing.synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1) -> Any:
        """Return a semaphore between processes that is never above its first value."""
        from plait.multiprocessing.synchronize import BoundedSemaphore

        return BoundedSemaphore(value, ctx=self.get_context())

    def Event(self) -> Any:
        """Return an event between processes."""
        from plait.multiprocessing.synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(self, parties: int, action: Any = None, timeout: float | None = None) -> Any:
        """Return a barrier between processes; `timeout` in seconds."""
        from plait.multiprocessing.synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize: int = 0) -> Any:
        """Return a queue between processes."""
        from plait.multiprocessing.queues import Queue

        return Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0) -> Any:
        """Return a queue between processes that counts what is not done yet."""
        from plait.multiprocessing.queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self) -> Any:
        """Return a queue between processes with no more than `put`, `get` and `empty`."""
        from plait.multiprocessing.queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())

    def Pool(
        self,
        processes: int | None = None,
        initializer: Any = None,
        initargs: Any = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        """Return a pool of processes: `plait.multiprocessing.pool.Pool`."""
        from plait.multiprocessing.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context())

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """Return a ctypes object in shared memory."""
        from plait.multiprocessing.sharedctypes import RawValue

        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
        """Return a ctypes array in shared memory."""
        from plait.multiprocessing.sharedctypes import RawArray

        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """Return a ctypes object in shared memory with a lock."""
        from plait.multiprocessing.sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """Return a ctypes array in shared memory with a lock."""
        from plait.multiprocessing.sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def set_forkserver_preload(self, module_names: list[str]) -> None:
        """Name the modules that the zygote is to import. To be called before it is running."""
        from plait.multiprocessing.forkserver import set_forkserver_preload

        set_forkserver_preload(module_names)

    def get_context(self, method: str | None = None) -> Any:
        """Return this context, or that of another start method. Raises ValueError if there is none."""
        if method is None:
            return self
        try:
            context = _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        context._check_available()
        return context


class _Bootstrap(_process.BaseProcess):
    """What the child of every start method does first."""

    _start_method: str | None

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        if self._start_method is not None:
            _force_start_method(self._start_method)
        if self.daemon and parent_sentinel is not None:
            _end_with_parent(parent_sentinel)
        code: int = super()._bootstrap(parent_sentinel)
        return code


def _end_with_parent(sentinel: int) -> None:
    """Have the kernel kill this process, a daemon, when its parent is gone without having ended it.

    The sentinel is a pipe that nobody writes to any more, so the signal that it is asked to send can only
    mean that its other end is closed. (The zygote's children have a pidfd, and the zygote watches for them.)
    """
    if stat.S_ISFIFO(os.fstat(sentinel).st_mode):
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        poll = select.poll()
        poll.register(sentinel, select.POLLIN)
        if poll.poll(0):
            os.kill(os.getpid(), signal.SIGKILL)


class Process(_Bootstrap, _standard.Process):
    """A process started by the default start method."""

    _start_method: str | None = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        context = _default_context.get_context()
        process_obj._start_method = context._name  # the default one of the child
        return context.Process._Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        _default_context.get_context().Process._after_fork()


class DefaultContext(BaseContext, _standard.DefaultContext):
    """The context whose start method can be chosen, once."""

    Process = Process

    def __init__(self, context: BaseContext) -> None:
        self._default_context = context
        self._actual_context: Any = None

    def get_context(self, method: str | None = None) -> Any:
        """Return the chosen context, or that of a start method. Raises ValueError if there is none."""
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def get_all_start_methods(self) -> list[str]:
        """Return the start methods, the default one first."""
        return ["forkserver", "spawn", "fork"]


class ForkProcess(_Bootstrap, _standard.ForkProcess):
    """A process forked from this one."""


class SpawnProcess(_Bootstrap, _standard.SpawnProcess):
    """A process with a fresh interpreter."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        from plait.multiprocessing.popen_spawn_posix import Popen

        return Popen(process_obj)


class ForkServerProcess(_Bootstrap, _standard.ForkServerProcess):
    """A process forked from the zygote."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        from plait.multiprocessing.popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext, _standard.ForkContext):
    """Processes are forked from this one."""

    Process = ForkProcess


class SpawnContext(BaseContext, _standard.SpawnContext):
    """Processes are fresh interpreters."""

    Process = SpawnProcess


class ForkServerContext(BaseContext, _standard.ForkServerContext):
    """Processes are forked from the zygote, which has one thread and has imported what they need."""

    Process = ForkServerProcess


_concrete_contexts: dict[str, BaseContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}
_default_context = DefaultContext(_concrete_contexts["forkserver"])


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]


fall_back(globals(), _standard)
