"""What the error says about a worker that died: signal, exit status, where it crashed, and lack of memory."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import plait
from plait._memory_kills import MemoryKills


def crash() -> None:
    """End by a segmentation fault, as a broken extension does."""
    ctypes.string_at(0)


def death(ex: plait.Executor, *call: object) -> plait.WorkerDied:
    """How the worker of a job dies."""
    error = ex.submit(*call).exception(60)  # type: ignore[call-overload]
    assert isinstance(error, plait.WorkerDied)
    return error


@pytest.mark.parametrize("model", ["processes", "hybrid"])
def test_a_crash_says_where_it_happened(model: str) -> None:
    with plait.Executor(model, 1) as ex:
        error = death(ex, crash)
        assert (error.signal, error.exitcode, error.out_of_memory) == (signal.SIGSEGV, None, False)
        assert "Segmentation fault" in error.traceback
        line = crash.__code__.co_firstlineno + 2
        assert f'File "{__file__}", line {line} in crash' in error.traceback
        assert "_zygote.py" not in error.traceback
        assert "was killed by SIGSEGV (signal 11)" in str(error)
        assert error.traceback.strip() in str(error)
        # The next worker's death has nothing of it.
        assert death(ex, os._exit, 3).traceback == ""


def test_an_abort_says_where_it_happened() -> None:
    with plait.Executor("processes", 1) as ex:
        error = death(ex, os.abort)
    assert error.signal == signal.SIGABRT
    assert "Aborted" in error.traceback


def test_an_exit_says_its_status() -> None:
    with plait.Executor("processes", 1) as ex:
        error = death(ex, os._exit, 41)
    assert (error.exitcode, error.signal, error.traceback) == (41, None, "")
    assert "exited with status 41" in str(error)


def test_the_error_can_be_pickled() -> None:
    error = plait.WorkerDied("job", 7, None, 11, "Fatal Python error", True)
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("files", "at"),
    [
        ({"proc/self/cgroup": "0::/app\n"}, "sys/fs/cgroup/app/memory.events"),
        ({"proc/self/cgroup": "0::/app\n"}, "sys/fs/cgroup/memory.events"),
        (
            {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/app\n0::/\n"},
            "sys/fs/cgroup/memory/app/memory.oom_control",
        ),
        ({"proc/self/cgroup": "4:cpu,memory:/x\n"}, "sys/fs/cgroup/memory/memory.oom_control"),
        ({}, "proc/vmstat"),
    ],
)
def test_kills_for_lack_of_memory_are_counted(tmp_path: Path, files: dict[str, str], at: str) -> None:
    for name, text in {**files, at: "under_oom 0\noom 5\noom_kill 3\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    kills = MemoryKills(tmp_path)
    assert not kills.is_new(), "nobody watches yet"
    kills.watch()
    assert not kills.is_new()
    (tmp_path / at).write_text("oom_kill 5\n")
    assert [kills.is_new() for _ in range(3)] == [True, True, False]


def test_a_system_that_does_not_count_has_none(tmp_path: Path) -> None:
    kills = MemoryKills(tmp_path)
    kills.watch()
    assert not kills.is_new()


def test_who_is_killed_by_somebody_else_was_not_out_of_memory() -> None:
    with plait.Executor("processes", 1) as ex:
        error = death(ex, kill_oneself)
    assert (error.signal, error.out_of_memory) == (signal.SIGKILL, False)
    assert "was killed by SIGKILL (signal 9)" in str(error)


def kill_oneself() -> None:
    """End by a signal that leaves no time for last words."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory, if this system lets us make one."""
    for parent, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / f"plait-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / limit).write_text(str(150 << 20))
            except OSError:
                continue
            yield group
            return
        finally:
            group.rmdir()
    pytest.skip("no control group with a limit can be made here")


def test_the_out_of_memory_killer_is_named(small_group: Path) -> None:
    program = f"""
import os, plait
with open({str(small_group / "cgroup.procs")!r}, "w") as file:
    file.write(str(os.getpid()))
def take_all():
    return len(b"x" * (1 << 30))
with plait.Executor("processes", 1) as ex:
    error = ex.submit(take_all).exception()
    print(type(error).__name__, error.signal, error.out_of_memory)
    print(error)
    print(ex.submit(pow, 2, 5).result())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    first, second, third = done.stdout.splitlines()
    assert first == "WorkerDied 9 True"
    assert "because memory ran out" in second
    assert third == "32"
