"""`ForkedPool`: a process pool whose workers inherit this process's memory, for those who ask for `fork`.

Its zygote is forked from this process when the first job is submitted, and serves as any other. As with every
fork of a program that has threads, what those held is held for ever in the workers.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from plait import _serialize, _zygote
from plait._job import DEFAULT_OPTIONS, JobOptions
from plait.future import Future
from plait.process_pool import ProcessPool

__all__ = ["ForkedPool"]


class ForkedPool(ProcessPool):
    """A `ProcessPool` whose workers are forked from a fork of this process.

    `initializer` and `initargs` are inherited, not pickled. Jobs are pickled as in any pool, but what stands
    in ``__main__`` goes by its name. If the zygote is killed, the pool is broken: there is no second fork.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {type(initializer).__qualname__}")
        super().__init__(workers, initializer=_initialize, **options)
        self._inherited = initializer, tuple(initargs)

    def _configure(self) -> None:
        super()._configure()
        self._core.adopt_zygote(*_fork(*self._inherited))

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> Future[Any]:
        """Queue one job; see `ProcessPool.submit`."""
        with _serialize.main_by_name():
            return super().submit(fn, args, kwargs, options)

    def freeze(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Pickle `fn` now; see `ProcessPool.freeze`."""
        with _serialize.main_by_name():
            return super().freeze(fn)


_inherited: tuple[Callable[..., object] | None, tuple[Any, ...]] | None = None
"""In a zygote that was forked: the initializer of its workers, and its arguments."""


def _initialize() -> None:
    """Begin a worker."""
    if _inherited is None:
        raise RuntimeError("the process that was forked to start workers is gone, and is not forked again")
    initializer, initargs = _inherited
    if initializer is not None:
        initializer(*initargs)


def _fork(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> tuple[int, int]:
    """Fork a zygote; returns the descriptor of its link, and its process id."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue
    pool = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _serve(theirs, pool, (initializer, initargs))
        finally:
            os._exit(1)
    theirs.close()
    return ours.detach(), pid


def _serve(
    link: socket.socket, pool: int, inherited: tuple[Callable[..., object] | None, tuple[Any, ...]]
) -> NoReturn:
    """Be the zygote."""
    global _inherited
    watch = os.pidfd_open(pool)
    if os.getppid() != pool:
        os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, _zygote._leave_it)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()
        util._run_after_forkers()
        # The program's processes are not a worker's to end when it leaves.
        sys.modules["multiprocessing.process"]._children = set()  # type: ignore[attr-defined]
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(watch, select.POLLIN)
    ready = [fd for fd, _ in poll.poll()]
    message, fds = _zygote._receive(link) if link.fileno() in ready else (b"", [])
    if message != b"C":
        os._exit(1)
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        configuration = marshal.loads(file.read())
    _inherited = inherited
    _serialize.main_is_everywhere()
    gc.freeze()
    _zygote.Zygote(link, watch, _zygote.Outfit(None, [], configuration)).serve()
