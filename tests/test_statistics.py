"""`Executor.statistics`, adaptive width, and exits that do not hang in silence."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import plait
from plait._job import Statistics

MODELS = ["tasks", "threads", "processes", "hybrid", "auto"]
if sys.version_info >= (3, 14):
    MODELS.append("interpreters")


def wait_for(gate: str) -> str:
    """Run until there is such a file."""
    while not Path(gate).exists():
        time.sleep(0.005)
    return "done"


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_says_what_it_is_doing(model: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with plait.Executor(model, workers=1) as ex:
        idle = ex.statistics()
        assert (idle.model, idle.running, idle.queued, idle.longest_wait) == (model, 0, 0, 0)
        jobs = [ex.submit(wait_for, str(gate)) for _ in range(400)]

        def busy() -> bool:
            now = ex.statistics()
            return now.running >= 1 and now.workers >= 1 and now.running + now.queued == 400

        eventually(busy)
        if model != "hybrid":  # one of its processes has room for 256
            first = ex.statistics()
            assert first.queued > 0
            eventually(lambda: ex.statistics().longest_wait > first.longest_wait)
        now = ex.statistics()
        assert 1 <= now.width <= now.limit
        gate.touch()
        assert {job.result() for job in jobs} == {"done"}
        eventually(lambda: ex.statistics().running + ex.statistics().queued == 0)
        assert ex.statistics().longest_wait == 0


def test_waiting_work_makes_an_adaptive_pool_wider() -> None:
    with plait.Executor("threads", workers="adaptive") as ex:
        limit = ex.statistics().limit
        assert ex.statistics().width == 16
        assert limit == ex.workers == 256
        jobs = [ex.submit(time.sleep, 0.01) for _ in range(20_000)]
        eventually(lambda: ex.statistics().width >= 64 or all(job.done() for job in jobs))
        assert ex.statistics().width >= 64
        ex.shutdown(cancel_futures=True)
        assert ex.statistics().workers == 0


def test_computing_makes_it_narrower() -> None:
    def compute() -> int:
        return sum(number * number for number in range(2000))

    with plait.Executor("threads", workers="adaptive") as ex:

        def narrow_at_last() -> bool:
            while ex.statistics().queued < 2000:
                ex.submit(compute)
            return ex.statistics().width <= 4

        eventually(narrow_at_last)
        eventually(lambda: ex.statistics().workers <= 4)
        ex.shutdown(cancel_futures=True)


def test_a_surplus_worker_leaves_no_job_behind() -> None:
    """Widths that change all the time, jobs of both kinds, submitted by several threads: every job is run."""
    with plait.Executor("threads", workers="adaptive") as ex:
        sums: list[int] = []

        def submit() -> None:
            jobs = [ex.submit(time.sleep, 0.001) for _ in range(500)]
            numbers = [ex.submit(sum, range(500)) for _ in range(500)]
            sums.append(
                sum(number.result() for number in numbers) + sum(job.result() is None for job in jobs)
            )

        submitters = [threading.Thread(target=submit) for _ in range(4)]
        for thread in submitters:
            thread.start()
        for thread in submitters:
            thread.join()
        assert sums == [500 * sum(range(500)) + 500] * 4


def test_adaptive_is_for_threads() -> None:
    with pytest.raises(ValueError, match="workers='adaptive' is for the model 'threads', not 'processes'"):
        plait.Executor("processes", workers="adaptive")
    with pytest.raises(TypeError, match="workers must be an integer"):
        plait.Executor("threads", workers="many")  # type: ignore[arg-type]


def test_a_saturated_pool_says_so_with_figures(caplog: pytest.LogCaptureFixture) -> None:
    from plait.thread_pool import Crew

    with caplog.at_level(logging.WARNING, logger="plait"):
        Crew("pool", None, ()).saturated(256, 12, 10.0, 3.25)
    assert caplog.messages == [
        "pool: all 256 threads have been busy for 10 s, and 12 jobs wait, the first of them for 3.2 s:"
        " jobs take longer than expected, or are more than threads can take; see statistics()"
    ]


def test_a_fork_of_an_adaptive_pool_starts_anew() -> None:
    code = """
import os, plait, time, warnings
warnings.simplefilter("ignore")
ex = plait.Executor("threads", workers="adaptive")
assert ex.submit(len, "four").result() == 4
pid = os.fork()
assert ex.submit(len, "four").result() == 4
assert ex.statistics().workers >= 1
ex.shutdown()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


STUCK = """
import asyncio, sys, time
from pathlib import Path
import plait

def stuck_function(gate):
    Path(gate + '.begun').touch()
    while not Path(gate).exists():
        time.sleep(0.005)

async def stuck_coroutine(gate):
    Path(gate + '.begun').touch()
    while not Path(gate).exists():
        await asyncio.sleep(0.005)

if __name__ == "__main__":
    model, gate, how = sys.argv[1:]
    ex = plait.Executor(model, workers=1)
    job = ex.submit(stuck_coroutine if model == "tasks" else stuck_function, gate)
    while not Path(gate + '.begun').exists():
        time.sleep(0.005)
    if how == "shutdown":
        ex.shutdown(timeout=0.2)
        assert not job.done()
        print("returned", flush=True)
    sys.stdin.readline()
    if how == "shutdown":
        Path(gate).touch()
        job.result()
"""


def started(tmp_path: Path, model: str, how: str, **environment: str) -> subprocess.Popen[str]:
    program = tmp_path / "stuck.py"
    program.write_text(STUCK)
    return subprocess.Popen(
        [sys.executable, str(program), model, str(tmp_path / "gate"), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("model", MODELS)
def test_shutdown_with_a_timeout_prints_where_workers_are_stuck(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model, "shutdown") as program:
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            assert program.stdout.readline() == "returned\n"
            assert program.stderr.readline() == "plait: after waiting for 0.2 s, this still runs:\n"
            # A worker process prints its stack by itself, a moment later.
            name = "stuck_coroutine" if model == "tasks" else "stuck_function"
            while name not in program.stderr.readline():
                assert program.poll() is None
            _, errors = program.communicate("\n", timeout=60)
        finally:
            (tmp_path / "gate").touch()
    assert program.returncode == 0, errors


@pytest.mark.parametrize("model", MODELS)
def test_an_exit_prints_where_workers_are_stuck_if_it_is_told_to(tmp_path: Path, model: str) -> None:
    with started(tmp_path, model, "exit", PLAIT_EXIT_REPORT="0.4") as program:
        try:
            assert program.stdin is not None
            assert program.stderr is not None
            program.stdin.write("\n")
            program.stdin.flush()
            name = "stuck_coroutine" if model == "tasks" else "stuck_function"
            assert program.stderr.readline() == "plait: after waiting for 0.4 s, this still runs:\n"
            while name not in program.stderr.readline():
                assert program.poll() is None
            # And goes on waiting, as ever.
            assert program.poll() is None
        finally:
            (tmp_path / "gate").touch()
        program.communicate(timeout=60)
    assert program.returncode == 0


def test_by_default_an_exit_says_nothing(tmp_path: Path) -> None:
    with started(tmp_path, "threads", "exit") as program:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.7)
        (tmp_path / "gate").touch()
        _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")


def test_the_environment_variable_must_hold_a_number() -> None:
    code = "import plait; plait.Executor('threads').submit(len, '')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PLAIT_EXIT_REPORT": "soon"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == "plait: PLAIT_EXIT_REPORT must be a number of seconds, not 'soon'\n"


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_makes_no_sense_is_refused(timeout: float) -> None:
    with plait.Executor("threads") as ex, pytest.raises(ValueError, match="timeout must be a number of"):
        ex.shutdown(timeout=timeout)


def test_a_shutdown_in_time_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for model in MODELS:
        ex = plait.Executor(model, workers=1)
        job = ex.submit(len, "four")
        ex.shutdown(timeout=60)
        assert job.result() == 4
    assert capfd.readouterr().err == ""


def test_statistics_are_plain_data() -> None:
    with plait.Executor("threads", workers=3) as ex:
        assert ex.statistics() == Statistics("threads", 0, 3, 3, 0, 0, 0.0)
