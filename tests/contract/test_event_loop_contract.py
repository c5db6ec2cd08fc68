"""Bad input and bad luck for the event loop: the same tests on asyncio's and on ours; no leak, no spin."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait.asyncio
from plait.event_loop import EventLoop

LIMIT = 60.0  # seconds for what takes milliseconds, on however busy a machine


Factory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[asyncio.SelectorEventLoop, EventLoop], ids=["asyncio", "plait"])
def factory(request: pytest.FixtureRequest) -> Factory:
    made: Factory = request.param
    return made


@pytest.fixture
def loop(factory: Factory) -> Iterator[asyncio.AbstractEventLoop]:
    made = factory()
    yield made
    made.close()


@pytest.fixture
def module(factory: Factory) -> Any:
    """The module that has the streams of that loop."""
    return plait.asyncio if factory is EventLoop else asyncio


def descriptors() -> int:
    """How many this process has, without what only the garbage holds."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def told(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """What the loop's exception handler is told from now on."""
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: contexts.append(context))
    return contexts


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_another_thread_that_calls_what_is_for_the_loop_s_own(loop: asyncio.AbstractEventLoop) -> None:
    """In debug mode it is an error, as in asyncio; otherwise it may come late, but nothing breaks."""
    errors: list[BaseException | None] = []

    def call(ask: Callable[..., Any], *args: Any) -> None:
        try:
            ask(*args)
            errors.append(None)
        except RuntimeError as error:
            errors.append(error)

    async def main() -> None:
        for debug in (True, False):
            loop.set_debug(debug)
            for ask in (loop.call_soon, lambda callback: loop.call_later(3600, callback).cancel()):
                thread = threading.Thread(target=call, args=(ask, int))
                thread.start()
                thread.join()

    loop.run_until_complete(main())
    assert [type(error) for error in errors] == [RuntimeError, RuntimeError, type(None), type(None)]
    assert all("thread" in str(error) for error in errors[:2])


def test_a_loop_that_runs_cannot_be_run_by_another_thread() -> None:
    """On ours only: asyncio's own of 3.13 cleans up what belongs to the thread that runs it."""
    loop = EventLoop()
    errors: list[str] = []

    def run_too() -> None:
        with pytest.raises(RuntimeError, match="already running") as caught:
            loop.run_forever()
        errors.append(str(caught.value))
        with pytest.raises(RuntimeError, match="running"):
            loop.close()
        errors.append("close")

    async def main() -> None:
        await asyncio.to_thread(run_too)

    loop.run_until_complete(main())
    loop.close()
    assert len(errors) == 2


def test_a_closed_loop(factory: Factory) -> None:
    made = factory()
    made.close()
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        asks: list[Callable[[], Any]] = [
            lambda: made.call_soon(print),
            lambda: made.call_soon_threadsafe(print),
            lambda: made.call_later(1, print),
            lambda: made.call_at(1, print),
            lambda: made.add_reader(here, print),
            lambda: made.add_writer(here, print),
            lambda: made.run_in_executor(None, print),
            lambda: made.run_forever(),
            lambda: made.run_until_complete(made.create_future()),
        ]
        for ask in asks:
            with pytest.raises(RuntimeError, match="closed"):
                ask()
        assert made.is_closed()
        assert not made.remove_reader(here)


def test_a_transport_that_outlives_its_loop(factory: Factory) -> None:
    here, there = socket.socketpair()

    def leave() -> None:
        made = factory()
        made.run_until_complete(made.create_connection(asyncio.Protocol, sock=here))
        made.close()

    def forget() -> None:
        leave()
        gc.collect()

    with there:
        with pytest.warns(ResourceWarning, match="unclosed"):
            forget()
        assert here.fileno() == -1
        assert there.recv(1) == b""


@pytest.mark.parametrize(
    "method", ["sock_recv", "sock_sendall", "sock_accept", "sock_connect", "sock_recv_into"]
)
def test_sockets_that_block_and_things_that_are_none(loop: asyncio.AbstractEventLoop, method: str) -> None:
    argument: Any = {"sock_recv": 1, "sock_sendall": b"x", "sock_recv_into": bytearray(1)}.get(method)
    arguments = () if method == "sock_accept" else ("/nowhere",) if argument is None else (argument,)

    async def call(what: Any) -> None:
        await getattr(loop, method)(what, *arguments)

    here, there = socket.socketpair()
    with here, there:
        loop.set_debug(True)
        with pytest.raises(ValueError, match="non-blocking"):
            loop.run_until_complete(call(here))
        loop.set_debug(False)
        with pytest.raises((AttributeError, TypeError)):
            loop.run_until_complete(call("no socket"))
        here.setblocking(False)
    with pytest.raises((OSError, ValueError)):
        loop.run_until_complete(call(here))


def test_descriptors_that_are_none(loop: asyncio.AbstractEventLoop) -> None:
    here, there = socket.socketpair()
    number = here.fileno()
    here.close()
    there.close()
    for ask in (loop.add_reader, loop.add_writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            ask(number, print)
        for wrong in (here, "no descriptor", None, -1):
            with pytest.raises((ValueError, TypeError)):
                ask(wrong, print)  # type: ignore[arg-type]
    assert not loop.remove_reader(number)


def test_a_regular_file_cannot_be_watched(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        loop.add_reader(file, print)


def test_a_descriptor_that_a_transport_owns(loop: asyncio.AbstractEventLoop) -> None:
    here, there = socket.socketpair()
    with there:

        async def use() -> None:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
            for ask in (loop.add_reader, loop.add_writer):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    ask(here.fileno(), print)
            for remove in (loop.remove_reader, loop.remove_writer):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    remove(here.fileno())
            with pytest.raises(RuntimeError, match="is used by transport"):
                await loop.sock_recv(here, 1)
            transport.close()

        loop.run_until_complete(use())


def test_a_line_that_is_too_long(loop: asyncio.AbstractEventLoop, module: Any) -> None:
    async def use() -> None:
        here, there = socket.socketpair()
        reader, writer = await module.open_connection(sock=here, limit=100)
        with there:
            there.sendall(b"x" * 101 + b"\n" + b"short\n" + b"y" * 500)
            with pytest.raises(ValueError, match="chunk"):
                await reader.readline()
            assert await reader.readline() == b"short\n"
            with pytest.raises(ValueError, match="chunk"):
                await reader.readline()
            there.sendall(b"z" * 500)
            with pytest.raises(asyncio.LimitOverrunError):
                await reader.readuntil(b"\n")
        writer.close()
        await writer.wait_closed()

    loop.run_until_complete(use())


@pytest.mark.parametrize(
    "where", ["connection_made", "data_received", "eof_received", "buffer_updated", "get_buffer"]
)
def test_a_protocol_that_raises(loop: asyncio.AbstractEventLoop, where: str) -> None:
    """The exception handler is told, and the connection is closed with its descriptor."""
    seen: list[str] = []

    class Raising(
        asyncio.BufferedProtocol if where in ("buffer_updated", "get_buffer") else asyncio.Protocol
    ):  # type: ignore[misc]
        def maybe(self, name: str) -> None:
            seen.append(name)
            if name == where:
                raise LookupError(f"from {name}")

        def connection_made(self, _transport: asyncio.BaseTransport) -> None:
            self.maybe("connection_made")

        def data_received(self, _data: bytes) -> None:
            self.maybe("data_received")

        def get_buffer(self, _hint: int) -> bytearray:
            self.maybe("get_buffer")
            return bytearray(10)

        def buffer_updated(self, _count: int) -> None:
            self.maybe("buffer_updated")

        def eof_received(self) -> None:
            self.maybe("eof_received")

        def connection_lost(self, error: Exception | None) -> None:
            seen.append(f"lost: {error}")

    async def use() -> None:
        here, there = socket.socketpair()
        there.setblocking(False)
        transport, _ = await loop.create_connection(Raising, sock=here)
        await loop.sock_sendall(there, b"data")
        there.shutdown(socket.SHUT_WR)
        await until(lambda: bool(contexts))
        if where == "connection_made":
            transport.abort()
        await until(lambda: bool(seen) and seen[-1].startswith("lost"))
        await until(lambda: here.fileno() == -1)
        there.close()

    before, contexts = descriptors(), told(loop)
    loop.run_until_complete(use())
    assert {type(context["exception"]) for context in contexts} == {LookupError}
    assert len(contexts) == 1
    assert seen[-1] == ("lost: None" if where == "connection_made" else f"lost: from {where}")
    assert descriptors() == before


def test_a_peer_that_resets(loop: asyncio.AbstractEventLoop, module: Any) -> None:
    results: list[BaseException | bytes] = []

    async def serve(reader: Any, writer: Any) -> None:
        try:
            results.append(await reader.read(100))
            results.append(await reader.read(100))
        except ConnectionError as error:
            results.append(error)
        writer.write(b"x" * 100)
        with pytest.raises(ConnectionError):
            await writer.drain()
        writer.close()
        done.set()

    async def use() -> None:
        server = await module.start_server(serve, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as peer:
            peer.sendall(b"hello")
            await until(lambda: len(results) == 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.wait_for(done.wait(), LIMIT)
        server.close()
        await server.wait_closed()

    done = asyncio.Event()
    before, contexts = descriptors(), told(loop)
    loop.run_until_complete(use())
    assert results[0] == b"hello"
    assert isinstance(results[1], ConnectionResetError)
    assert contexts == []
    assert descriptors() == before


def test_an_exhausted_descriptor_table_in_accept(loop: asyncio.AbstractEventLoop) -> None:
    """The server pauses, tells of it, and resumes; those who waited in the kernel's queue are served then."""
    accepted: list[asyncio.Transport] = []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.BaseTransport)
            accepted.append(transport)  # type: ignore[arg-type]

    async def use() -> None:
        server = await loop.create_server(Accepted, "127.0.0.1", 0, backlog=5)
        address = server.sockets[0].getsockname()
        clients = [socket.socket() for _ in range(5)]
        for client in clients:
            client.setblocking(False)
        contexts = told(loop)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(client.fileno() for client in clients)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            for client in clients:
                client.connect_ex(address)
            await until(lambda: bool(contexts))
            for _ in range(200):
                await asyncio.sleep(0)
            # It tries again after a second. asyncio's own tries once for each place of the backlog then.
            assert len(contexts) <= 20
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: len(accepted) == len(clients))
        assert {context["exception"].errno for context in contexts} == {errno.EMFILE}
        assert all("out of system resource" in context["message"] for context in contexts)
        for client in clients:
            client.close()
        for transport in accepted:
            transport.abort()
        server.close()
        await server.wait_closed()

    # Fill the holes below the limit, so that not one number is free.
    holes = [open("/dev/null") for _ in range(40)]  # noqa: PTH123, SIM115
    try:
        loop.run_until_complete(use())
    finally:
        for hole in holes:
            hole.close()


def test_a_connection_that_is_cancelled_closes_its_own_descriptor_only(
    loop: asyncio.AbstractEventLoop,
) -> None:
    before = descriptors()

    async def use() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            for turns in range(12):
                connecting = asyncio.create_task(loop.create_connection(asyncio.Protocol, *address))
                for _ in range(turns):
                    await asyncio.sleep(0)
                connecting.cancel()
                if isinstance(made := (await asyncio.gather(connecting, return_exceptions=True))[0], tuple):
                    made[0].abort()
            await asyncio.sleep(0)
            assert full.getsockname() == address

    loop.run_until_complete(use())
    run_briefly(loop)
    assert descriptors() == before


def run_briefly(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_the_stream_of_one_connection_is_for_one_reader(loop: asyncio.AbstractEventLoop, module: Any) -> None:
    async def use() -> None:
        here, there = socket.socketpair()
        with there:
            reader, writer = await module.open_connection(sock=here)
            reading = asyncio.create_task(reader.read(10))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already waiting"):
                await reader.read(10)
            there.sendall(b"data")
            assert await reading == b"data"
            writer.close()
            await writer.wait_closed()

    loop.run_until_complete(use())
