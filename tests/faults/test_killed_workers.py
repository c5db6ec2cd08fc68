"""Workers are killed at random while they work: each kill costs one job, and nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

from plait._job import JobOptions
from plait.errors import WorkerDied
from plait.process_pool import ProcessPool


def busy(number: int, seconds: float) -> int:
    """Take a moment and give back a value that only this job has."""
    time.sleep(seconds)
    return number * number


def test_each_kill_costs_one_job_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    pool = ProcessPool(3)
    jobs = 2_000
    kills: list[int] = []
    done = threading.Event()

    def kill_now_and_then() -> None:
        while not done.wait(chance.uniform(0.002, 0.02)):
            alive = [pid for pid in pool.statistics()["workers"] if pid]
            if alive:
                pid = chance.choice(alive)
                try:
                    os.kill(pid, signal.SIGKILL)
                    kills.append(pid)
                except ProcessLookupError:
                    continue

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        futures = [
            pool.submit(busy, (number, chance.choice([0, 0, 0.001, 0.005])), {}) for number in range(jobs)
        ]
        outcomes = [future.exception(timeout=60) for future in futures]
    finally:
        done.set()
        killer.join()
    lost = [error for error in outcomes if error is not None]
    assert kills, "the test killed nobody"
    assert [error for error in lost if not isinstance(error, WorkerDied)] == []
    assert {error.signal for error in lost if isinstance(error, WorkerDied)} <= {signal.SIGKILL}
    assert len(lost) <= len(set(kills))
    # Every worker that died under a job is one that was killed, and no job was lost twice to the same death.
    dead = [error.pid for error in lost if isinstance(error, WorkerDied)]
    assert len(set(dead)) == len(dead)
    assert set(dead) <= set(kills)
    for number, (future, error) in enumerate(zip(futures, outcomes, strict=True)):
        assert error is not None or future.result() == number * number
    pool.shutdown()


def test_retries_survive_kills() -> None:
    pool = ProcessPool(2)
    try:
        first = pool.submit(os.getpid, (), {}).result(10)
        future = pool.submit(kill_once, (first,), {}, JobOptions(retries=1))
        assert future.result(10) != first
    finally:
        pool.shutdown()


def kill_once(pid: int) -> int:
    """End this worker if it is process `pid`."""
    if os.getpid() == pid:
        os.kill(pid, signal.SIGKILL)
    return os.getpid()
