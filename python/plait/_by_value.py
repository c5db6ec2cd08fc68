"""Pickling what plain pickle refuses: functions of `__main__`, and what `multiprocessing` only lets inherit.

cloudpickle gives every function that it loads globals of its own. In a worker, what comes from ``__main__``
shares its globals instead, as it does where it comes from: an initializer that assigns a global variable
assigns it for the functions that come later.

The standard library's locks, queues and connections can be pickled only while a process is being started. A
pool's workers are started whenever they are needed, so here each says where it can be found: a semaphore by
its name or, if it has none, by its place in memory that a fork inherits; a descriptor by `/proc`.
"""

from __future__ import annotations

import copyreg
import fcntl
import io
import os
import stat
import sys
from collections import ChainMap
from collections.abc import Callable
from pathlib import Path
from pickle import PickleBuffer
from types import FunctionType
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _function_setstate

from plait import _serialize
from plait._serialize import reduce_view

_MAIN = ("__main__", "__mp_main__")


def dumps(
    value: object, protocol: int, buffer_callback: Callable[[PickleBuffer], object] | None = None
) -> bytes:
    """Pickle `value`; raises what pickle raises if it cannot be."""
    main = sys.modules.get("__mp_main__")
    if main is not None and main.__name__ == "__mp_main__":
        # The main module in a child of multiprocessing: our workers do not have it under that name, either.
        cloudpickle.register_pickle_by_value(main)
    with io.BytesIO() as file:
        if "multiprocessing.reduction" not in sys.modules:  # then there is nothing of the kind
            _Pickler({}, file, protocol, buffer_callback).dump(value)
            return file.getvalue()
        from multiprocessing import context, reduction

        known = dict(reduction.ForkingPickler._extra_reducers)  # type: ignore[attr-defined]
        _add_semaphores(known)
        outer = context.get_spawning_popen()
        context.set_spawning_popen(_Handover())  # type: ignore[arg-type] # all that is asked of one
        try:
            _Pickler(known, file, protocol, buffer_callback).dump(value)
        finally:
            context.set_spawning_popen(outer)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    def __init__(self, known: dict[type, Callable[[Any], Any]], *args: Any) -> None:
        # cloudpickle would make bytes of a memoryview.
        ours = {memoryview: reduce_view}
        self.dispatch_table = ChainMap(ours, *cloudpickle.Pickler.dispatch_table.maps, known)
        super().__init__(*args)
        self._main = _Main()

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(func)
        if func.__globals__.get("__name__") not in _MAIN:
            return reduced
        make, (code, _, *rest), state, *_ = reduced
        # The base of its globals is pickled once for all functions of this pickle.
        return make, (code, self._main, *rest), state, None, None, _set_state


class _Main:
    """Stands for the globals of ``__main__`` in a pickle."""

    def __reduce__(self) -> Any:
        return _globals_of_main, ()


_shared: dict[str, Any] = {"__name__": "__main__", "__package__": None}
_sent: dict[str, Any] = {}
"""What was sent last for each of the shared globals."""


def _globals_of_main() -> dict[str, Any]:
    """The globals for functions of one pickle: in a worker the same for all, or those of ``__main__``."""
    if _serialize.is_main_everywhere():
        return vars(sys.modules["__main__"])
    return _shared if "plait._worker" in sys.modules else {"__name__": "__main__", "__package__": None}


def _set_state(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function what its pickle holds; but a global that was assigned here stays as it is."""
    slots = state[1]
    new = slots["__globals__"]
    if _serialize.is_main_everywhere():
        slots["__globals__"] = {
            name: value for name, value in new.items() if name not in function.__globals__
        }
    elif function.__globals__ is _shared:
        slots["__globals__"] = {
            name: value
            for name, value in new.items()
            if name not in _shared or (name in _sent and _shared[name] is _sent[name])
        }
        _sent.update(new)
    _function_setstate(function, state)


class _Handover:
    """What stands in the place of the standard library's `popen` while something is pickled for a worker."""

    @staticmethod
    def duplicate_for_child(fd: int) -> int:
        """Name a descriptor for `DupFd`."""
        return fd

    @staticmethod
    def DupFd(fd: int) -> Any:
        """Return what gives the descriptor to whoever unpickles it.

        A socket cannot be opened by another process; it is handed over by a thread, and once.
        """
        status = os.fstat(fd)
        if stat.S_ISSOCK(status.st_mode):
            from multiprocessing import resource_sharer

            return resource_sharer.DupFd(fd)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return _Descriptor(os.getpid(), fd, mode, status.st_dev, status.st_ino)


def know_connections() -> None:
    """Have the standard library's connections pickled as they are for a process that is being started.

    Plain pickle takes them for ordinary objects, whose copies use, and close, whatever has their number.
    """
    from multiprocessing import connection

    rebuild = connection.rebuild_connection  # type: ignore[attr-defined]

    def reduce(end: Any) -> Any:
        return rebuild, (_Handover.DupFd(end.fileno()), end.readable, end.writable)

    copyreg.pickle(connection.Connection, reduce)


class _Descriptor:
    """A pipe's end or a file of another process, which has it open until this one has opened it, too."""

    def __init__(self, *where: int) -> None:
        self.where = where

    def detach(self) -> int:
        """Return a descriptor of this process. Raises FileNotFoundError if the other one has closed its."""
        pid, fd, mode, device, inode = self.where
        try:
            opened = os.open(f"/proc/{pid}/fd/{fd}", mode | os.O_CLOEXEC)
            status = os.fstat(opened)
            if (status.st_dev, status.st_ino) == (device, inode):
                return opened
            os.close(opened)
        except OSError:
            pass
        raise FileNotFoundError(f"a pipe was sent by process {pid}, which has ended or has closed its end")


def _add_semaphores(table: Any) -> None:
    if "_multiprocessing" not in sys.modules:
        return
    from _multiprocessing import SemLock  # type: ignore[import-not-found]

    table.setdefault(SemLock, _reduce_semaphore)
    synchronize = sys.modules.get("multiprocessing.synchronize")
    if synchronize is not None:
        for kind in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
            table.setdefault(getattr(synchronize, kind), _reduce_lock)


def _reduce_lock(lock: Any) -> Any:
    """A standard lock: its class, and its semaphore."""
    return _make_lock, (type(lock), lock._semlock)


def _make_lock(kind: Any, semaphore: Any) -> Any:
    lock = kind.__new__(kind)
    lock._semlock = semaphore
    lock._make_methods()
    lock._is_fork_ctx = False
    return lock


def _reduce_semaphore(semaphore: Any) -> Any:
    handle, name = semaphore.handle, semaphore.name
    inherited = _mapping(handle) if name is None else None
    return _make_semaphore, (handle, semaphore.kind, semaphore.maxvalue, name, inherited)


_inherited: dict[Any, Any] = {}
"""Nameless semaphores: when one is deleted, its memory is gone from this process for good."""


def _make_semaphore(handle: int, kind: int, maxvalue: int, name: str | None, inherited: Any) -> Any:
    from _multiprocessing import SemLock

    if name is None and (handle, inherited) in _inherited:
        return _inherited[handle, inherited]
    if name is None and (inherited is None or _mapping(handle) != inherited):
        raise RuntimeError(
            "a semaphore made for the start method 'fork' can be given to workers only if they are forked, "
            "too, and it was made before the pool's first worker; make it with another start method, or use "
            "those of plait.multiprocessing"
        )
    semaphore = SemLock._rebuild(handle, kind, maxvalue, name)
    if name is None:
        _inherited[handle, inherited] = semaphore
    return semaphore


def _mapping(address: int) -> tuple[str, str] | None:
    """The device and inode of what is mapped at an address."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, _, _, device, inode, *_ = line.split()
            begin, end = (int(bound, 16) for bound in span.split("-"))
            if begin <= address < end:
                return device, inode
    return None
