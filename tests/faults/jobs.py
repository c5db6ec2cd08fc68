"""Jobs that do no good: functions that workers can import, for the tests of this folder."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from pathlib import Path
from typing import Any


def double(value: int) -> int:
    """A job without any mischief."""
    return value * 2


def wait_for(path: Path) -> int:
    """Wait until there is a file; the worker's process id."""
    while not path.exists():
        time.sleep(0.002)
    return os.getpid()


def announce_and_wait_for(begun: Path, go: Path) -> int:
    """Leave a mark, wait for another."""
    begun.with_name(f"{begun.name}-{os.getpid()}").touch()
    begun.touch()
    return wait_for(go)


def leave_mark(log: Path) -> None:
    """Say that this job has run, by a line."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")


def mark_and_die(log: Path, how: str) -> None:
    """Say that this job has run, then die."""
    leave_mark(log)
    die(how)


def die(how: str) -> None:
    """End this worker's process."""
    match how:
        case "exit":
            os._exit(17)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.abort()
        case _:
            os.kill(os.getpid(), getattr(signal, how))
            time.sleep(60)


def close_everything() -> str:
    """Close every descriptor but the standard ones."""
    os.closerange(3, 4096)
    return "closed"


def lanes() -> list[tuple[int, int]]:
    """Where this worker's lane is mapped: start and length."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:plait-lane" in line:
            start, _, end = line.split()[0].partition("-")
            found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found


def scribble(seed: int, where: str, log: Path | None = None) -> str:
    """Write rubbish over this worker's own lane."""
    if log is not None:
        leave_mark(log)
    chance = random.Random(seed)
    first, last = {
        "control": (0, 4096),
        "rings": (4096, 1 << 20),
        "all": (0, 1 << 20),
        "word": (0, 64),
        "bells": (2048, 4096),
        "zeros": (0, 1 << 20),
        "ones": (0, 1 << 20),
    }[where]
    for start, _ in lanes():
        size = last - first
        rubbish = {"zeros": bytes(size), "ones": b"\xff" * size}.get(where) or chance.randbytes(size)
        ctypes.memmove(start + first, rubbish, size)
    return "scribbled"


def scribble_here_and_there(seed: int, log: Path) -> str:
    """Change a few words of the control page."""
    leave_mark(log)
    chance = random.Random(seed)
    for start, _ in lanes():
        for _ in range(chance.randrange(1, 12)):
            word = chance.choice([0, 1, 2**32, 2**63, chance.randrange(2**64), chance.randrange(300)])
            ctypes.memmove(start + 8 * chance.randrange(512), word.to_bytes(8, "little"), 8)
    return "scribbled"


def start_others() -> list[Any]:
    """Start a thread and a program, and use both."""
    import subprocess
    import threading

    said: list[Any] = []
    thread = threading.Thread(target=said.append, args=("thread",))
    thread.start()
    thread.join()
    said.append(subprocess.run(["echo", "program"], capture_output=True, text=True, check=True).stdout)
    return said


def leave_a_thread(path: Path) -> int:
    """Leave a thread behind that runs on for as long as the worker lives."""
    import threading

    threading.Thread(target=wait_for, args=(path,), daemon=True).start()
    return threading.active_count()


def fork_and_return() -> tuple[str, int]:
    """Both the worker and its child come back from here."""
    child = os.fork()
    if child == 0:
        return ("child", 0)
    _, status = os.waitpid(child, 0)
    return ("parent", os.waitstatus_to_exitcode(status))


def fork_and_raise() -> int:
    """The child raises, the worker tells how it ended."""
    child = os.fork()
    if child == 0:
        raise ValueError("in the child")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def nest(depth: int, value: int) -> int:
    """Use a pool inside of a worker."""
    if depth == 0:
        return value + 1
    from plait.process_pool import ProcessPool

    pool = ProcessPool(1)
    try:
        return int(pool.submit(nest, (depth - 1, value), {}).result(60)) + 1
    finally:
        pool.shutdown()


def use_multiprocessing(count: int) -> int:
    """Use the standard pool inside of a worker."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return sum(pool.map(double, range(count)))


def refuse_to_start(how: str) -> None:
    """An initializer that does not come to its end."""
    if how == "raise":
        raise LookupError("no such shelf")
    if how == "sys.exit":
        raise SystemExit(3)
    die(how)


def sleep_long() -> None:
    """Longer than any test."""
    time.sleep(600)


def spin_long() -> None:
    """The same without ever waiting."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        pass


def take(seconds: float, value: int) -> int:
    """Take so long."""
    time.sleep(seconds)
    return value


def mark_and_answer(log: Path, number: int, data: bytes, length: int) -> tuple[int, int, bytes]:
    """Say which job has run, by one write; answer with what tells whether the right arguments came."""
    with log.open("ab", buffering=0) as file:
        file.write(number.to_bytes(8, "little"))
    return number, len(data), bytes([number % 251]) * length
