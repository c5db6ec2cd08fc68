"""TLS echo on plait's event loop, asyncio's, uvloop with and without aiofastnet, and zuvloop: `--help`.

Every figure is the server's CPU time for a request, in microseconds. The client is this file in a process of
its own: blocking sockets, sixteen connections, each with one request on its way. Server and client use
TLS 1.3 and the cipher that OpenSSL chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import event_loop_peers as loops
from harness import Row, Sample, main

FAST = "aiofastnet"
OBJECT = "plait, ssl.SSLObject"
CONNECTIONS = 16
CERTIFICATE = Path(__file__).resolve().parent.parent / "tests" / "data" / "tls.pem"
Which = Callable[[], str]


def peers() -> list[str]:
    """Ours, ours without OpenSSL within reach, asyncio's and those of the others that are installed."""
    others = ["uvloop", FAST, "zuvloop"]
    return [loops.OURS, OBJECT, "asyncio", *(name for name in others if importlib.util.find_spec(name))]


async def serve(peer: str, kind: str) -> None:
    """An echo server, until standard input ends."""
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    create_server: Any = loop.create_server
    start_server: Any = functools.partial(loops.asyncio_of(peer).start_server, loops.echo_stream)
    if peer == FAST:
        import aiofastnet

        create_server = functools.partial(aiofastnet.create_server, loop)
        start_server = functools.partial(aiofastnet.start_server, loop, loops.echo_stream)
    if kind == "streams":
        server = await start_server(host="127.0.0.1", port=0, ssl=context)
    else:
        factory = loops.BufferedEcho if kind == "BufferedProtocol" else loops.Echo
        server = await create_server(factory, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    server.close()


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """This file in a process of its own, until its standard input is closed."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def connect(port: int) -> ssl.SSLSocket:
    """A connection to the server."""
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(connection, server_hostname="localhost")


def drive(port: int, size: int) -> None:
    """The client: as many requests as each line of standard input says."""
    message = os.urandom(size)
    buffer = memoryview(bytearray(size))
    connections = [connect(port) for _ in range(CONNECTIONS)]
    print("connected", flush=True)

    def answer(connection: ssl.SSLSocket) -> None:
        got = 0
        while got < size:
            if not (count := connection.recv_into(buffer[got:])):
                raise RuntimeError("the server has closed the connection")
            got += count
        if buffer != message:
            raise RuntimeError("the server has sent something else")

    for line in sys.stdin:
        for connection in connections:
            connection.sendall(message)
        for number in range(int(line)):
            connection = connections[number % CONNECTIONS]
            answer(connection)
            connection.sendall(message)
        for number in range(int(line), int(line) + CONNECTIONS):
            answer(connections[number % CONNECTIONS])
        print("done", flush=True)
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.close()


def said(process: subprocess.Popen[str]) -> str:
    """A line that a process has printed."""
    assert process.stdout
    if not (line := process.stdout.readline().strip()):
        raise RuntimeError("a process has ended early")
    return line


def echo(kind: str, size: int, which: Which) -> Sample:
    """Microseconds of the server's CPU time for a request."""
    count = 2_000_000 // (size + 10_000) * 100
    with running("serve", which(), kind) as server:
        port = said(server)
        with running("drive", port, size) as client:
            assert client.stdin
            said(client)

            def requests(number: int) -> None:
                assert client.stdin
                client.stdin.write(f"{number}\n")
                client.stdin.flush()
                said(client)

            requests(count // 10)
            before = loops.process_cpu(server.pid)
            requests(count)
            return Sample((loops.process_cpu(server.pid) - before) / (count + CONNECTIONS) * 1e6)


def rows() -> list[Row]:
    """What is measured."""

    def row(kind: str, size: int) -> Row:
        measure: Any = functools.partial(echo, kind, size)
        name = f"TLS echo of {size // 1024} KiB, {kind}"
        return Row(name, "µs", measure, higher_is_better=False)

    return [
        row("Protocol", 1024),
        row("Protocol", 65536),
        row("BufferedProtocol", 1024),
        row("BufferedProtocol", 65536),
        row("streams", 1024),
        row("streams", 65536),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        peer, kind = sys.argv[2:]
        if peer == OBJECT:
            from plait._tls import TlsProtocol

            TlsProtocol.direct = False
        loop_of = {OBJECT: loops.OURS, FAST: "uvloop"}
        loops.run(loop_of.get(peer, peer), serve(peer, kind))
    elif sys.argv[1:2] == ["drive"]:
        drive(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(
            "TLS",
            __file__,
            {peer: functools.partial(str, peer) for peer in peers()},  # type: ignore[misc]
            rows(),
            ("plait", "uvloop", FAST, "zuvloop"),
        )
