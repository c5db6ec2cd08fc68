"""Fetch pages over HTTP: nearly all of the time is waiting, and one thread can wait for hundreds.

python examples/fetch_pages.py [--model tasks] [--pages 200]
"""

from __future__ import annotations

import argparse
import asyncio
from urllib.parse import urlsplit

import plait
from corpus import source_files
from page_server import page_server


async def fetch(url: str) -> bytes:
    """The body of the page. Raises ValueError if the server does not give one."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        request = f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode()
    if " 200 " not in status:
        raise ValueError(f"{url}: {status or 'no answer'}")
    return body


def main() -> None:
    """Fetch the standard library from a server on this machine that answers like a distant one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--workers", type=int, help="how many at a time (default: by model)")
    parser.add_argument("--pages", type=int, default=200, help="how many (default: 200)")
    options = parser.parse_args()

    with page_server() as address, plait.Executor(options.model, workers=options.workers) as executor:
        urls = [f"{address}/{name}" for name in source_files(options.pages)]
        sizes = [len(page) for page in executor.map(fetch, urls, progress=True)]
        if executor.decision is not None:
            print(f"auto chose {executor.decision.model}: {executor.decision.reason}")
    print(f"{len(sizes)} pages, {sum(sizes) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
