"""A web server on loopback that gives out the standard library's source files, as slowly as one far away.

python examples/page_server.py        prints its address and serves until its standard input ends
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpus import STDLIB, source_files

# Seconds between a request and its answer: each page has its own, the same in every run.
FASTEST, SLOWEST = 0.020, 0.050


class PageConnection(asyncio.Protocol):
    """One request, one answer, and the connection ends."""

    def __init__(self, pages: dict[bytes, str]) -> None:
        self.pages = pages
        self.request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.request += data
        if self.request.endswith(b"\r\n\r\n"):
            path = self.request.split(b" ", 2)[1]
            asyncio.get_running_loop().call_later(latency(path), self.answer, path)

    def answer(self, path: bytes) -> None:
        """Send the page, if the client is still there."""
        if self.transport.is_closing():
            return
        name = self.pages.get(path)
        status, body = (b"404 Not Found", b"") if name is None else (b"200 OK", (STDLIB / name).read_bytes())
        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
        self.transport.write(head + body)
        self.transport.close()


def latency(path: bytes) -> float:
    """Seconds that the page at ``path`` takes."""
    return FASTEST + (SLOWEST - FASTEST) * (zlib.crc32(path) % 1000 / 1000)


async def serve() -> None:
    """Serve until standard input ends, which it does however the parent ends."""
    loop = asyncio.get_running_loop()
    pages = {f"/{name}".encode(): name for name in source_files()}
    server = await loop.create_server(lambda: PageConnection(pages), "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}", flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def page_server() -> Iterator[str]:
    """Run the server in a process of its own; gives its address."""
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


if __name__ == "__main__":
    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        sys.exit(130)
