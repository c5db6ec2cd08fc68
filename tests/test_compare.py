"""`plait compare`: what is measured is true of the work, and what is said follows from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plait.compare import AUTO, SERIAL, Comparison, Measurement, ModelResult, compare

WORK = '''
"""Functions to compare."""
import asyncio, os, threading, time

def burn(number):
    total = 0
    for turn in range(20_000):
        total += turn * number
    return total

async def wait(number):
    await asyncio.sleep(0.01)
    return number

def where(number):
    return os.getpid()

def fails_on_odd(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number

def not_picklable(number):
    return threading.Lock()

def not_a_number(number):
    return float("nan")

def hold(number):
    data = bytearray(64 * 2**20)
    time.sleep(4)  # looks from outside are rare on a busy machine
    return len(data)

def die(number):
    os._exit(3)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def test_every_model_gives_the_serial_results(folder: Path) -> None:
    found = compare("work:burn", range(20), rounds=2, path=[str(folder)])
    assert [result.error for result in found.results] == [None] * len(found.results)
    assert [result.model for result in found.results][:2] == [SERIAL, "tasks"]
    assert all(len(result.runs) == 2 for result in found.results)
    assert found.equal
    assert found[AUTO].runs[0].decision
    assert found[AUTO].runs[0].chosen in {"tasks", "threads", "processes", "interpreters"}
    assert "every model gave the same results" in found.remarks()


def test_coroutine_functions_run_one_after_the_other_when_serial(folder: Path) -> None:
    found = compare("work:wait", range(20), models=["tasks"], rounds=1, path=[str(folder)])
    assert found.equal
    assert found[SERIAL].wall >= 20 * 0.01
    assert found["tasks"].runs[0].workers == 1000


def test_cpu_time_of_workers_is_counted(folder: Path) -> None:
    found = compare("work:burn", range(300), models=["processes"], rounds=1, path=[str(folder)])
    # All of the work is in the workers: were they left out, next to nothing would remain.
    assert found["processes"].cpu > 0.5 * found[SERIAL].cpu


def test_memory_of_workers_is_counted(folder: Path) -> None:
    found = compare("work:hold", range(1), models=["processes"], rounds=1, path=[str(folder)])
    assert found[SERIAL].memory > 64 * 2**20
    # The program itself holds no more than the results.
    assert found["processes"].memory > 64 * 2**20


def test_results_that_differ_are_found_and_told(folder: Path) -> None:
    found = compare("work:where", range(5), models=["threads"], rounds=1, path=[str(folder)])
    assert found["threads"].runs[0].differing == 5
    assert not found.equal
    assert "results that differ from the first serial run: threads 5 of 5" in found.remarks()


def test_items_that_fail_are_compared_as_well(folder: Path) -> None:
    found = compare(
        "work:fails_on_odd", range(10), models=["threads", "processes"], rounds=1, path=[str(folder)]
    )
    assert [result.runs[0].failed for result in found.results] == [5, 5, 5]
    assert found.equal


def test_the_page_has_the_runs_of_every_model(folder: Path) -> None:
    models = ["threads", "processes"]
    path = [str(folder)]
    found = compare("work:fails_on_odd", range(8), models=models, rounds=2, path=path, reports=True)
    found.save(folder / "page.html")
    text = (folder / "page.html").read_text()
    numbers = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.S)
    assert numbers is not None
    data = json.loads(numbers[1])
    assert [report["model"] for report in data["reports"]] == models
    assert all(report["jobs"] == len(report["timeline"]["jobs"]) == 8 for report in data["reports"])
    assert [model["model"] for model in data["comparison"]["models"]] == [SERIAL, *models]
    assert data["comparison"]["summary"] == found.sentence()


def test_results_that_cannot_be_pickled_are_not_compared(folder: Path) -> None:
    found = compare("work:not_picklable", range(3), models=["threads"], rounds=1, path=[str(folder)])
    assert found["threads"].runs[0].differing is None
    assert "the results cannot be pickled, so they were not compared" in found.remarks()


def test_a_result_that_is_not_equal_to_itself_is_still_the_same(folder: Path) -> None:
    assert compare("work:not_a_number", range(3), models=["processes"], rounds=1, path=[str(folder)]).equal


def test_a_run_that_dies_is_told_and_the_others_go_on(folder: Path) -> None:
    found = compare("work:die", [1], models=["threads"], rounds=1, path=[str(folder)])
    assert found[SERIAL].error == "the run ended with status 3"
    assert found.sentence() == "nothing could be compared"


def test_a_model_that_fails_does_not_hide_the_others(folder: Path) -> None:
    found = compare(
        "work:not_picklable", range(3), models=["processes", "threads"], rounds=1, path=[str(folder)]
    )
    assert found["processes"].error is not None
    assert "not_picklable" in found["processes"].error
    assert found["threads"].runs


def test_workers_can_differ_by_model(folder: Path) -> None:
    found = compare(
        "work:burn",
        range(4),
        models=["tasks", "threads"],
        workers={"threads": 3},
        rounds=1,
        path=[str(folder)],
    )
    assert (found["tasks"].runs[0].workers, found["threads"].runs[0].workers) == (1000, 3)


def test_items_must_be_picklable(folder: Path) -> None:
    with pytest.raises(TypeError, match="items cannot be pickled"):
        compare("work:burn", [lambda: None], path=[str(folder)])


def test_no_round_begins_that_would_end_too_late(folder: Path) -> None:
    found = compare("work:burn", [1], models=[], rounds=50, seconds=0.001, path=[str(folder)])
    assert found.rounds == 1


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plait", "compare", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_prints_a_table_that_fits_80_columns(folder: Path) -> None:
    (folder / "items").write_text("1\n2\n3\n")
    done = run(folder, "work:burn", "items", "--json-input", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in (SERIAL, "tasks", "threads", "processes", "auto →", "best:", "× serial"):
        assert word in done.stdout


def test_the_command_prints_a_report_for_machines(folder: Path) -> None:
    (folder / "items").write_text("1\n2\n3\n")
    done = run(folder, "work:burn", "items", "--json-input", "--rounds", "1", "--json", "--model", "threads")
    report = json.loads(done.stdout)
    assert [model["model"] for model in report["models"]] == [SERIAL, "threads"]
    assert report["items"] == 3
    assert report["models"][1]["differing"] == 0


def test_the_command_fails_if_results_differ(folder: Path) -> None:
    (folder / "items").write_text("1\n")
    done = run(folder, "work:where", "items", "--rounds", "1", "--model", "threads")
    assert done.returncode == 1
    assert "differ from the first serial run" in done.stdout


def measured(model: str, wall: float, cpu: float) -> ModelResult:
    return ModelResult(model, [Measurement(wall, cpu, 10 * 2**20, 0, 0, workers=2)])


@pytest.mark.parametrize(
    ("serial", "others", "expected"),
    [
        (
            (10.0, 9.9),
            [("threads", 10.2, 10.1), ("processes", 5.2, 10.2)],
            "processes, 1.92× serial; threads 0.98×, the GIL is held 99% of the time",
        ),
        (
            (10.0, 9.9),
            [("threads", 5.1, 10.0), ("processes", 5.4, 10.2)],
            "threads, 1.96× serial; processes 1.85×, threads kept 2.0 of 2 cores busy: the work releases "
            "the GIL",
        ),
        (
            (10.0, 0.2),
            [("tasks", 0.1, 0.1), ("threads", 0.25, 0.2)],
            "tasks, 100× serial; threads 40×, 98% of a serial run is waiting",
        ),
        (
            (1.0, 1.0),
            [("threads", 1.1, 1.1)],
            "serial; no model is faster (the best, threads, 0.91×); the GIL is held 100% of the time",
        ),
    ],
)
def test_what_was_learnt_is_said_in_words(
    serial: tuple[float, float], others: list[tuple[str, float, float]], expected: str
) -> None:
    results = [measured(SERIAL, *serial), *(measured(*other) for other in others)]
    assert Comparison("work:f", 5, results, 1, 2).sentence() == expected
