"""Leaving the interpreter: every pool finishes its jobs first, unless a Ctrl-C ended the program."""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
import time

# A Ctrl-C that comes just before a wait begins goes unnoticed while it lasts, so no wait is longer than this.
LOOK_SECONDS = 0.5
# How long threads that have nothing to do any more may take to leave.
_GRACE_SECONDS = 0.2


def interrupted() -> bool:
    """Whether a Ctrl-C that nobody caught ended the program: then nobody wants to wait for jobs."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt


def join(thread: threading.Thread) -> None:
    """Wait until a thread has ended, and notice a Ctrl-C whenever it comes."""
    while thread.is_alive():
        thread.join(LOOK_SECONDS)


def _leave() -> None:
    """After a Ctrl-C: if jobs still run in threads, which nothing can stop, leave without them.

    Python would wait for them. If they were daemons, they would run on into an interpreter that is being
    taken apart. So the program does what is left to do and ends as Python ends it then, by the signal.
    """
    pools = sys.modules.get("plait.thread_pool")
    if pools is None or not interrupted():
        return
    deadline = time.monotonic() + _GRACE_SECONDS
    while any(thread.is_alive() for thread in list(pools._threads)):
        if time.monotonic() < deadline:
            time.sleep(0.005)
            continue
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


# These are called last registered first: the pools, whose modules import this one, have been told before.
threading._register_atexit(_leave)  # type: ignore[attr-defined]
