"""What it costs to send a job to a process, and whether that is possible and right, tried on real jobs."""

from __future__ import annotations

import pickle
import time
import zlib
from collections.abc import Callable
from typing import Any

from plait import _serialize

# Of a large buffer, this many bytes at either end are compared to see whether a job changed it.
_COMPARED = 1 << 20


class Crossing:
    """Tries the crossing of one job, before and after it runs in this process. Raises nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """What pickling took."""
        self.bytes = 0
        """How much it made."""
        self.obstacle: str | None = None
        """What keeps the job here: it cannot be pickled."""
        self.mutates: str | None = None
        """What keeps the job here: it changes what it was given."""
        self.complete = False
        """Whether the result was tried, too."""
        self._function: bytes | None = None
        self._arguments: int | None = None

    def before(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Try the function and the arguments."""
        try:
            self._function = _serialize.dumps_function(fn)
            began = time.perf_counter()
            payload, buffers = _serialize.dumps((args, kwargs))
            self.seconds += time.perf_counter() - began
            self.bytes += _size(payload, buffers)
            self._arguments = _digest(payload, buffers)
        except Exception:
            self.obstacle = _refusal(fn, args, kwargs)

    def after(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """See whether the job changed what it was given, and try its result."""
        if self.obstacle is not None:
            return
        try:
            if self._arguments != _digest(*_serialize.dumps((args, kwargs))):
                self.mutates = "it changes its arguments"
            elif self._function != _serialize.dumps_function(fn):
                self.mutates = "it changes what it carries with it (its object or its closure)"
        except Exception as error:
            self.mutates = (
                f"it changes its arguments into what cannot be pickled ({type(error).__name__}: {error})"
            )
        try:
            began = time.perf_counter()
            payload, buffers = _serialize.dumps(result)
            self.seconds += time.perf_counter() - began
            self.bytes += _size(payload, buffers)
        except Exception as error:
            self.obstacle = f"its result cannot be pickled: {_serialize.describe(result, error)}"
        self.complete = True


def _refusal(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What refuses to be pickled, in words."""
    try:
        _serialize.dumps_function(fn)
    except Exception as error:
        return f"the function cannot be pickled: {_serialize.describe(fn, error)}"
    named: list[tuple[str, Any]] = [(f"argument {at}", value) for at, value in enumerate(args, 1)]
    named += [(f"argument {keyword}=", value) for keyword, value in kwargs.items()]
    for where, value in named:
        try:
            _serialize.dumps(value)
        except Exception as error:
            return f"{where} cannot be pickled: {_serialize.describe(value, error)}"
    return "its arguments cannot be pickled"


def _size(payload: bytes, buffers: list[pickle.PickleBuffer]) -> int:
    return len(payload) + sum(buffer.raw().nbytes for buffer in buffers)


def _digest(payload: bytes, buffers: list[pickle.PickleBuffer]) -> int:
    digest = zlib.crc32(payload)
    for buffer in buffers:
        view = buffer.raw()
        digest = zlib.crc32(view[:_COMPARED], digest)
        digest = zlib.crc32(view[-_COMPARED:], digest)
    return digest
