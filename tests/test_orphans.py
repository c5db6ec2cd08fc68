"""Nothing outlives the program, whatever workers do, and whoever else is stopped or killed at that time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.leftovers import children, wait_until_gone

PATIENCE = 10.0
"""Seconds until a process counts as an orphan. The promise is one, on a machine that is not busy."""

PROGRAM = """
import ctypes, itertools, os, pathlib, signal, sys, time
import plait

folder = pathlib.Path(sys.argv[1])

def begin():
    (folder / f"begun-{os.getpid()}").touch()

def spin():
    begin()
    all(itertools.repeat(True))  # in C, and the GIL is never let go of

def hold():
    begin()
    ctypes.PyDLL(None).pause()  # the same, asleep

def stop():
    begin()
    os.kill(os.getpid(), signal.SIGSTOP)

def forget():
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    spin()

def leave_group():
    os.setsid()
    spin()

def nest():
    with plait.Executor("processes", 2) as ex:
        list(ex.map(lambda job: job(), [spin, hold]))

def wait_for(count):
    while len(list(folder.glob("begun-*"))) < count:
        time.sleep(0.005)
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def program(folder: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """A program that says when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(text), folder],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def zygotes(pids: set[int]) -> set[int]:
    """Those that workers are forked from."""
    return pids & {parent_of(pid) for pid in pids}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def end_all(pids: set[int]) -> None:
    """A test that fails leaves nothing behind either."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.parametrize("zygote", ["runs", "is stopped", "is killed", "is stopped and killed"])
@pytest.mark.parametrize("job", ["spin", "hold", "stop", "forget", "leave_group", "nest"])
def test_a_program_that_is_killed_leaves_no_process(tmp_path: Path, job: str, zygote: str) -> None:
    if job == "forget" and "killed" in zygote:
        pytest.skip("who gives up the kernel's signal, and loses the zygote, has nobody left")
    count = 4 if job == "nest" else 2
    text = f"""
        ex = plait.Executor("processes", 2)
        futures = [ex.submit({job}) for _ in range(2)]
        wait_for({count})
    """
    with program(tmp_path, text) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        family = children(parent.pid)
        first = {pid for pid in zygotes(family) if parent_of(pid) == parent.pid}
        assert len(first) == 1
        try:
            if "stopped" in zygote:
                os.kill(*first, signal.SIGSTOP)
            if "killed" in zygote:
                # Both at once: neither sees the other go.
                os.kill(parent.pid, signal.SIGSTOP)
                os.kill(*first, signal.SIGKILL)
            parent.kill()
            assert wait_until_gone(family, PATIENCE) == set()
        finally:
            end_all(family)


def test_a_program_that_is_killed_while_a_module_is_preloaded(tmp_path: Path) -> None:
    (tmp_path / "outfit_endless.py").write_text(
        "import itertools, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'begun-import')!r}).touch()\n"
        "all(itertools.repeat(True))\n"
    )
    text = """
        sys.path.insert(0, str(folder))
        ex = plait.Executor("processes", 2, preload=["outfit_endless"])
        ex.submit(spin)
        wait_for(1)
    """
    with program(tmp_path, text) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        family = children(parent.pid)
        assert family
        parent.kill()
        try:
            assert wait_until_gone(family, PATIENCE) == set()
        finally:
            end_all(family)


def test_a_program_that_becomes_another_leaves_no_worker(tmp_path: Path) -> None:
    text = """
        ex = plait.Executor("processes", 2)
        futures = [ex.submit(spin) for _ in range(2)]
        while len(list(folder.glob("begun-*"))) < 2:
            time.sleep(0.005)
        other = "print('ready', flush=True); import time; time.sleep(600)"
        os.execv(sys.executable, [sys.executable, "-c", other])
    """
    with program(tmp_path, text) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        workers = {int(path.name.partition("-")[2]) for path in tmp_path.glob("begun-*")}
        try:
            assert wait_until_gone(workers, PATIENCE) == set()
        finally:
            end_all(workers)


def test_a_program_that_forks_and_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    """The fork has the link to the zygote open, too."""
    text = """
        ex = plait.Executor("processes", 2)
        futures = [ex.submit(spin) for _ in range(2)]
        while len(list(folder.glob("begun-*"))) < 2:
            time.sleep(0.005)
        if os.fork() == 0:
            os.close(1)
            time.sleep(600)
        wait_for(2)
    """
    with program(tmp_path, text) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        workers = {int(path.name.partition("-")[2]) for path in tmp_path.glob("begun-*")}
        everybody = children(parent.pid)
        pool = workers | zygotes(everybody)
        parent.kill()
        try:
            assert wait_until_gone(pool, PATIENCE) == set()
        finally:
            end_all(everybody)
