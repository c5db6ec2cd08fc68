"""aiohttp, uvicorn with websockets, and httpx on plait's loop: servers and clients on loopback."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plait

APP = '''
"""A small ASGI application: echoes over HTTP and WebSocket, and answers piece by piece."""
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("bye", flush=True)
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    loop = type(asyncio.get_running_loop())
    headers = [(b"x-loop", f"{loop.__module__}.{loop.__name__}".encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), 5000):
        await send({"type": "http.response.body", "body": body[start : start + 5000], "more_body": True})
    await send({"type": "http.response.body"})
'''


@pytest.fixture(params=["plain", "TLS"])
def contexts(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The contexts of a server and of its client: None and None, or with a certificate of our own."""
    if request.param == "plain":
        return None, None
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def test_aiohttp(contexts: tuple[Any, Any], tmp_path: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    web = pytest.importorskip("aiohttp.web")
    served = tmp_path / "served"
    served.write_bytes(bytes(range(256)) * 8000)
    server_context, client_context = contexts

    async def echo(request: Any) -> Any:
        return web.json_response({"path": request.path, "body": await request.text()})

    async def pieces(request: Any) -> Any:
        response = web.StreamResponse()
        await response.prepare(request)
        async for data in request.content.iter_any():
            await response.write(data)
        return response

    async def talk(request: Any) -> Any:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            await response.send_str(message.data[::-1])
        return response

    async def file(_request: Any) -> Any:
        return web.FileResponse(served)

    async def never(_request: Any) -> Any:
        hanging.set()
        await released.wait()

    async def use() -> None:
        app = web.Application(client_max_size=10_000_000)
        app.router.add_post("/echo/{number}", echo)
        app.router.add_post("/pieces", pieces)
        app.router.add_get("/talk", talk)
        app.router.add_get("/never", never)
        app.router.add_get("/file", file)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context)
        await site.start()
        scheme = "https" if server_context else "http"
        base = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        connector = aiohttp.TCPConnector(ssl=client_context or True)
        async with aiohttp.ClientSession(base, connector=connector) as session:

            async def ask(number: int) -> None:
                body = f"{number} " * number
                async with session.post(f"/echo/{number}", data=body) as response:
                    assert await response.json() == {"path": f"/echo/{number}", "body": body}

            await asyncio.gather(*map(ask, range(300)))
            async with session.post("/pieces", data=b"0123456789" * 300_000) as response:
                assert await response.read() == b"0123456789" * 300_000
            async with session.get("/file") as response:
                assert await response.read() == served.read_bytes()
            async with session.ws_connect("/talk") as socket:
                for number in range(100):
                    await socket.send_str(f"{number} abc")
                    assert await socket.receive_str() == f"cba {str(number)[::-1]}"
            asking = asyncio.create_task(session.get("/never"))
            await hanging.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            released.set()
            await ask(7)
        await runner.cleanup()

    hanging, released = asyncio.Event(), asyncio.Event()
    plait.run(use())


def test_aiohttp_when_the_peer_goes_away(tmp_path: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")

    async def use() -> None:
        async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as session:
            for _ in range(20):
                with pytest.raises(aiohttp.ClientError):
                    await session.get(f"http://127.0.0.1:{port}/")
        server.close()
        await server.wait_closed()

    plait.run(use())


def test_httpx_and_websockets_against_uvicorn(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    websockets = pytest.importorskip("websockets", reason="websockets is not installed")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    (tmp_path / "small_app.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "small_app:app", "--fd", str(listener.fileno())]
        command += ["--loop", "plait:EventLoop", "--log-level", "warning"]
        server = subprocess.Popen(
            command, cwd=tmp_path, pass_fds=[listener.fileno()], stdout=subprocess.PIPE, text=True
        )

    async def use() -> None:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60
        ) as client:
            answer = await client.post("/", content=b"hello")
            assert answer.headers["x-loop"] == "plait.event_loop.EventLoop"

            async def ask(number: int) -> None:
                body = f"{number} ".encode() * number * 10
                assert (await client.post("/", content=body)).content == body

            await asyncio.gather(*map(ask, range(50)))

            async def pieces() -> Any:
                for _ in range(100):
                    yield b"piece" * 1000

            async with client.stream("POST", "/", content=pieces()) as streamed:
                assert b"".join([data async for data in streamed.aiter_bytes()]) == b"piece" * 100_000

        async def talk(number: int) -> None:
            async with websockets.connect(f"ws://127.0.0.1:{port}/", proxy=None) as connection:
                for turn in range(20):
                    await connection.send(f"{number} and {turn}")
                    assert await connection.recv() == f"{number} AND {turn}"

        await asyncio.gather(*map(talk, range(20)))

    try:
        plait.run(use())
    finally:
        server.send_signal(signal.SIGTERM)
        said, _ = server.communicate(timeout=60)
    assert said == "bye\n"


def test_a_websockets_server(tmp_path: Path) -> None:
    websockets = pytest.importorskip("websockets", reason="websockets is not installed")

    async def use() -> None:
        async def reverse(connection: Any) -> None:
            async for message in connection:
                await connection.send(message[::-1])

        async with websockets.serve(reverse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with websockets.connect(f"ws://127.0.0.1:{port}", proxy=None, max_size=None) as connection:
                for length in (0, 1, 125, 126, 65_535, 65_536, 500_000):
                    message = ("0123456789" * (length // 10 + 1))[:length]
                    await connection.send(message)
                    assert await connection.recv() == message[::-1]
                await (await connection.ping())

    plait.run(use())
