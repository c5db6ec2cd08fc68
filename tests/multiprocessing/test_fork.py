"""`fork` by name: executors whose workers inherit the memory of the program."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import process_calls as calls
import pytest
from faults.leftovers import children, excess, holdings, wait_until_gone

from plait.errors import WorkerDied
from plait.futures import ProcessPoolExecutor

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def executor(workers: int = 1, **options: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), **options)


def test_workers_inherit_what_there_is_at_the_first_job() -> None:
    before = holdings()
    with executor() as made:
        calls.STATE[:] = ["inherited", threading.Lock()]  # a lock of threads cannot be pickled
        inherited = made.submit(calls.first_remembered).result(60)
        assert inherited == "inherited"
        calls.STATE[:] = ["later"]
        assert made.submit(calls.first_remembered).result(60) == "inherited"
        with pytest.raises(WorkerDied):
            made.submit(calls.die).result(60)
        assert made.submit(calls.first_remembered).result(60) == "inherited"
    del made
    assert excess(before) == {}


def test_an_initializer_and_its_arguments_are_inherited() -> None:
    lock = threading.Lock()
    with executor(
        initializer=lambda *values: calls.remember("initialized", *values), initargs=(lock,)
    ) as made:
        assert made.submit(calls.first_remembered).result(60) == "initialized"


def test_nameless_semaphores_are_inherited() -> None:
    context = multiprocessing.get_context("fork")
    lock, queue = context.Lock(), context.SimpleQueue()
    with executor(2) as made:
        for _ in range(3):
            assert made.submit(calls.acquire, lock).result(60)
            assert not lock.acquire(timeout=0.01)
            assert made.submit(lock.release).result(60) is None
        made.submit(calls.put, queue, "put").result(60)
        assert queue.get() == "put"
        late = context.Lock()
        with pytest.raises(RuntimeError, match="start method 'fork'"):
            made.submit(calls.acquire, late).result(60)


def test_workers_leave_the_programs_daemons_alone() -> None:
    daemon = multiprocessing.get_context("spawn").Process(target=calls.sleep, args=(600,), daemon=True)
    daemon.start()
    with executor() as made:
        assert made.submit(calls.square, 3).result(60) == 9
    assert daemon.is_alive()
    daemon.kill()
    daemon.join(60)


def test_there_is_no_second_fork() -> None:
    before = children(os.getpid())
    with executor() as made:
        worker = made.submit(os.getpid).result(60)
        zygote = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert zygote in children(os.getpid()) - before
        os.kill(zygote, signal.SIGKILL)
        assert wait_until_gone({worker}) == set()
        assert isinstance(made.submit(os.getpid).exception(60), BrokenExecutor)
        with pytest.raises(BrokenExecutor, match="not forked again"):
            made.submit(os.getpid)
