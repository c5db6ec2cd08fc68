"""The same work serially and under every model, measured: which is best, by how much, and what `auto` picks.

Each measurement runs in a process of its own, so that none warms up another and peak memory means something.
The models take turns (A B C, A B C), so that a machine that slows down slows down all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from plait._budget import cpus

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SERIAL", "Comparison", "Measurement", "ModelResult", "available_models", "compare"]

SERIAL = "serial"
# So many jobs of each model are in the timeline of a comparison.
_MOST_BARS = 4000
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of all the work under one model."""

    wall: float
    """Seconds from making the executor to its end, all results received."""
    cpu: float
    """Seconds of CPU time, workers included."""
    memory: int
    """Bytes at the peak, workers included; memory that processes share is counted once."""
    failed: int
    """How many items raised an exception."""
    differing: int | None
    """How many results are not equal to the serial ones; None if results cannot be kept to be compared."""
    delayed: float = 0.0
    """Seconds that a serial run was ready to go on and the machine was busy with others' work."""
    workers: int | None = None
    """How many workers there were; None for a serial run."""
    decision: str | None = None
    """What `auto` said it chose, and why."""
    chosen: str | None = None
    """The model that `auto` chose."""
    report: dict[str, Any] | None = None
    """What its executor's report says, for the page."""


@dataclass(slots=True)
class ModelResult:
    """What was measured of one model, over all rounds."""

    model: str
    runs: list[Measurement] = field(default_factory=list)
    error: str | None = None
    """Why there is no measurement, if there is none."""

    @property
    def wall(self) -> float:
        """Median seconds."""
        return median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Median seconds of CPU time."""
        return median(run.cpu for run in self.runs)

    @property
    def memory(self) -> int:
        """Bytes: the highest peak."""
        return max(run.memory for run in self.runs)

    @property
    def cores(self) -> float:
        """How many cores were busy on average."""
        return self.cpu / self.wall

    @property
    def delayed(self) -> float:
        """The share of a serial run in which the machine was busy with others' work."""
        return median(min(run.delayed / run.wall, 1) for run in self.runs)

    @property
    def waiting(self) -> float:
        """The share of a serial run in which it waited for something other than a core."""
        return max(1 - self.cores - self.delayed, 0)


@dataclass(slots=True)
class Comparison:
    """The measurements of every model, and how to tell them."""

    function: str
    items: int
    results: list[ModelResult]
    rounds: int
    cpus: int

    def __getitem__(self, model: str) -> ModelResult:
        for result in self.results:
            if result.model == model:
                return result
        raise KeyError(model)

    def speedup(self, model: str) -> float:
        """How many times as fast as serial (medians); 0 if the model could not be measured."""
        result, serial = self[model], self[SERIAL]
        return serial.wall / result.wall if result.runs and serial.runs else 0.0

    @property
    def measured(self) -> list[ModelResult]:
        """The models that ran, `auto` and serial left out, the fastest first."""
        others = [result for result in self.results if result.runs and result.model not in (SERIAL, AUTO)]
        return sorted(others, key=lambda result: result.wall)

    @property
    def equal(self) -> bool:
        """Whether every model gave the serial results, in every run."""
        return all(not run.differing for result in self.results for run in result.runs)

    def table(self) -> Table:
        """The measurements as a table, for a terminal at least 80 columns wide."""
        from rich.table import Table

        table = Table(header_style="bold")
        table.add_column("model")
        for title in ("workers", "wall", "× serial", "CPU", "cores", "memory"):
            table.add_column(title, justify="right")
        best = self.measured[0] if self.measured else None
        for result in self.results:
            if not result.runs:
                table.add_row(result.model, *["–"] * 6, style="dim")
                continue
            run = result.runs[0]
            name = f"auto → {run.chosen}" if run.chosen else result.model
            table.add_row(
                name,
                str(run.workers or "–"),
                _seconds(result.wall),
                _times(self.speedup(result.model)),
                _seconds(result.cpu),
                f"{result.cores:.2f}",
                f"{result.memory / 2**20:.0f} MiB",
                style="bold green" if result is best else None,
            )
        return table

    def remarks(self) -> list[str]:
        """What the table cannot say: failures, differences, models that did not run, what `auto` chose."""
        remarks = [
            f"{result.model}: not measured: {result.error}"
            for result in self.results
            if result.error is not None
        ]
        failed = {result.model: result.runs[0].failed for result in self.results if result.runs}
        if any(failed.values()):
            counts = ", ".join(f"{model} {count}" for model, count in failed.items())
            remarks.append(f"items that raised an exception: {counts}")
        differing = {
            result.model: max(run.differing or 0 for run in result.runs)
            for result in self.results
            if result.runs
        }
        if any(run.differing is None for result in self.results for run in result.runs):
            remarks.append("the results cannot be pickled, so they were not compared")
        elif any(differing.values()):
            counts = ", ".join(f"{model} {count}" for model, count in differing.items() if count)
            remarks.append(f"results that differ from the first serial run: {counts} of {self.items}")
        elif len(self.measured) > 0:
            remarks.append("every model gave the same results")
        if self[SERIAL].runs and self[SERIAL].delayed > 0.1:
            share = f"{self[SERIAL].delayed:.0%}"
            remarks.append(
                f"the machine was busy with other work for {share} of the serial run: trust this less"
            )
        auto = next((result for result in self.results if result.model == AUTO and result.runs), None)
        if auto is not None and auto.runs[0].decision:
            remarks.append(f"auto chose {auto.runs[0].chosen}: {auto.runs[0].decision}")
        return remarks

    def sentence(self) -> str:
        """What was learnt, in words with numbers."""
        if not self.measured or not self[SERIAL].runs:
            return "nothing could be compared"
        best = self.measured[0]
        if self.speedup(best.model) < 1.05:
            parts = [
                f"serial; no model is faster (the best, {best.model}, {_times(self.speedup(best.model))})"
            ]
        else:
            parts = [f"{best.model}, {_times(self.speedup(best.model))} serial"]
            parts += [f"{result.model} {_times(self.speedup(result.model))}" for result in self.measured[1:]]
        details = ", ".join(filter(None, [*parts[1:], self._why()]))
        return f"{parts[0]}; {details}" if details else parts[0]

    def _why(self) -> str:
        """What the work is made of, judged from CPU time: serial, and with threads where they ran."""
        serial = self[SERIAL]
        if serial.waiting > 0.5:
            return f"{serial.waiting:.0%} of a serial run is waiting"
        if serial.delayed > 0.1:
            return "measured on a busy machine"
        threads = next((result for result in self.measured if result.model == "threads"), None)
        if threads is None or self.cpus < 2 or serial.waiting > 0.1:
            return f"{1 - serial.waiting:.0%} of a serial run is CPU time"
        gain = self.speedup("threads")
        if threads.cores < 1.15 and gain < 1.15:
            # Threads that wait for the GIL use no CPU: what they used together is what they held it for.
            return f"the GIL is held {min(threads.cores, 1):.0%} of the time"
        if threads.cores > 1.3:
            return f"threads kept {threads.cores:.1f} of {self.cpus} cores busy: the work releases the GIL"
        return ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison as one page of HTML, with charts, that needs no network; with the timelines of
        the last round, if it was made for that. Raises OSError.
        """
        from plait.report import page

        reports = [result.runs[-1].report for result in self.results if result.runs]
        title = f"plait compare: {self.function}, {self.items} items"
        told = self.as_dict() | {"remarks": self.remarks()}
        Path(path).write_text(page(title, [each for each in reports if each], told), encoding="utf-8")

    def as_dict(self) -> dict[str, Any]:
        """Everything, for machines: seconds and bytes."""
        models = []
        for result in self.results:
            entry: dict[str, Any] = {"model": result.model}
            if result.error is not None:
                entry["error"] = result.error
            if result.runs:
                run = result.runs[0]
                entry |= {
                    "workers": run.workers,
                    "wall": result.wall,
                    "walls": [each.wall for each in result.runs],
                    "speedup": self.speedup(result.model),
                    "cpu": result.cpu,
                    "peak_memory": result.memory,
                    "failed": run.failed,
                    "differing": run.differing,
                }
                if run.decision is not None:
                    entry |= {"chosen": run.chosen, "decision": run.decision}
            models.append(entry)
        return {
            "function": self.function,
            "items": self.items,
            "rounds": self.rounds,
            "cpus": self.cpus,
            "python": platform.python_version(),
            "models": models,
            "summary": self.sentence(),
        }


def available_models() -> list[str]:
    """The models that this interpreter can run, `auto` left out."""
    models = ["tasks", "threads", "processes", "hybrid"]
    if sys.version_info >= (3, 14):
        models.append("interpreters")
    return models


def compare(
    function: str,
    items: Iterable[Any],
    *,
    models: Sequence[str] | None = None,
    workers: Mapping[str, int] | int | None = None,
    rounds: int = 3,
    seconds: float | None = None,
    path: Sequence[str] = (),
    watch: Callable[[str, int], None] | None = None,
    reports: bool = False,
) -> Comparison:
    """Run ``function`` (``MODULE:FUNCTION``) on every item, serially and under each of ``models``.

    ``models`` defaults to all that there are here. ``workers`` is a number for every model or a mapping from
    model to number. The models take turns for ``rounds`` rounds; none begins that would end after
    ``seconds``. ``path`` is put in front of ``sys.path`` where the work runs. ``watch`` is called with the
    model and the round before each measurement. With ``reports``, the runs also tell what each job cost, for
    `Comparison.save`.

    Items, and results if they are to be compared, must be picklable. Raises TypeError for items that are not.
    """
    chosen = [SERIAL, *(models if models is not None else [*available_models(), AUTO])]
    results = [ModelResult(model) for model in chosen]
    began = time.monotonic()
    done = 0
    with tempfile.TemporaryDirectory(prefix="plait-compare-") as name:
        directory = Path(name)
        inputs = list(items)
        try:
            (directory / "items").write_bytes(pickle.dumps(inputs, protocol=5))
        except Exception as error:
            raise TypeError(f"the items cannot be pickled to be sent to the runs: {error}") from error
        while done < rounds:
            for result in results:
                if result.error is not None:
                    continue
                if watch is not None:
                    watch(result.model, done)
                count = workers.get(result.model) if isinstance(workers, Mapping) else workers
                try:
                    run = _run_apart(
                        directory,
                        {
                            "function": function,
                            "model": result.model,
                            "workers": count,
                            "path": list(path),
                            "reports": reports,
                        },
                    )
                except _RunFailed as error:
                    result.error = str(error)
                    if result.model == SERIAL:
                        for other in results[1:]:
                            other.error = "the serial run failed"
                else:
                    result.runs.append(run)
            done += 1
            elapsed = time.monotonic() - began
            if seconds is not None and elapsed + elapsed / done > seconds:
                break
    return Comparison(function, len(inputs), results, done, cpus())


class _RunFailed(Exception):
    """A measurement that gave no result, with the reason."""


def _run_apart(directory: Path, spec: dict[str, Any]) -> Measurement:
    """One measurement in a fresh process, its memory watched from here."""
    reading, writing = os.pipe()
    errors = directory / "stderr"
    with os.fdopen(reading, encoding="utf-8") as report, errors.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from plait.compare import _measure; _measure()",
                    str(directory),
                    str(writing),
                    json.dumps(spec),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)
        assert process.stdin is not None
        watcher = _MemoryWatcher(process.pid)
        try:
            answer = None
            if report.readline():  # Imported and loaded: what it uses from now on is the work's.
                watcher.start()
                answer = report.readline()
                watcher.stop()
            process.stdin.close()
            process.wait()
        finally:
            watcher.stop()
            _end(process)
    if not answer:
        last = errors.read_text(errors="replace").strip().splitlines()
        ended = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        raise _RunFailed(last[-1] if last else f"the run ended with {ended}")
    told: dict[str, Any] = json.loads(answer)
    if "error" in told:
        raise _RunFailed(told["error"])
    told["memory"] = max(told["memory"], watcher.peak)
    return Measurement(**told)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind, also when this one is being interrupted: the run gets the Ctrl-C as well."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(timeout=0.5)
        process.kill()
        process.wait()


class _MemoryWatcher:
    """Peak memory of a process and its descendants, sampled from outside; pages they share count once."""

    def __init__(self, pid: int) -> None:
        import threading

        self.pid = pid
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="plait-memory-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while True:
            began = time.monotonic()
            self.peak = max(self.peak, sum(map(_proportional_size, process_tree(self.pid))))
            # Looking must not disturb what is looked at: at most a twentieth of a core.
            if self._ended.wait(max(0.05, 20 * (time.monotonic() - began))):
                return


def process_tree(root: int) -> list[int]:
    """The process and all of its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # "pid (name) state parent …", and the name may hold anything.
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _proportional_size(pid: int) -> int:
    """Bytes of memory of a process; a page that n processes share counts as an n-th in each."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# What follows runs in the process of a measurement.


def _measure() -> None:
    """Run the work once under one model, and report it as JSON on the descriptor given in ``sys.argv``."""
    directory, descriptor, text = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    spec = json.loads(text)
    sys.path[:0] = [entry for entry in spec["path"] if entry not in sys.path]
    with os.fdopen(descriptor, "w", encoding="utf-8") as report:
        os.set_inheritable(descriptor, False)
        try:
            from plait._reference import load_function

            function = load_function(spec["function"])
            items = pickle.loads((directory / "items").read_bytes())
            told = _measured(
                function, items, spec, directory, lambda: print("ready", file=report, flush=True)
            )
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        except KeyboardInterrupt:
            os._exit(130)
        print(json.dumps(told), file=report, flush=True)
        sys.stdin.read()  # The last look at this process's memory, then the end.


def _measured(
    function: Callable[..., Any],
    items: list[Any],
    spec: dict[str, Any],
    directory: Path,
    ready: Callable[[], None],
) -> dict[str, Any]:
    model = spec["model"]
    if model != SERIAL:
        import plait.executor  # Not part of the work.
    expected = directory / "results"
    # A map ends at the first error: where the serial run had one, each item is submitted by itself.
    guarded = (directory / "failed").exists()
    told: dict[str, Any] = {}
    ready()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    if model == SERIAL:
        delayed = _delayed_seconds()
        outcomes = _serial_outcomes(function, items)
        told["delayed"] = _delayed_seconds() - delayed
    else:
        with plait.executor.Executor(model, workers=spec["workers"]) as executor:
            if guarded:
                outcomes = [
                    _outcome(future) for future in [executor.submit(function, item) for item in items]
                ]
            else:
                outcomes = [(True, value) for value in executor.map(function, items)]
            told["workers"] = executor.workers
            if model == AUTO and executor.decision is not None:
                told |= {"decision": executor.decision.reason, "chosen": executor.decision.model}
    told |= {
        "wall": time.perf_counter() - wall,
        "cpu": _cpu_seconds() - cpu,
        "memory": _peak_of_this_process(),
    }
    if model != SERIAL and spec["reports"]:
        told["report"] = executor.report().as_dict(_MOST_BARS)
    told["failed"] = sum(not succeeded for succeeded, _ in outcomes)
    if model == SERIAL and told["failed"]:
        (directory / "failed").touch()
    told["differing"] = _differing(outcomes, expected)
    return told


def _serial_outcomes(function: Callable[..., Any], items: list[Any]) -> list[tuple[bool, Any]]:
    import asyncio
    import inspect

    outcomes: list[tuple[bool, Any]] = []
    with asyncio.Runner() as runner:
        for item in items:
            try:
                value = function(item)
                if inspect.iscoroutine(value):
                    value = runner.run(value)
                outcomes.append((True, value))
            except Exception as error:
                outcomes.append((False, _told(error)))
    return outcomes


def _outcome(future: Any) -> tuple[bool, Any]:
    try:
        return True, future.result()
    except Exception as error:
        return False, _told(error)


def _told(error: Exception) -> tuple[str, str]:
    """An exception as something that can be compared."""
    return type(error).__qualname__, str(error)


def _cpu_seconds() -> float:
    """User and system time of this process and of every one below it that ended and was waited for."""
    import resource

    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _delayed_seconds() -> float:
    """Seconds that this thread was ready to run and had no core; 0 if the kernel does not say."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _peak_of_this_process() -> int:
    """Bytes; exact, unlike the samples from outside, but of this process alone."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _differing(outcomes: list[tuple[bool, Any]], expected: Path) -> int | None:
    """How many outcomes are not those of the first serial run, which leaves its own in ``expected``."""
    try:
        if not expected.exists():
            expected.write_bytes(pickle.dumps(outcomes, protocol=5))
            return 0
        serial = pickle.loads(expected.read_bytes())
        return sum(not _equal(ours, theirs) for ours, theirs in zip(outcomes, serial, strict=True))
    except (pickle.PickleError, TypeError, AttributeError, EOFError):
        expected.write_bytes(b"")
        return None


def _equal(ours: Any, theirs: Any) -> bool:
    try:
        if bool(ours == theirs):
            return True
    except Exception:  # Arrays, for instance, have no one truth value.
        pass
    return pickle.dumps(ours, protocol=5) == pickle.dumps(theirs, protocol=5)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _times(value: float) -> str:
    return f"{value:.0f}×" if value >= 20 else f"{value:.1f}×" if value >= 2 else f"{value:.2f}×"
