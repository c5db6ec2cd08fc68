"""A worker is killed, or stopped and then given up on, at each step of the protocol.

Needs an extension with the feature `fault-hooks`: `make python-test` builds one and runs this file with it
in a second run.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from faults import jobs
from faults.leftovers import is_alive, wait_until_gone
from plait import Executor, _rust
from plait._job import JobOptions
from plait.errors import TaskTimeout, WorkerDied
from plait.process_pool import ProcessPool

VARIABLE = "PLAIT_FAULT_PLAN"

if VARIABLE.encode() not in Path(_rust.__file__).read_bytes():
    pytest.skip("this extension has no hooks: `make python-test` runs this with one", allow_module_level=True)

SOURCE = Path(__file__).resolve().parents[2] / "crates/engine/src/process_pool/fault.rs"
STEPS = re.findall(r'\("(\w+)", Step::\w+\)', SOURCE.read_text())
# The engine's own test covers "released", too: Python lets go of arguments before it answers.
OF_WORKERS = [step for step in STEPS[: STEPS.index("spawning")] if step != "released"]
KILL, STOP = 1, 2
ROUND = 30
LIMIT = 60.0


class Plan:
    """The file that says where processes end or stop; its layout stands in `fault.rs`."""

    def __init__(self) -> None:
        file, self.path = tempfile.mkstemp(prefix="plait-plan-")
        os.truncate(file, 4096)
        self.memory = mmap.mmap(file, 4096)
        os.close(file)
        # Read by the engine when the first step is reached, here and in every process that is started.
        os.environ[VARIABLE] = self.path

    def arm(self, step: str, at: int, action: int) -> None:
        """Forget what has happened; when `step` is reached for the `at`-th time, `action` happens."""
        self.memory[:] = bytes(4096)
        struct.pack_into("<5I", self.memory, 32 * STEPS.index(step), 0, at, 0, action, 0)

    def struck(self, step: str) -> int:
        """The process to which it happened; 0 if it did not yet."""
        return int(struct.unpack_from("<I", self.memory, 32 * STEPS.index(step) + 16)[0])


@pytest.fixture(scope="module", autouse=True)
def plan() -> Iterator[Plan]:
    plan = Plan()
    # The first step maps the plan, for good: before it is looked at what is left behind.
    plan.arm("opened", 0, 0)
    pool = ProcessPool(1)
    assert pool.submit(jobs.double, (1,), {}).result(LIMIT) == 2
    pool.shutdown()
    yield plan
    plan.memory.close()
    Path(plan.path).unlink()


class Work:
    """Jobs of all sizes on a pool, and what has become of them."""

    def __init__(self, log: Path, pool: ProcessPool, options: JobOptions) -> None:
        self.log, self.pool, self.options = log, pool, options
        self.submitted = 0
        self.lost: dict[int, BaseException] = {}
        self.cancelled: set[int] = set()
        self.futures: dict[int, Any] = {}
        log.touch()

    def submit(self) -> None:
        """A round of jobs, with small and large arguments and results."""
        for number in range(self.submitted, self.submitted + ROUND):
            args = (self.log, number, bytes(size(number, 2)), size(number, 3))
            self.futures[number] = self.pool.submit(jobs.mark_and_answer, args, {}, self.options)
        self.submitted += ROUND

    def judge(self) -> None:
        """Wait for all jobs; every one that has a result has its own."""
        for number, future in self.futures.items():
            with suppress(TimeoutError, CancelledError):
                future.exception(LIMIT)
            assert future.done(), f"job {number} hangs: {self.pool.statistics()}"
            if future.cancelled():
                self.cancelled.add(number)
            elif (error := future.exception()) is not None:
                self.lost[number] = error
            else:
                assert future.result() == answer(number)
        self.futures.clear()

    def waiting(self) -> int:
        """How many jobs have no outcome."""
        return sum(not future.done() for future in self.futures.values())

    def runs(self) -> Counter[int]:
        """How often each job was run."""
        marks = self.log.read_bytes()
        return Counter(int.from_bytes(marks[at : at + 8], "little") for at in range(0, len(marks), 8))


def size(number: int, of: int) -> int:
    """Most arguments and results are small, and some travel through the arenas."""
    return 100_000 if number % of == 1 else 10


def answer(number: int) -> tuple[int, int, bytes]:
    """What `jobs.mark_and_answer` gives."""
    return number, size(number, 2), bytes([number % 251]) * size(number, 3)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Look again and again."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} does not come true"
        time.sleep(0.001)


def work_until_struck(work: Work, plan: Plan, step: str) -> None:
    """Submit jobs until the fault has happened: some steps are reached only when there is nothing to do."""
    deadline = time.monotonic() + LIMIT
    while not plan.struck(step):
        assert time.monotonic() < deadline, f"{step} is never reached"
        work.submit()
        work.judge()
        time.sleep(0.005)


def replaced(step: str) -> int | None:
    """Steps of a worker's start and end are reached again and again if workers are replaced."""
    return 8 if step in ("opened", "ready", "told") else None


# A worker that dies right after one of these takes the job with it; after `put` it depends on what was put.
COSTLY = {"begun", "ran", "written"}


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("at", [1, 6])
@pytest.mark.parametrize("step", OF_WORKERS)
def test_a_worker_killed_at(plan: Plan, tmp_path: Path, step: str, at: int, retries: int) -> None:
    plan.arm(step, at, KILL)
    pool = ProcessPool(2, max_tasks_per_worker=replaced(step))
    work = Work(tmp_path / "log", pool, JobOptions(retries=retries))
    try:
        work_until_struck(work, plan, step)
        work.submit()
        work.judge()
        wait_until(lambda: pool.statistics()["blocks"] == 0, "all arguments are given back")
    finally:
        pool.shutdown()
    runs = work.runs()
    again = [number for number, count in runs.items() if count > 1]
    for error in work.lost.values():
        assert isinstance(error, WorkerDied)
        assert (error.pid, error.signal) == (plan.struck(step), signal.SIGKILL)
    assert max(runs.values()) <= 1 + retries
    if retries:
        assert not work.lost
        assert set(runs) == set(range(work.submitted))
    # A job that was lost, or run again. One that had begun and not run yet leaves no trace of that.
    cost = len(work.lost) + len(again) + (step == "begun" and retries)
    if step == "put":
        assert cost <= 1
    else:
        assert cost == (step in COSTLY)
    assert set(range(work.submitted)) - set(runs) <= set(work.lost)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("step", OF_WORKERS)
def test_a_worker_killed_in_a_map_at(plan: Plan, tmp_path: Path, step: str, retries: int) -> None:
    plan.arm(step, 2, KILL)
    executor = Executor("processes", workers=2, max_tasks_per_worker=replaced(step))
    log = tmp_path / "log"
    log.touch()
    number = 0
    failed: list[tuple[int, int | None]] = []
    try:
        deadline = time.monotonic() + LIMIT
        while not plan.struck(step) or number < 100:
            assert time.monotonic() < deadline, f"{step} is never reached"
            numbers = range(number, number + 100)
            number += 100
            data = [bytes(size(at, 2)) for at in numbers]
            lengths = [size(at, 3) for at in numbers]
            results = executor.map(jobs.mark_and_answer, [log] * 100, numbers, data, lengths, retries=retries)
            given = []
            try:
                for result in results:
                    given.append(result)
            except WorkerDied as error:
                failed.append((error.pid, error.signal))
            else:
                assert len(given) == 100
            assert given == [answer(at) for at in numbers][: len(given)]
            time.sleep(0.005)
    finally:
        executor.shutdown()
    marks = log.read_bytes()
    runs = Counter(int.from_bytes(marks[at : at + 8], "little") for at in range(0, len(marks), 8))
    # Nothing has run if the first that begins is killed, and the others are cancelled before they have run.
    assert max(runs.values(), default=0) <= 1 + retries
    assert len(failed) <= (not retries and step in COSTLY | {"put"})
    assert set(failed) <= {(plan.struck(step), signal.SIGKILL)}


@pytest.mark.parametrize("then", ["cancel", "timeout"])
@pytest.mark.parametrize("step", OF_WORKERS)
def test_a_worker_stopped_and_given_up_on_at(plan: Plan, tmp_path: Path, step: str, then: str) -> None:
    """While it stands still, all jobs are cancelled, or run out of time; then it goes on, if it still can."""
    plan.arm(step, 3, STOP)
    pool = ProcessPool(2, max_tasks_per_worker=replaced(step))
    options = JobOptions(timeout=2.0 if then == "timeout" else None)
    work = Work(tmp_path / "log", pool, options)
    try:
        deadline = time.monotonic() + LIMIT
        while not (stopped := plan.struck(step)):
            assert time.monotonic() < deadline, f"{step} is never reached"
            if not work.waiting():
                work.submit()
            time.sleep(0.001)
        if not work.waiting():
            work.submit()
        if then == "cancel":
            wait_until(lambda: work.waiting() <= 1, "the others are done")
            cancelled = [number for number, future in work.futures.items() if future.cancel()]
        else:
            time.sleep(2.1)
            cancelled = []
        if is_alive(stopped):
            os.kill(stopped, signal.SIGCONT)
        work.judge()
        assert work.cancelled == set(cancelled)
        assert all(isinstance(error, TaskTimeout) for error in work.lost.values()), work.lost
        assert len(work.lost) <= 1
        work.submit()
        work.judge()
        assert len(work.lost) <= 1
    finally:
        pool.shutdown()
    assert max(work.runs().values()) == 1
    assert wait_until_gone({stopped}) == set()
