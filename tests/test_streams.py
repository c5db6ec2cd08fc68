"""Streams: what plait's do beyond asyncio's, beside other people's classes, and what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import plait
import plait.asyncio.streams as streams
from plait.asyncio.streams import StreamReader, StreamReaderProtocol, StreamWriter

LONG = 30.0
"""Seconds after which a test that waits has failed."""


def run(body: Coroutine[Any, Any, None], factory: Callable[[], Any] = plait.EventLoop) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(body, LONG))


async def settle() -> None:
    """Lets everything run that is ready."""
    for _ in range(6):
        await asyncio.sleep(0)


class FakeTransport(asyncio.Transport):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.closing = False

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def test_they_are_asyncio_s_classes() -> None:
    assert issubclass(StreamReader, asyncio.StreamReader)
    assert issubclass(StreamWriter, asyncio.StreamWriter)
    assert issubclass(StreamReaderProtocol, asyncio.StreamReaderProtocol)
    assert plait.asyncio.StreamReader is StreamReader
    assert plait.asyncio.open_connection is streams.open_connection


def test_a_read_to_the_end_that_is_cancelled_loses_nothing() -> None:
    async def body() -> None:
        reader, transport = StreamReader(limit=4), FakeTransport()
        reader.set_transport(transport)
        task = asyncio.create_task(reader.read())
        for number in range(10):
            await settle()
            reader.feed_data(b"block %d " % number)
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # What came back is more than the buffer should hold.
        assert transport.told[-1] == "pause"
        reader.feed_data(b"end")
        reader.feed_eof()
        assert await reader.read() == b"".join(b"block %d " % number for number in range(10)) + b"end"

    run(body())


def test_a_read_to_the_end_that_fails_leaves_what_it_had() -> None:
    async def body() -> None:
        reader = StreamReader()
        task = asyncio.create_task(reader.read())
        await settle()
        reader.feed_data(b"half")
        await settle()
        reader.set_exception(ConnectionResetError())
        with pytest.raises(ConnectionResetError):
            await task
        assert reader._buffer == b"half"

    run(body())


def test_of_several_separators_the_first_to_end_counts() -> None:
    async def body() -> None:
        reader = StreamReader()
        reader.feed_data(b"a;b--c\r\nd")
        separators = (b"\r\n", b";", b"--")
        assert await reader.readuntil(separators) == b"a;"
        assert await reader.readuntil(separators) == b"b--"
        assert await reader.readuntil(separators) == b"c\r\n"
        task = asyncio.create_task(reader.readuntil((b"xyz", b"end")))
        for piece in (b"e", b"n", b"d!"):
            await settle()
            reader.feed_data(piece)
        assert await task == b"dend"
        for wrong, message in [((), "at least one element"), ((b"a", b""), "at least one-byte")]:
            with pytest.raises(ValueError, match=message):
                await reader.readuntil(wrong)

    run(body())


def test_a_reader_whose_bytes_another_has_taken_waits_on() -> None:
    async def body() -> None:
        reader = StreamReader()
        first = asyncio.create_task(reader.read(10))
        await settle()
        reader.feed_data(b"for whoever comes first")
        # The first was woken, but has not run yet.
        assert await reader.read(100) == b"for whoever comes first"
        await settle()
        assert not first.done()
        reader.feed_data(b"more")
        assert await first == b"more"

    run(body())


def test_who_needs_many_bytes_is_not_woken_for_few_and_does_not_pause_the_transport() -> None:
    async def body() -> None:
        reader, transport = StreamReader(limit=10), FakeTransport()
        reader.set_transport(transport)
        task = asyncio.create_task(reader.readexactly(1000))
        await settle()
        waiter = reader._waiter
        for _ in range(99):
            reader.feed_data(b"0123456789")
            assert reader._waiter is waiter
        assert transport.told == []
        reader.feed_data(b"0123456789")
        assert reader._waiter is None
        assert await task == b"0123456789" * 100

    run(body())


def test_a_coroutine_that_is_thrown_away_while_it_waits_makes_room_for_another() -> None:
    async def body() -> None:
        reader = StreamReader()
        for waiting in (reader.read(1), reader.readexactly(1), reader.readline(), reader.readuntil(b"x")):
            waiting.send(None)
            assert reader._waiter is not None
            waiting.close()
            assert reader._waiter is None
        reader.feed_data(b"x")
        assert await reader.read(1) == b"x"

    run(body())


def test_an_infinite_limit_and_sizes_beyond_any_memory() -> None:
    async def body() -> None:
        for limit in (float("inf"), 2**100):
            reader = StreamReader(limit=limit)  # type: ignore[arg-type]
            reader.feed_data(b"x" * 200_000 + b"\n")
            assert len(await reader.readline()) == 200_001
            reader.feed_data(b"abc")
            assert await reader.read(2**100) == b"abc"
            reader.feed_eof()
            with pytest.raises(asyncio.IncompleteReadError) as missing:
                await reader.readexactly(2**100)
            assert missing.value.expected == 2**100

    run(body())


def test_standard_classes_take_ours() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        reader, transport = StreamReader(), FakeTransport()
        protocol = asyncio.StreamReaderProtocol(reader)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        protocol.connection_made(transport)
        protocol.data_received(b"line\n")
        assert await reader.readline() == b"line\n"
        await writer.drain()
        writer.close()
        standard = asyncio.StreamReader()
        ours = StreamReaderProtocol(standard)
        ours.connection_made(transport)
        ours.data_received(b"line\n")
        assert await standard.readline() == b"line\n"
        ours.eof_received()
        ours.connection_lost(None)
        assert standard.at_eof()

    run(body())


def test_drain_is_asked_of_whoever_overrides_it() -> None:
    async def body() -> None:
        asked: list[str] = []

        class Protocol(StreamReaderProtocol):
            async def _drain_helper(self) -> None:
                asked.append("drain")

        reader, transport = StreamReader(), FakeTransport()
        writer = StreamWriter(transport, Protocol(reader), reader, asyncio.get_running_loop())
        await writer.drain()
        assert asked == ["drain"]
        writer.close()

    run(body())


def factories() -> list[Any]:
    made = [plait.EventLoop, asyncio.SelectorEventLoop]
    try:
        import uvloop
    except ImportError:
        return made
    return [*made, uvloop.new_event_loop]


@pytest.mark.parametrize("factory", factories())
def test_many_connections_carry_their_own_bytes(factory: Callable[[], Any]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        while head := await reader.readline():
            size, separator = int(head[:-1].split()[0]), head.split()[1]
            writer.write(await reader.readexactly(size))
            writer.write(await reader.readuntil((separator, b"never")))
            await writer.drain()
        writer.close()

    async def talk(address: Any, number: int) -> None:
        dice = random.Random(seed + number)
        reader, writer = await streams.open_connection(*address)
        for _ in range(30):
            separator = dice.choice([b";", b"//", b"END"])
            body = dice.randbytes(dice.choice([0, 1, 100, 1024, 70_000]))
            line = b"%d" % number + separator
            request = b"%d %s\n" % (len(body), separator) + body + line
            cut = dice.randrange(len(request))
            writer.write(request[:cut])
            if dice.random() < 0.5:
                await asyncio.sleep(0)
            writer.write(request[cut:])
            assert await reader.readexactly(len(body)) == body
            # A read that is cancelled half-way takes nothing.
            task = asyncio.create_task(reader.readexactly(len(line)))
            await asyncio.sleep(0)
            task.cancel()
            try:
                answer = await task
            except asyncio.CancelledError:
                answer = await reader.readexactly(len(line))
            assert answer == line
        writer.close()
        await writer.wait_closed()

    async def body() -> None:
        async with await streams.start_server(serve, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            await asyncio.gather(*(talk(address, number) for number in range(16)))

    run(body(), factory)


def test_nothing_is_left_of_a_connection() -> None:
    left: list[weakref.ref[Any]] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        left.extend([weakref.ref(reader), weakref.ref(writer), weakref.ref(writer._protocol)])
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def body() -> None:
        async with await streams.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await streams.open_connection(*server.sockets[0].getsockname())
            left.extend([weakref.ref(reader), weakref.ref(writer), weakref.ref(writer._protocol)])
            writer.write(b"bye")
            writer.close()
            await writer.wait_closed()
            while len(left) < 6:
                await asyncio.sleep(0)

    run(body())
    gc.collect()
    assert len(left) == 6
    assert [ref() for ref in left] == [None] * 6
