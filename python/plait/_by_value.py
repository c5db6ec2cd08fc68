"""Pickling by value what another process cannot import: cloudpickle, with one `__main__` for each worker.

cloudpickle gives every function that it loads globals of its own. In a worker, what comes from ``__main__``
shares its globals instead, as it does where it comes from: an initializer that assigns a global variable
assigns it for the functions that come later.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from types import FunctionType
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _function_setstate

_MAIN = ("__main__", "__mp_main__")


def dumps(
    value: object, protocol: int, buffer_callback: Callable[[PickleBuffer], object] | None = None
) -> bytes:
    """Pickle `value`; raises what pickle raises if it cannot be."""
    with io.BytesIO() as file:
        _Pickler(file, protocol, buffer_callback).dump(value)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    def __init__(self, *args: Any) -> None:
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
    """The globals for functions of one pickle: in a worker the same for all."""
    return _shared if "plait._worker" in sys.modules else {"__name__": "__main__", "__package__": None}


def _set_state(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function what its pickle holds; but a global that was assigned here stays as it is."""
    if function.__globals__ is _shared:
        slots = state[1]
        new = slots["__globals__"]
        slots["__globals__"] = {
            name: value
            for name, value in new.items()
            if name not in _shared or (name in _sent and _shared[name] is _sent[name])
        }
        _sent.update(new)
    _function_setstate(function, state)
