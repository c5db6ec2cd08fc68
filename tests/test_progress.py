"""The bar of ``map(progress=True)``: on a terminal, in a log and in a notebook; it counts what is done."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import plait
from plait import progress


@pytest.fixture
def ex() -> Iterator[plait.Executor]:
    with plait.Executor("threads", 2) as executor:
        yield executor


def double(x: int) -> int:
    return 2 * x


def test_a_log_gets_whole_lines(
    ex: plait.Executor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    assert list(ex.map(double, range(20), progress=True)) == [2 * x for x in range(20)]
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"double: 1 of 20 done \(5 %\), \S+/s, about .* left", lines[0])
    assert re.fullmatch(r"double: 20 of 20 done in \S+ s \(\S+/s\)", lines[-1])


def test_a_short_map_leaves_one_line_in_a_log(ex: plait.Executor, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(ex.map(double, iter(range(20)), progress=True, ordered=False, name="twice")) == [
        2 * x for x in range(20)
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"twice: 20 done in \S+ s \(\S+/s\)\n", err)


@pytest.mark.parametrize("chunksize", [1, 6])
def test_inputs_are_counted_whatever_the_chunks(
    ex: plait.Executor, capsys: pytest.CaptureFixture[str], chunksize: int
) -> None:
    assert sum(ex.map(double, range(20), progress=True, chunksize=chunksize)) == 380
    assert "double: 20 of 20 done in" in capsys.readouterr().err


def test_options_turn_it_on_and_the_call_off(ex: plait.Executor, capsys: pytest.CaptureFixture[str]) -> None:
    view = ex.options(progress=True)
    list(view.map(double, range(3)))
    assert "3 of 3" in capsys.readouterr().err
    list(view.map(double, range(3), progress=False))
    list(ex.map(double, range(3)))
    assert capsys.readouterr().err == ""


def test_finished_jobs_count_before_anybody_takes_their_results(
    ex: plait.Executor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    results = ex.map(double, range(100), progress=True, buffersize=10)
    assert next(results) == 0
    seen = ""
    for _ in range(1000):
        seen += capsys.readouterr().err
        if "10 of 100" in seen:
            break
        time.sleep(0.01)
    assert "10 of 100" in seen
    assert "12 of 100" not in seen
    results.close()
    assert "of 100 done when it was stopped after" in capsys.readouterr().err


def test_an_error_ends_it_before_the_traceback(
    ex: plait.Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        list(ex.map(lambda x: 1 // (5 - x), range(100), progress=True, buffersize=1))
    assert re.search(r"<lambda>: 6 of 100 done when it was stopped after", capsys.readouterr().err)


def test_cancelled_jobs_do_not_count() -> None:
    bar = progress.Bar("work", 10)
    done: plait.Future[int] = plait.Future()
    done.add_done_callback(bar.counter(1))
    done.set_result(1)
    cancelled: plait.Future[int] = plait.Future()
    cancelled.add_done_callback(bar.counter(4))
    cancelled.cancel()
    assert bar.done == 1
    bar.close()


def test_a_notebook_gets_one_output_that_is_redrawn(
    ex: plait.Executor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    shows = ModuleType("IPython.display")
    shows.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    list(ex.map(double, range(20), progress=True))
    assert shown[0] == "double: 0 of 20 done (0 %), 0/s"
    assert "20 of 20 done in" in shown[-1]
    assert capsys.readouterr().err == ""


PROGRAM = """
import sys, time
import plait

def work(x):
    time.sleep(0.01)
    if x == int(sys.argv[2]):
        raise ValueError("that one")
    return x

with plait.Executor("threads", 4) as ex:
    if sys.argv[1] == "one":
        for x in ex.map(work, range(100), progress=True, name="[b]work[/b]"):
            if x == 50:
                print("half of it")
    elif sys.argv[1] == "two":
        one = ex.map(work, range(50), progress=True, name="one")
        two = ex.map(work, iter(range(50)), progress=True, name="two")
        for _ in zip(one, two):
            pass
        list(one)
    else:
        for x in ex.map(work, range(100), progress=True):
            if x == 50:
                raise RuntimeError("the loop's own")
"""

SHOW_CURSOR = "\x1b[?25h"


def on_a_terminal(*arguments: str) -> str:
    """What a terminal gets from the program."""
    ours, theirs = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                return
            if not part:
                return
            parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as program:
        os.close(theirs)
        program.wait(60)
    reader.join(60)
    os.close(ours)
    return b"".join(parts).decode()


def plain(text: str) -> str:
    """Without the escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def test_a_terminal_gets_a_bar_and_is_left_as_it_was() -> None:
    text = on_a_terminal("one", "-1")
    assert text.rstrip().endswith(SHOW_CURSOR) or SHOW_CURSOR in text.splitlines()[-1]
    lines = plain(text).splitlines()
    assert any(re.search(r"\[b\]work\[/b\] .*100/100.*100%", line) for line in lines)
    assert "half of it\n" in plain(text)


def test_two_bars_share_the_terminal() -> None:
    lines = plain(on_a_terminal("two", "-1")).splitlines()
    assert any(re.search(r"one .*50/50", line) for line in lines)
    assert any(re.search(r"two .*50/\?", line) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("one", "60"), "ValueError: that one"), (("loop", "-1"), "RuntimeError: the loop")],
)
def test_a_traceback_comes_whole_and_after_the_bar(arguments: tuple[str, str], error: str) -> None:
    text = on_a_terminal(*arguments)
    traceback = text[text.index("Traceback") :]
    assert "work" not in re.sub(r"File .*|.*ex\.map.*|.*raise.*|.*[~^]+|.*yield.*", "", plain(traceback))
    assert error in plain(traceback).splitlines()[-1]
    assert SHOW_CURSOR in text[: text.index("Traceback")]
