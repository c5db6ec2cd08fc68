"""The CPU budget: how many CPUs a process may use, and what its workers have of them."""

from __future__ import annotations

import concurrent.futures
import os
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

import plait
from plait import _budget, futures
from plait._budget import allowed, cpus, quotas, share


@pytest.mark.parametrize(
    ("affinity", "limits", "expected"),
    [(8, [], 8), (8, [2.0], 2), (8, [1.5, 3.0], 2), (2, [16.0], 2), (4, [0.1], 1), (1, [], 1)],
)
def test_the_least_limit_counts(affinity: int, limits: list[float], expected: int) -> None:
    assert allowed(affinity, limits) == expected


@pytest.mark.parametrize(
    ("have", "workers", "expected"), [(8, 4, 2), (8, 3, 2), (8, 8, 1), (2, 16, 1), (7, 1, 7)]
)
def test_a_worker_has_its_share(have: int, workers: int, expected: int) -> None:
    assert share(have, workers) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, [1.5]),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            [2.0],
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, [0.5]),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            [3.0],
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            [],
        ),
        ({"proc/self/cgroup": "nonsense\n0::/../x\n", "sys/fs/cgroup/x/cpu.max": "100000 0\n"}, []),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, files: dict[str, str], expected: list[float]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quotas(tmp_path) == expected


def test_the_variable_has_the_last_word(tmp_path: Path) -> None:
    assert cpus(tmp_path, {"PLAIT_CPUS": "64"}) == 64
    assert cpus(tmp_path, {"PLAIT_CPUS": ""}) == cpus(tmp_path, {}) >= 1


@pytest.mark.parametrize("wish", ["0", "-1", "two", "1.5"])
def test_a_variable_that_is_no_number_of_cpus_is_refused(tmp_path: Path, wish: str) -> None:
    with pytest.raises(ValueError, match=f"PLAIT_CPUS must be a whole number of at least 1, not {wish!r}"):
        cpus(tmp_path, {"PLAIT_CPUS": wish})


def widths() -> dict[str, int]:
    """How wide pools are in a worker if nobody says."""
    with (
        plait.Executor("processes") as processes,
        plait.Executor("threads") as threads,
        futures.ProcessPoolExecutor() as ours,
        # Not by fork: this worker has threads by now.
        concurrent.futures.ProcessPoolExecutor(mp_context=get_context("spawn")) as standard,
    ):
        assert processes.submit(pow, 2, 3).result(60) == ours.submit(pow, 2, 3).result(60) == 8
        assert standard.submit(pow, 2, 3).result(60) == 8
        return {
            "budget": _budget.cpus(),
            "processes": processes.workers,
            "threads": threads.workers,
            "ours": ours._max_workers,
            "standard": standard._max_workers,
            "within": processes.submit(_budget.cpus).result(60),
        }


@pytest.mark.parametrize(("have", "workers", "expected"), [(6, 2, 3), (6, None, 1), (2, 5, 1)])
def test_pools_in_a_worker_keep_to_its_share(
    monkeypatch: pytest.MonkeyPatch, have: int, workers: int | None, expected: int
) -> None:
    monkeypatch.setenv("PLAIT_CPUS", str(have))
    with plait.Executor("processes", workers) as ex:
        assert ex.workers == (workers or have)
        found = ex.submit(widths).result(120)
    standard = found.pop("standard")
    assert standard == expected if sys.version_info >= (3, 13) else standard == os.cpu_count()
    assert found == {
        "budget": expected,
        "processes": expected,
        "threads": expected + 4,
        "ours": expected,
        "within": 1,
    }


def test_the_budget_says_where_it_comes_from(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000\n")
    budget = plait.cpu_budget()
    assert budget.cpus == cpus()
    assert budget.affinity >= 1
    half = _budget.cpu_budget(tmp_path, {})
    assert (half.cpus, half.quota, half.wish) == (1, 0.5, None)
    assert str(half) == f"1 CPU: affinity to {budget.affinity}, a quota of 0.5"
    (group / "cpu.max").write_text("max 100000\n")  # it follows what has changed
    wished = _budget.cpu_budget(tmp_path, {"PLAIT_CPUS": "3"})
    assert wished == plait.Budget(3, budget.affinity, None, 3)
    assert str(wished) == f"3 CPUs, because PLAIT_CPUS says so: affinity to {budget.affinity}, no quota"
    with pytest.raises(ValueError, match="PLAIT_CPUS must be a whole number"):
        _budget.cpu_budget(tmp_path, {"PLAIT_CPUS": "many"})
