"""The locks of `plait.threading` against those of `threading`: `python benches/locks.py --help`.

Alone: nanoseconds of CPU time per round (say, an acquire and a release) without the loop itself. Ping-pong:
microseconds until the other thread has answered. Contended: rounds per second of all threads together, or of
all coroutines of one event loop, where the standard lock is asyncio's.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import plait.threading
from harness import OURS, Row, Sample, main

ROUNDS = 100_000
SECONDS = 1.0


def with_lock(name: str) -> Callable[[Any], Callable[[int], None]]:
    def prepare(module: Any) -> Callable[[int], None]:
        lock = getattr(module, name)()

        def body(rounds: int) -> None:
            for _ in range(rounds):
                with lock:
                    pass

        return body

    return prepare


def acquire_and_release(name: str) -> Callable[[Any], Callable[[int], None]]:
    def prepare(module: Any) -> Callable[[int], None]:
        lock = getattr(module, name)()

        def body(rounds: int) -> None:
            for _ in range(rounds):
                lock.acquire()
                lock.release()

        return body

    return prepare


def set_wait_clear(module: Any) -> Callable[[int], None]:
    event = module.Event()

    def body(rounds: int) -> None:
        for _ in range(rounds):
            event.set()
            event.wait()
            event.clear()

    return body


def notify(module: Any) -> Callable[[int], None]:
    condition = module.Condition()

    def body(rounds: int) -> None:
        for _ in range(rounds):
            with condition:
                condition.notify()

    return body


def make(module: Any) -> Callable[[int], None]:
    def body(rounds: int) -> None:
        for _ in range(rounds):
            module.Lock()

    return body


def make_event(module: Any) -> Callable[[int], None]:
    def body(rounds: int) -> None:
        for _ in range(rounds):
            module.Event()

    return body


def nothing(rounds: int) -> None:
    for _ in range(rounds):
        pass


def alone(prepare: Callable[[Any], Callable[[int], None]], module: Callable[[], Any]) -> Sample:
    """Nanoseconds of CPU time for a round, the best of a few attempts: others only ever add to it."""

    def best(body: Callable[[int], None]) -> float:
        times = []
        for _ in range(5):
            began = time.thread_time_ns()
            body(ROUNDS)
            times.append((time.thread_time_ns() - began) / ROUNDS)
        return min(times)

    return Sample(best(prepare(module())) - best(nothing))


def ping_pong(kind: str, module: Callable[[], Any]) -> Sample:
    """Microseconds for a round trip between two threads, each of which sleeps for the other."""
    there, back = getattr(module(), kind)(), getattr(module(), kind)()
    rounds = 5_000
    if kind == "Event":

        def send(which: Any) -> None:
            which.set()

        def receive(which: Any) -> None:
            which.wait()
            which.clear()
    else:
        there.acquire()
        back.acquire()
        send, receive = (lambda which: which.release()), (lambda which: which.acquire())

    def answer() -> None:
        for _ in range(rounds):
            receive(there)
            send(back)

    thread = threading.Thread(target=answer)
    thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        send(there)
        receive(back)
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    thread.join()
    return Sample(elapsed / rounds * 1e6, cpu / rounds)


def contended(kind: str, threads: int, work: int, module: Callable[[], Any]) -> Sample:
    """Rounds per second of all threads, each of which takes the lock, works a little, and lets go of it."""
    lock = getattr(module(), kind)()
    counts, stop = [0] * threads, False

    def body(number: int) -> None:
        count = 0
        while not stop:
            with lock:
                for _ in range(work):
                    pass
            count += 1
        counts[number] = count

    workers = [threading.Thread(target=body, args=(number,)) for number in range(threads)]
    began, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    time.sleep(SECONDS)
    stop = True
    for worker in workers:
        worker.join()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(sum(counts) / elapsed, cpu / max(1, sum(counts)))


def contended_by_coroutines(kind: str, coroutines: int, module: Callable[[], Any]) -> Sample:
    """Rounds per second of all coroutines, each of which lets the others run while it has the lock."""
    family = plait.threading if module() is plait.threading else asyncio

    async def main() -> Sample:
        lock = getattr(family, kind)()
        counts, stop = [0] * coroutines, False

        async def body(number: int) -> None:
            while not stop:
                async with lock:
                    await asyncio.sleep(0)
                counts[number] += 1

        began, cpu = time.perf_counter(), time.process_time()
        tasks = [asyncio.create_task(body(number)) for number in range(coroutines)]
        await asyncio.sleep(SECONDS)
        stop = True
        await asyncio.gather(*tasks)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Sample(sum(counts) / elapsed, cpu / max(1, sum(counts)))

    return asyncio.run(main())


def start_and_join(module: Callable[[], Any]) -> Sample:
    """Microseconds until a thread that does nothing was started and joined."""
    make, rounds = module().Thread, 2_000
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(rounds):
        thread = make(target=nothing, args=(0,))
        thread.start()
        thread.join()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(elapsed / rounds * 1e6, cpu / rounds)


if __name__ == "__main__":
    ALONE = {
        "Lock: with": with_lock("Lock"),
        "Lock: acquire + release": acquire_and_release("Lock"),
        "Lock: make": make,
        "RLock: with": with_lock("RLock"),
        "RLock: acquire + release": acquire_and_release("RLock"),
        "Semaphore: with": with_lock("Semaphore"),
        "Semaphore: acquire + release": acquire_and_release("Semaphore"),
        "Event: set + wait + clear": set_wait_clear,
        "Event: make": make_event,
        "Condition: with": with_lock("Condition"),
        "Condition: with + notify": notify,
    }
    peers: dict[str, Callable[[], Any]] = {OURS: lambda: plait.threading, "threading": lambda: threading}
    main(
        "locks",
        __file__,
        peers,
        [
            *(
                Row(name, "ns", functools.partial(alone, prepare), higher_is_better=False)
                for name, prepare in ALONE.items()
            ),
            *(
                Row(f"{kind}: ping-pong", "µs", functools.partial(ping_pong, kind), higher_is_better=False)
                for kind in ("Lock", "Semaphore", "Event")
            ),
            *(
                Row(
                    f"{kind}: contended by {threads}", "/s", functools.partial(contended, kind, threads, work)
                )
                for kind, work in (("Lock", 20), ("RLock", 20), ("Semaphore", 20), ("Condition", 20))
                for threads in (2, 8, 64)
            ),
            *(
                Row(
                    f"{kind}: contended by {coroutines} coroutines",
                    "/s",
                    functools.partial(contended_by_coroutines, kind, coroutines),
                )
                for kind in ("Lock", "Semaphore")
                for coroutines in (2, 64)
            ),
            Row("Thread: start + join", "µs", start_and_join, higher_is_better=False),
        ],
    )
