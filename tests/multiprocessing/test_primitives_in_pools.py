"""Locks, queues and connections, standard ones and ours, as arguments of jobs and of initializers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import process_calls as calls
import pytest

import plait
import plait.futures
from plait.futures import ProcessPoolExecutor


@pytest.fixture(params=["spawn", "forkserver"])
def context(request: pytest.FixtureRequest, package: Any) -> Any:
    return package.get_context(request.param)


@pytest.fixture
def executor() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1) as made:
        yield made


def test_a_lock_is_the_same_lock(context: Any, executor: ProcessPoolExecutor) -> None:
    lock = context.Lock()
    assert executor.submit(calls.acquire, lock).result(60)
    assert not lock.acquire(timeout=0.01)
    lock.release()
    assert executor.submit(lock.acquire).result(60)
    assert not lock.acquire(timeout=0.01)


def test_an_event_and_a_condition(context: Any, executor: ProcessPoolExecutor) -> None:
    event = context.Event()
    waiting = executor.submit(calls.wait, event)
    event.set()
    assert waiting.result(60)


def test_queues_go_both_ways(context: Any, executor: ProcessPoolExecutor) -> None:
    queue, simple = context.Queue(), context.SimpleQueue()
    executor.submit(calls.put, queue, "put").result(60)
    assert queue.get(timeout=60) == "put"
    executor.submit(calls.put, simple, "simply").result(60)
    assert simple.get() == "simply"
    queue.put("back")
    assert executor.submit(calls.get, queue).result(60) == "back"
    queue.close()
    queue.join_thread()


def test_the_ends_of_a_pipe(context: Any, executor: ProcessPoolExecutor) -> None:
    for duplex in (False, True):
        receiver, sender = context.Pipe(duplex)
        executor.submit(calls.send, sender, "sent").result(60)
        assert receiver.recv() == "sent"
        sender.close()
        with pytest.raises(EOFError):
            receiver.recv()
        receiver.close()
    # Plain pickle takes a connection for an ordinary object: its copy would close other files of the worker.
    assert executor.submit(os.getpid).result(60) == executor.submit(os.getpid).result(60)


def test_an_end_that_was_closed_meanwhile_is_told(context: Any, executor: ProcessPoolExecutor) -> None:
    receiver, sender = context.Pipe(False)
    begun = executor.submit(calls.sleep, 0.2)
    late = executor.submit(calls.send, sender, "never")
    sender.close()
    begun.result(60)
    with pytest.raises(FileNotFoundError, match="has closed its end"):
        late.result(60)
    receiver.close()


def test_an_initializer_gets_them(context: Any) -> None:
    queue, lock = context.Queue(), context.Lock()
    with plait.Executor(
        "processes", workers=2, initializer=calls.remember, initargs=(queue, lock)
    ) as executor:
        for number in range(4):
            executor.submit(calls.put_remembered, number).result(60)
    assert sorted(queue.get(timeout=60) for _ in range(4)) == [0, 1, 2, 3]
    queue.close()
    queue.join_thread()


def test_a_failing_initializer_breaks_the_executor_and_its_log_arrives() -> None:
    with ProcessPoolExecutor(1, initializer=calls.fail, initargs=("x",)) as executor:
        with pytest.raises(plait.futures.BrokenExecutor, match="KeyError"):
            executor.submit(calls.square, 2).result(60)
        with pytest.raises(plait.futures.BrokenExecutor, match="KeyError"):
            executor.submit(calls.square, 2)


def test_a_nameless_semaphore_is_refused_by_workers_that_have_not_inherited_it(
    executor: ProcessPoolExecutor,
) -> None:
    lock = multiprocessing.get_context("fork").Lock()
    with pytest.raises(RuntimeError, match="start method 'fork'"):
        executor.submit(calls.acquire, lock).result(60)
