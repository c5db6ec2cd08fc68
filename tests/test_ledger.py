"""`Executor.ledger`: what jobs cost under every model, and what cannot be known."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from plait import Executor
from plait.errors import TaskTimeout, WorkerDied
from plait.ledger import JobRecord, Ledger, Totals, lanes

MODELS = ["tasks", "threads", "processes", "hybrid"]
if sys.version_info >= (3, 14):
    MODELS.append("interpreters")

# Of CPU seconds; what a busy machine adds to a job is not among them.
COMPUTES = 0.05
WAITS = 0.05


def compute(seconds: float) -> int:
    until = time.thread_time() + seconds
    turns = 0
    while time.thread_time() < until:
        turns += 1
    return turns


def wait(seconds: float) -> None:
    time.sleep(seconds)


async def compute_and_wait(cpu: float, seconds: float) -> str:
    compute(cpu)
    await asyncio.sleep(seconds)
    compute(cpu)
    return "done"


def echo(value: Any) -> Any:
    return value


def length(shared: Any) -> int:
    return len(shared.value)


def fail() -> None:
    raise ValueError("as asked")


def run_child(seconds: float) -> None:
    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)


def fail_first(path: str) -> int:
    with Path(path).open("a") as file:
        file.write("x")
    attempts = Path(path).stat().st_size
    if attempts < 3:
        raise ValueError(attempts)
    return attempts


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def only(ledger: Ledger, function: str | None = None) -> JobRecord:
    (record,) = ledger.records(function=function)
    return record


def check(record: JobRecord) -> None:
    """What holds of every record."""
    assert record.finished >= record.submitted > 0
    if record.started is not None:
        assert record.submitted <= record.started <= record.finished
        assert record.queued is not None
        assert record.queued >= 0
        assert record.run is None or record.run <= record.latency * 1.001 + 1e-6 or record.retries
    parts = [record.waiting, record.gil_wait, record.delayed]
    for part in [record.run, record.cpu, *parts]:
        assert part is None or part >= 0
    if record.run is not None:
        for part in parts:
            assert part is None or part <= record.run * 1.001 + 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_computing_and_waiting_are_told_apart(model: str) -> None:
    with Executor(model, workers=1) as ex:
        for _ in range(2):
            ex.submit(compute, COMPUTES).result()
            ex.submit(wait, WAITS).result()
    for record in ex.ledger.records():
        check(record)
        assert record.model == model
        assert record.ending == "returned"
        assert record.run is not None
        assert record.cpu is not None
        if record.function == "compute":
            assert COMPUTES * 0.99 <= record.cpu <= record.run
        else:
            assert record.run >= WAITS * 0.99
            assert record.cpu < WAITS / 2
            assert record.waiting is not None
            assert record.waiting <= record.run - record.cpu + 1e-6
    totals = ex.ledger.totals
    assert (totals.jobs, totals.returned, totals.measured) == (4, 4, 4)
    assert set(ex.ledger.by_function) == {"compute", "wait"}
    assert set(ex.ledger.by_model) == {model}
    assert totals.cpu >= 2 * COMPUTES * 0.99


@pytest.mark.parametrize("model", MODELS)
def test_steps_of_coroutines_are_counted(model: str) -> None:
    with Executor(model, workers=1) as ex:
        assert ex.submit(compute_and_wait, COMPUTES / 2, WAITS).result() == "done"
    record = only(ex.ledger)
    check(record)
    assert record.run is not None
    assert record.cpu is not None
    assert record.run >= WAITS + record.cpu * 0.9
    assert COMPUTES * 0.99 <= record.cpu < COMPUTES + WAITS / 2


@pytest.mark.parametrize("model", MODELS)
def test_how_jobs_end(model: str) -> None:
    with Executor(model, workers=1) as ex:
        with pytest.raises(ValueError, match="as asked"):
            ex.submit(fail).result()
        with pytest.raises(TaskTimeout):
            ex.options(timeout=0.02, name="slow").submit(wait, 0.5).result()
        gate = ex.submit(wait, 0.2)
        waiting = ex.submit(echo, 1) if model != "hybrid" else None
        if waiting is not None and waiting.cancel():
            assert waiting.cancelled()
        gate.result()
    ledger = ex.ledger
    failed = only(ledger, "fail")
    check(failed)
    assert failed.ending == "raised"
    slow = only(ledger, "slow")
    check(slow)
    assert slow.ending == "timed out"
    if waiting is not None and waiting.cancelled():
        cancelled = only(ledger, "echo")
        assert cancelled.ending == "cancelled"
        if cancelled.started is None:
            assert cancelled.queued is cancelled.run is cancelled.cpu is None
    totals = ledger.totals
    assert totals.jobs == totals.returned + totals.raised + totals.cancelled + totals.timed_out + totals.lost
    assert totals.jobs == (3 if waiting is None else 4)


@pytest.mark.parametrize("model", MODELS)
def test_retries_are_one_job(model: str, tmp_path: Path) -> None:
    with Executor(model, workers=1) as ex:
        assert ex.options(retries=5).submit(fail_first, str(tmp_path / "attempts")).result() == 3
    record = only(ex.ledger)
    check(record)
    assert (record.ending, record.retries) == ("returned", 2)
    assert record.run is not None
    assert record.run > 0


@pytest.mark.parametrize("model", ["threads", "processes"])
def test_child_processes_are_counted(model: str) -> None:
    with Executor(model, workers=1) as ex:
        ex.submit(run_child, 0.1).result()
        ex.submit(wait, WAITS).result()
    child, after = ex.ledger.records()
    assert child.cpu is not None
    assert child.cpu >= 0.1
    assert after.cpu is not None
    assert after.cpu < WAITS / 2


@pytest.mark.parametrize("model", ["processes", "hybrid"])
def test_bytes_and_pickling(model: str) -> None:
    large = b"x" * 3_000_000
    with Executor(model, workers=1) as ex:
        assert ex.submit(echo, large).result() == large
        assert list(ex.map(echo, [large])) == [large]
        assert ex.submit(echo, 7).result() == 7
    first, mapped, small = ex.ledger.records()
    for record in (first, mapped):
        check(record)
        assert 3_000_000 <= record.argument_bytes < 3_001_000
        assert 3_000_000 <= record.result_bytes < 3_001_000
        assert record.copied_bytes == record.argument_bytes + record.result_bytes
        assert record.serialise_arguments > 0
        assert record.serialise_result > 0
        assert record.peak_memory is not None
        assert record.peak_memory > 3_000_000
    assert small.argument_bytes < 100
    assert small.gil_wait is None


def test_shared_memory_is_not_copied() -> None:
    import plait

    with plait.share(bytearray(2_000_000)) as shared, Executor("processes", workers=1) as ex:
        assert ex.submit(length, shared).result() == 2_000_000
    record = only(ex.ledger)
    assert record.shared_bytes >= 2_000_000
    assert record.copied_bytes < 10_000


@pytest.mark.parametrize("model", ["processes", "hybrid"])
def test_a_dead_workers_part_is_unknown(model: str) -> None:
    with Executor(model, workers=1) as ex:
        ex.submit(echo, 1).result()
        with pytest.raises(WorkerDied):
            ex.submit(die).result()
        ex.submit(echo, 2).result()
    record = only(ex.ledger, "die")
    check(record)
    assert record.ending == "lost"
    assert record.started is not None
    assert record.worker is not None
    assert record.run is record.cpu is record.waiting is None
    assert len({record.worker for record in ex.ledger.records()}) == 2
    assert all(worker.until is not None for worker in ex.ledger.workers)
    assert ex.ledger.totals.measured == 2


def test_a_cancelled_jobs_cost_is_unknown() -> None:
    with Executor("processes", workers=1) as ex:
        ex.submit(echo, 1).result()
        running = ex.submit(wait, 60)
        while not running.running():
            time.sleep(0.001)
        assert running.cancel()
        ex.submit(echo, 2).result()
    record = only(ex.ledger, "wait")
    check(record)
    assert record.ending == "cancelled"
    assert record.run is None


def test_shutdown_notes_what_it_cancels() -> None:
    ex = Executor("threads", workers=1)
    gate = threading.Event()
    first = ex.submit(gate.wait)
    others = [ex.submit(echo, number) for number in range(5)]
    while not first.running():
        time.sleep(0.001)
    ex.shutdown(wait=False, cancel_futures=True)
    gate.set()
    ex.shutdown()
    assert all(future.cancelled() for future in others)
    assert ex.ledger.totals.cancelled == 5
    assert ex.ledger.totals.returned == 1
    assert len(ex.ledger.quantiles("queued", [0.5])) == 1


@pytest.mark.skipif(
    getattr(sys, "_is_gil_enabled", lambda: True)() is False, reason="there is no GIL to wait for"
)
def test_gil_wait_is_estimated() -> None:
    def spin(_: int) -> int:
        count = 0
        for number in range(1_500_000):
            count += number
        return count

    with Executor("threads", workers=2) as ex:
        list(ex.map(spin, range(4)))
    contended = ex.ledger.totals
    with Executor("threads", workers=2) as ex:
        list(ex.map(lambda _: time.sleep(WAITS), range(4)))
    alone = ex.ledger.totals
    assert contended.gil_wait > 0.1 * contended.cpu
    assert contended.gil_wait <= contended.run - contended.cpu + 1e-6
    assert alone.gil_wait < 0.5 * alone.run


def test_map_and_chunks() -> None:
    with Executor("processes", workers=2) as ex:
        assert list(ex.map(echo, range(50))) == list(range(50))
        assert list(ex.map(echo, range(50), chunksize=10)) == list(range(50))
    totals = ex.ledger.by_function["echo"]
    assert totals.jobs == 55
    assert {record.worker_name for record in ex.ledger.records()} <= {w.name for w in ex.ledger.workers}


def test_auto_has_one_ledger() -> None:
    before = time.monotonic()
    with Executor(workers=2) as ex:
        list(ex.map(wait, [0.002] * 40))
    ledger = ex.ledger
    assert ledger.totals.jobs == 40
    assert set(ledger.by_function) == {"wait"}
    for record in ledger.records():
        check(record)
        assert record.submitted >= before


def test_names() -> None:
    class Callable:
        def __call__(self) -> int:
            return 1

        def method(self) -> int:
            return 2

    from functools import partial

    one = Callable()
    with Executor("threads", workers=1) as ex:
        for fn in (one, one.method, partial(echo, 1), int):
            ex.submit(fn).result()
        ex.options(name="named").submit(echo, 1).result()
        ex.submit(len, "abc").result()
    qualified = "test_names.<locals>.Callable"
    names = [record.function for record in ex.ledger.records()]
    assert names == [qualified, f"{qualified}.method", "echo", "int", "named", "len"]


def test_old_records_are_summed_up() -> None:
    with Executor("threads", workers=2) as ex:
        for _ in range(8):
            futures = [ex.submit(echo, number) for number in range(10_000)]
            for future in futures:
                future.result()
    ledger = ex.ledger
    assert ledger.totals.jobs == 80_000
    assert ledger.fallen > 0
    assert ledger.fallen + len(ledger.records()) == 80_000
    shares = ledger.quantiles("latency")
    assert list(shares) == [0.5, 0.9, 0.99, 1.0]
    assert sorted(shares.values()) == list(shares.values())


def test_a_ledger_stays_as_it_was() -> None:
    with Executor("threads", workers=1) as ex:
        ex.submit(echo, 1).result()
        before = ex.ledger
        ex.submit(echo, 2).result()
        assert before.totals.jobs == 1
        assert ex.ledger.totals.jobs == 2
    assert "1 jobs" in repr(before)


def test_nothing_yet() -> None:
    with Executor("threads") as ex:
        ledger = ex.ledger
    assert ledger.totals == Totals()
    assert ledger.records() == []
    assert ledger.quantiles() == {}
    assert ledger.trace()["traceEvents"] == []
    assert ledger._columns()["function"] == []


def test_bad_arguments() -> None:
    with Executor("threads") as ex:
        ledger = ex.ledger
    with pytest.raises(ValueError, match="share must be between 0 and 1, not 2"):
        ledger.quantiles(shares=[2])
    with pytest.raises(ValueError, match='not of "speed"'):
        ledger.quantiles("speed")
    with pytest.raises(ValueError, match='no model "fibres"'):
        ledger.records(model="fibres")


def test_the_trace_nests(tmp_path: Path) -> None:
    with Executor("tasks") as ex:
        list(ex.map(asyncio.sleep, [0.01] * 20))
    ex.ledger.save_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    jobs = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(jobs) == 20
    rows: dict[Any, list[Any]] = {}
    for job in jobs:
        rows.setdefault((job["pid"], job["tid"]), []).append((job["ts"], job["ts"] + job["dur"]))
    assert len(rows) > 1
    for spans in rows.values():
        spans.sort()
        assert all(one[1] <= other[0] + 1 for one, other in itertools.pairwise(spans))
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert named == set(rows)
    assert [lane for _, lane in lanes(ex.ledger.records())]


def test_tables() -> None:
    with Executor("threads", workers=1) as ex:
        ex.submit(echo, 1).result()
    for module, convert in (("pyarrow", ex.ledger.to_arrow), ("pandas", ex.ledger.to_dataframe)):
        try:
            __import__(module)
        except ImportError:
            with pytest.raises(ImportError, match=module):
                convert()
        else:
            table = convert()
            assert len(table) == 1
            assert "gil_wait" in (table.column_names if module == "pyarrow" else table.columns)


def test_a_fork_has_no_ledger() -> None:
    program = """if True:
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from plait import Executor
        ex = Executor("threads", workers=1)
        ex.submit(len, "a").result()
        pid = os.fork()
        if pid == 0:
            assert ex.submit(len, "ab").result() == 2
            try:
                ex.ledger
            except RuntimeError as error:
                assert "fork" in str(error), error
                ex.shutdown()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert ex.ledger.totals.jobs == 1
        ex.shutdown()
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
