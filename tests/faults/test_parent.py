"""The pool's own process is killed, interrupted, forked: nothing stays behind, and it can always leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from faults import jobs
from faults.leftovers import children, wait_until_asleep, wait_until_gone
from plait.process_pool import ProcessPool

HERE = str(Path(__file__).resolve().parent.parent)


@contextmanager
def program(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own, and end all of it afterwards."""
    preamble = f"import sys\nsys.path.insert(0, {HERE!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(text), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    """What it says next; a timer ends it if it says nothing."""
    assert process.stdout is not None
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline().strip()
    finally:
        watchdog.cancel()


RUNNING = """
    import os, pathlib, time
    from faults import jobs
    from plait.process_pool import ProcessPool

    def begin(count, job=jobs.announce_and_wait_for):
        folder = pathlib.Path(sys.argv[1])
        pool = ProcessPool(count)
        futures = [pool.submit(job, (folder / "begun", folder / "never"), {}) for _ in range(count)]
        while len(list(folder.glob("begun-*"))) < count:
            time.sleep(0.002)
        return pool, futures
"""


def workers_in(folder: Path) -> set[int]:
    """The processes that have begun a job there."""
    return {int(path.name.partition("-")[2]) for path in folder.glob("begun-*")}


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_is_left_of_a_pool_whose_process_is_killed(tmp_path: Path, stopped: bool) -> None:
    segments = set(Path("/dev/shm").iterdir())
    with program(
        RUNNING + "    begin(2)\n    print('ready', flush=True)\n    time.sleep(60)\n", tmp_path
    ) as parent:
        assert read_line(parent) == "ready"
        family = children(parent.pid)
        workers = workers_in(tmp_path)
        assert workers < family
        if stopped:
            os.kill(min(workers), signal.SIGSTOP)
        parent.kill()
        assert wait_until_gone(family, 1.0) == set()
    assert set(Path("/dev/shm").iterdir()) <= segments


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06])
def test_a_process_that_is_killed_while_its_pool_starts(moment: float) -> None:
    text = """
        from faults import jobs
        from plait.process_pool import ProcessPool
        pool = ProcessPool(2)
        print("ready", flush=True)
        for at in range(1000):
            pool.submit(jobs.sleep_long, (), {})
        pool.shutdown()
    """
    with program(text) as parent:
        assert read_line(parent) == "ready"
        time.sleep(moment)  # not to wait for something: to hit the start at another point each time
        os.kill(parent.pid, signal.SIGSTOP)
        family = children(parent.pid)
        parent.kill()
        assert wait_until_gone(family, 1.0) == set()


def test_a_child_that_outlives_its_parent_does_not_keep_the_workers(tmp_path: Path) -> None:
    """A fork of the pool's process holds the link to the zygote open, so that alone tells nothing."""
    text = (
        RUNNING
        + """
    begin(2)
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""
    )
    with program(text, tmp_path) as parent:
        child = int(read_line(parent))
        try:
            family = children(parent.pid) - {child}
            assert workers_in(tmp_path) < family
            parent.kill()
            assert wait_until_gone(family, 1.0) == set()
        finally:
            os.kill(child, signal.SIGKILL)


FORKING = """
    import os, sys, threading
    from faults import jobs
    from plait.process_pool import ProcessPool

    pool = ProcessPool(2)
    assert pool.submit(jobs.double, (4,), {}).result() == 8
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            assert pool.submit(jobs.double, (bytes(200_000),), {}).result() == bytes(400_000)
            pool.submit(lambda: jobs, (), {}).result()

    threads = [threading.Thread(target=keep_busy) for _ in range(2)]
    [thread.start() for thread in threads]
    for how in ["submit", "large", "closure", "statistics", "shutdown", "terminate", "drop", "exit"] * 4:
        child = os.fork()
        if child == 0:
            try:
                match how:
                    case "submit":
                        pool.submit(jobs.double, (1,), {})
                    case "large":
                        pool.submit(jobs.double, (b"x" * 300_000,), {})
                    case "closure":
                        pool.submit(lambda: how, (), {})
                    case "statistics":
                        pool.statistics()
                    case "shutdown":
                        pool.shutdown()
                    case "terminate":
                        pool.terminate()
                    case "drop":
                        del pool
                    case _:
                        sys.exit(5)
            except RuntimeError as error:
                os._exit(3 if "fork" in str(error) else 4)
            os._exit(5)
        _, status = os.waitpid(child, 0)
        expected = 3 if how in ("submit", "large", "closure") else 5
        assert os.waitstatus_to_exitcode(status) == expected, (how, os.waitstatus_to_exitcode(status))
    stop.set()
    [thread.join() for thread in threads]
    assert pool.submit(jobs.double, (5,), {}).result() == 10
    pool.shutdown()
    print("done")
"""


def test_a_fork_of_a_process_with_a_pool_refuses_to_submit_and_can_leave() -> None:
    with program(FORKING) as parent:
        said, complained = parent.communicate(timeout=60)
    assert (said, parent.returncode) == ("done\n", 0), complained


def test_a_pool_of_its_own_in_a_fork() -> None:
    text = """
        import os
        from faults import jobs
        from plait.process_pool import ProcessPool

        first = ProcessPool(1)
        assert first.submit(jobs.double, (4,), {}).result() == 8
        child = os.fork()
        second = ProcessPool(1)
        assert second.submit(jobs.double, (5,), {}).result() == 10
        second.shutdown()
        if child == 0:
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert first.submit(jobs.double, (6,), {}).result() == 12
        print("child", os.waitstatus_to_exitcode(status))
    """
    with program(text) as parent:
        said, complained = parent.communicate(timeout=60)
    assert (said, parent.returncode) == ("child 0\n", 0), complained


@pytest.mark.parametrize("waits_in", ["result", "map", "shutdown", "exit", "wait", "with"])
def test_ctrl_c_ends_everything_at_once(tmp_path: Path, waits_in: str) -> None:
    """One traceback, within a second, no process left."""
    last = {
        "result": "futures[0].result()",
        "map": "list(ex.map(jobs.take, [600] * 4, range(4)))",
        "shutdown": "pool.shutdown()",
        "exit": "",
        "wait": "import concurrent.futures; concurrent.futures.wait(futures)",
        "with": "ex.__enter__(); ex.submit(jobs.sleep_long); ex.__exit__(None, None, None)",
    }[waits_in]
    text = (
        RUNNING
        + f"""
    import plait
    pool, futures = begin(2)
    ex = plait.Executor("processes", workers=1)
    more = [pool.submit(jobs.sleep_long, (), {{}}) for _ in range(20)]
    print("ready", flush=True)
    {last}
"""
    )
    with program(text, tmp_path) as parent:
        assert read_line(parent) == "ready"
        # The main thread goes on to wait; whether it has come there yet must not matter, but in the standard
        # library's own wait: CPython does not notice a signal between its last look and its sleep on a lock.
        if waits_in == "wait":
            wait_until_asleep(parent.pid)
        family = children(parent.pid)
        assert workers_in(tmp_path) < family
        os.killpg(parent.pid, signal.SIGINT)
        begun = time.monotonic()
        try:
            _, complained = parent.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            pytest.fail(f"Ctrl-C while in {waits_in} does not end the program")
        took = time.monotonic() - begun
        assert wait_until_gone(family) == set()
    assert complained.count("Traceback") == 1, complained
    assert complained.count("KeyboardInterrupt") == 1, complained
    # While it exits, Python itself reports the interrupt and carries on, with the status it had. (It may also
    # not have come that far: then the interrupt ends the script like any other.)
    interrupted = (-signal.SIGINT, 130)
    assert parent.returncode in ((0, *interrupted) if waits_in == "exit" else interrupted)
    print(f"{waits_in}: {took:.3f} s")


def test_ctrl_c_that_is_caught_leaves_the_pool_in_order(tmp_path: Path) -> None:
    """Workers do not take notice of it: what runs goes on running."""
    text = (
        RUNNING
        + """
    pool, futures = begin(2)
    try:
        print("ready", flush=True)
        futures[0].result()
    except KeyboardInterrupt:
        (pathlib.Path(sys.argv[1]) / "never").touch()
        print(len({future.result() for future in futures}), flush=True)
    print(pool.submit(jobs.double, (4,), {}).result(), flush=True)
    pool.shutdown()
"""
    )
    with program(text, tmp_path) as parent:
        assert read_line(parent) == "ready"
        os.killpg(parent.pid, signal.SIGINT)
        said, complained = parent.communicate(timeout=30)
    assert said.split() == ["2", "8"]
    assert complained == ""


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_does_not_stop_the_collector(kind: type[BaseException]) -> None:
    pool = ProcessPool(1)

    def fail(_future: object) -> None:
        raise kind("in a callback")

    try:
        for _ in range(3):
            pool.submit(jobs.double, (1,), {}).add_done_callback(fail)
        assert pool.submit(jobs.double, (2,), {}).result(60) == 4
    finally:
        pool.shutdown()


def test_a_callback_may_use_the_pool() -> None:
    pool = ProcessPool(2)
    results: list[int] = []
    done = threading.Event()

    def go_on(future: object) -> None:
        results.append(future.result())  # type: ignore[attr-defined]
        if len(results) < 50:
            pool.submit(jobs.double, (len(results),), {}).add_done_callback(go_on)
        else:
            pool.shutdown(wait=False)
            done.set()

    pool.submit(jobs.double, (0,), {}).add_done_callback(go_on)
    assert done.wait(60)
    pool.shutdown()
    assert results == [2 * at for at in range(50)]
