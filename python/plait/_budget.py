"""How many CPUs this process may use: one number for every pool in it, and its share for each worker.

A program may use fewer CPUs than the machine has: by its affinity, by the quota of its control group, or
because somebody says so in ``PLAIT_CPUS``. A worker of a pool with `n` workers gets an `n`-th of what the
pool's process has, by that same variable, which what it starts inherits; so pools in workers do not add up to
more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["VARIABLE", "cpus", "share"]

VARIABLE = "PLAIT_CPUS"


def cpus(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """The CPUs that this process may use, at least 1: ``PLAIT_CPUS`` if that is set, else what affinity (and
    ``python -X cpu_count``) and the quota of the control group allow.

    Raises ValueError if ``PLAIT_CPUS`` is not a whole number of at least 1.
    """
    wish = environ.get(VARIABLE, "").strip()
    if wish:
        if not wish.isdecimal() or int(wish) < 1:
            raise ValueError(f"{VARIABLE} must be a whole number of at least 1, not {wish!r}")
        return int(wish)
    return allowed(_affinity(), quotas(root))


def allowed(affinity: int, quotas: list[float]) -> int:
    """The whole CPUs that `affinity` and all `quotas` allow: a fraction of one is rounded up."""
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def share(cpus: int, workers: int) -> int:
    """How many of `cpus` each of so many workers has."""
    return max(1, cpus // workers)


def _affinity() -> int:
    count: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    return (count() if count is not None else None) or len(os.sched_getaffinity(0))


def quotas(root: Path) -> list[float]:
    """How many CPUs the control group of this process, and each that it is in, may use; without those that do
    not say."""
    groups = root / "sys/fs/cgroup"
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            found += [_version_2(folder) for folder in _upwards(groups, path)]
        elif "cpu" in controllers.split(","):
            for top in (groups / controllers, groups / "cpu"):
                found += [_version_1(folder) for folder in _upwards(top, path)]
    # In a container the own group may be mounted as if it were the root.
    found += [_version_2(groups), _version_1(groups / "cpu")]
    return [quota for quota in found if quota is not None]


def _upwards(top: Path, path: str) -> list[Path]:
    """A group and all that it is in, but the root, which has no limits."""
    names = [name for name in path.split("/") if name and name != ".."]
    return [top.joinpath(*names[:count]) for count in range(len(names), 0, -1)]


def _version_2(group: Path) -> float | None:
    match _read(group / "cpu.max").split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return int(quota) / int(period)
    return None


def _version_1(group: Path) -> float | None:
    quota, period = _read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # -1: no limit
        return int(quota) / int(period)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
