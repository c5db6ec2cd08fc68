"""TLS on plait's event loop: both ways to OpenSSL, every way to fail, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import plait
from plait._tls import TlsProtocol

DATA = Path(__file__).resolve().parent / "data"
OWN, OTHER = DATA / "tls.pem", DATA / "tls_other.pem"
LONG = 60  # Nothing here takes so long; a hang ends.
SIZES = (1, 100, 4095, 4096, 16384, 16385, 70_000, 1_000_000)


@pytest.fixture(params=["OpenSSL", "SSLObject"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test is run with OpenSSL called directly, and through `ssl.SSLObject`."""
    monkeypatch.setattr(TlsProtocol, "direct", request.param == "OpenSSL")
    chosen: str = request.param
    return chosen


def run(main: Coroutine[Any, Any, Any], factory: Callable[[], Any] = plait.EventLoop) -> Any:
    """Run a coroutine on a loop of its own."""
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(asyncio.wait_for(main, LONG))


def server_context(certificate: Path = OWN, *, ask: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(OWN)
    return context


def client_context(trusted: Path = OWN) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(trusted))


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


class Peer(asyncio.Protocol):
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = bytearray()
        self.events: list[str] = []
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.more = asyncio.Event()
        self.writable = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self.more.set()

    def eof_received(self) -> None:
        self.events.append("eof")

    def pause_writing(self) -> None:
        self.events.append("pause")
        self.writable.clear()

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.writable.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    async def read(self, count: int) -> bytes:
        while len(self.data) < count:
            self.more.clear()
            await self.more.wait()
        data = bytes(self.data[:count])
        del self.data[:count]
        return data


class Echo(Peer):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """An echo from a buffer of its own, smaller than a record."""

    transport: Any = None

    def __init__(self) -> None:
        self.buffer = bytearray(5000)
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(None)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(memoryview(self.buffer)[:nbytes])


class Pair:
    """A server that takes one connection, and a client; each has its protocol and its transport."""

    def __init__(
        self,
        server: ssl.SSLContext | None = None,
        client: ssl.SSLContext | None = None,
        server_protocol: Callable[[], Any] = Peer,
        **options: Any,
    ) -> None:
        self.contexts = server or server_context(), client or client_context()
        self.server_protocol = server_protocol
        self.options: dict[str, Any] = {"server_hostname": "localhost", **options}

    async def __aenter__(self) -> Pair:
        loop = asyncio.get_running_loop()
        self.told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: self.told.append(context))
        accepted = loop.create_future()

        def factory() -> Any:
            protocol = self.server_protocol()
            if not accepted.done():
                accepted.set_result(protocol)
            return protocol

        self.listener = await loop.create_server(factory, "127.0.0.1", 0, ssl=self.contexts[0])
        self.address = self.listener.sockets[0].getsockname()
        self.client = Peer()
        try:
            self.transport: Any
            self.transport, _ = await loop.create_connection(
                lambda: self.client, *self.address, ssl=self.contexts[1], **self.options
            )
        except BaseException:
            self.listener.close()
            raise
        self.server = await accepted
        while self.server.transport is None:  # With TLS 1.3 the client's handshake ends first.
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.abort()
        self.server.transport.abort()
        self.listener.close()
        await self.client.lost
        await self.server.lost
        await asyncio.sleep(0)
        asyncio.get_running_loop().set_exception_handler(None)


def is_direct(transport: Any) -> bool:
    direct: bool = transport._ssl_protocol._direct
    return direct


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", [Echo, BufferedEcho])
def test_what_is_sent_arrives(version: ssl.TLSVersion, kind: Any, way: str) -> None:
    async def main() -> None:
        async with Pair(only(server_context(), version), server_protocol=kind) as pair:
            if way == "SSLObject":
                assert not is_direct(pair.transport)
            for size in SIZES:
                message = os.urandom(size)
                pair.transport.write(message)
                assert await pair.client.read(size) == message
            assert pair.told == []

    run(main())


def test_openssl_is_reached_where_it_can_be(way: str) -> None:
    import _ssl

    if way == "SSLObject" or not getattr(_ssl, "__file__", None):
        pytest.skip("OpenSSL is a part of this interpreter, and may be out of reach")
    if not ssl.OPENSSL_VERSION.startswith(("OpenSSL 1.1.1", "OpenSSL 3.")):
        pytest.skip(f"{ssl.OPENSSL_VERSION} is not one that is called directly")

    async def main() -> None:
        async with Pair() as pair:
            assert is_direct(pair.transport)
            assert is_direct(pair.server.transport)

    run(main())


def test_streams() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context(), limit=2**21)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=client_context(), server_hostname="localhost"
        )
        for size in SIZES:
            writer.write(b"x" * (size - 1) + b"\n")
            writer.write(b"end\n")
            assert await reader.readexactly(size + 4) == b"X" * (size - 1) + b"\nEND\n"
        writer.close()
        await writer.wait_closed()
        server.close()

    run(main())


def test_what_can_be_written() -> None:
    async def main() -> None:
        async with Pair() as pair:
            changing = bytearray(b"ab")
            pair.transport.write(changing)
            changing[:] = b"--"
            pair.transport.write(memoryview(b"cd"))
            pair.transport.write(memoryview(b"e-f-")[::2])
            pair.transport.write(b"")
            pair.transport.writelines([b"gh", bytearray(b"ij"), b"", memoryview(b"kl")])
            pair.transport.writelines([])
            assert await pair.server.read(12) == b"abcdefghijkl"
            with pytest.raises(TypeError, match="data: expecting a bytes-like instance, got str"):
                pair.transport.write("text")

    run(main())


def test_what_can_be_asked() -> None:
    async def main() -> None:
        server, client = server_context(), client_context()
        server.set_alpn_protocols(["h2", "http/1.1"])
        client.set_alpn_protocols(["http/1.1"])
        async with Pair(server, client) as pair:
            ask = pair.transport.get_extra_info
            assert ask("sslcontext") is client
            assert pair.server.transport.get_extra_info("sslcontext") is server
            assert isinstance(ask("ssl_object"), ssl.SSLObject)
            assert ask("ssl_object").selected_alpn_protocol() == "http/1.1"
            assert ask("cipher") == ask("ssl_object").cipher()
            assert ask("compression") is None
            assert ask("peercert")["subject"] == ((("commonName", "localhost"),),)
            assert ask("peername") == pair.address
            assert ask("socket").fileno() >= 0
            assert ask("nothing of the kind", 5) == 5
            assert isinstance(pair.transport, asyncio.Transport)
            assert not pair.transport.can_write_eof()
            with pytest.raises(NotImplementedError):
                pair.transport.write_eof()

    run(main())


def test_client_certificates() -> None:
    async def main() -> None:
        client = client_context()
        client.load_cert_chain(OWN)
        async with Pair(server_context(ask=True), client) as pair:
            certificate = pair.server.transport.get_extra_info("peercert")
            assert certificate["subject"] == ((("commonName", "localhost"),),)
            pair.transport.write(b"hello")
            assert await pair.server.read(5) == b"hello"

    run(main())


def test_a_name_callback_gets_the_connections_own_object() -> None:
    seen: list[Any] = []
    other = server_context(OTHER)

    def choose(connection: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
        seen.append((connection, name))
        connection.context = other

    async def main() -> None:
        server = server_context()
        server.sni_callback = choose
        async with Pair(server, client_context(OTHER), server_hostname="other.test") as pair:
            pair.transport.write(b"hello")
            assert await pair.server.read(5) == b"hello"
            [(connection, name)] = seen
            assert name == "other.test"
            assert connection is pair.server.transport.get_extra_info("ssl_object")
            subject = pair.transport.get_extra_info("peercert")["subject"]
            assert subject == ((("commonName", "other.test"),),)

    run(main())


def test_contexts_that_call_back_go_through_the_object(tmp_path: Path) -> None:
    async def main() -> None:
        client = client_context()
        client.keylog_filename = str(tmp_path / "keys")
        messages: list[Any] = []
        server = server_context()
        server._msg_callback = lambda *arguments: messages.append(arguments)  # type: ignore[attr-defined]
        async with Pair(server, client, Echo) as pair:
            assert not is_direct(pair.transport)
            assert not is_direct(pair.server.transport)
            pair.transport.write(b"hello")
            assert await pair.client.read(5) == b"hello"
        assert messages
        assert (tmp_path / "keys").read_text()

    run(main())


def test_objects_of_other_kinds_are_left_alone() -> None:
    read: list[int] = []

    class Object(ssl.SSLObject):
        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            read.append(len)
            return super().read(len) if buffer is None else super().read(len, buffer)

    class Kept(ssl.SSLContext):
        """Gives an object that was made before another one."""

        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            first = super().wrap_bio(*args, **kwargs)
            super().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
            return first

    async def main() -> None:
        server = server_context()
        server.sslobject_class = Object
        client = Kept(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(OWN)
        async with Pair(server, client, Echo) as pair:
            assert not is_direct(pair.transport)
            assert not is_direct(pair.server.transport)
            pair.transport.write(b"hello")
            assert await pair.client.read(5) == b"hello"
        assert read

    run(main())


def test_flow_control_while_the_peer_does_not_read() -> None:
    async def main() -> None:
        async with Pair() as pair:
            pair.server.transport.pause_reading()
            assert not pair.server.transport.is_reading()
            chunk, sent = os.urandom(100_000), 0
            low, high = pair.transport.get_write_buffer_limits()
            while True:
                pair.transport.write(chunk)
                sent += 1
                if "pause" in pair.client.events:
                    assert pair.transport.get_write_buffer_size() >= high > low
                    break
                await asyncio.sleep(0)
            # What the server's side has taken meanwhile is limited, too.
            assert pair.server.transport.get_read_buffer_size() < 3 * 256 * 1024
            assert not pair.server.data
            pair.server.transport.resume_reading()
            await pair.client.writable.wait()
            assert await pair.server.read(sent * len(chunk)) == chunk * sent
            assert pair.client.events == ["made", "pause", "resume"]

    run(main())


def test_limits_can_be_set() -> None:
    async def main() -> None:
        async with Pair() as pair:
            pair.transport.set_write_buffer_limits(high=100)
            assert pair.transport.get_write_buffer_limits() == (25, 100)
            pair.transport.set_read_buffer_limits(high=4000, low=10)
            assert pair.transport.get_read_buffer_limits() == (10, 4000)
            pair.transport.pause_reading()
            pair.server.transport.write(bytes(1_000_000))
            while not pair.transport._ssl_protocol._ssl_reading_paused:
                await asyncio.sleep(0)
            pair.transport.resume_reading()
            assert await pair.client.read(1_000_000) == bytes(1_000_000)

    run(main())


@pytest.mark.thread_unsafe
def test_nothing_is_left_behind() -> None:
    """Connections that are closed, aborted or left leave no descriptor, no object and no memory."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    contexts = server_context(), client_context()
    objects: list[weakref.ref[Any]] = []

    async def one(number: int) -> None:
        payload = number.to_bytes(4, "big") * 5000
        async with Pair(*contexts, Echo) as pair:
            objects.append(weakref.ref(pair.transport))
            objects.append(weakref.ref(pair.transport.get_extra_info("ssl_object")))
            pair.transport.write(payload)
            assert await pair.client.read(len(payload)) == payload
            if number % 3 == 0:
                pair.transport.close()
                assert await pair.client.lost is None
            elif number % 3 == 1:
                pair.server.transport.abort()
                await pair.client.lost

    async def many(count: int) -> None:
        for number in range(count):
            await one(number)
        gc.collect()

    async def main() -> None:
        await many(100)
        before, memory = descriptors(), resident()
        await many(300)
        await asyncio.sleep(0)
        gc.collect()
        assert descriptors() == before
        assert [ref() for ref in objects if ref() is not None] == []
        # A leak of one connection's buffers (some 40 KiB) would be 12 MiB.
        assert resident() - memory < 6 * 1024 * 1024

    run(main())
