"""What a worker says besides answers: logs, warnings and printed lines reach the parent whole and once."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

import plait
from plait._notes import Notes
from plait._relay import LOG, OUT


class Unsendable:
    """Something that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")

    def __str__(self) -> str:
        return "<unsendable>"


class Careful(UserWarning):
    """A category of one's own."""


def log_of_all_kinds(times: int) -> None:
    """Log, in as many ways as there are."""
    log = logging.getLogger("outfit.work")
    log.info("plain %s of %d", ["a", {"b": 1}], times)
    log.warning("with %s", Unsendable(), extra={"context": Unsendable(), "count": times})
    log.warning("does not %d fit", Unsendable())
    try:
        raise LookupError("lost")
    except LookupError:
        log.exception("failed")


def log(name: str, level: int, text: str) -> int:
    """Log one record."""
    logging.getLogger(name).log(level, text)
    return os.getpid()


async def log_later(text: str) -> None:
    """Log one record from a coroutine."""
    logging.getLogger("outfit").warning(text)


def warn(category: type[Warning]) -> None:
    """Warn from one place."""
    warnings.warn("be careful", category, stacklevel=1)


def say(*lines: str) -> None:
    """Print lines, the last of which has no end."""
    print(*lines, sep="\n", end="")


def say_and_die(how: str) -> None:
    """Print a line and end at once."""
    print(f"last words before {how}")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_log_records_reach_the_parents_handlers_before_the_result(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), plait.Executor("processes", 1) as ex:
        ex.submit(log_of_all_kinds, 3).result(60)
        plain, extra, unfit, failed = caplog.records
        pid = ex.submit(os.getpid).result(60)
    assert (plain.getMessage(), plain.args) == ("plain ['a', {'b': 1}] of 3", (["a", {"b": 1}], 3))
    assert (extra.getMessage(), extra.args) == ("with <unsendable>", None)
    assert (extra.context, extra.count) == ("<unsendable>", 3)  # type: ignore[attr-defined]
    assert unfit.getMessage().startswith("does not %d fit")
    assert "LookupError: lost" in (failed.exc_text or "")
    for record in caplog.records:
        assert (record.process, record.processName) == (pid, "plait-worker-1")
        assert record.job == record.taskName == "log_of_all_kinds"  # type: ignore[attr-defined]
        assert record.pathname == __file__


def test_a_record_has_the_name_that_the_job_was_given(caplog: pytest.LogCaptureFixture) -> None:
    with plait.Executor("processes", 1) as ex:
        ex.options(name="tidy up").submit(log, "outfit", logging.WARNING, text="one").result(60)
        ex.options(name="wait").submit(log_later, "two").result(60)
        list(ex.map(log_later, ["three"], name="many"))
        list(ex.map(log_later, ["four"]))
    names = [record.job for record in caplog.records]  # type: ignore[attr-defined]
    assert names == ["tidy up", "wait", "many", "log_later"]


def test_the_jobs_of_a_hybrid_worker_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    with plait.Executor("hybrid", 1) as ex:
        list(ex.map(log_later, ["one"] * 3, name="waits"))
        ex.options(name="blocks").submit(log, "outfit", logging.WARNING, "two").result(60)
    names = [record.job for record in caplog.records]  # type: ignore[attr-defined]
    assert names == ["waits"] * 3 + ["blocks"]


@pytest.mark.parametrize("model", ["processes", "hybrid"])
def test_records_come_before_results_however_those_are_waited_for(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait_for_all(ex: plait.Executor) -> None:
        async def one(text: str) -> None:
            await ex.submit(log, "outfit", logging.WARNING, text)
            assert text in caplog.messages

        await asyncio.gather(*[one(f"awaited {number}") for number in range(50)])

    with plait.Executor(model, 2) as ex:
        asyncio.run(wait_for_all(ex))
        texts = [f"mapped {number}" for number in range(50)]
        for text, _ in zip(texts, ex.map(log, ["outfit"] * 50, [logging.WARNING] * 50, texts), strict=True):
            assert text in caplog.messages
        for number in range(50):
            ex.submit(log, "outfit", logging.WARNING, f"submitted {number}").result(60)
            assert f"submitted {number}" in caplog.messages


def test_the_parents_levels_and_filters_hold(caplog: pytest.LogCaptureFixture) -> None:
    with plait.Executor("processes", 1) as ex:
        # Set after the pool was made, before it is used.
        caplog.set_level(logging.ERROR)
        caplog.set_level(logging.DEBUG, "outfit.noisy")
        refuse = logging.getLogger("outfit.refused")
        refuse.addFilter(lambda record: "secret" not in record.getMessage())
        for name, level, text in [
            ("outfit.quiet", logging.WARNING, "no"),
            ("outfit.quiet", logging.ERROR, "quiet"),
            ("outfit.noisy.part", logging.DEBUG, "noisy"),
            ("outfit.refused", logging.ERROR, "secret"),
            ("outfit.refused", logging.ERROR, "open"),
        ]:
            ex.submit(log, name, level, text).result(60)
    assert [record.getMessage() for record in caplog.records] == ["quiet", "noisy", "open"]


def test_a_worker_that_does_not_log_does_not_import_logging() -> None:
    with plait.Executor("processes", 1) as ex:
        assert ex.submit(eval, "'logging' in __import__('sys').modules").result(60) is False


def test_a_handler_may_wait_for_the_pool_itself() -> None:
    with plait.Executor("processes", 1) as ex:
        results: queue.SimpleQueue[int] = queue.SimpleQueue()

        class Asking(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                results.put(ex.submit(pow, 2, 5).result(60))

        handler = Asking()
        logging.root.addHandler(handler)
        try:
            for _ in range(2):
                ex.submit(log, "outfit", logging.WARNING, "ask").result(60)
                assert results.get(timeout=60) == 32
        finally:
            logging.root.removeHandler(handler)


def test_a_handler_that_blocks_holds_up_neither_results_nor_shutdown() -> None:
    go_on, done = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.wait()
            done.set()

    handler = Blocking()
    logging.root.addHandler(handler)
    try:
        with plait.Executor("processes", 1) as ex:
            ex.submit(log, "outfit", logging.WARNING, "block").result(60)
            assert ex.submit(pow, 2, 5).result(60) == 32
        assert not done.is_set()
    finally:
        go_on.set()
        assert done.wait(60)
        logging.root.removeHandler(handler)


def test_what_nobody_deals_with_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait._notes._MOST_NOTES", 10)
    go_on = threading.Event()
    text = io.StringIO()

    class Slow(io.StringIO):
        def write(self, line: str, /) -> int:
            go_on.wait()
            return text.write(line)

    monkeypatch.setattr(sys, "stdout", Slow())
    notes = Notes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(100):
            notes.tell([(OUT, f"{number}\n".encode())])
        go_on.set()
        notes.end()
        notes.join()
    assert text.getvalue().split() == [str(number) for number in range(11)]
    assert [
        "89 log records or lines of worker processes were dropped" in str(one.message) for one in caught
    ] == [True]


def test_a_note_that_makes_no_sense_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes()
    notes.tell([(LOG, b"rubbish"), (77, b"unknown"), (OUT, b"fine\n")])
    notes.end()
    notes.join()
    captured = capsys.readouterr()
    assert captured.out == "fine\n"
    assert "Traceback" in captured.err


def test_a_warning_is_shown_once_with_its_category_and_place() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with plait.Executor("processes", 2) as ex:
            list(ex.map(warn, [UserWarning] * 10 + [Careful] * 10 + [DeprecationWarning] * 2))
    assert {one.category for one in caught} == {UserWarning, Careful, DeprecationWarning}
    assert len(caught) == 3
    assert all(one.filename == __file__ and str(one.message) == "be careful" for one in caught)
    assert len({one.lineno for one in caught}) == 1


def test_the_parents_filters_of_warnings_hold() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error", ResourceWarning)
        warnings.filterwarnings("ignore", message="be c", category=UserWarning)
        with plait.Executor("processes", 1) as ex:
            ex.submit(warn, UserWarning).result(60)
            assert isinstance(ex.submit(warn, ResourceWarning).exception(60), ResourceWarning)
    assert caught == []


def test_what_is_printed_reaches_the_parents_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where `sys.stdout` is not the process's standard output."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    long = "x" * 100_000
    with plait.Executor("processes", 1) as ex:
        ex.submit(say, "one", long, "two").result(60)
        assert out.getvalue() == f"one\n{long}\n"
        ex.submit(print, "three", "\udcff").result(60)
        ex.submit(os.write, 1, b"").result(60)
        for how in ("exit", "signal"):
            assert isinstance(ex.submit(say_and_die, how).exception(60), plait.WorkerDied)
    expected = f"one\n{long}\ntwothree \udcff\nlast words before exit\nlast words before signal\n"
    assert out.getvalue() == expected
    assert err.getvalue() == ""


def run(text: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program whose standard output is a pipe."""
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_lines_are_not_interleaved() -> None:
    program = """
import plait, sys, threading
def chatter(worker):
    def speak(thread):
        for number in range(100):
            length = (number * 97) % 3000 if number % 10 else 9000
            print(worker, thread, number, "x" * length, sep=",")
    threads = [threading.Thread(target=speak, args=(at,)) for at in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
with plait.Executor("processes", 3) as ex:
    list(ex.map(chatter, range(3)))
"""
    done = run(program)
    assert done.stderr == ""
    lines = [line.split(",") for line in done.stdout.splitlines()]
    assert len(lines) == 900
    for *_, number, text in lines:
        assert text == "x" * ((int(number) * 97) % 3000 if int(number) % 10 else 9000)
    for worker in range(3):
        for thread in range(3):
            numbers = [line[2] for line in lines if line[:2] == [str(worker), str(thread)]]
            assert numbers == [str(number) for number in range(100)]


def test_a_line_before_a_sudden_end_is_not_lost() -> None:
    done = run("""
import plait, os, signal
def die(how):
    print("last words", how)
    os._exit(0) if how else os.kill(os.getpid(), signal.SIGKILL)
with plait.Executor("processes", 1) as ex:
    for how in range(2):
        ex.submit(die, how).exception()
""")
    assert (done.stdout, done.stderr) == ("last words 0\nlast words 1\n", "")


def test_what_was_printed_before_the_first_job_comes_first() -> None:
    done = run("""
import plait
print("before")
with plait.Executor("processes", 1) as ex:
    ex.submit(print, "within").result()
    print("after")
""")
    assert done.stdout == "before\nwithin\nafter\n"


def test_after_a_fork_in_a_job_nothing_is_sent_twice(tmp_path: Path) -> None:
    program = """
import contextlib, logging, os, plait, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
def job():
    import logging
    print("begun", end="; ")
    logging.warning("before")
    pid = os.fork()
    if pid == 0:
        print("child")
        logging.warning("in the child")
        return
    os.waitpid(pid, 0)
    print("parent")
    logging.warning("after")
if sys.argv[1:]:
    sys.stdout = open(sys.argv[1], "w")
logging.basicConfig(format="%(message)s")
with plait.Executor("processes", 1) as ex:
    ex.submit(job).result()
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "child\nbegun; parent\n"
    assert sorted(done.stderr.splitlines()) == ["after", "before", "in the child"]
    said = tmp_path / "said"
    done = subprocess.run(
        [sys.executable, script, said], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, said.read_text()) == ("child\n", "begun; parent\n")


def test_a_pool_in_a_worker_speaks_through_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with plait.Executor("processes", 1) as ex:
        outer, inner = ex.submit(speak_through_a_pool).result(60)
    assert out.getvalue() == "from within\n"
    (record,) = caplog.records
    assert (record.process, record.job) == (inner, "log")  # type: ignore[attr-defined]
    assert outer != inner


def speak_through_a_pool() -> tuple[int, int]:
    """Print and log in a worker of a worker."""
    with plait.Executor("processes", 1) as ex:
        ex.submit(print, "from within").result(60)
        return os.getpid(), ex.submit(log, "outfit", logging.WARNING, "from within").result(60)
