"""What the tests' processes and pools call: a child finds it by its name."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

STATE: list[Any] = []


def square(x: int) -> int:
    return x * x


def add(x: int, y: int = 0) -> int:
    return x + y


def fail(x: object) -> None:
    raise KeyError(x)


def fail_if_odd(x: int) -> int:
    if x % 2:
        raise KeyError(x)
    return x


def remember(*values: Any) -> None:
    STATE[:] = values


def remembered(_: object = None) -> list[Any]:
    return STATE


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_if_three(x: int) -> int:
    if x == 3:
        die()
    return x


def leave(code: int) -> None:
    sys.exit(code)


def pid(_: object = None) -> int:
    return os.getpid()


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def nest(x: int) -> list[int]:
    """Make a pool inside a pool's worker."""
    import plait.multiprocessing

    with plait.multiprocessing.Pool(1) as pool:
        return list(pool.map(square, range(x)))


def start_a_child(_: object = None) -> int | None:
    """Start a process inside a pool's worker."""
    import plait.multiprocessing

    child = plait.multiprocessing.Process(target=square, args=(2,))
    child.start()
    child.join()
    code: int | None = child.exitcode
    return code


class Unpicklable:
    """Refuses."""

    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


def acquire(lock: Any) -> bool:
    taken: bool = lock.acquire(timeout=30)
    return taken


def wait(event: Any) -> bool:
    happened: bool = event.wait(30)
    return happened


def put(queue: Any, item: object) -> None:
    queue.put(item)


def get(queue: Any) -> object:
    return queue.get()


def send(end: Any, item: object) -> None:
    end.send(item)


def put_remembered(item: object) -> None:
    queue, lock = STATE
    with lock:
        queue.put(item)


def send_all(ends: list[Any], data: bytes) -> None:
    for end in ends:
        end.send(len(data))


def send_of_a_child(end: Any) -> None:
    """Have a child of this process send."""
    import plait.multiprocessing

    child = plait.multiprocessing.Process(target=send, args=(end, "from a grandchild"))
    child.start()
    child.join()


def first_remembered() -> object:
    value: object = STATE[0]
    return value
