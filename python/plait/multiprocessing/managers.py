"""`multiprocessing.managers`: managers whose server process ends when the one that started it does.

A standard manager whose program was killed leaves its server behind for ever, and a `SharedMemoryManager` its
segments, too.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from multiprocessing import managers as _standard
from multiprocessing import process
from multiprocessing.managers import SharedMemoryManager as _SharedMemoryManager
from typing import Any

from plait.multiprocessing._standard import fall_back
from plait.multiprocessing.context import _default_context
from plait.multiprocessing.pool import Pool


class BaseManager(_standard.BaseManager):
    """`multiprocessing.managers.BaseManager`, with processes of plait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) < 4 and kwargs.get("ctx") is None:
            kwargs["ctx"] = _default_context.get_context()
        super().__init__(*args, **kwargs)

    @classmethod
    def _run_server(cls, *args: Any, **kwargs: Any) -> None:
        parent = process.parent_process()
        if parent is not None:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        super()._run_server(*args, **kwargs)


def _end_with(parent: Any) -> None:
    """Wait until the process that has started this server is gone; then end the server, and what it keeps."""
    with contextlib.suppress(ProcessLookupError):
        # Not the sentinel: after a fork others may hold its other end.
        pidfd = os.pidfd_open(parent.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if parent.is_alive():  # else its number may be another's by now
            poll.poll()
        os.close(pidfd)
    server: Any = getattr(process.current_process(), "_manager_server", None)
    segments = getattr(server, "shared_memory_context", None)
    if segments is not None:
        segments.unlink()
    if server is None:
        os._exit(1)
    server.stop_event.set()


class SyncManager(BaseManager, _standard.SyncManager):
    """`multiprocessing.managers.SyncManager`, with processes and pools of plait."""


SyncManager.register("Pool", Pool, _standard.PoolProxy)


class SharedMemoryManager(BaseManager, _SharedMemoryManager):
    """`multiprocessing.managers.SharedMemoryManager` whose segments do not outlive a killed parent."""


fall_back(globals(), _standard)
