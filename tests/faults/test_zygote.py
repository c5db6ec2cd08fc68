"""The zygote is killed or stopped right after it has forked a worker, before it has said so."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from faults import jobs
from faults.leftovers import wait_until_gone
from plait.errors import WorkerDied
from plait.process_pool import ProcessPool

# What Python imports at its start, in zygotes too: a zygote says which it is, and has it happen once in all.
AT_FORK = """
import os, signal, sys
if sys.argv and os.environ.get("PLAIT_TEST_MARK"):
    def strike():
        global left
        left -= 1
        mark = os.environ["PLAIT_TEST_MARK"]
        if left == 0 and not os.path.exists(mark):
            with open(mark, "w") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), int(os.environ["PLAIT_TEST_SIGNAL"]))
    left = int(os.environ["PLAIT_TEST_FORK"])
    os.register_at_fork(after_in_parent=strike)
"""


@pytest.mark.parametrize("fork", [1, 2, 3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_between_a_fork_and_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork: int, number: signal.Signals
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_FORK)
    mark, log = tmp_path / "mark", tmp_path / "log"
    log.touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PLAIT_TEST_MARK", str(mark))
    monkeypatch.setenv("PLAIT_TEST_SIGNAL", str(int(number)))
    monkeypatch.setenv("PLAIT_TEST_FORK", str(fork))
    pool = ProcessPool(2, max_tasks_per_worker=20)
    over = threading.Event()
    thread = threading.Thread(target=let_go_on, args=(mark, over))
    thread.start()
    lost: list[BaseException] = []
    count = 0
    try:
        deadline = time.monotonic() + 60
        while not mark.exists() or count < 60:
            assert time.monotonic() < deadline, "it never forks so often"
            args = [(log, at, b"", 10) for at in range(count, count + 15)]
            count += 15
            futures = [pool.submit(jobs.mark_and_answer, each, {}) for each in args]
            lost += [error for future in futures if (error := future.exception(60)) is not None]
    finally:
        pool.shutdown()
        over.set()
        thread.join()
    assert all(isinstance(error, WorkerDied) for error in lost)
    # With a zygote go its workers, each with the job that it was running.
    assert len(lost) <= (2 if number == signal.SIGKILL else 0)
    marks = log.read_bytes()
    runs = Counter(int.from_bytes(marks[at : at + 8], "little") for at in range(0, len(marks), 8))
    assert max(runs.values()) == 1
    assert len(runs) + len(lost) >= count
    # Orphans too, that are not our children any more.
    assert wait_until_gone(family_of(mark)) == set()


def let_go_on(mark: Path, over: threading.Event) -> None:
    """Again and again, have whoever left the mark and stopped go on."""
    while not over.wait(0.2):
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int(mark.read_text()), signal.SIGCONT)


def family_of(mark: Path) -> set[int]:
    """Every process that was started with this mark in its environment."""
    found = set()
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and str(mark).encode() in (path / "environ").read_bytes():
                found.add(int(path.name))
    return found
