"""The examples do what they say, on a little input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("model", ["tasks", "threads", "processes", "auto"])
@pytest.mark.parametrize(
    ("script", "count", "expected"),
    [
        ("measure_complexity.py", "--files", "12 files"),
        ("compress_files.py", "--files", "12 files"),
        ("fetch_pages.py", "--pages", "12 pages"),
        ("fetch_and_measure.py", "--pages", "12 pages"),
    ],
)
def test_example(script: str, count: str, expected: str, model: str) -> None:
    assert expected in run(script, "--model", model, count, "12")


def test_every_example_is_tested() -> None:
    own = Path(__file__).read_text().replace("page_server.py", "", 2)  # Runs inside the two that fetch.
    programs = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()}
    assert {name for name in programs if name not in own} == {"page_server.py"}


def test_the_demo_has_a_table_for_each_job_and_says_what_was_learnt() -> None:
    output = run("demo.py", "--quick")
    head, _, learnt = output.partition("What was learnt")
    assert head.count("every model gave the same results") == 4
    assert [line.partition(":")[0] for line in learnt.splitlines()[1:] if ":" in line] == [
        "parse",
        "compress",
        "fetch",
        "fetch and parse",
    ]
