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


def put_files_in_our_places(folder: Path, times: int = 1) -> None:
    """Close every descriptor, and open files that get the same numbers, for good."""
    os.closerange(3, 4096)
    for at in range(20):
        descriptor = os.open(folder / str(at), os.O_RDWR | os.O_CREAT)
        os.write(descriptor, b"of the user" * times)


_held: list[int] = []


def use_up_descriptors() -> int:
    """Open files until there are no descriptors left, and keep them."""
    count = 0
    try:
        while True:
            _held.append(os.open(os.devnull, os.O_RDONLY))
            count += 1
    except OSError:
        return count


def change_signals(how: str) -> str:
    """Have every signal do something else from now on."""
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        if how == "block":
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        else:
            signal.signal(number, signal.SIG_IGN if how == "ignore" else signal.SIG_DFL)
    return how


def stop_itself(path: Path) -> None:
    """Stop this worker, after saying which it is."""
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def kill_parent() -> None:
    """Kill the process that this one was forked from."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def kill_siblings() -> int:
    """Kill all other workers."""
    zygote = os.getppid()
    others = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    for pid in others:
        if int(pid) != os.getpid():
            os.kill(int(pid), signal.SIGKILL)
    return len(others) - 1


def be_traced() -> None:
    """Have this process stop at its next signal, until its parent, which does not know, lets it go on."""
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(600)


def leave_a_child() -> int:
    """Start a program and leave it."""
    import subprocess

    program = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return program.pid


class OnLoad:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> Any:
        return self.function, (self.argument,)

    def __repr__(self) -> str:
        return f"{self.function.__name__}({self.argument!r})"


class Reduced:
    """Tells pickle something else than how it is made."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return self.value

    def __repr__(self) -> str:
        return f"reduced to {self.value!r}"


def make(kind: type[Any], attributes: dict[str, Any]) -> Any:
    """An object that was never pickled on its way here."""
    value = object.__new__(kind)
    value.__dict__.update(attributes)
    return value


class Odd(BaseException):
    """Neither an `Exception` nor one that Python knows."""


def raise_it(error: BaseException) -> None:
    """Raise what is given."""
    raise error


class Liar(Exception):
    """Its pickle is not what it seems."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how

    def __reduce__(self) -> Any:
        match self.how:
            case "not an exception":
                return int, (5,)
            case "raises":
                return raise_it, (ValueError("when unpickled"),)
            case "exits":
                return raise_it, (SystemExit(3),)
            case "interrupts":
                return raise_it, (KeyboardInterrupt(),)
            case "odd":
                return raise_it, (Odd(),)
            case "nonsense":
                return 5
            case _:
                return Liar, (self.how,)

    def __str__(self) -> str:
        if self.how == "str":
            raise ValueError("no text")
        return self.how


def raise_liar(how: str) -> None:
    """Fail with one of these."""
    raise Liar(how)


class Enormous:
    """Pickles to more bytes than there is room for, none of which exist before they are touched."""

    def __reduce_ex__(self, _protocol: Any) -> Any:
        import mmap
        import pickle

        noreserve = 0x4000  # the mmap module of 3.11 does not know the name
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
        return len, (pickle.PickleBuffer(mmap.mmap(-1, 65 << 30, flags=flags)),)


def limit_memory(length: int) -> bytes:
    """Allow this worker little more memory than it has, then make something."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + (16 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return bytes(length)


def import_from(folder: Path, name: str) -> int:
    """Import a module that is in no usual place; the value in it."""
    import importlib
    import sys

    sys.path.insert(0, str(folder))
    return int(importlib.import_module(name).value)
