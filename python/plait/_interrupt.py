"""What a job is interrupted with. A module of its own, as small as can be: every worker imports it."""

from __future__ import annotations

__all__ = ["TaskCancelled"]


class TaskCancelled(BaseException):
    """Raised inside a job that runs in a worker process when nobody waits for it any more.

    Its future was cancelled, or its timeout is over. Let it pass, after cleaning up in ``finally``: what the
    job still returns or raises is dropped, and a worker whose job has not ended when the pool's
    ``cancel_grace`` is over is killed. Not an `Exception`, so that ``except Exception`` does not stop it.
    Coroutines see `asyncio.CancelledError` instead.
    """


TaskCancelled.__module__ = "plait.errors"
