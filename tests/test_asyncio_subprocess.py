"""Child processes of the event loop: their ends, their pipes, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import plait


def run(body: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(120):
            return await body()

    return plait.run(main())


def start(code: str, **options: Any) -> Any:
    return asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, **options)


def descriptors() -> int:
    gc.collect()  # A loop's own go with its object.
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_many_children_end_at_once_without_threads_or_zombies(where: str) -> None:
    pids: list[int] = []

    async def body() -> None:
        before = threading.active_count()
        children = [
            await start("import sys; sys.stdin.read(); raise SystemExit(7)", stdin=PIPE) for _ in range(12)
        ]
        pids.extend(child.pid for child in children)
        assert threading.active_count() == before
        for child in children:
            child.stdin.close()
        assert [await child.wait() for child in children] == [7] * 12

    old = signal.getsignal(signal.SIGCHLD)
    before = descriptors()
    if where == "main thread":
        run(body)
    else:
        errors: list[BaseException] = []

        def target() -> None:
            try:
                run(body)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
        assert errors == []
    assert signal.getsignal(signal.SIGCHLD) is old
    assert descriptors() == before
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_how_it_ended() -> None:
    async def body() -> None:
        child = await start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert await child.wait() == -signal.SIGKILL
        child = await start("import sys; sys.stdin.read()", stdin=PIPE)
        child.terminate()
        assert await child.wait() == -signal.SIGTERM
        assert child.returncode == -signal.SIGTERM

    run(body)


def test_a_child_whose_end_somebody_else_has_seen(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        child = await start("pass", stdin=DEVNULL)
        # Blocks the loop until the child has ended, so this one is always first.
        os.waitpid(child.pid, 0)
        assert await child.wait() == 255

        child = await start("raise SystemExit(3)", stdin=DEVNULL)
        process = child._transport._proc
        assert process.wait() == 3  # by its own Popen, whose finding is not lost
        assert await child.wait() == 3

    run(body)
    assert [record.message for record in caplog.records if "already read" in record.message] != []


def test_pipes_are_pipes() -> None:
    async def body() -> None:
        code = "import sys; sys.stdout.write(open('/dev/stdin').read().upper()); sys.stdout.flush()"
        child = await start(code, stdin=PIPE, stdout=PIPE)
        assert await child.communicate(b"through a pipe") == (b"THROUGH A PIPE", None)
        code = "open('/proc/self/fd/1', 'w').write('out'); open('/dev/stderr', 'w').write('err')"
        child = await start(code, stdout=PIPE, stderr=PIPE)
        assert await child.communicate() == (b"out", b"err")

    run(body)


def test_more_than_a_pipe_holds_goes_both_ways() -> None:
    async def body() -> None:
        code = "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
        child = await start(code, stdin=PIPE, stdout=PIPE)
        data = bytes(range(256)) * 4000
        out, _ = await child.communicate(data)
        assert out == data
        assert child.returncode == 0

    run(body)


def test_a_start_that_is_cancelled_leaves_no_child() -> None:
    async def body() -> None:
        before = descriptors()
        for _ in range(5):
            starting = asyncio.ensure_future(start("import sys; sys.stdin.read()", stdin=PIPE))
            await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        while descriptors() != before:  # Pipes are closed a turn or two later; the test's timeout ends this.
            await asyncio.sleep(0.001)

    run(body)


def test_what_cannot_be_started() -> None:
    async def body() -> None:
        before = descriptors()
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/nowhere/nothing", stdin=PIPE)
        assert descriptors() == before

    run(body)


def test_a_loop_that_is_closed_before_its_child_has_ended_leaves_no_descriptor() -> None:
    before = descriptors()
    loop = plait.EventLoop()
    child = loop.run_until_complete(start("import time; time.sleep(600)"))
    loop.close()
    child._transport._proc.kill()
    child._transport._proc.wait()
    del child, loop
    assert descriptors() == before
