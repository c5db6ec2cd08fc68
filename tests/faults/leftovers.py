"""What a pool could leave behind: descriptors, mappings, threads, processes; counted before and after."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple


class Holdings(NamedTuple):
    """What this process has of the system."""

    descriptors: Counter[str]
    shared_mappings: int
    threads: int
    children: set[int]


def holdings() -> Holdings:
    """What this process has of the system now."""
    return Holdings(descriptors(), shared_mappings(), threads(), children(os.getpid()))


def excess(before: Holdings, limit: float = 5.0) -> dict[str, object]:
    """What this process has more than `before`, after at most `limit` seconds: a thread that has said goodbye
    takes a moment to be gone.
    """
    gc.collect()
    deadline = time.monotonic() + limit
    while True:
        now = holdings()
        more: dict[str, object] = {
            "descriptors": now.descriptors - before.descriptors,
            "shared mappings": max(0, now.shared_mappings - before.shared_mappings),
            "threads": max(0, now.threads - before.threads),
            "children": now.children - before.children,
        }
        more = {what: count for what, count in more.items() if count}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.01)


def descriptors() -> Counter[str]:
    """What this process's descriptors are."""
    found: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[str(path.readlink()).split(":")[0]] += 1
        except FileNotFoundError:  # the listing's own
            continue
    return found


def shared_mappings() -> int:
    """How many of plait's mappings this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:plait")


def threads() -> int:
    """How many threads this process has, Python's and others."""
    return len(list(Path("/proc/self/task").iterdir()))


def children(root: int) -> set[int]:
    """The process ids of all living descendants of `root`."""
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.name)] = int(parent)
    found: set[int] = set()
    while True:
        more = {pid for pid, parent in parents.items() if parent in found | {root}} - found
        if not more:
            return found
        found |= more


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not just what is left for its parent to read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not stat.rpartition(")")[2].split()[0].startswith(("Z", "X"))


def wait_until_gone(pids: set[int], limit: float = 5.0) -> set[int]:
    """Those of `pids` that are still alive after `limit` seconds."""
    deadline = time.monotonic() + limit
    while (alive := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def resident_bytes() -> int:
    """How much memory of this process is in RAM, what it shares with others included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait_until_asleep(pid: int) -> None:
    """Wait until the main thread of a process has slept for a while."""
    asleep = 0
    while asleep < 10:
        state = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.01)
