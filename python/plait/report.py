"""`Executor.report()`: where the time went, how busy workers were, what `auto` chose, what to do about it.

Printed, it is a table; `Report.save` writes it as one page of HTML that needs nothing else.
"""

from __future__ import annotations

import html
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait._budget import cpus
from plait.ledger import JobRecord, Ledger, Totals, WorkerRecord, lanes

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from plait._job import Statistics
    from plait.auto import Decision

__all__ = ["Finding", "Report", "WorkerTime", "page"]

_MOST_FINDINGS = 3
# So many workers have a line of their own in the table, and so many jobs a bar in the page's timeline.
_MOST_WORKERS = 8
_MOST_BARS = 20_000
# What is less than this share of the time is not worth a word.
_WORTH = 0.25

_PARTS = ("serialise", "cpu", "gil_wait", "delayed", "waiting", "idle")
_TITLES = {
    "queued": "in the queue",
    "serialise": "serialise",
    "cpu": "run: CPU",
    "gil_wait": "run: GIL wait (estimate)",
    "delayed": "run: ready, no CPU",
    "waiting": "run: waiting",
    "idle": "workers idle",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know, or to do."""

    text: str
    """In words, with the number behind it."""
    weight: float
    """Of the time that it is about, from 0 to 1: the findings are ordered by it."""


@dataclass(frozen=True, slots=True)
class WorkerTime:
    """How busy a worker was, as far as the kept records tell."""

    worker: WorkerRecord
    jobs: int
    seconds: float
    """For how long it was there."""
    busy: float
    """For how long of that it had a job, or several."""
    cpu: float
    """CPU seconds of its jobs."""


class Report:
    """What an executor did until now. Immutable; `str` and `print` give the table."""

    def __init__(
        self, ledger: Ledger, statistics: Statistics, decision: Decision | None = None, workers: int = 0
    ) -> None:
        self.ledger = ledger
        self.statistics = statistics
        self.decision = decision
        self.cpus = cpus()
        self.limit = workers
        records = ledger.records()
        self.worker_times = _worker_times(ledger, records)
        self._records = records

    @property
    def where(self) -> dict[str, float]:
        """Where the time went: seconds of all jobs in the queue (``queued``), in pickling (``serialise``), in
        functions (``cpu``, ``gil_wait``, ``delayed``, ``waiting``), and of workers without jobs (``idle``).
        """
        totals = self.ledger.totals
        idle = sum(max(one.seconds - one.busy, 0.0) for one in self.worker_times)
        return {
            "queued": totals.queued,
            "serialise": totals.serialise,
            "cpu": totals.cpu,
            "gil_wait": totals.gil_wait,
            "delayed": totals.delayed,
            "waiting": totals.waiting,
            "idle": idle,
        }

    @property
    def findings(self) -> list[Finding]:
        """Up to three things worth knowing, the weightiest first."""
        return sorted(_findings(self), key=lambda finding: -finding.weight)[:_MOST_FINDINGS]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one page of HTML, with charts, that needs no network. Raises OSError."""
        Path(path).write_text(page(self.title, [self.as_dict()]), encoding="utf-8")

    @property
    def title(self) -> str:
        """What it is about, in a line."""
        return f"plait: {self.ledger.totals.jobs} jobs, {self.statistics.model}"

    def as_dict(self, most: int = _MOST_BARS) -> dict[str, Any]:
        """Everything, for machines: seconds and bytes; the newest `most` jobs one by one."""
        ledger = self.ledger
        began = min((record.submitted for record in self._records), default=ledger.now)
        models = {}
        for model, totals in ledger.by_model.items():
            models[model] = {
                "jobs": totals.jobs,
                "parts": _parts(totals) | {"idle": _idle(self.worker_times, model)},
                "quantiles": _curve(ledger, model),
            }
        return {
            "title": self.title,
            "model": self.statistics.model,
            "cpus": self.cpus,
            "made": time.time(),
            "jobs": ledger.totals.jobs,
            "endings": _endings(ledger.totals),
            "span": ledger.totals.span,
            "where": self.where,
            "findings": [finding.text for finding in self.findings],
            "decision": None if self.decision is None else _told(self.decision),
            "models": models,
            "workers": [
                {
                    "name": one.worker.name,
                    "model": one.worker.model,
                    "jobs": one.jobs,
                    "seconds": one.seconds,
                    "busy": one.busy,
                    "cpu": one.cpu,
                }
                for one in self.worker_times
            ],
            "timeline": _timeline(self._records, most, began),
            "peak_memory": ledger.totals.peak_memory,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        totals, where = self.ledger.totals, self.where
        ended = ", ".join(f"{count} {ending}" for ending, count in _endings(totals).items() if count)
        yield Text(f"{totals.jobs} jobs in {_seconds(totals.span)} ({ended or 'none has ended'})", "bold")
        unfinished = self.statistics.running + self.statistics.queued
        if unfinished:
            yield Text(f"{unfinished} more have not ended: {self.statistics.queued} of them in the queue")
        if totals.jobs:
            table = Table(header_style="bold", box=None, pad_edge=False)
            table.add_column("where the time went")
            for title in ("in all", "per job"):
                table.add_column(title, justify="right")
            table.add_column("of workers' time", justify="right")
            table.add_column("")
            all_time = sum(where[part] for part in _PARTS)
            for part in ("queued", *_PARTS):
                share = where[part] / all_time if all_time and part != "queued" else None
                table.add_row(
                    _TITLES[part],
                    _seconds(where[part]),
                    _seconds(where[part] / totals.jobs) if part != "idle" else "",
                    "" if share is None else f"{share:.0%}",
                    "" if share is None else "█" * round(share * 20),
                )
            yield table
            yield self._workers_table()
            latency = self.ledger.quantiles("latency")
            if latency:
                parts = [f"{share:.0%} {_seconds(value)}" for share, value in latency.items()]
                yield Text("done within: " + ", ".join(parts))
            if totals.peak_memory:
                yield Text(f"largest worker: {_bytes(totals.peak_memory)}")
        if self.decision is not None:
            decision = self.decision
            yield Text(f"auto chose {decision.model} for {decision.function}: {decision.reason}")
            expected = decision.expected
            if expected and decision.jobs:
                rates = ", ".join(f"{model} {rate:.3g}/s" for model, rate in expected.items())
                yield Text(f"expected jobs per second: {rates}")
        for finding in self.findings:
            yield Text(f"• {finding.text}")

    def _workers_table(self) -> Any:
        from rich.table import Table

        table = Table(header_style="bold", box=None, pad_edge=False)
        for title in ("worker", "model"):
            table.add_column(title)
        for title in ("jobs", "busy", "CPU"):
            table.add_column(title, justify="right")
        times = sorted(self.worker_times, key=lambda one: -one.busy)
        for one in times[:_MOST_WORKERS]:
            table.add_row(
                one.worker.name, one.worker.model, str(one.jobs), _share(one.busy, one), _share(one.cpu, one)
            )
        if len(times) > _MOST_WORKERS:
            rest = times[_MOST_WORKERS:]
            together = sum(one.busy for one in rest) / max(sum(one.seconds for one in rest), 1e-9)
            table.add_row(f"{len(rest)} more", "", str(sum(one.jobs for one in rest)), f"{together:.0%}", "")
        return table

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        console = Console(file=StringIO(), width=100, color_system=None, force_terminal=False)
        console.print(self, highlight=False)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined,no-any-return]

    def __repr__(self) -> str:
        return f"<plait.report.Report: {self.title}>"


def _share(part: float, one: WorkerTime) -> str:
    return f"{part / one.seconds:.0%}" if one.seconds else "–"


def _worker_times(ledger: Ledger, records: list[JobRecord]) -> list[WorkerTime]:
    spans: dict[int, list[tuple[float, float]]] = {}
    used: dict[int, float] = {}
    for record in records:
        if record.worker is not None and record.started is not None:
            spans.setdefault(record.worker, []).append((record.started, record.finished))
            used[record.worker] = used.get(record.worker, 0.0) + (record.cpu or 0.0)
    # What was before the first kept record is not known.
    began = min((record.submitted for record in records), default=ledger.now)
    until = max((record.finished for record in records), default=ledger.now)
    times = []
    for worker in ledger.workers:
        since, end = max(worker.since, began), min(worker.until or ledger.now, max(until, began))
        mine = sorted(spans.get(worker.number, ()))
        if end <= since and not mine:
            continue
        busy, reached = 0.0, since
        for start, finish in mine:
            busy += max(finish - max(start, reached), 0.0)
            reached = max(reached, finish)
        seconds = max(end - since, busy)
        times.append(WorkerTime(worker, len(mine), seconds, busy, used.get(worker.number, 0.0)))
    return times


def _idle(times: Iterable[WorkerTime], model: str) -> float:
    return sum(max(one.seconds - one.busy, 0.0) for one in times if one.worker.model == model)


def _parts(totals: Totals) -> dict[str, float]:
    return {
        "queued": totals.queued,
        "serialise": totals.serialise,
        "cpu": totals.cpu,
        "gil_wait": totals.gil_wait,
        "delayed": totals.delayed,
        "waiting": totals.waiting,
    }


def _endings(totals: Totals) -> dict[str, int]:
    return {
        "returned": totals.returned,
        "raised": totals.raised,
        "cancelled": totals.cancelled,
        "timed out": totals.timed_out,
        "lost": totals.lost,
    }


def _curve(ledger: Ledger, model: str) -> list[tuple[float, float]]:
    """Shares of the jobs, and the seconds within which they were done."""
    shares = [share / 100 for share in range(0, 100, 2)] + [0.99, 0.995, 0.999, 1.0]
    return list(ledger.quantiles("latency", shares, model=model).items())


def _told(decision: Decision) -> dict[str, Any]:
    return {
        "function": decision.function,
        "model": decision.model,
        "reason": decision.reason,
        "expected": decision.expected,
    }


def _timeline(records: list[JobRecord], most: int, began: float) -> dict[str, Any]:
    """The newest jobs, by row: a worker's, or one of several if it runs many jobs at a time."""
    rows: dict[tuple[str, int | None, int], int] = {}
    functions: dict[str, int] = {}
    jobs: list[list[Any]] = []
    for record, lane in lanes(records[-most:]):
        row = rows.setdefault((record.model, record.worker, lane), len(rows))
        function = functions.setdefault(record.function, len(functions))
        started = record.started or record.submitted
        jobs.append(
            [
                row,
                function,
                round(started - began, 7),
                round(record.finished - began, 7),
                record.ending,
                _rounded(record.queued),
                _rounded(record.cpu),
                _rounded(record.waiting),
                _rounded(record.gil_wait),
                record.argument_bytes + record.result_bytes,
            ]
        )
    names = {record.worker: record.worker_name for record in records}
    order = sorted(rows, key=lambda key: (key[0], key[1] or 0, key[2]))
    places = {rows[key]: place for place, key in enumerate(order)}
    for job in jobs:
        job[0] = places[job[0]]
    labels = []
    for model, worker, lane in order:
        name = names.get(worker) or f"worker {worker}"
        labels.append([model, name if lane == 0 else f"{name} ({lane + 1})"])
    return {
        "rows": labels,
        "functions": list(functions),
        "jobs": jobs,
        "left_out": max(len(records) - most, 0),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 7)


# What to say of what was measured. Each looks at one thing, and gives None if it is no matter.


def _findings(report: Report) -> Iterable[Finding]:
    looks: tuple[Callable[[Report], Finding | None], ...] = (
        _pickling,
        _gil,
        _waiting_processes,
        _loop,
        _short_jobs,
        _idle_workers,
        _queue,
        _busy_machine,
        _lost,
    )
    for look in looks:
        finding = look(report)
        if finding is not None:
            yield finding


def _pickling(report: Report) -> Finding | None:
    totals = report.ledger.totals
    busy = totals.serialise + totals.run
    share = totals.serialise / busy if busy else 0.0
    size = totals.argument_bytes + totals.result_bytes
    # What is smaller than that is not what takes long: the first job of a worker loads its function, too.
    if share < _WORTH or size < 4096 * totals.jobs:
        return None
    if totals.serialise_result > totals.serialise_arguments:
        what, size, way = "results", totals.result_bytes, "return less"
    else:
        what, size, way = "arguments", totals.argument_bytes, "send less"
    text = (
        f"{share:.0%} of the workers' time is pickling {what} of {_bytes(size)}"
        f" ({_bytes(size / totals.jobs)} a job): {way}, or put it into shared memory once (plait.share)"
    )
    return Finding(text, share)


def _gil(report: Report) -> Finding | None:
    totals = report.ledger.by_model.get("threads")
    if totals is None or not totals.run:
        return None
    share = totals.gil_wait / totals.run
    # Where the GIL is what they wait for, jobs together compute nearly all the time.
    if share < _WORTH or totals.cpu < 0.6 * totals.span:
        return None
    # What is left when nobody waits for the GIL, spread over the CPUs.
    alone = (totals.run - totals.gil_wait) / max(min(report.cpus, report.limit or report.cpus), 1)
    factor = totals.span / alone if alone else 0.0
    text = f"jobs in threads waited for the GIL for {share:.0%} of their time (estimated)"
    if report.cpus > 1 and factor > 1.2:
        text += f": use processes, predicted {min(factor, report.cpus):.1f} × as fast"
    elif report.cpus == 1:
        text += ": there is one CPU, so processes would not be faster"
    return Finding(text, share)


def _waiting_processes(report: Report) -> Finding | None:
    totals = report.ledger.by_model.get("processes")
    if totals is None or not totals.run:
        return None
    share = totals.waiting / totals.run
    if share < 0.7 or totals.measured < totals.jobs / 2:
        return None
    text = (
        f"jobs in processes spent {share:.0%} of their time waiting: threads, tasks or a hybrid wait as well,"
        " many more at once and without pickling"
    )
    return Finding(text, share * 0.9)


def _loop(report: Report) -> Finding | None:
    of_tasks = [one for one in report.worker_times if one.worker.name.startswith("plait-tasks")]
    seconds, used = sum(one.busy for one in of_tasks), sum(one.cpu for one in of_tasks)
    share = min(used / seconds, 1.0) if seconds else 0.0
    if share < 0.8 or used < 1e-3:
        return None
    text = (
        f"coroutines computed for {share:.0%} of the time in which the event loop had any: a loop uses one"
        " CPU, so use a hybrid, or processes"
    )
    return Finding(text, share)


def _short_jobs(report: Report) -> Finding | None:
    for model, totals in report.ledger.by_model.items():
        if model == "tasks" or totals.measured < 1000 or totals.retries:
            continue
        run = totals.run / totals.measured
        took = totals.span / totals.measured
        if run < 20e-6 and run < took / 3:
            text = (
                f"a job runs for {_seconds(run)} under {model}, and one was done every {_seconds(took)}:"
                " handing it over costs more than the work; give each more to do (chunksize= of map)"
            )
            return Finding(text, 1 - run / took)
    return None


def _idle_workers(report: Report) -> Finding | None:
    seconds = sum(one.seconds for one in report.worker_times)
    idle = sum(max(one.seconds - one.busy, 0.0) for one in report.worker_times)
    share = idle / seconds if seconds else 0.0
    if share < 0.5 or seconds < 0.05 or len(report.worker_times) < 2:
        return None
    count = len(report.worker_times)
    text = f"workers had no job for {share:.0%} of their time: there were not enough for {count} of them"
    return Finding(text, share * 0.5)


def _queue(report: Report) -> Finding | None:
    totals = report.ledger.totals
    run = totals.run + totals.serialise
    if not run or not totals.measured or totals.queued < 3 * run or totals.queued < 0.05:
        return None
    mean_queued, mean_run = totals.queued / totals.jobs, totals.run / totals.measured
    share = totals.waiting / totals.run if totals.run else 0.0
    text = f"a job was in the queue for {_seconds(mean_queued)}, and ran for {_seconds(mean_run)}"
    if share > 0.5:
        text += f", {share:.0%} of it waiting: more workers wait for more at once (workers=)"
        return Finding(text, 0.6)
    return None


def _busy_machine(report: Report) -> Finding | None:
    totals = report.ledger.totals
    share = totals.delayed / totals.run if totals.run else 0.0
    if share < _WORTH or totals.delayed < 0.01:
        return None
    text = (
        f"for {share:.0%} of their time jobs were ready to go on and had no CPU: there are more threads or"
        f" programs at work than the {report.cpus} CPUs this one may use"
    )
    return Finding(text, share * 0.8)


def _lost(report: Report) -> Finding | None:
    totals = report.ledger.totals
    if totals.lost:
        return Finding(f"{totals.lost} of {totals.jobs} jobs were lost with their workers, which died", 1.0)
    if totals.timed_out:
        text = f"{totals.timed_out} of {totals.jobs} jobs were over their timeout"
        return Finding(text, 0.5 + totals.timed_out / totals.jobs / 2)
    if totals.raised > totals.jobs / 10:
        text = f"{totals.raised} of {totals.jobs} jobs raised an exception"
        return Finding(text, totals.raised / totals.jobs)
    return None


def _seconds(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f} s"
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.0f} ns"


def _bytes(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"


def page(
    title: str, reports: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None = None
) -> str:
    """A page of HTML with these reports (as `Report.as_dict` gives them) in one, and a comparison if given.

    Self-contained: styles, scripts and numbers are in it, and its policy forbids it to load anything.
    """
    folder = Path(__file__).with_name("_report")
    data = {"title": title, "reports": list(reports), "comparison": comparison, "titles": _TITLES}
    # Whatever a function is called, it cannot end the script that it stands in.
    numbers = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = (folder / "page.html").read_text(encoding="utf-8")
    for mark, part in (
        ("TITLE", html.escape(title)),
        ("STYLE", _file(folder, "uPlot.min.css") + _file(folder, "page.css")),
        ("LIBRARY", f"/*\n{_file(folder, 'uPlot.LICENSE')}\n*/\n{_file(folder, 'uPlot.iife.min.js')}"),
        ("SCRIPT", _file(folder, "page.js")),
        ("NUMBERS", numbers),
    ):
        text = text.replace(f"@@{mark}@@", part, 1)
    return text


def _file(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")
