"""Servers that the tests start for themselves, on loopback in a temporary folder, or skip what needs them."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT = 60.0  # seconds in which a server starts or ends, on however busy a machine


@pytest.fixture(scope="session")
def postgresql() -> Iterator[dict[str, str | int]]:
    """How to connect to a PostgreSQL server: host, port, user, database."""
    folders = [Path(path) for path in os.get_exec_path()] + sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = next(
        (found for found in folders if (found / "initdb").exists() and (found / "postgres").exists()), None
    )
    if programs is None or not shutil.which("setpriv"):
        pytest.skip("PostgreSQL is not installed (Debian's package is postgresql)")
    with folder_of_another() as (folder, as_another):
        data, port = folder / "data", free_port()
        command = [*as_another, programs / "initdb", "--no-sync", "--no-locale", "--encoding=UTF8"]
        command += ["--auth=trust", "--username=plait", "--pgdata", data]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        command = [
            *as_another,
            programs / "postgres",
            "-D",
            data,
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            folder,
        ]
        command += ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=40"]
        with running(command, folder, lambda: answers_postgresql(port)):
            yield {"host": "127.0.0.1", "port": port, "user": "plait", "database": "postgres"}


@pytest.fixture(scope="session")
def redis() -> Iterator[int]:
    """The port of a Redis server."""
    program = shutil.which("redis-server")
    if program is None or not shutil.which("setpriv"):
        pytest.skip("Redis is not installed (Debian's package is redis-server)")
    with folder_of_another() as (folder, as_another):
        port = free_port()
        command = [
            *as_another,
            program,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            folder,
        ]
        with running(command, folder, lambda: answers_redis(port)):
            yield port


@contextmanager
def folder_of_another() -> Iterator[tuple[Path, list[str]]]:
    """A temporary folder, and the start of a command that runs as its owner.

    That is us, unless we are root: PostgreSQL refuses to run as root. Either way the command ends when we do.
    """
    folder = Path(tempfile.mkdtemp(prefix="plait-"))
    command = ["setpriv", "--pdeathsig", "KILL"]
    if os.geteuid() == 0:
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        owner = names.get("postgres") or names["nobody"]
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        command += ["--reuid", str(owner.pw_uid), "--regid", str(owner.pw_gid), "--clear-groups"]
    try:
        yield folder, command
    finally:
        shutil.rmtree(folder)


@contextmanager
def running(command: list[object], folder: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """A server that runs, from when it answers."""
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + LIMIT
        while not answers():
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[-1]} does not run:\n{(folder / 'log').read_text()}")
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        try:
            server.wait(LIMIT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def ask(port: int, question: bytes) -> bytes:
    """The first bytes of a server's answer; none if nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), LIMIT) as connection:
            connection.sendall(question)
            return connection.recv(100)
    except OSError:
        return b""


def answers_redis(port: int) -> bool:
    """Whether a Redis server is there."""
    return ask(port, b"PING\r\n").startswith(b"+PONG")


def answers_postgresql(port: int) -> bool:
    """Whether a PostgreSQL server lets the user in (while it starts, it answers with an error)."""
    parameters = b"\0\x03\0\0user\0plait\0database\0postgres\0\0"
    return ask(port, (len(parameters) + 4).to_bytes(4, "big") + parameters).startswith(b"R")
