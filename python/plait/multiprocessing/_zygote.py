"""The zygote of `plait.multiprocessing`: started by `exec`, has one thread, forks a program's processes.

Its standard input is the link. README.md beside this file says what is said on it, and what happens if
somebody dies.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import marshal
import os
import select
import signal
import socket
import struct
import sys
import warnings

# As `typing.TYPE_CHECKING`, without importing it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_MOST_FDS = 256
_LONGEST_MESSAGE = 64 * 1024
_STATUS = struct.Struct("q")


def main() -> None:
    """Serve until the last client has gone."""
    with socket.socket(fileno=os.dup(0)) as link:
        _serve(link)


def _serve(link: socket.socket) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    handled = signal.signal(signal.SIGINT, _leave_it)
    with contextlib.suppress(OSError):
        os.setpgid(0, os.getpgid(os.getppid()))
    if len(sys.argv) > 1:  # started anew
        memory = int(sys.argv[1])
    else:
        message, _, fds = _receive(link)
        if message != b"C" or not fds:
            return
        memory = fds[0]
    configuration = marshal.loads(_read(memory))
    sys.path[:] = configuration["path"]
    _import_what_children_need()
    _preload(link, configuration)
    for stream in (sys.stdout, sys.stderr):  # else what an import has printed would be printed by each child
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    gc.collect()
    gc.freeze()  # so that no child copies these pages only because its collector looks at them
    Zygote(link, handled).serve()


def _leave_it(*_: object) -> None:
    """Handle Ctrl-C by doing nothing. Not SIG_IGN: what children start by `exec` would inherit it."""


def _import_what_children_need() -> None:
    import multiprocessing.spawn  # noqa: F401

    import plait.multiprocessing.popen_forkserver  # noqa: F401


def _preload(link: socket.socket, configuration: dict[str, Any]) -> None:
    from multiprocessing import process, spawn

    if configuration["main"]:
        sys.argv[:] = configuration["argv"]
        process.current_process()._inheriting = True
        # Whatever it raises it will raise again in the child, which has somebody to tell.
        with contextlib.suppress(BaseException):
            spawn.prepare(configuration["main"])
        del process.current_process()._inheriting
        if _leaves_threads():
            _start_anew(link, {**configuration, "main": None})
    for name in configuration["preload"]:
        with contextlib.suppress(Exception):
            __import__(name)


def _leaves_threads() -> bool:
    """Whether there are threads that stay. Some libraries end theirs before a fork."""
    if len(os.listdir("/proc/self/task")) == 1:  # noqa: PTH208
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: they are what this is about
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return len(os.listdir("/proc/self/task")) > 1  # noqa: PTH208


def _start_anew(link: socket.socket, configuration: dict[str, Any]) -> NoReturn:
    """Become another zygote, with this configuration and the same link."""
    memory = os.memfd_create("plait-configuration", 0)  # survives `exec`
    os.write(memory, marshal.dumps(configuration))
    os.dup2(link.fileno(), 0)
    os.execv(sys.executable, [*sys.orig_argv, str(memory)])


def _read(memory: int) -> bytes:
    """All that is in a memfd, which is closed."""
    with open(memory, "rb") as file:
        file.seek(0)
        return file.read()


class Zygote:
    """Forks children on request and tells the ends of those."""

    def __init__(self, link: socket.socket, interrupt: Any) -> None:
        self.link = link
        self.interrupt = interrupt  # what SIGINT does in a child
        self.pid = os.getpid()
        self.children: dict[int, tuple[int, int]] = {}  # pidfd: (process id, status pipe)
        self.daemons: dict[int, int] = {}  # pidfd of a parent: pidfd of its daemonic child
        self.poll = select.poll()
        self.poll.register(link.fileno(), select.POLLIN)

    def serve(self) -> None:
        """Do what is asked until nobody can ask any more."""
        while True:
            link = self.link.fileno()
            ready = [fd for fd, _ in self.poll.poll()]
            # The link last: it brings new descriptors, which may have the numbers of those that were closed.
            for fd in sorted(ready, key=link.__eq__):
                if fd in self.children:
                    self.bury(fd)
                elif fd in self.daemons:
                    self.end_daemon(fd)
                elif fd == link and not self.answer():
                    return

    def answer(self) -> bool:
        """Carry out one request; false if there is nobody left."""
        message, whole, fds = _receive(self.link)
        if not message:
            return False
        if not whole or len(fds) < 4:
            for fd in fds:  # nobody's request; whoever waits for the answer reads the end of its pipe
                os.close(fd)
            return True
        status, parent = fds[:2]
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or errno.EAGAIN)
        if pid == 0:
            _run_child(self, message, fds)
        _tell(status, pid)
        for fd in fds[2:]:
            os.close(fd)
        if pid < 0:
            os.close(status)
            os.close(parent)
            return True
        pidfd = os.pidfd_open(pid)
        self.children[pidfd] = pid, status
        self.poll.register(pidfd, select.POLLIN)
        if message[:1] in b"Dd":
            self.daemons[parent] = pidfd
            self.poll.register(parent, select.POLLIN)
        else:
            os.close(parent)
        return True

    def bury(self, pidfd: int) -> None:
        """Tell the end of a child."""
        self.poll.unregister(pidfd)
        pid, status = self.children.pop(pidfd)
        _, code = os.waitpid(pid, 0)
        _tell(status, os.waitstatus_to_exitcode(code))
        os.close(status)
        for parent, child in self.daemons.items():
            if child == pidfd:
                self.forget(parent)
                break
        os.close(pidfd)

    def end_daemon(self, parent: int) -> None:
        """The parent of a daemonic child is gone, perhaps without having had the time to end it."""
        signal.pidfd_send_signal(self.daemons[parent], signal.SIGKILL)
        self.forget(parent)

    def forget(self, parent: int) -> None:
        """There is nothing more to do when this process ends."""
        self.poll.unregister(parent)
        del self.daemons[parent]
        os.close(parent)


def _receive(link: socket.socket) -> tuple[bytes, bool, list[int]]:
    """The next message (empty if there is nobody left), whether it is whole, and its descriptors."""
    try:
        message, ancillary, flags, _ = link.recvmsg(
            _LONGEST_MESSAGE, socket.CMSG_SPACE(_MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        return b"", True, []
    fds: list[int] = []
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    return message, not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), fds


def _tell(status: int, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone
        os.write(status, _STATUS.pack(number))


def _run_child(zygote: Zygote, message: bytes, fds: list[int]) -> NoReturn:
    code = 1
    try:
        code = _child(zygote, message, fds)
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def _child(zygote: Zygote, message: bytes, fds: list[int]) -> int:
    import pickle
    from multiprocessing import process, resource_tracker, spawn, util

    from plait.multiprocessing import forkserver

    atexit._clear()
    atexit.register(util._exit_function)
    signal.signal(signal.SIGINT, zygote.interrupt)
    zygote.link.close()
    for pidfd, (_, pipe) in zygote.children.items():
        os.close(pidfd)
        os.close(pipe)
    for pidfd in zygote.daemons:
        os.close(pidfd)
    status, parent, link, tracker, *inherited = fds
    os.close(status)
    kind, data = message[:1], io.BytesIO(message[1:])
    if kind.upper() == b"D":
        from plait import _rust

        if not _rust.die_with_parent(zygote.pid):
            os._exit(1)
    if kind.islower():
        data = io.BytesIO(_read(inherited.pop(0)))
    resource_tracker._resource_tracker._fd = tracker
    forkserver._forkserver.adopt(link, inherited)
    current = process.current_process()
    current._inheriting = True
    try:
        spawn.prepare(pickle.load(data))
        child = pickle.load(data)
    finally:
        del current._inheriting
    code: int = child._bootstrap(parent)
    return code


if __name__ == "__main__":
    main()
