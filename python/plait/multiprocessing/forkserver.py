"""`multiprocessing.forkserver`: the client of the zygote. README.md beside this file has the protocol."""

from __future__ import annotations

import array
import marshal
import os
import socket
import sys
from importlib import import_module
from multiprocessing import forkserver as _standard
from pathlib import Path
from typing import Any

from plait.multiprocessing._standard import fall_back, standard_module

_resource_tracker = standard_module("resource_tracker")
_util = standard_module("util")
spawn: Any = import_module("plait.multiprocessing.spawn")

_LONGEST_MESSAGE = 32 * 1024
"""Bytes of a request that travel in its message; more goes into a memfd."""


class _Link(socket.socket):
    """Our end. Open until the interpreter's, after the children have been joined: nothing to be warned of."""

    def __del__(self) -> None:
        self.close()


class ForkServer(_standard.ForkServer):
    """The link to the zygote, which is started when it is needed. Thread-safe; a forked child shares it."""

    def __init__(self) -> None:
        super().__init__()
        self._link: socket.socket | None = None

    def _stop_unlocked(self) -> None:
        if self._link is None:
            return
        self._link.close()
        self._link = None
        if self._forkserver_pid is not None:
            self._reap(self._forkserver_pid)
            self._forkserver_pid = None

    @staticmethod
    def _reap(pid: int) -> None:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:  # it is the child of a process that forked this one
            return

    def adopt(self, link: int, inherited_fds: list[int]) -> None:
        """In a child of the zygote: use the link and the descriptors that were sent along."""
        self._link = _Link(fileno=link)
        self._forkserver_pid = None
        self._inherited_fds = inherited_fds

    def ensure_running(self) -> None:
        """Start the zygote if there is none."""
        with self._lock:
            self._ensure_unlocked()

    def _ensure_unlocked(self) -> socket.socket:
        _resource_tracker.ensure_running()
        if self._link is not None:
            if not self._is_closed(self._link):
                return self._link
            self._stop_unlocked()
        return self._start_unlocked()

    @staticmethod
    def _is_closed(link: socket.socket) -> bool:
        try:
            return link.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _start_unlocked(self) -> socket.socket:
        configuration: dict[str, Any] = {
            "path": sys.path,
            "preload": list(self._preload_modules),
            "main": None,
        }
        if "__main__" in self._preload_modules:
            told = spawn.get_preparation_data("zygote")
            configuration["path"] = told["sys_path"]
            configuration["argv"] = told["sys_argv"]
            configuration["main"] = {
                name: told[name] for name in ("init_main_from_name", "init_main_from_path") if name in told
            }
        end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours = _Link(fileno=end.detach())
        try:
            with theirs:
                executable = os.fsdecode(spawn.get_executable())
                flags = _util._args_from_interpreter_flags()
                script = str(Path(__file__).with_name("_zygote.py"))
                # A process group of its own, so that Ctrl-C cannot interrupt the interpreter's start; it
                # joins ours when it is ready for that.
                pid = os.posix_spawn(
                    executable,
                    [executable, *flags, "-P", script],
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                    setpgroup=0,
                    setsigmask=[],
                )
            memory = _memory(marshal.dumps(configuration))
            try:
                socket.send_fds(ours, [b"C"], [memory])
            except BrokenPipeError:  # it is dead already; the first request will say so
                pass
            finally:
                os.close(memory)
        except BaseException:
            ours.close()
            raise
        self._link, self._forkserver_pid = ours, pid  # type: ignore[assignment]
        return ours

    def start_child(self, daemon: bool, data: bytes | memoryview, fds: list[int]) -> tuple[int, int]:
        """Have the zygote fork a child that is to unpickle `data`, of which `fds` are part.

        Returns the process id and the status pipe's read end. Raises ValueError if there are too many
        descriptors, EOFError if the zygote dies meanwhile, OSError if it cannot fork.
        """
        if len(fds) + 5 >= _standard.MAXFDS_TO_SEND:
            raise ValueError("too many fds")
        status_r, status_w = os.pipe()
        opened = [status_w]
        try:
            opened.append(os.pidfd_open(os.getpid()))
            head = b"D" if daemon else b"N"
            if len(data) > _LONGEST_MESSAGE:
                opened.append(_memory(data))
                head, data = head.lower(), b""
            self._send([head, data], opened, fds)
            os.close(opened.pop(0))
            pid: int = _standard.read_signed(status_r)
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
        except BaseException:
            os.close(status_r)
            raise
        finally:
            for fd in opened:
                os.close(fd)
        return pid, status_r

    def _send(self, message: list[Any], opened: list[int], fds: list[int]) -> None:
        with self._lock:
            for last in (False, True):
                link = self._ensure_unlocked()
                rights = array.array(
                    "i", [*opened[:2], link.fileno(), _resource_tracker.getfd(), *opened[2:], *fds]
                )
                try:
                    link.sendmsg(
                        message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL
                    )
                except (BrokenPipeError, ConnectionResetError):  # the zygote has just died
                    if last:
                        raise
                else:
                    return

    def connect_to_new_process(self, fds: list[int]) -> tuple[int, int]:
        """Not offered: a request takes all its data with it. Raises NotImplementedError."""
        raise NotImplementedError("plait's zygote takes a child's data together with the request for it")


def _memory(data: bytes | memoryview) -> int:
    fd = os.memfd_create("plait-child", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


_forkserver = ForkServer()
os.register_at_fork(after_in_child=_forkserver._lock._at_fork_reinit)
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
start_child = _forkserver.start_child


def main(*_arguments: Any, **_options: Any) -> None:
    """Not offered: the zygote is a program of its own. Raises NotImplementedError."""
    raise NotImplementedError("plait's zygote is started by its client, with the link as its standard input")


fall_back(globals(), _standard)
