"""Transports of TCP and Unix sockets: bytes, order, flow control, every end, and whose descriptor it is."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.event_loop import EventLoop

LONG = 30.0


class Recorder(asyncio.Protocol):
    """Notes what it is told, and lets tests wait for it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.data = bytearray()
        self.transport: Any = None
        self.reason: BaseException | None = None
        self.changed = asyncio.Event()

    def note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        assert data, "data_received with nothing"
        self.data += data
        if self.events[-1:] != ["data"]:
            self.note("data")
        self.changed.set()

    def eof_received(self) -> bool | None:
        self.note("eof")
        return None

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.reason = exc
        self.note("lost")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_lost(self) -> None:
        await self.until(lambda: "lost" in self.events)


class Staying(Recorder):
    """Keeps the transport open when the peer has sent everything."""

    def eof_received(self) -> bool:
        self.note("eof")
        return True


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run it on a loop of ours; an error that nobody expected fails the test."""

    async def guarded() -> None:
        unexpected: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(lambda _, context: unexpected.append(context))
        async with asyncio.timeout(LONG * 2):
            await main()
        assert unexpected == []

    plait.run(guarded())


def collect_errors() -> list[dict[str, Any]]:
    """From now on the errors that the loop's handler is given are in this list."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    return errors


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
    return first, second


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


PAIRS = pytest.mark.parametrize("pair", [tcp_pair, unix_pair])


async def connect(sock: socket.socket, kind: Callable[[], Recorder] = Recorder) -> Recorder:
    """A transport on this socket, and its protocol."""
    _, protocol = await asyncio.get_running_loop().create_connection(kind, sock=sock)
    return protocol


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@PAIRS
def test_bytes_come_as_they_were_sent(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        left, right = await connect(ours), await connect(theirs)
        left.transport.write(b"one ")
        left.transport.write(bytearray(b"two "))
        left.transport.write(memoryview(b"three ")[:5])
        left.transport.write(b"")
        left.transport.writelines([b" four", b"", bytearray(b" five"), memoryview(b" six")])
        await right.until(lambda: len(right.data) >= 27)
        assert bytes(right.data) == b"one two three" + b" four five six"
        left.transport.close()
        await left.until_lost()
        await right.until_lost()
        assert right.events == ["made", "data", "eof", "lost"]
        assert left.events == ["made", "lost"]
        assert left.reason is right.reason is None
        assert ours.fileno() == theirs.fileno() == -1

    run(main)


@PAIRS
def test_connection_made_comes_before_what_was_there_already(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        theirs.sendall(b"early")
        theirs.close()
        protocol = await connect(ours)
        await protocol.until_lost()
        assert protocol.events == ["made", "data", "eof", "lost"]
        assert protocol.data == b"early"

    run(main)


def test_it_is_a_transport_of_asyncio() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        address, peer = ours.getsockname(), ours.getpeername()
        transport = (await connect(ours)).transport
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_extra_info("sockname") == address
        assert transport.get_extra_info("peername") == peer
        face = transport.get_extra_info("socket")
        assert isinstance(face, asyncio.trsock.TransportSocket)
        assert face.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", 7) == 7
        assert f"<StreamTransport fd={ours.fileno()} read=polling write=<idle, bufsize=0>>" == repr(transport)
        assert transport.can_write_eof()
        assert transport.is_reading()
        assert not transport.is_closing()
        assert weakref.ref(transport)() is transport
        transport.close()
        assert transport.is_closing()
        assert not transport.is_reading()
        await turns()
        assert repr(transport) == "<StreamTransport closed fd=-1>"
        assert transport.get_extra_info("peername") == peer
        assert transport.get_protocol() is None
        theirs.close()

    run(main)


@PAIRS
def test_a_large_payload_reaches_a_slow_reader_whole(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        theirs.setblocking(False)
        writer = await connect(ours)
        chunk = random.Random(5).randbytes(8 * 1024 * 1024)
        writer.transport.write(chunk)
        for start in range(0, len(chunk), 65_521):
            writer.transport.write(bytearray(chunk[start : start + 65_521]))
        assert writer.events == ["made", "pause"]
        assert writer.transport.get_write_buffer_size() > 64 * 1024
        writer.transport.close()
        loop = asyncio.get_running_loop()
        digest, count, size = hashlib.sha256(), 0, 1000
        while data := await loop.sock_recv(theirs, size):
            digest.update(data)
            count += len(data)
            size = min(size * 2, 1 << 20)
        assert count == 2 * len(chunk)
        assert digest.digest() == hashlib.sha256(chunk + chunk).digest()
        await writer.until_lost()
        assert writer.events == ["made", "pause", "resume", "lost"]
        theirs.close()

    run(main)


@PAIRS
def test_many_small_pieces_keep_their_order(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        left, right = await connect(ours), await connect(theirs)
        right.transport.pause_reading()
        pieces = [b"%06d;" % number for number in range(50_000)]
        for piece in pieces[:25_000]:
            left.transport.write(piece)
        left.transport.writelines(pieces[25_000:])
        assert left.transport.get_write_buffer_size() > 0
        await turns()
        right.transport.resume_reading()
        await right.until(lambda: len(right.data) == 7 * len(pieces))
        assert bytes(right.data) == b"".join(pieces)
        assert left.transport.get_write_buffer_size() == 0
        left.transport.close()
        await right.until_lost()

    run(main)


def test_what_was_written_may_be_changed_afterwards() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        left, right = await connect(ours), await connect(theirs)
        right.transport.pause_reading()
        left.transport.write(bytes(16 * 1024 * 1024))
        data = bytearray(b"before")
        left.transport.write(data)
        data[:] = b"after it was written"
        right.transport.resume_reading()
        await right.until(lambda: bytes(right.data[-6:]) == b"before")
        left.transport.abort()
        await right.until_lost()

    run(main)


def test_only_bytes_are_written() -> None:
    async def main() -> None:
        ours, theirs = unix_pair()
        transport = (await connect(ours)).transport
        for wrong in ("text", 7, None, [b"x"]):
            with pytest.raises(TypeError, match="must be a bytes"):
                transport.write(wrong)
        transport.write_eof()
        transport.write_eof()
        for write, what in ((transport.write, b"x"), (transport.writelines, [b"x"])):
            with pytest.raises(RuntimeError, match=r"after write_eof\(\)"):
                write(what)
        assert theirs.recv(10) == b""
        transport.close()
        theirs.close()

    run(main)


def test_limits_of_the_write_buffer() -> None:
    async def main() -> None:
        ours, theirs = unix_pair()
        transport = (await connect(ours)).transport
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(high=8)
        assert transport.get_write_buffer_limits() == (2, 8)
        for high, low in ((1, 2), (-1, -1)):
            with pytest.raises(ValueError, match="must be >= low"):
                transport.set_write_buffer_limits(high=high, low=low)
        transport.close()
        theirs.close()

    run(main)


@PAIRS
def test_half_closed_both_ways(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        left, right = await connect(ours, Staying), await connect(theirs, Staying)
        left.transport.write(b"question")
        left.transport.write_eof()
        await right.until(lambda: "eof" in right.events)
        assert right.data == b"question"
        answer = b"answer" * 500_000
        right.transport.write(answer)
        await left.until(lambda: len(left.data) == len(answer))
        right.transport.write_eof()
        await left.until(lambda: "eof" in left.events)
        assert not left.transport.is_closing()
        assert not right.transport.is_closing()
        left.transport.close()
        right.transport.close()
        await left.until_lost()
        await right.until_lost()

    run(main)


def test_the_end_is_sent_after_what_waits() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        left, right = await connect(ours, Staying), await connect(theirs)
        right.transport.pause_reading()
        left.transport.write(bytes(8_000_000))
        left.transport.write_eof()
        assert left.transport.get_write_buffer_size() > 0
        right.transport.resume_reading()
        await right.until_lost()
        assert len(right.data) == 8_000_000
        assert right.events == ["made", "data", "eof", "lost"]
        left.transport.close()

    run(main)


@PAIRS
def test_abort_drops_what_waits(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        writer = await connect(ours)
        writer.transport.write(bytes(16 * 1024 * 1024))
        writer.transport.abort()
        assert writer.transport.get_write_buffer_size() == 0
        writer.transport.write(b"too late")
        writer.transport.abort()
        writer.transport.close()
        await writer.until_lost()
        await turns()
        assert writer.events == ["made", "pause", "lost"]
        assert writer.reason is None
        assert ours.fileno() == -1
        theirs.close()

    run(main)


@PAIRS
def test_what_comes_during_a_pause_comes_afterwards(pair: Any) -> None:
    async def main() -> None:
        ours, theirs = pair()
        protocol = await connect(ours)
        protocol.transport.pause_reading()
        protocol.transport.pause_reading()
        assert not protocol.transport.is_reading()
        theirs.sendall(b"before the end")
        theirs.close()
        await turns(20)
        assert protocol.events == ["made"]
        protocol.transport.resume_reading()
        protocol.transport.resume_reading()
        await protocol.until_lost()
        assert protocol.events == ["made", "data", "eof", "lost"]
        assert protocol.data == b"before the end"

    run(main)


@PAIRS
def test_pauses_at_any_time_lose_nothing(pair: Any) -> None:
    seed = 20261120

    class Fickle(Recorder):
        chance = random.Random(seed)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.chance.random() < 0.5:
                self.transport.pause_reading()
                if self.chance.random() < 0.3:
                    self.transport.resume_reading()
                else:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self.chance.random() / 1000, self.transport.resume_reading)

    async def main() -> None:
        ours, theirs = pair()
        left, right = await connect(ours), await connect(theirs, Fickle)
        chance = random.Random(seed)
        sent = bytearray()
        for _ in range(300):
            piece = chance.randbytes(chance.choice([1, 100, 5000, 300_000]))
            sent += piece
            left.transport.write(piece)
            await asyncio.sleep(0)
        left.transport.close()
        await right.until_lost()
        assert hashlib.sha256(right.data).digest() == hashlib.sha256(sent).digest(), f"seed {seed}"

    run(main)


def test_urgent_data_holds_nothing_up() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        protocol = await connect(ours)
        for _ in range(50):
            theirs.sendall(b"a" * 100)
            theirs.send(b"!", socket.MSG_OOB)
            theirs.sendall(b"b" * 100)
            wanted = len(protocol.data) + 200
            await protocol.until(lambda wanted=wanted: len(protocol.data) >= wanted)  # type: ignore[misc]
        theirs.close()
        await protocol.until_lost()
        assert len(protocol.data) == 10_000

    run(main)


def test_a_protocol_that_raises_loses_its_connection() -> None:
    class Raising(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ZeroDivisionError("on purpose")

    async def main() -> None:
        errors = collect_errors()
        ours, theirs = tcp_pair()
        protocol = await connect(ours, Raising)
        transport = protocol.transport
        theirs.sendall(bytes(1_000_000))
        await protocol.until_lost()
        assert protocol.events == ["made", "data", "lost"]
        assert isinstance(protocol.reason, ZeroDivisionError)
        [error] = errors
        assert error["exception"] is protocol.reason
        assert error["message"] == "Fatal error: protocol.data_received() call failed."
        assert error["transport"] is transport
        assert error["protocol"] is protocol
        assert ours.fileno() == -1
        theirs.close()

    run(main)


@pytest.mark.parametrize("method", ["eof_received", "connection_made", "connection_lost", "pause_writing"])
def test_a_protocol_that_raises_elsewhere(method: str) -> None:
    def raises(*_: Any) -> None:
        getattr(Recorder, method)(*_)
        raise ZeroDivisionError(method)

    async def main() -> None:
        errors = collect_errors()
        ours, theirs = tcp_pair()
        kind = type("Raising", (Recorder,), {method: raises})
        protocol = await connect(ours, kind)
        if method == "pause_writing":
            protocol.transport.write(bytes(8_000_000))
            protocol.transport.abort()
        theirs.close()
        await protocol.until_lost()
        await turns()
        assert [str(error["exception"]) for error in errors] == [method]
        assert protocol.events.count("lost") == 1
        assert ours.fileno() == -1

    run(main)


def test_a_reset_is_told_with_its_number() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        protocol = await connect(ours)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await protocol.until_lost()
        assert isinstance(protocol.reason, ConnectionResetError)
        assert protocol.reason.errno == errno.ECONNRESET
        assert protocol.reason.strerror == os.strerror(errno.ECONNRESET)
        assert protocol.events == ["made", "lost"]

    run(main)


def test_a_reset_while_something_waits_to_be_written() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        protocol = await connect(ours)
        protocol.transport.pause_reading()
        protocol.transport.write(bytes(16 * 1024 * 1024))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await protocol.until_lost()
        assert isinstance(protocol.reason, ConnectionError)
        assert protocol.events == ["made", "pause", "lost"]

    run(main)


class Filling(asyncio.BufferedProtocol):
    """A `BufferedProtocol` that gives what it is told to give."""

    def __init__(self, room: Any) -> None:
        self.room = room
        self.data = bytearray()
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> Any:
        assert sizehint == -1
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.data += memoryview(self.room)[:nbytes].tobytes()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


@PAIRS
@pytest.mark.parametrize("size", [1, 7, 1000, 1_000_000])
def test_a_buffered_protocol_gets_everything(pair: Any, size: int) -> None:
    async def main() -> None:
        ours, theirs = pair()
        loop = asyncio.get_running_loop()
        room = bytearray(size)
        _, protocol = await loop.create_connection(lambda: Filling(room), sock=ours)
        theirs.setblocking(False)
        payload = random.Random(size).randbytes(min(size * 50, 3_000_000))
        await loop.sock_sendall(theirs, payload)
        theirs.close()
        assert await protocol.lost is None
        assert bytes(protocol.data) == payload

    run(main)


@pytest.mark.parametrize("room", [bytearray(), b"read only", "text", None], ids=repr)
def test_a_buffered_protocol_without_a_buffer_loses_its_connection(room: Any) -> None:
    async def main() -> None:
        errors = collect_errors()
        ours, theirs = tcp_pair()
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(lambda: Filling(room), sock=ours)
        theirs.sendall(b"for nobody")
        reason = await protocol.lost
        assert isinstance(reason, RuntimeError | TypeError | BufferError)
        assert errors[0]["exception"] is reason
        assert ours.fileno() == -1
        theirs.close()

    run(main)


def test_a_buffer_of_another_type_of_item_is_filled_byte_by_byte() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        loop = asyncio.get_running_loop()
        room = memoryview(bytearray(64)).cast("I")
        _, protocol = await loop.create_connection(lambda: Filling(room), sock=ours)
        protocol.buffer_updated = lambda nbytes: protocol.data.extend(bytes(room)[:nbytes])  # type: ignore[method-assign]
        theirs.sendall(b"0123456789" * 10)
        theirs.close()
        await protocol.lost
        assert protocol.data == b"0123456789" * 10

    run(main)


def test_a_new_protocol_gets_what_comes_from_now_on() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        first = await connect(ours)
        theirs.sendall(b"first")
        await first.until(lambda: first.data == b"first")
        second = Recorder()
        first.transport.set_protocol(second)
        assert first.transport.get_protocol() is second
        theirs.sendall(b"second")
        theirs.close()
        await second.until_lost()
        assert second.data == b"second"
        assert first.events == ["made", "data"]

    run(main)


def test_a_stale_event_does_not_reach_whoever_has_the_number_now() -> None:
    """Two are ready in one turn; the first closes the other's socket, and a third gets its number."""

    async def main() -> None:
        (near, near_peer), (far, far_peer) = tcp_pair(), tcp_pair()
        loop = asyncio.get_running_loop()
        made: list[tuple[asyncio.Task[Recorder], socket.socket]] = []

        class Closing(Recorder):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                other = far if self is protocols[0] else near
                number = other.fileno()
                if number == -1:
                    return
                other.close()
                fresh, fresh_peer = tcp_pair()
                if fresh.fileno() != number:
                    fresh, fresh_peer = fresh_peer, fresh
                assert fresh.fileno() == number
                made.append((loop.create_task(connect(fresh)), fresh_peer))

        protocols = [await connect(near, Closing), await connect(far, Closing)]
        near_peer.sendall(b"near")
        far_peer.sendall(b"far")
        await protocols[0].until(lambda: any("data" in it.events for it in protocols))
        [(task, peer)] = made
        third = await task
        loser = protocols[0] if near.fileno() == -1 else protocols[1]
        loser.transport.write(b"must not reach the third")
        await loser.until_lost()
        assert isinstance(loser.reason, OSError)
        assert loser.reason.errno == errno.EBADF
        assert not loser.data
        peer.sendall(b"third")
        await third.until(lambda: third.data == b"third")
        third.transport.write(b"answer")
        peer.settimeout(LONG)
        assert peer.recv(100) == b"answer"
        for sock in (near_peer, far_peer, peer):
            sock.close()
        for protocol in (third, *protocols):
            await protocol.until_lost()

    run(main)


def test_a_detached_socket_is_left_to_whoever_took_its_descriptor() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        protocol = await connect(ours)
        number = ours.detach()
        protocol.transport.write(b"by whom?")
        await protocol.until_lost()
        assert isinstance(protocol.reason, OSError)
        with socket.socket(fileno=number) as other:
            other.setblocking(True)
            other.sendall(b"by the new owner")
        assert theirs.recv(100) == b"by the new owner"
        theirs.close()

    run(main)


def test_nobody_else_may_use_the_descriptor_of_a_transport() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = tcp_pair()
        protocol = await connect(ours)
        for number in (ours.fileno(), ours):
            with pytest.raises(RuntimeError, match="is used by transport <StreamTransport"):
                loop.add_reader(number, print)
            with pytest.raises(RuntimeError, match="is used by transport"):
                loop.remove_writer(number)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_connection(Recorder, sock=ours)
        theirs.sendall(b"still works")
        await protocol.until(lambda: protocol.data == b"still works")
        protocol.transport.close()
        theirs.close()

    run(main)


def test_a_cancelled_create_connection_closes_exactly_its_own() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for wait in range(6):
            ours, theirs = tcp_pair()
            other, other_peer = tcp_pair()
            number = ours.fileno()
            task = loop.create_task(loop.create_connection(Recorder, sock=ours))
            await turns(wait)
            task.cancel()
            try:
                transport, _ = await task
                transport.close()
            except asyncio.CancelledError:
                pass
            await turns()
            if ours.fileno() != -1:  # It was cancelled before it began.
                assert wait == 0
                ours.close()
            assert theirs.recv(10) == b""
            reused, reused_peer = tcp_pair()
            assert number in (reused.fileno(), reused_peer.fileno())
            del ours, task
            gc.collect()
            for one, two in ((other, other_peer), (reused, reused_peer)):
                one.sendall(b"untouched")
                assert two.recv(100) == b"untouched"
            for sock in (theirs, other, other_peer, reused, reused_peer):
                sock.close()

    run(main)


def test_closing_in_resume_writing_loses_the_connection_once() -> None:
    class Done(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.close()

    async def main() -> None:
        ours, theirs = tcp_pair()
        left, right = await connect(ours, Done), await connect(theirs)
        left.transport.set_write_buffer_limits(high=0)
        left.transport.write(bytes(8_000_000))
        await left.until_lost()
        await right.until_lost()
        await turns()
        assert left.events == ["made", "pause", "resume", "lost"]
        assert len(right.data) == 8_000_000

    run(main)


def test_giving_up_in_pause_writing_is_not_resumed() -> None:
    class GivesUp(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.abort()

    async def main() -> None:
        ours, theirs = tcp_pair()
        protocol = await connect(ours, GivesUp)
        protocol.transport.write(bytes(16 * 1024 * 1024))
        await protocol.until_lost()
        await turns()
        assert protocol.events == ["made", "pause", "lost"]
        theirs.close()

    run(main)


def test_the_protocol_is_called_in_the_context_of_the_connection() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    seen: list[str] = []

    class Looking(Recorder):
        def data_received(self, data: bytes) -> None:
            seen.append(name.get())
            super().data_received(data)

        def connection_lost(self, exc: BaseException | None) -> None:
            seen.append(name.get())
            super().connection_lost(exc)

    async def main() -> None:
        pairs = [tcp_pair(), tcp_pair()]
        protocols = []
        for (ours, _), owner in zip(pairs, ["first", "second"], strict=True):
            name.set(owner)
            protocols.append(await connect(ours, Looking))
        name.set("somebody else")
        for (_, theirs), protocol in zip(pairs, protocols, strict=True):
            theirs.sendall(b"x")
            await protocol.until(lambda protocol=protocol: bool(protocol.data))  # type: ignore[misc]
            theirs.close()
            await protocol.until_lost()

    run(main)
    assert seen == ["first", "first", "second", "second"]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_server(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: list[Recorder] = []

        class Echo(Recorder):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                made.append(self)

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)

        if kind == "tcp":
            server = await loop.create_server(Echo, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            clients = [await loop.create_connection(Recorder, *address) for _ in range(20)]
        else:
            path = str(tmp_path / "socket")
            server = await loop.create_unix_server(Echo, path)
            clients = [await loop.create_unix_connection(Recorder, path) for _ in range(20)]
        for number, (transport, _) in enumerate(clients):
            transport.write(b"%d" % number * 1000)
        for number, (transport, protocol) in enumerate(clients):
            await protocol.until(lambda p=protocol, n=number: len(p.data) == 1000 * len(b"%d" % n))  # type: ignore[misc]
            assert bytes(protocol.data) == b"%d" % number * 1000
            transport.close()
        for protocol in made:
            await protocol.until_lost()
        server.close()
        async with asyncio.timeout(LONG):
            await server.wait_closed()
        assert len(made) == 20

    run(main)


def test_a_factory_that_raises_costs_one_connection() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turn = iter(range(10))

        def factory() -> Recorder:
            if next(turn) == 0:
                raise ZeroDivisionError
            return Recorder()

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
        writer.close()
        transport, _ = await loop.create_connection(Recorder, *address)
        transport.close()
        server.close()

    run(main)


EXHAUSTED = """
import asyncio, resource, socket, sys
from asyncio import constants
import plait

constants.ACCEPT_RETRY_DELAY = 0.01

class Greeting(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()

async def main():
    loop = asyncio.get_running_loop()
    errors = []
    told = asyncio.Event()
    def handler(_, context):
        errors.append(context)
        told.set()
    loop.set_exception_handler(handler)
    server = await loop.create_server(Greeting, "127.0.0.1", 0)
    client = socket.socket()
    client.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    held = []
    try:
        while True:
            held.append(socket.socket())
    except OSError:
        pass
    await loop.sock_connect(client, server.sockets[0].getsockname())
    async with asyncio.timeout(30):
        await told.wait()
    assert "out of system resource" in errors[0]["message"], errors
    assert errors[0]["exception"].errno == 24, errors
    turns = len(errors)
    await asyncio.sleep(0)
    assert len(errors) == turns, "it spins"
    for sock in held:
        sock.close()
    async with asyncio.timeout(30):
        assert await loop.sock_recv(client, 100) == b"hello"
    server.close()

asyncio.run(main(), loop_factory=plait.EventLoop) if sys.version_info >= (3, 12) else plait.run(main())
"""


def test_a_server_without_descriptors_waits_for_some() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", EXHAUSTED], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr


@PAIRS
def test_a_file_is_sent(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    payload = random.Random(1).randbytes(3_000_001)
    path.write_bytes(payload)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        left, right = await connect(ours), await connect(theirs)
        left.transport.write(b"head")
        with path.open("rb") as file:
            sending = asyncio.ensure_future(loop.sendfile(left.transport, file, 1))
            await turns(1)
            if not sending.done():
                with pytest.raises(RuntimeError, match="sendfile is in progress"):
                    left.transport.write(b"not now")
            assert await sending == len(payload) - 1
        left.transport.write(b"tail")
        right.transport.write(b"answer")
        await left.until(lambda: left.data == b"answer")
        left.transport.close()
        await right.until_lost()
        assert bytes(right.data) == b"head" + payload[1:] + b"tail"

    run(main)


def test_a_forgotten_transport_that_reads_lives_on() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        seen: list[bytes] = []

        class Quiet(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                seen.append(data)

        await asyncio.get_running_loop().create_connection(Quiet, sock=ours)
        del ours
        gc.collect()
        theirs.sendall(b"still there")
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if seen:
                break
        assert seen == [b"still there"]
        theirs.close()

    run(main)


def test_a_dropped_loop_takes_its_transports_with_it() -> None:
    class Holding(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

    ours, theirs = tcp_pair()
    loop = EventLoop()
    transport, protocol = loop.run_until_complete(loop.create_connection(Holding, sock=ours))
    known = [weakref.ref(thing) for thing in (transport, protocol)]
    loop.close()
    del ours, transport, protocol, loop
    with pytest.warns(ResourceWarning, match="unclosed transport <StreamTransport"):
        gc.collect()
    assert [ref() for ref in known] == [None, None]
    assert theirs.recv(10) == b""
    theirs.close()


def test_a_transport_of_a_closed_loop() -> None:
    ours, theirs = tcp_pair()
    loop = EventLoop()
    transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
    loop.close()
    transport.write(b"goes out")
    assert theirs.recv(100) == b"goes out"
    transport.pause_reading()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        transport.resume_reading()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        transport.close()
    transport.abort()
    holder = [transport]
    del transport
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        holder.clear()
    assert ours.fileno() == -1
    theirs.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_closed_transports_leave_nothing() -> None:
    async def main() -> None:
        async def once() -> list[weakref.ref[Any]]:
            ours, theirs = tcp_pair()
            left, right = await connect(ours), await connect(theirs)
            left.transport.write(bytes(500_000))
            left.transport.close()
            await right.until_lost()
            await left.until_lost()
            return [weakref.ref(it) for it in (left, right, left.transport, right.transport, ours)]

        gc.collect()
        before = open_descriptors()
        refs = [ref for _ in range(20) for ref in await once()]
        await turns()
        gc.collect()
        assert [ref() for ref in refs if ref() is not None] == []
        assert open_descriptors() == before

    run(main)


FORKED = """
import asyncio, gc, os, socket
import plait

async def main():
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    child = os.fork()
    if child == 0:
        del reader, writer, ours
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    theirs.sendall(b"to the parent\\n")
    async with asyncio.timeout(30):
        assert await reader.readline() == b"to the parent\\n"
    writer.close()
    await writer.wait_closed()
    theirs.close()

plait.run(main())
"""


def test_a_fork_takes_nothing_from_the_parent() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
