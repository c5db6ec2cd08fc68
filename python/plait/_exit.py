"""Leaving the interpreter, or waiting for a pool: what is waited for, for how long, and what is said then.

Every pool finishes its jobs first, unless a Ctrl-C ended the program. If the environment variable
``PLAIT_EXIT_REPORT`` holds a number of seconds, an exit that takes longer than that prints what still runs,
with stacks, and goes on waiting as Python does.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType

# A Ctrl-C that comes just before a wait begins goes unnoticed while it lasts, so no wait is longer than this.
LOOK_SECONDS = 0.5
# How long threads that have nothing to do any more may take to leave.
_GRACE_SECONDS = 0.2


def interrupted() -> bool:
    """Whether a Ctrl-C that nobody caught ended the program: then nobody wants to wait for jobs."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt


def join(thread: threading.Thread, deadline: float | None = None) -> bool:
    """Wait until a thread has ended, and notice a Ctrl-C whenever it comes; False if the deadline is first.

    The deadline is a time of `time.monotonic`.
    """
    while thread.is_alive():
        left = LOOK_SECONDS if deadline is None else min(LOOK_SECONDS, deadline - time.monotonic())
        if left <= 0:
            return False
        thread.join(left)
    return True


def to_deadline(timeout: float | None) -> float | None:
    """When a wait of so many seconds that begins now is over."""
    return None if timeout is None else time.monotonic() + timeout


def report(waited: float, stuck: Iterable[str]) -> None:
    """Print what is still running after so many seconds of waiting."""
    if sys.stderr is None:
        return
    text = f"plait: after waiting for {waited:.3g} s, this still runs:\n"
    for one in stuck:
        # At once: a worker process may be told to add its own stack when the next one is asked for.
        print(text + one, end="", file=sys.stderr, flush=True)
        text = ""


def stack_of(thread: threading.Thread, below: str) -> str:
    """Where a thread is, as lines of text, without the frames up to the innermost of the function `below`."""
    import traceback

    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    frames = [] if frame is None else list(traceback.walk_stack(frame))
    ours = [at for at, (one, _) in enumerate(frames) if one.f_code.co_name == below]
    frames = frames[: ours[0]] if ours else frames
    lines = traceback.StackSummary.extract(reversed(frames)).format() if frames else []
    return "".join(lines) or "  in a function that is not written in Python\n"


_reporters: list[Callable[[], Iterable[str]]] = []
_watching = False


def reports(describe: Callable[[], Iterable[str]]) -> None:
    """Have `describe` called for what still runs when an exit takes long."""
    _reporters.append(describe)


def watch_exit() -> None:
    """The interpreter is leaving and may wait for jobs: see to the report, if one is asked for."""
    global _watching
    wanted = os.environ.get("PLAIT_EXIT_REPORT")
    if not wanted or _watching or interrupted():
        return
    try:
        seconds = float(wanted)
        if not 0 <= seconds <= threading.TIMEOUT_MAX:
            raise ValueError
    except ValueError:
        print(f"plait: PLAIT_EXIT_REPORT must be a number of seconds, not {wanted!r}", file=sys.stderr)
        return
    _watching = True

    def watch() -> None:
        time.sleep(seconds)
        report(seconds, (text for describe in list(_reporters) for text in describe()))

    # A daemon: whoever is done in time is not to wait for it.
    threading.Thread(target=watch, name="plait-exit-watch", daemon=True).start()


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
