"""`multiprocessing.connection`: the two ends of a `Pipe` send large messages through nameless shared memory.

`PipeEnd.send` of a large message returns when the message lies there, whether or not anybody reads. Small
ones go through the standard pipe or pair of sockets, which also carries a note of each large one, so that
``wait``, ``poll``, ``select`` and the end of file are the kernel's. An end is for one thread of one process
at a time, as the standard one is; forks inherit it. `Listener` and `Client` are the standard ones.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import socket
import struct
from io import BytesIO
from multiprocessing import connection as _standard
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

from plait import _rust
from plait.multiprocessing._handover import kept
from plait.multiprocessing._standard import fall_back, standard_module
from plait.multiprocessing.queues import _dumps

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    _Connection = _standard.Connection[Any, Any]
else:
    _Connection = _standard.Connection

fall_back(globals(), standard_module("connection"))

_LARGE = 16 << 10
"""Messages of more bytes go through shared memory. Up to here one write does, and costs less."""

_LENGTH = struct.Struct("!i")
"""What every message begins with: its length, or one of the two below."""

_LONG = -1
"""The length follows in 8 bytes: so does the standard connection."""

_ELSEWHERE = -2
"""The message lies in shared memory."""

_NOTE = struct.Struct("!i8sQ")
"""The note of such a message: `_ELSEWHERE`, the message's mark, how many bytes it has."""

_PATIENCE = 10.0
"""Seconds that a receiver waits for what a note says is there, which is for a lock that somebody holds."""


class PipeEnd(_Connection):
    """An end of a pipe. Sending never waits for a reader because of the size of the message.

    Raises what the standard connection raises: EOFError when nobody can send any more and all is read,
    BrokenPipeError when nobody can receive, OSError for an end that is closed or does not go that way.
    """

    _handle: int

    def __init__(
        self,
        handle: int,
        readable: bool,
        writable: bool,
        incoming: _rust.ProcessQueue | None,
        outgoing: _rust.ProcessQueue | None,
    ) -> None:
        super().__init__(handle, readable, writable)
        self._incoming = incoming
        self._outgoing = outgoing

    if TYPE_CHECKING:  # of the standard class, whose stubs know only what is public

        def _check_closed(self) -> None: ...
        def _check_readable(self) -> None: ...
        def _check_writable(self) -> None: ...
        def _bad_message_length(self) -> None: ...
        def _recv(self, size: int) -> BytesIO: ...
        def _send(self, buf: Buffer) -> None: ...

    def close(self) -> None:
        """Close the end. What was sent can still be received."""
        self._incoming = self._outgoing = None
        super().close()

    def send(self, obj: Any) -> None:
        """Send an object. Raises what pickling raises."""
        self._check_closed()
        self._check_writable()
        pickled, buffers = _dumps(obj)
        if not buffers and memoryview(pickled).nbytes <= _LARGE:
            self._send_bytes(pickled)
        elif not self._put(pickled, buffers or []):
            super()._send_bytes(reduction.ForkingPickler.dumps(obj))

    def _send_bytes(self, buf: Buffer) -> None:
        if memoryview(buf).nbytes <= _LARGE or not self._put(buf, []):
            super()._send_bytes(buf)

    def _put(self, pickled: Buffer, buffers: list[pickle.PickleBuffer]) -> bool:
        """Put a message into shared memory, then send the note of it. False if there is no room."""
        outgoing = self._outgoing
        if outgoing is None:
            return False
        mark = os.urandom(8)
        try:
            if not outgoing.put(mark, [pickled, *buffers], None, False):
                return False
        except OverflowError:
            return False
        size = memoryview(pickled).nbytes + sum(buffer.raw().nbytes for buffer in buffers)
        try:
            self._send(_NOTE.pack(_ELSEWHERE, mark, size))
        except (BrokenPipeError, ConnectionResetError):
            self._outgoing = None  # nobody will read what lies there
            raise
        return True

    def recv(self) -> Any:
        """Return the object that was sent first. Waits until there is one."""
        self._check_closed()
        self._check_readable()
        found = self._receive(None)
        assert found is not None
        pickled, buffers = found
        return pickle.loads(pickled, buffers=buffers)

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Return the bytes that were sent first. More than `maxlength` is an OSError, now and ever after."""
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        found = self._receive(maxlength)
        if found is None:
            self._bad_message_length()
        assert found is not None
        return bytes(_in_one(*found))

    def _recv_bytes(self, maxsize: int | None = None) -> BytesIO | None:
        found = self._receive(maxsize)
        if found is None:
            return None
        into = BytesIO()
        into.write(_in_one(*found))
        return into

    def _receive(self, most: int | None) -> tuple[Buffer, list[Any] | None] | None:
        """The next message and the buffers that its pickle refers to. None if it is larger than allowed."""
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if size == _ELSEWHERE:
            note = self._read(_NOTE.size - _LENGTH.size)
            mark, size = note[:8], int.from_bytes(note[8:], "big")
            return None if most is not None and size > most else self._take(mark)
        if size == _LONG:
            size = int.from_bytes(self._read(8), "big")
        if size < 0 or (most is not None and size > most):
            return None
        if size <= _LARGE:
            return self._read(size), None
        return self._recv(size).getbuffer(), None

    def _read(self, size: int) -> bytes:
        """That many bytes, few, from the pipe."""
        chunk = os.read(self._handle, size)
        if len(chunk) == size:
            return chunk
        if not chunk:
            raise EOFError
        try:
            return chunk + self._recv(size - len(chunk)).getvalue()
        except EOFError:
            raise OSError("got end of file during message") from None

    def _take(self, mark: bytes) -> tuple[Buffer, list[Any]]:
        """The message of a note. Those before it have notes that were not sent, or died with a receiver."""
        while self._incoming is not None:
            found: Any = self._incoming.get(True, _PATIENCE)
            if found is None:
                break
            if bytes(found[0]) == mark:
                pickled, *buffers = found[1]
                return pickled, buffers
        raise OSError("a message of the pipe is lost: another process has received a part of it")


def _in_one(pickled: Buffer, buffers: list[Any] | None) -> Buffer:
    """A pickle that holds its buffers itself."""
    return pickle.dumps(pickle.loads(pickled, buffers=buffers), 5) if buffers else pickled


def Pipe(duplex: bool = True) -> tuple[PipeEnd, PipeEnd]:
    """Return the two ends of a pipe; with ``duplex=False`` the first receives, the second sends.

    Takes a descriptor for each end and one for each direction. Raises OSError if there are no more.
    """
    back = _rust.ProcessQueue()
    if not duplex:
        reader, writer = os.pipe()
        return PipeEnd(reader, True, False, back, None), PipeEnd(writer, False, True, None, back)
    forth = _rust.ProcessQueue()
    first, second = socket.socketpair()
    for end in (first, second):
        end.setblocking(True)
    return (
        PipeEnd(first.detach(), True, True, back, forth),
        PipeEnd(second.detach(), True, True, forth, back),
    )


def _rebuild(duplicate: Any, readable: bool, writable: bool, *logs: Any) -> PipeEnd:
    return PipeEnd(duplicate.detach(), readable, writable, *logs)


_Reduced = tuple["Callable[..., PipeEnd]", tuple[Any, ...]]


def _reduce(end: PipeEnd) -> _Reduced:
    """For a process that is being started, or whoever receives it from a queue or connection, once."""
    duplicate = reduction.DupFd(end.fileno())
    return _rebuild, (duplicate, end.readable, end.writable, kept(end._incoming), kept(end._outgoing))


def _reduce_for_jobs(end: PipeEnd) -> _Reduced:
    """For workers, who open what this process has."""
    from plait._by_value import _Handover

    duplicate = _Handover.DupFd(end.fileno())
    return _rebuild, (duplicate, end.readable, end.writable, end._incoming, end._outgoing)


reduction.register(PipeEnd, _reduce)
copyreg.pickle(PipeEnd, _reduce_for_jobs)
