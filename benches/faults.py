"""Ten thousand faults over many tasks: each costs what it may cost. `python benches/faults.py --help`.

Tasks of all kinds run on one pool while its workers are killed and stopped, and tasks cancelled; some exit,
crash or overrun their timeout by themselves; now and then the zygote is killed. Every task counts its runs in
a log that outlives workers. It fails (exit status 1) if a task hangs, has another outcome than it may have,
is lost or run more often than its retries allow, or if anything is left when the pool is shut down.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rich.console import Console
from rich.table import Table

import fault_jobs as jobs
from plait import Executor
from plait.errors import ResultNotPicklable, TaskTimeout, WorkerDied

LONGEST_SILENCE = 60.0  # Seconds without any outcome: somebody hangs.
MAP = 150  # Items of one map.


@dataclass(frozen=True)
class Task:
    """One task and the outcome that it has if nobody disturbs it."""

    number: int
    kind: str
    args: tuple[Any, ...]
    retries: int
    timeout: float | None
    expected: Callable[[], Any]


# Kind -> (how often, whether it is a fault in itself).
KINDS = {
    "nothing": (20, False),
    "small": (25, False),
    "takes": (8, False),
    "makes": (8, False),
    "turns": (5, False),
    "sleeps": (8, False),
    "works": (8, False),
    "raises": (5, False),
    "unpicklable": (3, False),
    "awaits": (6, False),
    "exits": (0, True),
    "crashes": (0, True),
    "oversleeps": (0, True),
    "spins": (0, True),
    "resists": (0, True),
}
# How the faults are shared out. What is left goes to kills from outside.
SHARES = {
    "exits": 0.12,
    "crashes": 0.06,
    "oversleeps": 0.08,
    "spins": 0.04,
    "resists": 0.001,
    "stop": 0.2,
    "cancel": 0.2,
    "zygote": 0.005,
}


def make_task(number: int, seed: int, bad: dict[int, str]) -> Task:
    """The task of this number: the same for the same seed."""
    chance = random.Random(seed * 1_000_003 + number)
    good = [kind for kind, (_, is_fault) in KINDS.items() if not is_fault]
    kind = bad.get(number) or chance.choices(good, [KINDS[kind][0] for kind in good])[0]
    args: tuple[Any, ...] = ()
    retries = chance.choice([0, 0, 0, 1, 3])
    timeout = chance.choice([None, None, 120.0])
    expected: Callable[[], Any] = lambda: None  # noqa: E731
    length = chance.choice([1_000, 20_000, 70_000, 300_000])
    match kind:
        case "small":
            expected = lambda: number * 3 + 1  # noqa: E731
        case "takes":
            data = jobs.pattern(number, length)
            args, expected = (data,), lambda: zlib.crc32(data)
        case "makes":
            args, expected = (length,), lambda: jobs.pattern(number, length)
        case "turns":
            turned = bytearray(jobs.pattern(number, length) + b"x")
            args, expected = (turned,), lambda: turned[::-1]
        case "sleeps":
            args, expected = (chance.uniform(0, 0.01),), lambda: number
        case "works":
            expected = lambda: -number  # noqa: E731
        case "awaits":
            expected = lambda: number + 7  # noqa: E731
        case "oversleeps" | "spins" | "resists":
            timeout, retries = chance.uniform(0.01, 0.06), 0
        case "exits" | "crashes":
            retries = chance.choice([0, 0, 0, 1])
    return Task(number, kind, args, retries, timeout, expected)


@dataclass
class Report:
    """What happened, and what should not have."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


class Chaos:
    """One run."""

    def __init__(self, tasks: int, faults: int, seed: int, workers: int, folder: Path) -> None:
        self.tasks, self.seed, self.workers = tasks, seed, workers
        self.chance = random.Random(seed)
        self.log = folder / "log"
        self.log.touch()
        self.report = Report()
        self.shares = {name: max(1, round(faults * share)) for name, share in SHARES.items()}
        self.shares["kill"] = max(1, faults - sum(self.shares.values()))
        inside = [kind for kind in KINDS for _ in range(self.shares.get(kind, 0))]
        self.bad = dict(zip(self.chance.sample(range(tasks), len(inside)), inside, strict=True))
        outside = [kind for kind in self.shares if kind not in KINDS for _ in range(self.shares[kind])]
        self.chance.shuffle(outside)
        self.outside = outside
        # One in four goes through a map; a bad task would end it.
        self.maps = [
            [number for number in range(first, min(first + MAP, tasks)) if number not in self.bad]
            for first in range(0, tasks, 4 * MAP)
        ]
        mapped = {number for numbers in self.maps for number in numbers}
        self.singles = [number for number in range(tasks) if number not in mapped]
        self.done: SimpleQueue[tuple[Task, Future[Any]]] = SimpleQueue()
        self.lock = threading.Lock()
        self.running: dict[int, Future[Any]] = {}
        self.outstanding = max(100, min(600, tasks // 20))
        self.ended = 0
        self.carried_out = 0
        self.last_outcome = time.monotonic()
        self.over = threading.Event()
        # What the faults from outside have hit.
        self.killed: set[int] = set()
        self.zygotes = 0
        self.cancelled: set[int] = set()
        # Which tasks were lost with which worker, and when that was heard.
        self.dead: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
        self.retries: dict[int, int] = {}
        self.outcome_of: dict[int, str] = {}

    # ---- Tasks ---------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """All of it."""
        before = holdings()
        self.executor = Executor(
            "processes", workers=self.workers, initializer=jobs.open_log, initargs=(str(self.log),)
        )
        threads = [threading.Thread(target=self.disturb), threading.Thread(target=self.watch, daemon=True)]
        for thread in threads:
            thread.start()
        try:
            mapped = threading.Thread(target=self.map_some)
            mapped.start()
            self.submit_all()
            while self.running or mapped.is_alive():
                self.judge_next()
        finally:
            self.over.set()
            threads[0].join()
        self.executor.shutdown()
        del self.executor
        self.judge_runs()
        self.judge_leftovers(before)
        return self.report

    def submit_all(self) -> None:
        """Submit tasks one by one, never more at a time than `outstanding`, and judge them as they end."""
        for number in self.singles:
            task = make_task(number, self.seed, self.bad)
            view = self.executor.options(timeout=task.timeout, retries=task.retries)
            future = view.submit(getattr(jobs, task.kind), task.number, *task.args)
            self.running[task.number] = future
            self.retries[task.number] = task.retries
            future.add_done_callback(lambda future, task=task: self.done.put((task, future)))  # type: ignore[misc]
            while len(self.running) > self.outstanding or not self.done.empty() or self.is_ahead():
                self.judge_next()

    def is_ahead(self) -> bool:
        """Whether tasks end faster than their faults come."""
        return len(self.outside) * self.ended > self.tasks * (self.carried_out + 10)

    def judge_next(self) -> None:
        """Wait for a task to end, and see whether it has ended as it should."""
        try:
            task, future = self.done.get(timeout=0.05)
        except Empty:
            return
        self.running.pop(task.number)
        outcome, complaint = self.judge(task, future)
        self.note(task, outcome, complaint)

    def note(self, task: Task, outcome: str, complaint: str | None) -> None:
        """Count an outcome."""
        with self.lock:
            self.ended += 1
            self.last_outcome = time.monotonic()
            self.report.outcomes[task.kind, outcome] += 1
            self.outcome_of[task.number] = outcome
            if complaint is not None:
                self.report.complaints.append(f"task {task.number} ({task.kind}): {complaint}")

    def judge(self, task: Task, future: Future[Any]) -> tuple[str, str | None]:
        """What became of a task, and what is wrong with that."""
        with self.lock:  # whoever cancels it holds this until it is noted
            is_meant = task.number in self.cancelled
        if future.cancelled():
            return "cancelled", None if is_meant else "cancelled, but nobody did that"
        if is_meant:
            return "not cancelled", "cancel() was true, but it has another outcome"
        error = future.exception()
        if error is None:
            return self.judge_value(task, future.result())
        return self.judge_error(task, error)

    def judge_value(self, task: Task, value: Any) -> tuple[str, str | None]:
        """Whether this is the task's value."""
        right = (task.kind not in ("raises", "unpicklable") and not KINDS[task.kind][1]) and (
            value == task.expected()
        )
        return "value", None if right else f"a wrong value: {value!r:.80}"

    def judge_error(self, task: Task, error: BaseException) -> tuple[str, str | None]:
        """Whether the task could fail in this way."""
        name = type(error).__name__
        match error:
            case WorkerDied():
                self.dead[error.pid].append((time.monotonic(), task.number))
                told = (error.exitcode, error.signal)
                own = {"exits": (task.number % 250 + 1, None), "crashes": (None, signal.SIGSEGV)}
                if told == own.get(task.kind):
                    return name, None
                # By whom is looked at in the end: the one who kills may not have said so yet.
                killed = told == (None, signal.SIGKILL) or (self.shares["zygote"] and told == (None, None))
                return f"{name} (killed)", None if killed else f"its worker died otherwise: {error}"
            case TaskTimeout():
                overdue = task.kind in ("oversleeps", "spins", "resists")
                return name, None if overdue else f"it did not take {task.timeout} s"
            case jobs.Boom():
                return name, None if task.kind == "raises" and error.args == (task.number,) else repr(error)
            case ResultNotPicklable():
                return name, None if task.kind == "unpicklable" and "generator" in str(error) else repr(error)
        return name, f"an exception of another kind: {error!r:.500}"

    def map_some(self) -> None:
        """The tasks of the maps, some with retries and some without."""
        chance = random.Random(self.seed + 1)
        for taken in self.maps:
            # Spread over the run.
            while taken and self.ended < taken[0] and not self.over.is_set():
                time.sleep(0.001)
            retries = chance.choice([0, 1_000])
            kind = chance.choice(["small", "works", "makes"])
            for number in taken:
                self.retries[number] = retries
            self.map_these(taken, kind, retries)

    def map_these(self, taken: list[int], kind: str, retries: int) -> None:
        """One map: its results come in order, until the first failure."""
        options = {"small": (), "works": (), "makes": (100_000,)}[kind]
        columns = [taken, *([value] * len(taken) for value in options)]
        results = self.executor.map(getattr(jobs, kind), *columns, retries=retries)
        rest = iter(taken)

        def expected() -> Any:
            match kind:
                case "small":
                    return number * 3 + 1
                case "works":
                    return -number
                case _:
                    return jobs.pattern(number, 100_000)

        for number in rest:
            task = Task(number, f"map {kind}", (), retries, None, expected)
            while self.is_ahead():
                time.sleep(0.001)
            try:
                value = next(results)
            except Exception as error:
                outcome, complaint = self.judge_error(task, error)
                if retries and complaint is None:
                    complaint = f"it has retries left: {error}"
                self.note(task, outcome, complaint)
                break
            right = value == expected()
            self.note(task, "value", None if right else f"a wrong value: {value!r:.80}")
        for number in rest:
            self.note(Task(number, f"map {kind}", (), retries, None, expected), "given up", None)

    # ---- Faults --------------------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Carry out the faults from outside, spread evenly over the tasks that end."""
        stopped: list[tuple[float, int]] = []
        for at, fault in enumerate(self.outside):
            due = self.tasks * at / len(self.outside)
            while not self.over.is_set():
                self.wake(stopped)
                if self.ended >= due and self.carry_out(fault, stopped):
                    self.report.faults[fault] += 1
                    self.carried_out = at + 1
                    break
                time.sleep(0.001)
        while stopped:
            self.wake(stopped)
            time.sleep(0.001)

    def wake(self, stopped: list[tuple[float, int]]) -> None:
        """Let go on whoever was stopped for long enough."""
        now = time.monotonic()
        for entry in [entry for entry in stopped if entry[0] <= now]:
            stopped.remove(entry)
            send(entry[1], signal.SIGCONT)

    def carry_out(self, fault: str, stopped: list[tuple[float, int]]) -> bool:
        """One fault; false if there is nobody to have it."""
        if fault == "cancel":
            with self.lock:
                running = list(self.running.items())
            if not running:
                # Only maps are left.
                return self.carry_out("stop", stopped)
            # The oldest are those that run; of most others no worker has heard.
            oldest = self.workers if self.chance.random() < 0.5 else len(running)
            number, future = self.chance.choice(running[:oldest])
            # In this order: an outcome may be judged before `cancel` has returned.
            with self.lock:
                if future.cancel():
                    self.cancelled.add(number)
            return True
        workers = [pid for pid in self.executor._pool.statistics()["workers"] if pid]  # type: ignore[attr-defined]
        if not workers:
            return False
        pid = self.chance.choice(workers)
        match fault:
            case "kill":
                self.killed.add(pid)
                return send(pid, signal.SIGKILL)
            case "stop":
                stopped.append((time.monotonic() + self.chance.uniform(0.001, 0.1), pid))
                return send(pid, signal.SIGSTOP)
            case _:
                zygote = parent_of(pid)
                self.zygotes += 1
                return zygote not in (None, os.getpid(), 1) and send(zygote or 0, signal.SIGKILL)

    def watch(self) -> None:
        """If nothing ends for long, say what is known and give up: that is a hang."""
        while not self.over.wait(1):
            if time.monotonic() - self.last_outcome > LONGEST_SILENCE:
                left = sorted(self.running)
                print(
                    f"HANG, seed {self.seed}: {self.ended} of {self.tasks} ended; {left[:20]} ...", flush=True
                )
                print(self.executor._pool.statistics(), flush=True)  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGABRT)

    # ---- Afterwards ----------------------------------------------------------------------------------------

    def judge_runs(self) -> None:
        """Hold the number of runs of each task to its outcome and its retries."""
        begun: Counter[int] = Counter()
        ended: Counter[int] = Counter()
        for number, what in jobs.MARK.iter_unpack(self.log.read_bytes()):
            (begun if what == jobs.BEGUN else ended)[number] += 1
        complain = self.report.complaints.append
        if len(self.outcome_of) != self.tasks:
            complain(f"{self.tasks - len(self.outcome_of)} tasks have no outcome")
        for number, outcome in self.outcome_of.items():
            runs, most = begun[number], 1 + self.retries[number]
            if runs > most:
                complain(
                    f"task {number} was run {runs} times, with {self.retries[number]} retries: {outcome}"
                )
            if outcome == "value" and not ended[number]:
                complain(f"task {number} has a value and did not come to its end")
            if outcome in ("Boom", "ResultNotPicklable") and not runs:
                complain(f"task {number} failed and was not run")
        for pid, lost in self.dead.items():
            # Process ids come again, but not so soon.
            for (first, one), (second, other) in pairwise(sorted(lost)):
                if second - first < 5:
                    complain(f"one death, of {pid}, cost two tasks: {one}, {other}")
        strangers = [
            pid
            for pid, lost in self.dead.items()
            if pid not in self.killed and self.outcome_of[lost[0][1]].endswith("(killed)")
        ]
        # Those that were killed together with their zygote.
        if len(strangers) > self.zygotes * self.workers:
            complain(f"{len(strangers)} workers died by nobody's hand: {strangers[:10]}")

    def judge_leftovers(self, before: Counter[str]) -> None:
        """Nothing of the pool may be left, once threads that said goodbye are gone."""
        deadline = time.monotonic() + 5
        while (more := holdings() - before) and time.monotonic() < deadline:
            time.sleep(0.01)
        if more:
            self.report.complaints.append(f"left behind: {dict(more)}")


def send(pid: int, number: int) -> bool:
    """Send a signal; false if there is nobody any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def parent_of(pid: int) -> int | None:
    """The process that started this one."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def holdings() -> Counter[str]:
    """What this process has of the system that a pool could leave behind."""
    counts = Counter(
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        mappings=Path("/proc/self/maps").read_text().count("memfd:plait"),
    )
    for path in Path("/proc/self/task").iterdir():
        counts["threads"] += 1
        counts["children"] += len((path / "children").read_text().split())
    return counts


def show(report: Report, seconds: float, seed: int) -> None:
    """The tables."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    names = sorted({outcome for _, outcome in report.outcomes})
    table = Table("task", *names, title=f"outcomes ({seconds:.0f} s, seed {seed})")
    for kind in dict.fromkeys(kind for kind, _ in sorted(report.outcomes)):
        table.add_row(kind, *(f"{report.outcomes[kind, name] or '·'}" for name in names))
    console.print(table)
    inside = {kind for kind, (_, is_fault) in KINDS.items() if is_fault}
    own = sum(count for (kind, _), count in report.outcomes.items() if kind in inside)
    told = ", ".join(f"{count} × {name}" for name, count in sorted(report.faults.items()))
    console.print(f"faults: {own} by tasks themselves, {sum(report.faults.values())} from outside ({told})")
    for complaint in report.complaints[:40]:
        console.print(f"[red]{complaint}", highlight=False)
    verdict = "each cost what it may cost, and nothing is left"
    console.print(f"{len(report.complaints)} complaints" if report.complaints else verdict)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    print(
        f"{given.faults} faults over {given.tasks} tasks, {given.workers} workers, --seed {given.seed}",
        flush=True,
    )
    # A segmentation fault is ordinary here: no core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Chaos(given.tasks, given.faults, given.seed, given.workers, Path(folder)).run()
    show(report, time.monotonic() - begun, given.seed)
    sys.exit(bool(report.complaints))


if __name__ == "__main__":
    main()
