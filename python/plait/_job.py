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


DEFAULT_OPTIONS = JobOptions()


class Pool(Protocol):
    """One concurrency model: takes jobs, gives futures. Thread-safe; `Executor` is its face."""

    model: ClassVar[str]
    workers: int

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: JobOptions
    ) -> Future[Any]:
        """Queue one job. Raises RuntimeError after `shutdown`; every other failure arrives in the future."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; with `wait`, return when all are done and every resource is given back."""


def job_name(fn: Callable[..., Any], options: JobOptions) -> str:
    """The name a person knows the job by."""
    if options.name is not None:
        return options.name
    name = getattr(fn, "__qualname__", None) or getattr(getattr(fn, "func", None), "__qualname__", None)
    return str(name) if name else type(fn).__qualname__
