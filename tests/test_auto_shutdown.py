"""`auto` and its end: a job that is on its way to a pool when the executor is shut down still arrives."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import plait
from plait.auto import AutoPool


def test_shutdown_waits_for_a_job_that_is_between_the_queue_and_a_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe_pool = AutoPool.probe_pool

    def slow_probe_pool(self: AutoPool, coroutine: bool) -> Any:
        time.sleep(0.3)
        return probe_pool(self, coroutine)

    monkeypatch.setattr(AutoPool, "probe_pool", slow_probe_pool)
    executor = plait.Executor("auto", 2)
    future = executor.submit(divmod, 7, 2)
    time.sleep(0.1)  # Until the job is taken from the queue.
    executor.shutdown()
    assert future.result(0) == (3, 1)


def test_shutdown_while_the_choice_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    choosing = threading.Event()
    straight_to = AutoPool.straight_to

    def slowly(self: AutoPool, decision: plait.Decision) -> object:
        choosing.set()
        time.sleep(0.2)  # so that the shutdown comes in between
        return straight_to(self, decision)

    monkeypatch.setattr(AutoPool, "straight_to", slowly)
    ex = plait.Executor("auto", workers=2)
    futures = [ex.submit(abs, -number) for number in range(20)]
    assert choosing.wait(60)
    ending = threading.Thread(target=ex.shutdown, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()
    assert [future.result(timeout=60) for future in futures] == list(range(20))
