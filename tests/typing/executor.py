"""What the types of the public names promise; checked by mypy (tests/test_typing.py), never run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from functools import partial
from typing import assert_type

import plait
from plait._map import Results


def size(text: str, base: int = 10) -> int:
    return int(text, base)


async def fetch(url: str, retries: int = 3) -> bytes:
    return url.encode() * retries


with plait.Executor("threads", workers=4) as ex:
    assert_type(ex, plait.Executor)

    # submit: what the function returns; for a coroutine function what it will have returned.
    assert_type(ex.submit(size, "12"), plait.Future[int])
    assert_type(ex.submit(size, "12", base=16).result(), int)
    assert_type(ex.submit(fetch, "http://localhost"), plait.Future[bytes])
    assert_type(ex.submit(partial(size, "12")).result(timeout=1), int)
    assert_type(ex.submit(lambda: "text").result(), str)
    ex.submit(size, 12)  # type: ignore[call-overload]
    ex.submit(size)  # type: ignore[call-overload]

    # map: an iterator over the same.
    assert_type(ex.map(size, ["1", "2"], chunksize=10), Results[int])
    assert_type(list(ex.map(fetch, ["a", "b"], ordered=False, progress=True)), list[bytes])
    numbers: Iterator[int] = ex.map(size, ["1"], [2], timeout=1.5, buffersize=None, retries=2, name="sizes")
    ex.map(size, ["1"], chunksize="10")  # type: ignore[call-overload]

    # Options: the same kind of executor.
    assert_type(ex.options(timeout=1.5, retries=2, name="careful"), plait.Executor)
    ex.options(timeout="1")  # type: ignore[arg-type]

    # What measured work says.
    assert_type(ex.decision, plait.Decision | None)
    if ex.decision is not None:
        assert_type(ex.decision.reason, str)
        assert_type(ex.decision.second_thread, float | None)
        ex.decision.model = "tasks"  # type: ignore[misc]

    # It is a standard executor, and its futures are standard futures.
    standard: concurrent.futures.Executor = ex
    future: concurrent.futures.Future[int] = ex.submit(size, "12")
    ex.shutdown(wait=False, cancel_futures=True)


async def main(executor: plait.Executor) -> None:
    # A future can be awaited.
    assert_type(await executor.submit(size, "12"), int)
    assert_type(await executor.submit(fetch, "http://localhost"), bytes)
    assert_type(await asyncio.get_running_loop().run_in_executor(executor, size, "12"), int)


def errors(error: Exception) -> None:
    if isinstance(error, plait.WorkerDied):
        assert_type(error.exitcode, int | None)
    elif isinstance(error, plait.TaskTimeout):
        assert_type(error.timeout, float)


assert_type(plait.__version__, str)
assert_type(plait.install(), None)
plait.nonsense  # type: ignore[attr-defined]  # noqa: B018
