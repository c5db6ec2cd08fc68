"""The command line as a person uses it: typed into a process, its output, its errors, its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORK = '''
"""Functions for the command line to call."""
import asyncio, os, time

def shout(text):
    return text.upper()

async def murmur(text):
    await asyncio.sleep(0)
    return text.lower()

def half(number):
    return number / 2

def check(text):
    if "bad" in text:
        raise ValueError(f"this is {text}")
    return text

def opaque(text):
    return object()

def lowest_last(text):
    time.sleep(0.3 if text == "0" else 0)
    return text

def forever(text):
    with open(f"started-{os.getpid()}", "w"):
        pass
    while True:
        time.sleep(0.05)

def die(text):
    if text == "2":
        os.kill(os.getpid(), 9)
    return text

def flaky(text):
    try:
        open(f"tried-{text}", "x").close()
    except FileExistsError:
        return text
    raise OSError("the first try fails")

class Namespace:
    @staticmethod
    def inner(text):
        return f"<{text}>"

not_a_function = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    return tmp_path


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def plait(folder: Path) -> Run:
    def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "plait", *arguments],
            cwd=folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "plait", *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with process:
            process.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited too long: {what}"
        time.sleep(0.02)


def session_members(leader: int) -> list[int]:
    """The processes that still live in the session that the command was started in."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found


MODELS = ["tasks", "threads", "processes", "auto"]


class TestMap:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("function", ["work:shout", "work:murmur"])
    def test_every_model_runs_every_kind_of_function(self, plait: Run, model: str, function: str) -> None:
        done = plait("map", function, "--model", model, given="One\nTwo\nThree\n")
        expected = ["One", "Two", "Three"]
        expected = [text.upper() if function == "work:shout" else text.lower() for text in expected]
        assert (done.stdout.split(), done.stderr, done.returncode) == (expected, "", 0)

    def test_a_file_is_read_and_order_is_kept(self, plait: Run, folder: Path) -> None:
        (folder / "lines.txt").write_text("".join(f"{number}\n" for number in range(500)))
        done = plait("map", "work:lowest_last", "lines.txt", "--model", "threads")
        assert done.stdout.split() == [str(number) for number in range(500)]

    def test_unordered_gives_results_as_they_come(self, plait: Run) -> None:
        done = plait("map", "work:lowest_last", "--unordered", "--model", "threads", given="0\n1\n2\n")
        assert done.stdout.split()[-1] == "0"
        assert sorted(done.stdout.split()) == ["0", "1", "2"]

    def test_no_input_is_no_output(self, plait: Run) -> None:
        done = plait("map", "work:shout")
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)

    def test_a_last_line_without_an_end_counts(self, plait: Run) -> None:
        assert plait("map", "work:shout", "--model", "threads", given="a\r\nb").stdout == "A\nB\n"

    def test_functions_inside_classes_and_of_the_standard_library(self, plait: Run) -> None:
        assert plait("map", "work:Namespace.inner", "--model", "threads", given="x\n").stdout == "<x>\n"
        assert plait("map", "math:factorial", "--json", "--model", "threads", given="5\n").stdout == "120\n"

    def test_bytes_that_are_not_utf8_survive(self, folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "plait", "map", "work:check", "--model", "threads"],
            cwd=folder,
            input=b"\xff\xc3\xa9\n",
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.returncode) == (b"\xff\xc3\xa9\n", 0)

    def test_json_lines_in_and_out(self, plait: Run) -> None:
        done = plait("map", "work:half", "--json", "--model", "processes", given="1\n\n4.5\n")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [0.5, 2.25]
        assert done.returncode == 0

    def test_failures_are_told_with_their_lines_and_do_not_stop_the_rest(self, plait: Run) -> None:
        done = plait("map", "work:check", "--model", "processes", given="a\nbad b\nc\nbad d\n")
        assert done.stdout.split() == ["a", "c"]
        assert done.stderr.splitlines() == [
            "line 2: ValueError: this is bad b",
            "line 4: ValueError: this is bad d",
            "plait map: 2 of 4 items failed",
        ]
        assert done.returncode == 1

    def test_the_place_of_a_failure_is_shown_when_asked_for(self, plait: Run) -> None:
        done = plait("map", "work:check", "--model", "processes", "--traceback", given="bad\n")
        assert "in check" in done.stderr
        assert done.returncode == 1

    def test_a_line_that_is_not_json_fails_by_itself(self, plait: Run) -> None:
        done = plait("map", "work:half", "--json", "--model", "threads", given="2\n{oops\n6\n")
        assert done.stdout.split() == ["1.0", "3.0"]
        assert "line 2: ValueError: not JSON" in done.stderr
        assert done.returncode == 1

    def test_a_result_that_json_cannot_hold_fails_by_itself(self, plait: Run) -> None:
        done = plait("map", "work:opaque", "--json", "--model", "threads", given="1\n")
        assert "line 1: TypeError" in done.stderr
        assert done.returncode == 1

    def test_a_worker_that_dies_fails_its_own_line(self, plait: Run) -> None:
        done = plait("map", "work:die", "--model", "processes", given="1\n2\n3\n")
        assert done.stdout.split() == ["1", "3"]
        assert "line 2: WorkerDied" in done.stderr
        assert done.returncode == 1

    def test_the_timeout_is_for_each_item(self, plait: Run) -> None:
        done = plait("map", "work:forever", "--model", "processes", "--timeout", "0.2", given="1\n")
        assert "line 1: TaskTimeout" in done.stderr
        assert done.returncode == 1

    def test_retries(self, plait: Run) -> None:
        done = plait("map", "work:flaky", "--model", "threads", "--retries", "1", given="a\nb\n")
        assert (done.stdout.split(), done.stderr, done.returncode) == (["a", "b"], "", 0)

    def test_progress_counts_on_standard_error(self, plait: Run) -> None:
        done = plait("map", "work:shout", "--model", "threads", "--progress", given="a\nb\n")
        assert done.stdout.split() == ["A", "B"]
        assert "2" in done.stderr

    def test_a_bar_on_a_terminal_leaves_the_output_alone(self, folder: Path) -> None:
        terminal, errors = os.openpty()
        (folder / "lines").write_text("a\nb\n")
        done = subprocess.run(
            [sys.executable, "-m", "plait", "map", "work:shout", "lines", "--model", "threads", "--progress"],
            cwd=folder,
            env={**os.environ, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=errors,
            timeout=60,
            check=False,
        )
        os.close(errors)
        shown = os.read(terminal, 100_000).decode()
        os.close(terminal)
        assert done.stdout == b"A\nB\n"
        assert "work:shout" in shown
        assert "2/" in shown

    @pytest.mark.parametrize("model", ["threads", "processes"])
    def test_results_come_while_the_input_is_still_open(self, start: Start, model: str) -> None:
        process = start("map", "work:shout", "--model", model)
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("first", "second"):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{text.upper()}\n"
        process.stdin.close()
        assert process.wait(30) == 0

    def test_a_closed_output_pipe_ends_it_quietly(self, folder: Path) -> None:
        command = f"yes | {sys.executable} -m plait map work:shout --model threads | head -n 3"
        done = subprocess.run(
            command, cwd=folder, shell=True, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout, done.stderr) == ("Y\nY\nY\n", "")

    def test_an_output_that_cannot_be_written_is_told(self, folder: Path) -> None:
        (folder / "lines").write_text("a\n")
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "plait", "map", "work:shout", "lines", "--model", "threads"],
                cwd=folder,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == "plait map: cannot write the results: No space left on device\n"


class TestInterrupt:
    @pytest.mark.parametrize("model", ["threads", "processes", "tasks"])
    def test_ctrl_c_ends_it_once_and_leaves_nothing(self, start: Start, folder: Path, model: str) -> None:
        process = start("map", "work:forever", "--model", model, "--workers", "2")
        assert process.stdin is not None
        process.stdin.write("1\n2\n3\n")
        process.stdin.flush()
        wait_until(lambda: bool(list(folder.glob("started-*"))), "for the first job to start")
        # As a terminal does: the signal goes to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert (output, errors) == ("", "plait: interrupted\n")
        wait_until(lambda: session_members(process.pid) == [], "for every worker to end")
        running = [Path("/proc", file.name.removeprefix("started-")) for file in folder.glob("started-*")]
        wait_until(lambda: not any(path.exists() for path in running), "for every worker to end")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["map", "nosuch:f"], "No module named 'nosuch'"),
            (["map", "broken:f"], "ZeroDivisionError"),
            (["map", "work:nosuch"], "it has no 'nosuch'"),
            (["map", "work:not_a_function"], "is not a function"),
            (["map", "work"], "MODULE:FUNCTION"),
            (["map", "work.py:shout"], "work:shout"),
            (["map", "work:shout", "nosuch.txt"], "cannot read 'nosuch.txt'"),
            (["map", "work:shout", "--model", "fibres"], "'tasks', 'threads', 'processes'"),
            (["map", "work:shout", "--workers", "0"], "at least 1"),
            (["map", "work:shout", "--workers", "two"], "whole number"),
            (["map", "work:shout", "--timeout", "-1"], "more than 0"),
            (["map", "work:shout", "--retries", "-1"], "at least 0"),
            (["compare", "nosuch:f"], "No module named 'nosuch'"),
            (["compare", "work:shout", "--model", "fibres"], "threads"),
            (["compare", "work:shout", "--workers", "fibres=2"], "unknown model 'fibres'"),
            (["compare", "work:shout", "--workers", "threads=0"], "at least 1"),
            (["compare", "work:shout"], "nothing to measure"),
            (["compare", "work:half", "--json-input", "bad.jsonl"], "line 2: not JSON"),
            (["run", "nosuch.py"], "no file 'nosuch.py'"),
            (["run", "-m", "nosuch"], "no module 'nosuch'"),
            ([], "COMMAND"),
        ],
    )
    def test_what_can_be_mended_is_said_and_exits_with_2(
        self, plait: Run, folder: Path, arguments: list[str], expected: str
    ) -> None:
        (folder / "bad.jsonl").write_text("1\n{\n")
        done = plait(*arguments)
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has interpreters")
    def test_a_model_that_this_python_lacks(self, plait: Run) -> None:
        done = plait("map", "work:shout", "--model", "interpreters")
        assert done.returncode == 2
        assert "3.14" in done.stderr

    @pytest.mark.parametrize("command", [[], ["map"], ["compare"], ["run"]])
    def test_help_has_examples_and_fits_a_terminal(self, plait: Run, command: list[str]) -> None:
        done = plait(*command, "--help")
        assert done.returncode == 0
        assert "examples:" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80

    def test_version(self, plait: Run) -> None:
        done = plait("--version")
        assert done.returncode == 0
        assert done.stdout.startswith("plait 0.")


class TestRun:
    def test_a_script_runs_as_main_with_its_own_arguments(self, plait: Run, folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "neighbour.py").write_text("name = 'neighbour'\n")
        (folder / "sub" / "script.py").write_text(
            "import sys, neighbour\nprint(__name__, sys.argv, neighbour.name)\n"
        )
        done = plait("run", "sub/script.py", "--model", "x")
        assert done.stdout == "__main__ ['sub/script.py', '--model', 'x'] neighbour\n"
        assert done.returncode == 0

    def test_a_module_runs_as_main(self, plait: Run, folder: Path) -> None:
        (folder / "tool.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
        done = plait("run", "-m", "tool", "-v")
        assert done.stdout == "__main__ ['-v']\n"

    def test_the_standard_pools_are_plaits(self, plait: Run, folder: Path) -> None:
        (folder / "script.py").write_text(
            "import concurrent.futures\n"
            "def double(x):\n"
            "    return 2 * x\n"
            "if __name__ == '__main__':\n"
            "    for kind in ('ThreadPoolExecutor', 'ProcessPoolExecutor'):\n"
            "        with getattr(concurrent.futures, kind)(2) as pool:\n"
            "            print(type(pool).__module__.split('.')[0], list(pool.map(double, range(3))))\n"
        )
        done = plait("run", "script.py")
        assert (done.stdout, done.stderr) == ("plait [0, 2, 4]\n" * 2, "")

    def test_the_status_and_the_traceback_are_the_scripts(self, plait: Run, folder: Path) -> None:
        (folder / "leaves.py").write_text("raise SystemExit(7)\n")
        (folder / "fails.py").write_text("def f():\n    raise KeyError('lost')\nf()\n")
        assert plait("run", "leaves.py").returncode == 7
        done = plait("run", "fails.py")
        assert done.returncode == 1
        assert "KeyError: 'lost'" in done.stderr
        assert "fails.py" in done.stderr
