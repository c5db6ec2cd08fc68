"""`asyncio.events`: which loop there is, and new ones: plait's, where nobody asks for another."""

from __future__ import annotations

import asyncio as _asyncio
import sys
from asyncio import AbstractEventLoop, unix_events
from asyncio import events as _standard
from typing import TYPE_CHECKING

from plait._fall_back import fall_back
from plait.event_loop import EventLoop

if TYPE_CHECKING:
    # What is imported as itself is public for type checkers.
    from asyncio.events import AbstractServer as AbstractServer
    from asyncio.events import Handle as Handle
    from asyncio.events import TimerHandle as TimerHandle
    from asyncio.events import _get_running_loop as _get_running_loop
    from asyncio.events import _set_running_loop as _set_running_loop
    from asyncio.events import get_event_loop_policy as get_event_loop_policy
    from asyncio.events import get_running_loop as get_running_loop
    from asyncio.events import set_event_loop as set_event_loop
    from asyncio.events import set_event_loop_policy as set_event_loop_policy

    _Policy = _asyncio.DefaultEventLoopPolicy
else:
    # The name that Python 3.14 does not warn of.
    _Policy = unix_events._UnixDefaultEventLoopPolicy


class DefaultEventLoopPolicy(_Policy):
    """The standard policy, whose new loops are plait's."""

    _loop_factory = EventLoop

    def new_event_loop(self) -> EventLoop:
        """Return a loop that is not running yet. Thread-safe."""
        return EventLoop()


def new_event_loop() -> AbstractEventLoop:
    """Return a new loop: plait's, unless a policy was set that makes others. Thread-safe.

    With ``asyncio.set_event_loop_policy(...)`` of another library it is that policy's loop, as with the
    standard function.
    """
    policy = _standard._event_loop_policy  # type: ignore[attr-defined]
    if policy is None or type(policy) is _Policy:
        return EventLoop()
    loop: AbstractEventLoop = policy.new_event_loop()
    return loop


def get_event_loop() -> AbstractEventLoop:
    """Return the running loop of this thread, or the one that was set.

    Where neither is and Python still makes one (in the main thread, before 3.14), it is plait's; otherwise it
    raises RuntimeError. Thread-safe.
    """
    running = _standard._get_running_loop()
    if running is not None:
        return running
    if sys.version_info < (3, 14):
        policy = _standard.get_event_loop_policy()
        if type(policy) is _Policy:
            # An attribute of the policy itself, for as long as it may make a loop. If another thread asks for
            # a new loop meanwhile, it gets plait's, too.
            vars(policy)["_loop_factory"] = EventLoop
            try:
                return policy.get_event_loop()
            finally:
                vars(policy).pop("_loop_factory", None)
    return _standard.get_event_loop()


fall_back(globals(), _standard)
