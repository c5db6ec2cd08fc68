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
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VARIABLE", "Budget", "cpu_budget", "cpus", "share"]

VARIABLE = "PLAIT_CPUS"


@dataclass(frozen=True, slots=True)
class Budget:
    """How many CPUs this process may use, and what says so."""

    cpus: int
    """What pools go by: `wish` if there is one, else what `affinity` and `quota` allow, at least 1."""
    affinity: int
    """The CPUs that the kernel (or ``python -X cpu_count``) lets this process run on."""
    quota: float | None
    """The least quota of its control groups, of version 1 or 2, in CPUs; None if there is none."""
    wish: int | None
    """``PLAIT_CPUS``; in a worker process its share of what its pool's process has. None if it is not set."""

    def __str__(self) -> str:
        quota = "no quota" if self.quota is None else f"a quota of {self.quota:g}"
        told = "" if self.wish is None else f", because {VARIABLE} says so"
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}{told}: affinity to {self.affinity}, {quota}"


def cpu_budget(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Budget:
    """How many CPUs the pools of this process may use together, as it is now: quotas may change.

    Thread-safe. Raises ValueError if ``PLAIT_CPUS`` is not a whole number of at least 1.
    """
    affinity, limits, wish = _affinity(), quotas(root), _wish(environ)
    return Budget(wish or allowed(affinity, limits), affinity, min(limits, default=None), wish)


def cpus(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> int:
    """The CPUs that this process may use, at least 1: ``PLAIT_CPUS`` if that is set, else what affinity (and
    ``python -X cpu_count``) and the quota of the control group allow.

    Raises ValueError if ``PLAIT_CPUS`` is not a whole number of at least 1.
    """
    return _wish(environ) or allowed(_affinity(), quotas(root))


def _wish(environ: Mapping[str, str]) -> int | None:
    wish = environ.get(VARIABLE, "").strip()
    if not wish:
        return None
    if not wish.isdecimal() or int(wish) < 1:
        raise ValueError(f"{VARIABLE} must be a whole number of at least 1, not {wish!r}")
    return int(wish)


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
