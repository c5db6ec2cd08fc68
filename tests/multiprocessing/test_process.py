"""`Process`: the same with every start method; and what becomes of children when somebody dies."""

from __future__ import annotations

import importlib
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import process_calls as calls
import pytest
from faults.leftovers import excess, holdings, wait_until_gone

import plait.multiprocessing
from plait.multiprocessing import forkserver


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def context(request: pytest.FixtureRequest, package: Any) -> Any:
    """A start method of the standard package, and ours of the same name."""
    return package.get_context(request.param)


@pytest.fixture
def zygote() -> Iterator[Any]:
    """A zygote of this test's own."""
    forkserver._forkserver._stop()
    yield forkserver._forkserver
    forkserver._forkserver._stop()
    forkserver.set_forkserver_preload(["__main__"])


def test_a_process_lives_and_ends(context: Any) -> None:
    receiver, sender = context.Pipe(False)
    process = context.Process(target=calls.send, args=(sender, "sent"), name="sender")
    assert process.pid is None
    assert process.exitcode is None
    assert not process.is_alive()
    process.start()
    assert process.is_alive() or process.exitcode == 0
    assert receiver.recv() == "sent"
    process.join(60)
    assert process.exitcode == 0
    assert not process.is_alive()
    assert multiprocessing.connection.wait([process.sentinel], 60) == [process.sentinel]
    assert "name='sender'" in repr(process)
    assert "stopped exitcode=0" in repr(process)
    process.close()
    with pytest.raises(ValueError, match="closed"):
        process.join()


@pytest.mark.parametrize(
    ("target", "args", "code"), [(calls.leave, (7,), 7), (calls.die, (), -signal.SIGKILL)]
)
def test_exit_codes(context: Any, target: Any, args: tuple[Any, ...], code: int) -> None:
    process = context.Process(target=target, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == code


def test_a_process_can_be_ended(context: Any) -> None:
    for end, code in (("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)):
        process = context.Process(target=calls.sleep, args=(600,))
        process.start()
        process.join(0.05)
        assert process.exitcode is None
        getattr(process, end)()
        process.join(60)
        assert process.exitcode == code


def test_large_arguments_and_many_descriptors(context: Any) -> None:
    pipes = [context.Pipe(False) for _ in range(40)]
    data = bytes(10_000_000)
    process = context.Process(target=calls.send_all, args=([sender for _, sender in pipes], data))
    process.start()
    assert [receiver.recv() for receiver, _ in pipes] == [len(data)] * len(pipes)
    process.join(60)
    for ends in pipes:
        for end in ends:
            end.close()


def test_children_have_children(context: Any) -> None:
    receiver, sender = context.Pipe(False)
    process = context.Process(target=calls.send_of_a_child, args=(sender,))
    process.start()
    assert receiver.recv() == "from a grandchild"
    process.join(60)
    assert process.exitcode == 0


def test_nothing_is_left_of_a_process(zygote: Any) -> None:
    context = plait.multiprocessing.get_context("forkserver")
    context.Process(target=calls.square, args=(1,)).start()  # and the zygote with it, which stays
    for child in context.active_children():
        child.join(60)
    del child
    before = holdings()
    for _ in range(5):
        process = context.Process(target=calls.square, args=(1,))
        process.start()
        process.join(60)
    del process
    assert excess(before) == {}


def test_from_many_threads(zygote: Any) -> None:
    codes: list[int | None] = []

    def start() -> None:
        for number in range(5):
            process = plait.multiprocessing.Process(target=calls.leave, args=(number,))
            process.start()
            process.join(60)
            codes.append(process.exitcode)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(code for code in codes if code is not None) == sorted([*range(5)] * 4)


def test_two_threads_read_one_exit_code(zygote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("plait.multiprocessing.popen_forkserver")
    is_readable, both = module._is_readable, threading.Barrier(2)

    def both_have_seen_the_end(fd: int, timeout: float | None) -> bool:
        readable: bool = is_readable(fd, timeout)
        both.wait(60)
        return readable

    process: Any = plait.multiprocessing.get_context("forkserver").Process(target=calls.leave, args=(3,))
    process.start()
    monkeypatch.setattr(module, "_is_readable", both_have_seen_the_end)
    codes: list[int | None] = []
    threads = [threading.Thread(target=lambda: codes.append(process._popen.poll(0))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert codes == [3, 3]


def test_the_zygote_dies(zygote: Any) -> None:
    context = plait.multiprocessing.get_context("forkserver")
    plain = context.Process(target=calls.sleep, args=(600,))
    daemon = context.Process(target=calls.sleep, args=(600,), daemon=True)
    plain.start()
    daemon.start()
    os.kill(zygote._forkserver_pid, signal.SIGKILL)
    plain.join(60)
    daemon.join(60)
    assert (plain.exitcode, daemon.exitcode) == (255, 255)  # nobody knows
    assert wait_until_gone({daemon.pid}) == set()
    assert wait_until_gone({plain.pid}, limit=0.1) == {plain.pid}
    os.kill(plain.pid, signal.SIGKILL)
    again = context.Process(target=calls.leave, args=(3,))
    again.start()
    again.join(60)
    assert again.exitcode == 3


def test_a_zygote_that_cannot_fork_says_so(zygote: Any) -> None:
    process = plait.multiprocessing.Process(target=calls.sleep, args=(0,))
    with pytest.raises(ValueError, match="too many fds"):
        forkserver.start_child(False, b"", [0] * 256)
    zygote.ensure_running()
    os.kill(zygote._forkserver_pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (zygote._forkserver_pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(EOFError):
        process.start()
    killer.join()


def run(tmp_path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "program.py"
    script.write_text(program)
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_what_belongs_to_a_killed_program_ends_with_it(tmp_path: Path, method: str) -> None:
    program = """
import os, signal, sys, time
import plait.multiprocessing as multiprocessing
from plait.multiprocessing import forkserver
from plait.multiprocessing.managers import SharedMemoryManager

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    segments = SharedMemoryManager()
    segments.start()
    segment = segments.SharedMemory(1000)
    manager = multiprocessing.Manager()
    daemons = [multiprocessing.Process(target=time.sleep, args=(600,), daemon=True) for _ in range(3)]
    for daemon in daemons:
        daemon.start()
    pool = multiprocessing.Pool(1)
    pool.map_async(time.sleep, [600])
    pids = [p.pid for p in (segments._process, manager._process, *daemons, *pool._pool)]
    if sys.argv[1] == "forkserver":
        pids.append(forkserver._forkserver._forkserver_pid)
    print(segment.name, *pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = run(tmp_path, program, method)
    name, *pids = ran.stdout.split()
    assert len(pids) == 6 + (method == "forkserver"), ran.stderr
    assert wait_until_gone({int(pid) for pid in pids}) == set()
    deadline = time.monotonic() + 30  # the resource tracker is the last to go
    while Path("/dev/shm", name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path("/dev/shm", name).exists()


def test_the_main_module_and_preload_are_imported_once(tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text("import os\nwhere = os.getpid()\n")
    program = """
import os, sys
import plait.multiprocessing as multiprocessing
main = os.getpid()
print("imported", file=sys.stdout)

def show():
    import preloaded
    print(main == os.getppid(), preloaded.where == os.getppid(), os.getpid() != main, sys.argv[1:])

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["__main__", "preloaded", "no_such_module"])
    for _ in range(2):
        process = multiprocessing.Process(target=show)
        process.start()
        process.join()
"""
    ran = run(tmp_path, program, "an argument")
    assert ran.stderr == ""
    assert sorted(ran.stdout.splitlines()) == ["True True True ['an argument']"] * 2 + ["imported"] * 2


def test_a_main_module_that_leaves_threads_is_imported_by_children(tmp_path: Path) -> None:
    program = """
import os, threading
import plait.multiprocessing as multiprocessing
main = os.getpid()
threading.Thread(target=threading.Event().wait, daemon=True).start()

def show():
    print(main == os.getpid(), len(os.listdir(f"/proc/{os.getppid()}/task")))

if __name__ == "__main__":
    process = multiprocessing.Process(target=show)
    process.start()
    process.join()
    print(process.exitcode)
"""
    ran = run(tmp_path, program)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == ["True 1", "0"]


def test_an_unguarded_main_module_is_told_what_to_do(tmp_path: Path, package: Any) -> None:
    program = f"""
import {package.__name__} as multiprocessing
process = multiprocessing.get_context("forkserver").Process(target=print)
process.start()
process.join()
print("exit code", process.exitcode)
"""
    ran = run(tmp_path, program)
    assert "An attempt has been made to start a new process before" in ran.stderr
    assert ran.stdout.splitlines() == ["exit code 1"]


def test_ctrl_c_reaches_children_and_not_the_zygote(tmp_path: Path) -> None:
    program = """
import os, signal, time
import plait.multiprocessing as multiprocessing

def wait(ready):
    try:
        ready.set()
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)

if __name__ == "__main__":
    ready = multiprocessing.Event()
    process = multiprocessing.Process(target=wait, args=(ready,))
    process.start()
    ready.wait()
    time.sleep(0.1)
    try:
        os.killpg(0, signal.SIGINT)
        process.join()
    except KeyboardInterrupt:
        process.join()
    again = multiprocessing.Process(target=print, args=("still here",))
    again.start()
    again.join()
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    ran = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == ["interrupted", "still here"]
