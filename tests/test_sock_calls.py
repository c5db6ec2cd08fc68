"""`sock_*` of the event loop: results, errors and cancellation as asyncio's."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import plait

Loop = asyncio.AbstractEventLoop


def run(body: Callable[[Loop], Awaitable[Any]], make: Callable[[], Loop] = plait.EventLoop) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(60):
            return await body(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(main())


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
    return first, second


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


@pytest.fixture(params=[tcp_pair, unix_pair])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = request.param()
    with first, second:
        first.setblocking(False)
        second.setblocking(False)
        yield first, second


Pair = tuple[socket.socket, socket.socket]


async def begin(coroutine: Any) -> asyncio.Task[Any]:
    """A task that has begun to wait."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    assert not task.done()
    return task


def test_what_is_there_comes_without_a_turn(pair: Pair) -> None:
    here, there = pair

    async def body(loop: Loop) -> None:
        turns: list[int] = []
        loop.call_soon(turns.append, 1)
        await loop.sock_sendall(there, b"hello")
        assert await loop.sock_recv(here, 3) == b"hel"
        assert await loop.sock_recv(here, 100) == b"lo"
        buffer = bytearray(10)
        await loop.sock_sendall(there, bytearray(b"again"))
        assert await loop.sock_recv_into(here, memoryview(buffer)[2:]) == 5
        assert bytes(buffer[2:7]) == b"again"
        assert turns == []

    run(body)


def test_waits_again_and_again(pair: Pair) -> None:
    here, there = pair

    async def echo(loop: Loop) -> int:
        served = 0
        while data := await loop.sock_recv(there, 4096):
            served += 1
            await loop.sock_sendall(there, data)
        return served

    async def body(loop: Loop) -> None:
        server = await begin(echo(loop))
        for number in range(200):
            await loop.sock_sendall(here, b"%d" % number)
            assert await loop.sock_recv(here, 4096) == b"%d" % number
        here.shutdown(socket.SHUT_WR)
        assert await server == 200
        assert await loop.sock_recv(there, 1) == b""

    run(body)


def test_the_end_that_comes_with_the_data_is_seen(pair: Pair) -> None:
    here, there = pair

    async def body(loop: Loop) -> None:
        waiting = await begin(loop.sock_recv(here, 4096))
        there.send(b"last")
        there.shutdown(socket.SHUT_WR)
        assert await waiting == b"last"
        assert await loop.sock_recv(here, 4096) == b""

    run(body)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_more_than_fits_is_sent_piece_by_piece(pair: Pair, kind: Any) -> None:
    here, there = pair
    data = bytes(range(256)) * 20_000

    async def body(loop: Loop) -> None:
        sending = await begin(loop.sock_sendall(here, kind(data)))
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(there, 1 << 20)
        await sending
        assert received == data

    run(body)


def test_whoever_is_cancelled_loses_nothing(pair: Pair) -> None:
    here, there = pair

    async def body(loop: Loop) -> None:
        for number in range(20):
            waiting = await begin(loop.sock_recv(here, 100))
            if number % 2:
                there.send(b"kept")  # found ready, perhaps, before the task learns that it is cancelled
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            if number % 2:
                assert await loop.sock_recv(here, 100) == b"kept"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_recv(here, 100), 0.001)
        there.send(b"x")
        assert await asyncio.wait_for(loop.sock_recv(here, 100), 60) == b"x"

    run(body)


def test_a_call_that_is_never_awaited_takes_nothing(pair: Pair) -> None:
    here, there = pair
    there.send(b"kept")

    async def body(loop: Loop) -> None:
        call: Any = loop.sock_recv(here, 100)
        call.close()
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await call
        task = asyncio.ensure_future(loop.sock_recv(here, 100))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await loop.sock_recv(here, 100) == b"kept"

    run(body)


def test_several_wait_for_one_socket(pair: Pair) -> None:
    here, there = pair

    async def body(loop: Loop) -> None:
        waiting = [await begin(loop.sock_recv(here, 1)) for _ in range(5)]
        waiting[1].cancel()
        there.send(b"abcd")
        got = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(got.pop(1), asyncio.CancelledError)
        assert got == [b"a", b"b", b"c", b"d"]

    run(body)


def test_beside_readers_and_writers(pair: Pair) -> None:
    here, there = pair

    async def body(loop: Loop) -> None:
        writable, readable = asyncio.Event(), asyncio.Event()
        waiting = await begin(loop.sock_recv(here, 100))
        loop.add_writer(here, writable.set)
        await writable.wait()
        there.send(b"one")
        assert await waiting == b"one"
        waiting = await begin(loop.sock_recv(here, 100))
        assert loop.remove_writer(here)
        there.send(b"two")
        assert await waiting == b"two"
        loop.add_reader(here, readable.set)
        there.send(b"three")
        await readable.wait()
        assert loop.remove_reader(here)
        assert await loop.sock_recv(here, 100) == b"three"
        waiting = await begin(loop.sock_recv(here, 100))
        there.send(b"four")
        assert await waiting == b"four"

    run(body)


def test_a_socket_with_the_number_of_another(pair: Pair) -> None:
    async def body(loop: Loop) -> None:
        numbers = set()
        for number in range(10):
            here, there = socket.socketpair()
            with here, there:
                here.setblocking(False)
                numbers.add(here.fileno())
                for _ in range(2):
                    waiting = await begin(loop.sock_recv(here, 100))
                    there.send(b"%d" % number)
                    assert await waiting == b"%d" % number
        assert len(numbers) < 10

    run(body)


def test_a_transport_takes_over() -> None:
    here, there = tcp_pair()
    here.setblocking(False)

    async def body(loop: Loop) -> None:
        waiting = await begin(loop.sock_recv(here, 100))
        there.send(b"one")
        assert await waiting == b"one"
        reader, writer = await asyncio.open_connection(sock=here)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_recv(here, 100)
        there.send(b"two\n")
        assert await reader.readline() == b"two\n"
        writer.close()
        await writer.wait_closed()

    with here, there:
        run(body)


def test_connections_are_accepted() -> None:
    async def body(loop: Loop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            accepting = [await begin(loop.sock_accept(listener)) for _ in range(3)]
            clients = []
            for _ in range(3):
                client = socket.socket()
                client.setblocking(False)
                await loop.sock_connect(client, listener.getsockname())
                clients.append(client)
            for (connection, address), client in zip(await asyncio.gather(*accepting), clients, strict=True):
                with connection, client:
                    assert connection.gettimeout() == 0
                    assert address == client.getsockname()
                    await loop.sock_sendall(client, b"x")
                    assert await loop.sock_recv(connection, 10) == b"x"

    run(body)


def test_datagrams() -> None:
    async def body(loop: Loop) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as here, socket.socket(type=socket.SOCK_DGRAM) as there:
            for end in (here, there):
                end.bind(("127.0.0.1", 0))
                end.setblocking(False)
            waiting = await begin(loop.sock_recvfrom(here, 100))
            assert await loop.sock_sendto(there, b"hello", here.getsockname()) == 5
            assert await waiting == (b"hello", there.getsockname())
            buffer = bytearray(10)
            receiving = await begin(loop.sock_recvfrom_into(here, buffer))
            await loop.sock_sendto(there, b"again", here.getsockname())
            assert await receiving == (5, there.getsockname())
            assert buffer[:5] == b"again"
            waiting = await begin(loop.sock_recv(here, 3))
            await loop.sock_sendto(there, b"cut off", here.getsockname())
            await loop.sock_sendto(there, b"", here.getsockname())
            assert await waiting == b"cut"
            assert await loop.sock_recv(here, 3) == b""

    run(body)


@pytest.mark.parametrize("make", [plait.EventLoop, asyncio.SelectorEventLoop])
def test_errors_are_asyncio_s(make: Callable[[], Loop]) -> None:
    async def body(loop: Loop) -> None:
        here, there = tcp_pair()
        with here, there:
            here.setblocking(False)
            wrong: Any = "not bytes"
            with pytest.raises(ValueError, match="negative buffersize in recv"):
                await loop.sock_recv(here, -1)
            with pytest.raises(TypeError, match="interpreted as an integer"):
                await loop.sock_recv(here, wrong)
            with pytest.raises(TypeError, match="bytes-like object is required"):
                await loop.sock_sendall(here, wrong)
            with pytest.raises((TypeError, BufferError)):
                await loop.sock_recv_into(here, b"not writable")  # type: ignore[arg-type]
            loop.set_debug(True)
            there.setblocking(True)
            with pytest.raises(ValueError, match="the socket must be non-blocking"):
                await loop.sock_recv(there, 1)
            loop.set_debug(False)
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            there.close()
            with pytest.raises(ConnectionResetError) as reset:
                await loop.sock_recv(here, 1)
            assert reset.value.errno == 104
            with pytest.raises(BrokenPipeError):
                await loop.sock_sendall(here, b"x")
            here.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                await loop.sock_recv(here, 1)
        secure = ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="localhost")
        with secure, pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
            await loop.sock_recv(secure, 1)

    run(body, make)


def test_a_socket_of_another_class(pair: Pair) -> None:
    here, there = pair
    calls: list[str] = []

    class Recorded(socket.socket):
        def recv(self, *args: Any) -> bytes:
            calls.append("recv")
            return super().recv(*args)

        def send(self, data: Any, *args: Any) -> int:
            calls.append("send")
            return super().send(data[:2], *args)

    async def body(loop: Loop) -> None:
        with Recorded(fileno=here.detach()) as recorded:
            recorded.setblocking(False)
            waiting = await begin(loop.sock_recv(recorded, 100))
            there.send(b"x")
            assert await waiting == b"x"
            await loop.sock_sendall(recorded, b"hello")
            assert await loop.sock_recv(there, 100) == b"hello"
        assert calls == ["recv", "recv", "send", "send", "send"]

    run(body)


def test_a_coroutine_in_every_sense(pair: Pair) -> None:
    here, there = pair

    async def body(loop: Loop) -> None:
        call: Any = loop.sock_recv(here, 1)
        assert asyncio.iscoroutine(call)
        assert call.__qualname__ == "EventLoop.sock_recv"
        waiter = call.send(None)
        assert asyncio.isfuture(waiter)
        with pytest.raises(KeyError, match="thrown"):
            call.throw(KeyError("thrown"))
        task = await begin(loop.sock_recv(here, 1))
        assert "EventLoop.sock_recv()" in repr(task)
        there.send(b"x")
        assert await task == b"x"
        there.send(b"y")
        done = loop.sock_recv(here, 1)
        with pytest.raises(StopIteration) as stopped:
            done.send(None)  # type: ignore[attr-defined]
        assert stopped.value.value == b"y"

    run(body)
