"""Queues, pipes and locks between two processes, ours and the standard ones; see `--help`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, cast

import numpy

import plait.multiprocessing
from harness import OURS, Pool, Row, Sample, main, tree_cpu

SIZE = 64 * 2**20
SECONDS = 1.5

# The harness hands a row what makes a peer's pool; here it makes a peer's context.
PEERS: Mapping[str, Callable[[], Any]] = {
    OURS: lambda: plait.multiprocessing.get_context("fork"),
    "multiprocessing": lambda: multiprocessing.get_context("fork"),
}


def put_numbers(queue: Any, stop: Any, ready: Any) -> None:
    """Small integers, no more than a reader can keep up with, until told to stop."""
    ready.set()
    while not stop.is_set():
        for number in range(100):
            queue.put(number)
    queue.put(None)


def put_arrays(queue: Any, stop: Any, ready: Any) -> None:
    """Arrays of 64 MiB until told to stop."""
    array = numpy.ones(SIZE, numpy.uint8)
    ready.set()
    while not stop.is_set():
        queue.put(array)
    queue.put(None)


def get_rest(queue: Any) -> None:
    """Everything up to the end."""
    while queue.get() is not None:
        pass


def through(context: Any, produce: Callable[..., None], maxsize: int) -> Sample:
    """Objects per second from one process into another, and the CPU time of one: put, sent and got."""
    queue, stop, ready = context.Queue(maxsize), context.Event(), context.Event()
    producer = context.Process(target=produce, args=(queue, stop, ready), daemon=True)
    producer.start()
    ready.wait()
    for _ in range(8):  # so that memory is warm, threads are started
        queue.get()
    cpu, began, count = tree_cpu(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < SECONDS:
        queue.get()
        count += 1
    sample = Sample(count / elapsed, (tree_cpu() - cpu) / count)
    stop.set()
    get_rest(queue)
    producer.join()
    return sample


def small_integers(make: Callable[[], Any]) -> Sample:
    """Items per second of small integers; at most a thousand wait, or the producer would run away."""
    return through(make(), put_numbers, 1000)


def large_arrays(make: Callable[[], Any]) -> Sample:
    """Gigabytes per second of 64 MiB arrays, at most two of which wait."""
    sample = through(make(), put_arrays, 2)
    return Sample(sample.value * SIZE / 1e9, sample.cpu)


def answer(there: Any, back: Any) -> None:
    """Give back what comes, until None."""
    for item in iter(there.get, None):
        back.put(item)


def round_trip(make: Callable[[], Any]) -> Sample:
    """Median microseconds until an object put into one queue has come back through another."""
    context = make()
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=answer, args=(there, back), daemon=True)
    process.start()
    trips = []
    for turn in range(2200):
        if turn == 200:
            cpu = tree_cpu()
        began = time.perf_counter()
        there.put(turn)
        back.get()
        trips.append(time.perf_counter() - began)
    sample = Sample(median(trips[200:]) * 1e6, (tree_cpu() - cpu) / 2000)
    there.put(None)
    process.join()
    return sample


def send_back(end: Any) -> None:
    """Send back what comes, until None."""
    while (item := end.recv()) is not None:
        end.send(item)


def pipe(make_item: Callable[[], Any], turns: int) -> Callable[[Callable[[], Any]], Sample]:
    """Median microseconds until an object sent into a pipe has come back through it."""

    def measure(make: Callable[[], Any]) -> Sample:
        context = make()
        here, there = context.Pipe()
        process = context.Process(target=send_back, args=(there,), daemon=True)
        process.start()
        there.close()
        item, trips = make_item(), []
        for turn in range(turns // 10 + turns):
            if turn == turns // 10:
                cpu = tree_cpu()
            began = time.perf_counter()
            here.send(item)
            here.recv()
            trips.append(time.perf_counter() - began)
        sample = Sample(median(trips[turns // 10 :]) * 1e6, (tree_cpu() - cpu) / turns)
        here.send(None)
        process.join()
        return sample

    return measure


def uncontended(name: str) -> Callable[[Callable[[], Any]], Sample]:
    """Nanoseconds of an `acquire` and a `release` that nobody else wants."""

    def measure(make: Callable[[], Any]) -> Sample:
        lock = getattr(make(), name)()
        acquire, release = lock.acquire, lock.release
        times = []
        for _ in range(20):
            began = time.process_time()
            for _ in range(20_000):
                acquire()
                release()
            times.append((time.process_time() - began) / 20_000)
        return Sample(median(times) * 1e9, median(times))

    return measure


def take_turns(lock: Any, stop: Any) -> None:
    """Acquire and release, over and over."""
    while not stop.is_set():
        for _ in range(100):
            with lock:
                pass


def contended(make: Callable[[], Any]) -> Sample:
    """Acquire-and-release per second of a lock that another process wants all the time."""
    context = make()
    lock, stop = context.Lock(), context.Event()
    other = context.Process(target=take_turns, args=(lock, stop), daemon=True)
    other.start()
    cpu, began, count = tree_cpu(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < SECONDS:
        for _ in range(100):
            with lock:
                pass
        count += 100
    sample = Sample(count / elapsed, (tree_cpu() - cpu) / count)
    stop.set()
    other.join()
    return sample


def condition(make: Callable[[], Any]) -> Sample:
    """Nanoseconds of a `notify` when nobody waits: what a producer pays each time."""
    waited = make().Condition()
    began = time.process_time()
    for _ in range(20_000):
        with waited:
            waited.notify()
    return Sample((time.process_time() - began) / 20_000 * 1e9)


ROWS = [
    Row("Queue, small integers", "/s", small_integers),
    Row("Queue, 64 MiB arrays", "GB/s", large_arrays),
    Row("Queue, there and back", "µs", round_trip, higher_is_better=False),
    Row("Pipe, a number there and back", "µs", pipe(lambda: 1, 2000), higher_is_better=False),
    Row(
        "Pipe, 64 MiB array there and back",
        "µs",
        pipe(lambda: numpy.ones(SIZE, numpy.uint8), 20),
        higher_is_better=False,
    ),
    Row("Lock, acquire and release", "ns", uncontended("Lock"), higher_is_better=False),
    Row("RLock, acquire and release", "ns", uncontended("RLock"), higher_is_better=False),
    Row("Semaphore, acquire and release", "ns", uncontended("Semaphore"), higher_is_better=False),
    Row("Lock that another process wants", "/s", contended),
    Row("Condition, notify", "ns", condition, higher_is_better=False),
]

if __name__ == "__main__":
    peers = cast("Mapping[str, Callable[[], Pool]]", PEERS)
    main("Queues, pipes and locks between processes", __file__, peers, ROWS)
