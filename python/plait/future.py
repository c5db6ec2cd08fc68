"""`Future`: what a job will have come to; a `concurrent.futures.Future` that can also be awaited."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

from plait import _rust

__all__ = ["Future"]

T = TypeVar("T")


class Future(_rust.Future, concurrent.futures.Future[T]):
    """The outcome of a job: all that a `concurrent.futures.Future` is, and awaitable from any running loop.

    Thread-safe. `result` and `exception` take a timeout in seconds; they raise `TimeoutError` when it is over
    and `concurrent.futures.CancelledError` if the job was cancelled, and Ctrl-C interrupts them. After a
    `fork` the child has a copy that nobody will complete.
    """

    if TYPE_CHECKING:  # The base in Rust does not know of what type a result is.

        def result(self, timeout: float | None = None) -> T: ...

        def exception(self, timeout: float | None = None) -> BaseException | None: ...

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in the running event loop; cancelling the wait cancels the job."""
        from plait._awaiting import wait_in_loop

        return wait_in_loop(self).__await__()


os.register_at_fork(after_in_child=_rust.forget_waiting_threads)
