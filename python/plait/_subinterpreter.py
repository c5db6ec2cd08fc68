"""What runs in an interpreter of `InterpreterPool`: unpickles a call, runs it, pickles how it ended."""

from __future__ import annotations

import inspect
import pickle
import traceback
from time import monotonic_ns
from typing import TYPE_CHECKING

from plait._serialize import describe, dumps, dumps_exception

if TYPE_CHECKING:
    import asyncio

VALUE, RAISED, UNPICKLABLE = range(3)
"""How a call ended."""

Answer = tuple[int, bytes, tuple[bytes, ...], tuple[int, int]]
"""How it ended, a pickle, its buffers; the nanoseconds to unpickle the call, and to pickle that."""

_runner: asyncio.Runner | None = None


def run(payload: bytes, buffers: tuple[bytes, ...]) -> Answer:
    """Run a call; how it ended, and a pickle: a value, an exception with its traceback as text, or a text."""
    began = called = monotonic_ns()
    try:
        function, args, kwargs = pickle.loads(payload, buffers=buffers)
        called = monotonic_ns()
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = _loop().run(value)
    except BaseException as error:
        return _failure(error, called - began)
    returned = monotonic_ns()
    try:
        pickled = _outside(dumps(value))
    except Exception as error:
        text = f"returned a value that cannot be pickled: {describe(value, error)}"
        return UNPICKLABLE, text.encode("utf-8", "backslashreplace"), (), (called - began, 0)
    return VALUE, *pickled, (called - began, monotonic_ns() - returned)


def close() -> None:
    """End the event loop, if there was a need for one."""
    global _runner
    if _runner is not None:
        _runner.close()
        _runner = None


def _loop() -> asyncio.Runner:
    """The event loop that this interpreter keeps."""
    global _runner
    if _runner is None:
        import asyncio

        _runner = asyncio.Runner()
    return _runner


def _failure(error: BaseException, unpickled: int) -> Answer:
    # The first frame is `run`'s and tells nobody anything.
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    text = "".join(traceback.format_exception(type(error), error, trace))
    error.__traceback__ = None
    if isinstance(error, ImportError):
        error.add_note(
            "(Many extension modules cannot be imported in the interpreters of one process; "
            "under the model 'processes' they can.)"
        )
    try:
        return RAISED, *_outside(dumps_exception(error, text)), (unpickled, 0)
    except Exception as inner:
        text = f"raised an exception that cannot be pickled: {describe(error, inner)}\n\n{text}"
        return UNPICKLABLE, text.encode("utf-8", "backslashreplace"), (), (unpickled, 0)


def _outside(pickled: tuple[bytes, list[pickle.PickleBuffer]]) -> tuple[bytes, tuple[bytes, ...]]:
    """A pickle whose buffers can be sent to another interpreter."""
    payload, buffers = pickled
    return payload, tuple(bytes(buffer.raw()) for buffer in buffers)
