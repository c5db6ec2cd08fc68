"""The zygote: started by `exec`, single-threaded, forks a pool's workers and reports their ends.

Its standard input is the link to the pool. What is said on it stands in
`crates/engine/src/process_pool/zygote.rs`. It runs none of the user's code but what `preload` imports, so it
always answers; when the pool's process is gone, however it went, it ends every worker and itself.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # `signal` and `socket` import `enum` and more,
import _socket  # which takes several milliseconds
import faulthandler
import gc
import marshal
import os
import select
import sys

# As `typing.TYPE_CHECKING`, without importing it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_FD_BYTES = 4


def main() -> NoReturn:
    """Serve one pool until it, or its process, is gone.

    The arguments are the pool's process and, if this is the second start (see `_preload`), the descriptor of
    the configuration and the modules that are left to the workers.
    """
    link = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    argument, *again = sys.argv[1:]
    pool = int(argument)
    watch = os.pidfd_open(pool)
    if os.getppid() != pool:
        os._exit(0)
    socket = _socket.socket(fileno=link)
    if again:
        configured, late = int(again[0]), again[1:]
        os.set_inheritable(configured, False)
    else:
        # Somebody that the pool's process has forked may hold the other end of the link open.
        poll = select.poll()
        poll.register(link, select.POLLIN)
        poll.register(watch, select.POLLIN)
        ready = [fd for fd, _ in poll.poll()]
        message, fds = _receive(socket) if link in ready else (b"", [])
        if message != b"C":
            os._exit(1)
        configured, late = fds[0], []
    with os.fdopen(configured, "rb", closefd=False) as file:
        file.seek(0)
        configuration = marshal.loads(file.read())
    sys.path[:] = configuration["path"]
    # Ctrl-C is the pool's business. A handler, not SIG_IGN: that would be inherited by what workers start by
    # `exec`.
    _signal.signal(_signal.SIGINT, _leave_it)
    _join_group_of(pool)
    from plait import _rust

    # Whatever an import does, it does not outlive the pool's process. The thread that has started us is the
    # collector, and lives as long as the pool.
    if not _rust.die_with_parent(pool):
        os._exit(0)
    # The share of each worker, and of what it starts; see `_budget.py`.
    os.environ["PLAIT_CPUS"] = str(configuration["cpus"])
    if configuration["authkey"] is not None:
        from multiprocessing.process import current_process

        current_process().authkey = configuration["authkey"]
    failure = _preload(configuration["preload"], late, link, configured)
    os.close(configured)
    # From here on we notice by ourselves, if only we are not stopped, and bury the workers.
    _rust.go_on_without_parent()
    zygote = Zygote(socket, watch, Outfit(failure, late, configuration))
    # What is here now stays: a collection in a worker would write to these objects, and so copy their pages.
    gc.freeze()
    zygote.serve()


def _preload(modules: list[str], late: list[str], link: int, configured: int) -> str | None:
    """Import what workers shall find imported; the traceback if that fails.

    Workers are forked from one thread. A module that starts others, and does not end them before a fork as
    OpenBLAS (numpy) does, is therefore left to the workers: this process starts anew, by `exec`, without it.
    That costs a start once, and keeps process id, link and parent as they are.
    """
    for module in modules:
        if module in late:
            continue
        try:
            __import__(module)
        except BaseException:
            import traceback

            return f"preload={module!r} cannot be imported\n{traceback.format_exc()}"
        if not _forks_alone():
            os.dup2(link, 0)
            os.set_inheritable(configured, True)
            os.execv(sys.executable, [*sys.orig_argv, *([] if late else [str(configured)]), module])
    return None


def _join_group_of(pool: int) -> None:
    """Belong to the program's process group, so that what jobs start by `exec` hears of Ctrl-C as it would
    otherwise.

    The pool starts us in a group apart: until our handler stood, Ctrl-C would have interrupted the
    interpreter's start, with a traceback of its own.
    """
    try:
        os.setpgid(0, os.getpgid(pool))
    except OSError:
        return  # The pool's process is gone (the next poll says so), or has gone to another session.


def _leave_it(*_: object) -> None:
    """Handle Ctrl-C by doing nothing."""


def _receive(socket: _socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = socket.recvmsg(
        256, _socket.CMSG_SPACE(4 * _FD_BYTES), _socket.MSG_CMSG_CLOEXEC
    )
    fds = []
    for _, kind, data in ancillary:
        if kind == _socket.SCM_RIGHTS:
            whole = len(data) - len(data) % _FD_BYTES
            fds += [
                int.from_bytes(data[at : at + _FD_BYTES], sys.byteorder) for at in range(0, whole, _FD_BYTES)
            ]
    return message, fds


def _forks_alone() -> bool:
    """Whether this process has one thread when it forks."""
    if _threads() == 1:
        return True
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads: that is the question
        trial = os.fork()
    if trial == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    return _threads() == 1


def _threads() -> int:
    return os.stat("/proc/self/task").st_nlink - 2  # noqa: PTH116  (pathlib takes milliseconds to import)


class Outfit:
    """What every worker of the pool is to begin with."""

    def __init__(self, failure: str | None, late: list[str], configuration: dict[str, Any]) -> None:
        self.failure = failure
        """Why no worker can be used."""
        self.late = late
        """Modules to import."""
        self.initializer = configuration["initializer"]
        self.width = configuration["width"]
        """How many jobs it runs at once; None for what turns out to be best."""
        self.max_memory = configuration["max_memory"]
        """How many bytes it may hold until it is replaced, if there is a limit."""
        self.accounts = configuration["accounts"]
        """Whether somebody wants to know what jobs cost."""
        self.relay = configuration["relay"]
        """What `_notes.settings` says of the pool's process."""


def _nameless(name: str) -> int:
    """A file without a name; in `/dev/shm` or `/tmp` if the system has no memory of the kind."""
    try:
        return os.memfd_create(name)
    except OSError as error:
        for folder in ("/dev/shm", os.environ.get("TMPDIR", "/tmp")):
            try:
                return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError:
                continue
        raise error


class Zygote:
    """Forks workers on request until the link, or the pool's process, is gone."""

    def __init__(self, socket: _socket.socket, watch: int, outfit: Outfit) -> None:
        # Imported here, when `sys.path` is right, so that workers find it imported.
        from plait import _worker

        self.run_worker = _worker.main
        self.socket = socket
        self.outfit = outfit
        # pidfd: (worker's number, process id, memory for what it says while it crashes)
        self.workers: dict[int, tuple[bytes, int, int]] = {}
        self.poll = select.poll()
        self.poll.register(socket.fileno(), select.POLLIN)
        # The link alone is not enough: a process that the pool's process forked may hold the other end open.
        self.pool = watch
        self.poll.register(watch, select.POLLIN)

    def serve(self) -> NoReturn:
        """Do what the pool asks."""
        while True:
            for fd, _ in self.poll.poll():
                if fd in self.workers:
                    self.bury(fd)
                elif fd == self.pool or not self.answer():
                    self.end()

    def answer(self) -> bool:
        """Carry out one message; false if the link is closed."""
        try:
            message, fds = _receive(self.socket)
        except OSError:
            return False
        if not message:
            return False
        if message[:1] == b"S" and len(fds) == 3:
            self.fork(message[1:9], fds)
        return True

    def fork(self, worker: bytes, fds: list[int]) -> None:
        """Start one worker and report it."""
        crash = _nameless("plait-crash")
        # Asked before: the child may have another parent by then, and must not believe that one its zygote.
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.say(b"!" + worker + (error.errno or 0).to_bytes(4, "little", signed=True))
            pid = -1
        if pid == 0:
            self.socket.close()
            os.close(self.pool)
            for pidfd, (_, _, others) in self.workers.items():
                os.close(pidfd)
                os.close(others)
            faulthandler.enable(crash)
            number = int.from_bytes(worker, "little") + 1
            self.run_worker(zygote, fds[0], fds[1], fds[2], number, self.outfit)
        for fd in fds:
            os.close(fd)
        if pid < 0:
            os.close(crash)
        else:
            pidfd = os.pidfd_open(pid)
            self.workers[pidfd] = (worker, pid, crash)
            self.poll.register(pidfd, select.POLLIN)
            self.say(b"+" + worker + pid.to_bytes(4, "little"), pidfd)

    def bury(self, pidfd: int) -> None:
        """Report that a worker has ended."""
        self.poll.unregister(pidfd)
        os.close(pidfd)
        worker, pid, crash = self.workers.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        said = [crash] if os.fstat(crash).st_size else []
        self.say(b"-" + worker + pid.to_bytes(4, "little") + status.to_bytes(4, "little", signed=True), *said)
        os.close(crash)

    def say(self, message: bytes, *fds: int) -> None:
        """Tell the pool; if it is gone, the next poll says so."""
        rights = b"".join(fd.to_bytes(_FD_BYTES, sys.byteorder) for fd in fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
        try:
            self.socket.sendmsg([message], ancillary, _socket.MSG_NOSIGNAL)
        except OSError:
            return

    def end(self) -> NoReturn:
        """End every worker, then this process."""
        for pidfd, (_, pid, _) in self.workers.items():
            _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
            os.waitpid(pid, 0)
        os._exit(0)


if __name__ == "__main__":
    main()
