"""Ctrl-C while jobs run: one traceback, out within moments, no process left. Each case is a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.leftovers import wait_until_asleep

PROGRAM = """
import asyncio, sys, time
import plait

def nap(x):
    print("running", flush=True)
    time.sleep(60)

def spin(x):
    print("running", flush=True)
    while True:
        pass

async def doze(x):
    print("running", flush=True)
    await asyncio.sleep(60)

def main(where, model, job):
    if where == "map":
        with plait.Executor(model, 2) as ex:
            for result in ex.map(job, range(100)):
                pass
    elif where == "map without with":
        ex = plait.Executor(model, 2)
        for result in ex.map(job, range(100)):
            pass
    elif where == "unordered map with a bar":
        with plait.Executor(model, 2) as ex:
            for result in ex.map(job, range(100), ordered=False, progress=True):
                pass
    elif where == "result":
        with plait.Executor(model, 2) as ex:
            futures = [ex.submit(job, x) for x in range(100)]
            futures[-1].result()
    elif where == "leaving":
        with plait.Executor(model, 2) as ex:
            futures = [ex.submit(job, x) for x in range(100)]
    elif where == "coroutine":
        async def wait_for_it():
            with plait.Executor(model, 2) as ex:
                await asyncio.gather(*[ex.submit(job, x) for x in range(100)])
        asyncio.run(wait_for_it())

main(sys.argv[1], sys.argv[2], globals()[sys.argv[3]])
"""

# Far more than it takes, far less than the jobs do.
PATIENCE = 8


def alive(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            members.append(stat.parent.name)
    return members


@pytest.mark.parametrize(
    ("where", "model", "job"),
    [
        ("map", "tasks", "doze"),
        ("map", "tasks", "nap"),
        ("map", "threads", "nap"),
        ("map", "threads", "spin"),
        ("map", "processes", "spin"),
        ("map", "auto", "nap"),
        ("map without with", "tasks", "doze"),
        ("map without with", "threads", "doze"),
        ("map without with", "processes", "nap"),
        ("unordered map with a bar", "threads", "nap"),
        ("unordered map with a bar", "processes", "nap"),
        ("result", "auto", "doze"),
        ("result", "processes", "doze"),
        ("leaving", "tasks", "doze"),
        ("leaving", "threads", "nap"),
        ("leaving", "processes", "spin"),
        ("coroutine", "tasks", "doze"),
        ("coroutine", "threads", "nap"),
        ("coroutine", "processes", "nap"),
    ],
)
def test_ctrl_c_ends_the_program_once_and_leaves_nothing(where: str, model: str, job: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where, model, job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline().startswith("running")
            if where == "coroutine":
                # CPython does not notice a signal between its last look and its sleep in asyncio's loop.
                wait_until_asleep(program.pid)
            # To all of them, as a terminal does it.
            os.killpg(program.pid, signal.SIGINT)
            _, errors = program.communicate(timeout=PATIENCE)
            left = alive(program.pid)
        finally:
            if program.poll() is None or alive(program.pid):
                os.killpg(program.pid, signal.SIGKILL)
    assert left == []
    assert errors.count("Traceback (most recent call last)") <= (2 if where == "coroutine" else 1), errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert program.returncode == -signal.SIGINT
