"""The model ``auto``: what it chooses for which work, and that it is never wrong about correctness."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import plait
from plait import auto
from plait._map import Chunk
from plait._watch import Reading, gain


@pytest.fixture
def ex(monkeypatch: pytest.MonkeyPatch) -> Iterator[plait.Executor]:
    # As if there were four: the tests are about the choice, not about this machine.
    monkeypatch.setattr(auto, "_cpus", lambda: 4)
    with plait.Executor() as executor:
        yield executor


def decided(ex: plait.Executor) -> plait.Decision:
    decision = ex.decision
    assert decision is not None
    return decision


def compute(rounds: int) -> int:
    total = 0
    for x in range(rounds):
        total += x * x
    return total


def compute_and_tell(rounds: int, path: str, name: int, _extra: Any = None) -> int:
    """Leaves a mark for every time it is called, in whatever process."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{name}\n".encode())
    os.close(descriptor)
    compute(rounds)
    return name


def where(rounds: int) -> int:
    compute(rounds)
    return os.getpid()


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def wait_later(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def compute_later(rounds: int) -> int:
    await asyncio.sleep(0)
    return compute(rounds)


def append(items: list[int]) -> int:
    compute(50_000)
    items.append(1)
    return len(items)


# Some milliseconds.
ROUNDS = 100_000


def test_before_any_work_there_is_no_decision_and_without_work_it_says_so(ex: plait.Executor) -> None:
    assert ex.decision is None
    assert list(ex.map(compute, [])) == []
    decision = decided(ex)
    assert (decision.model, decision.jobs, decision.final) == ("threads", 0, False)
    assert "nothing is known" in decision.reason


def test_python_that_computes_goes_to_processes(ex: plait.Executor) -> None:
    pids = list(ex.map(where, [ROUNDS] * 200))
    decision = decided(ex)
    assert decision.model == "processes", decision
    assert decision.final
    assert len(set(pids) - {os.getpid()}) >= 1
    assert decision.second_thread is not None
    assert decision.second_thread < 1.3
    assert decision.crossing is not None
    assert decision.crossing_bytes is not None
    assert "holds the GIL" in decision.reason
    assert f"{decision.second_thread:.2f} times as fast" in decision.reason
    assert decision.expected["processes"] > decision.expected["threads"]


def test_a_lambda_that_computes_goes_there_too(ex: plait.Executor) -> None:
    assert list(ex.map(lambda rounds: compute(rounds), [ROUNDS] * 60)) == [compute(ROUNDS)] * 60
    assert decided(ex).model == "processes", decided(ex)


def test_what_releases_the_gil_stays_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    if auto._cpus() < 2:
        pytest.skip("one CPU: a second thread cannot help")
    data = os.urandom(1 << 20)
    with plait.Executor() as ex:
        sizes = set(ex.map(lambda level: len(zlib.compress(data, level)), [6] * 60))
        assert len(sizes) == 1
        decision = decided(ex)
    # On a machine that is busy with other things a second thread may bring little, and processes then win.
    assert decision.model == "threads" or (decision.second_thread or 0) < 1.7, decision


def test_what_waits_gets_many_threads(ex: plait.Executor) -> None:
    assert list(ex.map(wait, [0.03] * 100)) == [0.03] * 100
    decision = decided(ex)
    assert decision.model == "threads"
    assert decision.workers > 8
    assert "wait at once in threads" in decision.reason
    assert ex.workers == decision.workers


def test_coroutines_that_wait_are_tasks(ex: plait.Executor) -> None:
    assert list(ex.map(wait_later, [0.03] * 100)) == [0.03] * 100
    decision = decided(ex)
    assert (decision.model, decision.workers) == ("tasks", 1000)
    assert "on the event loop" in decision.reason


def test_functions_that_return_coroutines_are_tasks(ex: plait.Executor) -> None:
    assert list(ex.map(lambda seconds: wait_later(seconds), [0.03] * 50)) == [0.03] * 50
    assert decided(ex).model == "tasks"


def test_coroutines_that_compute_go_to_processes(ex: plait.Executor) -> None:
    assert set(ex.map(compute_later, [ROUNDS] * 60)) == {compute(ROUNDS)}
    decision = decided(ex)
    assert decision.model == "processes", decision
    assert "holds up the event loop" in decision.reason


def test_what_is_shorter_than_its_hand_over_is_said_to_be(ex: plait.Executor) -> None:
    assert list(ex.map(abs, range(-500, 0))) == list(range(500, 0, -1))
    decision = decided(ex)
    assert decision.model == "threads"
    # On a busy machine even these can be seen to wait.
    assert "chunksize" in decision.reason or decision.wall >= 20e-6


@pytest.mark.parametrize("what", ["argument", "result", "function"])
def test_what_cannot_be_pickled_stays_in_threads(ex: plait.Executor, what: str) -> None:
    lock = threading.Lock()
    if what == "argument":
        results: list[Any] = list(ex.map(lambda rounds, lock: where(rounds), [ROUNDS] * 30, [lock] * 30))
    elif what == "result":
        results = [pid for pid, _ in ex.map(lambda rounds: (where(rounds), threading.Lock()), [ROUNDS] * 30)]
    else:
        results = list(ex.map(lambda rounds: (where(rounds), lock)[0], [ROUNDS] * 30))
    assert results == [os.getpid()] * 30
    decision = decided(ex)
    assert decision.model == "threads"
    assert decision.obstacle is not None
    assert what in decision.obstacle
    assert "lock" in decision.reason
    assert "processes" not in decision.expected


def test_jobs_that_change_their_arguments_stay_in_threads(ex: plait.Executor) -> None:
    lists: list[list[int]] = [[] for _ in range(40)]
    assert list(ex.map(append, lists)) == [1] * 40
    assert lists == [[1]] * 40
    assert "changes its arguments" in decided(ex).reason


def test_jobs_that_change_their_closure_stay_in_threads(ex: plait.Executor) -> None:
    seen: list[int] = []

    def note(x: int) -> None:
        compute(ROUNDS)
        seen.append(x)

    list(ex.map(note, range(40)))
    assert sorted(seen) == list(range(40))
    assert "changes what it carries" in decided(ex).reason


def test_a_later_argument_that_cannot_be_pickled_runs_in_a_thread(ex: plait.Executor, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    futures = [ex.submit(compute_and_tell, ROUNDS, log, x) for x in range(60)]
    assert [future.result() for future in futures] == list(range(60))
    assert decided(ex).model == "processes", decided(ex)
    assert ex.submit(compute_and_tell, ROUNDS, log, 60, threading.Lock()).result() == 60
    assert ex.submit(compute_and_tell, ROUNDS, log, 61, _extra=threading.Lock()).result() == 61
    assert sorted(map(int, Path(log).read_text().split())) == list(range(62))


@pytest.mark.parametrize("rounds", [100, ROUNDS, 20 * ROUNDS])
def test_no_job_runs_twice_and_results_keep_their_order(
    ex: plait.Executor, tmp_path: Path, rounds: int
) -> None:
    log = tmp_path / "log"
    jobs = 15 if rounds > ROUNDS else 150
    names = list(ex.map(partial(compute_and_tell, rounds, str(log)), range(jobs)))
    assert names == list(range(jobs))
    counts = Counter(log.read_text().split())
    assert set(counts.values()) == {1}
    assert len(counts) == jobs


def test_submit_does_not_wait_for_what_is_measured(ex: plait.Executor) -> None:
    gate = threading.Event()
    futures = [ex.submit(gate.wait, 30) for _ in range(200)]
    assert not any(future.done() for future in futures)
    gate.set()
    assert all(future.result(30) for future in futures)


def test_jobs_that_wait_for_each_other_meet(ex: plait.Executor) -> None:
    barrier = threading.Barrier(4)
    futures = [ex.submit(barrier.wait, 30) for _ in range(4)]
    assert sorted(future.result(30) for future in futures) == [0, 1, 2, 3]


def test_one_job_at_a_time_is_never_held_for_company(ex: plait.Executor) -> None:
    for _ in range(12):
        assert ex.submit(compute, ROUNDS).result(30) == compute(ROUNDS)
    decision = decided(ex)
    assert decision.model == "threads"
    assert decision.jobs > 0
    assert "too little was seen" in decision.reason


def test_functions_are_judged_each_on_its_own(ex: plait.Executor) -> None:
    list(ex.map(compute, [ROUNDS] * 60))
    assert (decided(ex).function, decided(ex).model) == ("compute", "processes")
    list(ex.map(wait, [0.03] * 10))
    assert (decided(ex).function, decided(ex).model) == ("wait", "threads")
    list(ex.map(compute, [ROUNDS] * 3))
    assert (decided(ex).function, decided(ex).model) == ("compute", "processes")


def test_workers_asked_for_are_kept_to() -> None:
    now, most = 0, 0
    lock = threading.Lock()

    def count(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    with plait.Executor(workers=3) as ex:
        list(ex.map(count, range(60)))
        assert ex.workers == 3
        assert decided(ex).workers == 3
    assert most <= 3


def test_errors_of_the_first_jobs_arrive_like_any_others(ex: plait.Executor) -> None:
    futures = [ex.submit(divmod, 1, x) for x in (0, 1, 2)]
    with pytest.raises(ZeroDivisionError):
        futures[0].result()
    assert [future.result() for future in futures[1:]] == [(1, 0), (0, 1)]
    with pytest.raises(plait.TaskTimeout, match="slow one"):
        ex.options(timeout=0.05, name="slow one").submit(wait, 0.5).result()


def test_held_jobs_keep_their_context(ex: plait.Executor) -> None:
    user: ContextVar[str] = ContextVar("user")
    gate = threading.Event()

    def name() -> str:
        gate.wait(30)
        return user.get()

    futures = []
    for who in ("ada", "grace", "edsger", "barbara"):
        user.set(who)
        futures.append(ex.submit(name))
    user.set("nobody")
    gate.set()
    assert [future.result(30) for future in futures] == ["ada", "grace", "edsger", "barbara"]


def test_held_jobs_can_be_cancelled(ex: plait.Executor) -> None:
    gate = threading.Event()
    first = ex.submit(gate.wait, 30)
    held = [ex.submit(gate.wait, 30) for _ in range(2000)]
    assert held[-1].cancel()
    assert held[-1].cancelled()
    gate.set()
    assert first.result(30)
    assert all(future.result(30) for future in held[:-1])


def test_shutdown_sees_held_jobs_through_or_cancels_them() -> None:
    for wait_for_it in (True, False):
        ex = plait.Executor()
        futures = [ex.submit(compute, ROUNDS) for _ in range(30)]
        ex.shutdown(wait=wait_for_it)
        assert {future.result(30) for future in futures} == {compute(ROUNDS)}
    ex = plait.Executor()
    futures = [ex.submit(compute, ROUNDS) for _ in range(300)]
    ex.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert futures[-1].cancelled()


def test_held_jobs_hear_of_a_pool_that_cannot_be_made(
    ex: plait.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise MemoryError("no room for a pool")

    monkeypatch.setattr(auto.AutoPool, "straight_to", refuse)
    futures = [ex.submit(wait, 0.03) for _ in range(20)]
    ended = [future.exception(30) for future in futures]
    assert ended[0] is None
    assert isinstance(ended[-1], MemoryError)


def test_many_functions_do_not_pile_up(ex: plait.Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_KNOWN_FUNCTIONS", 3)
    for base in range(2, 12):
        function = eval(f"lambda x: x + {base}")
        function.__qualname__ = f"add{base}"
        assert ex.submit(function, 1).result(30) == 1 + base
    assert len(ex._pool._routes) == 3  # type: ignore[attr-defined]


def test_a_decision_is_plain_data(ex: plait.Executor) -> None:
    list(ex.map(compute, [ROUNDS] * 10))
    decision = decided(ex)
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.model = "threads"  # type: ignore[misc]
    assert 0 < decision.cpu <= 1.2 * decision.wall
    assert decision.reason.count("\n") == 0


def test_a_second_thread_is_judged_by_cpu_time_and_not_by_finished_jobs() -> None:
    def judge(*jobs: tuple[float, float, float], busy: float = 1.0) -> float | None:
        return gain([Reading(began, until, cpu, 0.0) for began, until, cpu in jobs], busy)

    # Two that compute side by side, whole; two that take turns; two of very different lengths.
    assert judge((0, 1, 1.0), (0, 1, 1.0)) == pytest.approx(2.0)
    assert judge((0, 2, 1.0), (0, 2, 1.0)) == pytest.approx(1.0)
    assert judge((0, 1, 1.0), (0, 3, 3.0)) == pytest.approx(2.0)
    assert judge((0, 2, 1.0), (0, 4, 3.0)) == pytest.approx(1.0)
    # The second thread got the GIL when the first one was done: that says as much.
    assert judge((0, 1, 1.0), (1, 2, 1.0)) == pytest.approx(1.0)
    # Half of the time they wait, and do so side by side.
    assert judge((0, 1, 0.5), (0, 1, 0.5), busy=0.5) == pytest.approx(2.0)
    # Threads that only get into each other's way; a job that is most of it all; nothing to compare.
    assert judge((0, 3, 1.0), (0, 3, 1.0)) == 0.5
    assert judge((0, 9, 9.0), (0, 1, 1.0)) is None
    assert judge((0, 1, 1.0)) is None
    assert judge((0, 1, 0.0), (0, 1, 0.0)) is None


def test_functions_that_do_the_same_are_known_by_one_key() -> None:
    def make(x: int) -> Any:
        return lambda: x

    assert auto._key(make(1)) == auto._key(make(2))
    assert auto._key(compute) != auto._key(where)
    assert auto._key(partial(compute, 1)) == auto._key(partial(compute, 2))
    assert auto._key(Chunk(compute, auto.DEFAULT_OPTIONS)) != auto._key(Chunk(where, auto.DEFAULT_OPTIONS))
    assert auto._key("a".upper) == auto._key("b".upper)
    assert auto._key([].append) != auto._key("b".upper)
