"""What jobs cost: `Executor.ledger`. Totals, quantiles, a record of each job; tables and traces.

Times are seconds: moments of the monotonic clock (`time.monotonic`), durations otherwise. The engine's ledger
says who measures what, and what cannot be known: `crates/engine/src/ledger/README.md`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait import _rust

__all__ = ["JobRecord", "Ledger", "Totals", "WorkerRecord", "lanes"]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job that has ended. None stands for what nobody could measure: the worker died, for instance."""

    function: str
    """The name of the job: of its function, unless it was given one."""
    model: str
    worker: int | None
    """The number of the worker that ran it last; None if none has."""
    worker_name: str | None
    """The thread's name, or ``process`` with its id; None for one that has left long ago."""
    ending: str
    """``"returned"``, ``"raised"``, ``"cancelled"``, ``"timed out"`` or ``"lost"`` (with its worker)."""
    retries: int
    """How often it was run again."""
    submitted: float
    started: float | None
    """When a worker began with it for the first time; None if none has."""
    finished: float
    serialise_arguments: float
    """To pickle and unpickle its arguments; 0 where nothing is pickled."""
    serialise_result: float
    argument_bytes: int
    """Its arguments, pickled, with the buffers beside the pickle."""
    result_bytes: int
    copied_bytes: int
    """What was copied on the way there and back."""
    shared_bytes: int
    """What did not have to be, as `plait.share` had put it into shared memory."""
    run: float | None
    """In its function, all attempts."""
    cpu: float | None
    """CPU time: of its thread, and of child processes that it waited for."""
    waiting: float | None
    """Of `run`, what is left: waiting for something else than the GIL or a CPU."""
    gil_wait: float | None
    """Waiting for the GIL, by estimate. None where nobody else can hold it."""
    delayed: float | None
    """Ready to go on, while other threads and programs had the CPUs."""
    peak_memory: int | None
    """The most bytes that its worker's process has had in use until then."""

    @property
    def latency(self) -> float:
        """From its submission to its end."""
        return self.finished - self.submitted

    @property
    def queued(self) -> float | None:
        """From its submission to its beginning."""
        return None if self.started is None else self.started - self.submitted


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A thread or process that runs jobs."""

    number: int
    model: str
    name: str
    pid: int
    """Its process."""
    since: float
    until: float | None
    """When it left; None if it is there."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over jobs. A cost that nobody could measure is not in them."""

    jobs: int = 0
    returned: int = 0
    raised: int = 0
    cancelled: int = 0
    timed_out: int = 0
    lost: int = 0
    retries: int = 0
    measured: int = 0
    """How many jobs it is known of what they cost."""
    latency: float = 0.0
    """From submission to end, of those that began."""
    queued: float = 0.0
    serialise_arguments: float = 0.0
    serialise_result: float = 0.0
    run: float = 0.0
    cpu: float = 0.0
    gil_wait: float = 0.0
    delayed: float = 0.0
    waiting: float = 0.0
    first: float = 0.0
    """When the first of them was submitted; 0 if there is none."""
    last: float = 0.0
    """When the last of them ended."""
    argument_bytes: int = 0
    result_bytes: int = 0
    copied_bytes: int = 0
    shared_bytes: int = 0
    peak_memory: int = 0
    """The most that a worker had."""

    @property
    def serialise(self) -> float:
        """To pickle and unpickle, both ways."""
        return self.serialise_arguments + self.serialise_result

    @property
    def span(self) -> float:
        """From the submission of the first job to the end of the last."""
        return max(self.last - self.first, 0.0)

    @classmethod
    def of(cls, parts: Iterable[Totals]) -> Totals:
        """The sum of several."""
        parts = [part for part in parts if part.jobs]
        sums = {field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)}
        if parts:
            sums["first"] = min(part.first for part in parts)
            sums["last"] = max(part.last for part in parts)
            sums["peak_memory"] = max(part.peak_memory for part in parts)
        return cls(**sums)


class Ledger:
    """What the jobs of an executor that have ended cost, as it was at one moment. Immutable, thread-safe.

    The newest records are kept, about 65,000; older ones are summed up, so `totals` and `quantiles` are of
    all jobs that ever ended. A job whose arguments could not be pickled was never queued, and has no record.
    """

    def __init__(self, snapshot: _rust.LedgerSnapshot) -> None:
        self._snapshot = snapshot
        self._sums = {(model, function): Totals(**amounts) for model, function, amounts in snapshot.totals()}
        # The moment as clocks on the wall had it, for traces; that clock may be set, so never for durations.
        self._time = time.time() - (time.monotonic() - snapshot.now)

    @property
    def now(self) -> float:
        """The moment."""
        return self._snapshot.now

    @property
    def totals(self) -> Totals:
        """Of all jobs that have ended."""
        return Totals.of(self._sums.values())

    @property
    def by_model(self) -> dict[str, Totals]:
        """The totals of each model that ran any."""
        return self._by(0)

    @property
    def by_function(self) -> dict[str, Totals]:
        """The totals of each function (of the first thousand; the others go by ``"(other functions)"``)."""
        return self._by(1)

    def _by(self, at: int) -> dict[str, Totals]:
        keys = dict.fromkeys(key[at] for key in self._sums)
        return {one: Totals.of(sums for key, sums in self._sums.items() if key[at] == one) for one in keys}

    @property
    def fallen(self) -> int:
        """How many jobs there were whose records are not kept any more."""
        return self._snapshot.fallen

    def quantiles(
        self,
        of: str = "latency",
        shares: Sequence[float] = (0.5, 0.9, 0.99, 1.0),
        *,
        model: str | None = None,
    ) -> dict[float, float]:
        """The seconds within which such shares of the jobs were done, by share; empty if there are no jobs.

        Exact as long as all records are kept, and to 7 % once some have fallen out. Jobs that never began are
        left out.

        Args:
            of: ``"latency"`` (from submission to end), ``"queued"`` or ``"run"``.
            shares: from 0 to 1.
            model: only jobs under this model.

        Raises:
            ValueError: of what, or which model, is not known, or a share is not between 0 and 1.
        """
        for share in shares:
            if not 0 <= share <= 1:
                raise ValueError(f"a share must be between 0 and 1, not {share!r}")
        found = self._snapshot.quantiles(of, model, list(shares))
        return dict(zip(shares, found, strict=False))

    def records(self, *, model: str | None = None, function: str | None = None) -> list[JobRecord]:
        """The kept records, in the order in which the jobs ended; of one model or function, if given.

        Raises ValueError if there is no such model.
        """
        return [JobRecord(*values) for values in self._snapshot.records(model, function)]

    @property
    def workers(self) -> list[WorkerRecord]:
        """The workers, those included that have left (the newest thousand)."""
        return [
            WorkerRecord(number, model, name, pid or os.getpid(), since, until)
            for number, model, name, pid, since, until in self._snapshot.workers()
        ]

    def _columns(self) -> dict[str, list[Any]]:
        names = [field.name for field in fields(JobRecord)]
        rows = self._snapshot.records(None, None)
        columns = zip(*rows, strict=True) if rows else ((),) * len(names)
        return {name: list(column) for name, column in zip(names, columns, strict=True)}

    def to_arrow(self) -> Any:
        """The records as a `pyarrow.Table`, a column for each field of `JobRecord`.

        Raises ImportError if pyarrow is not installed.
        """
        return _needed("pyarrow").table(self._columns())

    def to_dataframe(self) -> Any:
        """The records as a data frame: of pandas or, if that is not installed, of polars.

        Raises ImportError if neither is.
        """
        try:
            return _needed("pandas").DataFrame(self._columns())
        except ImportError as error:
            try:
                return import_module("polars").DataFrame(self._columns(), strict=False)
            except ImportError:
                raise error from None

    def trace(self) -> dict[str, Any]:
        """The records as a trace of the kind that Chrome has defined: https://ui.perfetto.dev opens it.

        A row for each worker, or several where it ran jobs at the same time, and on it a bar for each job.
        """
        workers = {worker.number: worker for worker in self.workers}
        events: list[dict[str, Any]] = []
        names: dict[tuple[int, int], str] = {}
        for record, lane in lanes(self.records()):
            worker = workers.get(record.worker or 0)
            pid = worker.pid if worker is not None else os.getpid()
            row = (record.worker or 0) * 1000 + lane
            name = record.worker_name or f"worker {record.worker}"
            names[pid, row] = name if lane == 0 else f"{name} ({lane + 1})"
            started = record.started or record.submitted
            details = {key: value for key, value in asdict(record).items() if value is not None}
            events.append(
                {
                    "name": record.function,
                    "cat": record.model,
                    "ph": "X",
                    "pid": pid,
                    "tid": row,
                    "ts": started * 1e6,
                    "dur": (record.finished - started) * 1e6,
                    "args": details,
                }
            )
        for (pid, row), name in names.items():
            events.append({"name": "thread_name", "ph": "M", "pid": pid, "tid": row, "args": {"name": name}})
        for pid in {pid for pid, _ in names}:
            label = "this process" if pid == os.getpid() else f"worker process {pid}"
            events.append({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": label}})
        other = {"monotonic": self.now, "time": self._time, "fallen": self.fallen}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write `trace` to a file. Raises OSError if that cannot be."""
        Path(path).write_text(json.dumps(self.trace()), encoding="utf-8")

    def __repr__(self) -> str:
        totals = self.totals
        return f"<plait.ledger.Ledger: {totals.jobs} jobs, {totals.run:.3g} s run, {totals.cpu:.3g} s CPU>"


def lanes(records: Iterable[JobRecord]) -> list[tuple[JobRecord, int]]:
    """The records of jobs that a worker began, in the order in which they began, each with a number that no
    other has that the same worker ran at the same time: 0 for a worker that runs one at a time.
    """
    begun = [record for record in records if record.started is not None]
    begun.sort(key=lambda record: record.started or 0.0)
    free_at: dict[int | None, list[float]] = {}
    found = []
    for record in begun:
        until = free_at.setdefault(record.worker, [])
        started = record.started or 0.0
        lane = next((lane for lane, free in enumerate(until) if free <= started), len(until))
        if lane == len(until):
            until.append(0.0)
        until[lane] = record.finished
        found.append((record, lane))
    return found


def _needed(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module}, which is not installed: pip install {module}") from error
