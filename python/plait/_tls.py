"""TLS connections of `plait.EventLoop`: asyncio's own, with what happens often in Rust."""

from __future__ import annotations

import asyncio
import ssl
import threading
from asyncio import sslproto
from typing import Any, ClassVar

from plait import _rust


class SSLTransport(sslproto._SSLProtocolTransport):
    """What an application writes to: asyncio's own transport, with `write` and `writelines` in Rust.

    Programs that want to know whether a connection is encrypted look for "ssl" in this name.
    """

    def __init__(self: Any, loop: asyncio.AbstractEventLoop, ssl_protocol: TlsProtocol) -> None:
        super().__init__(loop, ssl_protocol)
        # Bound methods of Rust, found before the class's own: a write is one call.
        self.write = ssl_protocol._write
        self.writelines = ssl_protocol._writelines

    def close(self) -> None:
        """Send what was written, say that no more comes, and close."""
        super().close()
        if self._ssl_protocol is None:
            # The second time asyncio lets go of the connection; so do the bound methods.
            vars(self).pop("write", None)
            vars(self).pop("writelines", None)

    def _test__append_write_backlog(self: Any, data: bytes) -> None:
        """asyncio's tests want this."""
        self._ssl_protocol._keep(data)


class _Incoming(threading.local):
    """What transports that are not ours read into; a thread reads for one connection at a time."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(256 * 1024))


_incoming = _Incoming()


class TlsProtocol(_rust.TlsProtocol, sslproto.SSLProtocol):
    """A TLS connection between a transport and an application's protocol.

    Handshake, shutdown, timeouts and errors are asyncio's; encrypting, decrypting and flow control Rust's.
    """

    #: Whether OpenSSL may be called without `ssl.SSLObject` in between, where it can be reached.
    direct: ClassVar[bool] = True
    #: asyncio makes a buffer of this size for every connection.
    max_size = 0

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ends = self._adopt(self._sslobj, self._incoming, self._outgoing, self.direct)
        self._incoming, self._outgoing = ends

    def _get_app_transport(self: Any) -> SSLTransport:
        if self._app_transport is None:
            if self._app_transport_created:
                raise RuntimeError("Creating _SSLProtocolTransport twice")
            self._app_transport = SSLTransport(self._loop, self)
            self._app_transport_created = True
        transport: SSLTransport = self._app_transport
        return transport

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport has gone."""
        self._drop_backlog()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where a transport that is not ours is to read to."""
        return _incoming.view

    def buffer_updated(self, nbytes: int) -> None:
        """It has."""
        self._feed(_incoming.view[:nbytes])

    def _set_read_buffer_limits(self: Any, high: int | None = None, low: int | None = None) -> None:
        base: Any = super()
        base._set_read_buffer_limits(high, low)
        self._note_read_limits(self._incoming_low_water, self._incoming_high_water)

    def _set_write_buffer_limits(self: Any, high: int | None = None, low: int | None = None) -> None:
        base: Any = super()
        base._set_write_buffer_limits(high, low)
        self._note_write_limits(self._outgoing_low_water, self._outgoing_high_water)


_states = sslproto.SSLProtocolState
_rust.prepare_tls(
    [_states.UNWRAPPED, _states.DO_HANDSHAKE, _states.WRAPPED, _states.FLUSHING, _states.SHUTDOWN],
    TlsProtocol,
)


async def start_tls(
    loop: asyncio.AbstractEventLoop,
    transport: Any,
    protocol: asyncio.BaseProtocol,
    sslcontext: ssl.SSLContext,
    *,
    server_side: bool,
    **options: Any,
) -> asyncio.Transport:
    """`asyncio.loop.start_tls` with our TLS connection."""
    if not isinstance(sslcontext, ssl.SSLContext):
        raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
    if not getattr(transport, "_start_tls_compatible", False):
        raise TypeError(f"transport {transport!r} is not supported by start_tls()")
    waiter = loop.create_future()
    tls = TlsProtocol(
        loop, protocol, sslcontext, waiter, server_side=server_side, call_connection_made=False, **options
    )
    if server_side and isinstance(protocol, asyncio.StreamReaderProtocol):
        # What the client has sent right behind its request may have been read already (CPython gh-142352).
        reader = getattr(protocol, "_stream_reader", None)
        read_already = getattr(reader, "_buffer", None)
        if read_already:
            tls._incoming.write(read_already)
            read_already.clear()
    # Nothing may come in before the connection is made.
    transport.pause_reading()
    transport.set_protocol(tls)
    made = loop.call_soon(tls.connection_made, transport)
    resumed = loop.call_soon(transport.resume_reading)
    try:
        await waiter
    except BaseException:
        transport.close()
        made.cancel()
        resumed.cancel()
        raise
    finally:
        # An error's traceback leads to this frame, which must not keep the connection alive.
        del waiter
    return tls._get_app_transport()
