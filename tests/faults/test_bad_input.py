"""Jobs and values that mean ill, or know no better: each is the failure of one task."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from faults import jobs
from faults.leftovers import is_alive, wait_until_gone
from plait._job import JobOptions
from plait.errors import ResultNotPicklable, TaskTimeout, WorkerDied
from plait.process_pool import ProcessPool


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    """Two workers."""
    pool = ProcessPool(2)
    yield pool
    pool.shutdown()


def failure(pool: ProcessPool, fn: Callable[..., Any], *args: Any, **options: Any) -> BaseException | None:
    """How one job fails."""
    return pool.submit(fn, args, {}, JobOptions(**options)).exception(60)


def works(pool: ProcessPool) -> None:
    """The pool does ordinary jobs, on all its workers."""
    futures = [pool.submit(jobs.double, (at,), {}) for at in range(300)]
    assert [future.result(60) for future in futures] == [2 * at for at in range(300)]


def test_files_that_take_the_numbers_of_our_descriptors_are_not_written_to(
    pool: ProcessPool, tmp_path: Path
) -> None:
    """As a program does that makes itself a daemon: closes every descriptor, then opens its log."""
    for at in range(4):
        folder = tmp_path / str(at)
        folder.mkdir()
        future = pool.submit(jobs.put_files_in_our_places, (folder,), {})
        assert wait([future], 60).done
        assert future.exception() is None or isinstance(future.exception(), WorkerDied)
        works(pool)
        assert {path.read_bytes() for path in folder.iterdir()} == {b"of the user"}


def test_a_job_that_uses_up_all_descriptors(pool: ProcessPool) -> None:
    counts = [pool.submit(jobs.use_up_descriptors, (), {}).result(60) for _ in range(4)]
    assert max(counts) > 0
    works(pool)
    # What needs descriptors then fails by itself, and alone.
    failed = [failure(pool, jobs.start_others) for _ in range(2)]
    assert all(error is None or isinstance(error, OSError) for error in failed)
    works(pool)


@pytest.mark.parametrize("how", ["ignore", "block", "default"])
def test_a_job_that_changes_what_signals_do(pool: ProcessPool, how: str) -> None:
    for _ in range(4):
        assert pool.submit(jobs.change_signals, (how,), {}).result(60) == how
    works(pool)
    assert isinstance(failure(pool, jobs.sleep_long, timeout=0.1), TaskTimeout)
    assert isinstance(failure(pool, jobs.spin_long, timeout=0.1), TaskTimeout)
    works(pool)


def test_a_job_that_stops_its_worker(pool: ProcessPool, tmp_path: Path) -> None:
    stopped = pool.submit(jobs.stop_itself, (tmp_path / "pid",), {}, JobOptions(timeout=1.0))
    works(pool)
    assert isinstance(stopped.exception(60), TaskTimeout)
    assert wait_until_gone({int((tmp_path / "pid").read_text())}) == set()
    works(pool)


def test_a_pool_with_a_stopped_worker_can_be_terminated(tmp_path: Path) -> None:
    pool = ProcessPool(1)
    stopped = pool.submit(jobs.stop_itself, (tmp_path / "pid",), {})
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    pool.terminate()
    assert isinstance(stopped.exception(0), WorkerDied)


def test_a_job_that_kills_the_zygote(pool: ProcessPool) -> None:
    for _ in range(2):
        assert isinstance(failure(pool, jobs.kill_parent), WorkerDied)
        works(pool)


def test_a_job_that_kills_the_other_workers(pool: ProcessPool, tmp_path: Path) -> None:
    victim = pool.submit(jobs.announce_and_wait_for, (tmp_path / "begun", tmp_path / "never"), {})
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert pool.submit(jobs.kill_siblings, (), {}).result(60) >= 1
    error = victim.exception(60)
    assert isinstance(error, WorkerDied)
    assert error.signal == signal.SIGKILL
    works(pool)


def test_a_job_that_has_itself_traced(pool: ProcessPool) -> None:
    """Then a signal stops it, and its parent does not expect to hear of that."""
    assert isinstance(failure(pool, jobs.be_traced, timeout=0.5), TaskTimeout)
    works(pool)


def test_a_job_that_leaves_threads_and_children(pool: ProcessPool, tmp_path: Path) -> None:
    for _ in range(3):
        assert pool.submit(jobs.leave_a_thread, (tmp_path / "never",), {}).result(60) >= 2
    orphan = pool.submit(jobs.leave_a_child, (), {}).result(60)
    works(pool)
    pool.shutdown()
    # A program that a job has started on purpose is its own business.
    assert is_alive(orphan)
    os.kill(orphan, signal.SIGKILL)


def test_an_import_that_is_interrupted_does_not_spoil_the_worker_for_others(tmp_path: Path) -> None:
    """Python forgets a package whose import is cut short, but not those of its modules that were done."""
    package = tmp_path / "interrupted"
    package.mkdir()
    (package / "_part.py").write_text("value = 5\n")
    (package / "__init__.py").write_text(
        "import pathlib, time\n"
        "from interrupted._part import *\n"
        "go = pathlib.Path(__file__).with_name('go')\n"
        "while not go.exists():\n"
        "    go.with_name('begun').touch()\n"
        "    time.sleep(0.01)\n"
        "value = _part.value\n"
    )
    pool = ProcessPool(1)
    try:
        works(pool)
        stuck = pool.submit(jobs.import_from, (tmp_path, "interrupted"), {})
        while not (package / "begun").exists():
            time.sleep(0.01)
        assert stuck.cancel()
        (package / "go").touch()
        assert pool.submit(jobs.import_from, (tmp_path, "interrupted"), {}).result(60) == 5
        works(pool)
    finally:
        pool.shutdown()


# Pickles.


@pytest.mark.parametrize("where", ["argument", "closure"])
def test_what_ends_the_worker_when_it_is_unpickled_there(pool: ProcessPool, where: str) -> None:
    trap = jobs.OnLoad(os._exit, 7)
    before = [pool.submit(jobs.double, (at,), {}) for at in range(20)]
    for _ in range(3):
        doomed = failure(pool, jobs.double, trap) if where == "argument" else failure(pool, lambda: trap)
        assert isinstance(doomed, WorkerDied)
        assert doomed.exitcode == 7
    assert [future.result(60) for future in before] == [2 * at for at in range(20)]
    works(pool)


@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        (jobs.OnLoad(int, "no number"), ValueError),
        (jobs.OnLoad(jobs.raise_it, KeyboardInterrupt()), KeyboardInterrupt),
        (jobs.OnLoad(jobs.raise_it, SystemExit(3)), SystemExit),
        (jobs.OnLoad(jobs.raise_it, jobs.Odd()), jobs.Odd),
        (jobs.Reduced(5), ResultNotPicklable),
        (jobs.Reduced(()), ResultNotPicklable),
        (jobs.Reduced((int, 5)), ResultNotPicklable),
        (jobs.Reduced("no_such_name"), ResultNotPicklable),
    ],
    ids=str,
)
def test_a_result_whose_pickle_lies(pool: ProcessPool, lie: Any, kind: type[BaseException]) -> None:
    # By way of a list: as an argument it would be the submission that fails.
    assert type(failure(pool, jobs.make, type(lie), lie.__dict__)) is kind
    works(pool)


@pytest.mark.parametrize(
    "how", ["not an exception", "raises", "exits", "interrupts", "nonsense", "odd", "str"]
)
def test_an_exception_whose_pickle_lies(pool: ProcessPool, how: str) -> None:
    error = failure(pool, jobs.raise_liar, how)
    if how == "str":
        assert isinstance(error, jobs.Liar)
    else:
        assert isinstance(error, ResultNotPicklable)
        assert "Liar" in str(error)
    works(pool)


def test_an_exception_of_a_class_of_its_own_below_base_exception(pool: ProcessPool) -> None:
    assert type(failure(pool, jobs.raise_it, jobs.Odd())) is jobs.Odd
    works(pool)


def test_an_argument_larger_than_memory_is_a_memory_error_of_its_task(pool: ProcessPool) -> None:
    try:
        error = failure(pool, len, jobs.Enormous())
    except MemoryError as refused:
        error = refused
    assert isinstance(error, MemoryError)
    works(pool)
    assert pool.statistics()["blocks"] == 0


def test_a_result_larger_than_memory_is_a_memory_error_of_its_task(pool: ProcessPool) -> None:
    assert isinstance(failure(pool, jobs.Enormous), MemoryError)
    works(pool)


def test_a_worker_that_may_have_no_more_memory(pool: ProcessPool) -> None:
    for _ in range(4):
        error = failure(pool, jobs.limit_memory, 8 << 20)
        assert error is None or isinstance(error, MemoryError | WorkerDied | ResultNotPicklable)
    # It stays as the job has left it: what it cannot do, fails, and nothing else does.
    for _ in range(20):
        error = failure(pool, bytes, 64 << 20)
        assert error is None or isinstance(error, MemoryError | WorkerDied | ResultNotPicklable)
    futures = [pool.submit(jobs.double, (at,), {}) for at in range(300)]
    for at, future in enumerate(futures):
        assert isinstance(future.exception(60), MemoryError | WorkerDied | None)
        assert future.exception() is not None or future.result() == 2 * at
