"""What surrounds a worker process: the options of its pool, and what it begins with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait

_state: list[Any] = []


def begin(value: Any) -> None:
    """An initializer."""
    _state.append(value)


def fail_to_begin() -> None:
    """An initializer that fails."""
    raise LookupError("no such thing")


def state() -> list[Any]:
    """What the initializer has left."""
    return _state


def threads() -> int:
    """How many threads this process has."""
    return len(list(Path("/proc/self/task").iterdir()))


def are_imported(*names: str) -> list[bool]:
    """Which modules are imported here."""
    return [name in sys.modules for name in names]


def import_order() -> list[str]:
    """What the modules of `modules` have noted."""
    return getattr(sys, "import_order", [])


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Makes importable modules, which note in which process they were imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, text: str) -> None:
        order = f"[*getattr(sys, 'import_order', []), ({name!r}, os.getpid())]"
        note = f"import os, sys\nsys.import_order = {order}\n"
        (tmp_path / f"{name}.py").write_text(note + text)

    return make


@pytest.mark.parametrize("model", ["threads", "processes"])
def test_an_initializer_runs_before_the_first_job(model: str) -> None:
    _state.clear()
    with plait.Executor(model, 1, initializer=begin, initargs=("ready",)) as ex:
        assert ex.submit(state).result(60) == ["ready"]
    _state.clear()


@pytest.mark.parametrize("model", ["threads", "processes"])
def test_an_initializer_that_fails_fails_every_job(
    model: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    import concurrent.futures

    with plait.Executor(model, 1, initializer=fail_to_begin) as ex:
        error = ex.submit(state).exception(60)
        assert isinstance(error, concurrent.futures.BrokenExecutor)
        with pytest.raises(concurrent.futures.BrokenExecutor):
            ex.submit(state)
    if model == "processes":
        assert "LookupError: no such thing" in str(error)


def test_a_worker_is_replaced_after_so_many_jobs() -> None:
    with plait.Executor("processes", 1, max_tasks_per_worker=2) as ex:
        pids = [ex.submit(os.getpid).result(60) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize(
    ("model", "option"),
    [
        ("tasks", {"initializer": state}),
        ("auto", {"initializer": state}),
        ("threads", {"max_tasks_per_worker": 3}),
        ("tasks", {"preload": ["json"]}),
    ],
)
def test_an_option_that_a_model_does_not_have_is_refused(model: str, option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{model!r} has no option '{next(iter(option))}'"):
        plait.Executor(model, **option)


@pytest.mark.parametrize(
    ("option", "kind", "says"),
    [
        ({"initializer": 3}, TypeError, "int"),
        ({"max_tasks_per_worker": 0}, ValueError, "at least 1, not 0"),
        ({"max_tasks_per_worker": "x"}, TypeError, "'x'"),
        ({"preload": "json"}, TypeError, "'json'"),
        ({"preload": [3]}, TypeError, "3"),
    ],
)
def test_a_wrong_value_of_an_option_is_named(
    option: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        plait.Executor("processes", **option)


def test_auto_hands_options_to_the_processes_it_chooses() -> None:
    with plait.Executor("auto", 2, preload=["json"], max_tasks_per_worker=5) as ex:
        assert ex.submit(pow, 2, 3).result(60) == 8


def test_preloaded_modules_are_imported_once_and_for_all(modules: Callable[[str, str], None]) -> None:
    modules("outfit_one", "import asyncio")
    with plait.Executor("processes", 2, preload=["outfit_one", "decimal"], max_tasks_per_worker=1) as ex:
        seen = [ex.submit(import_order).result(60) for _ in range(3)]
        assert ex.submit(are_imported, "outfit_one", "decimal", "asyncio").result(60) == [True] * 3
    assert seen[0] == seen[1] == seen[2], "each was imported by the same process"
    assert len(seen[0]) == 1


def test_a_module_that_starts_threads_is_left_to_the_workers(modules: Callable[[str, str], None]) -> None:
    modules("outfit_plain", "")
    modules(
        "outfit_threads",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
    )
    with plait.Executor(
        "processes", 1, preload=["outfit_threads", "outfit_plain"], max_tasks_per_worker=2
    ) as ex:
        first, first_threads = ex.submit(import_order).result(60), ex.submit(threads).result(60)
        second, second_threads = ex.submit(import_order).result(60), ex.submit(threads).result(60)
    assert [name for name, _ in first] == ["outfit_plain", "outfit_threads"]
    assert first[0] == second[0], "what starts no threads is still imported once"
    assert first[1] != second[1]
    assert (first_threads, second_threads) == (2, 2), "the thread lives in each worker"


def test_a_module_that_cannot_be_preloaded_is_one_clear_error(modules: Callable[[str, str], None]) -> None:
    modules("outfit_broken", "raise LookupError('not here')")
    with plait.Executor("processes", 2, preload=["outfit_broken"]) as ex:
        error = ex.submit(state).exception(60)
    assert "preload='outfit_broken' cannot be imported" in str(error)
    assert "LookupError: not here" in str(error)


MEMORY = """
import concurrent.futures, multiprocessing, sys, time
import plait

def own(pid):
    # A page that n processes share counts as an n-th in each.
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))

if __name__ == "__main__":
    if sys.argv[1] == "plait":
        ex = plait.Executor("processes", 4)
    else:
        ex = concurrent.futures.ProcessPoolExecutor(4, multiprocessing.get_context("forkserver"))
    with ex:
        concurrent.futures.wait([ex.submit(time.sleep, 0.2) for _ in range(8)])
        pids = ex._pool.statistics()["workers"] if sys.argv[1] == "plait" else list(ex._processes)
        assert len(pids) == 4
        print(max(map(own, pids)))
"""


def test_an_idle_worker_takes_less_memory_than_one_of_the_standard_forkserver(tmp_path: Path) -> None:
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    ours, standard = (
        int(subprocess.check_output([sys.executable, script, whose], text=True, timeout=120))
        for whose in ("plait", "standard")
    )
    assert ours < standard
