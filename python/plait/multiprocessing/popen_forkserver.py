"""`multiprocessing.popen_forkserver`: has the zygote fork a child, and hears of its end."""

from __future__ import annotations

import io
import os
import select
import threading
from importlib import import_module
from multiprocessing import popen_forkserver as _standard
from typing import Any

from plait.multiprocessing._standard import fall_back, standard_module

_context = standard_module("context")
_reduction = standard_module("reduction")
_util = standard_module("util")
forkserver: Any = import_module("plait.multiprocessing.forkserver")
spawn: Any = import_module("plait.multiprocessing.spawn")


class _DupFd:
    """A descriptor on its way to a child, by its number among those that go with the request."""

    def __init__(self, number: int) -> None:
        self.number = number

    def detach(self) -> int:
        inherited: list[int] = forkserver.get_inherited_fds()
        return inherited[self.number]


class Popen(_standard.Popen):
    """A child of the zygote."""

    method = "forkserver"
    DupFd = _DupFd  # type: ignore[assignment]

    def __init__(self, process_obj: Any) -> None:
        # The exit code can be read once only, and whoever starts a process looks at all of them.
        self._reading = threading.Lock()
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """Send a descriptor along; returns what `DupFd` finds it by in the child."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: Any) -> None:
        prepare = spawn.get_preparation_data(process_obj.name)
        data = io.BytesIO()
        _context.set_spawning_popen(self)
        try:
            _reduction.dump(prepare, data)
            _reduction.dump(process_obj, data)
        finally:
            _context.set_spawning_popen(None)
        self.pid, self.sentinel = forkserver.start_child(
            bool(process_obj.daemon), data.getbuffer(), self._fds
        )
        self.finalizer = _util.Finalize(self, _util.close_fds, (self.sentinel,))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code if the child has ended; with another flag than WNOHANG, wait for it."""
        if self.returncode is None:
            if not _is_readable(self.sentinel, 0 if flag == os.WNOHANG else None):
                return None
            with self._reading:
                if self.returncode is None:
                    try:
                        self.returncode = forkserver.read_signed(self.sentinel)
                    except (OSError, EOFError):
                        self.returncode = 255  # the zygote is gone, and with it the exit code
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code; `None` if the child has not ended within `timeout` seconds."""
        if self.returncode is None and timeout is not None and not _is_readable(self.sentinel, timeout):
            return None
        return self.poll(os.WNOHANG if timeout == 0.0 else 0)


def _is_readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))


fall_back(globals(), _standard)
