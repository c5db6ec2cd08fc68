"""`multiprocessing.sharedctypes`: values and arrays in nameless memory, with locks that notice a dead owner.

They go to other processes as arguments of a `Process`, of a pool's jobs, and as items of a queue.
"""

from __future__ import annotations

import copyreg
import ctypes
import sys
import weakref
from collections.abc import Callable
from multiprocessing import sharedctypes as _standard
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, TypeVar

from plait.multiprocessing import heap
from plait.multiprocessing._standard import fall_back, with_globals

F = TypeVar("F", bound=Callable[..., Any])


def reduce_ctype(obj: Any) -> Any:
    """Pickle a value as the block it lies in. One that lies in no shared memory is pickled as ctypes does."""
    wrapper = getattr(obj, "_wrapper", None)
    if wrapper is None:
        return obj.__reduce_ex__(2)
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, wrapper, obj._length_)
    return rebuild_ctype, (type(obj), wrapper, None)


def rebuild_ctype(type_: Any, wrapper: Any, length: int | None) -> Any:
    """Return the value of a type that lies in a block; an array, if it has a length."""
    if length is not None:
        type_ = type_ * length
    ForkingPickler.register(type_, reduce_ctype)
    copyreg.pickle(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def get_context(force: bool = False) -> Any:
    """Return the context that locks come from where none is given."""
    return sys.modules["plait.multiprocessing"].get_context()


if TYPE_CHECKING:
    _Base = _standard.SynchronizedBase[Any]
    _Simple = _standard.Synchronized[Any]
    _Array = _standard.SynchronizedArray[Any]
else:
    _Base, _Simple, _Array = _standard.SynchronizedBase, _standard.Synchronized, _standard.SynchronizedArray


class SynchronizedBase(_Base):
    """A value together with the lock that guards it."""

    def __reduce__(self) -> Any:
        return synchronized, (self._obj, self._lock)


class Synchronized(SynchronizedBase, _Simple):
    """A simple value and its lock."""


class SynchronizedArray(SynchronizedBase, _Array):
    """An array and its lock."""


class SynchronizedString(SynchronizedArray, _standard.SynchronizedString):
    """An array of characters and its lock."""


_ours: dict[str, Any] = {
    "__name__": __name__,
    "heap": heap,
    "rebuild_ctype": rebuild_ctype,
    "get_context": get_context,
    "SynchronizedBase": SynchronizedBase,
    "Synchronized": Synchronized,
    "SynchronizedArray": SynchronizedArray,
    "SynchronizedString": SynchronizedString,
    "class_cache": weakref.WeakKeyDictionary(),
}


def _on_ours(function: F) -> F:
    """The standard function, making our classes."""
    return with_globals(function, **_ours)


_ours["_new_value"] = _on_ours(_standard._new_value)
RawValue = _ours["RawValue"] = _on_ours(_standard.RawValue)
RawArray = _ours["RawArray"] = _on_ours(_standard.RawArray)
synchronized: Any = _on_ours(_standard.synchronized)
_ours["synchronized"] = synchronized
Value = _on_ours(_standard.Value)
Array = _on_ours(_standard.Array)
copy = _on_ours(_standard.copy)

fall_back(globals(), _standard)
