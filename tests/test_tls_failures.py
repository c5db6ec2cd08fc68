"""TLS connections that fail or end: as with asyncio's own loop, of which the same is asked."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from test_tls import OTHER, OWN, SIZES, Echo, Pair, Peer, client_context, is_direct, only, run, server_context
from test_tls import way as way

import plait

Scenario = Callable[[], Coroutine[Any, Any, Any]]


def same(scenario: Scenario) -> Any:
    """What a scenario comes to, on our loop; on asyncio's it comes to the same."""
    ours, theirs = run(scenario(), plait.EventLoop), run(scenario(), asyncio.SelectorEventLoop)
    assert ours == theirs
    return ours


def described(error: BaseException | None) -> Any:
    """An error, for comparison: without the line of `_ssl.c` that it comes from."""
    if isinstance(error, ssl.SSLError):
        text = str(error.strerror).partition(" (_ssl.c:")[0]
        return type(error).__name__, error.errno, error.library, error.reason, text
    return type(error).__name__, str(error)


async def refused(*contexts: ssl.SSLContext, **options: Any) -> Any:
    """What the client is told of a connection that does not come about, and what the server's loop is."""
    pair = Pair(*contexts, **options)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - described below
        async with pair:
            pass
    return described(caught.value), [message["message"] for message in pair.told]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_that_is_not_trusted(version: ssl.TLSVersion) -> None:
    told, _ = same(lambda: refused(only(server_context(), version), client_context(OTHER)))
    assert told[0] == "SSLCertVerificationError"


def test_a_certificate_of_another_host() -> None:
    told, _ = same(lambda: refused(server_hostname="elsewhere.test"))
    assert told[0] == "SSLCertVerificationError"


def test_no_version_in_common() -> None:
    server = only(server_context(), ssl.TLSVersion.TLSv1_3)
    told, _ = same(lambda: refused(server, only(client_context(), ssl.TLSVersion.TLSv1_2)))
    assert told[0] in {"SSLError", "ConnectionResetError"}


def test_a_client_that_shows_no_certificate() -> None:
    """With TLS 1.3 the client learns it when it reads."""

    async def scenario() -> Any:
        served: list[Peer] = []

        def factory() -> Peer:
            served.append(Peer())
            return served[-1]

        loop = asyncio.get_running_loop()
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=server_context(ask=True))
        client = Peer()
        address = server.sockets[0].getsockname()
        await loop.create_connection(
            lambda: client, *address, ssl=client_context(), server_hostname="localhost"
        )
        await client.lost
        server.close()
        return served[0].events, client.events[0], client.events[-1]

    assert same(scenario) == ([], "made", "lost")


async def against(answer: bytes | None, *, reset: bool = False, timeout: float | None = None) -> Any:
    """What the client is told by a server that answers its greeting with something else."""

    def serve(connection: socket.socket) -> None:
        with connection:
            if answer is None:
                connection.recv(1)
                while connection.recv(65536):
                    pass
                return
            connection.recv(65536)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(answer)

    loop = asyncio.get_running_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context["message"]))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            serve(listener.accept()[0])

        serving = loop.run_in_executor(None, accept)
        client = Peer()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - described below
            await loop.create_connection(
                lambda: client,
                *listener.getsockname(),
                ssl=client_context(),
                server_hostname="localhost",
                ssl_handshake_timeout=timeout,
            )
        await serving
    return described(caught.value), told, client.events


def test_a_server_that_does_not_speak_tls() -> None:
    told, _, events = same(lambda: against(b"HTTP/1.0 400 Bad Request\r\n\r\n"))
    assert (told[0], told[3]) == ("SSLError", "WRONG_VERSION_NUMBER")
    assert events == []


def test_a_server_that_closes() -> None:
    told, _, _ = same(lambda: against(b""))
    assert told[0] == "ConnectionResetError"


def test_a_server_that_resets() -> None:
    told, _, _ = same(lambda: against(b"", reset=True))
    assert told[0] == "ConnectionResetError"


def test_a_server_that_is_silent() -> None:
    told, _, _ = same(lambda: against(None, timeout=0.05))
    assert told == (
        "ConnectionAbortedError",
        "SSL handshake is taking longer than 0.05 seconds: aborting the connection",
    )


def test_timeouts_have_to_be_positive() -> None:
    async def main() -> None:
        for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            for value in (0, -1):
                with pytest.raises(ValueError, match=f"{name} should be a positive number, got {value}"):
                    async with Pair(**{name: value}):
                        pass

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\x17\x03\x03\x00\x20" + bytes(32)])
def test_garbage_in_the_middle(version: ssl.TLSVersion, garbage: bytes) -> None:
    async def scenario() -> Any:
        async with Pair(only(server_context(), version)) as pair:
            pair.transport.write(b"hello")
            assert await pair.server.read(5) == b"hello"
            # Behind TLS's back.
            pair.transport._ssl_protocol._transport.write(garbage)
            lost = await pair.server.lost
            [told] = [message["message"] for message in pair.told] or [None]
            return described(lost), told, pair.server.events

    told, _, events = same(scenario)
    assert told[0] == "SSLError"
    assert told[3]
    assert events == ["made", "lost"]


def test_what_came_before_garbage_is_delivered() -> None:
    async def main() -> None:
        async with Pair() as pair:
            raw = pair.transport._ssl_protocol._transport
            pair.transport._ssl_protocol.pause_writing()
            pair.transport.write(b"hello")
            record = pair.transport._ssl_protocol._outgoing.read()
            raw.write(record + b"GET / HTTP/1.0\r\n\r\n")
            assert await pair.server.read(5) == b"hello"
            assert isinstance(await pair.server.lost, ssl.SSLError)

    run(main())


def test_a_clean_close_flushes() -> None:
    async def scenario() -> Any:
        async with Pair() as pair:
            message = bytes(range(256)) * 8192
            pair.transport.write(message)
            pair.transport.close()
            assert pair.transport.is_closing()
            pair.transport.write(b"too late")
            assert await pair.server.read(len(message)) == message
            ends = await pair.client.lost, await pair.server.lost
            return ends, pair.server.events, bytes(pair.server.data), pair.told

    ends, events, data, told = same(scenario)
    assert (ends, events, data, told) == ((None, None), ["made", "eof", "lost"], b"", [])


def test_an_end_without_a_word() -> None:
    """The peer's descriptor is closed without TLS's own end."""

    async def scenario() -> Any:
        async with Pair() as pair:
            pair.transport.write(b"hello")
            assert await pair.server.read(5) == b"hello"
            pair.transport._ssl_protocol._transport.close()
            return described(await pair.server.lost), pair.server.events

    assert same(scenario) == (("NoneType", "None"), ["made", "eof", "lost"])


def test_abort() -> None:
    async def scenario() -> Any:
        async with Pair() as pair:
            pair.transport.write(b"hello")
            pair.transport.abort()
            assert pair.transport.is_closing()
            assert pair.client.events == ["made"]
            # The server may see a reset: tickets that the client has not read are thrown away.
            await pair.server.lost
            return await pair.client.lost, pair.client.events

    assert same(scenario) == (None, ["made", "lost"])


def test_a_close_that_the_peer_does_not_answer() -> None:
    async def scenario() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: None)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def shake() -> ssl.SSLSocket:
            return client_context().wrap_socket(theirs, server_hostname="localhost")

        other = loop.run_in_executor(None, shake)
        peer = Peer()
        transport, _ = await loop.connect_accepted_socket(
            lambda: peer, ours, ssl=server_context(), ssl_shutdown_timeout=0.05
        )
        with await other:
            transport.close()
            return described(await peer.lost)

    assert same(scenario) == ("TimeoutError", "SSL shutdown timed out")


class Raising(Peer):
    """Raises at the first data."""

    def data_received(self, data: bytes) -> None:
        raise LookupError("not today")


def test_a_protocol_that_raises() -> None:
    async def scenario() -> Any:
        async with Pair(server_protocol=Raising) as pair:
            pair.transport.write(b"hello")
            lost = described(await pair.server.lost)
            return lost, [(message["message"], described(message["exception"])) for message in pair.told]

    lost, told = same(scenario)
    assert lost == ("LookupError", "not today")
    assert told == [("Fatal error on SSL protocol", lost)]


class Greeting(Peer):
    """A server that speaks in the clear, and then TLS."""

    def data_received(self, data: bytes) -> None:
        assert data == b"STARTTLS\n"
        self.transport.write(b"go\n")
        self.upgrading = asyncio.ensure_future(self.upgrade())

    async def upgrade(self) -> None:
        loop = asyncio.get_running_loop()
        self.secure = Echo()
        transport = await loop.start_tls(self.transport, self.secure, server_context(), server_side=True)
        assert transport
        self.secure.transport = transport


def test_start_tls_on_both_sides() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[Greeting] = []

        def factory() -> Greeting:
            accepted.append(Greeting())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        peer = Peer()
        plain, _ = await loop.create_connection(lambda: peer, *server.sockets[0].getsockname())
        plain.write(b"STARTTLS\n")
        assert await peer.read(3) == b"go\n"
        secure = Peer()
        transport: Any = await loop.start_tls(plain, secure, client_context(), server_hostname="localhost")
        await accepted[0].upgrading
        for size in SIZES:
            transport.write(bytes(size))
            assert await secure.read(size) == bytes(size)
        transport.close()
        await secure.lost
        with pytest.raises(TypeError, match=r"sslcontext is expected to be an instance of ssl\.SSLContext"):
            await loop.start_tls(plain, secure, True)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is not supported by start_tls"):
            await loop.start_tls(object(), secure, client_context())  # type: ignore[arg-type]
        server.close()

    run(main())


def test_tls_in_tls() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Pair() as pair:
            inside, inside_server = Peer(), Echo()
            upgraded = loop.start_tls(
                pair.server.transport, inside_server, server_context(OTHER), server_side=True
            )
            upgrading = asyncio.ensure_future(upgraded)
            await asyncio.sleep(0)
            transport: Any = await loop.start_tls(
                pair.transport, inside, client_context(OTHER), server_hostname="other.test"
            )
            inside_server.transport = await upgrading
            for size in SIZES:
                transport.write(bytes(size))
                assert await inside.read(size) == bytes(size)
            transport.abort()
            pair.client.lost.cancel()
            await inside.lost
            with contextlib.suppress(asyncio.CancelledError):
                await pair.client.lost
            pair.client.lost = inside.lost
            pair.server.lost = inside_server.lost

    run(main())


@pytest.mark.thread_unsafe
@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl program")
@pytest.mark.parametrize(("version", "command"), [("-tls1_2", "R"), ("-tls1_3", "K"), ("-tls1_3", "k")])
def test_new_keys_in_the_middle(version: str, command: str) -> None:
    """A renegotiation (TLS 1.2), or new keys (TLS 1.3), between two requests."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = server_context()
        context.options |= 0x100  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION
        accepted: list[Echo] = []

        def factory() -> Echo:
            accepted.append(Echo())
            return accepted[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        program = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(OWN), version),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert program.stdin
        assert program.stdout
        for line in (b"first\n", b"second\n"):
            program.stdin.write(line)
            while await program.stdout.readline() != line:
                assert not program.stdout.at_eof()
            if line == b"first\n":
                # A command is one only as a piece of its own: the echo of "first" has come back before.
                program.stdin.write(command.encode() + b"\n")
                await program.stdin.drain()
                while (said := await program.stdout.readline()) and said.strip() not in {
                    b"RENEGOTIATING",
                    b"KEYUPDATE",
                }:
                    pass
                assert said
        # And to the other side.
        accepted[0].transport.write(b"third\n")
        while await program.stdout.readline() != b"third\n":
            assert not program.stdout.at_eof()
        assert isinstance(is_direct(accepted[0].transport), bool)
        program.stdin.close()
        await accepted[0].lost
        await program.wait()
        server.close()

    run(main())
