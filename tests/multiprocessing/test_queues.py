"""Queues between processes: as the standard ones, and robust."""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Full
from typing import Any

import pytest
import sync_calls
from faults.leftovers import excess, holdings

import plait.multiprocessing as ours

METHODS = ["spawn", "forkserver", "fork"]
PATIENCE = 30.0
"""Seconds: only a hang takes that long."""


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    """A context of ours."""
    return ours.get_context(request.param)


def test_everything_arrives_once_and_in_each_producers_order(context: Any) -> None:
    source, target = context.Queue(), context.Queue()
    processes = [
        context.Process(target=sync_calls.put_numbers, args=(source, mark, 1000)) for mark in range(3)
    ]
    processes += [context.Process(target=sync_calls.pass_on, args=(source, target, 1500)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [target.get(timeout=PATIENCE) for _ in range(3000)]
    for process in processes:
        process.join()
    assert sorted(got) == [(mark, number) for mark in range(3) for number in range(1000)]
    assert source.empty()
    assert target.qsize() == 0


def test_a_process_that_has_put_what_nobody_reads_can_be_joined(context: Any) -> None:
    np = pytest.importorskip("numpy")
    queue = context.Queue()
    process = context.Process(target=sync_calls.put_arrays, args=(queue, 5, 1 << 18))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert queue.qsize() == 5
    for number in range(5):
        array = queue.get()
        assert array.flags.writeable
        assert np.all(array == number)


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 70_000, 3_000_000])
def test_messages_of_any_size(size: int) -> None:
    queue = ours.Queue()
    for item in (b"x" * size, bytearray(size), [b"y" * size, size], memoryview(b"z" * size).tobytes()):
        queue.put(item)
        assert queue.get() == item


def test_arrays_of_any_kind() -> None:
    np = pytest.importorskip("numpy")
    queue = ours.Queue()
    for array in (
        np.arange(10),
        np.arange(10_000),
        np.ones((200, 300))[::2],
        np.ones((300, 200)).T,
        np.float64(3),
    ):
        queue.put([array, array])
        first, second = queue.get()
        assert np.array_equal(first, array)
        assert np.array_equal(second, array)
    fixed = np.arange(10_000)
    fixed.flags.writeable = False
    queue.put(fixed)
    assert np.array_equal(queue.get(), fixed)


def test_a_bounded_queue_is_full(package: Any) -> None:
    context = package.get_context("spawn")
    queue = context.Queue(2)
    queue.put(1)
    queue.put(2)
    assert queue.full()
    with pytest.raises(Full):
        queue.put(3, timeout=0.01)
    with pytest.raises(Full):
        queue.put_nowait(3)
    assert queue.get(timeout=PATIENCE) == 1
    queue.put(3, timeout=PATIENCE)
    assert [queue.get(timeout=PATIENCE) for _ in range(2)] == [2, 3]
    with pytest.raises(Empty):
        queue.get(timeout=0.01)
    with pytest.raises(Empty):
        queue.get_nowait()
    queue.close()
    queue.join_thread()
    with pytest.raises(ValueError, match="is closed"):
        queue.put(1)
    with pytest.raises(ValueError, match="is closed"):
        queue.get()


def test_producers_of_a_full_queue_wait_for_room(context: Any) -> None:
    queue = context.Queue(3)
    producers = [context.Process(target=sync_calls.put_numbers, args=(queue, mark, 200)) for mark in range(2)]
    for producer in producers:
        producer.start()
    got = []
    for _ in range(400):
        assert queue.qsize() <= 3
        got.append(queue.get(timeout=PATIENCE))
    for producer in producers:
        producer.join()
    assert sorted(got) == [(mark, number) for mark in range(2) for number in range(200)]


class Unpicklable:
    """Refuses."""

    def __reduce__(self) -> Any:
        raise LookupError("cannot be pickled")


def test_what_cannot_be_pickled_is_told_to_who_puts_it() -> None:
    for queue in (ours.Queue(), ours.JoinableQueue()):
        with pytest.raises(LookupError, match="cannot be pickled"):
            queue.put([1, Unpicklable()])
        queue.put(2)
        assert queue.get() == 2
        assert queue.empty()


def test_a_subclass_may_handle_what_cannot_be_pickled() -> None:
    handled: list[Any] = []

    class Forgiving(ours.queues.Queue):  # type: ignore[misc]
        @staticmethod
        def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
            handled.append((type(e), type(obj)))

    queue = Forgiving(ctx=ours.get_context())
    queue.put(Unpicklable())
    queue.put(1)
    assert queue.get() == 1
    assert handled == [(LookupError, Unpicklable)]


def test_join_waits_until_all_is_done(context: Any) -> None:
    queue = context.JoinableQueue()
    workers = [context.Process(target=sync_calls.work_off, args=(queue,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for number in range(100):
        queue.put(number)
    queue.join()
    assert queue.empty()
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        queue.task_done()
    for _ in workers:
        queue.put(None)
    for worker in workers:
        worker.join()


def test_threads_of_one_process(package: Any) -> None:
    queue = package.get_context("spawn").Queue()
    got: list[int] = []

    def get() -> None:
        got.extend(iter(queue.get, None))

    consumers = [threading.Thread(target=get) for _ in range(3)]
    producers = [
        threading.Thread(target=sync_calls.put_all, args=(queue, list(range(n, 600, 2)))) for n in (0, 1)
    ]
    for thread in consumers + producers:
        thread.start()
    for thread in producers:
        thread.join()
    for _ in consumers:
        queue.put(None)
    for thread in consumers:
        thread.join(PATIENCE)
    assert sorted(got) == list(range(600))
    queue.close()
    queue.join_thread()


def test_producers_and_consumers_that_are_killed_at_any_moment(seed: int) -> None:
    """What a killed producer had put is there, whole; a killed consumer loses what it had taken, no more."""
    chance = random.Random(seed)
    context = ours.get_context("fork")
    queue = context.Queue()
    marks = iter(range(10_000))

    def producer() -> Any:
        process = context.Process(target=sync_calls.put_for_ever, args=(queue, next(marks)))
        process.start()
        return process

    def consumer() -> Any:
        process = context.Process(target=sync_calls.get_for_ever, args=(queue,))
        process.start()
        return process

    processes = [(producer, producer()), (producer, producer()), (consumer, consumer())]
    for _ in range(40):
        time.sleep(chance.random() * 0.02)
        index = chance.randrange(len(processes))
        make, process = processes[index]
        process.kill()
        process.join()
        processes[index] = (make, make())
    for make, process in processes:
        if make is consumer:
            process.kill()
            process.join()
    last: dict[int, int] = {}
    for _ in range(2000):
        mark, number, padding = queue.get(timeout=PATIENCE)
        assert padding == b"x" * (number % 300)
        assert number > last.get(mark, -1)
        last[mark] = number
    for make, process in processes:
        if make is producer:
            process.kill()
            process.join()
    left = queue.qsize()
    for _ in range(left):
        mark, number, padding = queue.get(timeout=PATIENCE)
        assert padding == b"x" * (number % 300)
        assert number == last.get(mark, number - 1) + 1
        last[mark] = number
    assert queue.empty()
    assert queue.qsize() == 0
    queue.put(1)
    assert queue.get(timeout=PATIENCE) == 1


def test_memory_that_was_read_is_given_back() -> None:
    """A backlog takes as much memory as it is long; when it is read, what is kept for the next messages."""
    queue = ours.Queue()
    piece = b"x" * (8 << 20)
    for _ in range(48):
        queue.put(piece)
    assert _shared_kib() > 380 << 10
    for _ in range(48):
        assert len(queue.get()) == len(piece)
    assert _shared_kib() < 300 << 10


def _shared_kib() -> int:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssShmem"))


def test_queues_leave_nothing_behind() -> None:
    ours.Lock()  # the board of locks stays
    before = holdings()
    queues = [ours.Queue(), ours.JoinableQueue()]
    for queue in queues:
        queue.put(queue)
        assert queue.get() is not queue
    assert len(holdings().descriptors) >= len(before.descriptors)
    del queue, queues
    assert excess(before) == {}


@pytest.mark.skipif(sys.maxsize < 2**40, reason="needs address space")
def test_rubbish_over_the_log_is_an_error() -> None:
    import mmap

    queue = ours.Queue()
    queue.put("a message")
    fd, _ = queue._log._locate()
    with mmap.mmap(fd, 1 << 16) as memory:
        memory[4096:4104] = b"\xff" * 8  # the kind of the first frame
    with pytest.raises(OSError, match="written over its shared memory"):
        queue.get(timeout=1)
    with pytest.raises(OSError, match="written over its shared memory"):
        queue.get(timeout=1)
