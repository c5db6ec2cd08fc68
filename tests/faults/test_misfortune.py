"""Jobs that kill, stop, blind or corrupt their worker: each costs one job, and the pool goes on."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from faults import jobs
from faults.leftovers import children, excess, holdings, is_alive, wait_until_gone
from plait._job import JobOptions
from plait.errors import TaskTimeout, WorkerDied
from plait.process_pool import ProcessPool


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    """Two workers."""
    pool = ProcessPool(2)
    yield pool
    pool.shutdown()


def call(pool: ProcessPool, fn: Callable[..., Any], *args: Any) -> Any:
    """Run one job."""
    return pool.submit(fn, args, {}).result(60)


def works(pool: ProcessPool) -> None:
    """The pool does ordinary jobs, on all its workers."""
    futures = [pool.submit(jobs.double, (at,), {}) for at in range(300)]
    assert [future.result(60) for future in futures] == [2 * at for at in range(300)]


def wait_until(condition: Callable[[], bool], what: str, limit: float = 30) -> None:
    """Look again and again."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not come true"
        time.sleep(0.002)


ENDS: dict[str, tuple[int | None, int | None]] = {
    "exit": (17, None),
    "segfault": (None, signal.SIGSEGV),
    "abort": (None, signal.SIGABRT),
    "SIGKILL": (None, signal.SIGKILL),
    "SIGTERM": (None, signal.SIGTERM),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_job_that_ends_its_worker_fails_alone(pool: ProcessPool, how: str) -> None:
    before = [pool.submit(jobs.double, (at,), {}) for at in range(20)]
    dying = pool.submit(jobs.die, (how,), {}, JobOptions(name="the doomed"))
    after = [pool.submit(jobs.double, (at,), {}) for at in range(20)]
    error = dying.exception(60)
    assert isinstance(error, WorkerDied)
    assert (error.exitcode, error.signal) == ENDS[how]
    assert error.job == "the doomed"
    assert "the doomed" in str(error)
    assert not is_alive(error.pid)
    for futures in (before, after):
        assert [future.result(60) for future in futures] == [2 * at for at in range(20)]
    works(pool)


def test_a_job_that_kills_every_worker_is_run_once_and_once_for_each_retry(
    pool: ProcessPool, tmp_path: Path
) -> None:
    for retries in (0, 2):
        log = tmp_path / f"log-{retries}"
        future = pool.submit(jobs.mark_and_die, (log, "exit"), {}, JobOptions(retries=retries))
        assert isinstance(future.exception(60), WorkerDied)
        assert len(log.read_text().split()) == retries + 1
    works(pool)


def test_what_waits_behind_a_job_that_dies_is_run_once(tmp_path: Path) -> None:
    """Jobs that were sent ahead to a worker that dies are run elsewhere, without using up a retry."""
    pool = ProcessPool(1)
    try:
        works(pool)  # short jobs, so that many are sent ahead
        dying = pool.submit(jobs.die, ("SIGKILL",), {})
        log = tmp_path / "log"
        futures = [pool.submit(jobs.leave_mark, (log,), {}) for _ in range(80)]
        assert isinstance(dying.exception(60), WorkerDied)
        assert all(future.exception(60) is None for future in futures)
        assert len(log.read_text().split()) == 80
    finally:
        pool.shutdown()


def test_a_stopped_worker_delays_its_own_job_only(pool: ProcessPool, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    stuck = pool.submit(jobs.announce_and_wait_for, (begun, go), {})
    wait_until(begun.exists, "the job begins")
    pid = int(next(tmp_path.glob("begun-*")).name.partition("-")[2])
    os.kill(pid, signal.SIGSTOP)
    try:
        go.touch()
        works(pool)
        assert not stuck.done()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert stuck.result(60) == pid
    works(pool)


def test_a_stopped_worker_can_be_overdue(pool: ProcessPool, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    stuck = pool.submit(jobs.announce_and_wait_for, (begun, go), {}, JobOptions(timeout=0.5))
    wait_until(begun.exists, "the job begins")
    pid = int(next(tmp_path.glob("begun-*")).name.partition("-")[2])
    os.kill(pid, signal.SIGSTOP)
    assert isinstance(stuck.exception(60), TaskTimeout)
    assert wait_until_gone({pid}) == set()
    works(pool)


def test_a_job_that_closes_every_descriptor(pool: ProcessPool) -> None:
    for _ in range(3):
        future = pool.submit(jobs.close_everything, (), {})
        assert wait([future], 60).done
        assert future.exception() is None or isinstance(future.exception(), WorkerDied)
        works(pool)


@pytest.mark.parametrize("where", ["control", "rings", "all", "word", "bells", "zeros", "ones"])
def test_a_job_that_scribbles_over_its_own_lane(
    pool: ProcessPool, tmp_path: Path, seed: int, where: str
) -> None:
    log = tmp_path / "log"
    for at in range(6):
        future = pool.submit(jobs.scribble, (seed + at, where, log), {})
        assert wait([future], 60).done, "nobody is told"
        assert future.exception() is None or isinstance(future.exception(), WorkerDied)
        assert len(log.read_text().split()) == at + 1, "it was run twice"
        works(pool)


def test_jobs_that_change_a_few_words_of_their_control_page(
    pool: ProcessPool, tmp_path: Path, seed: int
) -> None:
    log = tmp_path / "log"
    # The first two once were run again and again: what told that they had begun was what they spoiled.
    for at, chosen in enumerate([2_016, 508_032, *range(seed, seed + 40)], 1):
        future = pool.submit(jobs.scribble_here_and_there, (chosen, log), {})
        assert wait([future], 60).done, "nobody is told"
        assert len(log.read_text().split()) == at, "it was run twice"
        others = [pool.submit(jobs.double, (at,), {}) for at in range(40)]
        assert not wait(others, 60).not_done
        # A worker that has done damage may take one more job down with it: the one that it begins next.
        failed = [error for other in others if (error := other.exception()) is not None]
        assert all(isinstance(error, WorkerDied) for error in failed)
        assert len(failed) <= 1
    works(pool)


def zygote_of(pool: ProcessPool) -> int:
    """The process that the pool's workers were forked from."""
    call(pool, jobs.double, 1)
    worker = call(pool, os.getpid)
    stat = Path(f"/proc/{worker}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def test_the_death_of_the_zygote_costs_the_running_jobs(pool: ProcessPool, tmp_path: Path) -> None:
    zygote = zygote_of(pool)
    begun, go = tmp_path / "begun", tmp_path / "go"
    running = [pool.submit(jobs.announce_and_wait_for, (begun, go), {}) for _ in range(2)]
    log = tmp_path / "log"
    waiting = [pool.submit(jobs.leave_mark, (log,), {}) for _ in range(50)]
    wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2, "both jobs begin")
    os.kill(zygote, signal.SIGKILL)
    for future in running:
        assert isinstance(future.exception(60), WorkerDied)
    assert all(future.exception(60) is None for future in waiting)
    assert len(log.read_text().split()) == 50
    works(pool)
    assert zygote_of(pool) != zygote
    assert wait_until_gone({zygote}) == set()


def test_the_death_of_the_zygote_while_nothing_runs(pool: ProcessPool) -> None:
    for _ in range(20):
        zygote, workers = zygote_of(pool), set(pool.statistics()["workers"])
        os.kill(zygote, signal.SIGKILL)
        # Whether the pool has noticed by now must not matter, but a worker that is about to die with the
        # zygote may begin one more job.
        futures = [pool.submit(jobs.double, (at,), {}) for at in range(20)]
        failed = [error for future in futures if (error := future.exception(60)) is not None]
        assert all(isinstance(error, WorkerDied) for error in failed)
        assert len(failed) <= 2
        assert wait_until_gone(workers - {0}) == set()
        works(pool)


def test_a_zygote_that_is_killed_while_many_workers_start() -> None:
    """That is one misfortune, not one for each worker: the pool does not give up."""
    pool = ProcessPool(8)
    try:
        before = children(os.getpid())
        futures = [pool.submit(jobs.double, (at,), {}) for at in range(8)]
        wait_until(lambda: bool(children(os.getpid()) - before), "a zygote starts")
        for pid in children(os.getpid()) - before:
            os.kill(pid, signal.SIGKILL)
        assert not wait(futures, 60).not_done
        failed = [future.exception() for future in futures if future.exception() is not None]
        assert all(isinstance(error, WorkerDied) for error in failed)
        works(pool)
    finally:
        pool.shutdown()


def test_a_stopped_zygote_does_not_keep_a_pool_open() -> None:
    pool = ProcessPool(1)
    zygote = zygote_of(pool)
    workers = set(pool.statistics()["workers"])
    os.kill(zygote, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (zygote, signal.SIGCONT)).start()
    pool.shutdown()
    assert wait_until_gone({zygote, *workers}) == set()


@pytest.mark.parametrize("how", ["exit", "segfault", "SIGKILL"])
def test_workers_that_die_at_their_start_make_the_pool_unusable(how: str) -> None:
    before = children(os.getpid())
    pool = ProcessPool(2, initializer=jobs.refuse_to_start, initargs=(how,))
    try:
        futures = [pool.submit(jobs.double, (at,), {}) for at in range(10)]
        for future in futures:
            assert isinstance(future.exception(60), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool, match=r"no worker of the pool can be used: .*start"):
            pool.submit(jobs.double, (1,), {})
    finally:
        pool.shutdown()
    assert wait_until_gone(children(os.getpid()) - before) == set()


@pytest.mark.parametrize("how", ["raise", "sys.exit"])
def test_an_initializer_that_raises_makes_the_pool_unusable_and_is_quoted(how: str) -> None:
    pool = ProcessPool(2, initializer=jobs.refuse_to_start, initargs=(how,))
    try:
        futures = [pool.submit(jobs.double, (at,), {}) for at in range(10)]
        for future in futures:
            error = future.exception(60)
            assert isinstance(error, BrokenProcessPool)
            assert "in refuse_to_start" in str(error)
        with pytest.raises(BrokenProcessPool, match="in refuse_to_start"):
            pool.submit(jobs.double, (1,), {})
    finally:
        pool.shutdown()


def test_a_job_may_start_threads_and_programs(pool: ProcessPool, tmp_path: Path) -> None:
    assert call(pool, jobs.start_others) == ["thread", "program\n"]
    assert call(pool, jobs.leave_a_thread, tmp_path / "never") >= 2
    works(pool)


def test_the_child_of_a_job_that_forks_does_not_answer_for_it(pool: ProcessPool) -> None:
    for _ in range(3):
        assert call(pool, jobs.fork_and_return) == ("parent", 0)
        assert call(pool, jobs.fork_and_raise) == 1
        works(pool)


def test_pools_nest(pool: ProcessPool) -> None:
    assert call(pool, jobs.nest, 2, 10) == 13
    assert call(pool, jobs.use_multiprocessing, 5) == 20


def test_exactly_the_overdue_jobs_fail_under_load(pool: ProcessPool, seed: int) -> None:
    chance = random.Random(seed)
    futures = []
    for at in range(300):
        if chance.random() < 0.04:
            futures.append((None, pool.submit(jobs.sleep_long, (), {}, JobOptions(timeout=0.05))))
        else:
            seconds = chance.choice([0, 0, 0.001, 0.003])
            options = JobOptions(timeout=chance.choice([None, 20.0]))
            futures.append((at, pool.submit(jobs.take, (seconds, at), {}, options)))
    for expected, future in futures:
        if expected is None:
            error = future.exception(60)
            assert isinstance(error, TaskTimeout)
            assert error.timeout == 0.05
            assert "0.05" in str(error)
        else:
            assert future.result(60) == expected
    works(pool)


def test_a_timeout_reaches_a_job_that_never_waits(pool: ProcessPool) -> None:
    spinning = pool.submit(jobs.spin_long, (), {}, JobOptions(timeout=0.1, retries=1))
    assert isinstance(spinning.exception(60), TaskTimeout)
    works(pool)


@pytest.mark.parametrize("timeout", [0, 1e-9])
def test_a_timeout_too_short_for_anything(pool: ProcessPool, timeout: float) -> None:
    futures = [pool.submit(jobs.take, (0.05, at), {}, JobOptions(timeout=timeout)) for at in range(5)]
    for future in futures:
        assert isinstance(future.exception(60), TaskTimeout)
    works(pool)


def test_a_timeout_that_is_no_time_is_refused(pool: ProcessPool) -> None:
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            pool.submit(jobs.double, (1,), {}, JobOptions(timeout=timeout)).result(60)
    assert pool.submit(jobs.double, (1,), {}, JobOptions(timeout=float("inf"))).result(60) == 2
    assert pool.submit(jobs.double, (1,), {}, JobOptions(timeout=1e300)).result(60) == 2


def test_terminate_ends_running_jobs_and_cancels_the_others(pool: ProcessPool, tmp_path: Path) -> None:
    begun, never = tmp_path / "begun", tmp_path / "never"
    running = [pool.submit(jobs.announce_and_wait_for, (begun, never), {}) for _ in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2, "both jobs begin")
    waiting = [pool.submit(jobs.double, (at,), {}) for at in range(100)]
    pool.terminate()
    assert all(isinstance(future.exception(0), WorkerDied) for future in running)
    assert all(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError):
        pool.submit(jobs.double, (1,), {})


def test_two_hundred_pools_leave_nothing() -> None:
    """The fixture of this folder looks at what is left; this looks that it does not grow meanwhile."""
    pool = ProcessPool(1)
    call(pool, jobs.double, 1)
    pool.shutdown()
    before = holdings()
    for at in range(200):
        pool = ProcessPool(1)
        if at % 4 == 0:
            assert call(pool, jobs.double, at) == 2 * at
        pool.shutdown()
    assert excess(before) == {}


def test_a_pool_without_jobs_starts_nothing() -> None:
    before = children(os.getpid())
    pool = ProcessPool(4)
    assert pool.statistics() == {
        "jobs": 0,
        "pending": 0,
        "workers": [],
        "blocks": 0,
        "width": 1,
        "waited": 0.0,
    }
    assert children(os.getpid()) == before
    pool.shutdown()


def test_pools_are_used_and_shut_down_by_many_threads(seed: int) -> None:
    pool = ProcessPool(2)
    barrier = threading.Barrier(6)
    outcomes: list[str] = []

    def use(number: int) -> None:
        chance = random.Random(seed + number)
        barrier.wait()
        try:
            for at in range(100):
                assert pool.submit(jobs.double, (at,), {}).result(60) == 2 * at
                if number == 0 and at == 60:
                    pool.shutdown(wait=chance.random() < 0.5)
        except RuntimeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    pool.shutdown()
    assert outcomes
    assert all("after shutdown" in outcome for outcome in outcomes)
