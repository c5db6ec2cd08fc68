"""What a job carries besides its function and arguments, and what every pool can do with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from plait.future import Future


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The extras of one job, set by ``Executor.options``."""

    timeout: float | None = None
    """Seconds the job may run (not counting its time in the queue)."""
    retries: int = 0
    """How often a job that failed is run again before its failure is reported."""
    name: str | None = None
    """What errors, progress and the ledger call the job; by default its function's name."""
    since_ns: int = 0
    """When the job was submitted, on the monotonic clock, if that was before a pool was given it."""


DEFAULT_OPTIONS = JobOptions()


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an executor is doing at one moment; see `Executor.statistics`."""

    model: str
    """Which concurrency model it is."""
    workers: int
    """The threads, processes or interpreters that there are, those being started included; the coroutines
    that run."""
    width: int
    """How many jobs may run at once at present."""
    limit: int
    """How many jobs may ever run at once: the width adapts within it, or is the same."""
    running: int
    """Jobs that a worker has; in a worker process, some of them may still wait for their turn there."""
    queued: int
    """Jobs that no worker has."""
    longest_wait: float
    """For how many seconds the first job in the queue has been waiting; 0 if there is none."""


class Pool(Protocol):
    """One concurrency model: takes jobs, gives futures. Thread-safe; `Executor` is its face."""

    model: ClassVar[str]
    workers: int

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        """Queue one job. Raises RuntimeError after `shutdown`; every other failure arrives in the future."""

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Take no more jobs; with `wait`, return when all are done and every resource is given back.

        Or when `timeout` seconds are over: then it has said on standard error what still runs, and where.
        """

    def load(self) -> Statistics:
        """What the pool is doing."""


def job_name(fn: Callable[..., Any], options: JobOptions) -> str:
    """The name a person knows the job by."""
    if options.name is not None:
        return options.name
    name = getattr(fn, "__qualname__", None) or getattr(getattr(fn, "func", None), "__qualname__", None)
    return str(name) if name else type(fn).__qualname__
