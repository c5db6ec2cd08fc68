"""Deadlines and cancelling under `processes`: a job that runs is interrupted, cleans up, and ends once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import plait
from plait._job import JobOptions
from plait.futures import ProcessPoolExecutor
from plait.process_pool import ProcessPool

LONG = 60.0
"""Seconds that no job here gets to sleep, and that no test may take."""


def wait_for(path: Path) -> None:
    """Wait until a job has written there."""
    deadline = time.monotonic() + LONG
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"nobody has written {path.name}"
        time.sleep(0.002)


def own_pid() -> int:
    """Which worker this is."""
    return os.getpid()


def nap(started: Path, ended: Path) -> None:
    """Sleep, and say how that ended."""
    try:
        started.write_text("yes")
        time.sleep(LONG)
    except BaseException as error:
        ended.write_text(type(error).__name__)
        raise


def spin(started: Path, ended: Path) -> None:
    """Work without a pause, and clean up."""
    try:
        started.write_text("yes")
        while True:
            pass
    finally:
        time.sleep(0.05)
        ended.write_text("TaskCancelled")


def wait_on_a_lock(started: Path, ended: Path) -> None:
    """Wait for what never comes."""
    try:
        started.write_text("yes")
        threading.Event().wait()
    except BaseException as error:
        ended.write_text(type(error).__name__)
        raise


async def doze(started: Path, ended: Path) -> None:
    """Sleep as a coroutine does."""
    try:
        started.write_text("yes")
        await asyncio.sleep(LONG)
    except BaseException as error:
        ended.write_text(type(error).__name__)
        raise


def swallow(started: Path, _ended: Path) -> None:
    """Heed nothing."""
    started.write_text("yes")
    while True:
        try:
            time.sleep(LONG)
        except BaseException:
            continue


def deaf(started: Path, _ended: Path) -> None:
    """Be in a loop in C that lets nobody in."""
    started.write_text("yes")
    deque(itertools.repeat(None), maxlen=0)


def blocks_signals(started: Path, _ended: Path) -> None:
    """Let no signal come through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    started.write_text("yes")
    time.sleep(LONG)


HEEDING = [nap, spin, wait_on_a_lock, doze]
HEEDLESS = [swallow, deaf, blocks_signals]


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    """One worker, and little patience."""
    pool = ProcessPool(1, cancel_grace=LONG)
    yield pool
    pool.terminate()


def warm(pool: ProcessPool) -> None:
    """Have every worker import this module, which takes longer than some timeouts here."""
    for future in [pool.submit(time.sleep, (0.05,), {}), pool.submit(time.sleep, (0.05,), {})]:
        future.result(LONG)
    for future in [pool.submit(work, (0.05,), {}) for _ in range(4)]:
        future.result(LONG)


def call(pool: ProcessPool, fn: Callable[..., Any], *args: Any) -> Any:
    """Run one job."""
    return pool.submit(fn, args, {}).result(LONG)


@pytest.mark.parametrize("job", HEEDING)
def test_a_running_job_that_is_cancelled_cleans_up_and_its_worker_goes_on(
    pool: ProcessPool, tmp_path: Path, job: Callable[..., Any]
) -> None:
    pid = call(pool, own_pid)
    future = pool.submit(job, (tmp_path / "started", tmp_path / "ended"), {})
    wait_for(tmp_path / "started")
    assert future.running()
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result(0)
    assert future.cancel(), "again makes no difference"
    assert call(pool, own_pid) == pid
    expected = "CancelledError" if job is doze else "TaskCancelled"
    assert (tmp_path / "ended").read_text() == expected


@pytest.mark.parametrize("job", HEEDING)
def test_a_job_past_its_deadline_cleans_up_and_its_worker_goes_on(
    pool: ProcessPool, tmp_path: Path, job: Callable[..., Any]
) -> None:
    pid = call(pool, own_pid)
    options = JobOptions(timeout=0.3, name="the job")
    future = pool.submit(job, (tmp_path / "started", tmp_path / "ended"), {}, options)
    with pytest.raises(plait.TaskTimeout, match=r"the job ran for longer than its timeout of 0\.3 s"):
        future.result(LONG)
    assert not future.cancel()
    assert call(pool, own_pid) == pid
    assert (tmp_path / "ended").read_text()


@pytest.mark.parametrize("job", HEEDLESS)
def test_a_job_that_does_not_heed_it_costs_its_worker_and_nothing_else(
    tmp_path: Path, job: Callable[..., Any]
) -> None:
    pool = ProcessPool(1, cancel_grace=0.1)
    try:
        pid = call(pool, own_pid)
        future = pool.submit(job, (tmp_path / "started", tmp_path / "ended"), {})
        others = [pool.submit(own_pid, (), {}) for _ in range(20)]
        wait_for(tmp_path / "started")
        assert future.cancel()
        assert future.cancelled()
        assert {other.result(LONG) for other in others}.isdisjoint({pid})
    finally:
        pool.shutdown()


def test_a_grace_of_nothing_kills_at_once(tmp_path: Path) -> None:
    pool = ProcessPool(1, cancel_grace=0)
    try:
        pid = call(pool, own_pid)
        options = JobOptions(timeout=0.05)
        future = pool.submit(swallow, (tmp_path / "started", tmp_path / "ended"), {}, options)
        assert isinstance(future.exception(LONG), plait.TaskTimeout)
        assert call(pool, own_pid) != pid
    finally:
        pool.shutdown()


def log_and_nap(log: Path) -> None:
    """Say when it begins and when it ends."""
    with log.open("a") as file:
        try:
            print("begun", file=file, flush=True)
            time.sleep(LONG)
        finally:
            time.sleep(0.05)
            print("ended", file=file, flush=True)


def test_a_retry_begins_when_the_run_before_it_is_over(tmp_path: Path) -> None:
    pool = ProcessPool(2)
    log = tmp_path / "log"
    try:
        warm(pool)
        future = pool.submit(log_and_nap, (log,), {}, JobOptions(timeout=0.2, retries=2))
        assert isinstance(future.exception(LONG), plait.TaskTimeout)
    finally:
        pool.shutdown()
    assert log.read_text().split() == ["begun", "ended"] * 3


def test_a_retry_that_waits_for_the_end_of_the_run_before_it_can_be_cancelled(tmp_path: Path) -> None:
    pool = ProcessPool(2, cancel_grace=LONG)
    started, release = tmp_path / "started", tmp_path / "release"
    try:
        warm(pool)
        future = pool.submit(linger, (started, release), {}, JobOptions(timeout=0.1, retries=5))
        wait_for(started)
        time.sleep(0.3)
        assert not future.done(), "it is to run again"
        assert future.cancel()
        assert future.cancelled()
        release.write_text("now")
    finally:
        pool.shutdown()
    assert started.read_text() == "x"


def linger(started: Path, release: Path) -> None:
    """Take a while to clean up."""
    try:
        with started.open("a") as file:
            file.write("x")
        time.sleep(LONG)
    finally:
        wait_for(release)


def test_a_job_that_was_sent_and_has_not_begun_is_cancelled_without_an_interrupt(
    pool: ProcessPool, tmp_path: Path
) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    first = pool.submit(announce_and_wait, (started, release), {})
    second = pool.submit(Path.write_text, (tmp_path / "second", "ran"), {})
    third = pool.submit(own_pid, (), {})
    wait_for(started)
    assert second.cancel()
    assert second.cancelled()
    release.write_text("now")
    assert first.result(LONG) is None
    assert third.result(LONG) > 0
    assert not (tmp_path / "second").exists()


def announce_and_wait(started: Path, release: Path) -> None:
    """Run until the test says so."""
    started.write_text("yes")
    wait_for(release)


def test_a_job_that_catches_the_interrupt_and_returns_is_cancelled_all_the_same(
    pool: ProcessPool, tmp_path: Path
) -> None:
    future = pool.submit(return_anyway, (tmp_path / "started",), {})
    wait_for(tmp_path / "started")
    assert future.cancel()
    assert call(pool, own_pid) > 0
    assert future.cancelled()


def return_anyway(started: Path) -> str:
    """Make a value of it."""
    try:
        started.write_text("yes")
        time.sleep(LONG)
    except plait.TaskCancelled:
        return "value"
    return "late"


def test_an_interrupt_while_a_function_is_unpickled_says_nothing_about_the_function(
    pool: ProcessPool, tmp_path: Path
) -> None:
    function = SlowToLoad(tmp_path / "started")
    future = pool.submit(function, (), {})
    wait_for(tmp_path / "started")
    assert future.cancel()
    (tmp_path / "quick").write_text("yes")
    assert call(pool, function) == "loaded"


class SlowToLoad:
    """A function whose unpickling takes for ever, once."""

    def __init__(self, started: Path) -> None:
        self.started = started

    def __call__(self) -> str:
        return "loaded"

    def __setstate__(self, state: dict[str, Path]) -> None:
        vars(self).update(state)
        self.started.write_text("yes")
        if not self.started.with_name("quick").exists():
            time.sleep(LONG)


def test_the_loop_of_coroutines_outlives_an_interrupt(pool: ProcessPool, tmp_path: Path) -> None:
    loop = call(pool, loop_id)
    future = pool.submit(doze, (tmp_path / "started", tmp_path / "ended"), {})
    wait_for(tmp_path / "started")
    assert future.cancel()
    assert call(pool, loop_id) == loop


async def loop_id() -> int:
    """Which loop this is."""
    return id(asyncio.get_running_loop())


def test_a_coroutine_of_a_hybrid_is_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    with plait.Executor("hybrid", workers=1, width=8, cancel_grace=LONG) as executor:
        pid = executor.submit(own_pid).result(LONG)
        started, ended = tmp_path / "started", tmp_path / "ended"
        other = executor.submit(shorter_doze, tmp_path / "other")
        cancelled = executor.submit(doze, started, ended)
        late = executor.options(timeout=0.3).submit(doze, tmp_path / "late", tmp_path / "late ended")
        wait_for(started)
        assert cancelled.cancel()
        wait_for(ended)
        assert isinstance(late.exception(LONG), plait.TaskTimeout)
        wait_for(tmp_path / "late ended")
        assert not other.done()
        (tmp_path / "other").write_text("go on")
        assert other.result(LONG) == "done"
        assert executor.submit(own_pid).result(LONG) == pid
    assert ended.read_text() == "CancelledError"


async def shorter_doze(release: Path) -> str:
    """Run until the test says so."""
    while not release.exists():
        await asyncio.sleep(0.005)
    return "done"


def test_a_thread_of_a_hybrid_that_does_not_end_lets_the_others_end_first(tmp_path: Path) -> None:
    with plait.Executor("hybrid", workers=1, width=8, cancel_grace=0.3) as executor:
        pid = executor.submit(own_pid).result(LONG)
        other = executor.submit(shorter_doze, tmp_path / "other")
        stuck = executor.submit(nap, tmp_path / "started", tmp_path / "ended")
        wait_for(tmp_path / "started")
        assert stuck.cancel()
        time.sleep(0.5)
        assert not other.done()
        (tmp_path / "other").write_text("go on")
        assert other.result(LONG) == "done"
        assert executor.submit(own_pid).result(LONG) != pid


def test_the_standard_executor_keeps_to_the_standard(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as executor:
        started, release = tmp_path / "started", tmp_path / "release"
        future = executor.submit(announce_and_wait, started, release)
        wait_for(started)
        assert not future.cancel()
        release.write_text("now")
        assert future.result(LONG) is None


def test_cancelling_the_wait_in_an_event_loop_cancels_the_job(tmp_path: Path) -> None:
    async def main() -> None:
        with plait.Executor("processes", workers=1) as executor:
            await executor.submit(own_pid)
            job = executor.submit(nap, tmp_path / "started", tmp_path / "ended")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(job, 0.3)
            assert job.cancelled()

    asyncio.run(main())
    assert (tmp_path / "ended").read_text() == "TaskCancelled"


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_leaving_a_map_early_interrupts_what_runs_and_keeps_the_workers(
    tmp_path: Path, how: str, ordered: bool
) -> None:
    with plait.Executor("processes", workers=2) as executor:
        pool: Any = executor._pool
        warm(pool)
        pids = set(pool.statistics()["workers"])
        assert len(pids) == 2
        results = executor.map(first_or_nap, [(tmp_path, at) for at in range(100)], ordered=ordered)
        assert next(results) == 0
        wait_for(tmp_path / "sleeps")
        if how == "close":
            results.close()  # type: ignore[attr-defined]
        elif how == "error":
            with pytest.raises(TimeoutError):
                for _ in executor.map(first_or_nap, [(tmp_path, 1)], timeout=0.1):
                    pass
            del results
        else:
            del results
        warm(pool)
        assert set(pool.statistics()["workers"]) == pids


def first_or_nap(item: tuple[Path, int]) -> int:
    """The first is quick."""
    folder, at = item
    if at:
        (folder / "sleeps").write_text("yes")
        time.sleep(LONG)
    return at


@pytest.mark.parametrize("job", [nap, swallow])
def test_a_with_block_that_is_left_by_ctrl_c_cancels_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Callable[..., Any]
) -> None:
    if job is nap:  # A machine that is busy with other things may take longer than half a second.
        monkeypatch.setattr("plait.process_pool._LONGEST_CANCEL", LONG)
    started, ended = tmp_path / "started", tmp_path / "ended"
    futures: list[plait.Future[Any]] = []

    def leave_early() -> None:
        with plait.Executor("processes", workers=1, cancel_grace=LONG) as executor:
            futures.append(executor.submit(job, started, ended))
            futures.extend(executor.submit(nap, tmp_path / "x", tmp_path / "y") for _ in range(5))
            wait_for(started)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_early()
    assert not concurrent.futures.wait(futures, timeout=LONG).not_done
    assert all(future.cancelled() for future in futures)
    assert ended.exists() == (job is nap)


def test_shutdown_with_cancel_futures_is_bounded_by_the_deadlines_of_what_runs(tmp_path: Path) -> None:
    executor = plait.Executor("processes", workers=1, cancel_grace=0.1)
    executor.submit(own_pid).result(LONG)
    running = executor.options(timeout=0.2).submit(swallow, tmp_path / "started", tmp_path / "ended")
    waiting = [executor.submit(own_pid) for _ in range(300)]
    wait_for(tmp_path / "started")
    executor.shutdown(cancel_futures=True)
    assert isinstance(running.exception(0), plait.TaskTimeout)
    assert all(future.done() for future in waiting)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_grace_that_makes_no_sense_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="cancel_grace must be"):
        plait.Executor("processes", cancel_grace=value)
    with pytest.raises(ValueError, match="cancel_grace must be"):
        ProcessPool(1, cancel_grace=value)


def work(seconds: float) -> float:
    """Take about so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass
    return seconds


def test_every_future_ends_once_whatever_races() -> None:
    """Cancels, deadlines, answers and deaths at the same moment: each future has one outcome and keeps it."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    pool = ProcessPool(2, cancel_grace=0.05)
    ended: list[plait.Future[Any]] = []
    lock = threading.Lock()

    def count(future: plait.Future[Any]) -> None:
        with lock:
            ended.append(future)

    futures = []
    cancelled = []
    try:
        warm(pool)
        for at in range(400):
            seconds = chance.choice([0, 0.0005, 0.002])
            options = JobOptions(
                timeout=chance.choice([None, 0.001, 0.002, 0.01]), retries=chance.choice([0, 0, 2])
            )
            fn = os._exit if at % 40 == 7 else work
            future = pool.submit(fn, (seconds if fn is work else 3,), {}, options)
            future.add_done_callback(count)
            futures.append(future)
            if chance.random() < 0.5:
                time.sleep(chance.choice([0, 0.0003, 0.001, 0.003]))
                victim = chance.choice(futures[-5:])
                done = victim.done()
                if victim.cancel():
                    assert not done or victim in cancelled
                    assert victim.cancelled()
                    cancelled.append(victim)
        for future in futures:
            try:
                value = future.result(LONG)
            except (CancelledError, plait.TaskTimeout, plait.WorkerDied):
                continue
            assert value in (0, 0.0005, 0.002)
        assert all(future.cancelled() for future in cancelled)
    finally:
        pool.shutdown()
    assert sorted(map(id, ended)) == sorted(map(id, futures))
    statistics = pool.statistics()
    assert [statistics[key] for key in ("jobs", "pending", "workers", "blocks")] == [0, 0, [], 0]


def workers_of(pool: ProcessPool) -> set[int]:
    """The processes that the pool has."""
    return set(pool.statistics()["workers"])


def eventually(what: str, holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_workers_without_jobs_leave_and_others_come_when_they_are_needed() -> None:
    pool = ProcessPool(2, idle_timeout=0.3)
    try:
        warm(pool)
        assert len(workers_of(pool)) == 2
        eventually("idle workers stay", lambda: not workers_of(pool))
        assert call(pool, own_pid) > 0
        # One that has a job does not leave, however long that takes.
        pid = pool.submit(work, (1.0,), {})
        assert pid.result(LONG) == 1.0
    finally:
        pool.shutdown()


def test_a_worker_that_is_asked_now_and_then_stays() -> None:
    pool = ProcessPool(1, idle_timeout=2)
    try:
        pids = set()
        for _ in range(12):
            pids.add(call(pool, own_pid))
            time.sleep(0.3)
        assert len(pids) == 1
    finally:
        pool.shutdown()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"idle_timeout": -1}, "idle_timeout must be at least 0 seconds, not -1"),
        ({"max_memory_per_worker": 0}, "max_memory_per_worker must be at least 1, not 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        plait.Executor("processes", **options)


def test_limits_of_processes_are_not_for_threads() -> None:
    with pytest.raises(TypeError, match="no option 'cancel_grace'"):
        plait.Executor("threads", cancel_grace=1)


HOARD: list[bytes] = []


def hoard(size: int) -> int:
    """Keep some memory for ever."""
    HOARD.append(b"x" * size)
    return os.getpid()


def test_a_worker_that_has_grown_too_large_is_replaced_between_jobs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = ProcessPool(1, max_memory_per_worker=150 << 20)
    try:
        small = {pool.submit(hoard, (1000,), {}).result(LONG) for _ in range(30)}
        assert len(small) == 1, "a worker that stays within its limit stays"
        for _ in range(3):
            (pid,) = {pool.submit(hoard, (200 << 20,), {}).result(LONG)}
            # Between its answer and its word about its size it may be given a few jobs more.
            eventually("a large worker stays", lambda pid=pid: call(pool, own_pid) != pid)  # type: ignore[misc]
        futures = [pool.submit(hoard, (40 << 20,), {}) for _ in range(20)]
        pids = [future.result(LONG) for future in futures]
        assert len(set(pids)) > 1
    finally:
        pool.shutdown()
    told = [record for record in caplog.records if record.name == "plait"]
    assert len(told) == 1
    assert "max_memory_per_worker=157286400" in told[0].getMessage()


def scratch(size: int) -> int:
    """Use some memory for a moment."""
    assert len(bytearray(b"x") * size) == size
    return os.getpid()


def own_bytes(pid: int) -> int:
    """The memory a process has for itself."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "RssAnon" in line)
    return int(line.split()[1]) << 10


def test_memory_that_a_worker_keeps_for_the_next_job_does_not_count_and_is_given_back() -> None:
    pool = ProcessPool(1, max_memory_per_worker=150 << 20)
    try:
        pids = {call(pool, own_pid)}
        for _ in range(5):
            pids.add(pool.submit(scratch, (200 << 20,), {}).result(LONG))
            time.sleep(0.03)
        assert len(pids) == 1
        pool.submit(scratch, (100 << 20,), {}).result(LONG)
        eventually("an idle worker keeps memory", lambda: own_bytes(*pids) < 100 << 20)
    finally:
        pool.shutdown()


def test_what_is_shared_does_not_count_as_a_workers_memory() -> None:
    pool = ProcessPool(1, max_memory_per_worker=150 << 20)
    try:
        pids = {call(pool, own_pid)}
        for _ in range(5):
            assert pool.submit(len, (bytearray(100 << 20),), {}).result(LONG) == 100 << 20
            time.sleep(0.03)
            pids.add(call(pool, own_pid))
        assert len(pids) == 1
    finally:
        pool.shutdown()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


@pytest.mark.parametrize(
    ("how", "workers"),
    [("shutdown", "running"), ("terminate", "running"), ("terminate", "starting"), ("cancel", "starting")],
)
def test_a_zygote_that_is_stopped_does_not_block_the_end_of_a_pool(
    tmp_path: Path, how: str, workers: str
) -> None:
    before = set(children(os.getpid()))
    pool = ProcessPool(2)
    call(pool, own_pid)
    (zygote,) = set(children(os.getpid())) - before
    running = pool.submit(nap, (tmp_path / "started", tmp_path / "ended"), {})
    wait_for(tmp_path / "started")
    if how == "shutdown":
        assert running.cancel()
    os.kill(zygote, signal.SIGSTOP)
    waiting = []
    if workers == "starting":
        waiting = [pool.submit(own_pid, (), {}) for _ in range(4)]
    began = time.monotonic()
    getattr(pool, how)()
    assert time.monotonic() - began < LONG
    assert all(future.done() for future in [running, *waiting])
    assert zygote not in children(os.getpid())
