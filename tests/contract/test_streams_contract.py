"""What streams must do: the same bodies on asyncio's classes and on ours, the latter on both loops."""

from __future__ import annotations

import asyncio
import inspect
import random
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import plait
import plait.asyncio.streams

LONG = 30.0
"""Seconds after which a test that waits has failed."""

Run = Callable[[Coroutine[Any, Any, None]], None]

STREAMS = [
    pytest.param((asyncio, asyncio.SelectorEventLoop), id="standard"),
    pytest.param((plait.asyncio, asyncio.SelectorEventLoop), id="plait-on-asyncio's-loop"),
    pytest.param((plait.asyncio, plait.EventLoop), id="plait"),
]


@pytest.fixture(params=STREAMS)
def setting(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def streams(setting: Any) -> ModuleType:
    """The module whose streams are tested."""
    module: ModuleType = setting[0]
    return module


@pytest.fixture
def run(setting: Any) -> Iterator[Run]:
    """Runs a coroutine on the loop that goes with it."""
    with asyncio.Runner(loop_factory=setting[1]) as runner:

        def run(body: Coroutine[Any, Any, None]) -> None:
            runner.run(asyncio.wait_for(body, LONG))

        yield run


class FakeTransport(asyncio.Transport):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")


async def settle() -> None:
    """Lets everything run that is ready."""
    for _ in range(6):
        await asyncio.sleep(0)


def test_bytes_are_read_as_they_are_asked_for(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        reader.feed_data(b"one\ntwo\r\nthree")
        assert await reader.readline() == b"one\n"
        assert await reader.readuntil(b"\r\n") == b"two\r\n"
        assert await reader.readexactly(2) == b"th"
        assert await reader.read(100) == b"ree"
        assert await reader.read(0) == b""
        assert await reader.readexactly(0) == b""
        assert not reader.at_eof()
        reader.feed_data(bytearray(b"last"))
        reader.feed_data(memoryview(b" words"))
        reader.feed_data(b"")
        reader.feed_eof()
        assert not reader.at_eof()
        assert await reader.read() == b"last words"
        assert reader.at_eof()
        assert await reader.read() == b""
        assert await reader.read(1) == b""
        assert await reader.readline() == b""

    run(body())


def test_lines_are_iterated_over(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        reader.feed_data(b"a\n\nbc\nd")
        reader.feed_eof()
        assert [line async for line in reader] == [b"a\n", b"\n", b"bc\n", b"d"]

    run(body())


def test_who_waits_is_woken_by_what_it_waits_for(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        for waiting, pieces, expected in [
            (lambda: reader.read(10), [b"ab"], b"ab"),
            (lambda: reader.readexactly(4), [b"a", b"bc", b"d"], b"abcd"),
            (lambda: reader.readline(), [b"a", b"b", b"c\n"], b"abc\n"),
            (lambda: reader.readuntil(b"ab"), [b"xa", b"a", b"b"], b"xaab"),
        ]:
            task = asyncio.create_task(waiting())
            for piece in pieces:
                await settle()
                assert not task.done()
                reader.feed_data(piece)
            assert await task == expected

    run(body())


def test_what_is_missing_at_the_end_is_told_of(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        task = asyncio.create_task(reader.readexactly(10))
        await settle()
        reader.feed_data(b"abc")
        await settle()
        reader.feed_eof()
        with pytest.raises(asyncio.IncompleteReadError) as exact:
            await task
        assert (exact.value.partial, exact.value.expected) == (b"abc", 10)
        other = streams.StreamReader()
        other.feed_data(b"no end")
        other.feed_eof()
        with pytest.raises(asyncio.IncompleteReadError) as until:
            await other.readuntil(b"!")
        assert (until.value.partial, until.value.expected) == (b"no end", None)
        assert other.at_eof()

    run(body())


def test_limits_are_kept(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader(limit=4)
        reader.feed_data(b"12345\nrest\n")
        with pytest.raises(asyncio.LimitOverrunError, match="is longer than limit") as beyond:
            await reader.readuntil()
        assert beyond.value.consumed == 5
        with pytest.raises(ValueError, match="is longer than limit"):
            await reader.readline()
        assert await reader.readline() == b"rest\n"
        reader.feed_data(b"123456")
        with pytest.raises(asyncio.LimitOverrunError, match="is not found") as missing:
            await reader.readuntil(b"!!")
        assert missing.value.consumed == 5
        with pytest.raises(ValueError, match="is not found"):
            await reader.readline()
        reader.feed_data(b"1234\n")
        assert await reader.readline() == b"1234\n"

    run(body())


def test_wrong_arguments_are_refused(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        reader.feed_data(b"some bytes")
        with pytest.raises(ValueError, match="less than zero"):
            await reader.readexactly(-1)
        with pytest.raises(ValueError, match="at least one-byte"):
            await reader.readuntil(b"")
        for wrong in ("abc", 7, None):
            with pytest.raises(TypeError):
                await reader.readuntil(wrong)
        for limit in (0, -1):
            with pytest.raises(ValueError, match="Limit"):
                streams.StreamReader(limit=limit)
        reader.feed_eof()
        with pytest.raises(AssertionError):
            reader.feed_data(b"too late")

    run(body())


def test_an_exception_reaches_who_waits_and_who_comes_later(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        assert reader.exception() is None
        task = asyncio.create_task(reader.read(1))
        await settle()
        error = ConnectionAbortedError("gone")
        reader.set_exception(error)
        for waiting in (task, reader.read(1), reader.readline(), reader.readexactly(1), reader.readuntil()):
            with pytest.raises(ConnectionAbortedError) as raised:
                await waiting
            assert raised.value is error
        assert reader.exception() is error

    run(body())


def test_one_coroutine_at_a_time_waits(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        first = asyncio.create_task(reader.read(1))
        await settle()
        for name, waiting in [
            ("read", reader.read(1)),
            ("readexactly", reader.readexactly(1)),
            ("readuntil", reader.readline()),
        ]:
            with pytest.raises(RuntimeError, match=rf"{name}\(\) called while another coroutine"):
                await waiting
        reader.feed_data(b"x")
        assert await first == b"x"

    run(body())


def test_a_cancelled_read_leaves_the_bytes_to_the_next(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        for waiting in (
            lambda: reader.readexactly(9),
            lambda: reader.readline(),
            lambda: reader.readuntil(b"|"),
        ):
            for fed_in_the_same_turn in (False, True):
                task = asyncio.create_task(waiting())
                await settle()
                reader.feed_data(b"abc")
                if not fed_in_the_same_turn:
                    await settle()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await reader.read(100) == b"abc"
        task = asyncio.create_task(reader.read(5))
        await settle()
        reader.feed_data(b"abc")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await reader.read(5) == b"abc"

    run(body())


def test_a_read_that_is_not_awaited_reads_nothing(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader()
        reader.feed_data(b"abc")
        coroutine = reader.read(3)
        assert asyncio.iscoroutine(coroutine)
        assert inspect.iscoroutinefunction(reader.read)
        coroutine.close()
        task = asyncio.create_task(reader.read(3))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(reader.read(3), LONG) == b"abc"

    run(body())


def test_a_full_buffer_pauses_the_transport(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader, transport = streams.StreamReader(limit=4), FakeTransport()
        reader.set_transport(transport)
        reader.feed_data(b"12345678")
        assert transport.told == []
        reader.feed_data(b"9")
        reader.feed_data(b"0")
        assert transport.told == ["pause"]
        assert await reader.readexactly(5) == b"12345"
        assert transport.told == ["pause"]
        assert await reader.readexactly(1) == b"6"
        assert transport.told == ["pause", "resume"]
        reader.feed_data(b"123456")
        task = asyncio.create_task(reader.readexactly(20))
        await settle()
        assert transport.told == ["pause", "resume", "pause", "resume"]
        reader.feed_data(b"0123456789")
        assert await task == b"7890" + b"123456" + b"0123456789"

    run(body())


def test_a_transport_that_cannot_be_paused_is_not_asked_again(streams: Any, run: Run) -> None:
    async def body() -> None:
        asked = 0

        class Stubborn(asyncio.Transport):
            def pause_reading(self) -> None:
                nonlocal asked
                asked += 1
                raise NotImplementedError

        reader = streams.StreamReader(limit=1)
        reader.set_transport(Stubborn())
        for _ in range(10):
            reader.feed_data(b"1234")
        reader.feed_eof()
        assert await reader.read() == b"1234" * 10
        assert asked == 1

    run(body())


def test_the_private_attributes_are_there(streams: Any, run: Run) -> None:
    async def body() -> None:
        reader = streams.StreamReader(limit=7)
        reader.feed_data(b"abc")
        assert reader._buffer == b"abc"
        assert isinstance(reader._buffer, bytearray)
        reader._buffer.clear()
        reader.feed_data(b"def")
        known = reader._buffer
        assert await reader.readexactly(1) == b"d"
        assert known == b"ef"
        known.extend(b"gh")
        reader.feed_data(b"i")
        assert await reader.readexactly(5) == b"efghi"
        assert known == b""
        assert (reader._limit, reader._eof, reader._paused, reader._waiter) == (7, False, False, None)
        assert reader._loop is asyncio.get_running_loop()
        assert repr(reader) == "<StreamReader limit=7>"
        reader.feed_data(b"abc")
        reader.feed_eof()
        assert repr(reader) == "<StreamReader 3 bytes eof limit=7>"

    run(body())


def test_a_subclass_may_override_what_it_likes(streams: Any, run: Run) -> None:
    async def body() -> None:
        class Reader(streams.StreamReader):  # type: ignore[misc]
            def feed_data(self, data: bytes) -> None:
                super().feed_data(data.upper())

            async def readuntil(self, separator: Any = b"\n") -> bytes:
                return b"> " + await super().readuntil(separator)

        reader = Reader()
        protocol = streams.StreamReaderProtocol(reader)
        protocol.data_received(b"one\ntwo\n")
        protocol.eof_received()
        assert await reader.readline() == b"> ONE\n"
        assert [line async for line in reader] == [b"> TWO\n"]

    run(body())


def test_a_subclass_may_wait_as_the_standard_one_does(streams: Any, run: Run) -> None:
    async def body() -> None:
        class Reader(streams.StreamReader):  # type: ignore[misc]
            async def read_all_there_is(self) -> bytes:
                if not self._buffer:
                    await self._wait_for_data("read_all_there_is")
                data = bytes(self._buffer)
                self._buffer.clear()
                self._maybe_resume_transport()
                return data

        reader = Reader(limit=2)
        reader.set_transport(FakeTransport())
        for piece in (b"abcdef", b"gh"):
            task = asyncio.create_task(reader.read_all_there_is())
            await settle()
            assert reader._waiter is not None
            reader.feed_data(piece)
            assert await task == piece
        assert reader._transport.told == ["pause", "resume"]

    run(body())


def test_a_connection_is_served(streams: Any, run: Run, tmp_path: Path) -> None:
    async def serve(reader: Any, writer: Any) -> None:
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, streams.StreamWriter)
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
        writer.writelines([b"bye", b"\n"])
        writer.write_eof()
        writer.close()
        await writer.wait_closed()

    async def talk(reader: Any, writer: Any) -> None:
        assert isinstance(reader, streams.StreamReader)
        for size in (1, 1000, 300_000):
            writer.write(b"x" * size)
            await writer.drain()
            assert await reader.readexactly(size) == b"x" * size
        assert not writer.is_closing()
        writer.write_eof()
        assert await reader.read() == b"bye\n"
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ConnectionResetError):
            await writer.drain()

    async def body() -> None:
        async with await streams.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            await asyncio.gather(*[talk(*await streams.open_connection(host, port)) for _ in range(5)])
        path = str(tmp_path / "socket")
        async with await streams.start_unix_server(serve, path):
            reader, writer = await streams.open_unix_connection(path)
            assert writer.get_extra_info("socket").family == socket.AF_UNIX
            await talk(reader, writer)

    run(body())


def test_drain_waits_for_room(streams: Any, run: Run) -> None:
    async def body() -> None:
        read_on = asyncio.Event()
        received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(reader: Any, writer: Any) -> None:
            await read_on.wait()
            received.set_result(len(await reader.read()))
            writer.close()

        async with await streams.start_server(serve, "127.0.0.1", 0, limit=1024) as server:
            _, writer = await streams.open_connection(*server.sockets[0].getsockname())
            size = 32 * 1024 * 1024
            writer.write(b"x" * size)
            waiting = [asyncio.create_task(writer.drain()) for _ in range(2)]
            await settle()
            assert not any(task.done() for task in waiting)
            read_on.set()
            await asyncio.gather(*waiting)
            writer.write_eof()
            assert await received == size
            writer.close()
            await writer.wait_closed()

    run(body())


def test_a_reset_reaches_reader_and_writer(streams: Any, run: Run) -> None:
    async def body() -> None:
        outcomes: asyncio.Queue[str] = asyncio.Queue()

        async def serve(reader: Any, writer: Any) -> None:
            try:
                await reader.readexactly(100)
            except ConnectionResetError as error:
                outcomes.put_nowait("read" if reader.exception() is error else "another")
            try:
                await writer.drain()
            except ConnectionResetError:
                outcomes.put_nowait("drained")
            writer.close()

        async with await streams.start_server(serve, "127.0.0.1", 0) as server:
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                client.sendall(b"some")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert [await outcomes.get() for _ in range(2)] == ["read", "drained"]

    run(body())


def test_what_a_server_s_coroutine_raises_is_reported(streams: Any, run: Run) -> None:
    async def body() -> None:
        reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.put_nowait(report))

        async def serve(reader: Any, writer: Any) -> None:
            raise LookupError("nothing here")

        async with await streams.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await streams.open_connection(*server.sockets[0].getsockname())
            report = await reports.get()
            assert isinstance(report["exception"], LookupError)
            assert "client_connected_cb" in report["message"]
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(body())


def steps(dice: random.Random) -> list[tuple[Any, ...]]:
    """What happens to a reader: bytes that come, reads that begin, reads that are cancelled, the end."""
    made: list[tuple[Any, ...]] = []
    for _ in range(60):
        kind = dice.choice(["feed", "feed", "feed", "exactly", "read", "line", "until", "cancel"])
        if kind == "feed":
            made.append((kind, bytes(dice.choices(b"abcd\n", k=dice.choice([0, 1, 2, 7, 30])))))
        elif kind in ("exactly", "read"):
            made.append((kind, dice.choice([0, 1, 3, 12, 40])))
        elif kind == "until":
            several = [b"".join(dice.choices([b"a", b"b", b"\n"], k=dice.randint(1, 3))) for _ in range(3)]
            made.append(
                (kind, tuple(several) if sys.version_info >= (3, 13) and dice.random() < 0.5 else several[0])
            )
        else:
            made.append((kind,))
    made.append(("eof",))
    made.extend([("line",), ("exactly", 5), ("until", b"a"), ("read", -1)])
    return made


async def outcomes(reader: Any, plan: list[tuple[Any, ...]]) -> list[Any]:
    """What comes of that."""
    seen: list[Any] = []
    task: asyncio.Task[bytes] | None = None
    methods = {
        "exactly": reader.readexactly,
        "read": reader.read,
        "line": reader.readline,
        "until": reader.readuntil,
    }
    for kind, *arguments in plan:
        if kind == "feed":
            reader.feed_data(*arguments)
        elif kind == "eof":
            reader.feed_eof()
        elif kind == "cancel":
            if task is not None:
                task.cancel()
        elif task is None:
            task = asyncio.create_task(methods[kind](*arguments))
        await settle()
        if task is not None and task.done():
            if task.cancelled():
                seen.append("cancelled")
            elif (error := task.exception()) is not None:
                seen.append((type(error), error.args))
            else:
                seen.append(task.result())
            task = None
        seen.append(bytes(reader._buffer))
    return seen


@pytest.mark.parametrize("limit", [5, 20, 2**16])
@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, plait.EventLoop])
def test_whatever_happens_ours_does_what_asyncio_s_does(limit: int, loop_factory: Any) -> None:
    async def body() -> None:
        for seed in [*range(40), random.randrange(2**32)]:
            print("seed", seed)
            plan = steps(random.Random(seed))
            expected = await outcomes(asyncio.StreamReader(limit=limit), plan)
            assert await outcomes(plait.asyncio.StreamReader(limit=limit), plan) == expected

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(body())
