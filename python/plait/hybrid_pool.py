"""`HybridPool`: the `hybrid` model. Processes that each run many jobs at once, on a loop and in threads."""

from __future__ import annotations

from typing import Any, ClassVar

from plait import _rust
from plait.process_pool import ProcessPool

__all__ = ["HybridPool"]


class HybridPool(ProcessPool):
    """Processes, each with an event loop and threads: for work that waits a lot and computes, too.

    Coroutine functions run on the loop of a worker, other functions in a thread of it, up to `width` at a
    time. Everything else is as in `plait.process_pool.ProcessPool`, but for deaths: a worker that dies takes
    along the jobs that it was running, as many as there were; each fails with `WorkerDied`, or runs again if
    it has retries left. Thread-safe; a fork cannot use it.

    Args:
        workers: how many processes at most; by default as many as this process may use CPUs.
        width: how many jobs each of them runs at once, at most 256. By default that adapts to throughput:
            wider as long as more results come of it, narrower when fewer jobs at once do as well.
        options: those of `ProcessPool`.

    Raises:
        ValueError: `width` is not between 1 and 256, or as for `ProcessPool`.
        TypeError: as for `ProcessPool`.
    """

    model: ClassVar[str] = "hybrid"

    def __init__(self, workers: int | None = None, *, width: int | None = None, **options: Any) -> None:
        if width is not None and not 1 <= width <= _rust.MOST_WIDTH:
            raise ValueError(f"width must be between 1 and {_rust.MOST_WIDTH}, not {width}")
        self._width = width
        super().__init__(workers, **options)

    @property
    def places(self) -> int:
        """How many jobs run at once, or may if that turns out to be best."""
        return self.workers * (self._width or _rust.MOST_WIDTH)
