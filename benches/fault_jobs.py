"""The jobs of `faults.py`, good ones and bad ones; each leaves a mark in a log that outlives its worker."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

MARK = struct.Struct("<II")
BEGUN, ENDED = 1, 2

_log = -1


def open_log(path: str) -> None:
    """In a worker: where marks go. Appending is one system call, so a mark is there whole or not at all."""
    global _log
    _log = os.open(path, os.O_WRONLY | os.O_APPEND)


def mark(number: int, what: int) -> None:
    """Say that a job has begun or ended."""
    os.write(_log, MARK.pack(number, what))


def marked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of a job's number and other arguments, marked at its begin and at its end."""

    @functools.wraps(fn)
    def run(number: int, *args: Any) -> Any:
        mark(number, BEGUN)
        value = fn(number, *args)
        mark(number, ENDED)
        return value

    @functools.wraps(fn)
    async def run_coroutine(number: int, *args: Any) -> Any:
        mark(number, BEGUN)
        value = await fn(number, *args)
        mark(number, ENDED)
        return value

    return run_coroutine if inspect.iscoroutinefunction(fn) else run


class Boom(Exception):
    """What a job raises when it is to raise something; carries the job's number."""


def pattern(number: int, length: int) -> bytes:
    """Bytes that tell whose they are."""
    return bytes([number % 251]) * length


@marked
def nothing(_number: int) -> None:
    """As little as can be."""


@marked
def small(number: int) -> int:
    """A small value."""
    return number * 3 + 1


@marked
def takes(_number: int, data: bytes) -> int:
    """A large argument."""
    return zlib.crc32(data)


@marked
def makes(number: int, length: int) -> bytes:
    """A large result."""
    return pattern(number, length)


@marked
def turns(_number: int, data: bytearray) -> bytearray:
    """A large argument, which is written on, and a large result."""
    data.reverse()
    return data


@marked
def sleeps(number: int, seconds: float) -> int:
    """Waits."""
    time.sleep(seconds)
    return number


@marked
def works(number: int) -> int:
    """Computes for a millisecond."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return -number


@marked
def raises(number: int) -> None:
    """Fails in the ordinary way."""
    raise Boom(number)


@marked
def unpicklable(number: int) -> Any:
    """Returns what cannot be sent."""
    return (number for _ in range(3))


@marked
async def awaits(number: int) -> int:
    """A coroutine."""
    await asyncio.sleep(0.001)
    return number + 7


@marked
def exits(number: int) -> None:
    """Ends its worker with a status."""
    os._exit(number % 250 + 1)


@marked
def crashes(_number: int) -> None:
    """Ends its worker by a segmentation fault."""
    ctypes.string_at(0)


@marked
def oversleeps(_number: int) -> None:
    """Longer than its timeout."""
    time.sleep(600)


@marked
def spins(_number: int) -> None:
    """The same, busily."""
    while True:
        pass


@marked
def resists(_number: int) -> None:
    """The same, and is not to be interrupted."""
    while True:
        with suppress(BaseException):
            time.sleep(600)
