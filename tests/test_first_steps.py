"""The first programs everybody writes: the same on the standard modules and on plait's, and at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "first_steps"
PROGRAMS = {"processes": "multiprocessing", "threads": "threading", "coroutines": "asyncio"}
SLEEP = 2.0


@contextmanager
def started(program: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that runs meanwhile."""
    command = [sys.executable, str(program), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def finished(running: subprocess.Popen[str]) -> tuple[list[str], list[float]]:
    """What a program has printed, without the times; the times."""
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert errors == ""
    lines = output.splitlines()
    times = [line for line in lines if line.startswith("seconds: ")]
    return [line for line in lines if line not in times], [float(line.split()[1]) for line in times]


def of_worker(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if line.startswith(name)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_only_the_import_changes(name: str, tmp_path: Path) -> None:
    module = PROGRAMS[name]
    program = FOLDER / f"{name}.py"
    if find_spec(f"plait.{module}") is None:
        pytest.skip(f"plait.{module} does not exist yet")
    standard_import = re.compile(rf"^import {module}\b.*$", re.MULTILINE)
    text, changed = standard_import.subn(f"import plait.{module} as {module}", program.read_text())
    assert changed == 1
    on_plait = tmp_path / program.name
    on_plait.write_text(text)
    with started(program) as standard, started(on_plait) as ours:
        expected, expected_seconds = finished(standard)
        printed, seconds = finished(ours)
    # The workers take turns as they like, but each says the same in the same order, and "ended" is last.
    assert len(expected) == 9
    assert sorted(printed) == sorted(expected)
    for worker in ("Ada", "Grace"):
        assert of_worker(printed, worker) == of_worker(expected, worker)
    assert printed[-1] == expected[-1]
    for took in (*expected_seconds, *seconds):
        assert SLEEP <= took < 2 * SLEEP


def test_one_job_is_the_same_under_every_model() -> None:
    program = FOLDER / "one_job_every_model.py"
    with started(program) as all_models:
        lines, seconds = finished(all_models)
    models = [line.removeprefix("model: ") for line in lines if line.startswith("model: ")]
    assert len(models) >= 5
    assert len(seconds) == len(models)
    assert of_worker(lines, "Ada") == ["Ada: 1 2 3 awake"] * len(models)
    assert of_worker(lines, "Grace") == ["Grace: 1 2 3 awake"] * len(models)
    for model, took in zip(models, seconds, strict=True):
        assert SLEEP <= took < 2 * SLEEP, model
