"""What the processes of the tests of locks and queues call: a child finds it by its name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def hold(lock: Any, held: Any) -> None:
    """Acquire, say so, and never release."""
    lock.acquire()
    held.set()
    time.sleep(600)


def end_holding(lock: Any) -> None:
    lock.acquire()


def count_up(lock: Any, value: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            value.value += 1


def wait_for(waitable: Any, ready: Any, done: Any) -> None:
    """Wait in a condition."""
    with waitable:
        ready.release()
        waitable.wait()
    done.release()


def interrupted(lock: Any, about_to: Any, told: Any) -> None:
    """Wait for a lock until Ctrl-C."""
    about_to.set()
    try:
        lock.acquire()
    except KeyboardInterrupt:
        told.put("interrupted")


def put_all(queue: Any, items: list[Any]) -> None:
    for item in items:
        queue.put(item)


def put_numbers(queue: Any, mark: Any, count: int) -> None:
    for number in range(count):
        queue.put((mark, number))


def put_arrays(queue: Any, count: int, length: int) -> None:
    import numpy as np

    for number in range(count):
        queue.put(np.full(length, number))


def pass_on(source: Any, target: Any, count: int) -> None:
    for _ in range(count):
        target.put(source.get())


def work_off(queue: Any) -> None:
    for _ in iter(queue.get, None):
        queue.task_done()


def put_for_ever(queue: Any, mark: int) -> None:
    number = 0
    while True:
        queue.put((mark, number, b"x" * (number % 300)))
        number += 1


def get_for_ever(queue: Any) -> None:
    while True:
        queue.get()


def add_to(value: Any, amount: int) -> int:
    """Called by a pool's worker, with a value that was sent as an argument."""
    with value.get_lock():
        value.value += amount
    return os.getpid()


def put_one(queue: Any, item: Any) -> None:
    queue.put(item)


def die_holding(lock: Any) -> None:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def send_back(end: Any) -> None:
    """Send back what comes, until None."""
    for item in iter(end.recv, None):
        end.send(item)


def send_zeros(end: Any, size: int) -> None:
    end.send_bytes(bytes(size))


def send_for_ever(end: Any, size: int) -> None:
    """Send messages that say their number and are full of it."""
    number = 0
    while True:
        end.send((number, bytes([number % 256]) * size))
        number += 1


def hold_until_killed(*held: Any) -> None:
    """Say at the last of what is held that it is, and keep it."""
    held[-1].set()
    time.sleep(600)


def receive_one(end: Any) -> tuple[int, bytes]:
    """Called by a pool's worker: what came, abbreviated."""
    message = end.recv()
    return len(message), bytes(message[:1])


def send_from_worker(end: Any, item: Any) -> None:
    end.send(item)


def send_through_signals(end: Any, count: int) -> None:
    """Wait for a message, then send more than fits without a reader, whatever signals come."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    end.send("ready")
    size = len(end.recv())
    for _ in range(count):
        end.send_bytes(bytes(size % 10_000))
    end.send("done")
