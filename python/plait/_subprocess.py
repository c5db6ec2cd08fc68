"""How an event loop learns that its child processes have ended: by their pidfds, without a thread."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from asyncio import events, unix_events
from asyncio.log import logger
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Base = asyncio.SelectorEventLoop
else:
    Base = object

__all__ = ["Subprocesses"]


class Subprocesses(Base):
    """Child processes without a thread and without SIGCHLD, in any thread and on every supported Python.

    One pidfd per child is watched from its start to its end, and closed then, or with the loop. A child
    watcher that the program has set (until Python 3.13) is used instead; so is asyncio's without pidfds.
    """

    async def _make_subprocess_transport(
        self: Any,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As asyncio's, but for who tells of the end."""
        if not _has_pidfds() or _has_own_watcher():
            return await super()._make_subprocess_transport(  # type: ignore[misc]
                protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
            )
        waiter = self.create_future()
        kind: Any = unix_events._UnixSubprocessTransport  # type: ignore[attr-defined]
        transport = kind(
            self,
            protocol,
            args,
            shell,
            stdin,
            stdout,
            stderr,
            bufsize,
            waiter=waiter,
            extra=extra,
            **kwargs,
        )
        pid = transport.get_pid()
        pidfd = os.pidfd_open(pid)
        self._pidfds.add(pidfd)
        self._add_reader(pidfd, self._child_ended, pidfd, pid, transport)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        return transport

    @functools.cached_property
    def _pidfds(self) -> set[int]:
        """The children that are watched."""
        return set()

    def _child_ended(self: Any, pidfd: int, pid: int, transport: Any) -> None:
        self._forget_child(pidfd)
        try:
            found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        except ChildProcessError:
            found = None
        finally:
            os.close(pidfd)
        if found is not None:
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        elif transport._proc is not None and transport._proc.returncode is not None:
            # `Popen.send_signal` looks first, and may be the one that finds it ended.
            code = transport._proc.returncode
        else:
            logger.warning(
                "child process pid %d exit status already read: will report returncode 255",
                pid,
            )
            code = 255
        transport._process_exited(code)

    def _forget_child(self: Any, pidfd: int) -> None:
        self._remove_reader(pidfd)
        self._pidfds.discard(pidfd)

    def close(self) -> None:
        """Close the loop; children that still run are not waited for."""
        if not self.is_running():
            for pidfd in list(self._pidfds):
                self._forget_child(pidfd)
                os.close(pidfd)
        super().close()


@functools.cache
def _has_pidfds() -> bool:
    """Whether this host has them, and lets us open one."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return hasattr(os, "P_PIDFD")


def _has_own_watcher() -> bool:
    """Whether the program has set a child watcher that is not one of asyncio's defaults."""
    if sys.version_info >= (3, 14):
        return False
    watcher = getattr(events.get_event_loop_policy(), "_watcher", None)
    defaults = (asyncio.PidfdChildWatcher, asyncio.ThreadedChildWatcher)
    return watcher is not None and type(watcher) not in defaults
