"""The event loops that are measured, and the echo servers that run on them, each in a process of its own.

`python benches/event_loop_peers.py PEER KIND` serves on a port that it prints, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS = "plait"
BARE = "bare epoll"
OTHERS = ("uvloop", "rloop", "zuvloop")
ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target" / "release" / "examples" / "epoll_echo"
MOST_READ = 64 * 1024


def peers() -> list[str]:
    """Ours, asyncio's and those of the others that are installed."""
    return [OURS, "asyncio", *(name for name in OTHERS if importlib.util.find_spec(name))]


def loop_factory(peer: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a peer's event loop."""
    if peer == "asyncio":
        return asyncio.SelectorEventLoop
    module = importlib.import_module(peer)
    factory: Callable[[], asyncio.AbstractEventLoop] = (
        module.EventLoop if peer == OURS else module.new_event_loop
    )
    return factory


def asyncio_of(peer: str) -> Any:
    """The module that a peer's user imports as asyncio: ours has its own."""
    if peer == OURS and importlib.util.find_spec("plait.asyncio"):
        return importlib.import_module("plait.asyncio")
    return asyncio


def run(peer: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a peer's loop."""
    with asyncio.Runner(loop_factory=loop_factory(peer)) as runner:
        return runner.run(main)


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """Sends back what comes, from a buffer of its own."""

    transport: Any

    def __init__(self) -> None:
        self.buffer = bytearray(MOST_READ)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(memoryview(self.buffer)[:nbytes]))


async def echo_stream(reader: Any, writer: Any) -> None:
    """Sends back what comes, over streams."""
    try:
        while data := await reader.read(MOST_READ):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def echo_socket(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Sends back what comes, by the loop's socket methods."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := await loop.sock_recv(connection, MOST_READ):
            await loop.sock_sendall(connection, data)


async def accept_sockets(loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
    """Takes connections by the loop's socket methods."""
    tasks = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setblocking(False)
        tasks.add(asyncio.create_task(echo_socket(loop, connection)))


async def serve(peer: str, kind: str) -> None:
    """An echo server, until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    if kind == "sock_*":
        accepting = asyncio.create_task(accept_sockets(loop, listener))
        print(port, flush=True)
        await ended.wait()
        accepting.cancel()
        listener.close()
        return
    if kind == "streams":
        server = await asyncio_of(peer).start_server(echo_stream, sock=listener)
    else:
        factory: Any = BufferedEcho if kind == "BufferedProtocol" else Echo
        server = await loop.create_server(factory, sock=listener)
    print(port, flush=True)
    await ended.wait()
    server.close()


class Client:
    """The client that drives a server, in a process of its own: `crates/engine/examples/epoll_echo.rs`."""

    def __init__(self, server: subprocess.Popen[str], port: str, connections: int, size: int) -> None:
        self.server = server
        self.process = subprocess.Popen(
            [BINARY, "drive", port, str(connections), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.expect("connected")

    def expect(self, word: str) -> None:
        """Wait for the client to say it."""
        assert self.process.stdout
        if (said := self.process.stdout.readline().strip()) != word:
            raise RuntimeError(f"the client was to say {word!r} and said {said!r}")

    def requests(self, count: int) -> float:
        """Make so many, and give the seconds of CPU time that the server took for each."""
        assert self.process.stdin
        before = process_cpu(self.server.pid)
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        self.expect("done")
        return (process_cpu(self.server.pid) - before) / count

    def close(self) -> None:
        """End it, and its connections."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def process_cpu(pid: int) -> float:
    """Seconds of CPU time that another process has had, by the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid: int) -> int:
    """Bytes of a process's memory that are in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@contextmanager
def server(peer: str, kind: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A peer's server, running, and its port."""
    command = [str(BINARY), "serve"] if peer == BARE else [sys.executable, __file__, peer, kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{peer}: the server has not started")
        yield process, port
    finally:
        process.stdin.close()
        process.wait()


def build_client() -> None:
    """Have cargo build the client, if it is not what its source says."""
    command = ["cargo", "build", "--release", "--quiet", "--locked", "--package", "plait-engine"]
    subprocess.run([*command, "--example", "epoll_echo"], cwd=ROOT, check=True)


def more_descriptors() -> None:
    """As many as this process may have; its children inherit that."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    run(sys.argv[1], serve(sys.argv[1], sys.argv[2]))
