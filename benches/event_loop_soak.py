"""Connections opened, cancelled, reset and closed at random: `python benches/event_loop_soak.py --help`.

Every byte carries its connection's number, and both ends look at it: none may reach another connection.
After each half of the time everything has ended, and what the process then holds is counted: no
descriptor may be left, and no more memory after the second half than after the first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import event_loop_peers as loops

KINDS = ("streams", "Protocol", "BufferedProtocol", "sock_*")
ENDINGS = ("read it all", "close", "abort", "reset", "cancel", "cancel the connect")
AT_ONCE = 40
LONGEST_END = 60.0  # seconds in which everything that was begun has ended, however busy the machine is
UNIT = struct.Struct(">II")  # a connection's number, and the number of the message


class WrongByte(Exception):
    """A byte that is not of this connection."""


class Numbers:
    """What an end expects of every byte: to be of the connection that the first ones named."""

    def __init__(self) -> None:
        self.head = b""
        self.position = 0

    def check(self, data: bytes) -> None:
        """Look at the next bytes."""
        self.head += data[: 4 - len(self.head)]
        for place, expected in enumerate(self.head):
            column = data[(place - self.position) % UNIT.size :: UNIT.size]
            if column.count(expected) != len(column):
                raise WrongByte(f"connection {self.head.hex()} at byte {self.position}")
        self.position += len(data)


class Soak:
    """The servers, the clients, and what was seen."""

    def __init__(self, peer: str, seed: int, most_memory: float) -> None:
        self.asyncio = loops.asyncio_of(peer)
        self.random = random.Random(seed)
        self.most_memory = most_memory
        self.opened = 0
        self.endings: Counter[str] = Counter()
        self.bytes = 0
        self.faults: list[str] = []
        self.serving: set[object] = set()

    async def run(self, seconds: float) -> None:
        """Both halves; prints what was found."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self.faults.append(str(context)))
        listeners = {kind: socket.create_server(("127.0.0.1", 0), backlog=512) for kind in KINDS}
        self.ports = {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
        for listener in listeners.values():
            listener.setblocking(False)
        servers = [
            await self.asyncio.start_server(self.serve_stream, sock=listeners["streams"]),
            await loop.create_server(lambda: CheckedEcho(self), sock=listeners["Protocol"]),
            await loop.create_server(lambda: CheckedBufferedEcho(self), sock=listeners["BufferedProtocol"]),
        ]
        accepting = asyncio.create_task(self.accept(listeners["sock_*"]))
        await self.clients(min(1.0, seconds / 10))
        before = await self.rest()
        halves = []
        for _ in range(2):
            await self.clients(seconds / 2)
            halves.append(await self.rest())
        (_, first), (descriptors, second) = halves
        if descriptors != before[0]:
            self.faults.append(f"descriptors: {before[0]} before, {descriptors} after")
        if second > first * self.most_memory:
            self.faults.append(f"memory: {first} bytes after the first half, {second} after the second")
        accepting.cancel()
        listeners["sock_*"].close()
        for server in servers:
            server.close()
        told = ", ".join(f"{count} {ending}" for ending, count in sorted(self.endings.items()))
        print(f"{self.opened} connections ({told}), {self.bytes / 1e6:.0f} MB echoed")
        print(f"memory: {first / 2**20:.1f} MiB after the first half, {second / 2**20:.1f} after the second")

    async def clients(self, seconds: float) -> None:
        """Many clients, one after the other in so many lines."""
        end = time.monotonic() + seconds

        async def line() -> None:
            while time.monotonic() < end:
                await self.client()

        await asyncio.gather(*(line() for _ in range(AT_ONCE)))

    async def rest(self) -> tuple[int, int]:
        """Wait until nothing is left; how many descriptors there are then, and how much memory."""
        deadline = time.monotonic() + LONGEST_END
        while len(self.serving) > 0 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        if self.serving:
            self.faults.append(f"{len(self.serving)} connections have not ended at the server")
        left = descriptors()
        while time.monotonic() < deadline:  # what the last callbacks close
            await asyncio.sleep(0.05)
            if (now := descriptors()) == left:
                break
            left = now
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # not every C library can
            ctypes.CDLL(None).malloc_trim(0)
        return left, loops.resident(os.getpid())

    async def client(self) -> None:
        """A connection, and one of the ends that it can take."""
        number, kind, ending = self.opened, self.random.choice(KINDS), self.random.choice(ENDINGS)
        self.opened += 1
        lengths = [self.random.choice((1, 10, 1000, 20_000)) for _ in range(self.random.randint(1, 6))]
        messages = [UNIT.pack(number, turn) * length for turn, length in enumerate(lengths)]
        call = self.random.choice((self.by_streams, self.by_socket))
        task = asyncio.create_task(call(kind, messages, ending))
        if ending.startswith("cancel"):
            # So many turns; the connect is under way in the first ones.
            for _ in range(self.random.randint(0, 4 if ending == "cancel the connect" else 60)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            await asyncio.wait_for(task, LONGEST_END)
        except asyncio.CancelledError:
            pass
        except TimeoutError:
            self.faults.append(f"connection {number} to {kind} ({ending}, {call.__name__}) hangs")
        except WrongByte as error:
            self.faults.append(str(error))
        except OSError:
            # The server closes a connection in which it has found a wrong byte, and never otherwise.
            self.faults.append(
                f"connection {number} to {kind} ({ending}, {call.__name__}): {sys.exc_info()[1]!r}"
            )
        self.endings[ending] += 1

    async def by_streams(self, kind: str, messages: list[bytes], ending: str) -> None:
        reader, writer = await self.asyncio.open_connection("127.0.0.1", self.ports[kind])
        try:

            async def write(data: bytes) -> None:
                writer.write(data)
                await writer.drain()

            await self.talk(messages, ending, write, reader.read, writer.write_eof)
            if ending == "abort":
                writer.transport.abort()
            elif ending == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        finally:
            writer.close()
            if ending == "read it all":
                await writer.wait_closed()

    async def by_socket(self, kind: str, messages: list[bytes], ending: str) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", self.ports[kind]))
            await self.talk(
                messages,
                ending,
                lambda data: loop.sock_sendall(connection, data),
                lambda count: loop.sock_recv(connection, count),
                lambda: connection.shutdown(socket.SHUT_WR),
            )
            if ending in ("abort", "reset"):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def talk(
        self,
        messages: list[bytes],
        ending: str,
        write: Callable[[bytes], Awaitable[None]],
        read: Callable[[int], Awaitable[bytes]],
        write_eof: Callable[[], None],
    ) -> None:
        """Send and compare what comes back; all of it, or a part."""
        expected = b"".join(messages)
        writing = asyncio.create_task(
            self.send(messages, write, write_eof if ending == "read it all" else None)
        )
        try:
            position, enough = 0, len(expected)
            if ending != "read it all":
                enough = self.random.randrange(enough)
            while position < enough:
                data = await read(self.random.choice((10, 1000, 100_000)))
                if data != expected[position : position + len(data)] or not data:
                    raise WrongByte(f"connection {expected[:4].hex()}: not what was sent, at byte {position}")
                position += len(data)
                self.bytes += len(data)
            if ending == "read it all":
                await writing
                if data := await read(1):
                    raise WrongByte(f"connection {expected[:4].hex()}: more than was sent: {data!r}")
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def send(
        self,
        messages: list[bytes],
        write: Callable[[bytes], Awaitable[None]],
        write_eof: Callable[[], None] | None,
    ) -> None:
        for message in messages:
            await write(message)
            if self.random.random() < 0.3:
                await asyncio.sleep(0)
        if write_eof:
            write_eof()

    def noted(self, checked: Numbers, data: bytes) -> bool:
        """A server's end has been given bytes; whether they are of its connection."""
        try:
            checked.check(data)
        except WrongByte as error:
            self.faults.append(f"server: {error}")
            return False
        return True

    async def serve_stream(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task
        self.serving.add(task)
        checked = Numbers()
        try:
            while (data := await reader.read(self.random.choice((10, 1000, 100_000)))) and self.noted(
                checked, data
            ):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # reset by the client
        finally:
            writer.close()
            self.serving.discard(task)

    async def accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self.serve_socket(connection))
            self.serving.add(task)
            task.add_done_callback(self.serving.discard)

    async def serve_socket(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        checked = Numbers()
        with connection, contextlib.suppress(OSError):  # reset by the client
            while (data := await loop.sock_recv(connection, 100_000)) and self.noted(checked, data):
                await loop.sock_sendall(connection, data)


class CheckedEcho(loops.Echo):
    """Looks at what it sends back."""

    def __init__(self, soak: Soak) -> None:
        self.soak = soak
        self.numbers = Numbers()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.soak.serving.add(self)

    def data_received(self, data: bytes) -> None:
        if self.soak.noted(self.numbers, data):
            super().data_received(data)
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self.soak.serving.discard(self)


class CheckedBufferedEcho(CheckedEcho, asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    def __init__(self, soak: Soak) -> None:
        super().__init__(soak)
        self.buffer = bytearray(30_000)

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        self.data_received(bytes(self.buffer[:count]))


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Random connections on an event loop, looked at byte by byte"
    )
    parser.add_argument("--seconds", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the random choices")
    parser.add_argument(
        "--peer", choices=loops.peers(), default=loops.OURS, help="whose loop (default: plait's)"
    )
    parser.add_argument(
        "--most-memory",
        type=float,
        default=1.05,
        help="after the second half, as a multiple of that after the first (default: 1.05)",
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    loops.more_descriptors()
    soak = Soak(options.peer, options.seed, options.most_memory)
    loops.run(options.peer, soak.run(options.seconds))
    for fault, count in Counter(soak.faults).most_common(20):
        print(f"FAULT: {fault} ({count} times)")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
