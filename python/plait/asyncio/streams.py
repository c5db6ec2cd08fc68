"""`asyncio.streams`: readers and writers of connections, with what they do often in Rust."""

from __future__ import annotations

import asyncio
from asyncio import coroutines, events
from asyncio import streams as _standard
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plait import _rust
from plait._fall_back import fall_back

if TYPE_CHECKING:
    from asyncio.streams import FlowControlMixin as FlowControlMixin

__all__ = [
    "StreamReader",
    "StreamReaderProtocol",
    "StreamWriter",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]

_DEFAULT_LIMIT = 2**16  # bytes


class StreamReader(_rust.StreamReader, asyncio.StreamReader):
    """`asyncio.StreamReader`, with its buffer and its searches in Rust.

    Made by `open_connection` and `start_server`; one that is made by itself is fed with `feed_data` and
    `feed_eof`. It belongs to the thread of its event loop, any event loop's, and one coroutine at a time
    reads. A read that is cancelled loses nothing: its bytes are there for the next.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have asyncio's own methods go through what a subclass overrides."""
        super().__init_subclass__(**kwargs)
        if cls.readuntil is not StreamReader.readuntil and cls.readline is StreamReader.readline:
            cls.readline = asyncio.StreamReader.readline  # type: ignore[method-assign]
        if cls.readline is not StreamReader.readline and cls.__anext__ is StreamReader.__anext__:
            cls.__anext__ = asyncio.StreamReader.__anext__  # type: ignore[method-assign]

    async def read(self, n: int = -1) -> bytes:
        """Read at most `n` bytes, as soon as there are any; until the end, if `n` is negative.

        Returns `b""` at the end. Raises what the connection was lost by.
        """
        if n < 0:
            return await self._read_to_end()
        while (data := self._take(n)).__class__ is not bytes:
            try:
                await data
            except BaseException:
                self._forget(data)
                raise
        return data

    async def _read_to_end(self) -> bytes:
        blocks: list[bytes] = []
        try:
            while block := await StreamReader.read(self, self._limit):
                blocks.append(block)
        except BaseException:
            self._put_back(b"".join(blocks))
            raise
        return b"".join(blocks)

    async def readexactly(self, n: int) -> bytes:
        """Read exactly `n` bytes, which may be more than the limit.

        Raises `asyncio.IncompleteReadError`, with the bytes there were, if the stream ends before;
        ValueError if `n` is negative; what the connection was lost by.
        """
        while (data := self._take_exactly(n)).__class__ is not bytes:
            try:
                await data
            except BaseException:
                self._forget(data)
                raise
        return data

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """Read up to a separator, and with it; up to the one that ends first, if it is a tuple of several.

        Raises `asyncio.LimitOverrunError` if there are more bytes before it than the limit, which are left
        where they are; `asyncio.IncompleteReadError`, with the bytes there were, if the stream ends before;
        ValueError if a separator is empty, or if there is none; what the connection was lost by.
        """
        found = self._take_until(separator, 0)
        while found.__class__ is not bytes:
            waiter, start = found
            try:
                await waiter
            except BaseException:
                self._forget(waiter)
                raise
            found = self._take_until(separator, start)
        return found

    async def readline(self) -> bytes:
        """Read a line with its newline; what is left at the end, which may be nothing.

        Raises ValueError if the line is longer than the limit (it is dropped, or all there is, if its end has
        not come); what the connection was lost by.
        """
        found = self._take_line(0)
        while found.__class__ is not bytes:
            waiter, start = found
            try:
                await waiter
            except BaseException:
                self._forget(waiter)
                raise
            found = self._take_line(start)
        return found

    def __aiter__(self) -> StreamReader:
        """Iterate over the lines."""
        return self

    async def __anext__(self) -> bytes:
        """Read the next line."""
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class StreamWriter(_rust.StreamWriter, asyncio.StreamWriter):
    """`asyncio.StreamWriter`, with `write` and the usual case of `drain` in Rust."""

    async def drain(self) -> None:
        """Wait until the transport's buffer has room again; return at once if it has.

        Raises what the connection was lost by, or ConnectionResetError.
        """
        if not self._is_drained():
            await super().drain()


class StreamReaderProtocol(_rust.StreamReaderProtocol, asyncio.StreamReaderProtocol):
    """`asyncio.StreamReaderProtocol`: hands a transport's bytes to a `StreamReader`, without a Python call
    on a `plait.EventLoop`.
    """

    def connection_made(self: Any, transport: Any) -> None:
        """Tell the reader of its transport; call back with reader and writer, if this is a server's."""
        connected = self._client_connected_cb
        if connected is None or self._reject_connection:
            super().connection_made(transport)
            return
        # As the standard method, which would make a standard writer.
        self._transport = transport
        reader = self._stream_reader
        if reader is not None:
            reader.set_transport(transport)
        self._over_ssl = transport.get_extra_info("sslcontext") is not None
        writer = StreamWriter(transport, self, reader, self._loop)
        loop = self._loop

        def failed(error: BaseException) -> None:
            loop.call_exception_handler(
                {
                    "message": "Unhandled exception in client_connected_cb",
                    "exception": error,
                    "transport": transport,
                }
            )
            transport.close()

        def done(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                transport.close()
            elif (error := task.exception()) is not None:
                failed(error)

        try:
            result = connected(reader, writer)
        except Exception as error:
            failed(error)
            self._strong_reader = None
            return
        if coroutines.iscoroutine(result):
            self._task = loop.create_task(result)
            self._task.add_done_callback(done)
        self._strong_reader = None


_rust.prepare_streams(StreamReader, StreamReaderProtocol)


async def open_connection(
    host: Any = None, port: Any = None, *, limit: int = _DEFAULT_LIMIT, **kwds: Any
) -> tuple[StreamReader, StreamWriter]:
    """Connect by TCP, and return what to read from and what to write to.

    Args:
        host, port: where to.
        limit: the most bytes that a line may have; twice as many are buffered before the peer has to wait.
        kwds: what `loop.create_connection` knows besides, `ssl` for example.

    Raises what `loop.create_connection` raises, OSError above all.
    """
    loop = events.get_running_loop()
    reader = StreamReader(limit=limit, loop=loop)
    protocol = StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, host, port, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: Callable[[StreamReader, StreamWriter], Any],
    host: Any = None,
    port: Any = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """Listen by TCP, and call back with a reader and a writer for each connection.

    Args:
        client_connected_cb: a function, or a coroutine function, which becomes a task.
        host, port: where to listen.
        limit: as for `open_connection`.
        kwds: what `loop.create_server` knows besides.

    Raises what `loop.create_server` raises, OSError above all.
    """
    loop = events.get_running_loop()
    return await loop.create_server(_factory(client_connected_cb, limit, loop), host, port, **kwds)


async def open_unix_connection(
    path: Any = None, *, limit: int = _DEFAULT_LIMIT, **kwds: Any
) -> tuple[StreamReader, StreamWriter]:
    """Connect to a Unix socket; otherwise as `open_connection`."""
    loop = events.get_running_loop()
    reader = StreamReader(limit=limit, loop=loop)
    protocol = StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_unix_connection(lambda: protocol, path, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_unix_server(
    client_connected_cb: Callable[[StreamReader, StreamWriter], Any],
    path: Any = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """Listen on a Unix socket; otherwise as `start_server`."""
    loop = events.get_running_loop()
    return await loop.create_unix_server(_factory(client_connected_cb, limit, loop), path, **kwds)


def _factory(
    connected: Callable[[StreamReader, StreamWriter], Any], limit: int, loop: asyncio.AbstractEventLoop
) -> Callable[[], StreamReaderProtocol]:
    def factory() -> StreamReaderProtocol:
        reader = StreamReader(limit=limit, loop=loop)
        return StreamReaderProtocol(reader, connected, loop=loop)

    return factory


fall_back(globals(), _standard)
